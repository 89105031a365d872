"""What a person at a terminal sees of long work; a pipe and a notebook see nothing."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tapelab.market import clock

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import Task

LONG_PAUSE = 1.0  # seconds; shorter ones are not worth a word

_log = logging.getLogger("tapelab")


class Progress:
    """One bar on the terminal, with a countdown beside it while a rate limit makes us wait.

    Every line that is reported also goes to the log. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._waits_until = 0  # on the monotonic clock
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                ProgressColumn,
                TextColumn,
                TimeRemainingColumn,
            )
            from rich.progress import Progress as Bar
            from rich.text import Text

            waiting = self.waiting

            class Countdown(ProgressColumn):
                max_refresh = 0.5

                def render(self, task: Task) -> Text:
                    return Text(waiting(), style="yellow")

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                Countdown(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def line(self, text: str) -> None:
        """One line of report."""
        _log.info("%s", text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)

    def begin(self, what: str, steps: int) -> None:
        """A piece of work of so many steps begins."""
        if self._bar is not None and steps:
            self._bar.add_task(what, total=steps)

    def step(self) -> None:
        """One step of it is done."""
        if self._bar is not None and self._bar.task_ids:
            self._bar.advance(self._bar.task_ids[-1])

    def wait(self, seconds: float) -> None:
        """A rate limit makes us wait so long: said once however many threads wait, then counted down."""
        until = clock.monotonic() + round(seconds * clock.SECOND)
        with self._lock:
            news = seconds >= LONG_PAUSE and clock.monotonic() >= self._waits_until
            self._waits_until = max(self._waits_until, until)
        if news:
            self.line(f"Waiting {seconds:.0f} s for the rate limit")

    def waiting(self) -> str:
        """What is left of a wait, in words; empty if there is none."""
        left = (self._waits_until - clock.monotonic()) / clock.SECOND
        return f"rate limit, {left:.0f} s" if left > 0.5 else ""
