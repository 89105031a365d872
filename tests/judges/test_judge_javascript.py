"""The vendor's JavaScript client at the exchange: REST with its own way of paging, and the stream.

It sends its key in the address, may send it before the greeting, follows the absolute `next_url`, puts later
pages before earlier ones, and reads nanoseconds as doubles.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import papers
import pytest
from clients import Start
from filelock import FileLock
from papers import NEW_DAY, OLD_DAY, PLAIN, SYMBOLS, Paper

from tapelab.exchange import Exchange

pytestmark = pytest.mark.judge

SOURCES = Path(__file__).parent / "js"
INSTALL_WITHIN = 120.0  # seconds
ANSWER_WITHIN = 90.0

Judge = Callable[..., Any]


@pytest.fixture(scope="session")
def installed(request: pytest.FixtureRequest) -> Path:
    """A folder with the client in it, installed once for each version; skips where that cannot be."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        pytest.skip("node and npm are not here, so the vendor's JavaScript client cannot judge")
    lock = SOURCES / "package-lock.json"
    folder = request.config.cache.mkdir(f"judge-js-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}")
    with FileLock(folder / "lock"):
        if not (folder / "ready").exists():
            for name in ("package.json", "package-lock.json"):
                shutil.copy(SOURCES / name, folder)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            try:
                subprocess.run(
                    command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_WITHIN, check=True
                )
            except subprocess.SubprocessError as error:
                why = " ".join(str(getattr(error, "stderr", None) or error).split())
                pytest.skip(f"npm could not install the vendor's JavaScript client: {why[-200:]}")
            (folder / "ready").touch()
        shutil.copy(SOURCES / "driver.mjs", folder)
    return folder


@pytest.fixture
def javascript(installed: Path) -> Judge:
    """Give the client a task at an exchange; what it handed over."""

    def judge(exchange: Exchange, **task: Any) -> Any:
        where = {"rest": exchange.rest_url, "ws": exchange.ws_url, "key": exchange.api_key}
        text = json.dumps({**where, **task}, default=str)
        done = subprocess.run(
            ["node", "driver.mjs", text],
            cwd=installed,
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return judge


def later_pages_first(rows: list[Any], size: int) -> list[Any]:
    """Rows in the order in which this client puts their pages together."""
    pages = [rows[first : first + size] for first in range(0, len(rows), size)]
    return [row for page in reversed(pages) for row in page]


def doubles(stamps: list[int]) -> list[float]:
    """What is left of nanoseconds in JavaScript."""
    return [float(stamp) for stamp in stamps]


@pytest.mark.parametrize("limit", [7, 60, 50_000])
@pytest.mark.parametrize("order", ["asc", "desc"])
def test_ticks_come_whole_page_by_page(
    javascript: Judge, exchange: Exchange, paper: Paper, limit: int, order: str
) -> None:
    query = {"stockTicker": "BRK.B", "order": order, "limit": limit}
    calls = [["getStocksTrades", query], ["getStocksQuotes", query]]
    answers = javascript(exchange, pagination=True, calls=calls)
    for answer, product in zip(answers, ("trades_v1", "quotes_v1"), strict=True):
        rows = paper.rows(product, "BRK.B")
        expected = later_pages_first(rows if order == "asc" else rows[::-1], limit)
        found = answer["body"]["results"]
        assert doubles([row["sip_timestamp"] for row in found]) == doubles(
            [int(row["sip_timestamp"]) for row in expected]
        )
        assert [row["sequence_number"] for row in found] == [int(row["sequence_number"]) for row in expected]


@pytest.mark.parametrize("limit", [7, 60, 50_000])
@pytest.mark.parametrize("sort", ["asc", "desc"])
def test_bars_come_whole_page_by_page(
    javascript: Judge, exchange: Exchange, paper: Paper, limit: int, sort: str
) -> None:
    query = {"stocksTicker": "MSFT", "multiplier": 1, "timespan": "minute", "from": OLD_DAY, "to": NEW_DAY}
    query |= {"adjusted": False, "sort": sort, "limit": limit}
    [answer] = javascript(exchange, pagination=True, calls=[["getStocksAggregates", query]])
    rows = [papers.bar_over_rest(row) for row in paper.rows("minute_aggs_v1", "MSFT")]
    expected = later_pages_first(rows if sort == "asc" else rows[::-1], limit)
    names = {"timestamp": "t", "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}
    names["transactions"] = "n"
    found = answer["body"]["results"]
    assert [{name: row[key] for name, key in names.items()} for row in found] == expected
    assert answer["body"]["count"] == len(expected)


def test_tickers_come_whole_page_by_page(javascript: Judge, exchange: Exchange) -> None:
    calls = [["listTickers", {"market": "stocks", "active": True, "limit": limit}] for limit in (2, 1000)]
    paged, whole = javascript(exchange, pagination=True, calls=calls)
    everyone = [row["ticker"] for row in whole["body"]["results"]]
    assert [row["ticker"] for row in paged["body"]["results"]] == later_pages_first(everyone, 2)


def test_a_client_that_does_not_page_gets_one_page(javascript: Judge, exchange: Exchange) -> None:
    query = {"stockTicker": "MSFT", "limit": 5}
    [answer] = javascript(exchange, pagination=False, calls=[["getStocksTrades", query]])
    assert len(answer["body"]["results"]) == 5
    assert answer["body"]["next_url"].startswith(f"{exchange.rest_url}/v3/trades/MSFT?cursor=")


# Each further method of the client whose endpoint is served, and what it is asked.
METHODS: list[list[Any]] = [
    ["getGroupedStocksAggregates", {"date": NEW_DAY}],
    ["getPreviousStocksAggregates", {"stocksTicker": PLAIN}],
    ["getStocksOpenClose", {"stocksTicker": PLAIN, "date": NEW_DAY}],
    ["getLastStocksTrade", {"stocksTicker": PLAIN}],
    ["getLastStocksQuote", {"stocksTicker": PLAIN}],
    ["getStocksSnapshotTicker", {"stocksTicker": PLAIN}],
    ["getStocksSnapshotTickers", {"tickers": [PLAIN]}],
    ["getStocksSnapshotDirection", {"direction": "losers"}],
    ["getSnapshots", {"tickerAnyOf": PLAIN}],
    ["getTicker", {"ticker": PLAIN}],
    ["getEvents", {"id": PLAIN}],
    ["listTickerTypes", {}],
    ["listStockSplits", {}],
    ["getStocksV1Splits", {}],
    ["listDividends", {}],
    ["getStocksV1Dividends", {}],
    ["listConditions", {"limit": 50}],
    ["listExchanges", {}],
    ["getMarketStatus", None],
    ["getMarketHolidays", None],
]


def test_every_other_method_whose_endpoint_is_served_is_answered(javascript: Judge, known: Exchange) -> None:
    answers = javascript(known, calls=METHODS)
    refused = [(call[0], told) for call, told in zip(METHODS, answers, strict=True) if "status" in told]
    assert refused == []
    assert all(told["body"] for told in answers)


def test_refusals_reach_the_caller_in_the_vendors_words(
    javascript: Judge, exchange: Exchange, started: Start, paper: Paper
) -> None:
    trades = ["getStocksTrades", {"stockTicker": "MSFT"}]
    [wrong] = javascript(exchange, key="wrong", calls=[trades])
    assert (wrong["status"], wrong["body"]["error"]) == (401, "Unknown API Key")
    [bad] = javascript(exchange, calls=[["getStocksTrades", {"stockTicker": "MSFT", "limit": 0}]])
    assert (bad["status"], bad["body"]["status"]) == (400, "ERROR")
    [poor] = javascript(started(flat_files=paper.folder, plan="basic"), calls=[trades])
    assert (poor["status"], poor["body"]["status"]) == (403, "NOT_AUTHORIZED")


def test_the_stream_is_heard_as_it_stands_on_paper(javascript: Judge, started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, day=NEW_DAY)
    products = {"T": "trades_v1", "Q": "quotes_v1", "AM": "minute_aggs_v1"}
    rows = {channel: paper.rows(product, None, NEW_DAY) for channel, product in products.items()}
    rows = {c: [row for row in mine if row["ticker"] in SYMBOLS] for c, mine in rows.items()}
    told = javascript(exchange, topics=["T.*", "Q.*", "AM.*"], count=sum(map(len, rows.values())))
    statuses = [event for message in told["messages"][:3] for event in message]
    assert [event["status"] for event in statuses] == ["connected", "auth_success", *["success"] * 3]
    events = [event for message in told["messages"][3:] for event in message]
    for channel, mine in rows.items():
        stamp, name = ("s", "window_start") if channel == "AM" else ("t", "sip_timestamp")
        for symbol in SYMBOLS:
            heard = [e[stamp] for e in events if (e["ev"], e["sym"]) == (channel, symbol)]
            assert heard == [int(row[name]) // papers.MILLISECOND for row in mine if row["ticker"] == symbol]


def test_a_wrong_key_is_answered_and_cut(javascript: Judge, exchange: Exchange) -> None:
    told = javascript(exchange, key="wrong", topics=[])
    assert told["messages"][-1][0]["message"] == "authentication failed"
    assert told["code"] == 1006  # no close frame
