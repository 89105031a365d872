"""The vendor's aggregates: windows laid over base bars, and pages counted in base bars. Pure.

Base bars are seconds, minutes (for minutes and hours) or days (for all else). `limit` counts them, and a
window of which the limit would cut a part is left to the next page. `from` and `to` are widened to whole
windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapelab.exchange.tape import VWAP_DECIMALS, Base
from tapelab.market import clock, sessions, tables
from tapelab.market.clock import HOUR, MINUTE, SECOND
from tapelab.market.symbols import Market

Ints = npt.NDArray[np.int64]
Dates = npt.NDArray[np.datetime64]
Sort = Literal["asc", "desc"]

BASES: dict[str, Base] = {
    "second": "1s",
    "minute": "1m",
    "hour": "1m",
    "day": "1d",
    "week": "1d",
    "month": "1d",
    "quarter": "1d",
    "year": "1d",
}
_LENGTHS = {"second": SECOND, "minute": MINUTE, "hour": HOUR}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_A_SUNDAY = np.datetime64("1970-01-04")
_FAR = np.datetime64("2200-01-01")  # where every window ends at the latest; ns do not reach much further


@dataclass(frozen=True)
class Windows:
    """How time is cut into bars, by the exchange's clock.

    Seconds, minutes and hours are counted from each day's midnight; weeks begin on Sunday, months, quarters
    and years on their first day; several days, weeks … are counted from the one that holds `anchor`.
    """

    multiplier: int
    timespan: str
    anchor: date

    def starts(self, instants: Ints) -> Ints:
        """The start of the window that holds each instant, ns UTC."""
        dates = sessions.dates_of(Market.STOCKS, instants)
        if self.timespan in _LENGTHS:
            midnight = _midnights(dates)
            length = self.multiplier * _LENGTHS[self.timespan]
            return midnight + (instants - midnight) // length * length
        return _midnights(self._first_dates(dates))

    def start(self, instant: int) -> int:
        return int(self.starts(np.array([instant], dtype=np.int64))[0])

    def end(self, start: int) -> int:
        """Where the window that begins at `start` ends, exclusive, ns UTC."""
        first = clock.date_of(start, sessions.NEW_YORK)
        if self.timespan in _LENGTHS:
            midnight = sessions.day_start(Market.STOCKS, first + timedelta(days=1))
            return min(start + self.multiplier * _LENGTHS[self.timespan], midnight)
        following = self._next_dates(np.array([first], dtype="datetime64[D]"))
        return int(_midnights(np.minimum(following, _FAR))[0])

    def _first_dates(self, dates: Dates) -> Dates:
        anchor, unit = np.datetime64(self.anchor), self.multiplier
        if self.timespan in _MONTHS:
            unit *= _MONTHS[self.timespan]
            counted, begin = dates.astype("datetime64[M]"), anchor.astype("datetime64[M]")
            begin = begin - np.timedelta64(int(begin.astype(np.int64)) % _MONTHS[self.timespan], "M")
            over = (counted - begin) % np.timedelta64(unit, "M")
            first: Dates = (counted - over).astype("datetime64[D]")
            return first
        if self.timespan == "week":
            unit *= 7
            weekday = int((anchor - _A_SUNDAY).astype(np.int64)) % 7
            anchor = np.datetime64(self.anchor - timedelta(days=weekday))
        days: Dates = dates - (dates - anchor) % np.timedelta64(unit, "D")
        return days

    def _next_dates(self, firsts: Dates) -> Dates:
        if self.timespan in _MONTHS:
            months = np.timedelta64(self.multiplier * _MONTHS[self.timespan], "M")
            return (firsts.astype("datetime64[M]") + months).astype("datetime64[D]")
        return firsts + np.timedelta64(self.multiplier * (7 if self.timespan == "week" else 1), "D")


@dataclass(frozen=True)
class Page:
    """Bars of one answer, in the order asked for; `base` bars were read for them.

    `more`: where the next page begins (ascending) or ends (descending), ns UTC; None on the last page.
    """

    bars: pa.Table
    base: int
    more: int | None


def page(days: Iterable[pa.Table], windows: Windows, low: int, high: int, *, limit: int, sort: Sort) -> Page:
    """One page of windows over one symbol's base bars between `low` and `high` (ns UTC, both included).

    `days` gives the base bars day by day in the order of `sort`, each in order of time, and is read no
    further than needed. A single window longer than `limit` is given whole, so that every page leads on.
    """
    low, high = windows.start(low), windows.end(windows.start(high)) - 1
    read = _enough(_between(days, low, high), windows, limit)
    if not read:
        return Page(tables.BARS.empty_table(), 0, None)
    rows = tables.concat(read if sort == "asc" else read[::-1], tables.BARS)
    starts = windows.starts(rows.column("timestamp").to_numpy())
    if sort == "asc":
        kept = _whole_windows(starts, limit)
        rows, starts = rows.slice(0, kept), starts[:kept]
    else:
        kept = _whole_windows(starts[::-1], limit)
        rows, starts = rows.slice(len(rows) - kept), starts[len(starts) - kept :]
    bars = fold(rows, starts)
    if sort == "desc":
        bars = bars.take(np.arange(len(bars))[::-1])
    if kept == sum(map(len, read)):
        return Page(bars, kept, None)
    return Page(bars, kept, windows.end(int(starts[-1])) if sort == "asc" else int(starts[0]) - 1)


def fold(rows: pa.Table, starts: Ints) -> pa.Table:
    """One symbol's base bars, in order of time, as one bar for each run of equal `starts`.

    `vwap` and `transactions` are null unless all parts have them.
    """
    if len(rows) == 0:
        return rows
    first = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1]]))
    if len(first) == len(rows):
        return rows.set_column(0, tables.BARS.field("timestamp"), pa.array(starts))
    last = np.concatenate([first[1:], [len(rows)]]) - 1
    volume = rows.column("volume").to_numpy()
    total = np.add.reduceat(volume, first)
    vwap, unpriced = _numbers(rows.column("vwap"), first)
    count, uncounted = _numbers(rows.column("transactions"), first)
    paid = np.add.reduceat(vwap * volume, first)
    folded = {
        "timestamp": starts[first],
        "session": rows.column("session").take(first),
        "symbol": rows.column("symbol").take(first),
        "open": rows.column("open").take(first),
        "high": np.maximum.reduceat(rows.column("high").to_numpy(), first),
        "low": np.minimum.reduceat(rows.column("low").to_numpy(), first),
        "close": rows.column("close").take(last),
        "volume": total,
        "vwap": pa.array(
            np.round(paid / np.where(total > 0, total, 1), VWAP_DECIMALS), mask=unpriced | (total == 0)
        ),
        "transactions": pa.array(np.add.reduceat(count, first).astype(np.int64), mask=uncounted),
    }
    return tables.conform(pa.table(folded), tables.BARS)


def _numbers(column: pa.ChunkedArray, first: Ints) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    missing = column.is_null().to_numpy()
    values = np.where(missing, 0.0, column.cast(pa.float64()).to_numpy())
    return values, np.logical_or.reduceat(missing, first)


def _between(days: Iterable[pa.Table], low: int, high: int) -> Iterator[pa.Table]:
    for table in days:
        stamps = table.column("timestamp").to_numpy()
        begin, stop = np.searchsorted(stamps, low, "left"), np.searchsorted(stamps, high, "right")
        if stop > begin:
            yield table.slice(begin, stop - begin)


def _enough(days: Iterable[pa.Table], windows: Windows, limit: int) -> list[pa.Table]:
    """Whole days, until more is there than `limit` and than the first window."""
    read: list[pa.Table] = []
    count = 0
    seen: set[int] = set()
    for table in days:
        read.append(table)
        count += len(table)
        stamps = table.column("timestamp").to_numpy()
        seen.update(windows.starts(stamps[[0, -1]]).tolist())
        if count > limit and len(seen) > 1:
            break
    return read


def _whole_windows(starts: Ints, limit: int) -> int:
    """How many rows, counted from the front, make whole windows within `limit`: at least the first window."""
    if len(starts) <= limit:
        return len(starts)
    changes = np.flatnonzero(starts[1:] != starts[:-1]) + 1
    within = changes[changes <= limit]
    if len(within):
        return int(within[-1])
    return int(changes[0]) if len(changes) else len(starts)


def _midnights(dates: Dates) -> Ints:
    days, where = np.unique(dates, return_inverse=True)
    found = [sessions.day_start(Market.STOCKS, day) for day in days.tolist()]
    return np.array(found, dtype=np.int64)[where]
