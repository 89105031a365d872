"""Snapshots, the last trade and quote, worked out by hand at several moments of a small day."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest

from tapelab.exchange.plans import EVERYTHING, Plan, plan_named
from tapelab.exchange.rest.app import Rest
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, QUOTES, TRADES, FlatFileTape, Tape, simulated
from tapelab.market import sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire

THURSDAY, DAY = date(2024, 4, 4), date(2024, 4, 5)
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
MIDNIGHT = sessions.day_start(Market.STOCKS, DAY)
OPEN, CLOSE, END = MIDNIGHT + 9 * HOUR + 30 * MINUTE, MIDNIGHT + 16 * HOUR, MIDNIGHT + 20 * HOUR
MARKET = "/v2/snapshot/locale/us/markets/stocks"

# Symbol, time, price, size, conditions.
PRINTS = [
    ("AAPL", MIDNIGHT + 8 * HOUR, 100, 300, "12"),
    ("AAPL", OPEN + SECOND, 101, 1000, ""),
    ("AAPL", OPEN + 30 * SECOND, 101.5, 50, "37"),
    ("AAPL", OPEN + 70 * SECOND, 102, 20000, ""),
    ("AAPL", CLOSE - SECOND, 103, 9000, "14"),
    ("AAPL", CLOSE + 5 * SECOND, 103.2, 100, "12"),
    ("AAPL", CLOSE + 30 * MINUTE, 104, 0.5, '"12,37"'),
    ("BRK.A", OPEN + 5 * SECOND, 45, 10000, ""),
    ("THIN", OPEN + 6 * SECOND, 9, 100, ""),
]
ASKS = [("AAPL", OPEN + 80 * SECOND, 101.9, 2, 102.1, 3), ("AAPL", OPEN + 81 * SECOND, 0, 0, 102.2, 1)]
BEFORE = [("AAPL", 100), ("BRK.A", 50), ("GONE", 5), ("THIN", 1)]


def small_day(path: Path) -> FlatFileTape:
    """One day of ticks and the day bars of the day before."""
    header = ",".join(wire.PRODUCTS[TRADES].header)
    rows = [
        f"{symbol},{codes},0,11,{n},{at - 1000},{price},{n},{at},{size},3,0,0"
        for n, (symbol, at, price, size, codes) in enumerate(PRINTS, 1)
    ]
    _write(path, TRADES, DAY, [header, *rows])
    rows = [
        f"{symbol},8,{ask},{asked},19,{bid},{bids},1,,{at - 1000},{n},{at},3,0"
        for n, (symbol, at, bid, bids, ask, asked) in enumerate(ASKS, 1)
    ]
    _write(path, QUOTES, DAY, [",".join(wire.PRODUCTS[QUOTES].header), *rows])
    stamp = sessions.day_start(Market.STOCKS, THURSDAY)
    rows = [f"{symbol},1000,{p},{p},{p},{p},{stamp},10" for symbol, p in BEFORE]
    _write(path, DAY_BARS, THURSDAY, [",".join(wire.PRODUCTS[DAY_BARS].header), *rows])
    return FlatFileTape(path)


def _write(folder: Path, product: str, day: date, lines: list[str]) -> None:
    path = folder / wire.file_key(product, day)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))


def asked(
    tape: Tape, path: str, now: int | None = None, plan: Plan = EVERYTHING, **query: object
) -> httpx.Response:
    """What the exchange answers at a moment; without one, at the end of its tape."""
    door = httpx.ASGITransport(Rest(tape, "key", plan, None if now is None else lambda: now).app())

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=door, base_url="http://exchange") as client:
            params = {name: str(value) for name, value in query.items()}
            return await client.get(path, params=params or None, headers={"Authorization": "Bearer key"})

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def tape(tmp_path_factory: pytest.TempPathFactory) -> FlatFileTape:
    return small_day(tmp_path_factory.mktemp("small"))


def snapshot(tape: Tape, now: int, symbol: str = "AAPL", plan: Plan = EVERYTHING) -> dict[str, Any]:
    return asked(tape, f"{MARKET}/tickers/{symbol}", now, plan).json()["ticker"]  # type: ignore[no-any-return]


def session(tape: Tape, now: int, symbol: str = "AAPL") -> dict[str, Any]:
    [item] = asked(tape, "/v3/snapshot", now, **{"ticker.any_of": symbol}).json()["results"]
    return {"market_status": item["market_status"], **item["session"]}


def test_a_snapshot_at_two_past_the_open_is_what_was_said_until_then(tape: FlatFileTape) -> None:
    found = snapshot(tape, OPEN + 90 * SECOND)
    # The print before the open counts in the volume of the day, not in its prices; so does the odd lot.
    assert found["day"] == {
        "o": 101, "h": 102, "l": 101, "c": 102, "v": 21350, "dv": "21350.0", "vw": 101.9239
    }  # fmt: skip
    assert found["min"] == {
        "o": 101, "h": 101, "l": 101, "c": 101, "v": 1050, "dv": "1050.0", "vw": 101.0238, "n": 2,
        "t": OPEN // 10**6, "av": 1350, "dav": "1350.0",
    }  # fmt: skip
    assert found["lastTrade"] == {
        "c": None, "i": "4", "p": 102, "s": 20000, "t": OPEN + 70 * SECOND, "x": 11
    }  # fmt: skip
    assert found["lastQuote"] == {"P": 102.2, "S": 1, "p": 0, "s": 0, "t": OPEN + 81 * SECOND}
    assert found["prevDay"] == {"o": 100, "h": 100, "l": 100, "c": 100, "v": 1000, "dv": "1000.0"}
    assert (found["todaysChange"], found["todaysChangePerc"]) == (2, 2)
    assert found["updated"] == OPEN + 70 * SECOND
    assert found["ticker"] == "AAPL"


def test_a_snapshot_says_when_its_minute_was_later_than_its_trade(tape: FlatFileTape) -> None:
    assert snapshot(tape, OPEN + 3 * MINUTE)["updated"] == OPEN + 2 * MINUTE


def test_before_the_open_there_is_a_price_and_no_day(tape: FlatFileTape) -> None:
    found = snapshot(tape, OPEN - SECOND)
    assert "day" not in found
    assert found["min"]["c"] == 100
    assert found["todaysChange"] == 0
    assert session(tape, OPEN - SECOND) == {
        "market_status": "early_trading",
        "price": 100,
        "previous_close": 100,
        "change": 0,
        "change_percent": 0,
        "early_trading_change": 0,
        "early_trading_change_percent": 0,
        "last_updated": MIDNIGHT + 8 * HOUR + MINUTE,
    }


def test_a_day_has_an_early_a_regular_and_a_late_part(tape: FlatFileTape) -> None:
    found = session(tape, CLOSE + 45 * MINUTE)
    assert found["market_status"] == "late_trading"
    changes = {name: value for name, value in found.items() if "change" in name}
    assert changes == {
        "change": 4,
        "change_percent": 4,
        "early_trading_change": 0,
        "early_trading_change_percent": 0,
        "regular_trading_change": 3,
        "regular_trading_change_percent": 3,
        "late_trading_change": 1,
        "late_trading_change_percent": 0.971,
    }
    assert (found["open"], found["high"], found["low"], found["close"]) == (101, 103, 101, 103)
    assert (found["price"], found["volume"], found["decimal_volume"]) == (104, 30450.5, "30450.5")


def test_while_the_market_is_open_the_regular_part_follows_the_price(tape: FlatFileTape) -> None:
    found = session(tape, OPEN + 40 * SECOND)
    # The last print is an odd lot: it is the price, and moves no bar.
    assert (found["price"], found["close"]) == (101.5, 101)
    assert (found["change"], found["regular_trading_change"]) == (1.5, 1.5)
    assert "late_trading_change" not in found


def test_small_changes_keep_three_digits(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    stamp = sessions.day_start(Market.STOCKS, THURSDAY)
    header = ",".join(wire.PRODUCTS[DAY_BARS].header)
    _write(tmp_path, DAY_BARS, THURSDAY, [header, f"AAPL,1,101.93,101.93,101.93,101.93,{stamp},1"])
    found = snapshot(tape, OPEN + 90 * SECOND)
    assert (found["todaysChange"], found["todaysChangePerc"]) == (0.07, 0.0687)


def test_the_last_trade_and_quote_are_those_of_the_exchanges_moment(tape: FlatFileTape) -> None:
    trade = asked(tape, "/v2/last/trade/AAPL", CLOSE + HOUR).json()
    assert trade["status"] == "OK"
    assert trade["results"] == {
        "c": [12, 37], "i": "7", "p": 104, "s": 0, "ds": "0.5", "x": 11, "z": 3, "T": "AAPL",
        "t": CLOSE + 30 * MINUTE, "y": CLOSE + 30 * MINUTE - 1000, "q": 7,
    }  # fmt: skip
    quote = asked(tape, "/v2/last/nbbo/AAPL", OPEN + 80 * SECOND).json()
    assert quote["results"] == {
        "c": [1], "p": 101.9, "s": 2, "x": 19, "P": 102.1, "S": 3, "X": 8, "z": 3, "T": "AAPL",
        "t": OPEN + 80 * SECOND, "y": OPEN + 80 * SECOND - 1000, "q": 1,
    }  # fmt: skip


def test_what_the_tape_cannot_know_is_refused_by_name(tape: FlatFileTape) -> None:
    unknown = asked(tape, "/v2/last/trade/MSFT", OPEN + HOUR)
    # The day before, on which it may have traded, is not on the tape.
    assert unknown.status_code == 404
    assert "no us_stocks_sip/trades_v1 of 2024-04-04" in unknown.json()["message"]
    early = asked(tape, "/v2/last/nbbo/AAPL", OPEN)
    assert "no us_stocks_sip/quotes_v1 of 2024-04-04" in early.json()["message"]
    later = asked(tape, f"{MARKET}/tickers", END + 72 * HOUR)
    assert later.status_code == 404
    assert later.json()["status"] == "NOT_FOUND"
    assert "has nothing of 2024-04-08" in later.json()["message"]
    missing = asked(tape, f"{MARKET}/tickers/GONE", END)
    assert (missing.status_code, missing.json()["message"]) == (404, "Ticker not found.")


def test_snapshots_are_cleared_in_the_night(tape: FlatFileTape) -> None:
    night = MIDNIGHT + 24 * HOUR
    assert snapshot(tape, night + 3 * HOUR)["lastTrade"]["p"] == 104
    # Saturday has no session, so there is nothing to show.
    cleared = asked(tape, f"{MARKET}/tickers", night + 4 * HOUR).json()
    assert (cleared["count"], cleared["tickers"]) == (0, [])


def test_everybody_some_or_movers(tape: FlatFileTape) -> None:
    def listed(path: str, **query: object) -> list[str]:
        answer = asked(tape, f"{MARKET}/{path}", END, **query).json()
        assert answer["count"] == len(answer["tickers"])
        return [row["ticker"] for row in answer["tickers"]]

    assert listed("tickers") == ["AAPL", "BRK.A", "THIN"]
    assert listed("tickers", tickers="THIN,AAPL,GONE,THIN") == ["AAPL", "THIN"]
    # Nine times its price on a hundred shares is no gain that counts.
    assert listed("gainers") == ["AAPL"]
    assert listed("losers", include_otc="true") == ["BRK.A"]
    before = asked(tape, f"{MARKET}/tickers", OPEN + SECOND).json()["tickers"]
    assert [row["ticker"] for row in before] == ["AAPL"]


def test_a_day_that_is_over_is_the_day_of_the_file(tmp_path: Path) -> None:
    small_day(tmp_path)
    header = ",".join(wire.PRODUCTS[DAY_BARS].header)
    _write(tmp_path, DAY_BARS, DAY, [header, f"AAPL,31000,100.5,103.1,103.3,100.4,{MIDNIGHT},9"])
    assert snapshot(FlatFileTape(tmp_path), END - SECOND)["day"]["o"] == 101
    assert snapshot(FlatFileTape(tmp_path), END)["day"] == {
        "o": 100.5, "h": 103.3, "l": 100.4, "c": 103.1, "v": 31000, "dv": "31000.0", "vw": 102.2462
    }  # fmt: skip


def test_without_trades_a_day_is_made_of_its_minutes(tmp_path: Path) -> None:
    header = ",".join(wire.PRODUCTS[MINUTE_BARS].header)
    starts = [(OPEN - MINUTE, 9), (OPEN, 10), (OPEN + MINUTE, 11), (OPEN + 2 * MINUTE, 12)]
    rows = [f"AAPL,100,{p},{p + 0.5},{p + 1},{p - 1},{start},5" for start, p in starts]
    _write(tmp_path, MINUTE_BARS, DAY, [header, *rows])
    found = snapshot(FlatFileTape(tmp_path), OPEN + 2 * MINUTE)
    assert found["day"] == {"o": 10, "h": 12, "l": 9, "c": 11.5, "v": 300, "dv": "300.0"}
    assert (found["min"]["c"], found["min"]["av"]) == (11.5, 300)
    assert snapshot(FlatFileTape(tmp_path), END)["day"]["c"] == 12.5
    assert not {"prevDay", "lastTrade", "lastQuote", "todaysChange", "todaysChangePerc"} & set(found)


def test_the_day_before_is_in_the_shares_of_the_day(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    (tmp_path / "reference").mkdir()
    splits = [
        {"ticker": "AAPL", "execution_date": "2024-04-05", "split_from": 1, "split_to": 4},
        {"ticker": "AAPL", "execution_date": "2024-04-08", "split_from": 1, "split_to": 2},
    ]
    (tmp_path / "reference/splits.json").write_text(json.dumps(splits))
    found = snapshot(tape, OPEN + 90 * SECOND)
    assert (found["prevDay"]["c"], found["prevDay"]["v"], found["todaysChange"]) == (25, 4000, 77)


def test_a_plan_without_trades_and_quotes_sees_none_in_its_snapshots(tape: FlatFileTape) -> None:
    starter, developer = plan_named("starter"), plan_named("developer")
    at = OPEN + 17 * MINUTE  # its data are a quarter of an hour old
    assert snapshot(tape, at, plan=EVERYTHING)["day"]["c"] == 102
    found = snapshot(tape, at, plan=starter)
    assert not {"lastTrade", "lastQuote"} & set(found)
    assert (found["day"]["c"], found["min"]["c"], found["todaysChange"]) == (102, 102, 2)
    assert set(snapshot(tape, at, plan=developer)) - set(found) == {"lastTrade"}
    [item] = asked(tape, "/v3/snapshot", at, developer, **{"ticker.any_of": "AAPL"}).json()["results"]
    assert item["last_trade"]["timeframe"] == "DELAYED"
    basic = asked(tape, f"{MARKET}/tickers", at, plan_named("basic"))
    assert (basic.status_code, basic.json()["status"]) == (403, "NOT_AUTHORIZED")


def test_universal_snapshots_are_paged_filtered_and_named(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    first = asked(tape, "/v3/snapshot", END, limit=2).json()
    assert [item["ticker"] for item in first["results"]] == ["AAPL", "BRK.A"]
    second = asked(tape, first["next_url"].partition("http://exchange")[2], END).json()
    assert [item["ticker"] for item in second["results"]] == ["THIN"]
    assert "next_url" not in second
    down = asked(tape, "/v3/snapshot", END, order="desc", **{"ticker.gt": "AAPL"}).json()["results"]
    assert [item["ticker"] for item in down] == ["THIN", "BRK.A"]
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference/tickers.json").write_text('[{"ticker": "AAPL", "name": "Apple Inc."}]')
    found = asked(tape, "/v3/snapshot", END, **{"ticker.any_of": "XYZ,AAPL,THIN"}).json()["results"]
    assert [item.get("name") for item in found] == ["Apple Inc.", None, None]
    assert found[2] == {"ticker": "XYZ", "error": "NOT_FOUND", "message": "Ticker not found."}
    [alone] = asked(tape, "/v3/snapshot", END, ticker="O:AAPL251219C00150000").json()["results"]
    assert alone["error"] == "NOT_FOUND"
    options = asked(tape, "/v3/snapshot", END, type="options")
    assert options.status_code == 404
    assert "speaks for stocks" in options.json()["message"]


def test_the_status_of_the_market_follows_the_exchanges_clock(tape: FlatFileTape) -> None:
    def status(at: int) -> tuple[object, ...]:
        found = asked(tape, "/v1/marketstatus/now", at).json()
        return found["market"], found["earlyHours"], found["afterHours"], found["exchanges"]["nyse"]

    assert status(MIDNIGHT) == ("closed", False, False, "closed")
    assert status(MIDNIGHT + 4 * HOUR) == ("extended-hours", True, False, "extended-hours")
    assert status(OPEN) == ("open", False, False, "open")
    assert status(CLOSE) == ("extended-hours", False, True, "extended-hours")
    assert status(END) == ("closed", False, False, "closed")


@pytest.mark.judge
@pytest.mark.parametrize(
    ("path", "mock"),
    [
        (f"{MARKET}/tickers/ZWZZT", "v2/snapshot/locale/us/markets/stocks/tickers/AAPL.json"),
        (f"{MARKET}/tickers", "v2/snapshot/locale/us/markets/stocks/tickers/index.json"),
        (f"{MARKET}/tickers", "v2/snapshot/locale/us/markets/stocks/gainers.json"),
        ("/v2/last/trade/ZWZZT", "v2/last/trade/AAPL.json"),
        ("/v2/last/nbbo/ZWZZT", "v2/last/nbbo/AAPL.json"),
    ],
)
def test_shapes_are_those_of_the_vendors_captured_answers(shared: Path, path: str, mock: str) -> None:
    theirs = json.loads((shared / "payloads/rest/test_rest/mocks" / mock).read_bytes())
    ours = asked(simulated(7), path).json()
    allowed = {"fmv", "r", "f"}  # for business plans; of prints off the exchanges
    newer = {"dv", "dav", "ds", "request_id", "count", "c"}
    assert differences(theirs, ours) <= {f"- {key}" for key in allowed} | {f"+ {key}" for key in newer}


@pytest.mark.judge
def test_a_stock_in_a_universal_snapshot_has_the_vendors_shape(shared: Path) -> None:
    theirs = json.loads((shared / "payloads/rest/test_rest/mocks/v3/snapshot.json").read_bytes())
    ours = asked(simulated(7), "/v3/snapshot", **{"ticker.any_of": "ZWZZT,NONE"}).json()
    stock, lost = theirs["results"][1:]
    newer = {"ask_exchange", "bid_exchange", "price", "vwap", "last_updated", "decimal_volume", "last_minute"}
    newer |= {"regular_trading_change", "regular_trading_change_percent"}
    assert differences(stock, ours["results"][1]) <= {"- fmv", "- name"} | {f"+ {key}" for key in newer}
    assert set(lost) == set(ours["results"][0])
    assert set(theirs) <= set(ours)


def differences(theirs: object, ours: object) -> set[str]:
    """Keys that one has and the other lacks, and values of other types, at any depth."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        found = {f"- {key}" for key in theirs.keys() - ours.keys()}
        found |= {f"+ {key}" for key in ours.keys() - theirs.keys()}
        return found.union(*(differences(theirs[key], ours[key]) for key in theirs.keys() & ours.keys()))
    if isinstance(theirs, list) and isinstance(ours, list):
        return set().union(*(differences(theirs[0], row) for row in ours[:20])) if theirs and ours else set()
    kinds = {type(value) if not isinstance(value, int | float) else float for value in (theirs, ours)}
    return set() if len(kinds - {type(None)}) < 2 else {f"{theirs!r} is not {ours!r}"}
