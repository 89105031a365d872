"""Many messages of the stream at once, at compiled speed where that is certain.

The kernel takes a message whole or not at all. What it does not take goes to the plain decoder, at its
place in the order, so that rows and counters are those of the plain decoder by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from typing import Protocol as Shape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.sessions import dates_of
from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS
from tapelab.massive.wire import compiled
from tapelab.massive.wire.fields import CHANNELS, Channel, Field
from tapelab.massive.wire.plan import (
    CODES,
    EVENT_BYTES,
    EXACT,
    LOOK_AHEAD,
    MESSAGE,
    PLACE,
    REAL,
    ROOM,
    SEEN,
    Column,
    Plan,
)
from tapelab.massive.wire.stream import TABLES, FrameDecoder

WARM_AFTER = 8 * 2**20  # bytes; the plain decoder takes a third of a second for them
AT_LEAST = 16 * 2**10  # bytes at a time; for fewer, making tables costs more than it saves
AT_MOST = 6 * 2**20  # bytes at a time, but a message is never cut

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Framed(Shape):
    """A message and when it came: see `FrameDecoder.feed`."""

    @property
    def payload(self) -> bytes: ...
    @property
    def ts_recv(self) -> int: ...
    @property
    def arrival(self) -> int: ...


class BulkDecoder:
    """What `FrameDecoder` does, for many messages at a time; rows and counters are the same.

    It begins to make the compiled kernel ready when it has seen `WARM_AFTER` bytes, and uses it once it is.
    `plain` holds the counters; `compiled` counts the messages that the kernel took. Not for use by several
    threads at once.
    """

    def __init__(self) -> None:
        self.plain = FrameDecoder()
        self.compiled = 0
        self._bytes = 0
        self._plan = Plan()
        self._room: _Room | None = None
        self._done: list[dict[str, pa.Table]] = []

    def feed(self, messages: Sequence[Framed]) -> None:
        """Take messages, in the order in which they came."""
        size = sum([len(message.payload) for message in messages])
        self._bytes += size
        scan = compiled.kernel(warm=self._bytes >= WARM_AFTER) if size >= AT_LEAST else None
        if scan is None:
            for message in messages:
                self.plain.feed(message.payload, ts_recv=message.ts_recv, arrival=message.arrival)
            return
        self._settle()
        for run in _runs(messages) if size > AT_MOST else (messages,):
            self._done.append(self._scan(scan, run))

    def take(self) -> dict[str, pa.Table]:
        """What has gathered since the last time, as `FrameDecoder.take` gives it."""
        if not self._done:
            return self.plain.take()
        self._settle()
        done, self._done = self._done, []
        return {name: pa.concat_tables([one[name] for one in done]) for name in TABLES.values()}

    def _settle(self) -> None:
        if any(self.plain.gathered().values()):
            self._done.append(self.plain.take())

    def _scan(self, scan: compiled.Scan, messages: Sequence[Framed]) -> dict[str, pa.Table]:
        payloads = [message.payload for message in messages]
        data = np.frombuffer(bytearray(1).join([*payloads, bytes(LOOK_AHEAD)]), np.uint8)
        stops = np.cumsum(np.array(list(map(len, payloads)), np.int64) + 1) - 1
        taken = np.empty(len(payloads), np.bool_)
        if self._room is None or self._room.plan is not self._plan or self._room.bytes < len(data):
            self._room = _Room(self._plan, max(len(data), AT_MOST))
        room = self._room
        room.rows[:] = room.fills[:] = 0
        plan = self._plan
        scan(
            data, stops, plan.keys, plan.channels, plan.follow,
            room.ints, room.reals, room.texts, room.codes, room.rows, room.fills, taken,
        )  # fmt: skip
        stamps = np.array([message.ts_recv for message in messages], np.int64)
        arrivals = np.array([message.arrival for message in messages], np.int64)
        found = {TABLES[c]: room.table(c, n, stamps, arrivals) for n, c in enumerate(CHANNELS)}
        for number, channel in enumerate(CHANNELS):
            self.plain.unknown_fields.update(room.learned(channel, number))
        self.compiled += int(taken.sum())
        if taken.all():
            return {name: table for name, (table, _) in found.items()}
        return self._with_plain(found, messages, np.flatnonzero(~taken))

    def _with_plain(
        self, found: dict[str, tuple[pa.Table, Ints]], messages: Sequence[Framed], left: Ints
    ) -> dict[str, pa.Table]:
        """What the kernel took and, at its place, what the plain decoder makes of the messages it left."""
        places: dict[str, list[int]] = {name: [] for name in found}
        known = len(self.plain.unknown_fields)
        before = self.plain.gathered()
        for place in left.tolist():
            message = messages[place]
            self.plain.feed(message.payload, ts_recv=message.ts_recv, arrival=message.arrival)
            now = self.plain.gathered()
            for name, rows in now.items():
                places[name] += [place] * (rows - before[name])
            before = now
        if len(self.plain.unknown_fields) > known:
            self._learn()
        merged = {}
        for name, more in self.plain.take().items():
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


def _runs(messages: Sequence[Framed]) -> Iterator[Sequence[Framed]]:
    """The messages in stretches of at most `AT_MOST` bytes, or of one message."""
    first = size = 0
    for n, message in enumerate(messages):
        size += len(message.payload) + 1
        if size > AT_MOST and n > first:
            yield messages[first:n]
            first, size = n, len(message.payload) + 1
    if first < len(messages):
        yield messages[first:]


class _Room:
    """Where the kernel lays down what it reads; enough for so many bytes, and used again and again."""

    def __init__(self, plan: Plan, size: int) -> None:
        most = size // EVENT_BYTES + ROOM
        self.plan, self.bytes = plan, size
        self.ints: Ints = np.empty((plan.ints, most), np.int64)
        self.reals = np.empty((plan.reals, most), np.float64)
        self.texts = np.empty((plan.texts, size), np.uint8)
        self.codes = np.empty((plan.codes, size // 2 + ROOM), np.int16)
        self.rows: Ints = np.zeros((len(CHANNELS), 2), np.int64)
        self.fills: Ints = np.zeros((plan.ints, 2), np.int64)

    def table(self, channel: Channel, number: int, stamps: Ints, arrivals: Ints) -> tuple[pa.Table, Ints]:
        """The rows of a channel, and for each the number of the message it came in."""
        kind, rows = CHANNELS[channel], int(self.rows[number, 0])
        schema = SCHEMAS[kind]
        first = self.plan.first[channel]
        message = self.ints[first + MESSAGE, :rows].copy()
        if not rows:
            return schema.empty_table(), message
        seen = _Seen(self.ints[first + SEEN, :rows])
        made: dict[str, Any] = {}
        for bit, column in enumerate(self.plan.columns[channel]):
            if column.field is None or column.kind == EXACT or not seen.anywhere(bit):
                continue
            if column.kind == CODES:
                array = self._lists(column, rows)
            elif column.field.sort == "text":
                array = self._texts(column, rows, seen.missing(bit))
            elif column.field.sort == "codes":
                array = _singles(self.ints[column.slot, :rows], seen.missing(bit))
            else:
                source = self.reals if column.kind == REAL else self.ints
                type_ = schema.field(column.field.column).type
                array = _numbers(source[column.slot, :rows], seen.missing(bit), column.field, type_)
            made[column.field.column] = array
        for bit, column in enumerate(self.plan.columns[channel]):
            if column.field is not None and column.kind == EXACT and seen.anywhere(bit):
                name = column.field.column
                exact = pa.array(self.reals[column.slot, :rows].copy(), mask=seen.missing(bit))
                made[name] = pc.coalesce(exact, made[name])
        if kind == "bars":
            made["session"] = pa.array(dates_of(Market.STOCKS, made["timestamp"].to_numpy()))
        else:
            made["arrival"] = pa.array(arrivals[message] + self.ints[first + PLACE, :rows])
            made["ts_recv"] = pa.array(stamps[message])
        arrays = [made[f.name] if f.name in made else pa.nulls(rows, f.type) for f in schema]
        return pa.Table.from_arrays(arrays, schema=schema), message

    def learned(self, channel: Channel, number: int) -> dict[tuple[Channel, str], int]:
        """How often the rows of a channel have each of the fields that the vendor added."""
        seen = self.ints[self.plan.first[channel] + SEEN, : self.rows[number, 0]]
        keys = self.plan.learned.get(channel, ())
        bits = ((bit, c.key) for bit, c in enumerate(self.plan.columns[channel]) if c.key in keys)
        return {(channel, key): int((seen >> bit & 1).sum()) for bit, key in bits}

    def _offsets(self, column: Column, rows: int) -> Any:
        return np.append(self.ints[column.slot, :rows], self.fills[column.slot, 0]).astype(np.int32)

    def _texts(self, column: Column, rows: int, missing: Any) -> pa.Array:
        offsets = self._offsets(column, rows)
        content = self.texts[column.pool, : offsets[-1]].tobytes()
        valid = None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little").tobytes())
        return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(content), valid)

    def _lists(self, column: Column, rows: int) -> pa.Array:
        offsets = self._offsets(column, rows)
        codes = pa.array(self.codes[column.pool, : offsets[-1]].copy())
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


def _singles(codes: Ints, missing: Any) -> pa.Array:
    """Lists of one code, or null."""
    if missing is None:
        missing = np.zeros(len(codes), bool)
    offsets = np.zeros(len(codes) + 1, np.int32)
    np.cumsum(~missing, out=offsets[1:])
    values = pa.array(codes[~missing].astype(np.int16))
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(missing))
