"""A journal as messages: the text frames put together again, and what the receiver noted beside them.

Arrival numbers order events across channels. An event's number is the sequence of the record in which
its message ended, and its place there:

    arrival = (sequence << 25) + 2^24 + offset behind the message in the record - length of the message + n

with n counting the events of a message from 0. A message holds fewer events than bytes, so numbers never
meet, whatever the chunks were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import msgspec

from tapelab.store.journal.frames import MAX_MESSAGE, NOWHERE, Assembler
from tapelab.store.journal.record import FINAL, Kind, Record
from tapelab.store.journal.segments import Hole, RecordReader, is_held, lock_path

ARRIVAL_BITS = 25
WORTH = 4 * 2**10  # bytes of a record; fewer are walked in Python as quickly


R = TypeVar("R")  # several messages as one object, as `runs` makes them
Skim = Callable[[Record, int], tuple[list[R], int]]


class Message(msgspec.Struct, frozen=True, gc=False):
    """One text message: its bytes, when its last byte arrived (ns UTC), and the number of its first event."""

    payload: bytes
    ts_recv: int
    arrival: int
    connection: int
    position: int  # sequence of the record in which it ended

    @property
    def size(self) -> int:
        return len(self.payload)

    @property
    def count(self) -> int:
        return 1

    @property
    def last(self) -> int:
        return self.arrival


class Note(NamedTuple):
    """What the receiver wrote down beside the data: an opening, topics, an end, a gap, the clock."""

    kind: Kind
    facts: dict[str, object]
    ts_recv: int
    connection: int
    position: int
    final: bool = False


class Follower:
    """Reads a journal from the start, or behind `after`, and goes on with what is added to it.

    `resume` is the position to give as `after` to a later follower, so that it misses nothing; the
    messages it then meets again have arrival numbers that are not new.
    """

    def __init__(self, folder: Path, *, after: int = -1) -> None:
        self.folder = folder
        self.resume = after
        self.final = False
        self.dropped = 0  # messages that the end of a connection cut off
        self._reader = RecordReader(folder, after=after)
        self._connection = -1
        self._assembler = Assembler(resuming=True)
        self._hole: Hole | None = None

    def read(self) -> list[Message | Note]:
        """What is new; empty when there is nothing. Never waits, and returns a bounded amount."""
        return cast("list[Message | Note]", self.runs(None))

    def runs(self, skim: Skim[R] | None) -> list[R | Message | Note]:
        """As `read`, but the messages that stand side by side in a record as one run, found by `skim`."""
        while True:
            batch = self._reader.read()
            found: list[R | Message | Note] = []
            for item in batch:
                if isinstance(item, Hole):
                    self._hole = self._hole or item
                    self._lose_message()
                else:
                    self._take(item, found, skim)
            if found or not batch:
                return found

    @property
    def at_end(self) -> bool:
        """Whether the last read has taken all that was there."""
        return self._reader.at_end

    def is_live(self) -> bool:
        """Whether a writer still holds the journal."""
        return is_held(lock_path(self.folder))

    def close(self) -> None:
        self._reader.close()

    def _take(self, record: Record, found: list[R | Message | Note], skim: Skim[R] | None) -> None:
        if self._hole is not None:
            found.append(_lost(self._hole, record))
            self._hole = None
        if record.kind == Kind.DATA:
            self._data(record, found, skim)
        elif isinstance(record.kind, Kind):
            self._note(record, record.kind, found)

    def _data(self, record: Record, found: list[R | Message | Note], skim: Skim[R] | None) -> None:
        at, end = record.begin, record.end
        if record.connection != self._connection:
            # the opening of this connection is not there: begin at the first whole frame
            self._connection = record.connection
            self._assembler = Assembler(resuming=True)
            if record.first == NOWHERE:
                self._connection = -1
                return
            at += record.first
        if skim is not None and end - at >= WORTH:
            while self._assembler.torn and at < end:  # of a header that was cut no rest is known yet
                at = self._messages(record, at, min(at + (self._assembler.rest or 1), end), found)
            if not self._assembler.torn:
                runs, at = skim(record, at)
                if runs:
                    self._assembler.pass_over()
                    self.resume = record.sequence - 1
                    found += runs
        self._messages(record, at, end, found)
        if not self._assembler.torn:
            self.resume = record.sequence

    def _messages(self, record: Record, at: int, end: int, found: list[R | Message | Note]) -> int:
        base = base_of(record)
        for payload, stop in self._assembler.feed(record.data, end, start=at):
            arrival = base + stop - len(payload)
            found.append(Message(payload, record.ts_recv, arrival, record.connection, record.sequence))
            self.resume = record.sequence - 1
        return end

    def _note(self, record: Record, kind: Kind, found: list[R | Message | Note]) -> None:
        if kind is Kind.OPEN:
            self._lose_message()
            self._connection = record.connection
            self._assembler = Assembler()
            self.final = False  # a recording that had ended goes on
        elif kind is Kind.CLOSED:
            self._lose_message()
            self.final = bool(record.flags & FINAL)
        if not self._assembler.torn:
            self.resume = record.sequence
        facts = msgspec.json.decode(record.payload, type=dict[str, object])
        found.append(Note(kind, facts, record.ts_recv, record.connection, record.sequence, self.final))

    def _lose_message(self) -> None:
        if self._assembler.torn:
            self.dropped += 1
        self._connection = -1
        self._assembler = Assembler(resuming=True)


def base_of(record: Record) -> int:
    """The number of an event whose message begins at the first byte of the record's `data`."""
    return (record.sequence << ARRIVAL_BITS) + MAX_MESSAGE - record.begin


def _lost(hole: Hole, following: Record) -> Note:
    start = following.ts_recv if hole.since is None else hole.since
    facts: dict[str, object] = {"start": start, "end": following.ts_recv, "cause": "corrupt"}
    return Note(Kind.GAP, facts, following.ts_recv, following.connection, following.sequence - 1)


def messages(folder: Path, *, after: int = -1) -> Iterator[Message]:
    """The text messages of a journal in order of arrival, those that are there now."""
    follower = Follower(folder, after=after)
    while found := follower.read():
        yield from (item for item in found if isinstance(item, Message))


def records(folder: Path, *, after: int = -1) -> Iterator[Record]:
    """The records of a journal in order, those that are there now; damaged stretches are passed over."""
    reader = RecordReader(folder, after=after)
    while batch := reader.read():
        yield from (item for item in batch if isinstance(item, Record))
