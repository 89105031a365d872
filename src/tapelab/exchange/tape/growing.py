"""A tape of a recording that still grows: what is there when somebody asks."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tapelab.errors import ServeError
from tapelab.exchange.tape.recorded import DatasetTape, Held
from tapelab.market import clock, tables
from tapelab.market.clock import SECOND
from tapelab.store.datasets import manifest, parts
from tapelab.store.datasets.columns import KINDS, Decoder, Position
from tapelab.store.datasets.growing import JOURNAL
from tapelab.store.journal.segments import is_held, lock_path

if TYPE_CHECKING:
    from tapelab.store.datasets.dataset import Dataset

LOOK_AGAIN = SECOND  # after this a journal is looked through anew
MAX_CHUNKS = 64  # of a table, before they are put together


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
        self._decoder = Decoder(folder / JOURNAL, Position(done.resume, done.arrival, done.note, done.shift))
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
        while items := self._decoder.read():
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
