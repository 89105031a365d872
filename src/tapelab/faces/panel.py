"""The live panel of `tapelab record`: what has arrived, how late, and what was lost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tapelab.market import clock

if TYPE_CHECKING:
    from rich.console import Console

REFRESH = 0.5  # seconds between two looks at the statistics


WIDE = 1_000  # columns where there is no terminal: nothing that is piped on is cut or folded


def console() -> Console:
    """Where tables are printed: as wide as the terminal, in a pipe as wide as they are."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE)


@contextmanager
def doing(what: str) -> Iterator[Callable[[str], None]]:
    """On a terminal a spinner says what is being done, and whatever it is given since; in a pipe nothing."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status(what) as status:
        yield status.update


def watch(recorder: Any, ended: threading.Event, duration: float | None) -> None:
    """Show the recording's statistics until the time is over, a signal comes, or the recording fails.

    On a terminal the panel is live; in a pipe nothing is printed.
    """
    until = None if duration is None else clock.monotonic() + round(duration * clock.SECOND)
    live = _live() if sys.stdout.isatty() else None
    if live:
        live.start()
    try:
        while not ended.is_set() and (until is None or clock.monotonic() < until):
            left = REFRESH if until is None else min(REFRESH, (until - clock.monotonic()) / clock.SECOND)
            ended.wait(max(left, 0))
            stats = recorder.stats
            if stats.error:
                raise stats.error
            if live:
                live.update(_table(stats))
    finally:
        if live:
            live.stop()


def _live() -> Any:
    from rich.live import Live

    return Live(refresh_per_second=4, transient=True)


def _table(stats: Any) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.ROUNDED, show_header=False, title="recording", caption="Ctrl-C ends it cleanly")
    table.add_row("events", f"{stats.events:,}")
    table.add_row("frames", f"{stats.frames:,}")
    table.add_row("on disk", f"{stats.acknowledged / 1e6:,.1f} MB ({stats.durable / 1e6:,.1f} MB flushed)")
    table.add_row("lag", "–" if stats.lag_ms is None else f"{stats.lag_ms:,.1f} ms")
    table.add_row("gaps", f"{stats.gaps} ({stats.reconnects} reconnections)")
    return table
