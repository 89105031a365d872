"""The exchange over REST, judged by the vendor's own client and payloads."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from massive import RESTClient
from massive.exceptions import BadResponse

from tapelab.exchange import Exchange, serve
from tapelab.exchange.tape import MINUTE_BARS, QUOTES, TRADES
from tapelab.market import clock
from tapelab.massive import wire
from test_exchange_tape import DAY, MINUTE, OPEN, folder_of

SPLITS = [
    {"ticker": "AAPL", "execution_date": "2024-04-05", "split_from": 1, "split_to": 4, "id": "E1"},
    {"ticker": "AAPL", "execution_date": "2020-08-31", "split_from": 1, "split_to": 4, "id": "E2"},
    {"ticker": "AIG", "execution_date": "2009-07-01", "split_from": 20, "split_to": 1, "id": "E3"},
]
DIVIDENDS = [
    {"ticker": "AAPL", "ex_dividend_date": "2024-02-09", "cash_amount": 0.24, "currency": "USD"},
    {"ticker": "AAPL", "ex_dividend_date": "2023-11-10", "cash_amount": 0.24, "currency": "USD"},
]


@pytest.fixture(scope="module")
def simulated() -> Iterator[Exchange]:
    with serve(simulate=True, speed=0) as exchange:
        yield exchange


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """A small tape of AAPL with reference data, in which each number can be checked."""
    folder = folder_of(tmp_path_factory.mktemp("tape"))
    (folder / "reference").mkdir()
    (folder / "reference/splits.json").write_text(json.dumps(SPLITS))
    (folder / "reference/dividends.json").write_text(json.dumps(DIVIDENDS))
    with serve(flat_files=folder, speed=0) as exchange:
        yield exchange


@pytest.fixture
def vendor(simulated: Exchange) -> Iterator[RESTClient]:
    yield from _client(simulated)


@pytest.fixture
def vendor_by_hand(by_hand: Exchange) -> Iterator[RESTClient]:
    yield from _client(by_hand)


def _client(exchange: Exchange) -> Iterator[RESTClient]:
    client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
    yield client
    client.client.clear()


def get(exchange: Exchange, path: str, **query: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    return httpx.get(exchange.rest_url + path, params={k: str(v) for k, v in query.items()}, headers=headers)


@pytest.mark.judge
@pytest.mark.parametrize("limit", [7, 100, 50_000])
def test_the_vendors_client_reads_bars_page_by_page(
    vendor: RESTClient, simulated: Exchange, limit: int
) -> None:
    day = simulated.day
    expected = simulated.tape.bars("1m", day, "ZWZZT").to_pylist()
    found = list(vendor.list_aggs("ZWZZT", 1, "minute", day, day, limit=limit))[: 40 if limit == 7 else None]
    for row, bar in zip(expected, found, strict=limit != 7):
        assert bar.timestamp * 1_000_000 == row["timestamp"]
        assert (bar.open, bar.high, bar.low, bar.close) == (
            row["open"],
            row["high"],
            row["low"],
            row["close"],
        )
        assert (bar.volume, bar.vwap, bar.transactions) == (row["volume"], row["vwap"], row["transactions"])


@pytest.mark.judge
def test_the_vendors_client_reads_days_and_newest_first(vendor: RESTClient, simulated: Exchange) -> None:
    days = simulated.tape.days(MINUTE_BARS)
    found = list(vendor.list_aggs("ZXZZT", 1, "day", days[0], days[-1], sort="desc", limit=3))
    assert [clock.date_of(bar.timestamp * 1_000_000, "America/New_York") for bar in found] == days[::-1]


@pytest.mark.judge
@pytest.mark.parametrize(("kind", "order"), [("trades", "asc"), ("trades", "desc"), ("quotes", "desc")])
def test_the_vendors_client_reads_ticks_page_by_page_to_the_nanosecond(
    vendor: RESTClient, simulated: Exchange, kind: str, order: str
) -> None:
    product = TRADES if kind == "trades" else QUOTES
    listed = vendor.list_trades if kind == "trades" else vendor.list_quotes
    first, last = simulated.tape.days(product)[-2:]
    days = [simulated.tape.of_symbol(product, day, "ZJZZT").to_pylist() for day in (first, last)]
    found = list(listed("ZJZZT", timestamp_gte=first, timestamp_lte=last, order=order, limit=5000))
    expected = days[0] + days[1]
    if order == "desc":
        expected.reverse()
    names = {
        "sip_timestamp": "ts_event",
        "sequence_number": "sequence",
        "participant_timestamp": "ts_participant",
    }
    names |= {"conditions": "conditions", "tape": "tape"}
    if kind == "trades":
        names |= {"price": "price", "size": "size", "exchange": "exchange", "id": "id"}
        names |= {"trf_id": "trf_id", "trf_timestamp": "ts_trf"}
    else:
        names |= {"bid_price": "bid", "ask_price": "ask", "bid_size": "bid_size", "ask_size": "ask_size"}
        names |= {"bid_exchange": "bid_exchange", "ask_exchange": "ask_exchange"}
    for theirs, ours in names.items():
        assert [getattr(row, theirs) for row in found] == [row[ours] for row in expected], theirs


@pytest.mark.judge
def test_the_vendors_client_reads_one_days_trades_between_two_nanoseconds(
    vendor: RESTClient, simulated: Exchange
) -> None:
    stamps = simulated.tape.of_symbol(TRADES, simulated.day, "ZVZZT").column("ts_event").to_pylist()
    found = list(vendor.list_trades("ZVZZT", timestamp_gt=stamps[10], timestamp_lte=stamps[20], order="asc"))
    assert [trade.sip_timestamp for trade in found] == stamps[11:21]
    whole = list(vendor.list_trades("ZVZZT", timestamp=simulated.day, limit=50_000))
    assert len(whole) == len(stamps)


@pytest.mark.judge
def test_the_vendors_client_reads_splits_and_dividends(vendor_by_hand: RESTClient) -> None:
    splits = list(vendor_by_hand.list_splits("AAPL", limit=1))
    assert [(s.execution_date, s.split_from, s.split_to) for s in splits] == [
        ("2024-04-05", 1, 4),
        ("2020-08-31", 1, 4),
    ]
    [reverse] = vendor_by_hand.list_splits(reverse_split=True)
    assert reverse.ticker == "AIG"
    late = list(vendor_by_hand.list_splits(execution_date_gte="2020-08-31", order="asc"))
    assert [s.id for s in late] == ["E2", "E1"]
    dividends = list(vendor_by_hand.list_dividends("AAPL", ex_dividend_date_lt="2024-01-01"))
    assert [d.ex_dividend_date for d in dividends] == ["2023-11-10"]


@pytest.mark.judge
def test_the_vendors_client_reads_status_holidays_and_tickers(vendor: RESTClient) -> None:
    status = vendor.get_market_status()
    assert status.market == "closed"
    assert status.server_time == "2026-10-09T20:00:00-04:00"  # the tape's end: nothing is streamed yet
    holidays = {(h.date, h.status) for h in vendor.get_market_holidays() if h.exchange == "NYSE"}
    assert ("2026-11-26", "closed") in holidays
    assert ("2026-11-27", "early-close") in holidays
    assert [t.ticker for t in vendor.list_tickers(limit=3)] == ["ZJZZT", "ZVZZT", "ZWZZT", "ZXZZT"]


@pytest.mark.judge
def test_the_vendors_client_is_told_that_its_key_is_wrong(simulated: Exchange) -> None:
    client = RESTClient(api_key="wrong", base=simulated.rest_url, retries=0)
    with pytest.raises(BadResponse, match="Unknown API Key"):
        list(client.list_aggs("ZVZZT", 1, "minute", simulated.day, simulated.day))
    client.client.clear()


@pytest.mark.judge
def test_real_minutes_over_rest_are_those_of_the_minute_file(real_day: Path) -> None:
    day = date(2013, 10, 9)
    text = gzip.decompress((real_day / wire.file_key(MINUTE_BARS, day)).read_bytes()).decode()
    rows = [line.split(",") for line in text.splitlines()[1:]]
    with serve(flat_files=real_day, speed=0) as exchange:
        client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
        for symbol in ("AIG", "BAC", "IBM", "SPY"):
            own = [(int(r[6]) // 10**6, *map(float, r[1:6]), int(r[7])) for r in rows if r[0] == symbol]
            bars = client.list_aggs(symbol, 1, "minute", day, day, adjusted=False, limit=1000)
            found = [(b.timestamp, b.volume, b.open, b.close, b.high, b.low, b.transactions) for b in bars]
            assert found == own
        with pytest.raises(BadResponse, match=r"no splits: reference/splits\.json"):
            list(client.list_splits("AIG"))
        with pytest.raises(BadResponse, match=r"no us_stocks_sip/trades_v1 for 2013-10-07"):
            list(client.list_trades("AIG", timestamp="2013-10-07"))
        client.client.clear()


@pytest.mark.judge
def test_answers_have_the_vendors_keys(simulated: Exchange, shared: Path) -> None:
    mocks = shared / "payloads/rest/test_rest/mocks"
    day = simulated.day
    bars = json.loads((mocks / "v2/aggs/ticker/AAPL/range/1/day/2005-04-01/2005-04-04.json").read_bytes())
    found = get(simulated, f"/v2/aggs/ticker/ZVZZT/range/1/minute/{day}/{day}").json()
    assert set(bars) == set(found)
    assert set(bars["results"][0]) == set(found["results"][0])
    for kind, mock in (("trades", "v3/trades/AAPL&limit=2.json"), ("quotes", "v3/quotes/AAPL.json")):
        theirs = json.loads((mocks / mock).read_bytes())
        ours = get(simulated, f"/v3/{kind}/ZVZZT", limit=50).json()
        assert set(theirs) <= set(ours) | {"next_url"}
        assert set(ours["results"][0]) <= set(theirs["results"][0]) | {"conditions"}
    now = json.loads((mocks / "v1/marketstatus/now.json").read_bytes())
    assert set(get(simulated, "/v1/marketstatus/now").json()) == set(now) - {"currencies"}


def test_the_next_page_of_bars_is_addressed_as_on_the_wire(simulated: Exchange) -> None:
    day = simulated.day
    first = get(simulated, f"/v2/aggs/ticker/ZVZZT/range/1/minute/{day}/{day}", limit=2).json()
    url = urlsplit(first["next_url"])
    assert f"{url.scheme}://{url.netloc}" == simulated.rest_url
    start = first["results"][-1]["t"] + 60_000
    assert url.path == f"/v2/aggs/ticker/ZVZZT/range/1/minute/{start}/{day}"
    # Unpadded base64 of limit and sort, and nothing else: no key, not even the one that was sent.
    assert url.query == "cursor=bGltaXQ9MiZzb3J0PWFzYw"
    unadjusted = get(
        simulated, f"/v2/aggs/ticker/ZVZZT/range/1/minute/{day}/{day}", limit=2, adjusted="false"
    ).json()
    cursor = urlsplit(unadjusted["next_url"]).query.removeprefix("cursor=")
    assert dict(parse_qsl(_opened(cursor))) == {"adjusted": "false", "limit": "2", "sort": "asc"}


def test_the_cursor_of_ticks_holds_the_question_and_where_it_stands(simulated: Exchange) -> None:
    answer = get(simulated, "/v3/quotes/ZVZZT", **{"timestamp.lte": "2026-10-08", "limit": 10}).json()
    cursor = dict(parse_qsl(_opened(answer["next_url"].partition("cursor=")[2]), keep_blank_values=True))
    assert set(cursor) == {"ap", "as", "limit", "order", "sort", "timestamp.lte"}
    assert (cursor["limit"], cursor["order"], cursor["sort"]) == ("10", "desc", "timestamp")
    assert cursor["timestamp.lte"].startswith("2026-10-08T")


def _opened(cursor: str) -> str:
    return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()


def test_ticks_of_one_nanosecond_are_neither_lost_nor_repeated_between_pages(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = folder / wire.file_key(TRADES, DAY)
    header, row, *_ = gzip.decompress(path.read_bytes()).decode().splitlines()
    rows = [row.replace(",1,", f",{n},", 1) for n in range(1, 8)]
    path.write_bytes(gzip.compress("\n".join([header, *rows, ""]).encode()))
    with serve(flat_files=folder, speed=0) as exchange:
        client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
        for order in ("asc", "desc"):
            ids = [trade.id for trade in client.list_trades("AAPL", DAY, order=order, limit=3)]
            assert ids == [str(n) for n in range(1, 8)][:: 1 if order == "asc" else -1]
        client.client.clear()


def test_bars_are_adjusted_for_splits_unless_asked_otherwise(by_hand: Exchange) -> None:
    path = "/v2/aggs/ticker/AAPL/range/1/day/2024-04-03/2024-04-05"
    adjusted = get(by_hand, path).json()
    assert adjusted["adjusted"] is True
    assert [(b["o"], b["h"], b["l"], b["c"], b["v"]) for b in adjusted["results"]] == [
        (25, 25.5, 24.75, 25.25, 4000),
        (42, 42.5, 41.75, 42.25, 4000),
        (170, 172, 169, 171, 1000),  # the split's own day is in new shares already
    ]
    raw = get(by_hand, path, adjusted="false").json()
    assert raw["adjusted"] is False
    assert [b["o"] for b in raw["results"]] == [100, 168, 170]


def test_a_tape_without_splits_says_that_its_bars_are_not_adjusted(tmp_path: Path) -> None:
    with serve(flat_files=folder_of(tmp_path), speed=0) as exchange:
        answer = get(exchange, "/v2/aggs/ticker/AAPL/range/1/day/2024-04-03/2024-04-05").json()
    assert answer["adjusted"] is False
    assert answer["results"][0]["o"] == 100


def test_bars_have_a_vwap_only_where_the_tape_has_trades(by_hand: Exchange) -> None:
    day = get(by_hand, "/v2/aggs/ticker/AAPL/range/1/day/2024-04-03/2024-04-05").json()["results"]
    assert ["vw" in bar for bar in day] == [False, False, True]
    minutes = get(by_hand, f"/v2/aggs/ticker/AAPL/range/1/minute/{DAY}/{DAY}").json()["results"]
    assert [bar.get("vw") for bar in minutes] == [170.0133, 170.05, None]
    five = get(by_hand, f"/v2/aggs/ticker/AAPL/range/5/minute/{DAY}/{DAY}").json()["results"]
    assert [(bar["t"] * 10**6, bar["v"]) for bar in five] == [(OPEN, 320), (OPEN + 5 * MINUTE, 300)]


def test_longer_windows_and_milliseconds(by_hand: Exchange) -> None:
    week = get(by_hand, "/v2/aggs/ticker/AAPL/range/1/week/2024-04-04/2024-04-05").json()
    [bar] = week["results"]
    assert bar["t"] == 1711857600000  # Sunday 2024-03-31 00:00 New York
    assert week["queryCount"] == 3
    start = OPEN // 10**6
    [minute] = get(by_hand, f"/v2/aggs/ticker/AAPL/range/1/minute/{start}/{start}").json()["results"]
    assert minute["t"] == start
    [second, _] = get(by_hand, f"/v2/aggs/ticker/AAPL/range/1/second/{DAY}/{DAY}").json()["results"]
    assert second["t"] == start + 1000


def test_an_unknown_ticker_has_no_results_and_no_error(simulated: Exchange) -> None:
    day = simulated.day
    answer = get(simulated, f"/v2/aggs/ticker/AAPL/range/1/minute/{day}/{day}")
    assert answer.status_code == 200
    found = answer.json()
    assert "results" not in found
    assert (found["resultsCount"], found["queryCount"], found["status"]) == (0, 0, "OK")
    assert get(simulated, "/v3/trades/AAPL").json()["results"] == []


def test_both_forms_of_the_key_are_accepted(simulated: Exchange) -> None:
    url = f"{simulated.rest_url}/v1/marketstatus/now"
    assert httpx.get(url, params={"apiKey": simulated.api_key}).status_code == 200
    assert httpx.get(url, headers={"authorization": f"bearer {simulated.api_key}"}).status_code == 200


def test_every_answer_names_its_request_and_its_tape(simulated: Exchange) -> None:
    for answer in (
        get(simulated, "/v3/trades/ZVZZT", limit=1),
        get(simulated, "/v3/trades/ZVZZT", limit="x"),
    ):
        assert answer.headers["x-request-id"] == answer.json()["request_id"]
        assert len(answer.json()["request_id"]) == 32
        assert answer.headers["x-tapelab-tape"] == "simulated seed=7"
        assert answer.headers["content-type"] == "application/json"


def test_long_answers_are_compressed_for_those_who_can_read_it(simulated: Exchange) -> None:
    assert get(simulated, "/v3/trades/ZVZZT").headers["content-encoding"] == "gzip"
    headers = {"Authorization": f"Bearer {simulated.api_key}", "Accept-Encoding": "identity"}
    plain = httpx.get(f"{simulated.rest_url}/v3/trades/ZVZZT", headers=headers)
    assert "content-encoding" not in plain.headers
    assert len(plain.json()["results"]) == 1000


@pytest.mark.judge
@pytest.mark.parametrize(
    ("name", "key"), [("401-no-key", ""), ("401-unknown-key", "wrong"), ("404-unknown-route", None)]
)
def test_refusals_are_the_vendors_own(simulated: Exchange, shared: Path, name: str, key: str | None) -> None:
    if key is None:
        expected = (shared / "payloads/errors/404-unknown-route.txt").read_text()
        answer = get(simulated, "/v2/aggs/grouped/nothing")
        assert answer.status_code == 404
        assert answer.headers["content-type"].startswith("text/plain")
        assert answer.text.strip() == expected.strip()
        return
    said = json.loads((shared / f"payloads/errors/{name}.json").read_text())
    answer = httpx.get(f"{simulated.rest_url}/v1/marketstatus/now", params={"apiKey": key})
    assert answer.status_code == 401
    assert answer.json() | {"request_id": ""} == said | {"request_id": ""}


BAD = [
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-13-01/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/yesterday/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-09/99999999999999999999",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-09/9999999999999",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-09/2026-10-08",
    "/v2/aggs/ticker/ZVZZT/range/1/fortnight/2026-10-08/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/0/minute/2026-10-08/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/1.5/minute/2026-10-08/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/²/minute/2026-10-08/2026-10-09",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-08/2026-10-09?limit=50001",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-08/2026-10-09?sort=up",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-08/2026-10-09?adjusted=perhaps",
    "/v2/aggs/ticker/ZVZZT/range/1/minute/2026-10-08/2026-10-09?cursor=%25%25",
    "/v3/trades/ZVZZT?timestamp=2026-02-30",
    "/v3/trades/ZVZZT?timestamp.gte=0001-01-01",
    "/v3/trades/ZVZZT?timestamp.lt=2026-10-09T25:00:00Z",
    "/v3/trades/ZVZZT?limit=0",
    "/v3/trades/ZVZZT?order=sideways",
    "/v3/quotes/ZVZZT?cursor=AQANAkNCBVNQ",
    "/v3/reference/splits?limit=many",
    "/v3/reference/tickers?active=perhaps",
]


@pytest.mark.parametrize("path", BAD)
def test_a_malformed_question_is_refused_in_the_vendors_form_and_the_exchange_goes_on(
    simulated: Exchange, path: str
) -> None:
    answer = get(simulated, path) if "?" not in path else _plain(simulated, path)
    assert answer.status_code == 400
    assert answer.json()["status"] == "ERROR"
    assert answer.json()["error"]
    assert get(simulated, "/v1/marketstatus/now").status_code == 200


def _plain(exchange: Exchange, path: str) -> httpx.Response:
    return httpx.get(exchange.rest_url + path, headers={"Authorization": f"Bearer {exchange.api_key}"})


@pytest.mark.parametrize("path", ["/v3/trades/..%2F..%2Fetc", "/v3/trades/A%00B", "/v3/trades/%F0%9F%98%80"])
def test_strange_symbols_find_nothing(simulated: Exchange, path: str) -> None:
    answer = _plain(simulated, path)
    assert answer.status_code in (200, 404)
    assert get(simulated, "/v1/marketstatus/now").status_code == 200


def test_only_get_is_known(simulated: Exchange) -> None:
    answer = httpx.post(f"{simulated.rest_url}/v1/marketstatus/now", params={"apiKey": simulated.api_key})
    assert (answer.status_code, answer.text.strip()) == (404, "404 page not found")


def test_a_plan_refuses_what_it_does_not_include() -> None:
    with serve(simulate=True, speed=0, plan="starter") as exchange:
        refused = get(exchange, "/v3/trades/ZVZZT")
        assert refused.status_code == 403
        assert refused.json()["status"] == "NOT_AUTHORIZED"
        assert "not entitled" in refused.json()["message"]
        day = exchange.day
        assert get(exchange, f"/v2/aggs/ticker/ZVZZT/range/1/day/{day}/{day}").status_code == 200


def test_the_free_plan_allows_five_calls_a_minute() -> None:
    with serve(simulate=True, speed=0, plan="basic") as exchange:
        codes = [get(exchange, "/v1/marketstatus/now").status_code for _ in range(11)]
    # Eleven calls touch two minutes at most.
    assert 1 <= codes.count(429) <= 6
    assert codes[:5] == [200] * 5


def test_a_damaged_file_is_an_error_and_not_an_empty_answer(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = folder / wire.file_key(MINUTE_BARS, DAY)
    path.write_bytes(path.read_bytes()[:-20])
    with serve(flat_files=folder, speed=0) as exchange:
        answer = get(exchange, f"/v2/aggs/ticker/AAPL/range/1/minute/{DAY}/{DAY}")
        assert (answer.status_code, answer.json()["status"]) == (500, "ERROR")
        assert get(exchange, f"/v2/aggs/ticker/AAPL/range/1/day/{DAY}/{DAY}").json()["resultsCount"] == 1
