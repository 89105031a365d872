"""Days as the vendor sums them up: grouped by symbol, the day before, and from the open to the close.

A day bar is the tape's own, or built from its trades; where the tape knows the official open and close
(`reference/official.json`), these are its open and close.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.exchange.rest.ask import Ask, Refused, day_of, whole_day
from tapelab.exchange.tape import Base, Row, Tape
from tapelab.market import adjust, sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire

DECIMALS = 6  # of an adjusted price or volume
LONGEST_BREAK = timedelta(days=10)  # between two sessions


def bars(tape: Tape, base: Base, day: date, symbol: str | None = None) -> pa.Table:
    """One symbol's or everybody's base bars of a day, sorted by symbol, then time.

    Day bars have the official prices, where they are known.
    """
    found = tape.all_bars(base, day) if symbol is None else tape.bars(base, day, symbol)
    return with_official(found, tape.official(day)) if base == "1d" else found


def with_official(days: pa.Table, official: Mapping[str, Row]) -> pa.Table:
    """Day bars with these official prices; high and low hold them too."""
    if not official or len(days) == 0:
        return days
    rows = [official.get(symbol, {}) for symbol in days.column("symbol").to_pylist()]
    told = {
        name: pa.chunked_array([[row.get(name) for row in rows]], pa.float64()) for name in ("open", "close")
    }
    prices = {name: pc.coalesce(told[name], days.column(name)) for name in told}
    prices["high"] = pc.max_element_wise(days.column("high"), *told.values())
    prices["low"] = pc.min_element_wise(days.column("low"), *told.values())
    return _replaced(days, prices)


def adjusted(rows: pa.Table, tape: Tape, wanted: bool, *, until: date | None = None) -> tuple[pa.Table, bool]:
    """Bars in the shares of today (of `until`), and whether they are: a tape without splits cannot know."""
    splits = tape.splits() if wanted else None
    if splits is None or len(rows) == 0:
        return rows, splits is not None
    names = set(pc.unique(rows.column("symbol")).to_pylist())
    splits = [s for s in splits if s.symbol in names and (until is None or s.execution_date <= until)]
    if splits:
        rows = adjust.apply(rows, splits)
        prices = ("open", "high", "low", "close", "vwap", "volume")
        rows = _replaced(rows, {name: pc.round(rows.column(name), DECIMALS) for name in prices})
    return rows, True


def session_before(day: date) -> date | None:
    """The date of the last session before `day`."""
    found = sessions.between(Market.STOCKS, day - LONGEST_BREAK, day - timedelta(days=1))
    return found[-1].date if found else None


def grouped(ask: Ask) -> bytes:
    """`/v2/aggs/grouped/…/{date}`: every symbol's bar of a day."""
    day = day_of(ask.path["date"], "date")
    if sessions.session(Market.STOCKS, day) is not None:
        hold(ask, day)
    ask.flag("include_otc", False)
    return _days_answer(ask, bars(ask.tape, "1d", day))


def previous_close(ask: Ask) -> bytes:
    """`/v2/aggs/ticker/{ticker}/prev`: the bar of the session before the exchange's today."""
    day = session_before(ask.today)
    if day is None:
        raise Refused("no_ticker", f"There is no session before {ask.today}.")
    hold(ask, day)
    return _days_answer(ask, bars(ask.tape, "1d", day, ask.ticker), ticker=ask.ticker)


def open_close(ask: Ask) -> bytes:
    """`/v1/open-close/{ticker}/{date}`: a day, the first price before its open and the last after its close.

    `adjusted: false` is in the answer only if adjusted prices were wanted and the tape has no splits.
    """
    day = day_of(ask.path["date"], "date")
    wanted = ask.flag("adjusted", True)
    hold(ask, day)
    raw = bars(ask.tape, "1d", day, ask.ticker)
    if len(raw) == 0:
        raise Refused("no_ticker", f"There is no bar of {ask.ticker} on {day}.")
    splits = ask.tape.splits() if wanted else ()
    factor = float(adjust.factors(raw, splits or ())[0][0])
    [bar] = adjusted(raw, ask.tape, wanted)[0].to_pylist()
    answer: dict[str, object] = {"status": "OK", "from": day.isoformat(), "symbol": ask.ticker}
    answer |= {name: shortest(bar[name]) for name in ("open", "high", "low", "close", "volume")}
    outside = {**_outside(ask.tape, day, ask.ticker), **_told_outside(ask.tape, day, ask.ticker)}
    answer |= {name: shortest(round(price * factor, DECIMALS)) for name, price in outside.items()}
    return msgspec.json.encode(answer if splits is not None else {**answer, "adjusted": False})


def hold(ask: Ask, day: date) -> None:
    """Refuse a question about a day that the plan does not reach, or of which the tape has no bars."""
    ask.within_plan(*whole_day(day))
    if day not in ask.tape.bar_days("1d"):
        raise Refused("no_ticker", f"This tape ({ask.tape.identity}) has no day bars and no trades of {day}.")


def shortest(value: float) -> float | int:
    """A number as the vendor's JSON has it: 143 for 143.0."""
    return int(value) if value == int(value) else value


def _days_answer(ask: Ask, rows: pa.Table, ticker: str | None = None) -> bytes:
    rows, is_adjusted = adjusted(rows, ask.tape, ask.flag("adjusted", True))
    return wire.envelope(
        _named(_stamped_at_the_close(rows)) if len(rows) else None,
        ticker=ticker,
        queryCount=len(rows),
        resultsCount=len(rows),
        adjusted=is_adjusted,
        request_id=ask.request_id,
        count=len(rows) or None,
    )


def _named(rows: pa.Table) -> list[bytes]:
    """Rows that name their symbol first, as only these endpoints do."""
    symbols = rows.column("symbol").to_pylist()
    return [
        b'{"T":%b,%b' % (msgspec.json.encode(symbol), row[1:])
        for symbol, row in zip(symbols, wire.encode_rows(rows, "bars"), strict=True)
    ]


def _stamped_at_the_close(rows: pa.Table) -> pa.Table:
    """These endpoints stamp a day at 16:00 New York, where bars are stamped with their start."""
    days = rows.column("session").to_pylist()
    ends = {day: sessions.instant(day, sessions.REGULAR_CLOSE, sessions.NEW_YORK) for day in set(days)}
    return _replaced(rows, {"timestamp": pa.chunked_array([[ends[day] for day in days]], pa.int64())})


def _outside(tape: Tape, day: date, symbol: str) -> dict[str, float]:
    """The first price before the open and the last after the close, from minute bars."""
    session = sessions.session(Market.STOCKS, day)
    minutes = bars(tape, "1m", day, symbol)
    if session is None or len(minutes) == 0:
        return {}
    starts = minutes.column("timestamp").to_numpy()
    found = {}
    if starts[-1] >= session.close:
        found["afterHours"] = minutes.column("close")[-1].as_py()
    if starts[0] < session.open:
        found["preMarket"] = minutes.column("open")[0].as_py()
    return found


def _told_outside(tape: Tape, day: date, symbol: str) -> dict[str, float]:
    row = tape.official(day).get(symbol, {})
    told = {name: row.get(name) for name in ("afterHours", "preMarket")}
    return {name: price for name, price in told.items() if isinstance(price, int | float)}


def _replaced(rows: pa.Table, columns: Mapping[str, pa.ChunkedArray]) -> pa.Table:
    for name, column in columns.items():
        index = rows.column_names.index(name)
        rows = rows.set_column(index, rows.schema.field(index), column)
    return rows
