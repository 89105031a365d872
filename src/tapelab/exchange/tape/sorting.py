"""A day that does not fit in memory, in order of time: an external sort of its flat files.

The vendor groups a day's file by ticker, and a day of quotes may hold a billion rows. Blocks of the files are
gathered into runs, each run is sorted and spilled to disk, and the runs are merged when they are read. The
order is that of `tapelab.market.replay.in_order_of_arrival`: by the exchange's clock, trades before quotes at
a tie, otherwise as the files have it.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import Unwritable, UsageError
from tapelab.exchange.tape.products import QUOTES, TRADES
from tapelab.market import tables
from tapelab.massive import wire
from tapelab.store.files import NO_ROOM

Ints = npt.NDArray[np.int64]

MEMORY = 512 << 20  # bytes of rows that a sort holds at a time, unless told otherwise
LEAST_MEMORY = 4 << 10
READING = 256 << 20  # bytes that reading a file takes beside it: text and tables that wait for each other
BATCH = 256 << 10  # bytes of rows that are read back from the disk at a time; each run has two in memory

_MADE_AGAIN = ("ts_recv", "arrival")  # nobody received these rows, and their places are what is sought
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
_READ_OPTIONS = pa.ipc.IpcReadOptions(use_threads=False)
_ALWAYS = 1 << 62


def sort_day(
    *,
    quotes: Path | bytes | None,
    trades: Path | bytes | None,
    day: date,
    symbols: frozenset[str] | None = None,
    memory: int = MEMORY,
    folder: Path | None = None,
) -> SortedDay:
    """Read a day's files once and sort them on disk; close what it gives, which frees the disk.

    `quotes`, `trades`: daily files, gzip or plain; either may be missing. `symbols`: keep only these (None:
    all). `memory`: bytes of rows held at a time, now and while the result is read; reading the files takes up
    to `READING` beside it. `folder`: a disk with room for 25 to 40 bytes a row, or twice that once the day is
    too long for one pass, which at 512 MiB is beyond some 500 million rows (None: the system's temporary
    folder). What is spilled has no name there, so that nothing is left however the process ends. Raises what
    `wire.iter_flat_file` raises, also for what is wrong at the very end of a file, and `Unwritable` if the
    disk is full.
    """
    if memory < LEAST_MEMORY:
        raise UsageError(f"Nothing can be sorted in {memory} bytes.", remedy=f"Give {LEAST_MEMORY} or more.")
    limits = _Limits(memory)
    spill = _Spill(folder)
    try:
        names = _Names(symbols)
        runs = [
            [] if source is None else _runs(source, product, day, names, spill, limits)
            for source, product in ((trades, TRADES), (quotes, QUOTES))
        ]
        _merge_surplus(runs, spill, limits)
    except BaseException:
        spill.close()
        raise
    return SortedDay(runs[0], runs[1], names.known, spill, limits)


class SortedDay:
    """A day's quotes and trades in order of time, to be read by the stretch, from the start or any instant.

    `len()` counts its rows, `first` and `last` are the first and last `ts_event` (None without rows) and
    `symbols` who is in it. Several readers may read at once, each with its own memory.
    """

    def __init__(
        self, trades: list[_Run], quotes: list[_Run], symbols: list[str], spill: _Spill, limits: _Limits
    ) -> None:
        self._groups = (trades, quotes)
        self._names = pa.array(symbols, pa.string())
        self._spill = spill
        self._limits = limits
        runs = [*trades, *quotes]
        self._rows = sum(map(_rows, runs))
        self.symbols = frozenset(symbols)
        self.first = min((int(run["first"][0]) for run in runs), default=None)
        self.last = max((int(run["last"][-1]) for run in runs), default=None)

    def __len__(self) -> int:
        return self._rows

    def __enter__(self) -> SortedDay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the disk; nothing can be read afterwards."""
        self._spill.close()

    def stretches(
        self, start: int | None = None, until: int | None = None, *, trades_only: bool = False
    ) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The quotes and trades from `start` to before `until` (ns UTC), stretch after stretch.

        Each pair is what `in_order_of_arrival` gives, cut out of the day: both tables sorted by `arrival`,
        which numbers the rows of the whole day from 0. A stretch goes on where the one before ended, which
        may be among rows of the same nanosecond. Its size follows the memory of the sort. With `trades_only`
        no quotes are read, and `arrival` counts trades.
        """
        span = (0 if start is None else start, _ALWAYS if until is None else until)
        wanted = (self._groups[0], []) if trades_only else self._groups
        groups = [[_Reader(run, self._spill, span) for run in group] for group in wanted]
        place = sum(reader.skipped for group in groups for reader in group)
        for (trades, of_trades), (quotes, of_quotes) in _merged(groups, self._limits.stretch):
            yield (
                self._whole(quotes, of_quotes + place, tables.QUOTES),
                self._whole(trades, of_trades + place, tables.TRADES),
            )
            place += len(trades) + len(quotes)

    def _whole(self, rows: pa.Table, arrival: Ints, schema: pa.Schema) -> pa.Table:
        if len(rows) == 0:
            return schema.empty_table()
        made = {
            "arrival": pa.array(arrival),
            "symbol": self._names.take(rows.column("symbol").combine_chunks()),
            "ts_recv": pa.nulls(len(rows), pa.int64()),
        }
        columns = [made[name] if name in made else rows.column(name) for name in schema.names]
        return pa.table(columns, schema=schema)


@dataclass(frozen=True)
class _Limits:
    """How the memory is shared out, in bytes.

    A run is held twice while its blocks are put together, and the next one is gathered beside it. Merging,
    each run has two batches in memory, all of them may be put together at once, and two stretches of the
    result exist while one follows another.
    """

    memory: int

    @property
    def run(self) -> int:
        return self.memory // 4

    @property
    def batch(self) -> int:
        return min(BATCH, self.memory // 24)

    @property
    def runs(self) -> int:
        return self.memory // 6 // self.batch

    @property
    def stretch(self) -> int:
        return self.memory // 24


class _Batch(NamedTuple):
    """Sorted rows on disk: where, how many, and their first and last stamp."""

    offset: int
    length: int
    rows: int
    first: int
    last: int


# Batches that follow each other; a billion rows have hundreds of thousands of them.
_Run = npt.NDArray[np.void]
_BATCHES = np.dtype([(name, np.int64) for name in _Batch._fields])


class _Spill:
    """A file without a name for batches of rows: it is gone with its handle."""

    def __init__(self, folder: Path | None) -> None:
        self._size = 0
        self._folder = folder
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._unwritable(error) from error

    def close(self) -> None:
        self._file.close()

    def write(self, rows: pa.Table) -> _Batch:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema, options=_OPTIONS) as writer:
            writer.write_table(rows)
        left = memoryview(sink.getvalue())
        stamps = rows.column("ts_event")
        batch = _Batch(self._size, len(left), len(rows), stamps[0].as_py(), stamps[-1].as_py())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise self._unwritable(error) from error
        self._size += batch.length
        return batch

    def read(self, batch: _Batch) -> pa.Table:
        packed = os.pread(self._file.fileno(), batch.length, batch.offset)
        return pa.ipc.open_stream(packed, options=_READ_OPTIONS).read_all()

    def _unwritable(self, error: OSError) -> Unwritable:
        folder = self._folder or "the system's temporary folder"
        if error.errno in NO_ROOM:
            return Unwritable(
                f"There is no room left in {folder} to sort the day; {self._size >> 20} MiB were spilled.",
                remedy="Free some space, set TMPDIR to a folder on a larger disk, or ask for fewer symbols.",
                path=str(folder),
            )
        return Unwritable(
            f"The day cannot be sorted in {folder}: {error.strerror or error}.",
            remedy="Check the permissions, or set TMPDIR to a folder on another disk.",
            path=str(folder),
        )


@dataclass
class _Names:
    """Symbols by number, which is how rows are spilled; -1 is nobody's we want."""

    wanted: frozenset[str] | None
    _numbers: dict[str, int] = field(default_factory=dict)

    @property
    def known(self) -> list[str]:
        return list(self._numbers)

    def kept(self, block: pa.Table) -> pa.Table:
        """The wanted rows of a block, as they are spilled."""
        encoded = block.column("symbol").combine_chunks().dictionary_encode()
        numbers = [self._number(name) for name in encoded.dictionary.to_pylist()]
        column = pa.array(numbers, pa.int32()).take(encoded.indices)
        rows = block.drop_columns(list(_MADE_AGAIN))
        rows = rows.set_column(rows.column_names.index("symbol"), "symbol", column)
        return rows.filter(pc.greater_equal(column, 0)) if -1 in numbers else rows

    def _number(self, name: str) -> int:
        if self.wanted is not None and name not in self.wanted:
            return -1
        return self._numbers.setdefault(name, len(self._numbers))


def _runs(
    source: Path | bytes, product: str, day: date, names: _Names, spill: _Spill, limits: _Limits
) -> list[_Run]:
    """A file as sorted runs on disk, in the order of the file; one is sorted while the next is read."""
    blocks = (names.kept(block) for block in wire.iter_flat_file(source, product, day=day))
    runs: list[Future[_Run]] = []
    with ThreadPoolExecutor(1, "tapelab-sort") as beside:
        for held in _gathered(blocks, limits.run):
            if runs:
                runs[-1].result()
            runs.append(beside.submit(_sorted_run, held, spill, limits))
        return [run.result() for run in runs]


def _gathered(blocks: Iterable[pa.Table], size: int) -> Iterator[list[pa.Table]]:
    """Neighbouring rows, about `size` bytes at a time."""
    held: list[pa.Table] = []
    room = size
    for block in blocks:
        for piece in _pieces(block, size // 4):
            if held and piece.nbytes > room:
                yield held
                held, room = [], size
            held.append(piece)
            room -= piece.nbytes
    if held:
        yield held


def _sorted_run(held: list[pa.Table], spill: _Spill, limits: _Limits) -> _Run:
    """Spill what is held, sorted, and hold it no longer."""
    together = pa.concat_tables(held).combine_chunks()
    held.clear()
    return _written(spill, _in_order([together], limits.batch))


def _merge_surplus(groups: list[list[_Run]], spill: _Spill, limits: _Limits) -> None:
    """Merge neighbours, the smallest first, until no more runs are left than can be read side by side."""
    while (surplus := sum(map(len, groups)) - limits.runs) > 0:
        runs = max(groups, key=len)
        count = min(len(runs), limits.runs, surplus + 1)
        rows = np.convolve([_rows(run) for run in runs], np.ones(count, np.int64), "valid")
        at = int(np.argmin(rows))
        runs[at : at + count] = [_merged_run(runs[at : at + count], spill, limits)]


def _merged_run(runs: list[_Run], spill: _Spill, limits: _Limits) -> _Run:
    readers = [_Reader(run, spill, (0, _ALWAYS)) for run in runs]
    return _written(spill, _merged([readers], limits.batch))


def _written(spill: _Spill, parts: Iterable[list[tuple[pa.Table, Ints]]]) -> _Run:
    return np.fromiter((spill.write(rows) for ((rows, _),) in parts), _BATCHES)


def _rows(run: _Run) -> int:
    return int(run["rows"].sum())


def _merged(groups: list[list[_Reader]], size: int) -> Iterator[list[tuple[pa.Table, Ints]]]:
    """All that is read, in order of time, about `size` bytes at a time; a table for each group.

    At a tie the rows of earlier readers come first. The numbers are the rows' places among those that come
    together.
    """
    readers = [reader for group in groups for reader in group]
    while _load(readers):
        # What is not loaded yet lies at or behind the last loaded row of its run.
        stamp, rank = min(
            ((reader.last, n) for n, reader in enumerate(readers) if reader.more), default=(_ALWAYS, -1)
        )
        earlier = set(readers[: rank + 1])
        yield from _in_order(
            [
                _together([rows for reader in group for rows in reader.before(stamp + (reader in earlier))])
                for group in groups
            ],
            size,
        )


def _load(readers: list[_Reader]) -> bool:
    for reader in readers:
        reader.load()
    return any(reader.loaded for reader in readers)


class _Reader:
    """A run being read between two instants, two batches ahead."""

    def __init__(self, run: _Run, spill: _Spill, span: tuple[int, int]) -> None:
        self._spill = spill
        self._start, self._until = span
        early = run["last"] < self._start
        self._batches = run[~early & (run["first"] < self._until)]
        self._next = 0
        self.skipped = _rows(run[early])
        self.loaded: deque[pa.Table] = deque()
        self.last = 0
        if len(self._batches) and self._batches["first"][0] < self._start:
            self.skipped += _count_before(spill.read(self._batch(0)), self._start)

    @property
    def more(self) -> bool:
        return self._next < len(self._batches)

    def load(self) -> None:
        while self.more and len(self.loaded) < 2:
            batch = self._batch(self._next)
            self._next += 1
            rows = self._spill.read(batch)
            first = _count_before(rows, self._start) if batch.first < self._start else 0
            stop = _count_before(rows, self._until) if batch.last >= self._until else len(rows)
            self.loaded.append(rows.slice(first, stop - first))
            self.last = batch.last

    def _batch(self, number: int) -> _Batch:
        return _Batch(*self._batches[number].item())

    def before(self, bound: int) -> Iterator[pa.Table]:
        """Give away the loaded rows that are stamped before `bound`."""
        while self.loaded:
            rows = self.loaded.popleft()
            count = _count_before(rows, bound)
            yield rows.slice(0, count)
            if count < len(rows):
                self.loaded.appendleft(rows.slice(count))
                return


def _in_order(found: list[pa.Table], size: int) -> Iterator[list[tuple[pa.Table, Ints]]]:
    """Rows of several tables in order of time, about `size` bytes at a time.

    Of each table come its rows and their places among those that come together; at a tie the first table is
    first.
    """
    stamps = np.concatenate([table.column("ts_event").to_numpy() for table in found])
    order = np.argsort(stamps, kind="stable")
    begins = np.cumsum([0, *map(len, found)])
    rows = max(1, len(order) * size // max(1, sum(table.nbytes for table in found)))
    for first in range(0, len(order), rows):
        part = order[first : first + rows]
        out = []
        for table, begin in zip(found, begins.tolist(), strict=False):
            places = np.flatnonzero((part >= begin) & (part < begin + len(table)))
            out.append((table.take(pa.array(part[places] - begin)), places))
        yield out


def _pieces(table: pa.Table, size: int) -> Iterator[pa.Table]:
    rows = max(1, len(table) * size // max(1, table.nbytes))
    return (table.slice(first, rows) for first in range(0, len(table), rows))


def _together(parts: list[pa.Table]) -> pa.Table:
    if not parts:
        return pa.table({"ts_event": pa.array([], pa.int64())})
    return pa.concat_tables(parts).combine_chunks()


def _count_before(rows: pa.Table, instant: int) -> int:
    return int(np.searchsorted(rows.column("ts_event").to_numpy(), instant, side="left"))
