"""Where the compiled kernel works: messages go in, tables come out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    ARRIVALS,
    BEGINS,
    CODES,
    COUNT,
    DATA,
    ENDS,
    EVENT_BYTES,
    EXACT,
    LOOK_AHEAD,
    REAL,
    ROWS,
    RUN,
    SPARE,
    STAMP,
    WORD,
    Cells,
    Column,
    Ints,
    Plan,
    address,
)
from tapelab.massive.wire.stream import TABLES

_CODES = pa.list_(pa.int16())
_BEGIN = np.zeros(1, np.int64)  # of a message that is a run by itself


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
    size: int  # bytes of the messages
    ts_recv: int
    arrival: int

    def each(self) -> Iterator[tuple[bytes, int]]:
        """Each message, and the number of its first event."""
        for begin, end in zip(self.begins.tolist(), self.ends.tolist(), strict=True):
            yield bytes(self.data[begin:end]), self.arrival + begin


def each(items: Sequence[Framed | Run]) -> Iterator[tuple[bytes, int, int]]:
    """Each message by itself: its bytes, `ts_recv` and `arrival`."""
    for item in items:
        if isinstance(item, Run):
            yield from ((payload, item.ts_recv, arrival) for payload, arrival in item.each())
        else:
            yield item.payload, item.ts_recv, item.arrival


class Batch(NamedTuple):
    """Messages for the kernel: how many there are, and their bytes."""

    items: list[Framed | Run]
    messages: int
    size: int


class Read(NamedTuple):
    """What the kernel made of a batch of so many messages.

    `learned`: how often the rows have each of the fields that the vendor added. `left`: of each message it
    did not take the place, the bytes, `ts_recv` and `arrival`; if there are any, `places` are those of the
    messages in which the rows of each table came.
    """

    messages: int
    found: dict[str, pa.Table]
    learned: dict[tuple[Channel, str], int]
    left: list[tuple[int, bytes, int, int]]
    places: dict[str, Ints]


class Workspace:
    """Where the kernel lays down what it reads; used again and again, by one thread at a time."""

    def __init__(self, plan: Plan, size: int) -> None:
        rows, codes = size // EVENT_BYTES + SPARE, size // 2 + SPARE
        self.plan, self.size = plan, size
        self._steps = plan.steps(rows, size, codes)
        self._ints = np.empty((plan.slots, rows), np.int64)
        self._reals = self._ints.view(np.float64)
        self._texts = np.empty((plan.texts, size), np.uint8)
        self._codes = np.empty((plan.codes, codes), np.int16)

    def read(self, kernel: compiled.Kernel, batch: Batch) -> Read:
        steps, laid = self._steps.copy(), _laid_down(batch.items)
        cells = Cells(self._ints.reshape(-1), self._texts.reshape(-1), self._codes.reshape(-1))
        taken = np.empty(batch.messages, np.bool_)
        kernel.scan(laid.runs.reshape(-1), steps, cells, taken)
        left = _left(batch.items, np.flatnonzero(~taken).tolist())
        read = Read(batch.messages, {}, {}, left, {})
        for channel, kind in CHANNELS.items():
            name, rows = TABLES[channel], int(steps[self.plan.place(channel) + ROWS])
            read.found[name] = self._table(channel, rows) if rows else _empty(kind)
            message, *_, seen = self._ints[self.plan.own[channel], :rows]
            read.learned.update(self._learned(channel, seen))
            if left:
                read.places[name] = message.copy()
        return read

    def _table(self, channel: Channel, rows: int) -> pa.Table:
        kind, ints, reals = CHANNELS[channel], self._ints[:, :rows], self._reals[:, :rows]
        _, arrival, received, keys = ints[self.plan.own[channel]]
        schema, seen = SCHEMAS[kind], _Seen(keys)
        made, exact = dict[str, Any](), dict[str, pa.Array]()
        for bit, column in enumerate(self.plan.columns[channel]):
            field = column.field
            if field is None or not seen.anywhere(bit):
                continue
            missing = seen.missing(bit)
            if column.kind == EXACT:
                exact[field.column] = _array(reals[column.slot], pa.float64(), missing)
            elif column.kind == CODES:
                made[field.column] = self._lists(column, rows)
            elif field.sort == "text":
                made[field.column] = self._strings(column, rows, missing)
            elif field.sort == "codes":
                made[field.column] = _singles(ints[column.slot], missing)
            else:
                values = (reals if column.kind == REAL else ints)[column.slot]
                made[field.column] = _numbers(values, missing, field, schema.field(field.column).type)
        made |= {name: pc.coalesce(array, made[name]) for name, array in exact.items()}
        if kind == "bars":
            made["session"] = pa.array(dates_of(Market.STOCKS, made["timestamp"].to_numpy()))
        else:
            made["arrival"] = _array(arrival, pa.int64())
            made["ts_recv"] = _array(received, pa.int64())
        arrays = [made[f.name] if f.name in made else _nulls(f.type, rows) for f in schema]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _learned(self, channel: Channel, seen: Ints) -> dict[tuple[Channel, str], int]:
        keys = self.plan.learned.get(channel, ())
        bits = ((bit, c.key) for bit, c in enumerate(self.plan.columns[channel]) if c.key in keys)
        return {(channel, key): int((seen >> bit & 1).sum()) for bit, key in bits}

    def _strings(self, column: Column, rows: int, missing: Any) -> pa.Array:
        begins = self._ints[column.slot, : rows + 1]
        content = _buffer(self._texts[column.pool, : begins[-1]], np.uint8)
        return pa.StringArray.from_buffers(rows, _buffer(begins, np.int32), content, _valid(missing))

    def _lists(self, column: Column, rows: int) -> pa.Array:
        begins = self._ints[column.slot, : rows + 1]
        return _listed(begins, self._codes[column.pool, : begins[-1]], begins[1:] == begins[:-1])


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
    if field.zero_is_null and (none := values == 0).any():
        missing = none if missing is None else missing | none
    return _array(values, type_, missing, field.stream_unit if field.sort == "instant" else 1)


def _singles(codes: Ints, missing: Any) -> pa.Array:
    """Lists of one code, or null."""
    if missing is None:
        return _listed(np.arange(len(codes) + 1), codes, None)
    return _listed(np.cumsum(np.append(0, ~missing)), codes[~missing], missing)


def _listed(begins: Ints, codes: Any, missing: Any) -> pa.Array:
    parts = [_valid(missing), _buffer(begins, np.int32)]
    return pa.Array.from_buffers(_CODES, len(begins) - 1, parts, children=[_array(codes, pa.int16())])


def _array(values: Any, type_: pa.DataType, missing: Any = None, unit: int = 1) -> pa.Array:
    """An array of numbers of which each is so many of the column's `unit`."""
    data = _buffer(values, type_.to_pandas_dtype(), unit)
    return pa.Array.from_buffers(type_, len(values), [_valid(missing), data])


def _buffer(values: Any, dtype: Any, unit: int = 1) -> pa.Buffer:
    """A copy in memory of Arrow's, which uses it again: fresh memory costs more than all the rest."""
    buffer = pa.allocate_buffer(len(values) * np.dtype(dtype).itemsize)
    into = np.frombuffer(buffer, dtype)
    if unit == 1:
        np.copyto(into, values, casting="unsafe")
    else:
        np.multiply(values, unit, out=into)
    return buffer


def _valid(missing: Any) -> pa.Buffer | None:
    return None if missing is None else pa.py_buffer(np.packbits(~missing, bitorder="little"))


def _left(items: Sequence[Framed | Run], places: Sequence[int]) -> list[tuple[int, bytes, int, int]]:
    """The messages at those places: the place, the bytes, `ts_recv` and `arrival`."""
    if not places:
        return []
    wanted = frozenset(places)
    return [(place, *message) for place, message in enumerate(each(items)) if place in wanted]


class _Laid(NamedTuple):
    """Messages where the kernel can read them: its runs, and what must be kept as long as it does."""

    runs: Ints
    kept: list[object]


def _laid_down(items: Sequence[Framed | Run]) -> _Laid:
    """Runs stay where they are if the kernel may look on behind them; the rest is copied.

    Behind each message of a run is a frame's first byte, and behind the last that, a record's or a zero.
    """
    runs = np.empty((len(items), RUN), np.int64)
    together = np.array([isinstance(item, Run) for item in items])
    kept = [_in_reach(item) for item in items if isinstance(item, Run)]
    if kept:
        places = [map(address, (run.begins, run.ends, run.data)) for run in kept]
        runs[together] = [
            (len(run.begins), *place, run.ts_recv, run.arrival)
            for run, place in zip(kept, places, strict=True)
        ]
    alone = [item for item in items if not isinstance(item, Run)]
    payloads = [item.payload for item in alone]
    data = b"\0".join([*payloads, bytes(LOOK_AHEAD)])
    lengths = np.fromiter(map(len, payloads), np.int64, len(alone))
    if alone:
        some = np.empty((len(alone), RUN), np.int64)
        some[:, COUNT], some[:, BEGINS] = 1, address(_BEGIN)
        some[:, ENDS] = address(lengths) + np.arange(len(alone)) * WORD
        some[:, DATA] = address(data) + np.cumsum(lengths + 1) - lengths - 1
        some[:, STAMP] = [item.ts_recv for item in alone]
        some[:, ARRIVALS] = [item.arrival for item in alone]
        runs[~together] = some
    return _Laid(runs, [*kept, data, lengths])


def _in_reach(run: Run) -> Run:
    """A run behind which the kernel may look on."""
    begin, end = int(run.begins[0]), int(run.ends[-1])
    if end + LOOK_AHEAD <= len(run.data):
        return run
    data = b"".join((memoryview(run.data)[begin:end], bytes(LOOK_AHEAD)))
    return Run(data, run.begins - begin, run.ends - begin, run.size, run.ts_recv, run.arrival + begin)


@cache  # making one takes a third of a millisecond
def _empty(kind: Kind) -> pa.Table:
    return SCHEMAS[kind].empty_table()


def _nulls(type_: pa.DataType, rows: int) -> pa.Array:
    return _many_nulls(type_, 1 << rows.bit_length()).slice(0, rows)


@lru_cache(maxsize=16)  # of few types, and of a size that hardly changes
def _many_nulls(type_: pa.DataType, rows: int) -> pa.Array:
    return pa.nulls(rows, type_)
