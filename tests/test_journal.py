"""What is appended to a journal is read back as it was, however it is cut, killed or damaged."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from tapelab.errors import Damaged, Locked, StoreError, Unwritable
from tapelab.market import clock
from tapelab.store import journal
from tapelab.store.journal import Follower, Kind, Message, Note, Writer, record, sealing, writer
from tapelab.store.journal.frames import FrameWalk
from tapelab.store.journal.sealing import open_sealed, seal, sealed_name
from tapelab.store.journal.segments import is_held, lock_path, numbers, raw_path

ID = bytes(range(16))
T0 = 1_700_000_000 * clock.SECOND


def frames(*payloads: bytes) -> bytes:
    return b"".join(Frame(Opcode.TEXT, payload).serialize(mask=False) for payload in payloads)


class Receiver:
    """What the receiver does with its socket, without the socket."""

    def __init__(self, folder: Path, **options: int) -> None:
        self.writer = Writer(folder, ID, **options)
        self.walk = FrameWalk()
        self.connection = 0
        self.now = 0

    def open(self) -> None:
        self.connection += 1
        self.walk = FrameWalk()
        self.note(Kind.OPEN, url="ws://example")

    def note(self, kind: Kind, flags: int = 0, **facts: object) -> None:
        self.now += 1
        times = {"ts_recv": T0 + self.now, "monotonic": self.now}
        self.writer.note(kind, facts, connection=self.connection, flags=flags, **times)

    def receive(self, chunk: bytes) -> None:
        self.now += 1
        walked = self.walk.feed(chunk)
        self.writer.chunk(
            memoryview(chunk), walked, connection=self.connection, ts_recv=T0 + self.now, monotonic=self.now
        )

    def close(self, cause: str = "stopped", flags: int = record.FINAL) -> None:
        self.note(Kind.CLOSED, flags, cause=cause)
        self.writer.close()


def read(folder: Path, after: int = -1) -> tuple[list[Message], list[Note]]:
    follower = Follower(folder, after=after)
    items = []
    while batch := follower.read():
        items += batch
    return [i for i in items if isinstance(i, Message)], [i for i in items if isinstance(i, Note)]


def payloads(folder: Path) -> list[bytes]:
    return [message.payload for message in journal.messages(folder)]


def chunks_of(wire: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    return [wire[a:b] for a, b in itertools.pairwise(edges)]


texts = st.lists(
    st.one_of(st.binary(max_size=50), st.integers(0, 70_000).map(lambda n: b"\x81" * n)), max_size=8
)
cuts = st.lists(st.integers(0, 2000), max_size=30)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, cuts), min_size=1, max_size=3), st.sampled_from([200, 5000, 2**26]))
def test_what_was_appended_is_read_back_whatever_the_chunks_and_segments(
    tmp_path_factory: pytest.TempPathFactory,
    connections: list[tuple[list[bytes], list[int]]],
    segment_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    receiver = Receiver(folder, segment_bytes=segment_bytes)
    growing, live = Follower(folder), []
    for sent, at in connections:
        receiver.open()
        for chunk in chunks_of(frames(*sent), at):
            receiver.receive(chunk)
            live += growing.read()
    receiver.close()
    while batch := growing.read():
        live += batch
    found, notes = read(folder)
    sent_all = [payload for sent, _ in connections for payload in sent]
    assert [m.payload for m in found] == sent_all
    assert live == sorted([*found, *notes], key=live.index)
    assert [note.kind for note in notes] == [Kind.OPEN] * len(connections) + [Kind.CLOSED]
    assert growing.final
    assert growing.dropped == 0
    received = [message.ts_recv for message in found]
    assert received == sorted(received)


@settings(max_examples=60, deadline=None)
@given(texts, cuts)
def test_arrival_numbers_rise_and_leave_room_for_every_event(
    tmp_path_factory: pytest.TempPathFactory, sent: list[bytes], at: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    receiver = Receiver(folder)
    receiver.open()
    for chunk in chunks_of(frames(*sent), at):
        receiver.receive(chunk)
    receiver.close()
    ends = -1
    for message in journal.messages(folder):
        assert message.arrival > ends
        # an event is at least two bytes of JSON, so a message has fewer events than bytes
        ends = message.arrival + max(len(message.payload) // 2 - 1, 0)
        assert message.arrival >> 25 == ends >> 25 == message.position


@settings(max_examples=60, deadline=None)
@given(texts, cuts, st.integers(0, 40))
def test_a_follower_that_begins_again_at_its_resume_point_misses_nothing(
    tmp_path_factory: pytest.TempPathFactory, sent: list[bytes], at: list[int], stop: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    receiver = Receiver(folder, segment_bytes=3000)
    first, before = Follower(folder), []
    receiver.open()
    for n, chunk in enumerate(chunks_of(frames(*sent), at)):
        receiver.receive(chunk)
        if n < stop:
            before += first.read()
    receiver.close()
    behind, _ = read(folder, after=first.resume)
    known = [item for item in before if isinstance(item, Message)]
    last = known[-1].arrival if known else -1
    assert [m.payload for m in [*known, *(m for m in behind if m.arrival > last)]] == sent


def write(folder: Path, count: int = 6) -> list[bytes]:
    """A journal whose writer was killed: raw, without an end; returns the messages in it."""
    receiver = Receiver(folder)
    receiver.open()
    sent = [b"message %d " % n * (n + 1) for n in range(count)]
    for payload in sent:
        receiver.receive(frames(payload))
    copy = raw_path(folder, 1).read_bytes()
    receiver.writer.close()
    sealed_name(raw_path(folder, 1)).unlink()
    raw_path(folder, 1).write_bytes(copy)
    return sent


def test_a_tail_torn_at_any_byte_keeps_every_record_before_it(tmp_path: Path) -> None:
    sent = write(tmp_path / "whole", 4)
    whole = raw_path(tmp_path / "whole", 1).read_bytes()
    starts, at = [], record.FILE_HEADER
    while at < len(whole):
        starts.append(at)
        at = record.scan(whole, at, None, limit=1).at
    for cut in range(starts[-3], len(whole)):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        raw_path(folder, 1).write_bytes(whole[:cut])
        ends = [s + 48 + len(frames(p)) for s, p in zip(starts[1:], sent, strict=True)]
        kept = sum(end <= cut for end in ends)
        recovery = journal.recover(folder)
        assert recovery.last is not None
        assert recovery.last.sequence == kept
        assert payloads(folder) == sent[:kept]
        _, notes = read(folder)
        assert notes[-1].kind is Kind.CLOSED
        assert notes[-1].facts["cause"] == "killed"
        again = journal.recover(folder)
        assert again.cut_bytes == 0
        assert payloads(folder) == sent[:kept]


def test_a_journal_that_was_recovered_can_be_gone_on_with(tmp_path: Path) -> None:
    sent = write(tmp_path)
    journal.recover(tmp_path)
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"later"))
    receiver.close()
    assert payloads(tmp_path) == [*sent, b"later"]
    sequences = [record.sequence for record in journal.records(tmp_path)]
    assert sequences == list(range(len(sequences)))


def test_who_goes_on_does_not_wait_for_the_segment_before_to_be_compressed(tmp_path: Path) -> None:
    sent = write(tmp_path)
    recovery = journal.recover(tmp_path, compress=False)
    assert raw_path(tmp_path, 1).exists()
    writer = Writer(tmp_path, ID, after=recovery.ends_at)
    assert writer.note(Kind.OPEN, {}, ts_recv=T0 + 99, monotonic=99) == recovery.ends_at + 1
    writer.close()
    assert not raw_path(tmp_path, 1).exists()
    assert payloads(tmp_path) == sent
    assert not [note for note in read(tmp_path)[1] if note.kind is Kind.GAP]


@pytest.mark.parametrize(("patience", "end"), [(60.0, "calm"), (60.0, "close"), (0.001, "patience")])
def test_compressing_waits_for_a_flood_to_end_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, end: str
) -> None:
    monkeypatch.setattr(writer, "SEAL_PATIENCE", patience)
    waits: list[bool] = []
    begun, waited = threading.Event(), threading.Event()

    class Calm(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            begun.set()
            waits.append(super().wait(timeout))
            waited.set()
            return waits[-1]

    receiver = Receiver(tmp_path, segment_bytes=1)
    receiver.writer.calm = Calm()
    receiver.open()
    receiver.receive(frames(b"before"))
    receiver.receive(frames(b"after"))
    receiver.writer.sync()
    assert begun.wait(60)
    if end == "calm":
        assert raw_path(tmp_path, 1).exists(), "it waits"
        receiver.writer.calm.set()
    elif end == "patience":
        assert waited.wait(60)
    receiver.close()
    assert waits[0] is (end != "patience")
    assert not list(tmp_path.glob("*.tlj"))
    assert payloads(tmp_path) == [b"before", b"after"]


def test_a_segment_that_was_never_compressed_is_not_taken_for_the_newest(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, segment_bytes=1)
    receiver.open()
    for n in range(3):
        receiver.receive(frames(b"message %d" % n))
    receiver.close()
    sealed = sealed_name(raw_path(tmp_path, 1))  # there was no room to compress it at the time
    with zstandard.open(sealed, "rb") as packed:
        raw_path(tmp_path, 1).write_bytes(packed.read())
    sealed.unlink()
    last = list(journal.records(tmp_path))[-1]
    recovery = journal.recover(tmp_path, compress=False)
    assert recovery.last == last
    assert recovery.ends_at == last.sequence


def test_a_journal_is_put_in_order_even_where_there_is_no_room_to_compress_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = write(tmp_path)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sealing.os, "fsync", full)
        with pytest.raises(Unwritable, match="no room"):
            journal.recover(tmp_path)
    assert payloads(tmp_path) == sent
    with monkeypatch.context() as patched:
        patched.setattr(sealing, "sync_folder", full)
        journal.recover(tmp_path)
    assert not list(tmp_path.glob("*.part"))
    assert payloads(tmp_path) == sent


def test_a_segment_killed_before_its_header_was_whole_is_removed(tmp_path: Path) -> None:
    sent = write(tmp_path)
    whole = raw_path(tmp_path, 1).read_bytes()
    raw_path(tmp_path, 2).write_bytes(whole[:30])
    recovery = journal.recover(tmp_path)
    assert recovery.cut_bytes == 30
    assert payloads(tmp_path) == sent


@pytest.mark.parametrize("number", [1, 2, 3])
def test_damage_in_the_middle_costs_one_record_and_is_noted_as_a_gap(tmp_path: Path, number: int) -> None:
    sent = write(tmp_path)
    raw = raw_path(tmp_path, 1)
    content = bytearray(raw.read_bytes())
    content[content.index(sent[number]) + 3] ^= 0xFF
    raw.write_bytes(content)
    live, notes = read(tmp_path)
    recovery = journal.recover(tmp_path)
    assert recovery.damaged == 1
    found, sealed_notes = read(tmp_path)
    rest = [payload for n, payload in enumerate(sent) if n != number]
    assert [m.payload for m in live] == [m.payload for m in found] == rest
    gaps = {tuple(n.facts.values()) for n in [*notes, *sealed_notes] if n.kind is Kind.GAP}
    assert gaps == {(T0 + number + 1, T0 + number + 3, "corrupt")}


def test_a_stream_goes_on_at_the_first_whole_message_behind_damage(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    wire = frames(b"a" * 100, b"b" * 100, b"c" * 100, b"d" * 100)
    for at in range(0, len(wire), 60):
        receiver.receive(wire[at : at + 60])
    content = bytearray(raw_path(tmp_path, 1).read_bytes())
    receiver.writer.close()
    sealed_name(raw_path(tmp_path, 1)).unlink()
    content[content.index(b"b" * 20)] ^= 1
    raw_path(tmp_path, 1).write_bytes(content)
    assert [payload[:1] for payload in payloads(tmp_path)] == [b"a", b"c", b"d"]


def test_a_first_segment_cut_to_nothing_is_a_gap(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, segment_bytes=200)
    receiver.open()
    for letter in b"abcd":
        receiver.receive(frames(bytes([letter]) * 100))
    receiver.close()
    sealed_name(raw_path(tmp_path, 1)).unlink()
    raw_path(tmp_path, 1).touch()
    found, notes = read(tmp_path)
    assert 0 < len(found) < 4
    assert [note.facts["cause"] for note in notes if note.kind is Kind.GAP] == ["corrupt"]


damage = st.lists(
    st.tuples(st.integers(0, 2**16), st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=3
)


def hurt(folder: Path, damages: list[tuple[int, int, int]]) -> None:
    """Change a byte of a segment (0: cut it off there), sealed or raw."""
    for which, where, change in damages:
        files = sorted(path for path in folder.iterdir() if ".tlj" in path.name)
        path = files[which % len(files)]
        content = bytearray(path.read_bytes())
        if content:
            at = where % len(content)
            content[at] ^= change
            path.write_bytes(content if change else content[:at])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(texts, cuts), min_size=1, max_size=3),
    st.sampled_from([200, 5000, 2**26]),
    st.sampled_from(["closed", "killed", "killed before it was sealed"]),
    damage,
)
def test_whatever_is_damaged_what_is_read_was_sent_and_what_is_missing_is_a_gap(
    tmp_path_factory: pytest.TempPathFactory,
    connections: list[tuple[list[bytes], list[int]]],
    segment_bytes: int,
    how: str,
    damages: list[tuple[int, int, int]],
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    receiver = Receiver(folder, segment_bytes=segment_bytes)
    sent: list[tuple[int, bytes]] = []
    for payloads_of, at in connections:
        receiver.open()
        told = [b"%d " % n + payload for n, payload in enumerate(payloads_of)]  # none like another
        for chunk in chunks_of(frames(*told), at):
            receiver.receive(chunk)
        sent += [(receiver.connection, payload) for payload in told]
    if how == "closed":
        receiver.close()
    else:
        receiver.writer.close()
        for sealed in folder.glob("*.zst") if "before" in how else ():
            with zstandard.open(sealed, "rb") as packed:
                sealed.with_suffix("").write_bytes(packed.read())
            sealed.unlink()
    hurt(folder, damages)
    for _ in range(3):
        found, notes = read(folder)
        gaps = [note.facts for note in notes if note.kind is Kind.GAP]
        assert all(gap["cause"] == "corrupt" for gap in gaps)
        at, before = 0, None
        for message in found:
            skipped = at
            while sent[at] != (message.connection, message.payload):  # IndexError: it was never sent
                at += 1
            if at > skipped:
                since = before.ts_recv if before else 0
                assert any(gap["end"] >= since and gap["start"] <= message.ts_recv for gap in gaps)
            at, before = at + 1, message
        ended = [note for note in notes if note.final]
        if at < len(sent) and ended:  # something is missing at the end, though the end is there
            assert gaps
        journal.recover(folder)


def test_messages_cut_off_by_the_end_of_a_connection_are_dropped_and_counted(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"whole") + frames(b"half of this")[:-3])
    receiver.note(Kind.CLOSED, cause="cut")
    receiver.open()
    receiver.receive(frames(b"again"))
    receiver.close()
    follower = Follower(tmp_path)
    found = [item.payload for item in follower.read() if isinstance(item, Message)]
    assert found == [b"whole", b"again"]
    assert follower.dropped == 1


def test_finished_segments_are_sealed_and_still_plain_zstd(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, segment_bytes=100_000)
    receiver.open()
    sent = [os.urandom(300).hex().encode() for _ in range(2000)]
    for at in range(0, len(sent), 20):
        receiver.receive(frames(*sent[at : at + 20]))
    receiver.close()
    assert len(numbers(tmp_path)) > 5
    assert not list(tmp_path.glob("*.tlj"))
    assert payloads(tmp_path) == sent
    first = sealed_name(raw_path(tmp_path, 1))
    with zstandard.open(first, "rb") as file:
        plain = file.read()
    assert record.parse_file_header(plain) is not None
    last = list(journal.records(tmp_path))[-1]
    assert [r.sequence for r in journal.records(tmp_path, after=last.sequence - 3)] == [
        last.sequence - 2,
        last.sequence - 1,
        last.sequence,
    ]


def test_sealing_cuts_long_segments_into_blocks_that_can_be_reached_one_by_one(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    chunk = frames(*(os.urandom(1000) for _ in range(500)))
    for _ in range(10):
        receiver.receive(chunk)
    receiver.close()
    sealed = open_sealed(sealed_name(raw_path(tmp_path, 1)))
    assert sealed is not None
    assert len(sealed.places) == 4
    raw = raw_path(tmp_path, 1)
    raw.write_bytes(b"".join(sealed.block(n) for n in range(4)))
    index = sealed.places
    sealed.path.unlink()
    seal(raw)
    again = open_sealed(sealed.path)
    assert again is not None
    # found by walking the segment instead of remembered while writing: other places, same content
    assert {place.sequence for place in again.places} <= {r.sequence for r in journal.records(tmp_path)}
    assert again.size == sealed.size
    assert len(index) == len(again.places)


def test_a_sealed_segment_counts_only_with_a_valid_index(tmp_path: Path) -> None:
    sent = write(tmp_path)
    raw = raw_path(tmp_path, 1)
    whole = raw.read_bytes()
    sealed = seal(raw)
    good = sealed.read_bytes()
    for damaged in (good[:-1], good[:-30], good[:-30] + b"x" + good[-29:], b""):
        raw.write_bytes(whole)
        sealed.write_bytes(damaged)
        assert payloads(tmp_path) == sent
    raw.write_bytes(whole[: len(whole) // 2])
    sealed.write_bytes(good)
    assert payloads(tmp_path) == sent
    journal.recover(tmp_path)
    assert payloads(tmp_path) == sent


@pytest.mark.parametrize("behind", [1, 9, 30])
def test_a_sealed_segment_whose_index_is_damaged_is_read_block_by_block(tmp_path: Path, behind: int) -> None:
    sent = write(tmp_path)
    sealed = seal(raw_path(tmp_path, 1))
    content = bytearray(sealed.read_bytes())
    content[-behind] ^= 0xFF
    sealed.write_bytes(content)
    assert payloads(tmp_path) == sent
    assert journal.recover(tmp_path).damaged == 0
    assert payloads(tmp_path) == sent


def test_a_segment_that_is_destroyed_is_a_gap_between_its_neighbours(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, segment_bytes=1)
    receiver.open()
    sent = [b"message %d" % n for n in range(4)]
    for payload in sent:
        receiver.receive(frames(payload))
    receiver.close()
    assert len(numbers(tmp_path)) == 5
    sealed_name(raw_path(tmp_path, 3)).write_bytes(b"not what was written")
    found, notes = read(tmp_path)
    assert [m.payload for m in found] == [sent[0], sent[1], sent[3]]
    (gap,) = [note.facts for note in notes if note.kind is Kind.GAP]
    assert gap == {"start": found[1].ts_recv, "end": found[2].ts_recv, "cause": "corrupt"}


def test_a_flush_that_fails_ends_the_journal_with_its_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"kept"))

    def broken(fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(writer, "flush_data", broken)
    with pytest.raises(Unwritable, match="Input/output error"):
        receiver.writer.sync()
    monkeypatch.undo()
    with pytest.raises(Unwritable):
        receiver.receive(frames(b"refused"))
    receiver.writer.close()
    found, notes = read(tmp_path)
    assert [m.payload for m in found] == [b"kept"]
    assert notes[-1].facts["cause"] == "unwritable"
    assert notes[-1].final


def test_a_damaged_block_of_a_sealed_segment_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = seal(raw_path(tmp_path, 1))
    content = bytearray(path.read_bytes())
    content[20] ^= 0xFF
    path.write_bytes(content)
    sealed = open_sealed(path)
    assert sealed is not None
    with pytest.raises(Damaged, match=r"000001\.tlj\.zst"):
        sealed.block(0)
    assert payloads(tmp_path) == []


def test_two_writers_cannot_hold_one_journal(tmp_path: Path) -> None:
    with Writer(tmp_path, ID):
        assert is_held(lock_path(tmp_path))
        with pytest.raises(Locked):
            Writer(tmp_path, ID)
        with pytest.raises(Locked):
            journal.recover(tmp_path)
    assert not is_held(lock_path(tmp_path))


def test_a_newer_journal_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    raw = raw_path(tmp_path, 1)
    content = raw.read_bytes()
    newer = record.FileHeader(record.VERSION + 1, 1, ID, 0, T0, 0)
    raw.write_bytes(record.pack_file_header(newer) + content[64:])
    with pytest.raises(StoreError, match="newer tapelab"):
        payloads(tmp_path)


def test_durable_follows_acknowledged(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"x"))
    assert receiver.writer.acknowledged == 1
    assert receiver.writer.durable <= 1
    receiver.writer.sync()
    assert receiver.writer.durable == 1
    receiver.close()


def test_a_full_disk_ends_the_journal_with_its_cause_and_loses_nothing(tmp_path: Path) -> None:
    """A process whose files may not grow beyond 200 kB stands for the full disk: same road, no root."""
    script = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_journal import Receiver, frames
from tapelab.errors import Unwritable
receiver = Receiver(Path({str(tmp_path)!r}))
receiver.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 400_000))
n = 0
try:
    while True:
        receiver.receive(frames(b"%06d" % n * 1000))
        n += 1
except Unwritable as error:
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
    receiver.writer.close()
    print(n, error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.split(" ", 1)
    assert "no room left" in message
    assert int(count) > 20
    assert [int(p[:6]) for p in payloads(tmp_path)] == list(range(int(count)))


def test_the_last_record_on_a_full_disk_uses_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"kept"))
    real = os.writev

    def full(fd: int, buffers: list[bytes]) -> int:
        if (tmp_path / "reserve").exists():
            raise OSError(28, "No space left on device")
        return real(fd, buffers)

    monkeypatch.setattr(os, "writev", full)
    with pytest.raises(Unwritable, match="no room left"):
        receiver.receive(frames(b"lost"))
    with pytest.raises(Unwritable):
        receiver.receive(frames(b"lost too"))
    receiver.writer.close()
    found, notes = read(tmp_path)
    assert [m.payload for m in found] == [b"kept"]
    assert notes[-1].facts["cause"] == "disk_full"
    assert notes[-1].final


def test_a_stream_that_nobody_records_keeps_only_its_newest_segments(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, segment_bytes=1000, keep=2)
    receiver.open()
    for n in range(60):
        receiver.receive(frames(b"%03d" % n * 30))
        receiver.writer.sync()
    receiver.close()
    assert len(numbers(tmp_path)) <= 4
    assert payloads(tmp_path)[-1][:3] == b"059"


def test_an_unknown_kind_of_record_is_passed_over(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"one"))
    receiver.writer.append(99, b"from the future", ts_recv=T0 + 9, monotonic=9)  # type: ignore[arg-type]
    receiver.receive(frames(b"two"))
    receiver.close()
    assert payloads(tmp_path) == [b"one", b"two"]


def of_version_1(number: int, sequence: int, payloads: list[bytes]) -> bytes:
    """A segment as tapelab first wrote them, by the page that described it."""
    head = struct.pack("<8sHHI16sqqq", b"\x89TLJ\r\n\x1a\n", 1, 0, number, ID, sequence, T0, 0)
    segment = head + struct.pack("<II", zlib.crc32(head), 0)
    for place, payload in enumerate(payloads, sequence):
        facts = (b"tLj\x81", Kind.DATA, 0, 1, len(payload), 0, place, T0 + place, place, zlib.crc32(payload))
        head = struct.pack("<4sBBHIIqqqI", *facts)
        segment += head + struct.pack("<I", zlib.crc32(head)) + payload + bytes(-len(payload) % 8)
    return segment


def test_a_journal_of_the_first_version_is_read_and_gone_on_with(tmp_path: Path) -> None:
    raw_path(tmp_path, 1).write_bytes(of_version_1(1, 0, [frames(b"one"), frames(b"two")]))
    journal.recover(tmp_path)
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(b"three"))
    receiver.close()
    assert payloads(tmp_path) == [b"one", b"two", b"three"]


def test_damage_in_a_journal_of_the_first_version_costs_one_record(tmp_path: Path) -> None:
    content = of_version_1(1, 0, [frames(b"one"), frames(b"two"), frames(b"three")])
    raw_path(tmp_path, 1).write_bytes(content.replace(b"two", b"tvo"))
    found, notes = read(tmp_path)
    assert [message.payload for message in found] == [b"one", b"three"]
    assert [note.facts["cause"] for note in notes] == ["corrupt"]


def test_a_flood_gets_its_disk_ahead_and_gives_back_what_it_did_not_use(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, keep=3)
    receiver.open()
    much = frames(*[b"x" * 60_000] * 10)
    receiver.receive(much)
    first = raw_path(tmp_path, 1)
    assert first.stat().st_size < len(much) + 1000
    assert payloads(tmp_path) == [b"x" * 60_000] * 10
    receiver.writer.rotate()
    receiver.writer.sync()
    assert first.stat().st_blocks * 512 < len(much) + 65_536
    receiver.close()


def test_a_disk_that_gives_nothing_ahead_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "_fallocate", lambda *asked: -1)
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(*[b"x" * 60_000] * 10))
    receiver.close()
    assert payloads(tmp_path) == [b"x" * 60_000] * 10
