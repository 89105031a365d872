"""The stream: the vendor's own events read and written, and nothing lost without being counted."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tapelab.market.events import Bar, Quote, Trade
from tapelab.market.tables import SCHEMAS
from tapelab.massive import wire
from tapelab.massive.wire.fields import CHANNELS, Channel
from tapelab.massive.wire.stream import MAX_NAMES, OTHERS

REAL_DAY = date(2013, 10, 9)
TABLE = {"T": "trades", "Q": "quotes", "AM": "bars", "A": "bars_1s"}

# Which key goes to which column: written here by hand, beside the code's own table.
COLUMN: dict[str, dict[str, str]] = {
    "T": {
        "sym": "symbol",
        "x": "exchange",
        "i": "id",
        "z": "tape",
        "p": "price",
        "s": "size",
        "c": "conditions",
        "t": "ts_event",
        "q": "sequence",
    },
    "Q": {
        "sym": "symbol",
        "bx": "bid_exchange",
        "bp": "bid",
        "bs": "bid_size",
        "ax": "ask_exchange",
        "ap": "ask",
        "as": "ask_size",
        "c": "conditions",
        "i": "indicators",
        "t": "ts_event",
        "q": "sequence",
        "z": "tape",
    },
    "AM": {
        "sym": "symbol",
        "v": "volume",
        "vw": "vwap",
        "o": "open",
        "c": "close",
        "h": "high",
        "l": "low",
        "s": "timestamp",
    },
}
COLUMN["A"] = COLUMN["AM"]
# What a table cannot hold: figures of the whole day, the average size, the end of the bar.
NOT_OURS = {"ev", "av", "op", "a", "z", "e"}

TRADE = b'{"ev":"T","sym":"A","p":1.5,"s":2,"t":1536036818784}'
QUOTE = b'{"ev":"Q","sym":"A","bp":1.5,"bs":2,"t":1536036818784}'
BAR = b'{"ev":"AM","sym":"A","v":1,"o":1,"c":1,"h":1,"l":1,"s":1610144640000,"e":1610144700000}'


def examples(shared: Path) -> list[dict[str, Any]]:
    listed = json.loads((shared / "payloads/ws/spec-examples.json").read_bytes())
    return [item["example"] for item in listed if item["path"].startswith("/stocks/")]


def recorded(shared: Path) -> list[bytes]:
    return (shared / "payloads/rows_and_frames/ws_frames.jsonl").read_bytes().splitlines()


def decode(payload: bytes) -> tuple[dict[str, pa.Table], wire.FrameDecoder]:
    decoder = wire.FrameDecoder()
    assert decoder.feed(payload, ts_recv=5, arrival=100) == []
    return decoder.take(), decoder


def as_column(key: str, value: Any, channel: str) -> object:
    if key in ("t", "s") and COLUMN[channel][key] in ("ts_event", "timestamp"):
        return value * 1_000_000
    if channel == "Q" and key == "c":
        return [value]
    return str(value) if (channel, key) == ("T", "i") else value


@pytest.mark.judge
def test_every_field_of_the_vendors_examples_and_recorded_frames_is_in_the_table(shared: Path) -> None:
    events = [e for e in examples(shared) if e["ev"] in TABLE]
    events += [event for line in recorded(shared) for event in json.loads(line)]
    assert {event["ev"] for event in events} == set(TABLE)
    for event in events:
        channel = event["ev"]
        tables, decoder = decode(json.dumps([event]).encode())
        assert (decoder.malformed, decoder.unknown) == (0, {})
        assert [name for name, table in tables.items() if len(table)] == [TABLE[channel]]
        table = tables[TABLE[channel]]
        assert table.schema.equals(SCHEMAS[CHANNELS[channel]])
        [row] = table.to_pylist()
        for key, value in event.items():
            if key in COLUMN[channel]:
                assert row[COLUMN[channel][key]] == as_column(key, value, channel), key
            else:
                assert key in NOT_OURS, key
        if channel in ("T", "Q"):
            assert (row["ts_recv"], row["arrival"]) == (5, 100)


@pytest.mark.judge
def test_the_vendors_examples_are_written_back_with_their_keys_in_their_order(shared: Path) -> None:
    for event in [e for e in examples(shared) if e["ev"] in TABLE]:
        channel: Channel = event["ev"]
        tables, _ = decode(json.dumps([event]).encode())
        [written] = wire.encode_events(tables[TABLE[channel]], channel)
        again = json.loads(written)
        kept = {k: v for k, v in event.items() if k not in NOT_OURS - {"ev", "e"} or k in COLUMN[channel]}
        exact = {"dv": repr(float(event["v"]))} if "v" in event else {}
        assert again == kept | exact
        assert [key for key in again if key in kept] == list(kept)


@pytest.mark.judge
def test_the_vendors_examples_reach_callbacks_as_objects(shared: Path) -> None:
    by_channel = {event["ev"]: event for event in examples(shared)}
    payload = json.dumps([by_channel[channel] for channel in ("T", "Q", "A", "LULD", "AM")]).encode()
    assert wire.decode_events(payload, ts_recv=9, arrival=3) == [
        Trade("MSFT", 1536036818784000000, 9, 3, 114.125, 100.0, 4, (0, 12), False),
        Quote("MSFT", 1536036818784000000, 9, 4, 114.125, 114.128, 100.0, 160.0),
        Bar(
            "SPCE",
            1610144868000000000,
            1610144869000000000,
            25.39,
            25.39,
            25.39,
            25.39,
            200.0,
            25.3981,
            None,
        ),
        Bar(
            "GTE",
            1610144640000000000,
            1610144700000000000,
            0.4488,
            0.4489,
            0.4486,
            0.4486,
            4110.0,
            0.4488,
            None,
        ),
    ]


@pytest.mark.judge
def test_channels_without_a_table_are_counted_by_name(shared: Path) -> None:
    decoder = wire.FrameDecoder()
    others = [e for e in examples(shared) if e["ev"] not in TABLE]
    payload = wire.frame([TRADE, *[json.dumps(e).encode() for e in others], QUOTE])
    decoder.feed(payload, ts_recv=5, arrival=0)
    tables = decoder.take()
    assert decoder.unknown == {"LULD": 1, "NOI": 1}
    assert decoder.malformed == 0
    assert tables["trades"]["arrival"].to_pylist() == [0]
    assert tables["quotes"]["arrival"].to_pylist() == [3]


@pytest.mark.judge
def test_names_without_end_are_counted_up_to_a_bound(shared: Path) -> None:
    decoder = wire.FrameDecoder()
    [halt] = [e for e in examples(shared) if e["ev"] == "LULD"]
    [trade] = [e for e in examples(shared) if e["ev"] == "T"]
    numbers = range(MAX_NAMES + 5)
    events = [halt | {"ev": f"L{n}"} for n in numbers] + [trade | {f"n{n}": n} for n in numbers]
    for _ in range(2):
        decoder.feed(json.dumps(events).encode(), ts_recv=5, arrival=0)
    known = range(MAX_NAMES)
    assert decoder.unknown == {f"L{n}": 2 for n in known} | {OTHERS: 10}
    assert decoder.unknown_fields == {("T", f"n{n}"): 2 for n in known} | {("T", OTHERS): 10}
    assert decoder.malformed == 0
    assert len(decoder.take()["trades"]) == 2 * len(numbers)


@pytest.mark.judge
def test_a_status_that_does_not_say_which_is_malformed(shared: Path) -> None:
    lines = map(json.loads, (shared / "payloads/ws/handshake.jsonl").read_bytes().splitlines())
    statuses = [event for line in lines if line["dir"] == "server" for event in line["frame"]]
    decoder = wire.FrameDecoder()
    for event in statuses:
        lost = {key: value for key, value in event.items() if key != "status"}
        message = json.dumps([lost, event | {"new": [1]}, event | {"status": 1}]).encode()
        assert decoder.feed(message, ts_recv=5, arrival=0) == [event]
    assert (decoder.malformed, decoder.unknown, decoder.unknown_fields) == (2 * len(statuses), {}, {})


@pytest.mark.judge
def test_every_example_of_every_market_is_taken_or_counted(shared: Path) -> None:
    listed = json.loads((shared / "payloads/ws/spec-examples.json").read_bytes())
    decoder = wire.FrameDecoder()
    for number, item in enumerate(listed):
        decoder.feed(json.dumps([item["example"]]).encode(), ts_recv=5, arrival=number)
    taken = sum(len(table) for table in decoder.take().values())
    assert taken + decoder.malformed + sum(decoder.unknown.values()) == len(listed) == 33
    assert decoder.malformed == 2  # the two bars of an index: they have no volume


@pytest.mark.judge
def test_status_events_come_out_of_the_handshake_in_order(shared: Path) -> None:
    decoder = wire.FrameDecoder()
    lines = (shared / "payloads/ws/handshake.jsonl").read_bytes().splitlines()
    frames = [json.loads(line)["frame"] for line in lines if json.loads(line)["dir"] == "server"]
    for frame in frames:
        assert decoder.feed(json.dumps(frame).encode(), ts_recv=5, arrival=0) == frame
        assert [json.loads(wire.status_event(e["status"], e["message"])) for e in frame] == frame
    assert (decoder.malformed, decoder.unknown) == (0, {})
    assert all(len(table) == 0 for table in decoder.take().values())


def test_one_side_may_be_absent_or_zero() -> None:
    absent = b'[{"ev":"Q","sym":"A","ax":7,"ap":2.5,"as":1,"t":1536036818784}]'
    zero = b'[{"ev":"Q","sym":"A","bx":0,"bp":0,"bs":0,"ax":7,"ap":2.5,"as":1,"t":1536036818784}]'
    [one], [other] = (decode(payload)[0]["quotes"].to_pylist() for payload in (absent, zero))
    assert (one["bid"], one["bid_size"], one["bid_exchange"]) == (None, None, None)
    assert (other["bid"], other["bid_size"], other["bid_exchange"]) == (None, 0.0, 0)
    assert wire.decode_events(absent)[0][4:] == (None, 2.5, 0.0, 1.0)  # type: ignore[index]
    assert wire.decode_events(zero)[0][4:] == (None, 2.5, 0.0, 1.0)  # type: ignore[index]


def test_a_fraction_of_a_share_is_read_from_its_exact_decimal() -> None:
    tables, _ = decode(b'[{"ev":"T","sym":"A","p":1,"s":0,"ds":"0.250001","t":1536036818784}]')
    assert tables["trades"]["size"].to_pylist() == [0.250001]
    [written] = wire.encode_events(tables["trades"], "T")
    assert b'"s":0,"ds":"0.250001"' in written
    bars, _ = decode(BAR.join([b"[", b"]"]).replace(b'"v":1', b'"v":4110,"dv":"4110.038360"'))
    assert bars["bars"]["volume"].to_pylist() == [4110.03836]


def test_a_tiny_size_has_no_exponent_on_the_wire() -> None:
    tables, _ = decode(b'[{"ev":"T","sym":"A","p":1,"s":0,"ds":"0.000001","t":1536036818784}]')
    assert b'"ds":"0.000001"' in wire.encode_events(tables["trades"], "T")[0]


def test_an_off_exchange_print_says_so_in_table_and_callback() -> None:
    event = (
        b'{"ev":"T","sym":"A","x":4,"p":1.5,"s":2,"c":[12],"t":1536036818784,'
        b'"pt":1536036818700,"trfi":202,"trft":1536036818783}'
    )
    [row] = decode(wire.frame([event]))[0]["trades"].to_pylist()
    assert (row["trf_id"], row["ts_trf"], row["ts_participant"]) == (
        202,
        1536036818783000000,
        1536036818700000000,
    )
    assert row["correction"] is None  # the stream does not carry it
    assert wire.decode_events(wire.frame([event, TRADE]), ts_recv=9, arrival=3) == [
        Trade("A", 1536036818784000000, 9, 3, 1.5, 2.0, 4, (12,), True),
        Trade("A", 1536036818784000000, 9, 4, 1.5, 2.0, None, (), False),
    ]


def test_callbacks_get_objects_in_the_order_of_the_message() -> None:
    second = BAR.replace(b'"AM"', b'"A"')
    status = wire.status_event("success", "subscribed to: T.A")
    payload = wire.frame([status, QUOTE, b'{"ev":"XT"}', b'{"ev":"T"}', BAR, second])
    start = 1610144640000000000
    decoder = wire.FrameDecoder()
    assert decoder.events(payload, ts_recv=None, arrival=0) == [
        {"ev": "status", "status": "success", "message": "subscribed to: T.A"},
        Quote("A", 1536036818784000000, None, 1, 1.5, None, 2.0, 0.0),
        Bar("A", start, start + 60_000_000_000, 1.0, 1.0, 1.0, 1.0, 1.0, None, None),
        Bar("A", start, start + 1_000_000_000, 1.0, 1.0, 1.0, 1.0, 1.0, None, None),
    ]
    assert (decoder.malformed, decoder.unknown) == (1, {"XT": 1})


def test_bars_keep_their_session_and_a_bar_sent_again_stands_twice() -> None:
    revised = BAR.replace(b'"v":1', b'"v":2')
    bars = decode(wire.frame([BAR, revised]))[0]["bars"]
    assert bars["volume"].to_pylist() == [1.0, 2.0]
    assert bars["session"].to_pylist() == [date(2021, 1, 8)] * 2


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"{",
        b'{"ev":"status","status":"x"}',
        b"7",
        b"[" * 100_000,
        b"[" + TRADE,
        TRADE,
    ],
)
def test_a_message_that_is_no_array_of_events_counts_once_and_gives_nothing(payload: bytes) -> None:
    tables, decoder = decode(payload)
    assert decoder.malformed == 1
    assert all(len(table) == 0 for table in tables.values())


@pytest.mark.parametrize(
    "event",
    [
        b"1",
        b"null",
        b"[]",
        b"{}",
        b'{"ev":7}',
        b'{"ev":"T"}',
        b'{"ev":"status"}',
        b'{"ev":"\xff"}',
        TRADE.replace(b'"A"', b'"\xff"'),
        TRADE.replace(b'"A"', b"7"),
        TRADE.replace(b"1.5", b'"1.5"'),
        TRADE.replace(b"1.5", b"-1.5"),
        TRADE.replace(b"1.5", b"1e999"),
        TRADE.replace(b"1.5", b"null"),
        TRADE.replace(b"784}", b"784.5}"),
        TRADE.replace(b"1536036818784", b"15360368187840000"),  # 17 digits
        TRADE.replace(b"1536036818784", b"1536036818784000000"),  # nanoseconds
        TRADE.replace(b"1536036818784", b"1536036818"),  # seconds
        TRADE.replace(b'"s":2', b'"s":2,"ds":"two"'),
        TRADE.replace(b'"s":2', b'"s":2,"ds":"2.5\\n"'),
        TRADE.replace(b'"s":2', b'"s":2,"x":40000'),
        TRADE.replace(b'"s":2', b'"s":2,"z":128'),
        TRADE.replace(b'"s":2', b'"s":2,"c":12'),
        TRADE.replace(b'"s":2', b'"s":2,"q":9223372036854775808'),
        QUOTE.replace(b'"bs":2', b'"bs":2,"c":[1]'),
        QUOTE.replace(b'"sym":"A",', b""),
        BAR.replace(b'"o":1,', b""),
        BAR.replace(b'"v":1', b'"dv":"1.0"'),
    ],
)
def test_a_broken_event_is_counted_and_its_neighbours_are_kept(event: bytes) -> None:
    tables, decoder = decode(wire.frame([TRADE, event, QUOTE]))
    assert decoder.malformed == 1
    assert tables["trades"]["arrival"].to_pylist() == [100]
    assert tables["quotes"]["arrival"].to_pylist() == [102]
    assert len(tables["bars"]) == len(tables["bars_1s"]) == 0


def test_take_gives_each_event_once() -> None:
    decoder = wire.FrameDecoder()
    assert all(len(table) == 0 for table in decoder.take().values())
    decoder.feed(wire.frame([TRADE]), ts_recv=1, arrival=0)
    decoder.feed(wire.frame([TRADE, QUOTE]), ts_recv=2, arrival=1)
    tables = decoder.take()
    assert tables["trades"]["arrival"].to_pylist() == [0, 1]
    assert tables["trades"]["ts_recv"].to_pylist() == [1, 2]
    assert tables["quotes"]["arrival"].to_pylist() == [2]
    assert all(len(table) == 0 for table in decoder.take().values())


def test_an_average_size_is_written_only_where_the_trades_were_counted() -> None:
    header = ",".join(wire.PRODUCTS["us_stocks_sip/minute_aggs_v1"].header)
    rows = "A,4110,1.5,1.5,1.5,1.5,1610144640000000000,6\nA,5,1.5,1.5,1.5,1.5,1610144700000000000,\n"
    text = f"{header}\n{rows}".encode()
    table = wire.read_flat_file(text, "us_stocks_sip/minute_aggs_v1", day=date(2021, 1, 8))
    counted, uncounted = map(json.loads, wire.encode_events(table, "AM"))
    assert (counted["z"], counted["e"] - counted["s"], counted["dv"]) == (685, 60_000, "4110.0")
    assert "z" not in uncounted
    [second, _] = map(json.loads, wire.encode_events(table, "A"))
    assert (second["ev"], second["e"] - second["s"]) == ("A", 1_000)


@pytest.mark.judge
@pytest.mark.parametrize(
    ("product", "channel"), [("trades_v1", "T"), ("quotes_v1", "Q"), ("minute_aggs_v1", "AM")]
)
def test_the_real_day_survives_the_stream_as_far_as_the_stream_can_carry_it(
    real_day: Path, product: str, channel: Channel
) -> None:
    name = f"us_stocks_sip/{product}"
    day = wire.read_flat_file(real_day / wire.file_key(name, REAL_DAY), name, day=REAL_DAY).slice(0, 20_000)
    decoder = wire.FrameDecoder()
    events = wire.encode_events(day, channel)
    for start in range(0, len(events), 300):
        decoder.feed(wire.frame(events[start : start + 300]), ts_recv=7, arrival=start)
    got = decoder.take()[TABLE[channel]]
    sent = wire.as_streamed(day, channel)
    if channel != "AM":
        stamped = pa.array([7] * len(sent), pa.int64())
        sent = sent.set_column(sent.column_names.index("ts_recv"), sent.schema.field("ts_recv"), stamped)
    assert got.equals(sent)
    lost = {n for n in day.column_names if not day[n].equals(sent[n])} - {"ts_recv"}
    assert lost == {"T": {"correction"}, "Q": {"ts_participant"}, "AM": {"transactions"}}[channel]
