"""Bars built as the prints come, so that a strategy sees each one only when it is over.

By the same rules as `market.bars`, which sees a whole table at once.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pyarrow as pa

from tapelab.errors import UsageError
from tapelab.market import clock, sessions, tables
from tapelab.market.clock import DAY, HOUR
from tapelab.market.conditions import rules_of
from tapelab.market.events import Bar
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

NEVER = 2**63 - 1


class Moves(NamedTuple):
    """Which parts of a bar a print may move."""

    open_close: bool
    high_low: bool
    volume: bool


@cache
def moves(conditions: tuple[int, ...], strict: bool = False) -> Moves:
    """What a print with these conditions may move; `strict` keeps extended hours out, as day bars do."""
    row = pa.table({"conditions": pa.array([list(conditions)], pa.list_(pa.int16()))})
    found = rules_of(tables.conform(row, _CONDITIONS), waive_extended_hours=not strict)
    return Moves(bool(found.open_close[0]), bool(found.high_low[0]), bool(found.volume[0]))


_CONDITIONS = pa.schema([tables.TRADES.field("conditions"), tables.TRADES.field("correction")])


class _Growing:
    __slots__ = ("close", "count", "high", "low", "open", "paid", "volume")

    def __init__(self) -> None:
        self.open: float | None = None
        self.high = float("-inf")
        self.low = float("inf")
        self.close = 0.0
        self.volume = 0.0
        self.paid = 0.0
        self.count = 0


class RunningBars:
    """The bars of one interval, of all symbols, one window at a time.

    `due` is the end of the window that is open (ns UTC, the exchange's clock). Whoever holds this calls
    `close()` before the first event at or after `due`. A print that belongs to a window already closed is
    counted in `late` and left out: nobody could have known it.
    """

    def __init__(self, interval: Interval, market: Market) -> None:
        if interval.ns is None or interval.ns > DAY:
            raise UsageError(
                f"Bars of {interval} are not built inside a backtest.",
                remedy="Give a table of bars, or ask for 1d and shorter.",
                interval=interval.text,
            )
        self.interval, self.market, self.length = interval, market, interval.ns
        self.strict = not interval.intraday
        self.due = NEVER
        self.late = 0
        self._start = self._closed = -NEVER
        self._growing: dict[str, _Growing] = {}

    def trade(self, symbol: str, stamp: int, price: float, size: float, conditions: tuple[int, ...]) -> None:
        """Count a print."""
        may = moves(conditions, self.strict)
        bar = self._bar(symbol, stamp)
        if bar is None:
            return
        if may.open_close:
            if bar.open is None:
                bar.open = price
            bar.close = price
        if may.high_low:
            if price > bar.high:
                bar.high = price
            if price < bar.low:
                bar.low = price
        if may.volume:
            bar.volume += size
            bar.paid += price * size
            bar.count += 1

    def quote(self, symbol: str, stamp: int, mid: float) -> None:
        """Count a mid price, where there are no prints."""
        bar = self._bar(symbol, stamp)
        if bar is None:
            return
        if bar.open is None:
            bar.open = mid
        bar.close = mid
        bar.high = max(bar.high, mid)
        bar.low = min(bar.low, mid)
        bar.count += 1

    def close(self) -> list[Bar]:
        """The bars of the window that is over, by symbol. A window whose prints move no price has none."""
        bars = [
            Bar(
                symbol,
                self._start,
                self.due,
                bar.open,
                bar.high,
                bar.low,
                bar.close,
                bar.volume,
                bar.paid / bar.volume if bar.volume else None,
                bar.count,
            )
            for symbol, bar in sorted(self._growing.items())
            if bar.open is not None and bar.high >= bar.low
        ]
        self._growing.clear()
        self._closed, self.due = self.due, NEVER
        return bars

    def _bar(self, symbol: str, stamp: int) -> _Growing | None:
        if self.due == NEVER and stamp >= self._closed:
            self._start = self._floor(stamp)
            self.due = self._start + self.length
        if stamp < self._start or self.due == NEVER:
            self.late += 1
            return None
        bar = self._growing.get(symbol)
        if bar is None:
            bar = self._growing[symbol] = _Growing()
        return bar

    def _floor(self, stamp: int) -> int:
        if self.length <= HOUR:
            return stamp // self.length * self.length
        midnight = sessions.day_start(self.market, clock.date_of(stamp, sessions.zone(self.market)))
        return midnight + (stamp - midnight) // self.length * self.length
