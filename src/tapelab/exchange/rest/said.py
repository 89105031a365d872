"""What has been said of symbols until now, by the exchange's clock: bars so far, the last trade and quote.

Snapshots are cleared at 03:30 New York: until then they show the session before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.exchange.rest import daily
from tapelab.exchange.rest.ask import Ask, Refused
from tapelab.exchange.tape import PRODUCTS, QUOTES, TRADES, VWAP_DECIMALS, Base, Tape
from tapelab.market import bars, clock, sessions, tables
from tapelab.market.clock import HOUR, MINUTE
from tapelab.market.conditions import rules_of
from tapelab.market.intervals import Interval
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market

Record = Mapping[str, Any]  # a row of one of our tables
Names = Sequence[str] | None  # of symbols; None: everybody

CLEARED = 3 * HOUR + 30 * MINUTE  # after midnight
LOOK_BACK = timedelta(days=7)  # in which a last trade or quote is looked for

_DAY = Interval.parse("1d")


@dataclass(frozen=True)
class Said:
    """What has been said of a symbol on a day until now. `trade` and `quote` are None if the plan lacks them.

    `day`: its bar so far; `minute`: its last whole minute, `accumulated` the day's volume at the end of that;
    `early` and `late`: the last prices before the open and after the close; `previous`: the bar of the
    session before, in the shares of this day.
    """

    symbol: str
    day: Record | None
    minute: Record | None
    accumulated: float
    early: float | None
    late: float | None
    previous: Record | None
    trade: Record | None
    quote: Record | None

    @property
    def price(self) -> float | None:
        """The latest price that is known."""
        if self.trade is not None:
            return float(self.trade["price"])
        bar = self.minute or self.day
        return None if bar is None else float(bar["close"])

    @property
    def updated(self) -> int | None:
        """When the latest of trade and minute was said, ns UTC."""
        stamps = [self.trade["ts_event"]] if self.trade else []
        stamps += [self.minute["timestamp"] + MINUTE] if self.minute else []
        return max(stamps, default=None)


def latest(ask: Ask, product: str) -> Record:
    """The last row of `ask.ticker` until now; refused if there is none, or the tape cannot know."""
    now = ask.reached
    today = clock.date_of(now, sessions.NEW_YORK)
    begun = [s.date for s in sessions.between(Market.STOCKS, today - LOOK_BACK, today) if s.start <= now]
    for day in reversed(begun):
        if day not in ask.tape.days(product):
            raise Refused("no_ticker", f"This tape ({ask.tape.identity}) has no {product} of {day}.")
        rows = _Rows.until(ask.tape.of_symbol(product, day, ask.ticker), now)
        if row := rows.last().get(ask.ticker):
            return row
    raise Refused("no_ticker")


def heard(ask: Ask) -> list[str]:
    """Every symbol of which something has been said on the day that snapshots show."""
    session = _session(ask)
    if session is None:
        return []
    names = set().union(*(rows.places for rows in _rows(ask, session, None)))
    if ask.reached >= session.end:
        names.update(pc.unique(daily.bars(ask.tape, "1d", session.date).column("symbol")).to_pylist())
    return sorted(names)


def said(ask: Ask, names: Names) -> list[Said]:
    """What has been said of these symbols, by name; those of which nothing was said are left out."""
    session = _session(ask)
    if session is None or (names is not None and not names):
        return []
    trades, quotes, minutes = _rows(ask, session, names)
    priced = trades if trades.places and "trades" in ask.plan.rest else minutes
    days = _days(ask, session, names, trades, minutes)
    before = _before(ask.tape, session, names)
    last_trades, last_quotes, last_minutes = trades.last(), quotes.last(), minutes.last()
    found = []
    for name in sorted(last_trades.keys() | last_quotes.keys() | last_minutes.keys() | days.keys()):
        minute = last_minutes.get(name)
        counted = trades if name in trades.places else minutes
        one = Said(
            name,
            day=days.get(name),
            minute=minute,
            accumulated=counted.volume(name, minute["timestamp"] + MINUTE) if minute else 0.0,
            early=priced.last_price(name, session.start, session.open),
            late=priced.last_price(name, session.close, session.end),
            previous=before.get(name),
            trade=last_trades.get(name) if "trades" in ask.plan.rest else None,
            quote=last_quotes.get(name) if "quotes" in ask.plan.rest else None,
        )
        found.append(one)
    return found


@dataclass(frozen=True)
class _Rows:
    """Trades, quotes or bars, sorted by symbol, then time; `places`: where each symbol's begin and end."""

    table: pa.Table
    stamps: npt.NDArray[np.int64]
    places: Mapping[str, tuple[int, int]]

    @classmethod
    def until(cls, rows: pa.Table, now: int) -> _Rows:
        """Those stamped `now` (ns UTC) or before."""
        stamp = "timestamp" if "timestamp" in rows.column_names else "ts_event"
        rows = rows.filter(pc.less_equal(rows.column(stamp), now)).combine_chunks()
        runs = pc.run_end_encode(rows.column("symbol").combine_chunks())
        ends = runs.run_ends.to_pylist()
        places = dict(zip(runs.values.to_pylist(), zip([0, *ends], ends, strict=False), strict=True))
        return cls(rows, rows.column(stamp).to_numpy(), places)

    def last(self) -> Mapping[str, Record]:
        """Each symbol's last row."""
        last = [stop - 1 for _, stop in self.places.values()]
        return {row["symbol"]: row for row in self.table.take(pa.array(last, pa.int64())).to_pylist()}

    def last_price(self, name: str, start: int, end: int) -> float | None:
        """A symbol's last price from `start` to before `end`, of a print or of a bar that begins there."""
        first, stop = self._between(name, start, end)
        return float(self._prices[stop - 1]) if stop > first else None

    def volume(self, name: str, end: int) -> float:
        """A symbol's volume before `end`."""
        first, stop = self._between(name, 0, end)
        return float(self._counted[first:stop].sum())

    @cached_property
    def _counted(self) -> npt.NDArray[np.float64]:
        """What each row adds to the volume of the day."""
        if "price" not in self.table.column_names:
            volume: npt.NDArray[np.float64] = self.table.column("volume").to_numpy()
            return volume
        counts = rules_of(self.table, waive_extended_hours=True).volume
        return np.where(counts, self.table.column("size").to_numpy(), 0.0)

    @cached_property
    def _prices(self) -> npt.NDArray[np.float64]:
        name = "price" if "price" in self.table.column_names else "close"
        prices: npt.NDArray[np.float64] = self.table.column(name).to_numpy()
        return prices

    def _between(self, name: str, start: int, end: int) -> tuple[int, int]:
        first, stop = self.places.get(name, (0, 0))
        begin, finish = np.searchsorted(self.stamps[first:stop], [start, end])
        return first + int(begin), first + int(finish)


def _session(ask: Ask) -> Session | None:
    """The session that snapshots show, if it is one; refused if the tape holds nothing of it."""
    day = clock.date_of(ask.reached - CLEARED, sessions.NEW_YORK)
    session = sessions.session(Market.STOCKS, day)
    if session is not None and not any(day in ask.tape.days(product) for product in PRODUCTS):
        raise Refused("no_ticker", f"This tape ({ask.tape.identity}) has nothing of {day}.")
    return session


def _rows(ask: Ask, session: Session, names: Names) -> tuple[_Rows, _Rows, _Rows]:
    """The trades, quotes and whole minutes of a day until now."""
    ticks = [_Rows.until(_ticks(ask, product, session, names), ask.reached) for product in (TRADES, QUOTES)]
    minutes = _bars(ask.tape, "1m", session.date, names)
    return ticks[0], ticks[1], _Rows.until(minutes, ask.reached - MINUTE)


def _ticks(ask: Ask, product: str, session: Session, names: Names) -> pa.Table:
    """A day's ticks of these symbols; none if the tape has not got them."""
    day, tape = session.date, ask.tape
    if day not in tape.days(product):
        return (tables.TRADES if product == TRADES else tables.QUOTES).empty_table()
    return _of(names, lambda: tape.table(product, day), lambda name: tape.of_symbol(product, day, name))


def _bars(tape: Tape, base: Base, day: date, names: Names) -> pa.Table:
    return _of(names, lambda: daily.bars(tape, base, day), lambda name: daily.bars(tape, base, day, name))


def _of(names: Names, whole: Callable[[], pa.Table], part: Callable[[str], pa.Table]) -> pa.Table:
    return pa.concat_tables([part(name) for name in sorted(set(names))]) if names else whole()


def _days(ask: Ask, session: Session, names: Names, trades: _Rows, minutes: _Rows) -> Mapping[str, Record]:
    """Each symbol's day bar until now: of the day itself when it is over, else made of what was said."""
    if ask.reached >= session.end and session.date in ask.tape.bar_days("1d"):
        return _by_symbol(_bars(ask.tape, "1d", session.date, names))
    if trades.places:
        return _by_symbol(bars.from_trades(trades.table, _DAY))
    # Prices of regular hours, volume of all, as a day bar from trades has them.
    volume = ("volume", "vwap", "transactions")
    everything = _by_symbol(bars.from_bars(minutes.table, _DAY))
    regular = _by_symbol(bars.from_bars(minutes.table, _DAY, hours="regular"))
    return {name: {**bar, **{key: everything[name][key] for key in volume}} for name, bar in regular.items()}


def _before(tape: Tape, session: Session, names: Names) -> Mapping[str, Record]:
    day = daily.session_before(session.date)
    if day is None or day not in tape.bar_days("1d"):
        return {}
    return _by_symbol(daily.adjusted(_bars(tape, "1d", day, names), tape, True, until=session.date)[0])


def _by_symbol(days: pa.Table) -> Mapping[str, Record]:
    return {
        row["symbol"]: {**row, "vwap": None if row["vwap"] is None else round(row["vwap"], VWAP_DECIMALS)}
        for row in days.to_pylist()
    }
