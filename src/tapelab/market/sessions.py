"""Trading days: when the exchange opens and closes, in which zone a day lies, what an early close is."""

from __future__ import annotations

import warnings
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market import clock
from tapelab.market.clock import HOUR, MINUTE, SECOND
from tapelab.market.symbols import Market

NEW_YORK = "America/New_York"

# Where each market's day begins and ends, and whose calendar it keeps (None: every day).
_ZONES = {
    Market.STOCKS: NEW_YORK,
    Market.OPTIONS: NEW_YORK,
    Market.CRYPTO: "UTC",
    Market.FOREX: "UTC",
    Market.INDICES: "America/Chicago",
    Market.FUTURES: "America/Chicago",
}
_CALENDARS = {
    Market.STOCKS: "XNYS",
    Market.OPTIONS: "XNYS",
    Market.INDICES: "XNYS",
    Market.FUTURES: "CMES",
}

_CLOSED_ON = {Market.FOREX: 5}  # Saturday; the week of currencies ends on Friday evening

# US stocks trade before the open and after the close; an early close moves the end too. What else keeps New
# York's calendar (options, indices) has bars at any hour of its day.
PRE_MARKET = time(4)
REGULAR_CLOSE = time(16)
POST_MARKET = time(20)
AFTER_CLOSE = 4 * HOUR

CALENDAR_START = date(1990, 1, 1)  # the vendor's history of US stocks begins in 2003
LOOK_AHEAD = timedelta(days=400)  # exchanges publish their holidays about a year ahead


@dataclass(frozen=True)
class Session:
    """One trading day of an exchange. All times int64 ns UTC.

    `start` and `end` bound all hours, `open` and `close` the regular ones; `end` and `close` are exclusive.
    """

    market: Market
    date: date
    start: int
    open: int
    close: int
    end: int
    early_close: bool = False

    @property
    def regular_minutes(self) -> int:
        return (self.close - self.open) // MINUTE


def zone(market: Market) -> str:
    """The time zone in which a market's day lies."""
    return _ZONES[market]


def instant(day: date, at: time, zone: str) -> int:
    """A wall-clock time on a day in a zone, as ns UTC."""
    return round(datetime.combine(day, at, ZoneInfo(zone)).timestamp()) * SECOND


def day_start(market: Market, day: date) -> int:
    """Midnight at which an exchange's day begins, ns UTC: also the vendor's stamp of a day bar."""
    return instant(day, time(), zone(market))


def session(market: Market, day: date) -> Session | None:
    """The session of that date; None on weekends and holidays."""
    found = between(market, day, day)
    return found[0] if found else None


def between(market: Market, first: date, last: date) -> list[Session]:
    """Every session from `first` to `last`, both included, oldest first."""
    if market not in _CALENDARS:
        days = (first + timedelta(days=n) for n in range((last - first).days + 1))
        open_ = (day for day in days if day.weekday() != _CLOSED_ON.get(market))
        return [_around_the_clock(market, day) for day in open_]
    schedule = _schedule(_CALENDARS[market], clock.today("UTC").replace(day=1) + LOOK_AHEAD)
    begin, end = bisect_left(schedule.days, first), bisect_right(schedule.days, last)
    return [_session(market, schedule, n) for n in range(begin, end)]


def dates_of(market: Market, instants: pa.ChunkedArray | npt.NDArray[np.int64]) -> npt.NDArray[np.datetime64]:
    """The exchange's calendar date of each instant (ns UTC), as datetime64[D]."""
    values = instants if isinstance(instants, np.ndarray) else instants.to_numpy()
    if zone(market) == "UTC":
        return values.astype("datetime64[ns]").astype("datetime64[D]")
    stamps = pa.array(values, pa.int64()).cast(pa.timestamp("ns", tz=zone(market)))
    local: npt.NDArray[np.datetime64] = pc.local_timestamp(stamps).to_numpy(zero_copy_only=False)
    return local.astype("datetime64[D]")


def _around_the_clock(market: Market, day: date) -> Session:
    start, end = _whole_day(market, day)
    return Session(market, day, start, start, end, end)


def _whole_day(market: Market, day: date) -> tuple[int, int]:
    return day_start(market, day), day_start(market, day + timedelta(days=1))


def _session(market: Market, schedule: _Schedule, n: int) -> Session:
    day, opens, closes = schedule.days[n], schedule.opens[n], schedule.closes[n]
    if market is Market.FUTURES:
        return Session(market, day, opens, opens, closes, closes)
    early = closes < instant(day, REGULAR_CLOSE, NEW_YORK)
    if market is Market.STOCKS:
        start = instant(day, PRE_MARKET, NEW_YORK)
        end = min(closes + AFTER_CLOSE, instant(day, POST_MARKET, NEW_YORK))
    else:
        start, end = _whole_day(market, day)
    return Session(market, day, start, opens, closes, end, early)


class _Schedule(NamedTuple):
    days: list[date]
    opens: list[int]
    closes: list[int]


@lru_cache(maxsize=8)  # a program that runs for years looks ahead again every month
def _schedule(name: str, last: date) -> _Schedule:
    import exchange_calendars

    with warnings.catch_warnings():
        # exchange_calendars 4.13 does what pandas 4 will refuse.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        calendar = exchange_calendars.get_calendar(
            name, start=CALENDAR_START.isoformat(), end=last.isoformat()
        )
        return _Schedule(
            [stamp.date() for stamp in calendar.sessions],
            [int(opens) for opens in calendar.opens.to_numpy("datetime64[ns]").astype(np.int64)],
            [int(closes) for closes in calendar.closes.to_numpy("datetime64[ns]").astype(np.int64)],
        )
