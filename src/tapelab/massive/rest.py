"""The vendor's REST door: whole answers or an error, at the vendor's pace and within your budget."""

from __future__ import annotations

import logging
import math
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec
import numpy as np
import pyarrow as pa

from tapelab.budget import Budget
from tapelab.errors import MalformedAnswer, RateLimited, ServerTrouble, SourceError, Unreachable
from tapelab.market import adjust, clock, symbols
from tapelab.market.intervals import Base
from tapelab.market.symbols import Symbol
from tapelab.massive import wire
from tapelab.settings import Settings

if TYPE_CHECKING:
    import httpx

PAGE_ROWS = 50_000  # the vendor's maximum for bars and ticks
PAGE_REFERENCES = 1_000  # and for reference lists
MAX_PAGES = 10_000  # an answer that never ends is not an answer
CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0  # between two pieces of an answer
CONNECTIONS = 16

TRIES = 5  # of a request that the server or the way to it breaks
TRIES_OF_A_PAGE = 3  # that comes, and is not what the protocol promises
FIRST_BACK_OFF = 0.5  # seconds; doubles
LONGEST_BACK_OFF = 15.0
SHORTEST_PAUSE = 0.1
LONGEST_SLOW_DOWN = 300.0  # how long one request waits altogether while the vendor says 429
NAP = 1.0  # seconds; a pause is cut into these, so that `stop` ends it

TAPE_HEADER = "X-Tapelab-Tape"  # how the stand-in exchange says what it is; the vendor never sends it

_TIMESPANS: dict[Base, str] = {"1s": "second", "1m": "minute", "1d": "day"}

_log = logging.getLogger("tapelab")
_T = TypeVar("_T")


class _Ticker(msgspec.Struct):
    ticker: str


class TickerChange(msgspec.Struct, frozen=True):
    """A symbol that its owner has gone by, from some date on."""

    ticker: str


class TickerEvent(msgspec.Struct, frozen=True):
    date: date
    ticker_change: TickerChange


class TickerEvents(msgspec.Struct, frozen=True):
    """The owner of a symbol, and when they took which symbol."""

    name: str = ""
    events: list[TickerEvent] = []


class _TickerEvents(msgspec.Struct):
    results: TickerEvents


class _Tickers(msgspec.Struct):
    results: list[_Ticker] = []


class RestClient:
    """Questions to the vendor's REST interface; each is answered whole or raises.

    `budget` counts every request as it is sent. `on_wait` is told, before each pause that the vendor imposes,
    how many seconds it lasts. Safe to use from several threads, which share the vendor's pauses; close it, or
    use it as a context manager.
    """

    def __init__(
        self, settings: Settings, budget: Budget, *, on_wait: Callable[[float], None] | None = None
    ) -> None:
        import httpx

        self.tape = ""
        self._key = settings.need_api_key()
        self._budget = budget
        self._on_wait = on_wait
        self._stopped = threading.Event()
        self._quiet_until = 0  # on the monotonic clock: the vendor asked all of us to wait
        self._host = urlsplit(settings.rest_url).netloc
        self._client = httpx.Client(
            base_url=settings.rest_url,
            headers={"Authorization": f"Bearer {self._key}", "User-Agent": "tapelab"},
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def stop(self) -> None:
        """Let nothing more be sent: pauses end, and whoever asks gets an error."""
        self._stopped.set()

    def bars(self, symbol: str | Symbol, base: Base, first: date, last: date) -> Iterator[pa.Table]:
        """Raw bars of one symbol, both days included, page by page, oldest first.

        Nothing is adjusted for splits. An error may come after some pages: use none of them then.
        """
        asked = symbols.parse(symbol)
        path = f"/v2/aggs/ticker/{_quoted(asked.rest_v2)}/range/1/{_TIMESPANS[base]}/{first}/{last}"
        query = {"adjusted": "false", "sort": "asc", "limit": PAGE_ROWS}
        latest = 0
        for table in self._tables(path, query, "bars", asked):
            if len(table):
                stamps = table.column("timestamp").to_numpy()
                if stamps[0] <= latest or (stamps[1:] <= stamps[:-1]).any():
                    raise _disordered("bars", asked)
                latest = int(stamps[-1])
            yield table

    def trades(self, symbol: str | Symbol, start_ns: int, end_ns: int) -> Iterator[pa.Table]:
        """Trades of one symbol from `start_ns` to before `end_ns` (SIP clock), oldest first, page by page."""
        return self._ticks("trades", symbols.parse(symbol), start_ns, end_ns)

    def quotes(self, symbol: str | Symbol, start_ns: int, end_ns: int) -> Iterator[pa.Table]:
        """Quotes of one symbol from `start_ns` to before `end_ns` (SIP clock), oldest first, page by page."""
        return self._ticks("quotes", symbols.parse(symbol), start_ns, end_ns)

    def splits(self, symbol: str | Symbol | None = None, *, since: date | None = None) -> list[adjust.Split]:
        """Every split that the vendor knows, announced ones included, oldest first.

        Of one symbol, or of the whole market (None); `since`: only those executed on that day or later.
        """
        pages = self._references("splits", symbol, "execution_date", since)
        found = [split for body in pages for split in wire.decode_splits(body)]
        return sorted(found, key=lambda split: (split.execution_date, split.symbol))

    def dividends(
        self, symbol: str | Symbol | None = None, *, since: date | None = None
    ) -> list[adjust.Dividend]:
        """Every cash dividend that the vendor knows, oldest first.

        Of one symbol, or of the whole market (None); `since`: only those with that ex-date or a later one.
        """
        pages = self._references("dividends", symbol, "ex_dividend_date", since)
        found = [dividend for body in pages for dividend in wire.decode_dividends(body)]
        return sorted(found, key=lambda dividend: (dividend.ex_dividend_date, dividend.symbol))

    def ticker_events(self, symbol: str | Symbol) -> TickerEvents:
        """Who owns a symbol today, and the symbols that they went by. `NotFound` if the vendor has none."""
        path = f"/vX/reference/tickers/{_quoted(symbols.parse(symbol).rest_v2)}/events"
        return _decoded(self._get(f"{path}?types=ticker_change"), _TickerEvents, path).results

    def market_status(self) -> dict[str, Any]:
        """Whether the markets are open right now, in the vendor's own words."""
        path = "/v1/marketstatus/now"
        return _decoded(self._get(path), dict[str, Any], path)

    def symbols(self, market: str = "stocks") -> list[str]:
        """Every active symbol of a market, as the vendor's reference spells it, sorted."""
        path = "/v3/reference/tickers"
        query = {"market": market, "active": "true", "sort": "ticker", "limit": PAGE_REFERENCES}
        pages = self.pages(path, query)
        return sorted(row.ticker for body in pages for row in _decoded(body, _Tickers, path).results)

    def symbols_like(self, name: str) -> list[str]:
        """Active stocks that begin with the first two letters of `name`, sorted; at most a page of them."""
        begin = name[:2] if len(name) > 2 else name[:1]
        query = {"market": "stocks", "active": "true", "sort": "ticker", "limit": PAGE_REFERENCES}
        query |= {"ticker.gte": begin, "ticker.lt": begin[:-1] + chr(ord(begin[-1]) + 1)}
        path = "/v3/reference/tickers"
        found = _decoded(self._get(f"{path}?{urlencode(query)}"), _Tickers, path)
        return [row.ticker for row in found.results]

    def _references(
        self, kind: str, symbol: str | Symbol | None, dated: str, since: date | None
    ) -> Iterator[bytes]:
        query: dict[str, object] = {}
        if symbol is not None:
            query["ticker"] = symbols.parse(symbol).rest_v2
        if since is not None:
            query[f"{dated}.gte"] = since
        return self.pages(f"/v3/reference/{kind}", {**query, "limit": PAGE_REFERENCES})

    def _ticks(
        self, kind: wire.fields.Kind, symbol: Symbol, start_ns: int, end_ns: int
    ) -> Iterator[pa.Table]:
        query = {
            "timestamp.gte": start_ns,
            "timestamp.lt": end_ns,
            "order": "asc",
            "sort": "timestamp",
            "limit": PAGE_ROWS,
        }
        rows, latest = 0, start_ns
        for table in self._tables(f"/v3/{kind}/{_quoted(symbol.rest_v3)}", query, kind, symbol):
            stamps = table.column("ts_event").to_numpy()
            if len(stamps):
                if stamps[0] < latest or (stamps[1:] < stamps[:-1]).any() or stamps[-1] >= end_ns:
                    raise _disordered(kind, symbol)
                latest = int(stamps[-1])
            arrival = pa.array(np.arange(rows, rows + len(table)), pa.int64())
            rows += len(table)
            yield table.set_column(table.column_names.index("arrival"), "arrival", arrival)

    def _tables(
        self, path: str, query: Mapping[str, object], kind: wire.fields.Kind, symbol: Symbol
    ) -> Iterator[pa.Table]:
        for body in self.pages(path, query):
            yield wire.decode_page(body, kind, symbol=symbol.text).table

    def pages(self, path: str, query: Mapping[str, object]) -> Iterator[bytes]:
        """The bodies of every page of one answer, first to last; each is asked for when it is taken."""
        target: str | None = f"{path}?{urlencode(query)}"
        seen: set[str] = set()
        while target is not None:
            if target in seen or len(seen) >= MAX_PAGES:
                raise MalformedAnswer(
                    f"The pages of {self._host}{path} never end.", remedy="Try again later.", pages=len(seen)
                )
            seen.add(target)
            body, following = self._page(target)
            yield body
            target = _here(following)

    def _page(self, target: str) -> tuple[bytes, str | None]:
        """A page and the address of the next; one that came broken is asked for again."""
        for broken in range(1, TRIES_OF_A_PAGE):
            body = self._get(target)
            try:
                return body, wire.next_url(body)
            except MalformedAnswer as error:
                _log.info("%s", error)
                self._pause(_back_off(broken), "the answer is broken")
        body = self._get(target)
        return body, wire.next_url(body)

    def _get(self, target: str) -> bytes:
        """The body of one good answer, however often it has to be asked for."""
        import httpx

        broken, waited, slow_downs = 0, 0.0, 0
        while True:
            try:
                answer = self._send(target)
            except (httpx.ConnectError, httpx.ConnectTimeout) as cause:
                raise self._unreachable(target, "no connection could be made") from cause
            except httpx.RequestError as cause:
                broken += 1
                if broken == TRIES:
                    raise self._unreachable(target, f"the connection broke {TRIES} times") from cause
                self._pause(_back_off(broken), "the connection broke")
                continue
            self.tape = answer.headers.get(TAPE_HEADER, "")
            if answer.status_code == 200:
                return answer.content
            error = self._refusal(answer, target)
            if isinstance(error, RateLimited):
                slow_downs += 1
                wait = _retry_after(answer.headers.get("Retry-After")) or _back_off(slow_downs + 1)
                if waited + wait > LONGEST_SLOW_DOWN:
                    raise error
                waited += wait
                self._quiet_until = max(self._quiet_until, clock.monotonic() + round(wait * clock.SECOND))
                self._pause(wait, "too many requests")
            elif isinstance(error, ServerTrouble):
                broken += 1
                if broken == TRIES:
                    raise error
                self._pause(_back_off(broken), f"the server failed, {answer.status_code}")
            else:
                raise error

    def _send(self, target: str) -> httpx.Response:
        """One request, counted before it goes; one that finds no server costs nothing."""
        went_out = False

        def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal went_out
            if event.endswith(".send_request_headers.started") and info["request"].method == b"GET":
                went_out = True

        if (quiet := self._quiet_until - clock.monotonic()) > 0:
            self._pause(quiet / clock.SECOND, "too many requests")
        if not self._budget.spend_rest(given_up=self._stopped.is_set):
            raise self._unreachable(target, "the questions were stopped")
        try:
            return self._client.get(target, extensions={"trace": trace})
        finally:
            if not went_out:
                self._budget.return_rest()

    def _pause(self, seconds: float, why: str) -> None:
        _log.info("Waiting %.1f s: %s", seconds, why)
        if self._on_wait:
            self._on_wait(seconds)
        while seconds > 0 and not self._stopped.is_set():
            clock.sleep(min(seconds, NAP))
            seconds -= NAP

    def _refusal(self, answer: httpx.Response, target: str) -> SourceError:
        body = answer.content.replace(self._key.encode(), b"...")
        if answer.is_redirect:
            return MalformedAnswer(
                f"{self._host} redirects {_path(target)} elsewhere, and a key is not sent along.",
                remedy="Set MASSIVE_REST_URL to the address that answers.",
                http_status=answer.status_code,
            )
        return wire.decode_error(answer.status_code, body, url_path=_path(target))

    def _unreachable(self, target: str, why: str) -> Unreachable:
        return Unreachable(
            f"{self._host} cannot be reached: {why}.",
            remedy="Check the network and MASSIVE_REST_URL.",
            host=self._host,
            path=_path(target),
        )


def _disordered(what: str, symbol: Symbol) -> MalformedAnswer:
    return MalformedAnswer(
        f"The vendor's {what} of {symbol} are not in order of time, or not of the time asked for.",
        remedy="Try again, or take them from flat files.",
        symbol=symbol.text,
    )


def _quoted(symbol: str) -> str:
    return quote(symbol, safe=":")


def _path(target: str) -> str:
    return target.partition("?")[0]


def _here(next_url: str | None) -> str | None:
    """The next page's path and query; its host is never asked, so no other host ever sees the key."""
    if next_url is None:
        return None
    parts = urlsplit(next_url)
    query = parts.query
    if "apiKey=" in query:
        query = urlencode([pair for pair in parse_qsl(query) if pair[0] != "apiKey"])
    return f"{parts.path}?{query}" if query else parts.path


def _back_off(times: int) -> float:
    """Seconds before the next try: doubling, capped, and spread so that many clients do not march in step."""
    ceiling = min(FIRST_BACK_OFF * 2.0**times, LONGEST_BACK_OFF)
    return ceiling * random.uniform(0.5, 1.0)


def _retry_after(value: str | None) -> float | None:
    """The header in seconds, whichever of its two forms it has; None where it is absent or nonsense."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            until = parsedate_to_datetime(value)
            seconds = until.replace(tzinfo=UTC).timestamp() - clock.now() / clock.SECOND
        except ValueError:
            return None
    return max(seconds, SHORTEST_PAUSE) if math.isfinite(seconds) else None


def _decoded(body: bytes, kind: type[_T], path: str) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as cause:
        raise MalformedAnswer(
            f"The vendor's answer at {path} is not what its protocol promises.",
            remedy="Try again; if it stays so, the vendor's protocol has changed: report it.",
            path=path,
        ) from cause
