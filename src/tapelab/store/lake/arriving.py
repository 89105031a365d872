"""A downloaded daily file on its way into the lake: converted as it streams, nothing dropped in silence."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.massive.wire.catalogue import kind_named
from tapelab.massive.wire.csvfile import Notes
from tapelab.massive.wire.fields import FIELDS
from tapelab.massive.wire.otherfile import flat_file
from tapelab.store.lake import sheets

LISTED = 20  # rows left out that a note quotes
AHEAD = 2  # parts that wait to be written


class DayFile(msgspec.Struct, frozen=True):
    """Where a day's flat file came from: the vendor's own ETag, size and time, when we asked, what it held.

    `rows` are those kept; `notes` say what was strange in the file and what was done about it.
    """

    product: str
    day: date
    etag: str
    size: int
    modified: int
    known_at: int
    tape: str = ""
    rows: int = 0
    notes: tuple[str, ...] = ()


def keep(source: Path, path: Path, file: DayFile) -> DayFile:
    """The file at `source` as Parquet at `path`, whole or not at all; gives what is now known of it.

    Rows keep the order of the file. Two bars of one symbol at one time become one: that of more transactions,
    and the other is quoted in the notes. Raises `Damaged` and `MalformedAnswer` for what it cannot be.
    """
    kept: list[DayFile] = []

    def fill(beside: Path) -> None:
        notes = Notes()
        schema, parts = flat_file(source, file.product, day=file.day, notes=notes)
        order = _Order(file.product, schema)
        with sheets.Writer(beside, _without_nulls(schema, file.product)) as writer:
            with ThreadPoolExecutor(1) as hand:  # writes one part while the next are read
                written: deque[Future[None]] = deque()
                for part in parts:
                    order.see(part)
                    written.append(hand.submit(writer.put, writer.groups(part)))
                    if len(written) > AHEAD:
                        written.popleft().result()
                for last in written:
                    last.result()
            kept.append(msgspec.structs.replace(file, rows=writer.rows, notes=notes.lines))
            writer.close(kept[-1])
        if order.broken and (dropped := _duplicates(beside, order.key)):
            kept.append(_without(beside, dropped, kept[-1], order.key))

    sheets.write(path, fill)
    return kept[-1]


def _without_nulls(schema: pa.Schema, product: str) -> pa.Schema:
    """The same, where a column that a file of this product must have is never null: quicker to write."""
    known = kind_named(product).product
    if known is None:
        return schema
    needed = {field.column for field in FIELDS[known.kind] if field.required and field.csv in known.header}
    return pa.schema([field.with_nullable(field.nullable and field.name not in needed) for field in schema])


class _Order:
    """Watches whether bars rise by symbol and time. Where they do, no two are of one symbol and time."""

    def __init__(self, product: str, schema: pa.Schema) -> None:
        self.broken = False
        kind = kind_named(product)
        names = ("symbol", "timestamp") if kind.product else ("ticker", "window_start")
        self.key = [*names, *(["exchange"] if "exchange" in schema.names else [])]
        self._bars = kind.bars
        self._last: pa.Table | None = None

    def see(self, part: pa.Table) -> None:
        if not self._bars or self.broken or len(part) == 0:
            return
        keys = part.select(self.key[:2]).replace_schema_metadata(None)
        if self._last is not None:
            keys = pa.concat_tables([self._last, keys])
        keys = keys.combine_chunks()
        self._last = keys.slice(len(keys) - 1)
        times = keys.column(1).cast(pa.int64()).to_numpy()
        turns = pa.array(np.flatnonzero(np.diff(times) <= 0))
        before, after = keys.column(0).take(turns), keys.column(0).take(pc.add(turns, 1))
        self.broken = not pc.all(pc.less(before, after), min_count=0).as_py()


def _duplicates(path: Path, key: list[str]) -> list[int]:
    """The numbers of the rows that give way to another of their symbol and time."""
    with sheets.opened(path) as file:
        names = [name for name in (*key, "transactions", "volume") if name in file.schema_arrow.names]
        table = file.read(columns=names)
    order = np.lexsort([*_weights(table), *(_code(table[name]) for name in reversed(key))])
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for name in key:
        codes = _code(table[name])[order]
        same &= codes[1:] == codes[:-1]
    return sorted(int(row) for row in order[1:][same])


def _weights(table: pa.Table) -> list[npt.NDArray[np.float64]]:
    """Of rows with one key the first counts: the most transactions, then volume, then the earliest."""
    found: list[npt.NDArray[np.float64]] = [np.arange(len(table), dtype=np.float64)]
    for name in ("volume", "transactions"):
        if name in table.column_names:
            found.append(-pc.fill_null(table[name].cast(pa.float64()), 0.0).to_numpy())
    return found


def _code(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    whole = column.combine_chunks()
    if pa.types.is_string(whole.type):
        whole = whole.dictionary_encode().indices
    codes: npt.NDArray[np.int64] = whole.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return codes


def _without(path: Path, dropped: list[int], file: DayFile, key: list[str]) -> DayFile:
    """Write a file again without some of its rows, which its notes then quote."""
    source = path.with_name(f"{path.name}.part")
    path.rename(source)
    gone = np.array(dropped)
    quoted: list[str] = []
    seen = 0
    try:
        with sheets.opened(source) as old, sheets.Writer(path, old.schema_arrow) as writer:
            for batch in old.iter_batches(sheets.ROW_GROUP):
                part = pa.Table.from_batches([batch]).replace_schema_metadata(None)
                here = gone[(gone >= seen) & (gone < seen + len(part))] - seen
                quoted += map(_quote, part.take(here[: LISTED - len(quoted)]).to_pylist())
                kept = np.ones(len(part), dtype=bool)
                kept[here] = False
                seen += len(part)
                writer.write(part.filter(pa.array(kept)))
            more = ", …" if len(dropped) > LISTED else ""
            note = (
                f"{len(dropped)} rows: a second bar of one symbol and time; the busier one was kept. "
                f"Left out: {'; '.join(quoted)}{more}"
            )
            known = msgspec.structs.replace(file, rows=writer.rows, notes=(*file.notes, note))
            writer.close(known)
    finally:
        source.unlink(missing_ok=True)
    return known


def _quote(row: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in row.items() if value is not None)
