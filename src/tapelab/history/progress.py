"""What a person at a terminal sees of long work; a pipe and a notebook see nothing."""

from __future__ import annotations

import logging
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tapelab.market import clock

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LONG_PAUSE = 1.0  # seconds; shorter ones are not worth a word

_log = logging.getLogger("tapelab")


class Progress:
    """One bar on the terminal; every line that is reported also goes to the log."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._said_until = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        _log.info("%s", text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)

    def begin(self, what: str, steps: int) -> None:
        if self._bar is not None:
            self._bar.add_task(what, total=steps)

    def step(self) -> None:
        if self._bar is not None and self._bar.task_ids:
            self._bar.advance(self._bar.task_ids[-1])

    def wait(self, seconds: float) -> None:
        """Say that the rate limit makes us wait; of several threads that wait, once."""
        if self._bar is None or seconds < LONG_PAUSE or clock.monotonic() < self._said_until:
            return
        self._said_until = clock.monotonic() + round(seconds * clock.SECOND)
        self._bar.console.print(f"waiting {seconds:.0f} s for the rate limit", highlight=False)
