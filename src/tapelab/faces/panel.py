"""What a terminal shows while it works; above all the live panel of `tapelab record`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from tapelab.market import clock, sessions
from tapelab.store.datasets.room import in_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from tapelab.live.schedule import Slot
    from tapelab.live.watch import Watch

QUOTES = 12  # symbols whose last quote is shown
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


class Panel:
    """On a terminal a panel that follows a `Watch`; in a pipe nothing. Give `show` to the watch."""

    def __init__(self) -> None:
        self._live: Any = None
        self._quotes: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Panel:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
            _say_above(sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            _say_above(sys.stderr)

    def show(self, watch: Watch) -> None:
        """Draw how things stand; called after each look."""
        if self._live is None:
            return
        if watch.recorder is None:
            self._quotes.clear()
        else:
            import polars as pl

            rows = pl.from_arrow(watch.recorder.newest_quotes())
            assert isinstance(rows, pl.DataFrame)
            newest = rows.unique("symbol", keep="last", maintain_order=True)
            self._quotes.update((row["symbol"], row) for row in newest.iter_rows(named=True))
        self._live.update(_panel(watch, self._quotes), refresh=True)


def _say_above(stream: TextIO) -> None:
    """Let what is logged go where the panel has sent the error stream: above it, not across it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(stream)


def _panel(watch: Watch, quotes: dict[str, dict[str, Any]]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.panel import Panel as Frame
    from rich.table import Table
    from rich.text import Text

    said: Any = watch.said
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    for name, value in _facts(watch):
        facts.add_row(name, value)
    parts: list[RenderableType] = [facts]
    if quotes:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 2))
        table.add_column("symbol")
        for name in ("bid", "ask", "spread", "at"):
            table.add_column(name, justify="right")
        for symbol in sorted(quotes)[:QUOTES]:
            table.add_row(symbol, *_quote(quotes[symbol]))
        more = len(quotes) - QUOTES
        parts += [table, Text(f"  and {more:,} more symbols", "dim")] if more > 0 else [table]
    parts += [Text(line, style="bold red") for line in said["problems"].values()]
    title = f"{said['state']} {said['dataset']}".strip()
    return Frame(
        Group(*parts),
        title=title,
        subtitle="Ctrl-C ends it cleanly",
        border_style="red" if said["problems"] else "green" if said["state"] == "recording" else "none",
        expand=False,
        padding=(1, 2),
    )


def _facts(watch: Watch) -> list[tuple[str, str]]:
    said: Any = watch.said
    rows = [("session", _session(watch.slot))] if watch.slot else []
    if said["state"] != "recording":
        return rows
    lag, gaps = said["lag_ms"], said["gaps"]
    causes = ", ".join(f"{cause} {count}" for cause, count in gaps.items())
    on_disk, durable = in_words(said["acknowledged_bytes"]), in_words(said["durable_bytes"])
    return [
        *rows,
        ("rate", f"{said['events_per_second']:,.0f} events/s, {said['events']:,} so far"),
        ("lag", "–" if lag is None else f"{lag:,.1f} ms"),
        ("connection", f"{'up' if said['connected'] else 'down'}, {said['reconnects']} reconnections"),
        ("gaps", f"{sum(gaps.values())} ({causes})" if gaps else "none"),
        ("safe", f"{on_disk} from a kill, {durable} from a power cut"),
        ("disk", str(watch.forecast) if watch.forecast else "–"),
    ]


def _session(slot: Slot) -> str:
    zone = sessions.zone(slot.session.market)
    start, stop = (clock.iso(moment, zone)[11:16] for moment in (slot.start, slot.stop))
    early = ", early close" if slot.session.early_close else ""
    minutes = (slot.start - clock.now()) // clock.MINUTE
    ahead = f", in {minutes // 60:,} h {minutes % 60} min" if minutes >= 0 else ""
    return f"{slot.session.date:%a} {slot.session.date}, {start} to {stop} {zone}{early}{ahead}"


def _quote(row: dict[str, Any]) -> tuple[str, ...]:
    bid, ask = row["bid"], row["ask"]
    spread = "–" if bid is None or ask is None else f"{ask - bid:.4g}"
    at = clock.iso(row["ts_event"], "America/New_York")[11:19]
    return (
        *("–" if side is None else f"{side:,.4g}" if side < 1 else f"{side:,.2f}" for side in (bid, ask)),
        spread,
        at,
    )
