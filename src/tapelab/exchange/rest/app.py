"""REST for stocks: one table of routes, and the door through which the vendor's clients come."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tapelab.errors import TapelabError
from tapelab.exchange.plans import Plan
from tapelab.exchange.rest import daily, directory, openapi, reference, series, snapshots
from tapelab.exchange.rest.ask import MAX_ADDRESS, Ask, Refused, malformed, opened
from tapelab.exchange.tape import TAPE_HEADER, Tape
from tapelab.market import clock
from tapelab.market.clock import MINUTE
from tapelab.massive import wire

GZIP_FROM = 1_000  # bytes

_log = logging.getLogger(__name__)


class Door(NamedTuple):
    """What answers at a path, and what a plan must include for it; None: every plan does."""

    path: str
    answer: Callable[[Ask], bytes]
    entitlement: str | None = None


_MARKET = "/v2/snapshot/locale/us/markets/stocks"

# The first that matches answers.
ROUTES: tuple[Door, ...] = (
    Door("/v2/aggs/ticker/{ticker}/range/{multiplier}/{timespan}/{from}/{to}", series.bars, "aggregates"),
    Door("/v2/aggs/ticker/{ticker}/prev", daily.previous_close, "aggregates"),
    Door("/v2/aggs/grouped/locale/us/market/stocks/{date}", daily.grouped, "aggregates"),
    Door("/v1/open-close/{ticker}/{date}", daily.open_close, "aggregates"),
    Door("/v3/trades/{ticker}", series.trades, "trades"),
    Door("/v3/quotes/{ticker}", series.quotes, "quotes"),
    Door("/v2/last/trade/{ticker}", snapshots.last_trade, "trades"),
    Door("/v2/last/nbbo/{ticker}", snapshots.last_quote, "quotes"),
    Door(f"{_MARKET}/tickers", snapshots.many, "snapshots"),
    Door(f"{_MARKET}/tickers/{{ticker}}", snapshots.single, "snapshots"),
    Door(f"{_MARKET}/gainers", snapshots.gainers, "snapshots"),
    Door(f"{_MARKET}/losers", snapshots.losers, "snapshots"),
    Door("/v3/snapshot", snapshots.universal, "snapshots"),
    Door("/v3/reference/tickers", reference.tickers),
    Door("/v3/reference/tickers/types", directory.ticker_types),
    Door("/v3/reference/tickers/{ticker}", reference.ticker_details),
    Door("/vX/reference/tickers/{id}/events", reference.ticker_events),
    Door("/v3/reference/splits", reference.splits),
    Door("/stocks/v1/splits", reference.stock_splits),
    Door("/v3/reference/dividends", reference.dividends),
    Door("/stocks/v1/dividends", reference.stock_dividends),
    Door("/v3/reference/exchanges", directory.exchanges),
    Door("/v3/reference/conditions", directory.conditions),
    Door("/v1/marketstatus/now", directory.status_now),
    Door("/v1/marketstatus/upcoming", directory.status_upcoming),
)


class Rest:
    """The REST side of the exchange.

    `now` asks the exchange's clock, in ns UTC; without it, it is the end of the tape.
    """

    def __init__(self, tape: Tape, key: str, plan: Plan, now: Callable[[], int] | None = None) -> None:
        self._tape = tape
        self._key = key
        self._plan = plan
        self._now = now or (lambda: tape.end)
        self._asked: tuple[int, int] = (0, 0)  # the running minute and the calls in it

    def app(self) -> Starlette:
        """The ASGI application."""
        about = openapi.route(ROUTES)
        app = Starlette(
            routes=[*(Route(door.path, self._endpoint(door), methods=["GET"]) for door in ROUTES), about],
            middleware=[Middleware(GZipMiddleware, minimum_size=GZIP_FROM, compresslevel=1)],
            exception_handlers={HTTPException: self._no_route},
        )
        app.router.redirect_slashes = False
        return app

    def _endpoint(self, door: Door) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            request_id = secrets.token_hex(16)
            try:
                self._admit(request, door.entitlement)
                ask = self._ask(request, request_id)
                body = await run_in_threadpool(door.answer, ask)
                return self._response(200, "application/json", body, request_id)
            except Refused as refused:
                said = wire.error_body(refused.refusal, request_id=request_id, text=refused.text)
                return self._response(said.status, said.content_type, said.body, request_id)
            except TapelabError as error:
                _log.error("%s: %s", door.path, error)
                body = msgspec.json.encode({"status": "ERROR", "request_id": request_id, "error": str(error)})
                return self._response(500, "application/json", body, request_id)

        return endpoint

    def _ask(self, request: Request, request_id: str) -> Ask:
        path = request.scope["path"]
        if len(path) + len(request.scope["query_string"]) > MAX_ADDRESS:
            raise malformed(f"the address is longer than {MAX_ADDRESS} characters")
        return Ask(
            request.path_params,
            opened(request.query_params),
            f"{request.scope['scheme']}://{request.headers.get('host', 'localhost')}",
            path,
            request_id,
            self._tape,
            self._now(),
            self._plan,
        )

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
        if entitlement is not None and not _includes(self._plan, entitlement):
            raise Refused("not_entitled")

    def _response(self, status: int, content_type: str, body: bytes, request_id: str) -> Response:
        headers = {"X-Request-Id": request_id, TAPE_HEADER: self._tape.identity}
        return Response(body, status, headers, content_type)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        request_id = secrets.token_hex(16)
        said = wire.error_body("no_route", request_id=request_id)
        return self._response(said.status, said.content_type, said.body, request_id)


def _includes(plan: Plan, entitlement: str) -> bool:
    if entitlement == "snapshots":
        # They show the running day, which a plan of whole days does not.
        return "aggregates" in plan.rest and not plan.whole_days
    return entitlement in plan.rest
