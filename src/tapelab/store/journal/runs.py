"""Runs of messages: what stands whole in one record of a journal, few objects for many messages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tapelab.massive.wire import Run as Side
from tapelab.massive.wire.compiled import Kernel
from tapelab.store.journal.reading import Message, Note, base_of
from tapelab.store.journal.record import Record

MOST = 4096  # messages of one run


class Run(Side, frozen=True):
    """Messages that stand side by side in one record; `last` is the arrival number of the last of them."""

    connection: int
    position: int

    @property
    def count(self) -> int:
        return len(self.begins)

    @property
    def last(self) -> int:
        return self.arrival + int(self.begins[-1])

    def messages(self) -> list[Message]:
        """Each message by itself."""
        connection, position = self.connection, self.position
        return [Message(data, self.ts_recv, arrival, connection, position) for data, arrival in self.each()]


class Skim:
    """Finds the messages that stand whole in a record at compiled speed: see `Follower.runs`."""

    def __init__(self, kernel: Kernel) -> None:
        self._walk = kernel.walk
        self._begins, self._ends = np.empty(MOST, np.int64), np.empty(MOST, np.int64)

    def __call__(self, record: Record, at: int) -> tuple[list[Run], int]:
        """Runs from `at` on, where a frame begins, and where the last one ends."""
        data, base = np.frombuffer(record.data, np.uint8, record.end), base_of(record)
        found, count = list[Run](), MOST
        while count == MOST:
            count, size, at = self._walk(data, at, self._begins, self._ends)
            if count:
                spans = self._begins[:count].copy(), self._ends[:count].copy()
                came = record.ts_recv, base, record.connection, record.sequence
                found.append(Run(record.data, *spans, size, *came))
        return found, at


def expand(items: Iterable[Run | Message | Note]) -> list[Message | Note]:
    """Each message by itself."""
    found: list[Message | Note] = []
    for item in items:
        if isinstance(item, Run):
            found += item.messages()
        else:
            found.append(item)
    return found
