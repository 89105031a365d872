"""The compiled kernel: whatever comes, its rows and counters are those of the plain decoder."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapelab.massive import wire
from tapelab.massive.wire import bulk, compiled
from tapelab.massive.wire.fields import CHANNELS, NOT_KEPT, STREAM_ORDER, Channel
from tapelab.massive.wire.plan import EVENT_BYTES
from test_wire_roundtrips import ROWS, table_of
from test_wire_stream import BAR, QUOTE, TRADE

REAL_DAY = date(2013, 10, 9)


class Message(NamedTuple):
    payload: bytes
    ts_recv: int
    arrival: int


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> Iterator[None]:
    """The kernel is ready, and used for the smallest message."""
    assert compiled.wait() is not None, compiled.problem()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "AT_LEAST", 0)
        yield


# What stands behind a message in a journal: the next frame, zeros and the next record, or nothing any more.
BEHIND = [
    tail + more
    for tail in (b"\x81\x7e", b"tLj\x82", b"tLj\x81", b"\0\0\0tLj\x82", b"")
    for more in (b"", bytes(64))
]


def lying(message: Message, behind: bytes) -> wire.Run:
    """The message where a journal has it."""
    data = b"\x81\x7e" + message.payload + behind
    begins, ends = np.array([2]), np.array([2 + len(message.payload)])
    return wire.Run(data, begins, ends, len(message.payload), message.ts_recv, message.arrival - 2)


def both(*batches: list[bytes], ahead: bool = False) -> tuple[bulk.BulkDecoder, dict[str, pa.Table]]:
    """Decode the same messages both ways; equal in everything, or the test fails.

    `ahead`: all are scanned, by two threads, before the first is added.
    """
    fast, plain, in_place = bulk.BulkDecoder(), wire.FrameDecoder(), bulk.BulkDecoder()
    arrival, told = 0, []
    for batch in batches:
        messages = []
        for payload in batch:
            messages.append(Message(payload, 10**18 + arrival, arrival))
            plain.feed(payload, ts_recv=10**18 + arrival, arrival=arrival)
            arrival += len(payload) + 1
        told.append(messages)
    if ahead:
        with ThreadPoolExecutor(2) as threads:
            scanned = list(threads.map(fast.scan, told))
        for one in scanned:
            fast.add(one)
    else:
        for messages in told:
            fast.feed(messages)
    for messages in told:
        in_place.feed([lying(message, BEHIND[n % len(BEHIND)]) for n, message in enumerate(messages)])
    expected, got = plain.take(), fast.take()
    for decoder, found in ((fast, got), (in_place, in_place.take())):
        for name, table in expected.items():
            found[name].validate(full=True)
            assert found[name].schema.equals(table.schema)
            assert found[name].equals(table), name
        assert decoder.plain.unknown == plain.unknown
        assert decoder.plain.unknown_fields == plain.unknown_fields
        assert decoder.plain.malformed == plain.malformed
    return fast, got


@st.composite
def told(draw: st.DrawFn) -> list[bytes]:
    """Messages of events of every type, as the vendor writes them."""
    events: list[bytes] = []
    for channel in draw(st.lists(st.sampled_from(list(CHANNELS)), min_size=1, max_size=4)):
        kind = CHANNELS[channel]
        events += wire.encode_events(table_of(draw(st.lists(ROWS[kind], max_size=4)), kind), channel)
    order = draw(st.permutations(events))
    size = draw(st.integers(1, 5))
    return [wire.frame(order[n : n + size]) for n in range(0, len(order), size)]


@settings(max_examples=40)
@given(st.lists(told(), min_size=1, max_size=3))
def test_what_the_vendor_sends_is_decoded_as_by_the_plain_decoder(batches: list[list[bytes]]) -> None:
    both(*batches)


numbers = st.one_of(
    st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{0,14})?([eE][+-]?[0-9]{1,3})?", fullmatch=True),
    st.from_regex(r"[1-9][0-9]{0,12}(\.[0-9]{1,7})?", fullmatch=True),
    st.integers(0, 2**64).map(str),
)
json_values = st.recursive(
    st.one_of(
        numbers, st.sampled_from(["null", "true", "false", "nul", "1.", ".5", "-", "", '"', "[", "0x1"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda some: "[" + ",".join(some) + "]"),
        inner.map(lambda value: '{"a":' + value + "}"),
        st.text(max_size=8).map(json.dumps),
        st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
        st.from_regex(r"[0-9]{1,22}(\.[0-9]{1,13})?", fullmatch=True).map(lambda text: f'"{text}"'),
    ),
    max_leaves=3,
)
GOOD: dict[str, dict[str, str]] = {
    "T": {
        "sym": '"AAPL"', "x": "4", "i": '"71675577320245"', "z": "3", "p": "114.125", "s": "100",
        "ds": '"100.25"', "c": "[0,12]", "t": "1536036818784", "pt": "1536036818700", "q": "3681328",
        "trfi": "202", "trft": "1536036818783",
    },
    "Q": {
        "sym": '"AAPL"', "bx": "4", "bp": "114.125", "bs": "100", "ax": "7", "ap": "114.128", "as": "160",
        "c": "0", "i": "[604]", "t": "1536036818784", "q": "50385480", "z": "3",
    },
    "AM": {
        "sym": '"GTE"', "v": "4110", "dv": '"4110.0"', "av": "9470157", "op": "0.4372", "vw": "0.4488",
        "o": "0.4488", "c": "0.4486", "h": "0.4489", "l": "0.4486", "a": "0.4352", "z": "685",
        "s": "1610144640000", "e": "1610144700000", "otc": "true",
    },
}  # fmt: skip
GOOD["A"] = GOOD["AM"]


@pytest.mark.parametrize("behind", ["", "0", "x", "é", '"', "\\", "\x01", "."])
def test_numbers_and_texts_of_every_length_are_decoded_as_by_the_plain_decoder(behind: str) -> None:
    """The kernel reads eight bytes at a time: nothing may depend on where one of them ends."""
    digits, letters = "1234567890123456789012", "ABCDEFGHIJKLMNOPQRSTUVW"
    quote = {**GOOD["Q"]}
    told = [quote | {"sym": f'"{letters[:n]}{behind}"'} for n in range(20)]
    told += [quote | {"q": f"{digits[:n]}{behind}"} for n in range(22)]
    told += [quote | {"bp": f"{digits[:n]}.{digits[:m]}{behind}"} for n in range(10) for m in range(12)]
    told += [quote | {"bp": f"0.{'0' * n}{digits[:m]}{behind}"} for n in range(9) for m in range(9)]
    told += [quote | {"c": f"{behind}{digits[:n]}", "bs": f"{digits[:n]}{behind}"} for n in range(12)]
    events = ['{"ev":"Q"' + "".join(f',"{k}":{v}' for k, v in one.items()) + "}" for one in told]
    both([f"[{event}]".encode() for event in events])
    both([f"[{','.join(events)}]".encode()])


@st.composite
def events_nearly_right(draw: st.DrawFn) -> str:
    """An event with a few things changed: values, keys that are new, twice there or missing, their order."""
    channel = draw(st.sampled_from([*GOOD, "LULD", "status", ""]))
    fields = list(GOOD.get(channel, GOOD["Q"]).items())
    for _ in range(draw(st.integers(0, 2))):
        n = draw(st.integers(0, len(fields) - 1))
        key = draw(st.sampled_from([fields[n][0], "new", "nw2", "longer_than_seven", "é", "a\\u0062", "ev"]))
        change = draw(st.sampled_from(["replace", "insert", "drop"]))
        if change != "insert":
            del fields[n]
        if change != "drop":
            fields.insert(n, (key, draw(json_values)))
        if not fields:
            break
    if draw(st.booleans()):
        fields = draw(st.permutations(fields))
    body = "".join(f',"{key}":{value}' for key, value in fields)
    return f'{{"ev":"{channel}"{body}}}'


@st.composite
def messages_nearly_right(draw: st.DrawFn) -> bytes:
    events = draw(st.lists(events_nearly_right(), max_size=4))
    text = draw(st.sampled_from([",", ", ", ",", ","])).join(events)
    payload = f"[{text}]".encode("utf-8", "surrogatepass")
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        at = draw(st.integers(0, len(payload)))
        cut = draw(st.integers(0, 3))
        put = draw(
            st.sampled_from(
                [b"", b"[", b"]", b"{", b"}", b",", b'"', b"\\", b"\0", b"\xff", b"0", b"-", b" "]
            )
        )
        payload = payload[:at] + put + payload[at + cut :]
    return payload


@settings(max_examples=250)
@given(st.lists(messages_nearly_right(), min_size=1, max_size=6), st.integers(0, 6))
def test_what_is_nearly_right_is_taken_or_counted_as_by_the_plain_decoder(
    messages: list[bytes], cut: int
) -> None:
    both(messages[:cut], messages[cut:])


@settings(max_examples=60)
@given(st.lists(st.lists(messages_nearly_right(), min_size=1, max_size=4), min_size=1, max_size=5))
def test_what_is_scanned_ahead_is_decoded_as_by_the_plain_decoder(batches: list[list[bytes]]) -> None:
    both(*batches, ahead=True)


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_no_bytes_break_it(messages: list[bytes]) -> None:
    both(messages)


@settings(max_examples=150)
@given(st.from_regex(r"(0|[1-9][0-9]{0,16})(\.[0-9]{1,17})?", fullmatch=True))
def test_a_price_is_the_nearest_double(text: str) -> None:
    _, found = both([wire.frame([TRADE.replace(b"1.5", text.encode())])])
    assert found["trades"]["price"].to_pylist() == [float(text)]


@pytest.mark.parametrize("channel", list(CHANNELS))
def test_the_kernel_takes_every_key_that_we_know(channel: Channel) -> None:
    known = {*STREAM_ORDER[channel], *NOT_KEPT[channel]}
    assert set(GOOD[channel]) | {"dav"} >= known
    body = "".join(f',"{key}":{value}' for key, value in GOOD[channel].items())
    backwards = "".join(f',"{key}":{value}' for key, value in reversed(GOOD[channel].items()))
    events = [f'{{"ev":"{channel}"{some}}}'.encode() for some in (body, backwards, body)]
    fast, _ = both([wire.frame(events), wire.frame([QUOTE, TRADE, BAR]), b"[]"])
    assert fast.compiled == 3


def test_messages_that_the_kernel_leaves_keep_their_place() -> None:
    odd = wire.frame([TRADE.replace(b"1.5", b"2e0"), QUOTE, BAR.replace(b'"v":1', b'"v":2e0')])
    status = wire.frame([wire.status_event("success", "subscribed"), b'{"ev":"LULD"}'])
    plain = wire.frame([QUOTE, TRADE, BAR])
    fast, found = both([plain, odd, b"garbage", status, plain], [odd], [plain])
    assert fast.compiled == 3
    assert found["trades"]["price"].to_pylist() == [1.5, 2.0, 1.5, 2.0, 1.5]
    assert found["bars"]["volume"].to_pylist() == [1.0, 2.0, 1.0, 2.0, 1.0]
    assert (fast.plain.malformed, fast.plain.unknown) == (1, {"LULD": 1})


def test_a_field_that_the_vendor_adds_is_counted_and_costs_no_speed() -> None:
    added = wire.frame([QUOTE.replace(b'"sym"', b'"new":"x","sym"'), TRADE])
    fast, _ = both([added], [added, added], [added])
    assert fast.compiled == 3  # all but the one from which it was learned
    assert fast.plain.unknown_fields == {("Q", "new"): 4}
    fast, _ = both([added], [added, added], ahead=True)
    assert fast.plain.unknown_fields == {("Q", "new"): 3}
    names = [wire.frame([QUOTE.replace(b'"sym"', b'"n%d":1,"sym"' % n)]) for n in range(40)]
    fast, _ = both(*([name] for name in names + names))
    assert fast.plain.unknown_fields.total() == 80


def test_names_that_are_told_apart_have_a_bound() -> None:
    decoder = wire.FrameDecoder()
    for n in range(1100):
        events = [b'{"ev":"X%d"}' % n, QUOTE.replace(b'"sym"', b'"n%d":1,"sym"' % n)]
        decoder.feed(wire.frame(events), ts_recv=1, arrival=n)
    for counter in (decoder.unknown, decoder.unknown_fields):
        assert (len(counter), counter.total()) == (1001, 1100)


def test_a_message_larger_than_a_stretch_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "AT_MOST", 500)
    fast, found = both([wire.frame([QUOTE] * n) for n in (1, 40, 2, 3, 100, 1, 1)])
    assert (fast.compiled, len(found["quotes"])) == (7, 148)


def test_more_events_than_there_is_room_for_are_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    small = b'{"ev":"Q","sym":"A","t":1600000000000}'
    assert len(small) < EVENT_BYTES
    monkeypatch.setattr(bulk, "AT_MOST", 2 * len(wire.frame([small] * 20)))
    fast, found = both([wire.frame([small] * 20)] * 40)
    assert (fast.compiled, len(found["quotes"])) == (20, 800)  # of two messages one has room


def test_what_stands_behind_a_message_is_never_read_into_it() -> None:
    whole = wire.frame([QUOTE, TRADE])
    for cut in range(1, len(whole)):
        message = Message(whole[:cut], 1, 0)
        decoder = bulk.BulkDecoder()
        decoder.feed([lying(message, behind) for behind in (whole[cut:] + bytes(64), *BEHIND)])
        assert decoder.plain.malformed == 1 + len(BEHIND)
        assert set(map(len, decoder.take().values())) == {0}


def run(program: str, home: Path) -> None:
    """In a process of its own, with a cache of its own; modules in `home` come before the installed ones."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(home), "HOME": str(home), "PYTHONPATH": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


FEED = """
import sys
from collections import namedtuple
from tapelab.massive.wire import bulk, compiled
message = namedtuple("Message", "payload ts_recv arrival")(b"[]" + b" " * bulk.AT_LEAST, 0, 0)
decoder = bulk.BulkDecoder()
decoder.feed([message] * 5)
"""


def test_a_few_events_never_pay_for_the_kernel(tmp_path: Path) -> None:
    run(FEED + "assert compiled._thread is None and 'numba' not in sys.modules", tmp_path)


PLAIN = """
bulk.WARM_AFTER = 0
decoder.feed([message])
assert compiled.wait() is None
decoder.feed([message])
assert (decoder.plain.malformed, decoder.compiled) == (0, 0)
from tapelab.faces.doctor import _decoder
finding = _decoder()
"""


def test_without_a_place_for_the_kernel_the_plain_decoder_serves(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run(FEED + PLAIN + "assert 'cannot be written' in finding.detail", tmp_path / "file")


def test_where_numba_fails_the_plain_decoder_serves_and_doctor_says_why(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('numba needs another numpy')")
    run(FEED + PLAIN + "assert 'numba needs another numpy' in finding.detail", tmp_path)


@pytest.mark.judge
@pytest.mark.parametrize("rows", [20_000, pytest.param(10**9, marks=pytest.mark.slow)])
def test_the_real_day_is_decoded_as_by_the_plain_decoder(real_day: Path, rows: int) -> None:
    events: list[bytes] = []
    for product, channel in (("trades_v1", "T"), ("quotes_v1", "Q"), ("minute_aggs_v1", "AM")):
        name = f"us_stocks_sip/{product}"
        for day in wire.iter_flat_file(real_day / wire.file_key(name, REAL_DAY), name, day=REAL_DAY):
            events += wire.encode_events(day.slice(0, rows), channel)  # type: ignore[arg-type]
            if len(day) >= rows:
                break
    random.Random(7).shuffle(events)
    for first in range(0, len(events), 100_000):
        some = events[first : first + 100_000]
        fast, found = both([wire.frame(some[n : n + 30]) for n in range(0, len(some), 30)])
        assert sum(map(len, found.values())) == len(some)
        assert fast.compiled == -(-len(some) // 30)
