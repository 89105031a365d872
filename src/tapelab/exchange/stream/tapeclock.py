"""The exchange's clock: it stands until it is started, and every client hears it."""

from __future__ import annotations

from tapelab.market import clock

UNPACED = 0.0


class TapeClock:
    """What time it is at the exchange, ns UTC.

    At speed 1 it runs in real time, at N so many times faster. At 0 it is unpaced: what is said moves it. It
    never passes the end of what is said. `told` is whether it was ever started or set.
    """

    def __init__(self, at: int, speed: float) -> None:
        self.speed = speed
        self.paused = False
        self.told = False
        self.end: int | None = None  # known once it was started
        self.begun = at  # where it was started or set the last time
        self._at = at
        self._since = 0  # on our own clock

    @property
    def started(self) -> bool:
        return self.end is not None

    @property
    def running(self) -> bool:
        return self.started and not self.paused

    def now(self) -> int:
        if not self.running or self.speed == UNPACED:
            return self._at
        return self._bounded(self._at + round((clock.monotonic() - self._since) * self.speed))

    def start(self, at: int, end: int) -> None:
        """Run from `at`, or from where it was set before."""
        self.end = end
        self._set(self._at if self.told else at)

    def jump(self, to: int) -> None:
        self._set(to)

    def said(self, at: int) -> None:
        """What is due at `at` is said now; without a pace of its own, the clock goes there."""
        if self.speed == UNPACED:
            self._at = max(self._at, at)

    def change(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        """Another pace, from where the clock stands."""
        self._at, self._since = self.now(), clock.monotonic()
        self.speed = self.speed if speed is None else speed
        self.paused = self.paused if paused is None else paused

    def seconds_to(self, instant: int) -> float:
        """How long until a paced clock is there."""
        return (instant - self.now()) / clock.SECOND / self.speed

    def _set(self, at: int) -> None:
        self._at, self._since = self._bounded(at), clock.monotonic()
        self.begun, self.told = self._at, True

    def _bounded(self, at: int) -> int:
        return at if self.end is None else min(at, self.end)
