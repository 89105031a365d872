"""Frames are found whatever the chunks are; the other side of every test is the `websockets` library."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tapelab.store.journal.frames import NOWHERE, Assembler, Control, FrameWalk, Violation


def text(payload: bytes, *, fin: bool = True, opcode: Opcode = Opcode.TEXT) -> bytes:
    return Frame(opcode, payload, fin=fin).serialize(mask=False)


def masked_text(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=True)


class Stream(NamedTuple):
    wire: bytes
    messages: list[bytes]
    controls: list[Control]
    boundaries: set[int]
    headers: list[int]


payloads = st.one_of(
    st.binary(max_size=40),
    st.integers(120, 130).map(lambda n: b"m" * n),
    st.integers(65_530, 65_540).map(lambda n: b"l" * n),
)
controls = st.tuples(st.sampled_from([Opcode.PING, Opcode.PONG]), st.binary(max_size=125))


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    wire, messages, seen, boundaries, headers = b"", [], [], {0}, []
    for _ in range(draw(st.integers(0, 8))):
        parts = draw(st.lists(payloads, min_size=1, max_size=3))
        for n, part in enumerate(parts):
            headers.append(len(wire))
            opcode = Opcode.TEXT if n == 0 else Opcode.CONT
            wire += text(part, fin=n == len(parts) - 1, opcode=opcode)
            if draw(st.booleans()):
                if n == len(parts) - 1:
                    boundaries.add(len(wire))
                kind, payload = draw(controls)
                headers.append(len(wire))
                wire += Frame(kind, payload).serialize(mask=False)
                seen.append(Control(int(kind), payload))
        boundaries.add(len(wire))
        messages.append(b"".join(parts))
    return Stream(wire, messages, seen, boundaries, headers)


def chunks_of(wire: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    return [(a, wire[a:b]) for a, b in itertools.pairwise(edges)]


cuts = st.lists(st.integers(0, 3000), max_size=60)


@given(streams(), cuts)
def test_messages_are_the_same_however_the_stream_is_cut(stream: Stream, at: list[int]) -> None:
    assembler = Assembler()
    found = [message for _, chunk in chunks_of(stream.wire, at) for message, _ in assembler.feed(chunk)]
    assert found == stream.messages
    assert not assembler.torn


@given(streams(), cuts)
def test_controls_boundaries_and_first_headers_are_where_they_are(stream: Stream, at: list[int]) -> None:
    walk, seen = FrameWalk(), []
    for offset, chunk in chunks_of(stream.wire, at):
        walked = walk.feed(bytearray(chunk))
        seen += walked.controls
        inside = range(offset, offset + len(chunk))
        first = next((header - offset for header in stream.headers if header in inside), NOWHERE)
        assert walked.first == first
        if walked.boundary >= 0:
            assert offset + walked.boundary in stream.boundaries
        known = [b for b in stream.boundaries if offset <= b <= offset + len(chunk)]
        assert walked.boundary == (max(known) - offset if known else -1)
        assert walked.violation is None
    assert seen == stream.controls


@settings(max_examples=50)
@given(streams(), cuts, st.sampled_from([b"", masked_text(b"x"), b"\xc1\x01x", b"\x80\x01x"]))
def test_the_quick_walk_finds_all_but_the_messages_that_others_follow(
    stream: Stream, at: list[int], broken: bytes
) -> None:
    whole, quick = FrameWalk(), FrameWalk(newest=True)
    for _, chunk in chunks_of(stream.wire + broken + text(b"behind"), at):
        one, two = whole.feed(bytearray(chunk)), quick.feed(bytearray(chunk))
        assert two[1:4] == one[1:4]
        assert str(two.violation) == str(one.violation)
        assert two.pieces[-1:] == one.pieces[-1:]
        assert set(two.pieces) <= set(one.pieces)
        ended = [piece for piece in one.pieces if piece[2]]
        assert [piece for piece in two.pieces if piece[2]][-1:] == ended[-1:]
        assert quick.between_messages == whole.between_messages


def test_byte_by_byte_gives_the_same_messages() -> None:
    wire = text(b"a" * 126) + text(b"") + text(b"b" * 65_536) + text(b"c")
    assembler = Assembler()
    found = [m for byte in wire for m, _ in assembler.feed(bytes([byte]))]
    assert [len(m) for m in found] == [126, 0, 65_536, 1]


@given(streams(), st.integers(0, 1000))
def test_a_reader_that_joins_late_gets_every_whole_message_behind_a_header(
    stream: Stream, number: int
) -> None:
    if not stream.headers:
        return
    start = stream.headers[number % len(stream.headers)]
    found = [message for message, _ in Assembler(resuming=True).feed(stream.wire[start:])]
    assert found == (stream.messages[-len(found) :] if found else [])
    whole = [b for b in stream.boundaries if b > start]
    assert bool(found) or len(whole) <= 2


BROKEN = {
    "masked": (masked_text(b"x"), 1002),
    "reserved bit": (b"\xc1\x01x", 1002),
    "unknown opcode": (b"\x83\x01x", 1002),
    "long control": (b"\x89\x7e\x00\x7e" + b"x" * 126, 1002),
    "fragmented control": (b"\x09\x01x", 1002),
    "continuation of nothing": (b"\x80\x01x", 1002),
    "message inside a message": (text(b"a", fin=False) + text(b"b"), 1002),
    "too big": (b"\x81\x7f" + (2**24 + 1).to_bytes(8, "big"), 1009),
    "too big in fragments": (
        b"\x01\x7f" + (2**24).to_bytes(8, "big") + bytes(2**24) + b"\x80\x01x",
        1009,
    ),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("step", [1, 7, 2**30])
def test_what_breaks_the_protocol_is_named_with_its_close_code(name: str, step: int) -> None:
    wire, code = BROKEN[name]
    step = step if len(wire) < 2**20 else 2**20
    walk, messages = FrameWalk(), Assembler()
    good = text(b"before")
    wire = good + wire + text(b"behind")
    violation: Violation | None = None
    found = []
    for at in range(0, len(wire), step):
        violation = walk.feed(wire[at : at + step]).violation
        found += [m for m, _ in messages.feed(wire[at : at + step])]
    assert violation is not None
    assert violation.code == code
    assert found == [b"before"]


def test_a_message_of_exactly_the_limit_is_taken() -> None:
    wire = b"\x81\x7f" + (2**24).to_bytes(8, "big")
    walk = FrameWalk()
    assert walk.feed(wire).violation is None
    assert walk.feed(bytes(2**24)).pieces == [(0, 2**24, True)]


def test_a_close_gives_its_code_and_reason() -> None:
    walked = FrameWalk().feed(Frame(Opcode.CLOSE, b"\x03\xf0max_connections").serialize(mask=False))
    assert walked.controls == [Control(8, b"\x03\xf0max_connections")]
