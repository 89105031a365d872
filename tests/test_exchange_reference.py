"""Reference data beside a tape: what the vendor's answers say of it, and what where there is none."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.exchange.rest.reference import split_factors
from tapelab.exchange.tape import DAY_BARS, FlatFileTape, simulated
from tapelab.market import adjust, bars, conditions, sessions
from tapelab.market.symbols import Market
from tapelab.massive import wire
from test_exchange_snapshots import CLOSE, DAY, END, MIDNIGHT, OPEN, _write, asked, differences, small_day

# Apple's own: the vendor gives 0.017857 for the split of 2005.
SPLITS = [
    {"ticker": "AAPL", "execution_date": "2020-08-31", "split_from": 1, "split_to": 4, "id": "E1"},
    {"ticker": "AAPL", "execution_date": "2014-06-09", "split_from": 1, "split_to": 7, "id": "E2"},
    {"ticker": "AAPL", "execution_date": "2005-02-28", "split_from": 1, "split_to": 2, "id": "E3"},
    {"ticker": "AIG", "execution_date": "2009-07-01", "split_from": 20, "split_to": 1, "id": "E4"},
    {"ticker": "CIG.C", "execution_date": "2022-05-02", "split_from": 3, "split_to": 4, "id": "E5",
     "adjustment_type": "stock_dividend"},
]  # fmt: skip
TICKERS = [
    {"ticker": "AA", "name": "Alcoa Corporation", "market": "stocks", "locale": "us", "type": "CS",
     "primary_exchange": "XNYS", "active": True, "currency_name": "usd", "cik": "0001675149",
     "composite_figi": "BBG00B3T3HD3", "share_class_figi": "BBG00B3T3HF1", "cusip": "013872106",
     "last_updated_utc": "2024-04-05T00:00:00Z", "list_date": "2016-10-18", "total_employees": 13600,
     "address": {"address1": "201 ISABELLA STREET", "city": "PITTSBURGH", "state": "PA"}},
    {"ticker": "SPY", "name": "SPDR S&P 500 ETF Trust", "market": "stocks", "locale": "us", "type": "ETF",
     "primary_exchange": "ARCX", "active": True, "currency_name": "usd", "list_date": "1993-01-22"},
    {"ticker": "TWTR", "name": "Twitter, Inc.", "market": "stocks", "locale": "us", "type": "CS",
     "primary_exchange": "XNYS", "active": False, "list_date": "2013-11-07",
     "delisted_utc": "2022-10-28T00:00:00Z"},
]  # fmt: skip
EVENTS = [
    {"name": "Meta Platforms, Inc. Class A Common Stock", "composite_figi": "BBG000MM2P62",
     "cik": "0001326801", "cusip": "30303M102",
     "events": [
         {"type": "ticker_change", "date": "2012-05-18", "ticker_change": {"ticker": "FB"}},
         {"type": "ticker_change", "date": "2022-06-09", "ticker_change": {"ticker": "META"}},
     ]},
    {"name": "Roundhill Ball Metaverse ETF", "composite_figi": "BBG011V1V1Z5", "cik": "0001415726",
     "events": [
         {"type": "ticker_change", "date": "2021-06-30", "ticker_change": {"ticker": "META"}},
         {"type": "ticker_change", "date": "2022-01-31", "ticker_change": {"ticker": "METV"}},
     ]},
]  # fmt: skip


def tape_with(path: Path, **files: object) -> FlatFileTape:
    """The small day with these reference files beside it."""
    tape = small_day(path)
    (path / "reference").mkdir(exist_ok=True)
    for name, rows in files.items():
        (path / f"reference/{name}.json").write_text(json.dumps(rows))
    return tape


def results(tape: FlatFileTape, path: str, now: int | None = None, **query: object) -> Any:
    answer = asked(tape, path, now, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("/v3/reference/splits", "splits"),
        ("/stocks/v1/splits", "splits"),
        ("/v3/reference/dividends", "dividends"),
        ("/stocks/v1/dividends", "dividends"),
        ("/v3/reference/tickers/AAPL", "tickers"),
        ("/v3/reference/tickers?type=CS", "tickers"),
        ("/v3/reference/tickers?active=false", "tickers"),
        ("/v3/reference/tickers?market=crypto", "tickers"),
        ("/v3/reference/tickers?cusip=37833100", "tickers"),
        ("/vX/reference/tickers/META/events", "ticker_events"),
    ],
)
def test_what_a_tape_does_not_have_is_an_error_that_names_the_file(
    tmp_path: Path, path: str, file: str
) -> None:
    answer = asked(small_day(tmp_path), path)
    assert (answer.status_code, answer.json()["status"]) == (404, "NOT_FOUND")
    assert f"reference/{file}.json" in answer.json()["message"]
    empty = asked(tape_with(tmp_path, **{file: []}), path)
    assert empty.status_code == 200 or empty.json()["message"] == "Ticker not found."


def test_the_simulated_market_knows_that_it_has_no_splits_and_knows_no_names() -> None:
    assert asked(simulated(7), "/v3/reference/splits").json()["results"] == []
    refused = asked(simulated(7), "/v3/reference/tickers/ZVZZT")
    assert "a folder of flat files" in refused.json()["message"]


def test_a_damaged_reference_file_is_named(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, splits=[{"ticker": "AAPL", "execution_date": "2020-08-31", "split_from": 0}])
    answer = asked(tape, "/v3/reference/splits")
    assert answer.status_code == 500
    assert "splits.json" in answer.json()["error"]
    # What needs it says so too; what does not goes on.
    assert asked(tape, "/v2/aggs/ticker/AAPL/range/1/day/2024-04-04/2024-04-05").status_code == 500
    raw = asked(tape, "/v2/aggs/ticker/AAPL/range/1/day/2024-04-04/2024-04-05", adjusted="false")
    assert raw.status_code == 200


def test_a_reference_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, splits=[])
    assert results(tape, "/v3/reference/splits") == []
    tape_with(tmp_path, splits=SPLITS)
    assert len(results(tape, "/v3/reference/splits")) == 5


def test_splits_of_the_newer_endpoint_have_their_cumulative_factor(tmp_path: Path) -> None:
    found = results(
        tape_with(tmp_path, splits=SPLITS), "/stocks/v1/splits", sort="ticker.asc,execution_date.asc"
    )
    assert [(row["id"], row["historical_adjustment_factor"], row["adjustment_type"]) for row in found] == [
        ("E3", 0.017857, "forward_split"),
        ("E2", 0.035714, "forward_split"),
        ("E1", 0.25, "forward_split"),
        ("E4", 20, "reverse_split"),
        ("E5", 0.75, "stock_dividend"),
    ]


def test_each_generation_shows_its_own_keys(tmp_path: Path) -> None:
    newer = [{**row, "historical_adjustment_factor": 0.5} for row in SPLITS]
    tape = tape_with(tmp_path, splits=newer, dividends=[DIVIDENDS[0]])
    assert {frozenset(row) for row in results(tape, "/v3/reference/splits")} == {
        frozenset({"execution_date", "id", "split_from", "split_to", "ticker"})
    }
    # What the row says of itself stands.
    assert {row["historical_adjustment_factor"] for row in results(tape, "/stocks/v1/splits")} == {0.5}
    [older] = results(tape, "/v3/reference/dividends")
    assert (older["dividend_type"], "distribution_type" in older) == ("CD", False)
    [new] = results(tape, "/stocks/v1/dividends")
    assert (new["distribution_type"], "dividend_type" in new) == ("recurring", False)


splits_of_a_ticker = st.lists(
    st.builds(
        lambda day, one, other: {
            "ticker": "AAPL",
            "execution_date": (date(2024, 1, 1) + timedelta(days=day)).isoformat(),
            "split_from": one,
            "split_to": other,
        },
        st.integers(0, 60),
        st.integers(1, 20),
        st.integers(1, 20),
    ),
    max_size=6,
)


@given(splits_of_a_ticker, st.integers(-1, 61))
def test_the_first_factor_after_a_day_is_what_adjusted_bars_are_multiplied_by(
    rows: list[dict[str, Any]], day: int
) -> None:
    at = date(2024, 1, 1) + timedelta(days=day)
    factors = split_factors(rows).get("AAPL", {})
    first = next((factors[when] for when in sorted(factors) if when > at.isoformat()), 1.0)
    bar = bars.from_trades(small_print(at), "1d")
    known = wire.decode_splits(wire.envelope([json.dumps(row).encode() for row in rows]))
    assert adjust.apply(bar, known).column("close")[0].as_py() == pytest.approx(100 * first)


def small_print(day: date) -> Any:
    stamp = sessions.instant(day, sessions.REGULAR_CLOSE, sessions.NEW_YORK) - 1
    header = ",".join(wire.PRODUCTS["us_stocks_sip/trades_v1"].header)
    text = f"{header}\nAAPL,,0,11,1,{stamp},100,1,{stamp},100,3,0,0\n"
    return wire.read_flat_file(text.encode(), "us_stocks_sip/trades_v1", day=day)


# The vendor's example: 0.997899 for the earlier of these.
DIVIDENDS: list[Mapping[str, Any]] = [
    {"ticker": "AAPL", "ex_dividend_date": "2025-11-10", "cash_amount": 0.26, "currency": "USD",
     "declaration_date": "2025-10-30", "record_date": "2025-11-10", "pay_date": "2025-11-13",
     "frequency": 4, "dividend_type": "CD", "id": "D2"},
    {"ticker": "AAPL", "ex_dividend_date": "2025-08-11", "cash_amount": 0.26, "currency": "USD",
     "frequency": 4, "dividend_type": "CD", "id": "D1"},
    {"ticker": "MSFT", "ex_dividend_date": "2025-08-21", "cash_amount": 0.83, "currency": "USD",
     "frequency": 4, "dividend_type": "SC", "id": "D3"},
]  # fmt: skip


def closes(path: Path, *known: tuple[date, float]) -> None:
    for day, close in known:
        stamp = sessions.day_start(Market.STOCKS, day)
        header = ",".join(wire.PRODUCTS[DAY_BARS].header)
        _write(path, DAY_BARS, day, [header, f"AAPL,1,{close},{close},{close},{close},{stamp},1"])


def test_dividends_of_the_newer_endpoint_have_their_factor_where_the_tape_has_the_closes(
    tmp_path: Path,
) -> None:
    tape = tape_with(tmp_path, dividends=DIVIDENDS)
    before = results(tape, "/stocks/v1/dividends")
    assert [row["id"] for row in before] == ["D2", "D1", "D3"]  # by ticker
    assert not any("historical_adjustment_factor" in row for row in before)
    assert not any("split_adjusted_cash_amount" in row for row in before)
    closes(tmp_path, (date(2025, 8, 8), 229.35))
    # The later one is not known, so the product of both is not.
    assert "historical_adjustment_factor" not in results(FlatFileTape(tmp_path), "/stocks/v1/dividends")[1]
    closes(tmp_path, (date(2025, 11, 7), 268.47))
    found = results(FlatFileTape(tmp_path), "/stocks/v1/dividends", ticker="AAPL")
    assert [row["historical_adjustment_factor"] for row in found] == [0.999032, 0.997899]
    assert [row["distribution_type"] for row in before] == ["recurring", "recurring", "special"]


def test_cash_is_given_in_shares_of_today_where_the_tape_knows_splits(tmp_path: Path) -> None:
    rows = [
        {"ticker": "AAPL", "ex_dividend_date": day, "cash_amount": 0.82}
        for day in ("2020-08-30", "2020-08-31", "2014-06-08")
    ]
    tape = tape_with(tmp_path, dividends=rows, splits=SPLITS)
    found = results(tape, "/stocks/v1/dividends", sort="ex_dividend_date.desc")
    # On the day of a split the cash is paid on new shares.
    assert [row["split_adjusted_cash_amount"] for row in found] == [0.82, 0.205, 0.029286]


def test_lists_are_filtered_sorted_and_paged_as_the_vendors(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, splits=SPLITS, dividends=DIVIDENDS)

    def ids(path: str, **query: object) -> list[str]:
        return [row["id"] for row in results(tape, path, **query)]

    old, new = "/v3/reference/splits", "/stocks/v1/splits"
    assert ids(old) == ids(new) == ["E5", "E1", "E2", "E4", "E3"]
    assert ids(old, order="asc", sort="ticker") == ["E1", "E2", "E3", "E4", "E5"]
    assert ids(old, reverse_split="true") == ["E4"]
    assert ids(old, ticker="", execution_date="") == ids(old)  # an empty filter asks for nothing
    assert ids(old, **{"execution_date.gte": "2014-06-09", "execution_date.lt": "2022-05-02"}) == ["E1", "E2"]
    assert ids(old, **{"ticker.gt": "AAPL", "ticker.lte": "CIG.C"}) == ["E5", "E4"]
    assert ids(new, **{"ticker.any_of": "AIG,CIG.C"}) == ["E5", "E4"]
    assert ids(new, **{"adjustment_type.any_of": "reverse_split,stock_dividend"}) == ["E5", "E4"]
    assert ids("/stocks/v1/dividends", frequency=4, distribution_type="special") == ["D3"]
    assert ids("/v3/reference/dividends", **{"cash_amount.gt": 0.5}) == ["D3"]
    assert ids("/v3/reference/dividends", pay_date="2025-11-13") == ["D2"]
    assert asked(tape, old).json().keys() == {"status", "request_id", "results"}

    first = asked(tape, new, limit=2, sort="ticker.asc", **{"ticker.lt": "CIG"}).json()
    cursor = urlsplit(first["next_url"]).query.removeprefix("cursor=")
    held = dict(parse_qsl(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()))
    assert held == {"ap": "2", "limit": "2", "sort": "ticker.asc", "ticker.lt": "CIG"}
    second = asked(tape, first["next_url"].partition("http://exchange")[2]).json()
    assert [row["id"] for row in first["results"] + second["results"]] == ["E1", "E2", "E3", "E4"]
    assert "next_url" not in second


def test_tickers_are_found_by_what_is_known_of_them(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, tickers=TICKERS)

    def found(**query: object) -> list[str]:
        return [row["ticker"] for row in results(tape, "/v3/reference/tickers", **query)]

    assert found() == ["AA", "SPY"]
    assert found(active="false") == ["TWTR"]
    assert found(type="ETF") == found(exchange="ARCX") == ["SPY"]
    assert found(cik=1675149) == found(cik="0001675149") == found(cusip=13872106) == ["AA"]
    assert found(search="trust") == ["SPY"]
    assert found(ticker="AA") == found(**{"ticker.lt": "B"}) == ["AA"]
    assert found(order="desc", sort="name") == ["SPY", "AA"]
    assert found(market="otc") == []
    # Twitter was listed after Alcoa's parent split, and is gone since 2022.
    assert found(date="2015-01-02") == ["SPY", "TWTR"]
    assert found(date="2023-01-03") == ["AA", "SPY"]
    [row] = results(tape, "/v3/reference/tickers", ticker="AA")
    assert not {"cusip", "address", "list_date", "total_employees"} & set(row)


def test_a_tape_without_a_list_of_tickers_knows_its_symbols(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    answer = asked(tape, "/v3/reference/tickers", market="stocks", search="rk").json()
    known = {"ticker": "BRK.A", "market": "stocks", "locale": "us", "active": True, "currency_name": "usd"}
    assert (answer["results"], answer["count"]) == ([known], 1)


def test_the_details_of_a_ticker_are_those_of_its_company_at_the_date(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, tickers=TICKERS)
    found = results(tape, "/v3/reference/tickers/AA")
    assert (found["total_employees"], found["address"]["city"]) == (13600, "PITTSBURGH")
    assert "cusip" not in found
    assert results(tape, "/v3/reference/tickers/TWTR", date="2020-10-01")["name"] == "Twitter, Inc."
    for query in ({"date": "2023-01-01"}, {"date": "2010-01-04"}, {}):
        gone = asked(tape, "/v3/reference/tickers/TWTR", **query)
        assert (gone.status_code, gone.json()["message"]) == (404, "Ticker not found.")


@pytest.mark.parametrize("wanted", ["META", "BBG000MM2P62", "30303M102"])
def test_the_events_of_a_ticker_are_those_of_who_has_it_today(tmp_path: Path, wanted: str) -> None:
    tape = tape_with(tmp_path, ticker_events=EVENTS)
    found = results(tape, f"/vX/reference/tickers/{wanted}/events", types="ticker_change")
    assert found == {
        "name": "Meta Platforms, Inc. Class A Common Stock",
        "composite_figi": "BBG000MM2P62",
        "cik": "0001326801",
        "events": [
            {"type": "ticker_change", "date": "2022-06-09", "ticker_change": {"ticker": "META"}},
            {"type": "ticker_change", "date": "2012-05-18", "ticker_change": {"ticker": "FB"}},
        ],
    }
    assert asked(tape, "/vX/reference/tickers/FB/events").json()["message"] == "Ticker not found."


def test_official_prices_open_and_close_the_day(tmp_path: Path) -> None:
    official = [
        {"symbol": "AAPL", "from": "2024-04-05", "open": 100.7, "close": 103.6},
        {"symbol": "THIN", "from": "2024-04-04", "open": 9, "close": 9, "preMarket": 8.5, "afterHours": 9.5},
    ]
    tape = tape_with(tmp_path, official=official)
    built = asked(small_day(tmp_path / "without"), "/v1/open-close/AAPL/2024-04-05").json()
    assert built == {
        "status": "OK", "from": "2024-04-05", "symbol": "AAPL", "open": 101, "high": 103, "low": 101,
        "close": 103, "volume": 30450.5, "preMarket": 100, "afterHours": 103.2, "adjusted": False,
    }  # fmt: skip
    told = asked(tape, "/v1/open-close/AAPL/2024-04-05", adjusted="false").json()
    assert told == {
        "status": "OK", "from": "2024-04-05", "symbol": "AAPL", "open": 100.7, "high": 103.6, "low": 100.7,
        "close": 103.6, "volume": 30450.5, "preMarket": 100, "afterHours": 103.2,
    }  # fmt: skip
    day = "/v2/aggs/ticker/AAPL/range/1/day/2024-04-05/2024-04-05"
    [bar] = asked(tape, day).json()["results"]
    assert (bar["o"], bar["c"], bar["t"]) == (100.7, 103.6, MIDNIGHT // 10**6)
    [hour, *_] = asked(tape, day.replace("day", "hour")).json()["results"]
    assert hour["o"] == 100
    [aapl, other, _] = asked(tape, "/v2/aggs/grouped/locale/us/market/stocks/2024-04-05").json()["results"]
    assert (aapl["T"], aapl["o"], other["T"], other["o"]) == ("AAPL", 100.7, "BRK.A", 45)
    thin = asked(tape, "/v1/open-close/THIN/2024-04-04").json()
    assert (thin["open"], thin["preMarket"], thin["afterHours"]) == (9, 8.5, 9.5)
    snapshot = asked(tape, "/v2/snapshot/locale/us/markets/stocks/tickers/AAPL", END).json()["ticker"]
    assert snapshot["day"]["o"] == 100.7


def test_grouped_and_previous_days_are_stamped_at_the_close(tmp_path: Path) -> None:
    tape = tape_with(tmp_path, splits=[{**SPLITS[0], "execution_date": "2024-04-05"}])
    grouped = asked(tape, "/v2/aggs/grouped/locale/us/market/stocks/2024-04-04").json()
    assert [row["T"] for row in grouped["results"]] == ["AAPL", "BRK.A", "GONE", "THIN"]
    assert (grouped["queryCount"], grouped["resultsCount"], grouped["count"]) == (4, 4, 4)
    apple = grouped["results"][0]
    assert (apple["c"], apple["v"], grouped["adjusted"]) == (25, 4000, True)
    assert {row["t"] for row in grouped["results"]} == {1712260800000}  # 2024-04-04 16:00 New York
    raw = asked(tape, "/v2/aggs/ticker/AAPL/prev", adjusted="false").json()
    assert (raw["ticker"], raw["adjusted"], raw["results"][0]["c"]) == ("AAPL", False, 100)
    assert asked(tape, "/v2/aggs/ticker/AAPL/prev").json()["results"][0] == apple
    # A Saturday has no bars; of a session that the tape does not hold, nobody here knows.
    saturday = asked(tape, "/v2/aggs/grouped/locale/us/market/stocks/2024-04-06").json()
    assert (saturday["resultsCount"], "results" in saturday) == (0, False)
    unknown = asked(tape, "/v2/aggs/grouped/locale/us/market/stocks/2024-04-03")
    assert (unknown.status_code, "2024-04-03" in unknown.json()["message"]) == (404, True)
    assert asked(tape, "/v2/aggs/ticker/AAPL/prev", MIDNIGHT - 1).status_code == 404
    assert asked(tape, "/v2/aggs/ticker/NEW/prev").json()["resultsCount"] == 0
    assert asked(tape, "/v1/open-close/NEW/2024-04-05").status_code == 404
    adjusted = asked(tape, "/v1/open-close/AAPL/2024-04-04").json()
    assert (adjusted["close"], adjusted["volume"], "adjusted" in adjusted) == (25, 4000, False)


def test_bars_that_the_tape_cannot_make_are_refused_and_seconds_come_from_trades(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    path = "/v2/aggs/ticker/AAPL/range/1/{}/2024-04-04/2024-04-04"
    for span, words in (("minute", "no minute bars and no trades"), ("second", "no trades to make second")):
        answer = asked(tape, path.format(span))
        assert (answer.status_code, words in answer.json()["message"]) == (404, True)
    at = f"{OPEN // 10**6}/{CLOSE // 10**6 - 1}"
    seconds = asked(tape, f"/v2/aggs/ticker/AAPL/range/1/second/{at}").json()["results"]
    assert [(row["t"] * 10**6 - OPEN) // 10**9 for row in seconds] == [1, 70, 6 * 3600 + 30 * 60 - 1]


def test_the_conditions_of_the_directory_are_those_by_which_bars_are_built(tmp_path: Path) -> None:
    rows = {row["id"]: row for row in results(small_day(tmp_path), "/v3/reference/conditions", limit=1000)}
    for condition in conditions.CONDITIONS:
        told = rows[condition.id]["update_rules"]["consolidated"]
        header = ",".join(wire.PRODUCTS["us_stocks_sip/trades_v1"].header)
        text = f"{header}\nAAPL,{condition.id},0,11,1,{OPEN},100,1,{OPEN},100,3,0,0\n"
        trades = wire.read_flat_file(text.encode(), "us_stocks_sip/trades_v1", day=DAY)
        rules = conditions.rules_of(trades, waive_extended_hours=False)
        assert told == {
            "updates_high_low": bool(rules.high_low[0]),
            "updates_open_close": bool(rules.open_close[0]),
            "updates_volume": bool(rules.volume[0]),
        }


@pytest.mark.parametrize(
    ("ids", "high_low", "open_close", "volume"),
    [
        ({1, 3, 4, 8, 9, 11, 14, 23, 25, 27, 28, 30, 34, 36, 41}, True, True, True),
        ({5, 10, 22, 29, 33}, True, False, True),
        ({2, 7, 12, 13, 20, 21, 37, 52, 53}, False, False, True),
        ({15, 16}, False, False, False),
        ({38}, True, True, False),
    ],
)
def test_conditions_move_what_the_vendors_table_says(
    ids: set[int], high_low: bool, open_close: bool, volume: bool
) -> None:
    table = {condition.id: condition.consolidated for condition in conditions.CONDITIONS}
    assert {table[number] for number in ids} == {(high_low, open_close, volume)}


def test_conditions_are_paged_and_found_by_tape(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    first = asked(tape, "/v3/reference/conditions").json()
    assert ([row["id"] for row in first["results"]], first["count"]) == ([*range(1, 11)], 10)
    assert "next_url" in first
    [odd] = results(tape, "/v3/reference/conditions", id=37)
    assert (odd["name"], odd["sip_mapping"]) == ("Odd Lot Trade", {"CTA": "I", "UTP": "I"})
    cta = results(tape, "/v3/reference/conditions", sip="CTA", limit=1000)
    assert all("CTA" in row["sip_mapping"] for row in cta)
    for query in ({"asset_class": "options"}, {"data_type": "nbbo"}):
        assert asked(tape, "/v3/reference/conditions", **query).status_code == 404


def test_holidays_lie_ahead_of_the_exchanges_clock(tmp_path: Path) -> None:
    tape = small_day(tmp_path)
    rows = [row for row in asked(tape, "/v1/marketstatus/upcoming").json() if row["exchange"] == "NYSE"]
    assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)
    assert {(row["date"], row["name"], row["status"]) for row in rows} >= {
        ("2024-05-27", "Memorial Day", "closed"),
        ("2024-06-19", "Juneteenth", "closed"),
        ("2024-07-03", "Independence Day", "early-close"),
        ("2024-07-04", "Independence Day", "closed"),
        ("2024-11-29", "Thanksgiving", "early-close"),
    }
    early = next(row for row in rows if row["date"] == "2024-11-29")
    assert (early["open"], early["close"]) == ("2024-11-29T14:30:00.000Z", "2024-11-29T18:00:00.000Z")
    assert rows[0]["date"] > "2024-04-05"


MOCKS = [
    ("/v3/reference/exchanges", {}, "v3/reference/exchanges.json"),
    ("/v3/reference/tickers/types", {}, "v3/reference/tickers/types.json"),
    ("/v3/reference/conditions", {}, "v3/reference/conditions&asset_class=stocks.json"),
]


@pytest.mark.judge
@pytest.mark.parametrize(("path", "query", "mock"), MOCKS)
def test_directories_are_the_vendors_word_for_word(
    tmp_path: Path, shared: Path, path: str, query: Mapping[str, str], mock: str
) -> None:
    theirs = json.loads((shared / "payloads/rest/test_rest/mocks" / mock).read_bytes())
    ours = asked(small_day(tmp_path), path, **query).json()
    assert ours["results"] == theirs["results"]
    assert ours["count"] == theirs["count"]


@pytest.mark.judge
@pytest.mark.parametrize(
    ("path", "mock", "file"),
    [
        ("/v3/reference/splits", "v3/reference/splits.json", "splits"),
        ("/v3/reference/dividends", "v3/reference/dividends.json", "dividends"),
        ("/v3/reference/tickers", "v3/reference/tickers.json", "tickers"),
        ("/v3/reference/tickers/AAPL", "v3/reference/tickers/AAPL.json", "tickers"),
        ("/vX/reference/tickers/META/events",
         "vX/reference/tickers/META/events&types=ticker_change.json", "ticker_events"),
    ],
)  # fmt: skip
def test_the_vendors_captured_rows_come_back_as_they_were(
    tmp_path: Path, shared: Path, path: str, mock: str, file: str
) -> None:
    theirs = json.loads((shared / "payloads/rest/test_rest/mocks" / mock).read_bytes())["results"]
    tape = tape_with(tmp_path, **{file: theirs if isinstance(theirs, list) else [theirs]})
    ours = results(tape, path)
    if isinstance(theirs, list):
        assert sorted(ours, key=json.dumps) == sorted(theirs, key=json.dumps)
    else:
        assert ours == theirs


@pytest.mark.judge
@pytest.mark.parametrize(
    ("path", "mock", "newer"),
    [
        ("/v2/aggs/ticker/ZWZZT/prev", "v2/aggs/ticker/AAPL/prev.json", set()),
        ("/v2/aggs/grouped/locale/us/market/stocks/2026-10-08",
         "v2/aggs/grouped/locale/us/market/stocks/2005-04-04&adjusted=true.json", set()),
        ("/v1/open-close/ZWZZT/2026-10-08", "v1/open-close/AAPL/2005-04-01&adjusted=true.json", set()),
        ("/v1/marketstatus/now", "v1/marketstatus/now.json", {"- currencies"}),
        ("/v1/marketstatus/upcoming", "v1/marketstatus/upcoming.json", {"+ open", "+ close"}),
    ],
)  # fmt: skip
def test_days_and_the_market_have_the_vendors_shape(
    shared: Path, path: str, mock: str, newer: set[str]
) -> None:
    theirs = json.loads((shared / "payloads/rest/test_rest/mocks" / mock).read_bytes())
    assert differences(theirs, asked(simulated(7), path).json()) <= newer
