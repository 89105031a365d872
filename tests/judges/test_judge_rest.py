"""The vendor's Python client reads the market on paper over REST: every page, every digit, every refusal."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date
from typing import Any

import papers
import pytest
import urllib3
from clients import Client, Start
from massive.exceptions import AuthError, BadResponse
from papers import DAY_BEFORE, DAYS, MILLISECOND, MINUTE, NEW_DAY, OLD_DAY, PLAIN, SYMBOLS, TEST_SYMBOL, Paper

from tapelab.exchange import Exchange

pytestmark = pytest.mark.judge

LIMITS = (1, 7, 89, 90, 91, 50_000)  # a symbol has 90 rows a day: pages that end before, at and behind a day


def told(found: Iterable[Any], expected: list[dict[str, object]]) -> None:
    """That a client handed over exactly these, in this order, by its own names."""
    rows = list(found)
    names = list(expected[0])
    assert [{name: getattr(row, name) for name in names} for row in rows] == expected


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_trades_come_page_by_page_as_they_stand_on_paper(
    client: Client, exchange: Exchange, paper: Paper, limit: int, order: str
) -> None:
    symbol = SYMBOLS[limit % len(SYMBOLS)]
    expected = [papers.trade_over_rest(row) for row in paper.rows("trades_v1", symbol)]
    found = client(exchange).list_trades(symbol, order=order, limit=limit)
    told(found, expected if order == "asc" else expected[::-1])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_quotes_come_page_by_page_as_they_stand_on_paper(
    client: Client, exchange: Exchange, paper: Paper, limit: int, order: str
) -> None:
    symbol = SYMBOLS[limit % len(SYMBOLS)]
    expected = [papers.quote_over_rest(row) for row in paper.rows("quotes_v1", symbol)]
    found = client(exchange).list_quotes(symbol, order=order, limit=limit)
    told(found, expected if order == "asc" else expected[::-1])


def test_ticks_are_newest_first_unless_asked_otherwise(
    client: Client, exchange: Exchange, paper: Paper
) -> None:
    rows = [papers.trade_over_rest(row) for row in paper.rows("trades_v1", "MSFT")]
    told(client(exchange).list_trades("MSFT", limit=40), rows[::-1])


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize(
    ("low", "high"),
    [("timestamp_gte", "timestamp_lte"), ("timestamp_gt", "timestamp_lt"), ("timestamp_gt", "timestamp_lte")],
)
def test_bounds_hold_to_the_nanosecond_on_every_page(
    client: Client, exchange: Exchange, paper: Paper, low: str, high: str, order: str
) -> None:
    rows = paper.rows("trades_v1", "BRK.B", NEW_DAY)
    stamps = sorted({int(row["sip_timestamp"]) for row in rows})
    first, last = stamps[5], stamps[-5]
    assert any(int(float(stamp)) != stamp for stamp in stamps)  # a double would not do
    expected = [
        papers.trade_over_rest(row)
        for row in rows
        if first + low.endswith("gt") <= int(row["sip_timestamp"]) <= last - high.endswith("lt")
    ]
    found = client(exchange).list_trades("BRK.B", **{low: first, high: last}, order=order, limit=4)
    told(found, expected if order == "asc" else expected[::-1])


@pytest.mark.parametrize("day", DAYS)
def test_a_date_means_that_day_of_the_exchange(
    client: Client, exchange: Exchange, paper: Paper, day: date
) -> None:
    expected = [papers.quote_over_rest(row) for row in paper.rows("quotes_v1", "BApA", day)]
    vendor = client(exchange)
    told(vendor.list_quotes("BApA", timestamp=day, order="asc", limit=31), expected)
    told(vendor.list_quotes("BApA", timestamp_gte=day, timestamp_lte=day, order="asc", limit=31), expected)


@pytest.mark.parametrize("limit", [1, 7, 70, 71, 50_000])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_minute_bars_come_page_by_page_as_they_stand_on_paper(
    client: Client, exchange: Exchange, paper: Paper, limit: int, order: str
) -> None:
    symbol = SYMBOLS[limit % len(SYMBOLS)]
    expected = [papers.bar_over_rest(row) for row in paper.rows("minute_aggs_v1", symbol)]
    found = client(exchange).list_aggs(
        symbol, 1, "minute", OLD_DAY, NEW_DAY, sort=order, limit=limit, adjusted=False
    )
    told(found, expected if order == "asc" else expected[::-1])


@pytest.mark.parametrize(("multiplier", "timespan", "length"), [(5, "minute", 5), (1, "hour", 60)])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_longer_bars_are_whole_on_every_page_however_small(
    client: Client,
    exchange: Exchange,
    paper: Paper,
    multiplier: int,
    timespan: str,
    length: int,
    order: str,
) -> None:
    def start_of(at: int) -> int:
        return at // (length * MINUTE) * length * MINUTE

    rows = paper.rows("minute_aggs_v1", "NE.WS.A")
    expected = papers.folded(rows, start_of)
    for limit in (7, 60, 61, 50_000):
        found = client(exchange).list_aggs(
            "NE.WS.A", multiplier, timespan, OLD_DAY, NEW_DAY, sort=order, limit=limit, adjusted=False
        )
        bars = [{name: getattr(bar, name) for name in expected[0]} for bar in found]
        assert bars == (expected if order == "asc" else expected[::-1]), limit


def test_a_limit_counts_base_bars_and_drops_the_window_that_it_would_cut(
    client: Client, exchange: Exchange, paper: Paper
) -> None:
    # The vendor's example: an hour of 60 minutes fits into 100, the second one does not.
    rows = paper.rows("minute_aggs_v1", "A", NEW_DAY)
    first, second, *_ = papers.folded(rows, lambda at: at // (60 * MINUTE) * 60 * MINUTE)
    within = sum(int(row["window_start"]) < second["timestamp"] * MILLISECOND for row in rows)
    vendor = client(exchange)
    for limit in (within, within + 3):
        found = vendor.get_aggs("A", 1, "hour", NEW_DAY, NEW_DAY, limit=limit, adjusted=False)
        assert [bar.timestamp for bar in found] == [first["timestamp"]]


def test_day_bars_are_those_of_the_file(client: Client, exchange: Exchange, paper: Paper) -> None:
    vendor = client(exchange)
    for symbol in SYMBOLS:
        expected = [papers.bar_over_rest(row) for row in paper.rows("day_aggs_v1", symbol)]
        told(vendor.list_aggs(symbol, 1, "day", OLD_DAY, NEW_DAY, limit=1, adjusted=False), expected)


def test_the_vendors_own_example_of_an_adjustment_comes_out(client: Client, exchange: Exchange) -> None:
    vendor = client(exchange)
    [raw] = vendor.get_aggs("ETHA", 1, "day", DAY_BEFORE, DAY_BEFORE, adjusted=False)
    [adjusted] = vendor.get_aggs("ETHA", 1, "day", DAY_BEFORE, DAY_BEFORE)
    assert (raw.close, raw.volume) == (20.34, 45_879)
    assert (adjusted.close, adjusted.volume) == papers.ETHA_ADJUSTED


@pytest.mark.parametrize("limit", [1, 2, 1000])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_every_ticker_is_listed_once(client: Client, exchange: Exchange, limit: int, order: str) -> None:
    found = [row.ticker for row in client(exchange).list_tickers(market="stocks", limit=limit, order=order)]
    assert found == sorted(set(found), reverse=order == "desc")
    assert found


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_tickers_between_two_names_come_page_by_page(client: Client, exchange: Exchange, limit: int) -> None:
    vendor = client(exchange)
    everyone = [row.ticker for row in vendor.list_tickers(market="stocks", limit=1000)]
    found = [row.ticker for row in vendor.list_tickers(ticker_gt="A", ticker_lte="MSFT", limit=limit)]
    assert found == [ticker for ticker in everyone if "A" < ticker <= "MSFT"]


def test_a_client_that_does_not_page_gets_one_page(client: Client, exchange: Exchange) -> None:
    assert len(list(client(exchange, pagination=False).list_trades("MSFT", limit=7))) == 7


def test_a_symbol_in_another_case_is_another_symbol(client: Client, exchange: Exchange) -> None:
    assert len(list(client(exchange).list_trades("BApA"))) == 2 * papers.TICKS_OF_A_SYMBOL
    for wrong in ("BAPA", "bapa", "BRK-B"):
        assert list(client(exchange).list_trades(wrong)) == []


def test_a_test_symbol_is_told_when_it_is_named(client: Client, exchange: Exchange, paper: Paper) -> None:
    expected = [papers.trade_over_rest(row) for row in paper.rows("trades_v1", TEST_SYMBOL)]
    found = list(client(exchange).list_trades(TEST_SYMBOL, order="asc"))
    assert [trade.sip_timestamp for trade in found] == [row["sip_timestamp"] for row in expected]


def test_a_client_that_wants_the_raw_answer_finds_the_vendors_headers(
    client: Client, exchange: Exchange
) -> None:
    answer = client(exchange).get_aggs("MSFT", 1, "minute", NEW_DAY, NEW_DAY, raw=True)
    body = json.loads(answer.data)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Request-Id"] == body["request_id"]
    assert len(body["request_id"]) == 32
    assert "gzip" in answer.headers["Content-Encoding"]


# Each method of the vendor's client whose endpoint is served, and what it is asked.
METHODS: list[tuple[str, tuple[Any, ...]]] = [
    ("list_aggs", (PLAIN, 1, "day", OLD_DAY, NEW_DAY)),
    ("get_aggs", (PLAIN, 1, "day", OLD_DAY, NEW_DAY)),
    ("get_grouped_daily_aggs", (NEW_DAY,)),
    ("get_daily_open_close_agg", (PLAIN, NEW_DAY)),
    ("get_previous_close_agg", (PLAIN,)),
    ("list_trades", (PLAIN,)),
    ("get_last_trade", (PLAIN,)),
    ("list_quotes", (PLAIN,)),
    ("get_last_quote", (PLAIN,)),
    ("get_snapshot_all", ("stocks",)),
    ("get_snapshot_all", ("stocks", [PLAIN])),
    ("get_snapshot_direction", ("stocks", "gainers")),
    ("get_snapshot_direction", ("stocks", "losers")),
    ("get_snapshot_ticker", ("stocks", PLAIN)),
    ("list_universal_snapshots", ("stocks", [PLAIN])),
    ("list_tickers", (PLAIN,)),
    ("get_ticker_details", (PLAIN,)),
    ("get_ticker_events", (PLAIN,)),
    ("get_ticker_types", ()),
    ("list_splits", ()),
    ("list_stocks_splits", ()),
    ("list_dividends", ()),
    ("list_stocks_dividends", ()),
    ("list_conditions", ("stocks",)),
    ("get_exchanges", ("stocks", "us")),
    ("get_market_status", ()),
    ("get_market_holidays", ()),
]


@pytest.mark.parametrize(("method", "arguments"), METHODS)
def test_every_method_whose_endpoint_is_served_finds_something(
    client: Client, known: Exchange, method: str, arguments: tuple[Any, ...]
) -> None:
    found = getattr(client(known), method)(*arguments)
    rows = list(found) if isinstance(found, Iterable) else [found]
    assert rows
    assert all(any(value is not None for value in vars(row).values()) for row in rows)


def refusal(body: str) -> dict[str, str]:
    """The vendor's refusal without its number."""
    said: dict[str, str] = json.loads(body)
    assert len(said.pop("request_id")) == 32
    return said


def test_a_wrong_key_is_refused_in_the_vendors_words(client: Client, exchange: Exchange) -> None:
    with pytest.raises(BadResponse) as refused:
        client(exchange, api_key="wrong").get_market_status()
    assert refusal(str(refused.value)) == {"status": "ERROR", "error": "Unknown API Key"}
    with pytest.raises(AuthError):
        client(exchange, api_key=None)


@pytest.mark.parametrize(
    "arguments",
    [
        (0, "minute", NEW_DAY, NEW_DAY),
        (-1, "minute", NEW_DAY, NEW_DAY),
        (1, "fortnight", NEW_DAY, NEW_DAY),
        (1, "minute", "2026-13-01", NEW_DAY),
        (1, "minute", NEW_DAY, "2026-02-30"),
        (1, "minute", NEW_DAY, OLD_DAY),
    ],
)
def test_bars_that_make_no_sense_are_refused_as_an_error(
    client: Client, exchange: Exchange, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(BadResponse) as refused:
        client(exchange).get_aggs("MSFT", *arguments)
    said = refusal(str(refused.value))
    assert said["status"] == "ERROR"
    assert said["error"]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 50_001},
        {"order": "sideways"},
        {"sort": "price"},
        {"timestamp": "soon"},
        {"timestamp_gte": "2026-02-30"},
        {"params": {"cursor": "!!!"}},
        {"params": {"cursor": "bm9uc2Vuc2U"}},
    ],
)
def test_ticks_that_make_no_sense_are_refused_as_an_error(
    client: Client, exchange: Exchange, query: dict[str, Any]
) -> None:
    with pytest.raises(BadResponse) as refused:
        list(client(exchange).list_trades("MSFT", **query))
    assert refusal(str(refused.value))["status"] == "ERROR"


def test_a_route_that_is_not_there_answers_in_plain_text(client: Client, exchange: Exchange) -> None:
    with pytest.raises(BadResponse, match=r"^404 page not found\n$"):
        client(exchange)._get("/v9/nothing")


def test_a_plan_refuses_what_it_does_not_have(client: Client, started: Start, paper: Paper) -> None:
    vendor = client(started(flat_files=paper.folder, plan="starter"))
    assert list(vendor.list_aggs("MSFT", 1, "minute", NEW_DAY, NEW_DAY))
    for refused_data in (vendor.list_trades, vendor.list_quotes):
        with pytest.raises(BadResponse) as refused:
            list(refused_data("MSFT"))
        said = refusal(str(refused.value))
        assert said["status"] == "NOT_AUTHORIZED"
        assert said["message"].startswith("You are not entitled to this data.")


def test_the_sixth_call_in_a_minute_of_the_free_plan_is_one_too_many(
    client: Client, started: Start, paper: Paper
) -> None:
    vendor = client(started(flat_files=paper.folder, plan="basic"))
    with pytest.raises(urllib3.exceptions.MaxRetryError, match="429"):
        any(vendor.get_market_status() is None for _ in range(2 * 5 + 1))  # a minute may end on the way
