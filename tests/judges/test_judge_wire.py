"""The market on paper through each of our own readers and writers: files, REST answers, stream, callbacks."""

from __future__ import annotations

import gzip
import json
from datetime import date
from typing import Any

import httpx
import papers
import pyarrow.compute as pc
import pytest
from clients import WITHIN, Listener, Start, run
from papers import DAYS, MILLISECOND, NEW_DAY, OLD_DAY, SIDES, SYMBOLS, Paper, Row, codes, unless_zero

from tapelab.exchange import Exchange
from tapelab.market.events import Bar, Quote, Trade
from tapelab.massive import wire
from tapelab.massive.wire.fields import Channel, Kind

pytestmark = pytest.mark.judge

Record = dict[str, object]
KINDS: dict[str, Kind] = {"trades_v1": "trades", "quotes_v1": "quotes", "minute_aggs_v1": "bars"}
STREAMED: list[tuple[str, Channel]] = [("trades_v1", "T"), ("quotes_v1", "Q"), ("minute_aggs_v1", "AM")]


def trade(row: Row) -> Record:
    """A row of trades in our own columns."""
    return {
        "symbol": row["ticker"],
        "ts_event": int(row["sip_timestamp"]),
        "price": float(row["price"]),
        "size": float(row["size"]),
        "exchange": int(row["exchange"]),
        "conditions": codes(row["conditions"]),
        "sequence": int(row["sequence_number"]),
        "id": row["id"],
        "tape": int(row["tape"]),
        "correction": int(row["correction"] or 0),
        "ts_participant": int(row["participant_timestamp"]),
        "trf_id": unless_zero(row["trf_id"]),
        "ts_trf": unless_zero(row["trf_timestamp"]),
    }


def quote(row: Row) -> Record:
    """A row of quotes in our own columns: an empty side has no price."""
    return {
        "symbol": row["ticker"],
        "ts_event": int(row["sip_timestamp"]),
        **{side: float(row[f"{side}_price"]) or None for side in SIDES},
        **{f"{side}_size": float(row[f"{side}_size"]) for side in SIDES},
        **{f"{side}_exchange": int(row[f"{side}_exchange"]) for side in SIDES},
        "sequence": int(row["sequence_number"]),
        "conditions": codes(row["conditions"]),
        "indicators": codes(row["indicators"]),
        "tape": int(row["tape"]),
        "ts_participant": int(row["participant_timestamp"]),
        "ts_trf": None,
    }


def bar(row: Row) -> Record:
    """A row of bars in our own columns."""
    return {
        "symbol": row["ticker"],
        "timestamp": int(row["window_start"]),
        **{name: float(row[name]) for name in ("open", "high", "low", "close", "volume")},
        "transactions": int(row["transactions"]),
    }


RECORDS = {"trades_v1": trade, "quotes_v1": quote, "minute_aggs_v1": bar}


def streamed(record: Record, product: str) -> Record:
    """What is left of a record behind the stream, by the vendor's description of its events."""

    def whole(value: Any) -> Any:
        return None if value is None else value // MILLISECOND * MILLISECOND

    if product == "minute_aggs_v1":
        return record | {"transactions": None}
    left = record | {"ts_event": whole(record["ts_event"])}
    if product == "trades_v1":
        clocks = {name: whole(record[name]) for name in ("ts_participant", "ts_trf")}
        return left | clocks | {"correction": None}
    first = record["conditions"]
    return left | {"conditions": first[:1] if isinstance(first, list) else None, "ts_participant": None}


def cut(table: Any, like: Record) -> list[Record]:
    """A table's rows, as far as paper knows them."""
    return list(table.select(list(like)).to_pylist())


@pytest.mark.parametrize("day", DAYS)
@pytest.mark.parametrize("product", RECORDS)
def test_a_file_is_read_as_it_stands_on_paper(paper: Paper, product: str, day: date) -> None:
    name = f"us_stocks_sip/{product}"
    table = wire.read_flat_file(paper.folder / papers.key(product, day), name, day=day)
    expected = [RECORDS[product](row) for row in paper.rows(product, None, day)]
    assert cut(table, expected[0]) == expected
    if product == "minute_aggs_v1":
        assert set(table["session"].to_pylist()) == {day}
    else:
        assert table["arrival"].to_pylist() == list(range(len(expected)))


@pytest.mark.parametrize("product", RECORDS)
def test_a_file_is_written_as_it_stands_on_paper(paper: Paper, product: str) -> None:
    name, path = f"us_stocks_sip/{product}", paper.folder / papers.key(product, NEW_DAY)
    text = gzip.decompress(path.read_bytes())
    table = wire.read_flat_file(text, name, day=NEW_DAY)
    assert wire.write_flat_file(table, name) == wire.write_flat_file(table, name, style="decimal") == text
    if product == "minute_aggs_v1":
        old = gzip.decompress((paper.folder / papers.key(product, OLD_DAY)).read_bytes())
        table = wire.read_flat_file(old, name, day=OLD_DAY)
        assert wire.write_flat_file(table, name) == wire.write_flat_file(table, name, style="whole") == old


@pytest.mark.parametrize("product", RECORDS)
def test_a_rest_answer_is_read_as_it_stands_on_paper(exchange: Exchange, paper: Paper, product: str) -> None:
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    for symbol in SYMBOLS:
        path = f"/v3/{KINDS[product]}/{symbol}?order=asc&limit=50000"
        if product == "minute_aggs_v1":
            span = f"{OLD_DAY}/{NEW_DAY}?adjusted=false&limit=50000"
            path = f"/v2/aggs/ticker/{symbol}/range/1/minute/{span}"
        body = httpx.get(exchange.rest_url + path, headers=headers, timeout=WITHIN).content
        expected = [RECORDS[product](row) for row in paper.rows(product, symbol)]
        page = wire.decode_page(body, KINDS[product], symbol=symbol)
        assert cut(page.table, expected[0]) == expected
        assert (page.next_url, page.count) == (None, len(expected))
        if product != "minute_aggs_v1":
            assert page.table["arrival"].to_pylist() == list(range(len(expected)))
        assert page.request_id == json.loads(body)["request_id"]


@pytest.mark.parametrize(("product", "channel"), STREAMED)
@pytest.mark.parametrize("day", DAYS)
def test_what_the_stream_cannot_carry_is_known(
    paper: Paper, product: str, channel: Channel, day: date
) -> None:
    table = wire.read_flat_file(paper.folder / papers.key(product, day), f"us_stocks_sip/{product}", day=day)
    expected = [streamed(RECORDS[product](row), product) for row in paper.rows(product, None, day)]
    if "ts_recv" in table.column_names:  # nobody received these, but somebody might have
        column = table.column_names.index("ts_recv")
        table = table.set_column(column, table.schema.field(column), [list(range(len(table)))])
    for name in {"bid_size", "ask_size"} & set(table.column_names):  # the stream has whole ones
        column = table.column_names.index(name)
        table = table.set_column(column, table.schema.field(column), pc.add(pc.trunc(table[name]), 0.75))
    table = table.replace_schema_metadata({"origin": "paper"})
    left = wire.as_streamed(table, channel)
    assert cut(left, expected[0]) == expected
    assert left.schema.equals(table.schema, check_metadata=True)
    for name in {"arrival", "ts_recv", "session"} & set(table.column_names):
        assert left[name].equals(table[name])


def test_what_the_exchange_says_is_read_as_it_stands_on_paper(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder)
    decoder = wire.FrameDecoder()
    heard: list[wire.stream.StreamEvent] = []
    count = sum(len(paper.rows(product, symbol, NEW_DAY)) for product, _ in STREAMED for symbol in SYMBOLS)

    class Ear(Listener):
        def loads(self, text: str) -> Any:
            decoder.feed(text.encode(), ts_recv=5, arrival=0)
            events = wire.decode_events(text.encode(), ts_recv=7)
            heard.extend(event for event in events if not isinstance(event, dict))
            return super().loads(text)

    async def listen() -> None:
        async with Ear(exchange, *(f"{channel}.*" for _, channel in STREAMED)) as ear:
            await ear.events_heard(count)

    run(listen())
    tables = decoder.take()
    assert (decoder.malformed, decoder.unknown) == (0, {})
    assert set(tables["trades"]["ts_recv"].to_pylist()) == {5}
    for product, _ in STREAMED:
        kind = KINDS[product]
        for symbol in SYMBOLS:
            records = [streamed(RECORDS[product](r), product) for r in paper.rows(product, symbol, NEW_DAY)]
            found = [row for row in cut(tables[kind], records[0]) if row["symbol"] == symbol]
            assert found == records
            called = [event for event in heard if event[0] == symbol and type(event) is OBJECTS[kind]]
            assert [event[:2] for event in called] == [
                (symbol, record["timestamp" if kind == "bars" else "ts_event"]) for record in records
            ]
            assert [said_of(event) for event in called] == [kept_of(record, kind) for record in records]


OBJECTS: dict[Kind, type] = {"trades": Trade, "quotes": Quote, "bars": Bar}


def said_of(event: Any) -> tuple[object, ...]:
    """What a callback is told, behind symbol and time."""
    if isinstance(event, Trade):
        return event.price, event.size, event.exchange, list(event.conditions), event.off_exchange
    if isinstance(event, Quote):
        return event.bid, event.ask, event.bid_size, event.ask_size
    assert isinstance(event, Bar)
    return event.open, event.high, event.low, event.close, event.volume


def kept_of(record: Record, kind: Kind) -> tuple[object, ...]:
    """The same of a record."""
    if kind == "trades":
        off = record["trf_id"] is not None
        return record["price"], record["size"], record["exchange"], record["conditions"] or [], off
    names = ("bid", "ask", "bid_size", "ask_size") if kind == "quotes" else ("open", "high", "low", "close")
    values = tuple(record[name] for name in names)
    return values if kind == "quotes" else (*values, record["volume"])
