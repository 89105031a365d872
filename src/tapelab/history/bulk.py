"""What a person at a terminal sees of a bulk download: how far, how fast, how long still."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tapelab.massive.flatfiles import Listed

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Bulk:
    """One bar of bytes on a terminal, with rate and time left; a pipe and a notebook see nothing.

    Bytes of workers elsewhere are counted when their file is done.
    """

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._lock = threading.Lock()
        self._flowing = 0
        self._done = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.DownloadColumn(),
                progress.TransferSpeedColumn(),
                progress.TimeRemainingColumn(),
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

    def begin(self, what: str, wanted: Sequence[Listed]) -> None:
        if self._bar is not None:
            self._bar.add_task(what, total=sum(listed.size for listed in wanted))

    def came(self, count: int) -> None:
        """Bytes that arrived in this process, told from any thread."""
        with self._lock:
            self._flowing += count
            self._show()

    def done(self, listed: Listed) -> None:
        """A file that is in the lake, whoever brought it."""
        with self._lock:
            self._done += listed.size
            self._show()

    def _show(self) -> None:
        if self._bar is not None and self._bar.task_ids:
            self._bar.update(self._bar.task_ids[0], completed=max(self._flowing, self._done))
