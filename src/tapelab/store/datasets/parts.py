"""Rows of a dataset in Parquet: small, quick to write, checked when asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.errors import Damaged
from tapelab.market import tables
from tapelab.store import files
from tapelab.store.datasets.manifest import Seen, Segment

# Measured: half the size of pyarrow's defaults, and nearly twice as quick to write.
_DELTA = ("ts_event", "ts_recv", "arrival", "sequence", "ts_participant", "timestamp")
SEGMENTS, OVERLAY = "segments", "overlay"


def write_parquet(table: pa.Table, path: Path, *, replace: bool = False) -> None:
    """A table as one Parquet file, whole or not at all: zstd, clocks and sequences as differences."""
    delta = {name: "DELTA_BINARY_PACKED" for name in _DELTA if name in table.column_names}
    dictionary = [f"{name}.list.element" if _is_list(table, name) else name for name in table.column_names]
    files.make_folder(path.parent)

    def write(beside: Path) -> None:
        pq.write_table(
            table,
            beside,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in dictionary if name not in delta],
            column_encoding=delta,
        )

    files.write_whole(path, write, replace=replace)


def write_segment(
    folder: Path, part: int, kind: str, table: pa.Table, *, shift: int = 0, overlay: bool = False
) -> Segment:
    """Lay down rows of one kind, in order of arrival, as a segment of the dataset in `folder`."""
    name = f"{OVERLAY if overlay else SEGMENTS}/{kind}-{part:06d}.parquet"
    path = folder / name
    path.unlink(missing_ok=True)  # left by a recorder that was killed before its manifest named it
    write_parquet(table.replace_schema_metadata(None), path)
    stamps = pc.min_max(table.column(stamp_of(kind)))
    order = pc.min_max(table.column("arrival")) if kind != "bars" else {"min": -1, "max": -1}
    return Segment(
        file=name,
        kind=kind,
        part=part,
        rows=len(table),
        bytes=path.stat().st_size,
        sha256=files.sha256(path),
        first=_int(order["min"]),
        last=_int(order["max"]),
        start=_int(stamps["min"]),
        end=_int(stamps["max"]),
        shift=shift,
    )


def read_segment(folder: Path, segment: Segment, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a segment. `Damaged` names the file that is missing or not what was written."""
    path = folder / segment.file
    schema = tables.SCHEMAS[segment.kind]
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    try:
        content = path.read_bytes()
        # Parquet's own checksums leave out what describes the pages; this costs a tenth of the reading.
        if hashlib.sha256(content).hexdigest() != segment.sha256:
            raise _damaged(folder, segment)
        with pq.ParquetFile(pa.BufferReader(content)) as file:
            names = set(file.schema_arrow.names)
            table = tables.conform(file.read([name for name in schema.names if name in names]), schema)
    except FileNotFoundError as error:
        raise Damaged(
            f"The dataset {folder.name} lacks its file {segment.file}.",
            remedy="Restore it from a backup.",
            path=str(path),
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise _damaged(folder, segment) from error
    if segment.shift:
        index = table.column_names.index("arrival")
        shifted = pc.add(table.column("arrival"), segment.shift)
        table = table.set_column(index, tables.SCHEMAS[segment.kind].field("arrival"), shifted)
    return table


def check_segment(folder: Path, segment: Segment) -> str:
    """What is wrong with a segment; empty if nothing is."""
    path = folder / segment.file
    if not path.exists():
        return f"{segment.file} is missing"
    if not path.is_file() or files.sha256(path) != segment.sha256:
        return f"{segment.file} is not what was written"
    return ""


def stamp_of(kind: str) -> str:
    return "timestamp" if kind == "bars" else "ts_event"


def count(kind: str, table: pa.Table) -> dict[str, Seen]:
    """Per symbol, how many rows of `kind` a table has, and their first and last time."""
    stamp = stamp_of(kind)
    grouped = table.group_by("symbol").aggregate([(stamp, "count"), (stamp, "min"), (stamp, "max")])
    columns = (grouped.column(n).to_pylist() for n in ("symbol", f"{stamp}_count", f"{stamp}_min"))
    symbols, counts, firsts = columns
    lasts = grouped.column(f"{stamp}_max").to_pylist()
    return {
        symbol: msgspec.structs.replace(Seen(first=first, last=last), **{kind: rows})
        for symbol, rows, first, last in zip(symbols, counts, firsts, lasts, strict=True)
    }


def merge(counted: Iterable[dict[str, Seen]]) -> dict[str, Seen]:
    """Several counts as one, by symbol in order of name."""
    total: dict[str, Seen] = {}
    for one in counted:
        for symbol, seen in one.items():
            old = total.get(symbol)
            total[symbol] = seen if old is None else _sum(old, seen)
    return dict(sorted(total.items()))


def newest_bars(bars: pa.Table) -> pa.Table:
    """Bars by symbol and time; of a bar that was sent again the later one counts."""
    if len(bars) == 0:
        return bars
    position = pa.array(np.arange(len(bars)))
    last = (
        bars.append_column("position", position)
        .group_by(["symbol", "timestamp"])
        .aggregate([("position", "max")])
        .column("position_max")
    )
    return bars.take(last).sort_by([("symbol", "ascending"), ("timestamp", "ascending")])


def _sum(a: Seen, b: Seen) -> Seen:
    return Seen(
        a.quotes + b.quotes, a.trades + b.trades, a.bars + b.bars, min(a.first, b.first), max(a.last, b.last)
    )


def _int(value: object) -> int:
    return int(value.as_py()) if isinstance(value, pa.Scalar) else int(str(value))


def _is_list(table: pa.Table, name: str) -> bool:
    return bool(pa.types.is_list(table.schema.field(name).type))


def _damaged(folder: Path, segment: Segment) -> Damaged:
    return Damaged(
        f"The file {segment.file} of dataset {folder.name} is not what was written.",
        remedy="Restore it from a backup; `tapelab datasets verify` names every such file.",
        path=str(folder / segment.file),
    )
