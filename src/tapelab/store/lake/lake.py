"""The lake: raw bars of history, from either route, with where they came from and whether they are final.

    lake/us_stocks_sip/minute_aggs_v1/2013/10/2013-10-09.parquet   a day's flat file: every symbol
    lake/us_stocks_sip/minute_aggs_v1/2013/2013-10.parquet         a month of them, sorted by symbol; derived
    lake/us_stocks_sip/minute_aggs_v1/2013/manifest.json           the year's files: ETag, size, rows, when
    lake/rest/1m/AAPL/2013-10.parquet                              what REST gave: one symbol, one month
    lake/rest/1d/AAPL/2013.parquet                                 the same for day bars: one year
    lake/reference/splits/AAPL.json                                splits, with the time they were asked for

Nothing here is adjusted. Each Parquet file opens with pandas, polars or duckdb, and says in its own metadata
(key `tapelab`) what it covers, so rows and coverage cannot part. Day files are the truth: a month file that
is older than one of its days is not used for that day, and the manifest is only a quicker way to the same
facts. Where both routes hold a day, the flat file wins.
"""

from __future__ import annotations

import contextlib
from calendar import monthrange
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from tapelab.errors import Damaged, Locked
from tapelab.market import sessions, tables
from tapelab.market.adjust import Dividend, Split
from tapelab.market.intervals import Base
from tapelab.massive.wire.catalogue import key_of, kind_named
from tapelab.settings import Settings
from tapelab.store import files
from tapelab.store.lake import arriving, compaction, sheets
from tapelab.store.lake.arriving import DayFile as DayFile
from tapelab.store.lake.census import Census
from tapelab.store.lake.compaction import Month
from tapelab.store.lake.inspection import Broken, broken_files

Origin = Literal["rest", "flat_file"]

LOCK_SECONDS = 600.0  # how long another process may take for one file before we say so
FILE_LOCK_SECONDS = 6 * 3600.0  # the same for a download; a day of options quotes is over 100 GB
POLL = 0.005  # seconds between two looks at a lock
WORTH_A_MONTH = 3  # days of a month from which on its file is quicker than its days
WORTH_WRITING = 5  # days that a month file must gain before it is written again, unless the month is over

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
        self._files = Census(self.folder)

    def coverage(
        self, symbols: Sequence[str], days: Sequence[date], base: Base, *, product: str | None
    ) -> dict[tuple[str, date], Held]:
        """What is held of these symbols on these days; creates nothing.

        `product` is the flat files of that market and base (None: there are none). A symbol without a bar on
        a covered day did not trade.
        """
        return self._covered(symbols, days, base, self._day_files(product, days))

    def _day_files(self, product: str | None, days: Sequence[date]) -> dict[date, DayFile]:
        return {} if product is None else self._files.of(product, days)

    def _covered(
        self, symbols: Sequence[str], days: Sequence[date], base: Base, in_files: Mapping[date, DayFile]
    ) -> dict[tuple[str, date], Held]:
        held: dict[tuple[str, date], Held] = {}
        stretches = {_stretch(base, day): day for day in days}
        for symbol in symbols:
            for path in (self._filled_path(symbol, base, day) for day in stretches.values()):
                for day, known in self._filled(path, symbol, base).days.items():
                    held[symbol, day] = Held("rest", known.known_at, known.final, tape=known.tape)
        for file in in_files.values():
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
        in_files = self._day_files(product, days)
        coverage = self._covered(symbols, days, base, in_files)
        parts = list(self._of_files(product, in_files, symbols)) if product is not None else []
        for symbol in symbols:
            mine = [day for day in days if day not in in_files and (symbol, day) in coverage]
            for path in _unique(self._filled_path(symbol, base, day) for day in mine):
                parts.append(_of_days(_bars_in(path, [symbol]), mine))
        return _ordered(tables.concat(parts, tables.BARS)), coverage

    def rows(self, product: str, day: date, symbols: Sequence[str] | None = None) -> pa.Table:
        """A day's flat file that is here, or the rows of some symbols in it, in the order of the file.

        In our schema, or as the vendor has it where there is none. Raises `Damaged`.
        """
        path = self.day_path(product, day)
        with sheets.opened(path) as file:
            names = file.schema_arrow.names
            table = file.read() if symbols is None else sheets.rows_of(path, names, symbols)
        known = kind_named(product).product
        if known is None:
            return table
        return tables.conform(table.replace_schema_metadata(None), tables.SCHEMAS[known.kind])

    def _of_files(
        self, product: str, in_files: Mapping[date, DayFile], symbols: Sequence[str]
    ) -> Iterator[pa.Table]:
        """Bars of these days: from the month's file where it is up to date, from the day's otherwise."""
        for _, same in groupby(sorted(in_files), lambda day: (day.year, day.month)):
            days = list(same)
            path = self.month_path(product, days[0])
            held = self._month_or_nothing(path) if len(days) >= WORTH_A_MONTH else {}
            fresh = [day for day in days if held.get(day) == in_files[day]]
            if len(fresh) < WORTH_A_MONTH:
                fresh = []
            elif len(fresh) == len(held):
                yield _bars_in(path, symbols)
            else:
                yield _of_days(_bars_in(path, symbols), fresh)
            for day in days:
                if day not in fresh:
                    yield _bars_in(self.day_path(product, day), symbols)

    def _month_or_nothing(self, path: Path) -> dict[date, DayFile]:
        """The days in a month file; in a damaged one none, for the days are whole."""
        try:
            return self._month(path)
        except Damaged:
            return {}

    def _month(self, path: Path) -> dict[date, DayFile]:
        found = sheets.footer(path)
        return sheets.decoded(found.about, Month, path).days if found else {}

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
                _write(path, table.sort_by("timestamp"), covered)

    def day_path(self, product: str, day: date) -> Path:
        """Where a day's flat file lies once it is here."""
        return self.folder / key_of(product, day).replace(".csv.gz", ".parquet")

    def month_path(self, product: str, day: date) -> Path:
        """Where the month of that day lies, sorted by symbol."""
        return self.day_path(product, day).parents[1] / f"{day:%Y-%m}.parquet"

    def day_file(self, product: str, day: date) -> DayFile | None:
        """What is known of a day's flat file, if it is here. Raises `Damaged`."""
        return self._files.of(product, [day]).get(day)

    def sound_files(self, product: str, days: Iterable[date]) -> dict[date, DayFile]:
        """What is known of those of these days that are here; a damaged file counts as not here."""
        known = {}
        for day in days:
            with contextlib.suppress(Damaged):
                known.update(self._files.of(product, [day]))
        return known

    @contextlib.contextmanager
    def incoming(self, product: str, day: date) -> Iterator[Path]:
        """Only one process at a time brings a day's file; gives a place for what is on its way."""
        with self._locked(self.day_path(product, day), FILE_LOCK_SECONDS):
            place = files.make_folder(self.folder / ".incoming") / f"{product.replace('/', '-')}-{day}.csv.gz"
            try:
                yield place
            except OSError as error:
                raise files.unwritable(place, error) from error
            finally:
                place.unlink(missing_ok=True)

    def keep_file(self, source: Path, file: DayFile) -> Path:
        """A downloaded flat file as Parquet in its place, whole or not at all. Call it inside `incoming`.

        Rows keep the order of the file. Raises what `arriving.keep` raises for a file it cannot be.
        """
        path = self.day_path(file.product, file.day)
        known = arriving.keep(source, path, file)
        with self._locked(self._files.path(file.product, file.day.year)):
            self._files.enter(file.product, file.day.year, [known])
        return path

    def compact(self, product: str, *, first: date = date.min, last: date = date.max) -> list[Path]:
        """Bring the month files of a product of bars up to date; gives those that were written.

        A month that gained few days waits until it is over or has gained `WORTH_WRITING`. A kill leaves the
        old month file; a day that is not in one is read from its own. Raises `Damaged` for a day file.
        """
        known = kind_named(product).product
        if known is None or known.kind != "bars":
            return []
        months: dict[Path, list[date]] = {}
        here = self._files.days(product)
        self._renew(product, here)
        for day in here:
            months.setdefault(self.month_path(product, day), []).append(day)
        written = []
        for path, days in months.items():
            if days[0] <= last and days[-1] >= first and self._due(product, path, days):
                with self._locked(path):
                    done = compaction.compact(
                        path, product, {day: self.day_path(product, day) for day in days}
                    )
                written += [done] if done else []
        return written

    def _renew(self, product: str, days: Sequence[date]) -> None:
        """Write into the manifests what they do not say of these days."""
        unknown = self._files.unknown(product, days)
        for year in sorted({day.year for day in unknown}):
            with self._locked(self._files.path(product, year)):
                found = self.sound_files(product, [day for day in unknown if day.year == year])
                self._files.enter(product, year, found.values())

    def _due(self, product: str, path: Path, days: Sequence[date]) -> bool:
        """Whether a month file is worth writing now; one that is damaged always is."""
        try:
            held = self._month(path)
        except Damaged:
            path.unlink(missing_ok=True)
            return True
        now = self._files.of(product, days)
        changed = {day for day in {*held, *now} if held.get(day) != now.get(day)}
        market = kind_named(product).market
        month = sessions.between(market, days[0].replace(day=1), _month_end(days[0]))
        over = {session.date for session in month} <= set(now)
        return len(changed) >= WORTH_WRITING or (bool(changed) and (over or bool(changed & set(held))))

    def verify(self) -> list[Broken]:
        """Every file of the lake that is not what was written, each with what it held; reads all of them."""
        return list(broken_files(self.folder))

    def discard(self, broken: Broken) -> None:
        """Take a damaged file away; what it held is then missing, and the next call fetches it."""
        with self._locked(broken.path):
            broken.path.unlink(missing_ok=True)

    def names(self, product: str, day: date) -> list[str]:
        """Every symbol in a day's flat file that is here."""
        with sheets.opened(self.day_path(product, day)) as file:
            return sorted(pc.unique(file.read(columns=["symbol"])["symbol"]).to_pylist())

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
            sheets.sweep(path)
            files.make_folder(path.parent)
            files.write_bytes(path, msgspec.json.encode(known), replace=True)

    def _reference(self, kind: str, symbol: str, type_: type[_T]) -> _T | None:
        path = self._reference_path(kind, symbol)
        try:
            return sheets.decoded(path.read_bytes(), type_, path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _reference_path(self, kind: str, symbol: str) -> Path:
        return self.folder / "reference" / kind / f"{sheets.file_name(symbol)}.json"

    def _filled_path(self, symbol: str, base: Base, day: date) -> Path:
        return self.folder / "rest" / base / sheets.file_name(symbol) / f"{_stretch(base, day)}.parquet"

    def _filled(self, path: Path, symbol: str, base: Base) -> _Filled:
        found = sheets.footer(path)
        return sheets.decoded(found.about, _Filled, path) if found else _Filled(symbol, base)

    @contextlib.contextmanager
    def _locked(self, path: Path, patience: float = LOCK_SECONDS) -> Iterator[None]:
        name = "-".join(path.relative_to(self.folder).parts)
        folder = files.make_folder(self.folder / ".locks")
        lock = FileLock(folder / f"{name}.lock", timeout=patience)
        try:
            lock.acquire(poll_interval=POLL)
        except Timeout as cause:
            raise Locked(
                f"Another process has been writing {path} for {patience:.0f} s.",
                remedy="Wait for it, or end it.",
                path=str(path),
            ) from cause
        except OSError as cause:
            raise files.unwritable(folder, cause) from cause
        try:
            yield
        finally:
            lock.release()


def _write(path: Path, bars: pa.Table, about: _Filled) -> None:
    def fill(beside: Path) -> None:
        with sheets.Writer(beside, tables.BARS) as writer:
            writer.write(bars)
            writer.close(about)

    sheets.write(path, fill)


def _bars_in(path: Path, symbols: Sequence[str]) -> pa.Table:
    return tables.conform(sheets.rows_of(path, tables.BARS.names, symbols), tables.BARS)


def _ordered(bars: pa.Table) -> pa.Table:
    """By symbol and time; one file gives them so already."""
    return bars.sort_by([("symbol", "ascending"), ("timestamp", "ascending")])


def _stretch(base: Base, day: date) -> str:
    """What one file of REST's answers covers: a month, or a year of day bars."""
    return f"{day.year:04}" if base == "1d" else f"{day.year:04}-{day.month:02}"


def _month_end(day: date) -> date:
    return day.replace(day=monthrange(day.year, day.month)[1])


def _of_days(bars: pa.Table, days: Sequence[date]) -> pa.Table:
    return bars.filter(pc.is_in(bars["session"], pa.array(days, pa.date32())))


def _unique(paths: Iterable[Path]) -> list[Path]:
    return list(dict.fromkeys(paths))
