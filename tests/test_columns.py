"""A journal decodes into the same columns whether it is read at once, as it grows, or in two goes."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams import message, quote, status, trade
from tapelab.errors import StoreError
from tapelab.massive.wire import bulk, compiled
from tapelab.store.datasets import columns
from tapelab.store.datasets.columns import Decoder, Position
from tapelab.store.journal import Follower, Kind, Message, Note, reading, record, runs, segments
from test_frames import Stream, streams
from test_journal import Receiver, chunks_of, frames

events = st.lists(
    st.lists(st.tuples(st.sampled_from([quote, trade]), st.integers(0, 500)), min_size=1, max_size=5),
    max_size=12,
)
cuts = st.lists(st.integers(0, 3000), max_size=20)

PATIENCE = 30.0  # seconds


@pytest.fixture(scope="module", autouse=True, params=["plain", "compiled", "far behind"])
def _way(request: pytest.FixtureRequest) -> Iterator[None]:
    """Everything here holds before the kernel is ready and after, and while it is read ahead."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "plain":
            patch.setattr(compiled, "_kernel", None)
            patch.setattr(bulk, "WARM_AFTER", 2**62)
        else:
            assert compiled.wait() is not None, compiled.problem()
            patch.setattr(bulk, "AT_LEAST", 0)
            patch.setattr(reading, "WORTH", 0)
            patch.setattr(runs, "MOST", 3)
        if request.param == "far behind":
            patch.setattr(segments, "READ", 1000)
            patch.setattr(columns, "ENOUGH", 500)
            patch.setattr(bulk, "AT_MOST", 300)
        yield


def take_all(decoder: Decoder) -> dict[str, pa.Table]:
    while decoder.advance():
        pass
    return decoder.take()


def joined(first: dict[str, pa.Table], second: dict[str, pa.Table]) -> dict[str, pa.Table]:
    return {kind: pa.concat_tables([first[kind], second[kind]]) for kind in first}


@settings(max_examples=60, deadline=None)
@given(events, cuts, st.integers(0, 20), st.sampled_from([{}, {"keep": 99}]))
def test_columns_are_the_same_however_the_journal_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    told: list[list[tuple[object, int]]],
    at: list[int],
    stop: int,
    options: dict[str, int],
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    wire = frames(*(message(*(make(n) for make, n in some)) for some in told))  # type: ignore[operator]
    receiver = Receiver(folder, segment_bytes=4000, **options)
    receiver.open()
    growing, early = Decoder(folder), Decoder(folder)
    for n, chunk in enumerate(chunks_of(wire, at)):
        receiver.receive(chunk)
        growing.advance()
        if n < stop:
            early.advance()
    receiver.close()
    whole = take_all(Decoder(folder))
    assert take_all(growing) == whole
    late = Decoder(folder, early.position)
    assert joined(early.take(), take_all(late)) == whole
    assert early.frames + late.frames == len(told)
    flat = [(make, n) for some in told for make, n in some]
    for kind, make in (("quotes", quote), ("trades", trade)):
        assert whole[kind].column("sequence").to_pylist() == [n for m, n in flat if m is make]
    arrivals = sorted(
        whole["quotes"].column("arrival").to_pylist() + whole["trades"].column("arrival").to_pylist()
    )
    assert len(set(arrivals)) == len(flat)


def test_what_has_no_columns_is_counted_and_stays_in_the_journal(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(
        frames(
            message(status("connected", "hello")),
            message(quote(1), {"ev": "LULD", "T": "AAPL"}, {"ev": "Q", "sym": 5}),
            b"not json",
            message(trade(2)),
        )
    )
    receiver.receive(frames(message(trade(3)))[:-1])
    receiver.close()
    decoder = Decoder(tmp_path)
    found = take_all(decoder)
    assert (len(found["quotes"]), len(found["trades"])) == (1, 1)
    assert (decoder.frames, decoder.unknown, decoder.malformed, decoder.dropped) == (4, 1, 2, 1)
    assert decoder.final


def test_notes_that_were_read_before_are_not_told_again(tmp_path: Path) -> None:
    receiver = Receiver(tmp_path)
    receiver.open()
    receiver.receive(frames(message(quote(1)))[:10])
    receiver.note(Kind.CLOCK, ahead=0)
    first = Decoder(tmp_path)
    seen = [item for item in first.advance() if isinstance(item, Note)]
    receiver.receive(frames(message(quote(1)))[10:])
    receiver.close()
    again = Decoder(tmp_path, first.position)
    later = []
    while more := again.advance():
        later += [item for item in more if isinstance(item, Note)]
    assert [note.kind for note in seen] == [Kind.OPEN, Kind.CLOCK]
    assert [note.kind for note in later] == [Kind.CLOSED]
    assert len(again.take()["quotes"]) == 1
    assert first.position != Position()


@settings(max_examples=60, deadline=None)
@given(streams(), cuts)
def test_runs_hold_the_messages_that_are_read_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, stream: Stream, at: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    receiver = Receiver(folder)
    receiver.open()
    for chunk in chunks_of(stream.wire, at):
        receiver.receive(chunk)
    receiver.close()
    kernel = compiled.kernel(warm=False)
    skim = runs.Skim(kernel) if kernel else None
    one_by_one, together = Follower(folder), Follower(folder)
    while items := one_by_one.read():
        assert runs.expand(together.runs(skim)) == items
        assert together.resume == one_by_one.resume
    assert [item.payload for item in Follower(folder).read() if not isinstance(item, Note)] == stream.messages


def test_a_header_that_was_cut_costs_no_run(tmp_path: Path) -> None:
    kernel = compiled.kernel(warm=False)
    if kernel is None:
        return  # the plain way knows no runs
    receiver = Receiver(tmp_path)
    receiver.open()
    told = [frames(message(quote(n))) for n in range(9)]
    for chunk in chunks_of(b"".join(told), [len(told[0]) + 1]):
        receiver.receive(chunk)
    follower, found = Follower(tmp_path), []
    while some := follower.runs(runs.Skim(kernel)):
        found += [item for item in some if not isinstance(item, Note)]
    assert [item.count for item in found] == [1, 1, 3, 3, 1]
    assert [isinstance(item, Message) for item in found] == [False, True, False, False, False]


def test_what_goes_wrong_while_reading_ahead_comes_at_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "ENOUGH", 1)
    receiver = Receiver(tmp_path, segment_bytes=200, keep=9)
    receiver.open()
    for n in range(3):
        receiver.receive(frames(message(quote(n))))
    receiver.close()
    newest = segments.numbers(tmp_path)[-1]
    header = segments.read_header(tmp_path, newest)
    assert header is not None
    with segments.raw_path(tmp_path, newest).open("r+b") as file:
        file.write(record.pack_file_header(header._replace(version=99)))
    decoder = Decoder(tmp_path)
    for _ in range(2):
        with pytest.raises(StoreError, match="newer tapelab"):
            take_all(decoder)
    assert decoder.frames == len(decoder.take()["quotes"]) == 2


def test_what_was_read_before_a_disk_failed_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver(tmp_path, segment_bytes=200)
    receiver.open()
    for n in range(4):
        receiver.receive(frames(message(quote(n))))
    receiver.close()
    read, calls = segments.RecordReader.read, iter(range(99))

    def failing(reader: segments.RecordReader) -> list[record.Record | segments.Hole]:
        if next(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return read(reader)

    monkeypatch.setattr(segments.RecordReader, "read", failing)
    decoder = Decoder(tmp_path)
    with pytest.raises(OSError, match="Input/output"):
        take_all(decoder)
    assert len(take_all(decoder)["quotes"]) == decoder.frames == 4


@pytest.mark.parametrize("processors", [1, 2])
def test_no_thread_outlives_its_decoder_and_none_starts_where_one_processor_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processors: int
) -> None:
    monkeypatch.setattr(segments, "READ", 1000)
    monkeypatch.setattr(columns, "ENOUGH", 1)
    monkeypatch.setattr(columns, "_processors", lambda: processors)
    before = set(threading.enumerate())
    receiver = Receiver(tmp_path, keep=9)
    receiver.open()
    for n in range(20):
        receiver.receive(frames(message(quote(n)), message(quote(n))))
    receiver.close()
    closed, forgotten = Decoder(tmp_path), Decoder(tmp_path)
    assert take_all(closed)["quotes"].equals(take_all(forgotten)["quotes"])
    assert closed.frames == 40
    started = [t for t in set(threading.enumerate()) - before if t.name.startswith("tapelab-decode")]
    assert bool(started) == (processors > 1)
    closed.close()
    del forgotten
    for thread in started:
        thread.join(PATIENCE)
        assert not thread.is_alive()
