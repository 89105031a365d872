"""A journal as columns: what arrived, decoded. Whatever is decoded here can be decoded again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.massive.wire import BulkDecoder, compiled
from tapelab.store.journal import Follower, Message, Note
from tapelab.store.journal.runs import Run, Skim, expand

KINDS = ("quotes", "trades", "bars")
ENOUGH = 3 * 2**20  # bytes of messages decoded at a time, if so many are there


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


class Decoder:
    """Follows a journal and gathers quotes, trades and minute bars until they are taken.

    `advance` reads what is new and never waits; `take` gives the tables gathered since the last time, in
    order of arrival. The counters count what was read by this decoder. Not for several threads at once.
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
        return self._follower.dropped

    @property
    def final(self) -> bool:
        """Whether the journal's last record has been read and says that it is the last."""
        return self._follower.final

    def is_live(self) -> bool:
        """Whether somebody still writes the journal."""
        return self._follower.is_live()

    def advance(self) -> list[Message | Note]:
        """Read and decode a bounded amount of what is new; gives the messages and notes themselves."""
        return expand(self.read())

    def read(self) -> list[Run | Message | Note]:
        """As `advance`, but gives the messages that stand side by side in a record as one run."""
        kernel = compiled.kernel(warm=False)
        if self._skim is None and kernel is not None:
            self._skim = Skim(kernel)
        found: list[Run | Message | Note] = []
        messages: list[Run | Message] = []
        size = 0
        while size < ENOUGH and (read := self._follower.runs(self._skim)):
            if not self._caught_up:
                read = [item for item in read if self._is_new(item)]
                self._caught_up = bool(read)
            new = [item for item in read if not isinstance(item, Note)]
            size += sum([item.size for item in new]) + len(read)
            messages += new
            found += read
            if self._follower.at_end:
                break
        if messages:
            self.gathered += self._wire.feed(messages)
            self.frames += sum([item.count for item in messages])
        notes = [item for item in found if isinstance(item, Note)] if len(messages) < len(found) else []
        before = self.position
        self.position = Position(
            self._follower.resume,
            messages[-1].last if messages else before.arrival,
            notes[-1].position if notes else before.note,
        )
        return found

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
        self._follower.close()


def _later(table: pa.Table, shift: int) -> pa.Table:
    if not shift or "arrival" not in table.column_names:
        return table
    place = table.schema.get_field_index("arrival")
    return table.set_column(place, table.schema.field(place), pc.add(table.column(place), shift))
