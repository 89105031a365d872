"""The lake: raw bars of history, from either route, with where they came from and whether they are final.

    lake/us_stocks_sip/minute_aggs_v1/2013/10/2013-10-09.parquet   a day's flat file: every symbol
    lake/rest/1m/AAPL/2013-10.parquet                              what REST gave: one symbol, one month
    lake/rest/1d/AAPL/2013.parquet                                 the same for day bars: one year
    lake/reference/splits/AAPL.json                                splits, with the time they were asked for

Nothing here is adjusted. Each Parquet file opens with pandas or polars, and says in its own metadata (key
`tapelab`) what it covers, so rows and coverage cannot part. Where both routes hold a day, the flat file wins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from tapelab.errors import Damaged, Locked
from tapelab.market import tables
from tapelab.market.adjust import Dividend, Split
from tapelab.market.intervals import Base
from tapelab.massive import wire
from tapelab.settings import Settings
from tapelab.store import files

Origin = Literal["rest", "flat_file"]

ROW_GROUP = 16_384  # rows; a few symbols of a day's ten thousand then cost a few groups
LOCK_SECONDS = 600.0  # how long another process may take for one file before we say so

_METADATA = b"tapelab"
_INSTANT = pa.timestamp("ns", tz="UTC")
_RISING = ("timestamp", "ts_event", "ts_participant", "arrival", "sequence")  # small steps, packed as such
_REPEATED = ("symbol", "session")  # few different values, each written once
_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Held:
    """What is held of one symbol on one day. `known_at`: when it was asked for, ns UTC."""

    origin: Origin
    known_at: int
    final: bool
    etag: str = ""
    tape: str = ""


Coverage = Mapping[tuple[str, date], Held]


class DayFile(msgspec.Struct, frozen=True):
    """Where a day's flat file came from: the vendor's own ETag, size and time, and ours."""

    product: str
    day: date
    etag: str
    size: int
    modified: int
    known_at: int
    tape: str = ""
    origin: Origin = "flat_file"


class _Day(msgspec.Struct, frozen=True):
    known_at: int
    final: bool
    tape: str = ""


class _Filled(msgspec.Struct, frozen=True):
    """What a file that REST filled covers."""

    symbol: str
    base: Base
    days: dict[date, _Day] = {}
    origin: Origin = "rest"


class Splits(msgspec.Struct, frozen=True):
    """A symbol's splits as they were known at `known_at` (ns UTC)."""

    known_at: int
    rows: tuple[Split, ...]


class Dividends(msgspec.Struct, frozen=True):
    """A symbol's dividends as they were known at `known_at` (ns UTC)."""

    known_at: int
    rows: tuple[Dividend, ...]


class Lake:
    """The history of one endpoint on this computer."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.root / "lake"

    def coverage(
        self, symbols: Sequence[str], days: Sequence[date], base: Base, *, product: str | None
    ) -> dict[tuple[str, date], Held]:
        """What is held of these symbols on these days; creates nothing.

        `product` is the flat files of that market and base (None: there are none). A symbol without a bar on
        a covered day did not trade.
        """
        held: dict[tuple[str, date], Held] = {}
        for symbol in symbols:
            for path in _unique(self._filled_path(symbol, base, day) for day in days):
                for day, known in self._filled(path, symbol, base).days.items():
                    held[symbol, day] = Held("rest", known.known_at, known.final, tape=known.tape)
        for file in self._day_files(product, days):
            whole = Held("flat_file", file.known_at, True, file.etag, file.tape)
            held.update(((symbol, file.day), whole) for symbol in symbols)
        wanted = set(days)
        return {key: value for key, value in held.items() if key[1] in wanted}

    def read(
        self, symbols: Sequence[str], days: Sequence[date], base: Base, *, product: str | None
    ) -> tuple[pa.Table, dict[tuple[str, date], Held]]:
        """The raw bars held of these symbols on these days, by symbol and time, and what they cover.

        Raises `Damaged` for a file that is not what was written.
        """
        coverage = self.coverage(symbols, days, base, product=product)
        in_files = {day for (_, day), held in coverage.items() if held.origin == "flat_file"}
        parts = [
            _bars_in(self.day_path(product, day), symbols) for day in sorted(in_files) if product is not None
        ]
        for symbol in symbols:
            mine = [day for day in days if day not in in_files and (symbol, day) in coverage]
            for path in _unique(self._filled_path(symbol, base, day) for day in mine):
                parts.append(_of_days(_bars_in(path, [symbol]), mine))
        table = tables.concat(parts, tables.BARS)
        return table.sort_by([("symbol", "ascending"), ("timestamp", "ascending")]), coverage

    def keep_rest(
        self,
        symbol: str,
        base: Base,
        bars: pa.Table,
        days: Mapping[date, bool],
        *,
        known_at: int,
        tape: str = "",
    ) -> None:
        """Keep what REST said of one symbol on `days`, each with whether it is final.

        What was held of those days is replaced; a day without rows in `bars` is kept as empty.
        """
        by_path: dict[Path, dict[date, _Day]] = {}
        for day, final in days.items():
            path = self._filled_path(symbol, base, day)
            by_path.setdefault(path, {})[day] = _Day(known_at, final, tape)
        for path, new in by_path.items():
            with self._locked(path):
                known = self._filled(path, symbol, base)
                kept = [day for day in known.days if day not in new]
                parts = [_of_days(_bars_in(path, [symbol]), kept)] if kept else []
                table = tables.concat([*parts, _of_days(bars, list(new))], tables.BARS)
                covered = _Filled(symbol, base, dict(sorted({**known.days, **new}.items())))
                _write(path, [table.sort_by("timestamp")], tables.BARS, covered)

    def day_path(self, product: str, day: date) -> Path:
        """Where a day's flat file lies once it is here."""
        return self.folder / wire.file_key(product, day).replace(".csv.gz", ".parquet")

    def day_file(self, product: str, day: date) -> DayFile | None:
        """A day's flat file, if it is here."""
        path = self.day_path(product, day)
        raw = _metadata(path)
        return None if raw is None else _decoded(raw, DayFile, path)

    @contextlib.contextmanager
    def incoming(self, product: str, day: date) -> Iterator[Path]:
        """Only one process at a time brings a day's file; gives a place for what is on its way."""
        with self._locked(self.day_path(product, day)):
            place = files.make_folder(self.folder / ".incoming") / f"{product.replace('/', '-')}-{day}.csv.gz"
            try:
                yield place
            except OSError as error:
                raise files.unwritable(place, error) from error
            finally:
                place.unlink(missing_ok=True)

    def keep_file(self, source: Path, file: DayFile) -> Path:
        """A downloaded flat file as Parquet in its place, whole or not at all. Call it inside `incoming`.

        Rows keep the order of the file. Raises what `wire.iter_flat_file` raises for a file it cannot be.
        """
        path = self.day_path(file.product, file.day)
        schema = tables.SCHEMAS[wire.product_named(file.product).kind]
        _write(path, wire.iter_flat_file(source, file.product, day=file.day), schema, file)
        return path

    def names(self, product: str, day: date) -> list[str]:
        """Every symbol in a day's flat file that is here."""
        return sorted(pc.unique(_table(self.day_path(product, day), ["symbol"])["symbol"]).to_pylist())

    def splits(self, symbol: str) -> Splits | None:
        """The splits held of a symbol, with when they were asked for."""
        return self._reference("splits", symbol, Splits)

    def dividends(self, symbol: str) -> Dividends | None:
        """The dividends held of a symbol, with when they were asked for."""
        return self._reference("dividends", symbol, Dividends)

    def keep_reference(self, symbol: str, known: Splits | Dividends) -> None:
        """Keep a symbol's splits or dividends; what was held of them is replaced."""
        path = self._reference_path("splits" if isinstance(known, Splits) else "dividends", symbol)
        with self._locked(path):
            _sweep(path)
            files.make_folder(path.parent)
            files.write_bytes(path, msgspec.json.encode(known), replace=True)

    def _reference(self, kind: str, symbol: str, type_: type[_T]) -> _T | None:
        path = self._reference_path(kind, symbol)
        try:
            return _decoded(path.read_bytes(), type_, path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _reference_path(self, kind: str, symbol: str) -> Path:
        return self.folder / "reference" / kind / f"{_safe(symbol)}.json"

    def _filled_path(self, symbol: str, base: Base, day: date) -> Path:
        stretch = f"{day:%Y}" if base == "1d" else f"{day:%Y-%m}"
        return self.folder / "rest" / base / _safe(symbol) / f"{stretch}.parquet"

    def _filled(self, path: Path, symbol: str, base: Base) -> _Filled:
        raw = _metadata(path)
        return _Filled(symbol, base) if raw is None else _decoded(raw, _Filled, path)

    def _day_files(self, product: str | None, days: Iterable[date]) -> Iterator[DayFile]:
        if product is not None:
            for day in days:
                if (file := self.day_file(product, day)) is not None:
                    yield file

    @contextlib.contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        name = "-".join(path.relative_to(self.folder).parts)
        folder = files.make_folder(self.folder / ".locks")
        lock = FileLock(folder / f"{name}.lock", timeout=LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout as cause:
            raise Locked(
                f"Another process has been writing {path} for {LOCK_SECONDS:.0f} s.",
                remedy="Wait for it, or end it.",
                path=str(path),
            ) from cause
        except OSError as cause:
            raise files.unwritable(folder, cause) from cause
        try:
            yield
        finally:
            lock.release()


def _write(path: Path, parts: Iterable[pa.Table], schema: pa.Schema, about: DayFile | _Filled) -> None:
    clocks = [name for name in schema.names if name == "timestamp" or name.startswith("ts_")]
    fields = [f.with_type(_INSTANT) if f.name in clocks else f for f in schema]
    stored = pa.schema(fields, metadata={_METADATA: msgspec.json.encode(about)})

    def fill(beside: Path) -> None:
        rising = [name for name in schema.names if name in _RISING]
        with pq.ParquetWriter(
            beside,
            stored,
            compression="zstd",
            compression_level=1,
            use_dictionary=[name for name in schema.names if name in _REPEATED],
            column_encoding=dict.fromkeys(rising, "DELTA_BINARY_PACKED"),
            write_page_checksum=True,
        ) as writer:
            for part in parts:
                writer.write_table(part.replace_schema_metadata(None).cast(stored), row_group_size=ROW_GROUP)

    files.make_folder(path.parent)
    _sweep(path)
    files.write_whole(path, fill, replace=True)


def _sweep(path: Path) -> None:
    """Take away what a killed writer left; the caller holds the lock, so nobody is writing it now."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        left.unlink(missing_ok=True)


def _bars_in(path: Path, symbols: Sequence[str]) -> pa.Table:
    wanted = pc.field("symbol").isin(list(symbols))
    return tables.conform(_table(path, tables.BARS.names, wanted), tables.BARS)


def _table(path: Path, columns: list[str], wanted: pc.Expression | None = None) -> pa.Table:
    try:
        return pq.read_table(path, columns=columns, filters=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as cause:
        raise _damaged(path) from cause


def _metadata(path: Path) -> bytes | None:
    """What a Parquet file says about itself; None if there is no such file."""
    try:
        found = (pq.read_schema(path).metadata or {}).get(_METADATA)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as cause:
        raise files.unwritable(path, cause) from cause
    except (pa.ArrowException, OSError) as cause:
        raise _damaged(path) from cause
    if found is None:
        raise _damaged(path)
    return bytes(found)


def _decoded(raw: bytes, type_: type[_T], path: Path) -> _T:
    try:
        return msgspec.json.decode(raw, type=type_)
    except msgspec.DecodeError as cause:
        raise _damaged(path) from cause


def _damaged(path: Path) -> Damaged:
    return Damaged(
        f"{path} is not what was written.",
        remedy="Delete it; the next call fetches it again.",
        path=str(path),
    )


def _of_days(bars: pa.Table, days: Sequence[date]) -> pa.Table:
    return bars.filter(pc.is_in(bars["session"], pa.array(days, pa.date32())))


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))


def _safe(symbol: str) -> str:
    """A symbol as a file name that differs from others also where case does not count: `BA%70A`."""
    return "".join(c if c in _PLAIN else f"%{ord(c):02X}" for c in symbol)
