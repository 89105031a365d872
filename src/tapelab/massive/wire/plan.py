"""What the compiled kernel does with each key of each channel, as arrays, made from the table of fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from tapelab.massive.wire import columns
from tapelab.massive.wire.fields import CHANNELS, NOT_KEPT, Channel, Field

Ints = np.ndarray[Any, np.dtype[np.int64]]
Buffer = bytes | bytearray | memoryview

MAX_KEY = 7  # bytes of a key, so that it fits into a whole number
MAX_LEARNED = 16  # keys of a channel that the vendor added since this was written
WORD = 8  # bytes that the kernel loads at a time
LOOK_AHEAD = 32  # bytes behind a message: more than the kernel looks ahead
EVENT_BYTES = 48  # fewer than the vendor's events have; of a batch of shorter ones some are left
SPARE = 8  # rows beyond what the bytes can hold

# What a value must be.
PASSED, REAL, WHOLE, EXACT, CODES, TEXT, TEXT_OR_WHOLE = range(7)

# Of a run of messages: how many there are; the addresses of their beginnings, of their ends, and of the bytes
# in which those count; when they came (ns UTC); the number of an event that began at the first byte.
RUN = 6
COUNT, BEGINS, ENDS, DATA, STAMP, ARRIVALS = range(RUN)

# The steps: for each channel a record of so many numbers, and behind it one for each of its keys. A record
# begins with the word that stands in the bytes, and with the place of the key that came behind it last time.
RECORD = 16
SHAPE, MASK, LENGTH, NEXT = range(4)
# Of a channel: the keys that it must have, as bits; how many of its keys fill a pool, which come first; how
# many rows there are, and may be; where the next channel is; and the columns that every row has.
REQUIRED, HEADS, ROWS, MOST, BEHIND, MESSAGE, ARRIVAL, RECEIVED, SEEN = range(4, 13)
# Of a key: what its value is, its column, its bounds, its bit, its pool and how full that is, its name.
KIND, CELL, LOW, HIGH, BIT, POOL, FILL, NAME = range(4, 12)

HEAD = '{"ev":"'  # an event begins so, then comes its channel

_OWN = len((MESSAGE, ARRIVAL, RECEIVED, SEEN))
_NO_KEY = -2
_POOLED = (CODES, TEXT, TEXT_OR_WHOLE)


class Cells(NamedTuple):
    """Where the kernel lays down what it reads.

    `numbers`: the columns, one behind the other. `texts`, `codes`: for each column of strings or lists the
    bytes or codes of all rows, whose beginnings stand in `numbers`.
    """

    numbers: Ints
    texts: np.ndarray[Any, np.dtype[np.uint8]]
    codes: np.ndarray[Any, np.dtype[np.int16]]


@dataclass(frozen=True)
class Column:
    """One key of a channel. `slot` is its column among the numbers, `pool` that among the texts or codes."""

    key: str
    kind: int
    field: Field | None = None
    low: int = 0
    high: int = 0
    slot: int = 0
    pool: int = 0

    @property
    def required(self) -> bool:
        return self.field is not None and self.field.required and self.kind != EXACT


class Plan:
    """The columns of every channel, and the steps by which the kernel reads them.

    A column's place in its channel is the number of its bit in what a row has `SEEN`. `own`: the slots of the
    columns that every row of a channel has, `MESSAGE` to `SEEN`.
    """

    def __init__(self, learned: Mapping[Channel, tuple[str, ...]] | None = None) -> None:
        self.learned = dict(learned or {})
        self.columns: dict[Channel, tuple[Column, ...]] = {}
        self.own: dict[Channel, slice] = {}
        self.slots = self.texts = self.codes = 0
        for channel in CHANNELS:
            self.own[channel] = slice(self.slots, self.slots + _OWN)
            self.slots += _OWN
            wanted = sorted(self._wanted(channel), key=lambda column: column.kind not in _POOLED)
            self.columns[channel] = tuple(map(self._place, wanted))

    def place(self, channel: Channel) -> int:
        """Where the record of a channel is among the steps."""
        before = list(CHANNELS)[: list(CHANNELS).index(channel)]
        return RECORD * sum(1 + len(self.columns[one]) for one in before)

    def steps(self, rows: int, text: int, codes: int) -> Ints:
        """The steps where a column has room for so many rows, and a pool for so many bytes or codes."""
        records = []
        for channel, found in self.columns.items():
            at = self.place(channel)
            keys = range(at + RECORD, at + RECORD * (1 + len(found)), RECORD)
            required = sum(1 << bit for bit, column in enumerate(found) if column.required)
            heads = sum(column.kind in _POOLED for column in found)
            own = (slot * rows for slot in range(self.slots)[self.own[channel]])
            state = (required, heads, 0, rows - SPARE, keys.stop)
            records.append((*shape(f'{channel}"'), keys[0], *state, *own))
            for bit, (c, following) in enumerate(zip(found, (*keys[1:], keys[-1]), strict=True)):
                pool = c.pool * (codes if c.kind == CODES else text)
                what = (c.kind, c.slot * rows, c.low, c.high, 1 << bit, pool, 0, packed(c.key))
                records.append((*shape(f',"{c.key}":'), following, *what))
        padded = [(*record, *[0] * (RECORD - len(record))) for record in records]
        return np.array(padded, np.int64).reshape(-1)

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
            found.append(Column(key, _kind(channel, field), field, low, high))
            if field.stream_exact:
                found.append(Column(field.stream_exact, EXACT, field))
        return found + [Column(key, PASSED) for key in (*NOT_KEPT[channel], *self.learned.get(channel, ()))]

    def _place(self, column: Column) -> Column:
        slot = pool = 0
        if column.kind != PASSED:
            slot, self.slots = self.slots, self.slots + 1
        if column.kind == CODES:
            pool, self.codes = self.codes, self.codes + 1
        elif column.kind in _POOLED:
            pool, self.texts = self.texts, self.texts + 1
        return replace(column, slot=slot, pool=pool)


def address(data: Buffer | Ints) -> int:
    """Where something lies, which whoever asks must keep for as long as the kernel reads it."""
    return int(np.frombuffer(data, np.uint8).__array_interface__["data"][0])


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
