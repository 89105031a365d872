"""A recording that still grows, as a tape and as a script: one paid connection, any number of programs.

The script is what the recording receives, event by event as it comes, bytes unchanged, from the moment it was
opened. History is what is there when somebody asks.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from tapelab.errors import ServeError
from tapelab.exchange.script import Ints, Part, Script, Topics
from tapelab.exchange.tape import LOOK_AGAIN, DatasetTape, Held
from tapelab.market import clock, tables
from tapelab.market.clock import MILLISECOND
from tapelab.massive.wire.columns import NOT_JSON
from tapelab.store import manifest, parts
from tapelab.store.columns import KINDS, Decoder, Position
from tapelab.store.growing import JOURNAL
from tapelab.store.journal import Follower, Message, last_sequence
from tapelab.store.segments import is_held, lock_path

if TYPE_CHECKING:
    from tapelab.store.dataset import Dataset

FOREVER = 1 << 62
MAX_CHUNKS = 64  # of a table, before they are put together
_IN_NANOSECONDS = frozenset({"LULD", "NOI"})  # the other channels stamp in milliseconds


class GrowingTape(DatasetTape):
    """A recording under way. Raises `ServeError` where nobody records."""

    def __init__(self, dataset: Dataset) -> None:
        self.journal = dataset.path / JOURNAL
        if not dataset.growing or not is_held(lock_path(self.journal)):
            raise ServeError(
                f"Nobody records {dataset.name!r} just now.",
                remedy="Serve it without following, or follow the recording that it reads from.",
            )
        self._recorded = _Recorded(dataset.path)
        super().__init__(dataset)

    @property
    def newest(self) -> int:
        """The time of the newest event, ns UTC; 0 if there is none yet."""
        stamps = [table.column("ts_event") for table in self._held.ticks.values() if len(table)]
        return max((int(np.max(column.to_numpy())) for column in stamps), default=0)

    @property
    def _held(self) -> Held:
        return self._recorded.held()[0]

    def version(self, product: str, day: date) -> Hashable:
        return self._recorded.held()[1]

    def _hold(self, dataset: Dataset) -> Held:
        return self._held


class _Recorded:
    """What a recording holds so far; looked at again when somebody asks, once a second at most."""

    def __init__(self, folder: Path) -> None:
        known = manifest.load(folder)
        self._tables = {
            kind: tables.concat(
                [parts.read_segment(folder, segment) for segment in known.segments if segment.kind == kind],
                tables.SCHEMAS[kind],
            )
            for kind in KINDS
        }
        done = known.decoded
        self._decoder = Decoder(folder / JOURNAL, Position(done.resume, done.arrival, done.note))
        self._lock = threading.Lock()
        self._looked = clock.monotonic() - LOOK_AGAIN
        self._grown = 0
        self._held = Held.of(self._tables.__getitem__)

    def held(self) -> tuple[Held, int]:
        """The ticks, and a number that changes when they do."""
        with self._lock:
            if clock.monotonic() - self._looked >= LOOK_AGAIN:
                self._look()
                self._looked = clock.monotonic()
            return self._held, self._grown

    def _look(self) -> None:
        until = clock.now()  # it may grow faster than it is read
        grew = self._grown == 0
        while items := self._decoder.advance():
            grew = True
            if items[-1].ts_recv > until:
                break
        if grew:
            self._grown += 1
            for kind, table in self._decoder.take().items():
                together = tables.concat([self._tables[kind], table], tables.SCHEMAS[kind])
                many = together.column(0).num_chunks > MAX_CHUNKS
                self._tables[kind] = together.combine_chunks() if many else together
            self._held = Held.of(self._tables.__getitem__)


class GrowingScript(Script):
    """What a recording receives from now on; `ended` once it has."""

    grows = True

    def __init__(self, tape: GrowingTape) -> None:
        self.topics = Topics(tests_too=tape.simulated)
        self.start = tape.newest
        self.end = FOREVER
        self.ended = False
        self._journal = tape.journal
        self._live = last_sequence(tape.journal)

    def part(self, since: int) -> Part | None:
        """What arrives; or, for who is behind, what arrived earlier, from the beginning of the journal."""
        reading = _Reading(self, self._journal, self._live if since >= self.start else -1, self.start)
        return Part(np.empty(0, np.int64), np.empty(0, np.int32), lambda places: [], reading.following)


class _Head(msgspec.Struct):
    """What tells whose event it is and when; bars are stamped with their end."""

    ev: str
    sym: str = ""
    T: str = ""
    t: int | float = 0
    e: int | float = 0

    @property
    def at(self) -> int:
        return round((self.t or self.e) * (1 if self.ev in _IN_NANOSECONDS else MILLISECOND))


_head = msgspec.json.Decoder(_Head)
_events = msgspec.json.Decoder(list[msgspec.Raw])


class _Reading:
    """One reading of a journal, from behind the record `after`."""

    def __init__(self, script: GrowingScript, journal: Path, after: int, at: int) -> None:
        self._script = script
        self._follower = Follower(journal, after=after)
        self._at = at if after >= 0 else 0

    def following(self) -> Part | None:
        """The events that have come since; None if there are none yet."""
        while True:
            live = self._follower.is_live()  # looked at before reading: nothing is missed
            items = self._follower.read()
            if not items:
                self._script.ended = self._script.ended or not live or self._follower.final
                return None
            found = [pair for item in items if isinstance(item, Message) for pair in _told(item.payload)]
            if found:
                return self._part(found)

    def _part(self, found: list[tuple[_Head, bytes]]) -> Part:
        stamps = np.array([self._at, *(head.at for head, _ in found)], dtype=np.int64)
        at = np.maximum.accumulate(stamps)[1:]
        self._at = int(at[-1])
        number = self._script.topics.number
        topics = np.array([number(head.ev, head.sym or head.T) for head, _ in found], dtype=np.int32)

        def encoded(places: Ints) -> list[bytes]:
            return [found[n][1] for n in places.tolist()]

        return Part(at, topics, encoded, self.following)


def _told(message: bytes) -> Iterator[tuple[_Head, bytes]]:
    """The events of a message; what is malformed stays in the recording."""
    try:
        events = _events.decode(message)
    except NOT_JSON:
        return
    for event in events:
        try:
            head = _head.decode(event)
        except NOT_JSON:
            continue
        if head.ev != "status":
            yield head, bytes(event)
