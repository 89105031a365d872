"""The lake's Parquet files: written whole, found by symbol through an index of their own, checked."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.errors import Damaged
from tapelab.store import files

ROW_GROUP = 16_384  # rows; a few symbols of a day's ten thousand then cost a few groups
FOOTERS = 8  # footers that are kept in memory; a month's is some MB

ABOUT = b"tapelab"
_INDEX = b"tapelab_index"
_INSTANT = pa.timestamp("ns", tz="UTC")
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
_PACKED = ("timestamp", "ts_event", "ts_participant", "arrival", "sequence", "transactions")  # small steps
_SPLIT = ("volume",)  # mostly whole: such doubles are alike byte by byte, where prices repeat as a whole
_REPEATED = ("symbol", "session", "ticker")  # few different values, each written once
_T = TypeVar("_T")

Stamp = tuple[int, int, int]  # inode, size, time of the last change: another file, another stamp


class Group(NamedTuple):
    """The symbols of one row group lie between `first` and `last`, both included."""

    first: str
    last: str
    rows: int


@dataclass(frozen=True)
class Footer:
    """What a file says about itself."""

    metadata: pq.FileMetaData
    about: bytes
    index: tuple[Group, ...]

    def groups_of(self, symbols: Iterable[str]) -> list[int]:
        """The row groups in which rows of these symbols may lie."""
        if not self._rising:
            wanted = list(symbols)
            return [n for n, g in enumerate(self.index) if any(g.first <= s <= g.last for s in wanted)]
        found: set[int] = set()
        for symbol in symbols:
            begin = bisect_left(self.index, symbol, key=lambda group: group.last)
            found.update(range(begin, bisect_right(self.index, symbol, key=lambda group: group.first)))
        return sorted(found)

    @cached_property
    def _rising(self) -> bool:
        return all(one.last <= other.first for one, other in pairwise(self.index))


class Writer:
    """Fills one file; `about` is what it says of itself, told at the end."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        clocks = [name for name in schema.names if name == "timestamp" or name.startswith("ts_")]
        fields = [field.with_type(_INSTANT) if field.name in clocks else field for field in schema]
        self.rows = 0
        self._schema = pa.schema(fields)
        self._symbol = "symbol" if "symbol" in schema.names else "ticker"
        self._groups: list[Group] = []
        self._writer = pq.ParquetWriter(
            path,
            self._schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in schema.names if name in _REPEATED],
            column_encoding={
                name: encoding
                for names, encoding in ((_PACKED, "DELTA_BINARY_PACKED"), (_SPLIT, "BYTE_STREAM_SPLIT"))
                for name in names
                if name in schema.names and pa.types.is_primitive(schema.field(name).type)
            },
            write_page_checksum=True,
        )

    def write(self, part: pa.Table) -> None:
        """The rows as groups of `ROW_GROUP`."""
        self.put(self.groups(part))

    def write_group(self, part: pa.Table) -> None:
        """The rows as one group."""
        self.put(self.groups(part, max(len(part), 1)))

    def groups(self, part: pa.Table, most: int = ROW_GROUP) -> list[tuple[Group, pa.Table]]:
        """The rows as groups of at most so many, for `put`; another thread may make them ready."""
        stored = part.replace_schema_metadata(None).cast(self._schema)
        slices = [stored.slice(begin, most) for begin in range(0, len(part), most)]
        return [(self._group(rows), rows) for rows in slices]

    def _group(self, rows: pa.Table) -> Group:
        names = pc.min_max(rows.column(self._symbol))
        return Group(names["min"].as_py(), names["max"].as_py(), len(rows))

    def put(self, groups: Iterable[tuple[Group, pa.Table]]) -> None:
        for group, rows in groups:
            self._groups.append(group)
            self.rows += group.rows
            self._writer.write_table(rows, row_group_size=group.rows)

    def close(self, about: msgspec.Struct) -> None:
        self._writer.add_key_value_metadata(
            {ABOUT: msgspec.json.encode(about), _INDEX: msgspec.json.encode(self._groups)}
        )
        self._writer.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *broken: object) -> None:
        if broken[0] is not None:
            self._writer.close()


def write(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a file beside `path`, then give it its name. The caller holds the path's lock."""
    files.make_folder(path.parent)
    sweep(path)
    files.write_whole(path, fill, replace=True)


def sweep(path: Path) -> None:
    """Take away what a killed writer left; the caller holds the lock, so nobody is writing it now."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink(missing_ok=True)


def stamp_of(path: Path) -> Stamp | None:
    """Which file lies there now; None if there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as cause:
        raise files.unwritable(path, cause) from cause
    return found.st_ino, found.st_size, found.st_mtime_ns


def footer(path: Path) -> Footer | None:
    """What a file says about itself; None if there is no such file. Raises `Damaged`."""
    stamp = stamp_of(path)
    if stamp is None:
        return None
    try:
        return _footer(path, stamp)
    except FileNotFoundError:
        return None


@lru_cache(maxsize=FOOTERS)
def _footer(path: Path, stamp: Stamp) -> Footer:
    with understood(path):
        metadata = pq.read_metadata(path)
    said = metadata.metadata or {}
    if ABOUT not in said:
        raise damaged(path)
    index = decoded(said[_INDEX], list[Group], path) if _INDEX in said else []
    return Footer(metadata, bytes(said[ABOUT]), tuple(index))


def rows_of(path: Path, columns: Sequence[str], symbols: Sequence[str]) -> pa.Table:
    """The rows of these symbols, in the order of the file. Raises `Damaged`."""
    found = footer(path)
    if found is None:
        raise damaged(path)
    groups = found.groups_of(symbols)
    with opened(path, found) as file:
        table = file.read_row_groups(groups, columns=list(columns))
    if all(found.index[n].first == found.index[n].last for n in groups):
        return table
    named = "symbol" if "symbol" in columns else "ticker"
    return table.filter(pc.is_in(table[named], pa.array(list(symbols), pa.string())))


@contextmanager
def opened(path: Path, found: Footer | None = None) -> Iterator[pq.ParquetFile]:
    """A file to read groups from, each page of it checked. Raises `Damaged`."""
    with understood(path):
        metadata = found.metadata if found else None
        with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
            yield file


def check(path: Path) -> int:
    """Read a whole file, page by page; gives its number of rows. Raises `Damaged`."""
    rows = 0
    with opened(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            rows += len(batch)
    return rows


@contextmanager
def understood(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as cause:
        raise damaged(path) from cause


def decoded(raw: bytes, type_: type[_T], path: Path) -> _T:
    """JSON of the lake. Raises `Damaged`."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.DecodeError as cause:
        raise damaged(path) from cause


def file_name(symbol: str) -> str:
    """A symbol as a file name that differs from others also where case does not count: `BA%70A`."""
    return "".join(c if c in _PLAIN else f"%{ord(c):02X}" for c in symbol)


def damaged(path: Path) -> Damaged:
    return Damaged(
        f"{path} is not what was written.",
        remedy="Delete it; the next call fetches it again.",
        path=str(path),
    )
