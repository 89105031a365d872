"""A journal as columns: what arrived, decoded. Whatever is decoded here can be decoded again."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.massive.wire import BulkDecoder, Scanned, compiled
from tapelab.store.journal import Follower, Message, Note
from tapelab.store.journal.runs import Run, Skim, expand

KINDS = ("quotes", "trades", "bars")
ENOUGH = 3 * 2**20  # bytes of messages decoded at a time, if so many are there
AHEAD, THREADS = 7, 2  # while far behind: how often so many are read ahead, and who decodes them


@dataclass(frozen=True)
class Position:
    """How far a journal has been decoded, so that another decoder can go on from there.

    `resume` is where to read from; what is then met again is known by its number: messages up to
    `arrival`, notes up to `note`. `shift` is added to the arrival numbers of the rows, where another journal
    came before.
    """

    resume: int = -1
    arrival: int = -1
    note: int = -1
    shift: int = 0


class _Read(NamedTuple):
    """Some of what is new in a journal, and how its follower stands behind it."""

    found: list[Run | Message | Note]
    resume: int
    dropped: int
    final: bool
    at_end: bool

    @property
    def messages(self) -> list[Run | Message]:
        return [item for item in self.found if not isinstance(item, Note)]


class Decoder:
    """Follows a journal and gathers quotes, trades and minute bars until they are taken.

    `advance` reads what is new and never waits; `take` gives the tables gathered since the last time, in
    order of arrival. The counters count what was read by this decoder. While it is far behind, it reads
    ahead and decodes in threads of its own. Not for several threads at once.
    """

    def __init__(self, folder: Path, position: Position | None = None) -> None:
        self._from = position or Position()
        self.position = self._from
        self.frames = 0
        self.bytes = 0
        self.gathered = 0  # bytes of messages since the last `take`
        self._follower = Follower(folder, after=self._from.resume)
        self._caught_up = position is None
        self._wire = BulkDecoder()
        self._skim: Skim | None = None
        self._behind = _Read([], self._from.resume, 0, False, True)
        self._ahead: deque[tuple[_Read, Callable[[], Scanned]]] = deque()
        self._error: Exception | None = None  # from reading, told behind what was found before it
        self._threads: ThreadPoolExecutor | None = None

    @property
    def unknown(self) -> int:
        """Events of channels that have no table; they stay in the journal."""
        return self._wire.plain.unknown.total()

    @property
    def unknown_fields(self) -> int:
        """Fields that the vendor added to events that have a table; they stay in the journal."""
        return self._wire.plain.unknown_fields.total()

    @property
    def malformed(self) -> int:
        return self._wire.plain.malformed

    @property
    def dropped(self) -> int:
        """Messages that the end of a connection cut off."""
        return self._behind.dropped

    @property
    def final(self) -> bool:
        """Whether the journal's last record has been read and says that it is the last."""
        return self._behind.final

    def is_live(self) -> bool:
        """Whether somebody still writes the journal."""
        return self._follower.is_live()

    def advance(self) -> list[Message | Note]:
        """Read and decode a bounded amount of what is new; gives the messages and notes themselves."""
        return expand(self.read())

    def read(self) -> list[Run | Message | Note]:
        """As `advance`, but gives the messages that stand side by side in a record as one run."""
        self._read_ahead()
        read, scanned = self._ahead.popleft()
        self._behind = read
        if messages := read.messages:
            self.gathered += self._wire.add(scanned())
            self.frames += sum([item.count for item in messages])
        notes = [item for item in read.found if isinstance(item, Note)]
        before = self.position
        self.position = Position(
            read.resume,
            messages[-1].last if messages else before.arrival,
            notes[-1].position if notes else before.note,
        )
        return read.found

    def _read_ahead(self) -> None:
        """Read on while there is more, and have what was read scanned meanwhile by threads of its own.

        Not while somebody writes the journal, since the receiver needs a processor more, nor where there is
        only one.
        """
        while len(self._ahead) < AHEAD and self._error is None:
            read = self._next()
            if not read.found and (self._ahead or self._error is not None):
                break
            last = read.at_end or not read.found or self.is_live() or _processors() == 1
            scan: Callable[[], Scanned] = partial(self._wire.scan, read.messages)
            if self._ahead or not last:
                self._threads = self._threads or ThreadPoolExecutor(THREADS, "tapelab-decode")
                scan = self._threads.submit(scan).result
            self._ahead.append((read, scan))
            if last:
                break
        if self._error is not None and not self._ahead:  # now is its turn
            failed, self._error = self._error, None
            raise failed

    def _next(self) -> _Read:
        kernel = compiled.kernel(warm=False)
        if self._skim is None and kernel is not None:
            self._skim = Skim(kernel)
        follower, found, size = self._follower, list[Run | Message | Note](), 0
        try:
            while size < ENOUGH and (some := follower.runs(self._skim)):
                if not self._caught_up:
                    some = [item for item in some if self._is_new(item)]
                    self._caught_up = bool(some)
                size += sum([item.size for item in some if not isinstance(item, Note)]) + len(some)
                found += some
                if follower.at_end:
                    break
        except Exception as error:
            self._error = error
        return _Read(found, follower.resume, follower.dropped, follower.final, follower.at_end)

    def _is_new(self, item: Run | Message | Note) -> bool:
        if isinstance(item, Note):
            return item.position > self._from.note
        return item.last > self._from.arrival

    def take(self) -> dict[str, pa.Table]:
        """The tables gathered since the last time: `quotes`, `trades`, `bars`."""
        self.bytes += self.gathered
        self.gathered = 0
        taken = self._wire.take()
        return {kind: _later(taken[kind], self._from.shift) for kind in KINDS}

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._follower.close()


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _later(table: pa.Table, shift: int) -> pa.Table:
    if not shift or "arrival" not in table.column_names:
        return table
    place = table.schema.get_field_index("arrival")
    return table.set_column(place, table.schema.field(place), pc.add(table.column(place), shift))
