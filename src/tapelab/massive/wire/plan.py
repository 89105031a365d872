"""What the compiled kernel does with each key of each channel, as arrays, made from the table of fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapelab.massive.wire import columns
from tapelab.massive.wire.fields import CHANNELS, NOT_KEPT, Channel, Field

Ints = np.ndarray[Any, np.dtype[np.int64]]

MAX_KEY = 7  # bytes of a key, so that it fits into a whole number
MAX_LEARNED = 16  # keys of a channel that the vendor added since this was written
LOOK_AHEAD = 32  # zero bytes behind the last message: more than the kernel looks ahead
EVENT_BYTES = 32  # fewer than any event has that holds what it must
ROOM = 8  # rows beyond what the bytes can hold

# What a value must be.
PASSED, REAL, WHOLE, EXACT, CODES, TEXT, TEXT_OR_WHOLE = range(7)

# Places in the arrays: of a key, of a channel, and of the columns that every row has.
KEY, KIND, SLOT, POOL, LOW, HIGH = range(6)
TAG, FIRST, REQUIRED, HEADS = range(4)
MESSAGE, PLACE, SEEN = range(3)

_NO_KEY = -2
_POOLED = (CODES, TEXT, TEXT_OR_WHOLE)


@dataclass(frozen=True)
class Column:
    """One key of a channel. `slot` is its row among the numbers, `pool` its row among the bytes or codes."""

    key: str
    kind: int
    field: Field | None = None
    slot: int = 0
    pool: int = 0
    low: int = 0
    high: int = 0

    @property
    def required(self) -> bool:
        return self.field is not None and self.field.required and self.kind != EXACT


class Plan:
    """The columns of every channel, and the arrays that the kernel reads.

    A column's place in its channel is the number of its bit in what a row has `SEEN`; those that fill a pool
    come first, and have the first slots (`pooled` of them). `follow` is the kernel's own: which key came
    behind which the last time.
    """

    def __init__(self, learned: Mapping[Channel, tuple[str, ...]] | None = None) -> None:
        self.learned = dict(learned or {})
        self.columns: dict[Channel, tuple[Column, ...]] = {}
        self.first: dict[Channel, int] = {}
        self.ints = self.reals = self.texts = self.codes = 0
        wanted = {channel: self._wanted(channel) for channel in CHANNELS}
        heads = {c: [self._place(one) for one in some if one.kind in _POOLED] for c, some in wanted.items()}
        self.pooled = self.ints
        for channel, some in wanted.items():
            self.first[channel] = self.ints
            self.ints += len((MESSAGE, PLACE, SEEN))
            rest = [self._place(one) for one in some if one.kind not in _POOLED]
            self.columns[channel] = (*heads[channel], *rest)
        most = max(map(len, self.columns.values()))
        self.keys: Ints = np.full((len(CHANNELS), most, 6), _NO_KEY, np.int64)
        self.channels: Ints = np.zeros((len(CHANNELS), 4), np.int64)
        self.follow: Ints = np.zeros((len(CHANNELS), most + 1), np.int64)
        for n, (channel, found) in enumerate(self.columns.items()):
            required = sum(1 << bit for bit, column in enumerate(found) if column.required)
            self.channels[n] = packed(channel), self.first[channel], required, len(heads[channel])
            for place, c in enumerate(found):
                self.keys[n, place] = packed(c.key), c.kind, c.slot, c.pool, c.low, c.high

    def with_key(self, channel: Channel, key: str) -> Plan:
        """This plan, or one that knows a further key and passes over its values."""
        learned = self.learned.get(channel, ())
        known = {column.key for column in self.columns[channel]}
        if key in known or len(learned) >= MAX_LEARNED or not (key.isascii() and len(key) <= MAX_KEY):
            return self
        return Plan({**self.learned, channel: (*learned, key)})

    def _wanted(self, channel: Channel) -> list[Column]:
        kind = CHANNELS[channel]
        found = []
        for field in columns.carried(kind, "stream"):
            low, high = columns.bounds(kind, field, "stream")
            key = str(field.stream)
            found.append(Column(key, _kind(channel, field), field, low=low, high=high))
            if field.stream_exact:
                found.append(Column(field.stream_exact, EXACT, field))
        return found + [Column(key, PASSED) for key in (*NOT_KEPT[channel], *self.learned.get(channel, ()))]

    def _place(self, wanted: Column) -> Column:
        slot = pool = 0
        if wanted.kind in (REAL, EXACT):
            slot, self.reals = self.reals, self.reals + 1
        elif wanted.kind != PASSED:
            slot, self.ints = self.ints, self.ints + 1
        if wanted.kind == CODES:
            pool, self.codes = self.codes, self.codes + 1
        elif wanted.kind in _POOLED:
            pool, self.texts = self.texts, self.texts + 1
        return Column(wanted.key, wanted.kind, wanted.field, slot, pool, wanted.low, wanted.high)


def packed(name: str) -> int:
    """A name as the number that the kernel makes of its bytes."""
    return int.from_bytes(name.encode("ascii"), "big")


def _kind(channel: Channel, field: Field) -> int:
    match field.sort:
        case "text":
            return TEXT_OR_WHOLE if columns.may_be_number(field) else TEXT
        case "price" | "size":
            return REAL
        case "codes" if not columns.is_single(CHANNELS[channel], field, "stream"):
            return CODES
        case _:
            return WHOLE
