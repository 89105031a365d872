"""Many messages of the stream as Python's own JSON reads them, in frames of a WebSocket library."""

from __future__ import annotations

import json
import random
from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from itertools import cycle
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import papers
import polars as pl
import pytest
from papers import MILLISECOND
from polars.testing import assert_frame_equal
from websockets.frames import Frame, Opcode

from tapelab.errors import MalformedAnswer
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive import wire
from tapelab.massive.wire import compiled
from tapelab.massive.wire.bulk import AT_LEAST, AT_MOST
from tapelab.massive.wire.fields import Channel, Kind

pytestmark = pytest.mark.judge

MESSAGES, TOGETHER = 1_200, 50  # those that came at one time
TIMES = 8  # as often as it takes to need several goes
NOON = papers.instant(date(2026, 10, 2), 12) // MILLISECOND
TABLES = {"T": "trades", "Q": "quotes", "A": "bars_1s", "AM": "bars"}
KIND = {"trades": "trades", "quotes": "quotes", "bars_1s": "bars", "bars": "bars"}
# Which key is which column of ours, and what a message may say there: JSON as it stands on the wire.
COLUMN = {
    "T": {
        "sym": "symbol", "x": "exchange", "i": "id", "z": "tape", "p": "price", "s": "size", "t": "ts_event",
        "c": "conditions", "pt": "ts_participant", "q": "sequence", "trfi": "trf_id", "trft": "ts_trf",
    },
    "Q": {
        "sym": "symbol", "bx": "bid_exchange", "bp": "bid", "bs": "bid_size", "ax": "ask_exchange",
        "ap": "ask", "as": "ask_size", "c": "conditions", "i": "indicators", "t": "ts_event", "z": "tape",
        "q": "sequence",
    },
    "AM": {
        "sym": "symbol", "v": "volume", "vw": "vwap", "o": "open", "c": "close", "h": "high", "l": "low",
        "s": "timestamp",
    },
}  # fmt: skip
COLUMN["A"] = COLUMN["AM"]
REQUIRED = {"T": "sym p s t", "Q": "sym t", "AM": "sym v o c h l s", "A": "sym v o c h l s"}
EXACT = {"T": ("ds", "s"), "A": ("dv", "v"), "AM": ("dv", "v")}
PASSED = {"av": "12345", "dav": '"1.5"', "op": "9.75", "a": "-0.5", "z": "60", "e": "1", "otc": "true"}
NONE_WHEN_ZERO = {"bid", "ask", "trf_id", "ts_trf", "ts_participant"}
EARLIEST, LATEST = 631_152_000_000, 4_102_444_800_000  # 1990 and 2100
# Numbers that take more than adding up their digits, and what is no JSON at all.
ODD = (
    "9007199254740993",
    "999999999999999999",
    "0.1234567890123456789",
    "1.5e2",
    "12345678901234567890.5",
    "-0",
)
NO_JSON = (
    "",
    "01",
    "1.",
    ".5",
    "1..2",
    "+1",
    "tru",
    "falze",
    "nul",
    '"a',
    "'a'",
    "[1,]",
    "[1;2]",
    "1 2",
    "1:2",
    "1/2",
    '"\udcff"',  # bytes that are no UTF-8
    '"\udce9"',
    '"a\tb"',
)
# Where the latter stands: a text that no table holds, a price, a list, a count; each in each place.
PLACES = (("A", "dav"), ("AM", "o"), ("T", "c"), ("Q", "q"))
# What no event may say: each makes it malformed, and takes nothing else with it.
BROKEN = {
    "T": {
        "p": "-1", "s": "-5", "x": "32768", "z": "128", "t": f"{EARLIEST - 1}", "q": f"{2**63}", "sym": "7",
        "trft": f"{LATEST + 1}", "pt": "1.5", "c": "[32768]", "ds": '"1e5"', "i": "[]",
        "trfi": "32768",
    },
    "Q": {
        "bp": "-0.1", "as": '"1"', "bx": "-1", "c": "[1]", "i": "[40000]", "t": "null", "z": "128",
        "q": "1.5", "sym": "true",
    },
    "A": {"o": "null", "v": "-1", "s": f"{LATEST + 1}", "h": '"1"', "dv": '"0.1234567890123"'},
    "AM": {"c": "true", "l": "-1", "s": "1.5", "dv": "1"},
}  # fmt: skip


class Message(NamedTuple):
    payload: bytes
    ts_recv: int
    arrival: int


def said(chance: random.Random, channel: str) -> dict[str, str]:
    """An event, each key with its JSON; what it may lack, it sometimes does."""

    def whole(most: int) -> str:
        return str(chance.randrange(10 ** chance.randrange(1, most + 1)))

    def decimal() -> str:
        return whole(9) + chance.choice(["", "", f".{chance.randrange(10**4):04}", f".{whole(6)}"])

    def value(key: str) -> str:
        column = COLUMN[channel].get(key, key)
        if key in PASSED and column == key:
            return PASSED[key]
        if column in ("timestamp", "ts_event"):
            return str(chance.choice([NOON + chance.randrange(10**6)] * 5 + [EARLIEST, LATEST]))
        if column in ("ts_participant", "ts_trf"):
            return str(chance.choice([NOON - chance.randrange(10**6)] * 5 + [0, LATEST]))
        if column == "symbol":
            return json.dumps(chance.choice(papers.SYMBOLS))
        if column == "id":
            text = "".join(map(chr, chance.choices(range(32, 127), k=chance.randrange(21))))
            return chance.choice([whole(18), json.dumps(text.replace('"', "'").replace("\\", "/"))])
        if key in ("ds", "dv"):
            return f'"{chance.choice(["", "0", "00"])}{decimal()}"'
        if column == "conditions" and channel == "Q":
            return chance.choice(["0", "1", "81", "32767"])
        if column in ("conditions", "indicators"):
            return chance.choice(["[]", "[0]", "[12,37]", "[32767,0,41]"])
        if column in ("exchange", "bid_exchange", "ask_exchange", "trf_id"):
            return chance.choice(["0", whole(4), "32767"])
        if column == "tape":
            return chance.choice(["0", "3", "127"])
        if column == "sequence":
            return whole(18)
        if column in ("size", "volume", "bid_size", "ask_size"):
            return whole(15)
        return decimal()

    keys = [*COLUMN[channel], *EXACT.get(channel, ())[:1], *(PASSED if channel in ("A", "AM") else ())]
    full = chance.random() < 0.5
    kept = [k for k in keys if full or k in REQUIRED[channel].split() or chance.random() < 0.7]
    if chance.random() < 0.2:
        chance.shuffle(kept)
    return {"ev": f'"{channel}"', **{key: value(key) for key in kept}}


def written(events: list[dict[str, str]], comma: str = ",") -> str:
    """A message of events."""
    return "[" + comma.join("{" + comma.join(f'"{k}":{v}' for k, v in e.items()) + "}" for e in events) + "]"


class Told(NamedTuple):
    """Messages, and what they say: rows by table, and what is to be counted."""

    messages: list[Message]
    rows: dict[str, list[dict[str, Any]]]
    malformed: int
    unknown: Counter[str]
    unknown_fields: Counter[tuple[str, str]]


@cache
def told(awkward: bool) -> Told:
    """Messages as they come; `awkward`: with all that may happen to them between the plain ones."""
    chance = random.Random(papers.SEED)
    told = Told([], {name: [] for name in KIND}, 0, Counter(), Counter())
    bad = cycle((channel, key, text) for channel, texts in BROKEN.items() for key, text in texts.items())
    no_texts, odd = cycle(NO_JSON), cycle(ODD)
    malformed, at = 0, 0
    for number in range(MESSAGES):
        events = [said(chance, chance.choice(list(TABLES))) for _ in range(chance.randrange(1, 12))]
        broken: set[int] = set()
        comma = ","
        if no_json := awkward and number % 16 == 0:
            channel, key = PLACES[number // 16 % len(PLACES)]
            events, broken = [said(chance, channel) | {key: next(no_texts)}], {0}
        elif awkward and number % 3 == 0:
            place, event = chance.choice(list(enumerate(events)))
            channel = json.loads(event["ev"])
            match chance.randrange(10):
                case 0:
                    channel, key, text = next(bad)
                    events.insert(place, {**said(chance, channel), key: text})
                    broken = {place}
                case 1:
                    del event[chance.choice(REQUIRED[channel].split())]
                    broken = {place}
                case 2:
                    name = chance.choice(["new", "newer", "brand_new"])
                    event[name] = chance.choice(["1", '"x"', "-2.5", "true", "false", "null", "[1]"])
                    told.unknown_fields[channel, name] += 1
                case 3:
                    events.insert(place, {"ev": '"LULD"', "T": '"A"', "t": f"{NOON}"})
                    told.unknown["LULD"] += 1
                case 4:
                    events.insert(place, {"ev": '"status"', "status": '"success"', "message": '"hello"'})
                case 5:
                    event["sym"] = chance.choice(['"\\u00e9"', '"é"', '"A\\/B"', '"C\\"D"'])
                case 6:
                    comma = " , "
                case 7:
                    event[{"Q": "bp", "T": "p"}.get(channel, "l")] = next(odd)
                    if "q" in COLUMN[channel]:
                        event["q"] = f"{2**63 - 1}"
                case 8:
                    key = chance.choice(REQUIRED[channel].split())
                    event[key] = f'{event[key]},"{key}":{said(chance, channel)[key]}'
                case _:
                    events.append(events[0])
        payload = written(events, comma).encode("utf-8", "surrogateescape")
        stamp, arrival = 10**18 + number // TOGETHER, at + len(framed(payload)) - len(payload)
        at = arrival + len(payload)
        told.messages.append(Message(payload, stamp, arrival))
        malformed += len(broken)
        for place, event in enumerate(json.loads(payload) if not no_json else ()):
            if place not in broken and event["ev"] in TABLES:
                told.rows[TABLES[event["ev"]]].append(row(event, stamp, arrival + place))
    return told._replace(malformed=malformed)


def framed(payload: bytes) -> bytes:
    """A message as it comes out of a socket."""
    return Frame(Opcode.TEXT, payload).serialize(mask=False)


def row(event: dict[str, Any], ts_recv: int, arrival: int) -> dict[str, Any]:
    """What an event says in our own columns."""
    channel = event["ev"]
    out: dict[str, Any] = {column: event.get(key) for key, column in COLUMN[channel].items()}
    exact, size = EXACT.get(channel, ("", ""))
    if exact in event:
        out[COLUMN[channel][size]] = float(event[exact])
    for name in NONE_WHEN_ZERO & set(out):
        out[name] = out[name] or None
    for name in ("timestamp", "ts_event", "ts_participant", "ts_trf"):
        if out.get(name) is not None:
            out[name] *= MILLISECOND
    if channel in ("A", "AM"):
        return out | {
            "session": datetime.fromtimestamp(out["timestamp"] // 10**9, ZoneInfo("America/New_York")).date()
        }
    if out.get("id") is not None:
        out["id"] = str(out["id"])
    listed = out["conditions"]
    out["conditions"] = ([listed] if listed is not None else None) if channel == "Q" else listed or None
    if channel == "Q":
        out["indicators"] = out["indicators"] or None
    return out | {"ts_recv": ts_recv, "arrival": arrival}


def compare(tables: dict[str, Any], rows: dict[str, list[dict[str, Any]]]) -> None:
    """That tables hold what was said, no more and in order."""
    assert set(tables) == set(rows)
    for name, expected in rows.items():
        tables[name].validate(full=True)
        assert tables[name].schema.equals(SCHEMAS[KIND[name]])
        ours = pl.from_arrow(tables[name])
        assert isinstance(ours, pl.DataFrame)
        assert_frame_equal(ours, pl.DataFrame(expected, schema=ours.schema, strict=False), check_exact=True)


def counted(decoder: wire.FrameDecoder, what: Told) -> None:
    """That everything which has no row was counted."""
    assert decoder.malformed == what.malformed
    assert decoder.unknown == what.unknown
    assert decoder.unknown_fields == what.unknown_fields


@pytest.mark.parametrize("text", NO_JSON)
def test_what_stands_for_no_json_is_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        json.loads(f'{{"key":{text}}}'.encode("utf-8", "surrogateescape"))


@pytest.mark.parametrize("awkward", [False, True])
def test_messages_are_read_as_json_says(awkward: bool) -> None:
    what, decoder = told(awkward), wire.FrameDecoder()
    for message in what.messages:
        decoder.feed(message.payload, ts_recv=message.ts_recv, arrival=message.arrival)
    compare(decoder.take(), what.rows)
    counted(decoder, what)


@pytest.mark.parametrize("channel", TABLES)
def test_what_we_send_says_to_json_what_it_was_made_from(channel: Channel) -> None:
    told_rows = told(False).rows[TABLES[channel]]
    table = conform(
        pl.DataFrame(told_rows, infer_schema_length=None).to_arrow(), SCHEMAS[KIND[TABLES[channel]]]
    )
    events = [json.loads(event) for event in wire.encode_events(table, channel)]
    for event, expected in zip(events, told_rows, strict=True):
        said = row(event, 0, 0)
        assert said == {name: {"ts_recv": 0, "arrival": 0}.get(name, expected[name]) for name in said}
        assert None not in event.values()
        assert ("ds" in event) == (channel == "T" and expected["size"] % 1 > 0)


@pytest.mark.parametrize(
    "parts", [("0.1", "0.2"), ("123456789.1", "0.2"), ("1000000.7", "0.000001"), ("1", "2")]
)
def test_a_volume_is_sent_with_the_decimals_that_its_sizes_have(parts: tuple[str, str]) -> None:
    exact, added = sum(map(Decimal, parts)), sum(map(float, parts))
    bar = told(False).rows["bars"][0] | {"volume": added}
    table = conform(pl.DataFrame([bar]).to_arrow(), SCHEMAS["bars"])
    event = json.loads(wire.encode_events(table, "AM")[0])
    assert (event["v"], Decimal(event["dv"])) == (int(exact), exact)


OF_OTHER_MARKETS: list[tuple[str, Kind, dict[str, Any], dict[str, Any]]] = [
    (
        "I:NEG",
        "bars",
        {"o": -1.5, "c": -1.25, "h": 0, "l": -2.5, "t": NOON},
        {"open": -1.5, "close": -1.25, "high": 0.0, "low": -2.5, "timestamp": NOON * MILLISECOND},
    ),
    (
        "X:BTC-USD",
        "trades",
        {"participant_timestamp": NOON * MILLISECOND + 1, "price": 60_000.5, "size": 0.00012, "exchange": 1},
        {"ts_event": NOON * MILLISECOND + 1, "price": 60_000.5, "size": 0.00012, "exchange": 1},
    ),
    (
        "C:EUR-USD",
        "quotes",
        {
            "participant_timestamp": NOON * MILLISECOND + 1,
            "bid_price": 1.1,
            "ask_price": 1.2,
            "bid_exchange": 48,
        },
        {"ts_event": NOON * MILLISECOND + 1, "bid": 1.1, "ask": 1.2, "bid_exchange": 48},
    ),
]


@pytest.mark.parametrize(("symbol", "kind", "written", "expected"), OF_OTHER_MARKETS)
def test_pages_of_other_markets_are_read_as_json_says(
    symbol: str, kind: Kind, written: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = json.dumps({"status": "OK", "results": [written] * 3}).encode()
    page = wire.decode_page(body, kind, symbol=symbol)
    told = [{"symbol": symbol} | expected] * 3
    assert page.table.select(list(told[0])).to_pylist() == told
    for named, asked in ((symbol, symbol.replace("-", "")), (symbol.replace("-", ""), symbol)):
        body = json.dumps({"status": "OK", "ticker": named, "results": [written] * 3}).encode()
        assert wire.decode_page(body, kind, symbol=asked).count == 3  # the vendor spells both
    lost = [{key: value for key, value in written.items() if key not in ("t", "participant_timestamp")}]
    with pytest.raises(MalformedAnswer, match=f"page of {kind}: .*(no time|missing)"):
        wire.decode_page(
            json.dumps({"status": "OK", "results": [written, *lost]}).encode(), kind, symbol=symbol
        )
    with pytest.raises(MalformedAnswer):  # of stocks they would be nonsense
        wire.decode_page(body, kind, symbol=papers.PLAIN)


@pytest.fixture(scope="module")
def kernel() -> compiled.Kernel:
    ready = compiled.wait()
    assert ready is not None, compiled.problem()
    return ready


@pytest.mark.parametrize("awkward", [False, True])
def test_many_messages_at_once_are_read_as_json_says(kernel: compiled.Kernel, awkward: bool) -> None:
    what, decoder = told(awkward), wire.BulkDecoder()
    few, half = MESSAGES // 200, MESSAGES // 2
    parts = [what.messages[:few], what.messages[few:half], what.messages[half:]]
    sizes = list(map(decoder.feed, parts))
    assert sizes == [sum(len(message.payload) for message in part) for part in parts]
    assert sizes[0] < AT_LEAST < sizes[1]
    compare(decoder.take(), what.rows)
    counted(decoder.plain, what)
    most = MESSAGES - few
    assert 0 < decoder.compiled < most if awkward else decoder.compiled == most
    assert set(map(len, decoder.take().values())) == {0}
    before = decoder.compiled
    decoder.feed(what.messages)
    assert decoder.compiled > 2 * before  # what was new is known by now


@pytest.mark.parametrize("awkward", [False, True])
def test_frames_side_by_side_are_read_as_json_says(kernel: compiled.Kernel, awkward: bool) -> None:
    what, decoder = told(awkward), wire.BulkDecoder()
    items: list[wire.Run | Message] = []
    for first in range(0, MESSAGES, TOGETHER):
        some = what.messages[first : first + TOGETHER]
        if first == TOGETHER:  # these come one by one
            items += some
            continue
        data = b"".join(framed(message.payload) for message in some)
        begins, ends = np.empty(MESSAGES, np.int64), np.empty(MESSAGES, np.int64)
        found, size, end = kernel.walk(np.frombuffer(data, np.uint8), 0, begins, ends)
        assert (found, end) == (TOGETHER, len(data))
        assert size == sum(len(message.payload) for message in some)
        base = some[0].arrival - int(begins[0])
        run = wire.Run(data, begins[:found].copy(), ends[:found].copy(), size, some[0].ts_recv, base)
        assert list(run.each()) == [(message.payload, message.arrival) for message in some]
        items.append(run)
    times = 1 if awkward else TIMES
    size = decoder.feed(items * times)
    assert size == sum(len(message.payload) for message in what.messages) * times
    compare(decoder.take(), {name: rows * times for name, rows in what.rows.items()})
    counted(decoder.plain, what)
    assert awkward or (size > AT_MOST and decoder.compiled == MESSAGES * times)


def test_lists_of_codes_as_long_as_a_message_are_read_as_json_says(kernel: compiled.Kernel) -> None:
    few, many = [7, 32767, 0], [n % 10 for n in range(AT_MOST // 2 - 200)]
    quote = {"ev": "Q", "sym": "A", "t": NOON, "i": few}
    trade = {"ev": "T", "sym": "A", "t": NOON, "p": 1.5, "s": 2}
    events = [quote, trade | {"c": many}, trade | {"c": few}, quote]
    payloads = [json.dumps([event], separators=(",", ":")).encode() for event in events]
    decoder = wire.BulkDecoder()
    size = decoder.feed([Message(payload, 0, number) for number, payload in enumerate(payloads)])
    assert AT_MOST * 0.99 < size < AT_MOST
    tables = decoder.take()
    assert tables["quotes"]["indicators"].to_pylist() == [few, few]
    conditions = tables["trades"]["conditions"].combine_chunks()
    assert conditions.value_lengths().to_pylist() == [len(many), len(few)]
    assert np.array_equal(conditions.values.to_numpy(), many + few)
    assert decoder.compiled == len(events)


def is_json(text: str) -> bool:
    """Whether Python reads it."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def test_a_message_with_one_wrong_character_is_taken_by_nobody(kernel: compiled.Kernel) -> None:
    chance = random.Random(papers.SEED)
    full = [max((said(chance, channel) for _ in range(9)), key=len) for channel in TABLES]
    whole = [written([event, said(chance, "Q")]) for event in full]
    changed = {
        t[:n] + put + t[n + 1 :] for t in whole for n in range(len(t)) for put in ("", *'",:{}[]0.x\\ \t')
    }
    changed |= {t[:n] + "\0" + t[n:] for t in whole for n in range(len(t))}
    wrong = [text.encode() for text in sorted(changed) if not is_json(text)]
    plain, bulk = wire.FrameDecoder(), wire.BulkDecoder()
    for payload in wrong:
        plain.feed(payload, ts_recv=0, arrival=0)
    assert bulk.feed([Message(payload, 0, 0) for payload in wrong]) > AT_LEAST
    for decoder in (plain, bulk.plain):
        assert decoder.malformed == len(wrong)
    assert not any(map(len, (*plain.take().values(), *bulk.take().values())))


# What a socket may give beside whole messages.
OTHERS = [
    Frame(Opcode.PING, b"x").serialize(mask=False),
    Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False),
    Frame(Opcode.BINARY, b"x").serialize(mask=False),
    Frame(Opcode.CONT, b"x").serialize(mask=False),
    Frame(Opcode.TEXT, b"x", fin=False).serialize(mask=False),
    Frame(Opcode.TEXT, b"x" * 99).serialize(mask=True),
    framed(b"")[:1] + bytes([127]) + (2**63 + 5).to_bytes(8),  # longer than anything can be
]


def test_whole_messages_are_found_up_to_anything_else(kernel: compiled.Kernel) -> None:
    lengths = [0, 1, 125, 126, 127, 65_535, 65_536, 3]
    frames = [framed(b"x" * length) for length in lengths]
    data, most = b"".join(frames), len(frames)
    begins, ends = np.empty(2 * most, np.int64), np.empty(2 * most, np.int64)

    def walked(data: bytes, room: int = 2 * most) -> tuple[int, int]:
        count, size, end = kernel.walk(np.frombuffer(data, np.uint8), 0, begins[:room], ends[:room])
        assert size == int((ends[:count] - begins[:count]).sum())
        return count, end

    assert walked(data) == (most, len(data))
    assert (ends - begins)[:most].tolist() == lengths
    for other in OTHERS:
        assert walked(data + other + data) == (most, len(data))
    for number, frame in enumerate(frames):
        before = sum(map(len, frames[:number]))
        assert walked(data, number) == (number, before)
        for cut in {*range(min(len(frame), 12)), len(frame) - 1}:
            assert walked(data[: before + cut]) == (number, before)
