"""Many messages of the stream at once, at compiled speed where that is certain.

The kernel takes a message whole or not at all. What it does not take goes to the plain decoder, at its
place in the order, so that rows and counters are those of the plain decoder by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any, NamedTuple
from typing import Protocol as Shape

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.sessions import dates_of
from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS
from tapelab.massive.wire import compiled
from tapelab.massive.wire.fields import CHANNELS, Channel, Field, Kind
from tapelab.massive.wire.plan import (
    ARRIVAL,
    CODES,
    EVENT_BYTES,
    EXACT,
    LOOK_AHEAD,
    MESSAGE,
    REAL,
    RECEIVED,
    ROOM,
    SEEN,
    Cells,
    Column,
    Messages,
    Plan,
)
from tapelab.massive.wire.stream import TABLES, FrameDecoder

WARM_AFTER = 8 * 2**20  # bytes; the plain decoder takes a third of a second for them
AT_LEAST = 16 * 2**10  # bytes at a time; for fewer, making tables costs more than it saves
AT_MOST = 4 * 2**20  # bytes at a time, but a message is never cut

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Framed(Shape):
    """A message and when it came: see `FrameDecoder.feed`."""

    @property
    def payload(self) -> bytes: ...
    @property
    def ts_recv(self) -> int: ...
    @property
    def arrival(self) -> int: ...


class Run(msgspec.Struct, frozen=True, gc=False):
    """Messages side by side in bytes of the stream, as the kernel's `walk` finds them: few objects for many.

    `arrival` is that of a message which would begin at the first byte; the others count on from there.
    """

    data: bytes | bytearray | memoryview
    begins: Any  # Ints
    ends: Any
    ts_recv: int
    arrival: int

    @property
    def size(self) -> int:
        """Bytes of the messages."""
        return int(self.ends.sum() - self.begins.sum())

    def each(self) -> Iterator[tuple[bytes, int]]:
        """Each message, and the number of its first event."""
        for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True):
            yield bytes(self.data[begin:end]), self.arrival + begin


class BulkDecoder:
    """What `FrameDecoder` does, for many messages at a time; rows and counters are the same.

    It begins to make the compiled kernel ready when it has seen `WARM_AFTER` bytes, and uses it once it is.
    `plain` holds the counters; `compiled` counts the messages that the kernel took. But for `scan`, not for
    use by several threads at once.
    """

    def __init__(self) -> None:
        self.plain = FrameDecoder()
        self.compiled = 0
        self._bytes = 0
        self._plan = Plan()
        self._rooms: list[_Room] = []  # that are free
        self._done: list[dict[str, pa.Table]] = []

    def feed(self, items: Sequence[Framed | Run]) -> int:
        """Take messages, in the order in which they came; gives how many bytes they are."""
        return self.add(self.scan(items))

    def scan(self, items: Sequence[Framed | Run]) -> Scanned:
        """The longer part of `feed`, which may go on in other threads beside all else; `add` is the rest."""
        size = sum([item.size if isinstance(item, Run) else len(item.payload) for item in items])
        kernel = compiled.kernel(warm=False) if size >= AT_LEAST else None
        if kernel is None:
            return Scanned(items, size, None)
        reads = []
        for batch in _batches(items):
            room = self._room(batch.size)
            reads.append(room.read(kernel, batch))
            self._rooms.append(room)
        return Scanned(items, size, reads)

    def add(self, scanned: Scanned) -> int:
        """Take what was scanned, in the order in which the messages came; gives how many bytes they are."""
        items, size, reads = scanned
        self._bytes += size
        if reads is None:
            compiled.kernel(warm=size >= AT_LEAST and self._bytes >= WARM_AFTER)
            for item in items:
                for payload, arrival in (
                    item.each() if isinstance(item, Run) else ((item.payload, item.arrival),)
                ):
                    self.plain.feed(payload, ts_recv=item.ts_recv, arrival=arrival)
        else:
            self._settle()
            self._done += map(self._merged, reads)
        return size

    def take(self) -> dict[str, pa.Table]:
        """What has gathered since the last time, as `FrameDecoder.take` gives it."""
        if not self._done:
            return self.plain.take()
        self._settle()
        done, self._done = self._done, []
        return {name: pa.concat_tables([one[name] for one in done]) for name in TABLES.values()}

    def _room(self, size: int) -> _Room:
        with suppress(IndexError):  # another thread may have taken the last
            room = self._rooms.pop()
            if room.plan is self._plan and room.size >= size:
                return room
        return _Room(self._plan, max(size, AT_MOST))

    def _settle(self) -> None:
        if any(self.plain.gathered().values()):
            self._done.append(self.plain.take())

    def _merged(self, read: _Read) -> dict[str, pa.Table]:
        """What the kernel took and, at its place, what the plain decoder makes of the messages it left."""
        plain, found = self.plain, read.found
        self.compiled += read.messages - len(read.left)
        plain.unknown_fields.update(read.learned)
        if not read.left:
            return {name: table for name, (table, _) in found.items()}
        places: dict[str, list[int]] = {name: [] for name in found}
        known = len(plain.unknown_fields)
        before = plain.gathered()
        for place, payload, ts_recv, arrival in read.left:
            plain.feed(payload, ts_recv=ts_recv, arrival=arrival)
            now = plain.gathered()
            for name, rows in now.items():
                places[name] += [place] * (rows - before[name])
            before = now
        if len(plain.unknown_fields) > known:
            self._learn()
        merged = {}
        for name, more in plain.take().items():
            table, by_message = found[name]
            if len(more):
                order = np.argsort(np.concatenate([by_message, places[name]]), kind="stable")
                table = pa.concat_tables([table, more]).take(pa.array(order)).combine_chunks()
            merged[name] = table
        return merged

    def _learn(self) -> None:
        """Fields that the vendor added: counted, passed over, and no reason to be slow from now on."""
        for channel, key in self.plain.unknown_fields:
            self._plan = self._plan.with_key(channel, key)


class Scanned(NamedTuple):
    """Messages, their bytes, and what the kernel made of them: None where it is not ready or not worth it."""

    items: Sequence[Framed | Run]
    size: int
    reads: list[_Read] | None


class _Batch(NamedTuple):
    """Messages for the kernel: how many there are, and the bytes that they take in its room."""

    items: list[Framed | Run]
    messages: int
    size: int


class _Read(NamedTuple):
    """What the kernel made of a batch of so many messages.

    `found`: the tables, and of each row the message it came in. `learned`: how often the rows have each of
    the fields that the vendor added. `left`: of each message it did not take the place, the bytes, `ts_recv`
    and `arrival`.
    """

    messages: int
    found: dict[str, tuple[pa.Table, Ints]]
    learned: dict[tuple[Channel, str], int]
    left: list[tuple[int, bytes, int, int]]


def _batches(items: Sequence[Framed | Run]) -> Iterator[_Batch]:
    """The messages in batches of about `AT_MOST` bytes."""
    some: list[Framed | Run] = []
    count, size = 0, LOOK_AHEAD
    for item in items:
        length = len(_span(item)) + 1
        if size + length > AT_MOST and some:
            yield _Batch(some, count, size)
            some, count, size = [], 0, LOOK_AHEAD
        some.append(item)
        count += len(item.begins) if isinstance(item, Run) else 1
        size += length
    if some:
        yield _Batch(some, count, size)


def _span(item: Framed | Run) -> memoryview:
    """The bytes from the first message to the end of the last."""
    if isinstance(item, Run):
        return memoryview(item.data)[item.begins[0] : item.ends[-1]]
    return memoryview(item.payload)


class _Room:
    """Where the kernel reads from and lays down what it reads; used again and again."""

    def __init__(self, plan: Plan, size: int) -> None:
        most = size // EVENT_BYTES + ROOM
        self.plan, self.size = plan, size
        self._messages = np.empty((len(Messages._fields), 0), np.int64)
        self.data = np.empty(size, np.uint8)
        self.cells = Cells(
            ints=np.empty((plan.ints, most), np.int64),
            reals=np.empty((plan.reals, most), np.float64),
            texts=np.empty((plan.texts, size), np.uint8),
            codes=np.empty((plan.codes, size // 2 + ROOM), np.int16),
            rows=np.zeros((len(CHANNELS), 2), np.int64),
            fills=np.zeros((plan.pooled, 2), np.int64),
            follow=np.zeros((len(CHANNELS), plan.most + 1), np.int64),
        )

    def read(self, kernel: compiled.Kernel, batch: _Batch) -> _Read:
        data, cells, messages = self.data, self.cells, self._laid_down(batch)
        cells.rows[:] = cells.fills[:] = 0
        taken = np.empty(batch.messages, np.bool_)
        kernel.scan(data, messages, self.plan.steps, cells, taken)
        begins, ends, stamps, arrivals = messages
        left = [
            (n, data[begins[n] : ends[n]].tobytes(), int(stamps[n]), int(arrivals[n]))
            for n in np.flatnonzero(~taken).tolist()
        ]
        found, learned = {}, {}
        for number, channel in enumerate(CHANNELS):
            found[TABLES[channel]] = self._table(channel, int(cells.rows[number, 0]))
            learned.update(self._learned(channel, int(cells.rows[number, 0])))
        return _Read(batch.messages, found, learned, left)

    def _laid_down(self, batch: _Batch) -> Messages:
        """Behind an item stands a byte that ends every message; inside one, a frame's first byte does."""
        data, at, n = self.data.data, 0, 0
        if batch.messages > self._messages.shape[1]:
            self._messages = np.empty((len(Messages._fields), batch.messages), np.int64)
        messages = Messages(*self._messages[:, : batch.messages])
        begins, ends, stamps, arrivals = messages
        for item in batch.items:
            piece = _span(item)
            end = at + len(piece)
            data[at:end] = piece
            data[end] = 0
            if isinstance(item, Run):
                some = slice(n, n + len(item.begins))
                begins[some] = item.begins + (at - item.begins[0])
                ends[some] = item.ends + (at - item.begins[0])
                stamps[some] = item.ts_recv
                arrivals[some] = item.begins + item.arrival
                n = some.stop
            else:
                begins[n], ends[n], stamps[n], arrivals[n] = at, end, item.ts_recv, item.arrival
                n += 1
            at = end + 1
        data[at : at + LOOK_AHEAD] = bytes(LOOK_AHEAD)
        return messages

    def _table(self, channel: Channel, rows: int) -> tuple[pa.Table, Ints]:
        """The rows of a channel, and for each the number of the message it came in."""
        kind, ints, reals = CHANNELS[channel], self.cells.ints, self.cells.reals
        schema = SCHEMAS[kind]
        first = self.plan.first[channel]
        message = ints[first + MESSAGE, :rows].copy()
        if not rows:
            return _empty(kind), message
        seen = _Seen(ints[first + SEEN, :rows])
        made: dict[str, Any] = {}
        for bit, column in enumerate(self.plan.columns[channel]):
            if column.field is None or column.kind == EXACT or not seen.anywhere(bit):
                continue
            if column.kind == CODES:
                array = self._lists(column, rows)
            elif column.field.sort == "text":
                array = self._texts(column, rows, seen.missing(bit))
            elif column.field.sort == "codes":
                array = _singles(ints[column.slot, :rows], seen.missing(bit))
            else:
                source = reals if column.kind == REAL else ints
                type_ = schema.field(column.field.column).type
                array = _numbers(source[column.slot, :rows], seen.missing(bit), column.field, type_)
            made[column.field.column] = array
        for bit, column in enumerate(self.plan.columns[channel]):
            if column.field is not None and column.kind == EXACT and seen.anywhere(bit):
                name = column.field.column
                exact = pa.array(reals[column.slot, :rows].copy(), mask=seen.missing(bit))
                made[name] = pc.coalesce(exact, made[name])
        if kind == "bars":
            made["session"] = pa.array(dates_of(Market.STOCKS, made["timestamp"].to_numpy()))
        else:
            made["arrival"] = pa.array(ints[first + ARRIVAL, :rows].copy())
            made["ts_recv"] = pa.array(ints[first + RECEIVED, :rows].copy())
        arrays = [made[f.name] if f.name in made else _nulls(f.type, rows) for f in schema]
        return pa.Table.from_arrays(arrays, schema=schema), message

    def _learned(self, channel: Channel, rows: int) -> dict[tuple[Channel, str], int]:
        seen = self.cells.ints[self.plan.first[channel] + SEEN, :rows]
        keys = self.plan.learned.get(channel, ())
        bits = ((bit, c.key) for bit, c in enumerate(self.plan.columns[channel]) if c.key in keys)
        return {(channel, key): int((seen >> bit & 1).sum()) for bit, key in bits}

    def _offsets(self, column: Column, rows: int) -> Any:
        begins = self.cells.ints[column.slot, : rows + 1]
        begins[rows] = self.cells.fills[column.slot, 0]
        return begins.astype(np.int32)

    def _texts(self, column: Column, rows: int, missing: Any) -> pa.Array:
        offsets = self._offsets(column, rows)
        content = self.cells.texts[column.pool, : offsets[-1]].tobytes()
        valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
        return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(content), valid)

    def _lists(self, column: Column, rows: int) -> pa.Array:
        offsets = self._offsets(column, rows)
        codes = pa.array(self.cells.codes[column.pool, : offsets[-1]].copy())
        return pa.ListArray.from_arrays(pa.array(offsets), codes, mask=pa.array(offsets[1:] == offsets[:-1]))


class _Seen:
    """Which keys each row had, as bits."""

    def __init__(self, seen: Ints) -> None:
        self._seen = seen
        self._everywhere = int(np.bitwise_and.reduce(seen))
        self._anywhere = int(np.bitwise_or.reduce(seen))

    def anywhere(self, bit: int) -> bool:
        return bool(self._anywhere >> bit & 1)

    def missing(self, bit: int) -> Any:
        """A mask of the rows that lack a key; None if none does."""
        return None if self._everywhere >> bit & 1 else (self._seen & (1 << bit)) == 0


def _numbers(values: Any, missing: Any, field: Field, type_: pa.DataType) -> pa.Array:
    if field.sort == "instant":
        values = values * field.stream_unit
    if field.zero_is_null and (none := values == 0).any():
        missing = none if missing is None else missing | none
    return pa.array(values.astype(str(type_)), type_, mask=missing)


@cache  # making one takes a third of a millisecond
def _empty(kind: Kind) -> pa.Table:
    return SCHEMAS[kind].empty_table()


def _nulls(type_: pa.DataType, rows: int) -> pa.Array:
    return _many_nulls(type_, 1 << rows.bit_length()).slice(0, rows)


@lru_cache(maxsize=16)  # of few types, and of a size that hardly changes
def _many_nulls(type_: pa.DataType, rows: int) -> pa.Array:
    return pa.nulls(rows, type_)


def _singles(codes: Ints, missing: Any) -> pa.Array:
    """Lists of one code, or null."""
    if missing is None:
        offsets = pa.array(np.arange(len(codes) + 1, dtype=np.int32))
        return pa.ListArray.from_arrays(offsets, pa.array(codes.astype(np.int16)))
    offsets = pa.array(np.cumsum(np.append(0, ~missing), dtype=np.int32))
    values = pa.array(codes[~missing].astype(np.int16))
    return pa.ListArray.from_arrays(offsets, values, mask=pa.array(missing))
