"""Room on the disk: what a dataset takes, and when a recording will have filled what is left."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tapelab.market import clock
from tapelab.market.clock import HOUR, SECOND

SOON = 24.0  # hours of room; less is worth a warning


@dataclass(frozen=True)
class Forecast:
    """How long the disk lasts at the present pace.

    `free`: bytes that are left. `per_second`: bytes on disk that the recording takes a second. `hours` until
    the disk is full; None while nothing comes.
    """

    free: int
    per_second: float
    hours: float | None

    @property
    def soon(self) -> bool:
        """Whether the disk is full within a day."""
        return self.hours is not None and self.hours < SOON

    def __str__(self) -> str:
        if self.hours is None:
            return f"{in_words(self.free)} free"
        left = f"{self.hours:,.1f} hours" if self.soon else f"{self.hours / 24:,.0f} days"
        return f"{in_words(self.free)} free, full in {left} at {in_words(self.per_second)}/s"


def forecast(taken: int, elapsed: int, free: int) -> Forecast:
    """When a recording that took `taken` bytes of disk in `elapsed` ns will have filled `free` bytes.

    It looks at the whole recording, in which a busy open weighs on what follows it: rather early than late.
    """
    if taken <= 0 or elapsed <= 0:
        return Forecast(free, 0.0, None)
    per_second = taken / (elapsed / SECOND)
    return Forecast(free, per_second, free * elapsed / taken / HOUR)


def forecast_of(folder: Path, begun: int) -> Forecast:
    """The same for the recording in `folder` that began at `begun` (ns UTC), from what lies there now."""
    return forecast(taken_by(folder), clock.now() - begun, free_at(folder))


def taken_by(folder: Path) -> int:
    """Bytes of the files in a folder and below; a file that goes meanwhile counts as gone."""
    total = 0
    for at, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(at, name)).st_size  # noqa: PTH118
            except FileNotFoundError:
                continue
    return total


def free_at(folder: Path) -> int:
    """Bytes that may still be written where `folder` lies."""
    return shutil.disk_usage(folder).free


def in_words(size: float) -> str:
    """`4.2 GB` of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"
