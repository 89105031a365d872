"""REST answers: the vendor's captured bodies read field by field, and written back as the same rows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tapelab.errors import MalformedAnswer, UsageError
from tapelab.market.adjust import Dividend, Split
from tapelab.market.tables import SCHEMAS
from tapelab.massive import wire
from tapelab.massive.wire.fields import Kind

MOCKS = "payloads/rest/test_rest/mocks"
BARS = ["v2/aggs/ticker/AAPL/range/1/day/2005-04-01/2005-04-04.json", "v2/aggs/ticker/AAPL/prev.json"]
TRADES = ["v3/trades/AAPL&limit=2.json"]
QUOTES = [
    "v3/quotes/AAPL.json",
    "v3/quotes/AAPL&cursor=YXA9MTkyODgxNjYmYXM9JmxpbWl0PTEwJm9yZGVyPWRlc2Mmc29ydD10aW1lc3RhbXAmdGltZXN0YW1w"
    "Lmx0ZT0yMDIyLTA1LTEwVDE0JTNBMTElM0ExMi42OTA2NjExODla.json",
]

# Which key goes to which column: written here by hand, beside the code's own table.
COLUMN: dict[str, dict[str, str]] = {
    "bars": {
        "t": "timestamp",
        "T": "symbol",
        "o": "open",
        "h": "high",
        "l": "low",
        "c": "close",
        "v": "volume",
        "vw": "vwap",
        "n": "transactions",
    },
    "trades": {
        "conditions": "conditions",
        "correction": "correction",
        "exchange": "exchange",
        "id": "id",
        "participant_timestamp": "ts_participant",
        "price": "price",
        "sequence_number": "sequence",
        "sip_timestamp": "ts_event",
        "size": "size",
        "tape": "tape",
        "trf_id": "trf_id",
        "trf_timestamp": "ts_trf",
    },
    "quotes": {
        "ask_exchange": "ask_exchange",
        "ask_price": "ask",
        "ask_size": "ask_size",
        "bid_exchange": "bid_exchange",
        "bid_price": "bid",
        "bid_size": "bid_size",
        "participant_timestamp": "ts_participant",
        "sequence_number": "sequence",
        "sip_timestamp": "ts_event",
        "tape": "tape",
    },
}


NUMBERS = {"v", "o", "h", "l", "c", "t", "price", "size", "bid_price", "ask_size", "sip_timestamp"}
STAMPS = {"t", "sip_timestamp", "participant_timestamp", "trf_timestamp"}
REQUIRED: dict[str, tuple[str, ...]] = {
    "bars": ("t", "o", "h", "l", "c", "v"),
    "trades": ("sip_timestamp", "price", "size"),
    "quotes": ("sip_timestamp",),
}
READERS: dict[str, Callable[[bytes], object]] = {
    "bars": partial(wire.decode_page, kind="bars", symbol="AAPL"),
    "trades": partial(wire.decode_page, kind="trades", symbol="AAPL"),
    "quotes": partial(wire.decode_page, kind="quotes", symbol="AAPL"),
    "splits": wire.decode_splits,
    "dividends": wire.decode_dividends,
    "page": wire.next_url,
}


def bodies() -> list[tuple[Kind, str]]:
    return [
        *[("bars", path) for path in BARS],
        *[("trades", path) for path in TRADES],
        *[("quotes", path) for path in QUOTES],
    ]  # type: ignore[return-value]


def page(kind: Kind, **row: object) -> bytes:
    rows: dict[str, dict[str, object]] = {
        "bars": {"v": 1, "o": 1, "c": 1, "h": 1, "l": 1, "t": 1112331600000},
        "trades": {"price": 1.5, "size": 2, "sip_timestamp": 1651181822461979400},
        "quotes": {"sip_timestamp": 1652191872690386918},
    }
    kept = {key: value for key, value in {**rows[kind], **row}.items() if value is not ...}
    return json.dumps({"status": "OK", "request_id": "a", "results": [kept]}).encode()


@pytest.mark.judge
@pytest.mark.parametrize(("kind", "path"), bodies())
def test_every_field_the_vendor_sent_is_in_the_table(shared: Path, kind: Kind, path: str) -> None:
    body = (shared / MOCKS / path).read_bytes()
    sent = json.loads(body)
    got = wire.decode_page(body, kind, symbol="AAPL")
    assert got.table.schema.equals(SCHEMAS[kind])
    assert (got.count, got.request_id, got.next_url) == (
        len(sent["results"]),
        sent["request_id"],
        sent.get("next_url"),
    )
    for row, have in zip(sent["results"], got.table.to_pylist(), strict=True):
        assert have["symbol"] == "AAPL"
        for key, value in row.items():
            expected = value * 1_000_000 if key == "t" else value
            assert have[COLUMN[kind][key]] == expected, key
        filled = {COLUMN[kind][key] for key in row} | {"symbol", "session", "arrival"}
        empty = {name for name, value in have.items() if value is None}
        assert filled | empty | {"correction"} >= set(have)


@pytest.mark.judge
@pytest.mark.parametrize(("kind", "path"), bodies())
def test_the_vendors_rows_are_written_back_with_their_keys_in_their_order(
    shared: Path, kind: Kind, path: str
) -> None:
    body = (shared / MOCKS / path).read_bytes()
    rows = wire.encode_rows(wire.decode_page(body, kind, symbol="AAPL").table, kind)
    sent = [{k: v for k, v in row.items() if k != "T"} for row in json.loads(body)["results"]]
    assert [json.loads(row) for row in rows] == sent
    if path != "v2/aggs/ticker/AAPL/prev.json":  # the one body whose keys stand in another order
        assert [list(json.loads(row)) for row in rows] == [list(row) for row in sent]


@pytest.mark.judge
def test_a_real_day_bar_by_hand(shared: Path) -> None:
    body = (shared / MOCKS / BARS[0]).read_bytes()
    first, second = wire.decode_page(body, "bars").table.to_pylist()
    assert first == {
        "timestamp": 1112331600000000000,
        "session": date(2005, 4, 1),
        "symbol": "AAPL",
        "open": 1.5032,
        "high": 1.5064,
        "low": 1.4489,
        "close": 1.4604,
        "volume": 642646396.0,
        "vwap": 1.469,
        "transactions": 82132,
    }
    assert second["session"] == date(2005, 4, 4)  # behind the change to summer time


def test_nanoseconds_beyond_what_a_double_holds_stay_exact() -> None:
    for stamp in (1517562000016036581, 1652191872690386919, 1789718400831008119):
        assert float(stamp) != stamp
        table = wire.decode_page(page("trades", sip_timestamp=stamp), "trades", symbol="A").table
        assert table["ts_event"].to_pylist() == [stamp]
        assert b'"sip_timestamp":%d,' % stamp in wire.encode_rows(table, "trades")[0]


@pytest.mark.parametrize(
    ("written", "volume"),
    [("1.300741e+06", 1300741.0), ("25933.6", 25933.6), ("642646396.0", 642646396.0), ("7", 7.0)],
)
def test_volumes_are_read_in_every_form_the_vendor_has_used(written: str, volume: float) -> None:
    body = page("bars").replace(b'"v": 1,', f'"v": {written},'.encode())
    assert wire.decode_page(body, "bars", symbol="A").table["volume"].to_pylist() == [volume]


def test_a_fractional_size_is_read_from_its_exact_decimal_and_written_beside_the_cut_one() -> None:
    table = wire.decode_page(page("trades", size=3, decimal_size="3.000015"), "trades", symbol="A").table
    assert table["size"].to_pylist() == [3.000015]
    [row] = wire.encode_rows(table, "trades")
    assert b'"decimal_size":"3.000015"' in row
    assert b'"size":3}' in row
    [whole] = wire.encode_rows(wire.decode_page(page("trades"), "trades", symbol="A").table, "trades")
    assert b"decimal_size" not in whole


def test_an_empty_side_of_a_quote_has_price_zero_on_the_wire_and_none_in_the_table() -> None:
    body = page("quotes", bid_price=0, bid_size=0, bid_exchange=0, ask_price=21, ask_size=3)
    table = wire.decode_page(body, "quotes", symbol="A").table
    [quote] = table.to_pylist()
    assert (quote["bid"], quote["bid_size"], quote["ask"]) == (None, 0.0, 21.0)
    assert json.loads(wire.encode_rows(table, "quotes")[0]) == json.loads(body)["results"][0]
    assert b'"ask_price":21,' in wire.encode_rows(table, "quotes")[0]


def test_an_answer_that_found_nothing_is_an_empty_table() -> None:
    body = wire.envelope(
        None, ticker="A", queryCount=0, resultsCount=0, adjusted=True, request_id="a", count=0
    )
    assert b'results":' not in body
    page = wire.decode_page(body, "bars", symbol="A")
    assert (page.table, page.count, page.next_url) == (SCHEMAS["bars"].empty_table(), 0, None)
    assert wire.decode_page(b'{"status":"OK","results":[]}', "quotes", symbol="A").count == 0
    assert wire.decode_page(b'{"status":"OK","results":null}', "quotes", symbol="A").count == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("bars", b""),
        ("bars", b"null"),
        ("bars", b"[]"),
        ("bars", b"<html>502 Bad Gateway</html>"),
        ("bars", b"{"),
        ("bars", b"\xff\xfe"),
        ("bars", b"{}"),
        ("bars", b'{"status":"OK","results":{}}'),
        ("bars", b'{"status":"OK","results":[1]}'),
        ("bars", b'{"status":"OK","results":[' + b"[" * 10_000),
        ("bars", b'{"status":"ERROR","request_id":"a","error":"something broke"}'),
        ("bars", b'{"status":"NOT_AUTHORIZED","request_id":"a","message":"no"}'),
        ("bars", b'{"status":"OK","resultsCount":2,"request_id":"a"}'),
        ("bars", b'{"status":"OK","count":2,"request_id":"a"}'),
        ("bars", page("bars").replace(b'"results"', b'"resultsCount":2,"results"')),
        ("bars", page("bars").replace(b'"results"', b'"ticker":"MSFT","results"')),
        ("bars", page("bars")[:-20]),
        ("bars", page("bars", t=...)),
        ("bars", page("bars", o=...)),
        ("bars", page("bars", v="12")),
        ("bars", page("bars", v=-1)),
        ("bars", page("bars", v=float("nan"))),
        ("bars", page("bars", o=None)),
        ("bars", page("bars", t=1112331600)),  # seconds
        ("bars", page("bars", t=16799904000000000)),  # the documentation's 17 digits
        ("bars", page("bars", t=1112331600000000000)),  # nanoseconds
        ("bars", page("bars", t=1112331600000.5)),
        ("bars", page("bars", n=2**63)),
        ("trades", page("trades", sip_timestamp=1651181822461)),  # milliseconds
        ("trades", page("trades", sip_timestamp=16511818224619794)),  # 17 digits
        ("trades", page("trades", participant_timestamp=16511818224619794)),
        ("trades", page("trades", sip_timestamp=...)),
        ("trades", page("trades", price="1.5")),
        ("trades", page("trades", conditions=12)),
        ("trades", page("trades", conditions=[99999])),
        ("trades", page("trades", decimal_size="1e3")),
        ("trades", page("trades", decimal_size="١")),
        ("quotes", page("quotes", bid_exchange=70000)),
        ("quotes", page("quotes", tape=True)),
    ],
)
def test_what_the_protocol_does_not_promise_is_refused_whole(kind: Kind, body: bytes) -> None:
    with pytest.raises(MalformedAnswer, match=f"page of {kind}") as caught:
        wire.decode_page(body, kind, symbol="AAPL")
    assert caught.value.remedy


@pytest.mark.judge
@pytest.mark.parametrize(("kind", "path"), bodies())
def test_an_answer_that_was_cut_anywhere_is_no_page(shared: Path, kind: Kind, path: str) -> None:
    body = (shared / MOCKS / path).read_bytes().strip()
    for end in range(len(body)):
        with pytest.raises(MalformedAnswer, match=f"page of {kind}: (?!None)"):
            wire.decode_page(body[:end], kind, symbol="AAPL")


@pytest.mark.judge
@pytest.mark.parametrize(("kind", "path"), bodies())
def test_an_answer_that_lost_something_or_is_anothers_is_no_page(shared: Path, kind: Kind, path: str) -> None:
    sent = json.loads((shared / MOCKS / path).read_bytes())
    *others, last = sent["results"]
    number = len(sent["results"])
    bare = {key: value for key, value in sent.items() if key not in ("results", "resultsCount", "count")}
    broken: list[tuple[dict[str, Any], str]] = [
        (bare | {"count": number}, f"{number} rows are announced and none"),
        (bare | {"count": number, "results": None}, f"{number} rows are announced and none"),
        (bare | {"resultsCount": number, "results": []}, f"{number} rows are announced and "),
        (bare | {"resultsCount": number, "results": others}, f"{number} rows are announced and "),
        (sent | {"ticker": "MSFT"}, "AAPL was asked for and MSFT came"),
    ]
    broken += [
        (bare | {"results": [*others, last | {key: str(last[key])}]}, rf"\.{key}`")
        for key in NUMBERS & {*last}
    ]
    lost = [{k: v for k, v in last.items() if k != key} for key in REQUIRED[kind]]
    broken += [(bare | {"results": [*others, row]}, "missing") for row in lost]
    for key in STAMPS & {*last}:  # in the unit above the vendor's, and in the one below
        for stamp in (last[key] // 1_000, last[key] * 1_000):
            broken.append((bare | {"results": [*others, last | {key: stamp}]}, ""))
    for answer, said in broken:
        with pytest.raises(MalformedAnswer, match=f"page of {kind}: .*{said}") as caught:
            wire.decode_page(json.dumps(answer).encode(), kind, symbol="AAPL")
        assert caught.value.facts == {"what": kind}
        assert caught.value.remedy


@pytest.mark.judge
def test_bars_that_name_no_symbol_are_no_page(shared: Path) -> None:
    sent = json.loads((shared / MOCKS / BARS[0]).read_bytes())
    rows = [{key: value for key, value in row.items() if key != "T"} for row in sent["results"]]
    body = json.dumps({k: v for k, v in sent.items() if k != "ticker"} | {"results": rows}).encode()
    with pytest.raises(MalformedAnswer, match="page of bars: no symbol is named"):
        wire.decode_page(body, "bars")
    assert wire.decode_page(body, "bars", symbol="AAPL").count == len(rows)


@pytest.mark.judge
@pytest.mark.parametrize("what", READERS)
def test_a_refusal_is_no_page_and_is_quoted(shared: Path, what: str) -> None:
    for path in (shared / "payloads/errors").glob("*.json"):
        body = path.read_bytes()
        said = json.loads(body)
        words = f"status {said['status']}: {said.get('error') or said['message']}"
        with pytest.raises(MalformedAnswer, match=re.escape(f"page of {what}: {words}.")) as caught:
            READERS[what](body)
        assert caught.value.facts == {"what": what}
        with pytest.raises(MalformedAnswer, match=f"page of {what}: (?!None)"):
            READERS[what](body[:-3])


def test_what_the_vendor_says_in_a_good_status_is_passed_on() -> None:
    with pytest.raises(MalformedAnswer, match="ERROR: something broke"):
        wire.decode_page(b'{"status":"ERROR","error":"something broke"}', "bars", symbol="A")
    with pytest.raises(MalformedAnswer, match="no symbol"):
        wire.decode_page(page("bars"), "bars")
    with pytest.raises(UsageError, match="do not name their symbol"):
        wire.decode_page(page("trades"), "trades")


@pytest.mark.judge
def test_splits_are_read_and_written(shared: Path) -> None:
    body = (shared / MOCKS / "v3/reference/splits.json").read_bytes()
    sent = json.loads(body)
    splits = wire.decode_splits(body)
    assert splits[0] == Split("GOOGL", date(2022, 7, 18), 1, 20)
    assert len(splits) == len(sent["results"])
    for end in range(0, len(body.strip()), 7):
        with pytest.raises(MalformedAnswer, match=r"page of splits: (?!None)"):
            wire.decode_splits(body[:end])
    for key in ("ticker", "execution_date", "split_from", "split_to"):
        lost = [{k: v for k, v in row.items() if k != key} for row in sent["results"]]
        with pytest.raises(MalformedAnswer, match=f"page of splits: .*{key}"):
            wire.decode_splits(json.dumps(sent | {"results": lost}).encode())
    for nothing in ({"split_from": 0}, {"split_to": 0}, {"split_from": -1}, {"split_to": -1}):
        with pytest.raises(MalformedAnswer, match="page of splits: a split of GOOGL from"):
            wire.decode_splits(json.dumps(sent | {"results": [sent["results"][0] | nothing]}).encode())
    written = [json.loads(row) for row in wire.encode_splits(splits)]
    assert json.dumps(written) == json.dumps(sent["results"])  # 1, not 1.0
    assert wire.next_url(body) == sent.get("next_url")


@pytest.mark.judge
def test_dividends_are_read_and_written(shared: Path) -> None:
    body = (shared / MOCKS / "v3/reference/dividends.json").read_bytes()
    sent: dict[str, Any] = json.loads(body)
    dividends = wire.decode_dividends(body)
    assert dividends[0] == Dividend("CSSEN", date(2025, 6, 12), 0.59375, "USD")
    for end in range(0, len(body.strip()), 7):
        with pytest.raises(MalformedAnswer, match=r"page of dividends: (?!None)"):
            wire.decode_dividends(body[:end])
    for key in ("ticker", "ex_dividend_date", "cash_amount"):
        lost = [{k: v for k, v in row.items() if k != key} for row in sent["results"]]
        with pytest.raises(MalformedAnswer, match=f"page of dividends: .*{key}"):
            wire.decode_dividends(json.dumps(sent | {"results": lost}).encode())
    for dividend, row, written in zip(
        dividends, sent["results"], wire.encode_dividends(dividends), strict=True
    ):
        assert (dividend.symbol, dividend.ex_dividend_date.isoformat(), dividend.currency) == (
            row["ticker"],
            row["ex_dividend_date"],
            row.get("currency", "USD"),
        )
        assert Decimal(repr(dividend.cash_amount)) == Decimal(str(row["cash_amount"]))
        assert json.loads(written).items() <= {"currency": "USD", **row}.items()


@pytest.mark.parametrize(
    "row",
    [
        {"ticker": "A", "execution_date": "2020-02-30", "split_from": 1, "split_to": 4},
        {"ticker": "A", "execution_date": "2020-08-31", "split_from": 1, "split_to": 0},
        {"ticker": "A", "execution_date": "2020-08-31", "split_from": 1},
        {"ticker": "A", "execution_date": 20200831, "split_from": 1, "split_to": 4},
    ],
)
def test_a_split_that_makes_no_sense_is_refused(row: dict[str, object]) -> None:
    body = json.dumps({"status": "OK", "results": [row]}).encode()
    with pytest.raises(MalformedAnswer, match="page of splits"):
        wire.decode_splits(body)


def test_an_envelope_has_what_is_given_and_no_more() -> None:
    body = wire.envelope([b'{"a":1}', b'{"a":2}'], request_id="x", count=2, next_url=None)
    assert json.loads(body) == {
        "status": "OK",
        "request_id": "x",
        "count": 2,
        "results": [{"a": 1}, {"a": 2}],
    }
    assert json.loads(wire.envelope([], status="DELAYED")) == {"status": "DELAYED", "results": []}
