"""What the compiled kernel does with each key of each channel, as arrays, made from the table of fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tapelab.massive.wire import columns
from tapelab.massive.wire.fields import CHANNELS, NOT_KEPT, Channel, Field

Ints = np.ndarray[Any, np.dtype[np.int64]]

MAX_KEY = 7  # bytes of a key, so that it fits into a whole number
MAX_LEARNED = 16  # keys of a channel that the vendor added since this was written
WORD = 8  # bytes that the kernel loads at a time
LOOK_AHEAD = 32  # zero bytes behind the last message: more than the kernel looks ahead
EVENT_BYTES = 32  # fewer than any event has that holds what it must
ROOM = 8  # rows beyond what the bytes can hold

# What a value must be.
PASSED, REAL, WHOLE, EXACT, CODES, TEXT, TEXT_OR_WHOLE = range(7)

# Places in the arrays: of a key and of a channel (both begin with their shape), and of what every row has.
SHAPE, MASK, LENGTH, KEY, KIND, SLOT, POOL, LOW, HIGH = range(9)
FIRST, REQUIRED, HEADS = range(3, 6)
MESSAGE, ARRIVAL, RECEIVED, SEEN = range(4)

HEAD = '{"ev":"'  # an event begins so, then comes its channel

_NO_KEY = -2
_POOLED = (CODES, TEXT, TEXT_OR_WHOLE)


class Messages(NamedTuple):
    """By message: where it begins and ends, when it came (ns UTC), the number of its first event."""

    begins: Ints
    ends: Ints
    stamps: Ints
    arrivals: Ints


class Steps(NamedTuple):
    """What to do with each key of each channel, and what each channel is."""

    keys: Ints
    channels: Ints


class Cells(NamedTuple):
    """Where the kernel lays down what it reads.

    `ints`, `reals`: a row for each column. `texts`, `codes`: for each column of strings or lists the bytes or
    codes of all rows, whose beginnings stand in `ints`. `rows`, `fills`: how many rows each channel has and
    how full each of `texts` and `codes` is, now and behind the last message that was taken. `follow`: which
    key came behind which the last time.
    """

    ints: Ints
    reals: np.ndarray[Any, np.dtype[np.float64]]
    texts: np.ndarray[Any, np.dtype[np.uint8]]
    codes: np.ndarray[Any, np.dtype[np.int16]]
    rows: Ints
    fills: Ints
    follow: Ints


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
    come first, and have the first slots (`pooled` of them).
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
            self.ints += len((MESSAGE, ARRIVAL, RECEIVED, SEEN))
            rest = [self._place(one) for one in some if one.kind not in _POOLED]
            self.columns[channel] = (*heads[channel], *rest)
        self.most = max(map(len, self.columns.values()))
        keys = np.full((len(CHANNELS), self.most, 9), _NO_KEY, np.int64)
        channels = np.zeros((len(CHANNELS), 6), np.int64)
        self.steps = Steps(keys, channels)
        for n, (channel, found) in enumerate(self.columns.items()):
            required = sum(1 << bit for bit, column in enumerate(found) if column.required)
            channels[n] = *shape(f'{channel}"'), self.first[channel], required, len(heads[channel])
            for place, c in enumerate(found):
                keys[n, place] = *shape(f',"{c.key}":'), packed(c.key), c.kind, c.slot, c.pool, c.low, c.high

    def with_key(self, channel: Channel, key: str) -> Plan:
        """This plan, or one that knows a further key and passes over its values."""
        learned = self.learned.get(channel, ())
        known = {column.key for column in self.columns[channel]}
        plain = key.isascii() and key.isidentifier() and len(key) <= MAX_KEY
        if key in known or not plain or len(learned) >= MAX_LEARNED:
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


def shape(text: str) -> tuple[int, int, int]:
    """A text as the word that the kernel loads, its mask and its length; of one that is longer, no word."""
    data = text.encode("ascii")
    if len(data) > WORD:
        return _NO_KEY, 0, 0
    mask = (b"\xff" * len(data)).ljust(WORD, b"\0")
    return int.from_bytes(data, "little"), int.from_bytes(mask, "little", signed=True), len(data)


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
