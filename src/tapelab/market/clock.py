"""The only place that asks what time it is.

Tests, replays and the stand-in exchange put another clock in its place with `use(...)`.
All times are int64 nanoseconds UTC.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from typing import Protocol
from zoneinfo import ZoneInfo

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
MICROSECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class Clock(Protocol):
    """What a replacement has to offer."""

    def now(self) -> int: ...

    def monotonic(self) -> int: ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The computer's own clock."""

    def now(self) -> int:
        return time.time_ns()

    def monotonic(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@dataclass
class FixedClock:
    """A clock that stands still until it is told to move; sleeping moves it."""

    at: int

    def now(self) -> int:
        return self.at

    def monotonic(self) -> int:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += round(seconds * SECOND)


_clock: ContextVar[Clock] = ContextVar("tapelab_clock", default=SystemClock())  # noqa: B039


@contextmanager
def use(clock: Clock) -> Iterator[Clock]:
    """Everything in this context asks `clock` for the time."""
    token = _clock.set(clock)
    try:
        yield clock
    finally:
        _clock.reset(token)


def now() -> int:
    """The wall clock, int64 ns UTC."""
    return _clock.get().now()


def monotonic() -> int:
    """A clock that never runs back, in ns; only differences mean anything."""
    return _clock.get().monotonic()


def sleep(seconds: float) -> None:
    """Wait, by whatever clock is in use."""
    _clock.get().sleep(seconds)


def today(zone: str) -> date:
    """The calendar date in `zone` right now."""
    return date_of(now(), zone)


def date_of(instant: int, zone: str) -> date:
    """The calendar date in `zone` at `instant` (ns UTC)."""
    return datetime.fromtimestamp(instant // SECOND, ZoneInfo(zone)).date()


def iso(instant: int, zone: str = "UTC") -> str:
    """An instant (ns UTC) as ISO 8601 to the second, in `zone`."""
    return datetime.fromtimestamp(instant // SECOND, ZoneInfo(zone)).isoformat()
