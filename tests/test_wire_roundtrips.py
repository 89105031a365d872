"""What must always hold: whatever a table holds comes back from each protocol, as far as it carries it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapelab.errors import MalformedAnswer
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive import wire
from tapelab.massive.wire.columns import plain
from tapelab.massive.wire.fields import CHANNELS, Channel, Kind, Style

DAY = date(2024, 3, 8)  # in winter time, so New York's day begins at 05:00 UTC
START = int(datetime(2024, 3, 8, 5, tzinfo=UTC).timestamp()) * 10**9
MILLION = 10**6

names = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789./-", min_size=1, max_size=10)
prices = st.integers(1, 10**12).map(lambda n: n / MILLION)
sizes = st.one_of(st.integers(0, 10**9).map(float), st.integers(0, 10**15).map(lambda n: n / MILLION))
stamps = st.integers(START, START + 86_400 * 10**9 - 1)
clocks = st.none() | st.integers(10**18, 2 * 10**18)
codes = st.none() | st.lists(st.integers(0, 9999), min_size=1, max_size=5)
exchanges = st.integers(0, 999)
ids = st.none() | st.text('0123456789abc-,"é ', min_size=1, max_size=15)

trades = st.fixed_dictionaries(
    {
        "ts_event": stamps,
        "symbol": names,
        "price": st.just(0.0) | prices,
        "size": sizes,
        "exchange": exchanges,
        "conditions": codes,
        "sequence": st.none() | st.integers(0, 2**63 - 1),
        "id": ids,
        "tape": st.none() | st.integers(1, 3),
        "correction": st.integers(0, 12),
        "ts_participant": clocks,
        "trf_id": st.none() | st.integers(201, 203),
        "ts_trf": clocks,
    }
)
quotes = st.fixed_dictionaries(
    {
        "ts_event": stamps,
        "symbol": names,
        "bid": st.none() | prices,
        "ask": st.none() | prices,
        "bid_size": sizes,
        "ask_size": sizes,
        "bid_exchange": exchanges,
        "ask_exchange": exchanges,
        "sequence": st.none() | st.integers(0, 2**63 - 1),
        "conditions": codes,
        "indicators": codes,
        "tape": st.none() | st.integers(1, 3),
        "ts_participant": clocks,
        "ts_trf": clocks,
    }
)
bars = st.fixed_dictionaries(
    {
        "timestamp": st.integers(0, 1439).map(lambda minute: START + minute * 60 * 10**9),
        "session": st.just(DAY),
        "symbol": names,
        "open": prices,
        "high": prices,
        "low": prices,
        "close": prices,
        "volume": sizes,
        "vwap": st.none() | prices,
        "transactions": st.none() | st.integers(0, 10**9),
    }
)
ROWS = {"trades": trades, "quotes": quotes, "bars": bars}
PRODUCTS = {"trades": "trades_v1", "quotes": "quotes_v1", "bars": "minute_aggs_v1"}


def table_of(rows: list[dict[str, object]], kind: Kind) -> pa.Table:
    numbered = [row | {"arrival": number} for number, row in enumerate(rows)]
    columns = {name: [row.get(name) for row in numbered] for name in SCHEMAS[kind].names}
    arrays = {name: pa.array(values, SCHEMAS[kind].field(name).type) for name, values in columns.items()}
    return conform(pa.table(arrays), SCHEMAS[kind])


def without(table: pa.Table, *names: str) -> pa.Table:
    empty = {name: pa.nulls(len(table), table.schema.field(name).type) for name in names}
    for name, column in empty.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    return table


@pytest.mark.parametrize("kind", ["trades", "quotes", "bars"])
@pytest.mark.parametrize("style", ["whole", "decimal", None])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_table_comes_back_from_a_daily_file(kind: Kind, style: Style | None, data: st.DataObject) -> None:
    table = table_of(data.draw(st.lists(ROWS[kind], max_size=8)), kind)
    product = f"us_stocks_sip/{PRODUCTS[kind]}"
    text = wire.write_flat_file(table, product, style=style)
    again = wire.read_flat_file(text, product, day=DAY)
    assert again.equals(without(table, "vwap") if kind == "bars" else table)
    assert wire.write_flat_file(again, product, style=style) == text


@pytest.mark.parametrize("kind", ["trades", "quotes", "bars"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_table_comes_back_from_rest(kind: Kind, data: st.DataObject) -> None:
    symbol = data.draw(st.sampled_from(["A", "BRK.B", "BApA"]))
    rows = [row | {"symbol": symbol} for row in data.draw(st.lists(ROWS[kind], max_size=8))]
    table = table_of(rows, kind)
    body = wire.envelope(wire.encode_rows(table, kind), request_id="a", ticker=symbol)
    assert wire.decode_page(body, kind, symbol=symbol).table.equals(table)


@pytest.mark.parametrize("channel", ["T", "Q", "A", "AM"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_a_table_comes_back_from_the_stream_as_streamed(channel: Channel, data: st.DataObject) -> None:
    kind = CHANNELS[channel]
    table = table_of(data.draw(st.lists(ROWS[kind], max_size=8)), kind)
    decoder = wire.FrameDecoder()
    decoder.feed(wire.frame(wire.encode_events(table, channel)), ts_recv=1, arrival=0)
    got = decoder.take()[{"T": "trades", "Q": "quotes", "A": "bars_1s", "AM": "bars"}[channel]]
    sent = wire.as_streamed(table, channel)
    assert (decoder.malformed, decoder.unknown) == (0, {})
    assert (got if kind == "bars" else without(got, "ts_recv")).equals(sent)
    assert wire.as_streamed(sent, channel).equals(sent)


@settings(max_examples=300, deadline=None)
@given(payload=st.binary(max_size=200))
def test_no_bytes_break_the_decoder(payload: bytes) -> None:
    decoder = wire.FrameDecoder()
    decoder.feed(payload, ts_recv=1, arrival=0)
    assert all(len(table) == 0 for table in decoder.take().values())
    assert decoder.malformed + sum(decoder.unknown.values()) <= 1 + payload.count(b",")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(
    fields=st.dictionaries(
        st.sampled_from(
            ["sym", "p", "s", "t", "c", "i", "x", "z", "q", "ds", "o", "h", "l", "v", "bp", "ap"]
        ),
        json_values,
    ),
    channel=st.sampled_from(["T", "Q", "A", "AM"]),
)
def test_an_event_of_any_values_is_taken_whole_or_counted(
    fields: dict[str, object], channel: Channel
) -> None:
    import msgspec

    decoder = wire.FrameDecoder()
    decoder.feed(msgspec.json.encode([{"ev": channel, **fields}]), ts_recv=1, arrival=0)
    tables = decoder.take()
    assert sum(len(table) for table in tables.values()) + decoder.malformed == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text("0123456789,.-eE\n\"'AanN", max_size=60))
def test_no_text_behind_a_header_gives_a_silent_row(text: str) -> None:
    header = ",".join(wire.PRODUCTS["us_stocks_sip/minute_aggs_v1"].header)
    source = f"{header}\n{text}".encode()
    try:
        table = wire.read_flat_file(source, "us_stocks_sip/minute_aggs_v1", day=DAY)
    except MalformedAnswer:
        return
    assert len(table) == 0


@given(value=st.integers(0, 10**15).map(lambda n: n / MILLION))
def test_a_decimal_is_written_plainly_and_reads_back_the_same(value: float) -> None:
    assert float(plain(value)) == value
    assert "e" not in plain(value)


@pytest.mark.parametrize("zone_change", [date(2024, 3, 10), date(2024, 11, 3)])
def test_a_day_is_new_yorks_day_also_when_the_clocks_change(zone_change: date) -> None:
    from zoneinfo import ZoneInfo

    zone = ZoneInfo("America/New_York")
    product = "us_stocks_sip/minute_aggs_v1"
    header = ",".join(wire.PRODUCTS[product].header)
    first = int(datetime(zone_change.year, zone_change.month, zone_change.day, tzinfo=zone).timestamp())
    after = zone_change + timedelta(days=1)
    end = int(datetime(after.year, after.month, after.day, tzinfo=zone).timestamp())
    for second, inside in ((first - 1, False), (first, True), (end - 1, True), (end, False)):
        source = f"{header}\nA,1,1,1,1,1,{second}000000000,1\n".encode()
        if inside:
            assert len(wire.read_flat_file(source, product, day=zone_change)) == 1
        else:
            with pytest.raises(MalformedAnswer, match="row 2: window_start"):
                wire.read_flat_file(source, product, day=zone_change)
