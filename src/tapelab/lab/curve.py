"""The equity curve as it grows: bounded, but with every fill, every day's last value and the extremes."""

from __future__ import annotations

from typing import NamedTuple

from tapelab.market.clock import DAY, HOUR, SECOND
from tapelab.market.symbols import Market

SAMPLES = 2_000  # the most regular samples that are kept; fills, days and extremes come on top

# When a new trading day begins, after midnight UTC: between the last trade of one and the first of the next.
_DAY_TURN = {Market.CRYPTO: 0, Market.FOREX: 0, Market.FUTURES: 22 * HOUR}
_NEW_YORK_TURN = 6 * HOUR


class Point(NamedTuple):
    """Equity at a time (ns UTC); `step` keeps the order of points that share it."""

    ts: int
    step: int
    equity: float


class Curve:
    """Collects points. `due` is when the next regular sample is to be taken, `closes` each day's last value.

    Samples start at one a second and thin out by half whenever there are more than `SAMPLES`.
    """

    __slots__ = (
        "_day",
        "_fall",
        "_low",
        "_peak",
        "_pinned",
        "_samples",
        "_step",
        "_turn",
        "_width",
        "closes",
        "due",
    )

    def __init__(self, start: int, equity: float, market: Market) -> None:
        first = Point(start, 0, equity)
        self.closes: list[float] = []
        self.due = start
        self._samples: list[Point] = []
        self._pinned = [first]
        self._peak = self._low = first
        self._fall = (first, first)
        self._step = 0
        self._width, self._turn = SECOND, _DAY_TURN.get(market, _NEW_YORK_TURN)
        self._day: int | None = None

    def update(self, ts: int, equity: float) -> None:
        """The equity has moved: remember it if it is an extreme."""
        high, low = self._fall
        if equity > self._peak.equity:
            self._peak = self._point(ts, equity)
        elif self._peak.equity - equity > high.equity - low.equity:
            self._fall = (self._peak, self._point(ts, equity))
        if equity < self._low.equity:
            self._low = self._point(ts, equity)

    def pin(self, ts: int, equity: float) -> None:
        """Keep this point whatever happens."""
        self.update(ts, equity)
        self._pinned.append(self._point(ts, equity))

    def sample(self, ts: int, equity: float, upcoming: int) -> None:
        """A regular sample: what stood at `ts`, before an event at `upcoming`."""
        point = self._point(ts, equity)
        day = (upcoming - self._turn) // DAY
        if self._day is not None and day != self._day:
            self._pinned.append(point)
            self.closes.append(equity)
        self._day = day
        self._samples.append(point)
        if len(self._samples) > SAMPLES:
            self._samples = self._samples[1::2]
            self._width *= 2
        self.due = min((upcoming // self._width + 1) * self._width, (day + 1) * DAY + self._turn)

    def end(self, ts: int, equity: float) -> None:
        """The last point, which closes the last day."""
        self.pin(ts, equity)
        self.closes.append(equity)

    def points(self) -> list[Point]:
        """Everything that was kept, in order of time."""
        kept = {*self._samples, *self._pinned, self._peak, self._low, *self._fall}
        return sorted(kept, key=lambda point: point.step)

    def _point(self, ts: int, equity: float) -> Point:
        self._step += 1
        return Point(ts, self._step, equity)
