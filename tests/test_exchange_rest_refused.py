"""Requests that are too large, malformed or sly: refused in the vendor's form, and the exchange goes on."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, urlencode

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapelab.exchange import Exchange, serve
from tapelab.exchange.plans import plan_named
from tapelab.exchange.rest.app import ROUTES
from tapelab.exchange.tape import FlatFileTape, simulated
from test_exchange_reference import DIVIDENDS, EVENTS, SPLITS, TICKERS, tape_with
from test_exchange_snapshots import CLOSE, END, MIDNIGHT, OPEN, asked

DAYS = "2024-04-04/2024-04-05"


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    with serve(flat_files=full(tmp_path_factory.mktemp("refusing")).folder, speed=0) as found:
        yield found


def full(path: Path) -> FlatFileTape:
    return tape_with(path, splits=SPLITS, dividends=DIVIDENDS, tickers=TICKERS, ticker_events=EVENTS)


def cursor(**fields: object) -> str:
    return base64.urlsafe_b64encode(urlencode(fields).encode()).decode().rstrip("=")


MALFORMED = [
    # Huge and odd multipliers, timespans and dates.
    f"/v2/aggs/ticker/AAPL/range/10001/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/00000000190000/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/{'9' * 5000}/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/-1/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/1e3/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/%D9%A3/day/{DAYS}",
    f"/v2/aggs/ticker/AAPL/range/1/%00/{DAYS}",
    "/v2/aggs/ticker/AAPL/range/1/day/20240404/2024-W14-5",
    "/v2/aggs/ticker/AAPL/range/1/day/0001-01-01/2024-04-05",
    "/v2/aggs/ticker/AAPL/range/1/day/2024-04-05/9999-12-31",
    "/v2/aggs/grouped/locale/us/market/stocks/yesterday",
    "/v2/aggs/grouped/locale/us/market/stocks/2024-02-30",
    "/v2/aggs/grouped/locale/us/market/stocks/2024-04-04?adjusted=maybe",
    "/v2/aggs/grouped/locale/us/market/stocks/2024-04-04?include_otc=maybe",
    "/v1/open-close/AAPL/1712289600000",
    "/v2/aggs/ticker/AAPL/prev?adjusted=1",
    # Times that no clock can say.
    "/v3/trades/AAPL?timestamp=9999-12-31T23:59:59Z",
    "/v3/trades/AAPL?timestamp.gt=0001-01-01T00:00:00%2B14:00",
    "/v3/trades/AAPL?timestamp.lte=9223372036854775808",
    "/v3/trades/AAPL?timestamp.lte=99999999999999999999999999",
    "/v3/quotes/AAPL?timestamp=1e18",
    "/v3/quotes/AAPL?timestamp=%0A2024-04-05",
    # Cursors that nobody gave out.
    "/v3/trades/AAPL?cursor=%00%01",
    "/v3/trades/AAPL?cursor=////",
    f"/v3/trades/AAPL?cursor={cursor(ap=-7)}",
    f"/v3/trades/AAPL?cursor={cursor(ap='x', limit=10)}",
    f"/v3/trades/AAPL?cursor={cursor(limit=10**9)}",
    f"/v3/trades/AAPL?cursor={cursor(**{'timestamp.lte': 'now'})}",
    f"/v3/reference/splits?cursor={cursor(ap=6)}",
    f"/v3/snapshot?cursor={cursor(ap=10**18)}",
    f"/v3/snapshot?cursor={base64.urlsafe_b64encode(bytes(range(256))).decode()}",
    f"/v3/reference/tickers?cursor={cursor(**{f'x{n}': n for n in range(101)})}",
    # Filters, sorting and limits.
    "/v3/reference/splits?execution_date.gte=soon",
    "/v3/reference/dividends?cash_amount.gt=nan",
    "/v3/reference/dividends?cash_amount=much",
    "/v3/reference/dividends?frequency=-inf",
    "/v3/reference/splits?sort=id",
    "/v3/reference/splits?order=up",
    "/v3/reference/splits?limit=1001",
    "/v3/reference/splits?reverse_split=2",
    "/stocks/v1/splits?limit=5001",
    "/stocks/v1/splits?sort=ticker.up",
    "/stocks/v1/splits?sort=,,,",
    "/stocks/v1/dividends?sort=../../etc/passwd",
    "/v3/reference/tickers?date=2024-4-5",
    "/v3/reference/tickers?market=moon",
    "/v3/reference/tickers/AA?date=today",
    "/vX/reference/tickers/META/events?types=ticker_change,dividend",
    "/v3/reference/conditions?sip=NYSE",
    "/v3/reference/conditions?asset_class=moon",
    "/v3/reference/conditions?id=odd",
    "/v3/reference/exchanges?locale=mars",
    "/v3/snapshot?limit=251",
    "/v3/snapshot?type=bonds",
    "/v3/snapshot?ticker.any_of=" + ",".join(f"T{n}" for n in range(251)),
    # Too much of it.
    "/v3/snapshot?" + "&".join(f"ticker.gt{n}=A" for n in range(101)),
    "/v2/snapshot/locale/us/markets/stocks/tickers?tickers=" + "A," * 5000,
    "/v3/trades/" + "A" * 9000,
]


@pytest.mark.parametrize("path", MALFORMED, ids=lambda path: path[:70])
def test_a_malformed_question_is_refused_and_the_exchange_goes_on(exchange: Exchange, path: str) -> None:
    answer = _get(exchange, path)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json()["status"], len(answer.json()["request_id"])) == ("ERROR", 32)
    assert 0 < len(answer.json()["error"]) < 400
    assert _get(exchange, "/v1/marketstatus/now").status_code == 200


SYMBOLS = [
    "..",
    "../../../etc/passwd",
    "..%2f..",
    "A/B",
    "A\0B",
    "A\r\nX-Evil: 1",
    "😀",
    "'; DROP",
    "%",
    "a" * 500,
]


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_a_strange_symbol_finds_nothing_anywhere(exchange: Exchange, symbol: str) -> None:
    for door in ROUTES:
        if not {"{ticker}", "{id}"} & set(door.path.replace("}", "} ").replace("{", " {").split()):
            continue
        named = quote(symbol, safe="%")
        path = door.path.replace("{ticker}", named).replace("{id}", named)
        for part, value in (
            ("multiplier", "1"),
            ("timespan", "day"),
            ("from", "2024-04-04"),
            ("to", "2024-04-05"),
            ("date", "2024-04-05"),
        ):
            path = path.replace(f"{{{part}}}", value)
        answer = _get(exchange, path)
        assert answer.status_code in (200, 404), path
        assert "x-evil" not in answer.headers
        if answer.status_code == 200:
            assert not answer.json().get("results")
    assert _get(exchange, "/v1/marketstatus/now").status_code == 200


@pytest.mark.parametrize("length", [20_000, 2_000_000])
def test_an_address_without_end_is_refused(exchange: Exchange, length: int) -> None:
    said = _raw(exchange, f"/v3/reference/tickers?search={'a' * length}", "localhost")
    assert said.split(b" ", 2)[1] in (b"400", b"414", b"431")
    assert _get(exchange, "/v1/marketstatus/now").status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a b", "x" * 3000, "h:99999999", ""])
def test_a_strange_host_breaks_nothing(exchange: Exchange, host: str) -> None:
    assert _raw(exchange, "/v3/trades/AAPL?limit=1", host).split(b" ", 2)[1] in (b"200", b"400")
    assert _get(exchange, "/v1/marketstatus/now").status_code == 200


def _raw(exchange: Exchange, target: str, host: str) -> bytes:
    """What comes back for a request that no client would send."""
    url = httpx.URL(exchange.rest_url)
    head = f"Host: {host}\r\nConnection: close\r\nAuthorization: Bearer {exchange.api_key}"
    with socket.create_connection((url.host, url.port), timeout=10) as sock:
        with suppress(ConnectionError):  # it may hang up before it has read all of it
            sock.sendall(f"GET {target} HTTP/1.1\r\n{head}\r\n\r\n".encode())
        said = b""
        with suppress(ConnectionError):
            while part := sock.recv(1 << 16):
                said += part
    return said


def test_the_longest_windows_end_where_time_does(exchange: Exchange) -> None:
    for timespan in ("second", "minute", "hour", "day", "week", "month", "quarter", "year"):
        for bounds in (DAYS, "1970-01-01/2199-12-31", "0/7258118399999"):
            answer = _get(exchange, f"/v2/aggs/ticker/AAPL/range/10000/{timespan}/{bounds}?limit=1")
            assert answer.status_code == 200, answer.text
    [year] = _get(exchange, f"/v2/aggs/ticker/AAPL/range/10000/year/{DAYS}").json()["results"]
    assert (year["o"], year["c"], year["v"]) == (100, 103, 31450.5)


def test_a_page_after_strange_parameters_can_be_asked_for(exchange: Exchange) -> None:
    answer = _get(
        exchange, "/v3/reference/splits?limit=1&note=%00%0d%0a%F0%9F%98%80&execution_date.gt=2001-01-01"
    )
    following = _get(exchange, answer.json()["next_url"].removeprefix(exchange.rest_url))
    assert [row["id"] for row in following.json()["results"]] == ["E1"]


def test_a_plan_refuses_what_lies_outside_of_its_history(tmp_path: Path) -> None:
    tape = full(tmp_path)

    def refused(path: str, plan: str, now: int) -> bool:
        answer = asked(tape, path, now, plan_named(plan))
        said = answer.json()
        told = "Your plan doesn't include this data timeframe" in said.get("message", "")
        assert (answer.status_code == 403 and said["status"] == "NOT_AUTHORIZED") == told
        return told

    today = "/v2/aggs/ticker/AAPL/range/1/minute/2024-04-05/2024-04-05"
    # A plan of whole days has today's when it is over.
    assert refused(today, "basic", CLOSE)
    assert not refused(today, "basic", END)
    assert refused("/v1/open-close/AAPL/2024-04-05", "basic", OPEN)
    assert not refused("/v2/aggs/ticker/AAPL/prev", "basic", MIDNIGHT + 1)


values = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.sampled_from(
        ["", "true", "asc", "ticker.desc", "2024-04-05", "AAPL", "nan", "\0", "stocks", "1e9", ","]
    ),
)
names = st.sampled_from(
    "ticker ticker.any_of ticker.gte timestamp timestamp.lt limit sort order adjusted cursor ap type market "
    "search active date cik cusip exchange execution_date execution_date.gt reverse_split frequency.lte "
    "cash_amount.any_of types sip id asset_class locale data_type include_otc tickers apiKey as".split()
)
parts = {
    "ticker": st.one_of(st.just("AAPL"), st.text(min_size=1, max_size=8)),
    "id": st.text(min_size=1, max_size=8),
    "multiplier": st.one_of(st.integers(-1, 10**9).map(str), st.text(min_size=1, max_size=4)),
    "timespan": st.sampled_from("second minute hour day week month quarter year eon".split()),
    "from": st.one_of(st.dates().map(str), st.integers(-1, 10**14).map(str)),
    "to": st.one_of(st.dates().map(str), st.integers(-1, 10**14).map(str)),
    "date": st.one_of(st.dates().map(str), st.text(min_size=1, max_size=10)),
}


@pytest.mark.parametrize("door", ROUTES, ids=lambda door: door.path)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_asked_the_answer_is_one_of_the_vendors(door: object, data: st.DataObject) -> None:
    """No answer is a failure of the server, and every refusal says what is wrong in the vendor's form."""
    path = door.path  # type: ignore[attr-defined]
    for name, strategy in parts.items():
        if f"{{{name}}}" in path:
            path = path.replace(f"{{{name}}}", quote(data.draw(strategy), safe=""))
    query = data.draw(st.dictionaries(names, values, max_size=4))
    answer = asked(simulated(7), path, **query)
    assert answer.status_code in (200, 400, 401, 403, 404), answer.text
    if answer.headers["content-type"] == "application/json":
        said = json.loads(answer.content)
        if answer.status_code != 200:
            assert said["status"] in ("ERROR", "NOT_FOUND", "NOT_AUTHORIZED")
            assert said.get("error") or said.get("message")


def _get(exchange: Exchange, path: str) -> httpx.Response:
    return httpx.get(exchange.rest_url + path, headers={"Authorization": f"Bearer {exchange.api_key}"})
