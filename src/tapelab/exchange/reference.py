"""Reference data over REST: splits, dividends, tickers, and whether the market is open.

Only what the tape knows: where it has no reference data, the answer is an error that says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from functools import lru_cache

import msgspec

from tapelab.exchange.ask import Ask, Refused
from tapelab.exchange.tape import Row, Tape
from tapelab.market import clock, sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire

MAX_ROWS = 1000
AHEAD = timedelta(days=365)  # how far the vendor announces holidays
_VENUES = ("NYSE", "NASDAQ", "OTC")


def splits(tape: Tape, ask: Ask) -> bytes:
    """`/v3/reference/splits`, newest first."""
    rows = _known(tape, tape.splits(), "splits")
    if "reverse_split" in ask.query:
        wanted = ask.flag("reverse_split", False)
        rows = [row for row in rows if (_number(row, "split_from") > _number(row, "split_to")) == wanted]
    return _listed(ask, rows, filters=("ticker", "execution_date"), sort="execution_date", limit=10)


def dividends(tape: Tape, ask: Ask) -> bytes:
    """`/v3/reference/dividends`, newest first."""
    rows = _known(tape, tape.dividends(), "dividends")
    filters = ("ticker", "ex_dividend_date", "record_date", "declaration_date", "pay_date")
    return _listed(ask, rows, filters=filters, sort="ex_dividend_date", limit=10)


def tickers(tape: Tape, ask: Ask) -> bytes:
    """`/v3/reference/tickers`: the symbols of the tape's latest day; it knows no more of them."""
    same = {"market": "stocks", "locale": "us", "active": True, "currency_name": "usd"}
    listed = ask.query.get("market", "stocks") == "stocks" and ask.flag("active", True)
    search = ask.query.get("search", "").upper()
    symbols = [symbol for symbol in (tape.symbols() if listed else []) if search in symbol.upper()]
    rows: list[Row] = [{"ticker": symbol, **same} for symbol in symbols]
    return _listed(ask, rows, filters=("ticker",), sort="ticker", limit=100, order="asc")


def status_now(ask: Ask, now: int) -> bytes:
    """`/v1/marketstatus/now`, by the exchange's own clock."""
    today = sessions.session(Market.STOCKS, clock.date_of(now, sessions.NEW_YORK))
    early = today is not None and today.start <= now < today.open
    late = today is not None and today.close <= now < today.end
    market = "extended-hours" if early or late else "closed"
    if today is not None and today.open <= now < today.close:
        market = "open"
    return msgspec.json.encode(
        {
            "market": market,
            "earlyHours": early,
            "afterHours": late,
            "serverTime": clock.iso(now, sessions.NEW_YORK),
            "exchanges": {venue.lower(): market for venue in _VENUES},
        }
    )


def status_upcoming(ask: Ask, now: int) -> bytes:
    """`/v1/marketstatus/upcoming`: the holidays and early closes of the next year, one row for each venue."""
    today = clock.date_of(now, sessions.NEW_YORK)
    rows = []
    for day, name, early in _holidays(today, today + AHEAD):
        row: dict[str, object] = {"date": day.isoformat(), "name": name, "status": "closed"}
        if early is not None:
            utc = {"open": clock.iso(early.open), "close": clock.iso(early.close)}
            row |= {"status": "early-close"} | {k: v.replace("+00:00", ".000Z") for k, v in utc.items()}
        rows += [{"exchange": venue, **row} for venue in _VENUES]
    return msgspec.json.encode(rows)


@lru_cache(maxsize=8)
def _holidays(first: date, last: date) -> tuple[tuple[date, str, sessions.Session | None], ...]:
    import exchange_calendars

    with warnings.catch_warnings():
        # exchange_calendars does what newer versions of pandas will refuse.
        warnings.simplefilter("ignore")
        calendar = exchange_calendars.get_calendar("XNYS")
        named = calendar.regular_holidays.holidays(first.isoformat(), last.isoformat(), return_name=True)
        closed = [(stamp.date(), str(name)) for stamp, name in named.items()]
    early = [s for s in sessions.between(Market.STOCKS, first, last) if s.early_close]
    found = [(day, name, None) for day, name in closed if sessions.session(Market.STOCKS, day) is None]
    return tuple(sorted([*found, *((s.date, "Early close", s) for s in early)], key=lambda row: row[0]))


def _known(tape: Tape, rows: list[Row] | None, what: str) -> list[Row]:
    if rows is None:
        text = f"This tape ({tape.identity}) has no reference data, so its {what} are not known here."
        raise Refused("no_ticker", text)
    return rows


def _listed(
    ask: Ask, rows: Iterable[Row], *, filters: tuple[str, ...], sort: str, limit: int, order: str = "desc"
) -> bytes:
    for name in filters:
        exact, compared = ask.texts(name)
        if exact is not None:
            rows = [row for row in rows if row.get(name) == exact]
        for operator, bound in compared.items():
            passes = _COMPARE[operator]
            rows = [row for row in rows if row.get(name) is not None and passes(str(row[name]), bound)]
    sort = ask.choice("sort", sort, *filters)
    descending = ask.choice("order", order, "asc", "desc") == "desc"
    ordered = sorted(rows, key=lambda row: tuple(str(row.get(name, "")) for name in (sort, "ticker")))
    if descending:
        ordered.reverse()
    limit = ask.integer("limit", limit, 1, MAX_ROWS)
    first = ask.integer("ap", 0, 0, len(ordered))
    page = ordered[first : first + limit]
    more = None
    if first + limit < len(ordered):
        more = ask.next_url({"as": "", **ask.query, "ap": first + limit, "limit": limit, "sort": sort})
    return wire.envelope(
        [msgspec.json.encode(row) for row in page],
        count=len(page) if sort == "ticker" else None,
        request_id=ask.request_id,
        next_url=more,
    )


_COMPARE: dict[str, Callable[[str, str], bool]] = {
    "gt": lambda value, bound: value > bound,
    "gte": lambda value, bound: value >= bound,
    "lt": lambda value, bound: value < bound,
    "lte": lambda value, bound: value <= bound,
}


def _number(row: Row, name: str) -> float:
    value = row.get(name, 0)
    return float(value) if isinstance(value, int | float) else 0.0
