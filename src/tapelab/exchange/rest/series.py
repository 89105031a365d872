"""What happened to one symbol over a time, page by page: bars, trades and quotes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import Literal

import numpy as np
import pyarrow as pa

from tapelab.exchange.rest import aggregates, daily
from tapelab.exchange.rest.aggregates import BASES, Windows
from tapelab.exchange.rest.ask import QUOTED, Ask, Refused, dates, malformed, rfc3339, span
from tapelab.exchange.tape import PRODUCTS, QUOTES, TRADES, Base, Tape
from tapelab.market import clock, sessions, tables
from tapelab.market.clock import MILLISECOND
from tapelab.massive import wire

MAX_LIMIT = 50_000
BARS_LIMIT = 5_000
TICKS_LIMIT = 1_000
MAX_MULTIPLIER = 10_000

_MULTIPLIER = re.compile(r"[0-9]{1,5}")
_BASE_NAMES: dict[Base, str] = {"1s": "second", "1m": "minute", "1d": "day"}


def bars(ask: Ask) -> bytes:
    """`/v2/aggs/ticker/…/range/…`: windows over base bars, paged by the vendor's rules (`aggregates.py`)."""
    ticker, timespan, multiplier = ask.ticker, ask.path["timespan"], ask.path["multiplier"]
    if timespan not in BASES:
        raise malformed(f"'{timespan[:QUOTED]}' is not a timespan; it is one of {', '.join(BASES)}")
    if not _MULTIPLIER.fullmatch(multiplier) or not 1 <= int(multiplier) <= MAX_MULTIPLIER:
        raise malformed(f"'{multiplier[:QUOTED]}' is not a multiplier from 1 to {MAX_MULTIPLIER}")
    low, _ = span(ask.path["from"], "from")
    _, high = span(ask.path["to"], "to")
    if high < low:
        raise malformed("'to' is before 'from'")
    ask.within_plan(low, high)
    limit = ask.integer("limit", BARS_LIMIT, 1, MAX_LIMIT)
    sort: aggregates.Sort = "desc" if ask.choice("sort", "asc", "asc", "desc") == "desc" else "asc"
    wanted = ask.flag("adjusted", True)
    windows = Windows(int(multiplier), timespan, clock.date_of(low, sessions.NEW_YORK))
    days = _days_of_bars(ask.tape, ticker, windows, low, high, sort)
    page = aggregates.page(days, windows, low, high, limit=limit, sort=sort)
    # A tape that knows no splits cannot adjust; it says so instead of pretending.
    rows, adjusted = daily.adjusted(page.bars, ask.tape, wanted)
    more = None
    if page.more is not None:
        at = str(page.more // MILLISECOND)
        from_, to = (ask.path["from"], at) if sort == "desc" else (at, ask.path["to"])
        cursor = {"limit": limit, "sort": sort}
        route = f"/v2/aggs/ticker/{ticker}/range/{multiplier}/{timespan}/{from_}/{to}"
        more = ask.next_url(cursor if wanted else {"adjusted": "false", **cursor}, route)
    return wire.envelope(
        wire.encode_rows(rows, "bars") if len(rows) else None,
        ticker=ticker,
        queryCount=page.base,
        resultsCount=len(rows),
        adjusted=adjusted,
        count=len(rows) or None,
        request_id=ask.request_id,
        next_url=more,
    )


def trades(ask: Ask) -> bytes:
    """`/v3/trades/{ticker}`, newest first unless asked otherwise."""
    return _ticks(ask, "trades", TRADES)


def quotes(ask: Ask) -> bytes:
    """`/v3/quotes/{ticker}`, newest first unless asked otherwise."""
    return _ticks(ask, "quotes", QUOTES)


def _ticks(ask: Ask, kind: Literal["trades", "quotes"], product: str) -> bytes:
    low, high = ask.stamps("timestamp")
    ask.within_plan(low, high)
    limit = ask.integer("limit", TICKS_LIMIT, 1, MAX_LIMIT)
    ask.choice("sort", "timestamp", "timestamp")
    descending = ask.choice("order", "desc", "asc", "desc") == "desc"
    after = ask.integer("ap", -1, 0, 1 << 40)
    _hold(ask.tape, product, low, high)
    found: list[pa.Table] = []
    more: dict[str, object] | None = None
    room = limit
    for rows, first in _days_of_ticks(ask.tape, product, ask.ticker, low, high, descending, after):
        if room == 0:
            more = {}
            break
        taken = rows.slice(max(0, len(rows) - room)) if descending else rows.slice(0, room)
        place = first + (len(rows) - len(taken) if descending else len(taken) - 1)
        found.append(taken.take(np.arange(len(taken))[::-1]) if descending else taken)
        room -= len(taken)
        if len(taken) < len(rows):
            more = {}
            break
    if more is not None:
        # The vendor's cursor: the last row's place, and its time as the new bound.
        side = "timestamp.lte" if descending else "timestamp.gte"
        last = found[-1].column("ts_event")[-1].as_py()
        more = {"as": "", **ask.query, "ap": place, "limit": limit, side: rfc3339(last)}
        more |= {"sort": "timestamp", "order": "desc" if descending else "asc"}
    return wire.envelope(
        wire.encode_rows(tables.concat(found, tables.SCHEMAS[kind]), kind),
        request_id=ask.request_id,
        next_url=None if more is None else ask.next_url(more),
    )


def _days_of_bars(
    tape: Tape, ticker: str, windows: Windows, low: int, high: int, sort: aggregates.Sort
) -> Iterator[pa.Table]:
    base = BASES[windows.timespan]
    first, last = dates(windows.start(low), windows.end(windows.start(high)) - 1)
    days = [day for day in tape.bar_days(base) if first <= day <= last]
    if not days and (known := _known(tape, low, high)):
        what = f"{_BASE_NAMES[base]} bars and no trades" if base != "1s" else "trades to make second bars of"
        text = f"This tape ({tape.identity}) has no {what} for {known[0]} to {known[-1]}."
        raise Refused("no_ticker", text)
    for day in reversed(days) if sort == "desc" else days:
        yield daily.bars(tape, base, day, ticker)


def _days_of_ticks(
    tape: Tape, product: str, ticker: str, low: int, high: int, descending: bool, after: int
) -> Iterator[tuple[pa.Table, int]]:
    """A symbol's rows between `low` and `high`, day by day, with the place of the first in its day.

    `after`: the place of the row that was given out last, on the day where this page goes on, or -1.
    """
    first, last = dates(low, high)
    days = [day for day in tape.days(product) if first <= day <= last]
    for day in reversed(days) if descending else days:
        rows = tape.of_symbol(product, day, ticker)
        stamps = rows.column("ts_event").to_numpy()
        begin = int(np.searchsorted(stamps, low, "left"))
        stop = int(np.searchsorted(stamps, high, "right"))
        if after >= 0:
            begin, stop = (begin, min(stop, after)) if descending else (max(begin, after + 1), stop)
            after = -1
        if stop > begin:
            yield rows.slice(begin, stop - begin), begin


def _hold(tape: Tape, product: str, low: int, high: int) -> None:
    """Refuse a question about days of which the tape has something, but not this."""
    known = _known(tape, low, high)
    if known and not set(known) & set(tape.days(product)):
        text = f"This tape ({tape.identity}) has no {product} for {known[0]} to {known[-1]}."
        raise Refused("no_ticker", text)


def _known(tape: Tape, low: int, high: int) -> list[date]:
    """The days of a range of which the tape has anything, oldest first."""
    first, last = dates(low, high)
    return sorted({day for product in PRODUCTS for day in tape.days(product) if first <= day <= last})
