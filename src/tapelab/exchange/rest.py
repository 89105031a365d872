"""REST for stocks: bars, trades, quotes, reference data and the market's status, as the vendor answers."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tapelab.errors import TapelabError
from tapelab.exchange import aggregates, reference
from tapelab.exchange.aggregates import BASES, Windows
from tapelab.exchange.ask import Ask, Refused, dates, day_of, malformed, moment, opened, rfc3339, whole_day
from tapelab.exchange.plans import Plan
from tapelab.exchange.tape import PRODUCTS, QUOTES, TRADES, Tape
from tapelab.market import adjust, clock, sessions, tables
from tapelab.market.clock import MILLISECOND, MINUTE
from tapelab.massive import wire

TAPE_HEADER = "X-Tapelab-Tape"

AGGREGATES = "/v2/aggs/ticker/{ticker}/range/{multiplier}/{timespan}/{from}/{to}"
MAX_LIMIT = 50_000
AGGREGATES_LIMIT = 5_000
TICKS_LIMIT = 1_000
MAX_MULTIPLIER = 10_000
GZIP_FROM = 1_000  # bytes
ADJUSTED_DECIMALS = 6

_TICKS: dict[str, tuple[Literal["trades", "quotes"], str]] = {
    "trades": ("trades", TRADES),
    "quotes": ("quotes", QUOTES),
}
_log = logging.getLogger(__name__)

Answer = Callable[[Ask], bytes]


class Rest:
    """The REST side of the exchange. `now` asks the exchange's clock, in ns UTC."""

    def __init__(self, tape: Tape, key: str, plan: Plan, now: Callable[[], int]) -> None:
        self._tape = tape
        self._key = key
        self._plan = plan
        self._now = now
        self._asked: tuple[int, int] = (0, 0)  # the running minute and the calls in it

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            self._route(AGGREGATES, self.bars, "aggregates"),
            self._route("/v3/trades/{ticker}", lambda ask: self.ticks(ask, "trades"), "trades"),
            self._route("/v3/quotes/{ticker}", lambda ask: self.ticks(ask, "quotes"), "quotes"),
            self._route("/v3/reference/splits", lambda ask: reference.splits(self._tape, ask)),
            self._route("/v3/reference/dividends", lambda ask: reference.dividends(self._tape, ask)),
            self._route("/v3/reference/tickers", lambda ask: reference.tickers(self._tape, ask)),
            self._route("/v1/marketstatus/now", lambda ask: reference.status_now(ask, self._now())),
            self._route("/v1/marketstatus/upcoming", lambda ask: reference.status_upcoming(ask, self._now())),
        ]
        app = Starlette(
            routes=routes,
            middleware=[Middleware(GZipMiddleware, minimum_size=GZIP_FROM, compresslevel=1)],
            exception_handlers={HTTPException: self._no_route},
        )
        app.router.redirect_slashes = False
        return app

    def bars(self, ask: Ask) -> bytes:
        """Aggregates: windows over base bars, paged by the vendor's rules (`aggregates.py`)."""
        ticker = ask.path["ticker"]
        timespan = ask.path["timespan"]
        if timespan not in BASES:
            raise malformed(f"'{timespan[:40]}' is not a timespan; it is one of {', '.join(BASES)}")
        multiplier = ask.path["multiplier"]
        if not multiplier.isdecimal() or not 1 <= int(multiplier[:9]) <= MAX_MULTIPLIER:
            raise malformed(f"'{multiplier[:40]}' is not a multiplier")
        low, _ = _bound(ask.path["from"], "from")
        _, high = _bound(ask.path["to"], "to")
        if high < low:
            raise malformed("'to' is before 'from'")
        limit = ask.integer("limit", AGGREGATES_LIMIT, 1, MAX_LIMIT)
        descending = ask.choice("sort", "asc", "asc", "desc") == "desc"
        wanted = ask.flag("adjusted", True)
        splits = self._tape.splits()
        # A tape that knows no splits cannot adjust; it says so instead of pretending.
        adjusted = wanted and splits is not None
        windows = Windows(int(multiplier), timespan, clock.date_of(low, sessions.NEW_YORK))
        page = aggregates.page(
            self._days_of_bars(ticker, windows, low, high, descending),
            windows,
            low,
            high,
            limit=limit,
            sort="desc" if descending else "asc",
        )
        rows = page.bars
        if adjusted and splits:
            rows = _adjusted(
                rows, wire.decode_splits(wire.envelope([msgspec.json.encode(row) for row in splits]))
            )
        more = None
        if page.more is not None:
            at = str(page.more // MILLISECOND)
            from_, to = (ask.path["from"], at) if descending else (at, ask.path["to"])
            cursor = {"limit": limit, "sort": "desc" if descending else "asc"}
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

    def ticks(self, ask: Ask, kind: Literal["trades", "quotes"]) -> bytes:
        """Trades or quotes of one symbol, newest first unless asked otherwise."""
        low, high = ask.stamps("timestamp")
        limit = ask.integer("limit", TICKS_LIMIT, 1, MAX_LIMIT)
        ask.choice("sort", "timestamp", "timestamp")
        descending = ask.choice("order", "desc", "asc", "desc") == "desc"
        after = ask.integer("ap", -1, 0, 1 << 40)
        product = _TICKS[kind][1]
        self._hold(product, low, high)
        found: list[pa.Table] = []
        more: dict[str, object] | None = None
        room = limit
        for rows, first in self._days_of_ticks(product, ask.path["ticker"], low, high, descending, after):
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
        rows = tables.concat(found, tables.SCHEMAS[kind])
        return wire.envelope(
            wire.encode_rows(rows, kind),
            request_id=ask.request_id,
            next_url=None if more is None else ask.next_url(more),
        )

    def _days_of_bars(
        self, ticker: str, windows: Windows, low: int, high: int, descending: bool
    ) -> Iterator[pa.Table]:
        base = BASES[windows.timespan]
        first, last = dates(windows.start(low), windows.end(windows.start(high)) - 1)
        days = [day for day in self._tape.bar_days(base) if first <= day <= last]
        for day in reversed(days) if descending else days:
            yield self._tape.bars(base, day, ticker)

    def _days_of_ticks(
        self, product: str, ticker: str, low: int, high: int, descending: bool, after: int
    ) -> Iterator[tuple[pa.Table, int]]:
        """A symbol's rows between `low` and `high`, day by day, with the place of the first in its day.

        `after`: the place of the row that was given out last, on the day where this page goes on, or -1.
        """
        first, last = dates(low, high)
        days = [day for day in self._tape.days(product) if first <= day <= last]
        for day in reversed(days) if descending else days:
            rows = self._tape.of_symbol(product, day, ticker)
            stamps = rows.column("ts_event").to_numpy()
            begin = int(np.searchsorted(stamps, low, "left"))
            stop = int(np.searchsorted(stamps, high, "right"))
            if after >= 0:
                begin, stop = (begin, min(stop, after)) if descending else (max(begin, after + 1), stop)
                after = -1
            if stop > begin:
                yield rows.slice(begin, stop - begin), begin

    def _hold(self, product: str, low: int, high: int) -> None:
        """Refuse a question about days of which the tape has something, but not this."""
        first, last = dates(low, high)
        known = {day for p in PRODUCTS for day in self._tape.days(p) if first <= day <= last}
        if known and not known & set(self._tape.days(product)):
            text = f"This tape ({self._tape.identity}) has no {product} for {min(known)} to {max(known)}."
            raise Refused("no_ticker", text)

    def _route(self, path: str, answer: Answer, entitlement: str | None = None) -> Route:
        async def endpoint(request: Request) -> Response:
            request_id = secrets.token_hex(16)
            try:
                self._admit(request, entitlement)
                body = await run_in_threadpool(answer, _ask(request, request_id))
                return self._response(200, "application/json", body, request_id)
            except Refused as refused:
                said = wire.error_body(refused.refusal, request_id=request_id, text=refused.text)
                return self._response(said.status, said.content_type, said.body, request_id)
            except TapelabError as error:
                _log.error("%s: %s", path, error)
                body = msgspec.json.encode({"status": "ERROR", "request_id": request_id, "error": str(error)})
                return self._response(500, "application/json", body, request_id)

        return Route(path, endpoint, methods=["GET"])

    def _admit(self, request: Request, entitlement: str | None) -> None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.query_params.get("apiKey", "")
        if not key:
            raise Refused("no_key")
        if not hmac.compare_digest(key.encode(), self._key.encode()):
            raise Refused("unknown_key")
        if self._plan.calls_per_minute is not None:
            minute = clock.now() // MINUTE
            calls = self._asked[1] if self._asked[0] == minute else 0
            self._asked = (minute, calls + 1)
            if calls >= self._plan.calls_per_minute:
                raise Refused("rate_limited")
        if entitlement is not None and entitlement not in self._plan.rest:
            raise Refused("not_entitled")

    def _response(self, status: int, content_type: str, body: bytes, request_id: str) -> Response:
        headers = {"X-Request-Id": request_id, TAPE_HEADER: self._tape.identity}
        return Response(body, status, headers, content_type)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        request_id = secrets.token_hex(16)
        said = wire.error_body("no_route", request_id=request_id)
        return self._response(said.status, said.content_type, said.body, request_id)


def _ask(request: Request, request_id: str) -> Ask:
    base = f"{request.url.scheme}://{request.url.netloc}"
    return Ask(request.path_params, opened(request.query_params), base, request.url.path, request_id)


def _bound(text: str, name: str) -> tuple[int, int]:
    """First and last ns of a date, or of a Unix millisecond."""
    if text.isdecimal() and len(text) <= 13:
        first = int(text) * MILLISECOND
        if first > moment("2199-12-31", name)[0]:
            raise malformed(f"'{name}' is out of range: '{text}'")
        return first, first + MILLISECOND - 1
    try:
        return whole_day(day_of(text, name))
    except ValueError as cause:
        raise malformed(f"'{name}' must be YYYY-MM-DD or milliseconds, not '{text[:40]}'") from cause


def _adjusted(rows: pa.Table, splits: list[adjust.Split]) -> pa.Table:
    """Bars in the shares of today, rounded as the vendor's are."""
    rows = adjust.apply(rows, splits)
    for name in ("open", "high", "low", "close", "vwap", "volume"):
        index = rows.column_names.index(name)
        rounded = pc.round(rows.column(name), ADJUSTED_DECIMALS)
        rows = rows.set_column(index, rows.schema.field(index), rounded)
    return rows
