"""What the exchange has to say: products × days, from a folder of flat files, a dataset or a simulation.

A tape is read only. Times are int64 ns UTC; days are the exchange's dates. Nothing here knows how it is said.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from copy import copy
from dataclasses import dataclass
from datetime import date, time, timedelta
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, Self, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import Damaged, DatasetNotFound, ServeError
from tapelab.exchange.cache import Cache
from tapelab.market import clock, sessions, tables
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.symbols import Market
from tapelab.massive import wire

if TYPE_CHECKING:
    from tapelab.exchange.simulate import SimulatedMarket
    from tapelab.exchange.sorting import SortedDay
    from tapelab.store.dataset import Dataset

DAY_BARS = "us_stocks_sip/day_aggs_v1"
MINUTE_BARS = "us_stocks_sip/minute_aggs_v1"
TRADES = "us_stocks_sip/trades_v1"
QUOTES = "us_stocks_sip/quotes_v1"
PRODUCTS = (DAY_BARS, MINUTE_BARS, QUOTES, TRADES)

CACHE_BYTES = 1 << 30  # of tables kept in memory, beside the day that is being streamed
LARGE = 64 << 20  # bytes of a day's packed ticks; beyond this they are sorted on the disk
LOOK_AGAIN = SECOND  # after this a folder is looked through anew
PUBLISHED = time(11)  # New York, on the day after: when the vendor's files are there
VWAP_DECIMALS = 4  # as the vendor rounds it

Base = Literal["1s", "1m", "1d"]
Row = Mapping[str, object]  # of reference data, in the vendor's REST form
_log = logging.getLogger(__name__)
_FILES: dict[Base, str] = {"1m": MINUTE_BARS, "1d": DAY_BARS}


@dataclass(frozen=True)
class Ticks:
    """The quotes and trades of a day, each in order of arrival; `arrival` orders them across."""

    quotes: pa.Table
    trades: pa.Table


class Sight(Protocol):
    """How much of a tape somebody may see, by their plan and by the exchange's clock."""

    def days(self, product: str, days: list[date]) -> list[date]:
        """Those of a product's days that can be seen."""
        ...

    def until(self) -> int:
        """What is known after this (ns UTC) cannot be seen."""
        ...

    def kept_back(self, day: date) -> bool:
        """Whether a day lies before what may be seen."""
        ...


class Tape(ABC):
    """Products × days. `identity` says in one line what it is and goes out with every answer."""

    identity: str

    def __init__(self) -> None:
        self._cache = Cache(CACHE_BYTES)
        self._sight: Sight | None = None

    def __str__(self) -> str:
        return self.identity

    @property
    def simulated(self) -> bool:
        """Whether any of this was made up."""
        return self.identity.startswith("simulated")

    def seen(self, sight: Sight) -> Self:
        """The same tape as somebody sees it who may not see everything."""
        seen = copy(self)
        seen._cache = Cache(CACHE_BYTES)
        seen._sight = sight
        return seen

    def days(self, product: str) -> list[date]:
        """The days of one of `PRODUCTS`, oldest first."""
        days = self._days(product)
        return days if self._sight is None else self._sight.days(product, days)

    def kept_back(self, day: date) -> bool:
        """Whether the plan through which this tape is seen does not reach back to that day."""
        return self._sight is not None and self._sight.kept_back(day)

    @abstractmethod
    def _days(self, product: str) -> list[date]:
        """The days of one of `PRODUCTS`, oldest first."""

    @abstractmethod
    def _read(self, product: str, day: date) -> pa.Table:
        """A product's rows of a day that `days` names, sorted by symbol, then time."""

    @abstractmethod
    def raw(self, product: str, day: date) -> Path | bytes:
        """A product's csv.gz of a day that `days` names, as it lies in the bucket."""

    def version(self, product: str, day: date) -> Hashable:
        """Changes when that day's file does."""
        return None

    def modified(self, product: str, day: date) -> int:
        """When that day's file was written, ns UTC."""
        return sessions.instant(day + timedelta(days=1), PUBLISHED, sessions.NEW_YORK)

    def splits(self) -> list[Row] | None:
        """Splits in the vendor's REST form; None: this tape does not know them."""
        return None

    def dividends(self) -> list[Row] | None:
        """Dividends in the vendor's REST form; None: this tape does not know them."""
        return None

    def bands(self, day: date) -> list[Row]:
        """Limit-up limit-down bands of a day, as rows of the vendor's stream in order of their `t`."""
        return []

    def sorted_ticks(self, day: date) -> SortedDay | None:
        """A day's ticks sorted on the disk, to be closed; None where they fit in memory."""
        return None

    def table(self, product: str, day: date) -> pa.Table:
        """A product's rows of one day in our schema, sorted by symbol, then time."""
        return self._cache.table(self._key(product, day), lambda: self._shown(product, day))

    def of_symbol(self, product: str, day: date, symbol: str) -> pa.Table:
        """One symbol's rows of a day, in order of time."""
        return self._cache.of_symbol(self._key(product, day), symbol, lambda: self._shown(product, day))

    def bar_days(self, base: Base) -> list[date]:
        """The days for which there are base bars: in files, or to be built from trades."""
        own = self.days(_FILES[base]) if base in _FILES else []
        return sorted({*own, *self.days(TRADES)})

    def bars(self, base: Base, day: date, symbol: str) -> pa.Table:
        """A symbol's base bars of a day. `vwap` is null where the tape has no trades to know it from."""
        key = ("bars", base, self._key(_FILES.get(base, TRADES), day), self._key(TRADES, day))
        return self._cache.of_symbol(key, symbol, lambda: self._bars(base, day))

    def all_bars(self, base: Base, day: date) -> pa.Table:
        """Every symbol's base bars of a day, sorted by symbol, then time."""
        key = ("bars", base, self._key(_FILES.get(base, TRADES), day), self._key(TRADES, day))
        return self._cache.table(key, lambda: self._bars(base, day))

    def ticks(self, day: date) -> Ticks:
        """Quotes and trades of a day as they are to be streamed."""
        from tapelab.market.replay import in_order_of_arrival

        return Ticks(*in_order_of_arrival(self._ticks_of(QUOTES, day), self._ticks_of(TRADES, day)))

    def symbols(self) -> list[str]:
        """Every symbol of the tape's latest day, in the vendor's order."""
        latest = [(product, days[-1]) for product in PRODUCTS if (days := self.days(product))]
        if not latest:
            return []
        product, day = max(latest, key=lambda found: (found[1], found[0] == DAY_BARS))
        return sorted(pc.unique(self.table(product, day).column("symbol")).to_pylist())

    def _key(self, product: str, day: date) -> Hashable:
        """Changes when the rows of that day do."""
        return product, day, self.version(product, day), self._cut(day)

    def _cut(self, day: date) -> int | None:
        """Until when the rows of a day may be seen, ns UTC; None: the whole day."""
        if self._sight is None:
            return None
        until = self._sight.until()
        return None if until >= sessions.day_start(Market.STOCKS, day + timedelta(days=1)) else until

    def _shown(self, product: str, day: date) -> pa.Table:
        """The rows of a day, as far as they may be seen: ticks that were, bars that have ended."""
        rows = self._read(product, day)
        until = self._cut(day)
        if until is None:
            return rows
        if product in (QUOTES, TRADES):
            return rows.filter(pc.less_equal(rows.column("ts_event"), until))
        if product == DAY_BARS:
            session = sessions.session(Market.STOCKS, day)
            return rows if session is not None and session.end <= until else rows.slice(0, 0)
        return rows.filter(pc.less_equal(rows.column("timestamp"), until - MINUTE))

    def _ticks_of(self, product: str, day: date) -> pa.Table:
        if day in self.days(product):
            return self.table(product, day)
        return tables.SCHEMAS[wire.PRODUCTS[product].kind].empty_table()

    def _bars(self, base: Base, day: date) -> pa.Table:
        from tapelab.market import bars

        traded = day in self.days(TRADES)
        built = bars.from_trades(self.table(TRADES, day), base) if traded else None
        if base not in _FILES or day not in self.days(_FILES[base]):
            return rounded(built) if built is not None else tables.BARS.empty_table()
        own = self.table(_FILES[base], day)
        return own if built is None else rounded(with_vwap(own, built))


class FlatFileTape(Tape):
    """A folder in the vendor's layout, served byte for byte.

    `reference/splits.json`, `reference/dividends.json` (arrays of the vendor's REST rows) and
    `reference/luld.json` (rows of its stream) may lie in it. Raises `ServeError` if it holds no file of a
    known product.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()
        self._seen: dict[str, tuple[int, list[date]]] = {}
        held = [(product, day) for product in PRODUCTS for day in self.days(product)]
        if not held:
            raise ServeError(
                f"There are no flat files in {folder}.",
                remedy="It should hold files such as us_stocks_sip/trades_v1/2026/10/2026-10-02.csv.gz.",
            )
        told_apart = "\n".join(f"{p} {d} {self._path(p, d).stat().st_size}" for p, d in held)
        digest = hashlib.sha256(told_apart.encode()).hexdigest()[:8]
        self.identity = f"flat-files {_header_safe(self.folder.name)} {digest}"

    def _days(self, product: str) -> list[date]:
        now = clock.monotonic()
        seen, days = self._seen.get(product, (0, []))
        if product not in self._seen or now - seen > LOOK_AGAIN:
            found = (self.folder / product).glob("[0-9]*/[0-9]*/*.csv.gz")
            keys = (wire.parse_key(path.relative_to(self.folder).as_posix()) for path in found)
            days = sorted(key[1] for key in keys if key is not None)
            self._seen[product] = (now, days)
        return days

    def raw(self, product: str, day: date) -> Path:
        return self._path(product, day)

    def version(self, product: str, day: date) -> Hashable:
        try:
            stat = self._path(product, day).stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def modified(self, product: str, day: date) -> int:
        return self._path(product, day).stat().st_mtime_ns

    def splits(self) -> list[Row] | None:
        return self._reference("splits")

    def dividends(self) -> list[Row] | None:
        return self._reference("dividends")

    def bands(self, day: date) -> list[Row]:
        first = sessions.day_start(Market.STOCKS, day)
        last = sessions.day_start(Market.STOCKS, day + timedelta(days=1))
        rows = self._reference("luld") or []
        try:
            return sorted((row for row in rows if first <= _moment_of(row) < last), key=_moment_of)
        except (KeyError, ValueError) as cause:
            remedy = "Each needs at least T, h, l and t, in nanoseconds."
            raise Damaged("A row of reference/luld.json is not the vendor's.", remedy=remedy) from cause

    def sorted_ticks(self, day: date) -> SortedDay | None:
        paths = {p: self._path(p, day) if day in self.days(p) else None for p in (QUOTES, TRADES)}
        if sum(path.stat().st_size for path in paths.values() if path is not None) < LARGE:
            return None
        from tapelab.exchange import sorting

        _log.info("The ticks of %s are sorted on the disk; this takes a while.", day)
        return sorting.sort_day(quotes=paths[QUOTES], trades=paths[TRADES], day=day, memory=sorting.MEMORY)

    def _reference(self, name: str) -> list[Row] | None:
        path = self.folder / "reference" / f"{name}.json"
        if not path.is_file():
            return None
        try:
            return list(msgspec.json.decode(path.read_bytes(), type=list[dict[str, object]]))
        except (msgspec.DecodeError, UnicodeDecodeError) as cause:
            remedy = "Mend or remove it."
            raise Damaged(f"{path} is not an array of the vendor's rows.", remedy=remedy) from cause

    def _path(self, product: str, day: date) -> Path:
        return self.folder / wire.file_key(product, day)

    def _read(self, product: str, day: date) -> pa.Table:
        return _sorted(wire.read_flat_file(self._path(product, day), product, day=day))


class _MadeTape(Tape):
    """A tape whose files are written when somebody asks for them."""

    def raw(self, product: str, day: date) -> bytes:
        return self._cache.kept(("raw", self._key(product, day)), lambda: self._compressed(product, day), len)

    def _compressed(self, product: str, day: date) -> bytes:
        from isal import igzip

        text = wire.write_flat_file(self.table(product, day), product)
        return bytes(igzip.compress(text, mtime=0))


@dataclass(frozen=True)
class Held:
    """Quotes and trades in order of arrival, and the exchange's date of each, by product."""

    ticks: Mapping[str, pa.Table]
    dates: Mapping[str, npt.NDArray[np.datetime64]]

    @classmethod
    def of(cls, table: Callable[[str], pa.Table]) -> Held:
        """Of a dataset's tables."""
        ticks = {
            product: tables.conform(table(kind), tables.SCHEMAS[kind])
            for product, kind in ((QUOTES, "quotes"), (TRADES, "trades"))
        }
        dates = {p: sessions.dates_of(Market.STOCKS, t.column("ts_event")) for p, t in ticks.items()}
        return cls(ticks, dates)


class DatasetTape(_MadeTape):
    """A recorded or imported dataset: its ticks as they arrived, bars built from its trades."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        simulated = "simulated " if dataset.provenance.get("simulated") else ""
        self.identity = f"{simulated}dataset {_header_safe(dataset.name)}"
        self._whole = self._hold(dataset)

    @property
    def _held(self) -> Held:
        return self._whole

    def _hold(self, dataset: Dataset) -> Held:
        held = Held.of(dataset.table)
        if not any(map(len, held.ticks.values())):
            raise ServeError(
                f"The dataset {dataset.name!r} holds no quotes and no trades.", remedy="Record some first."
            )
        return held

    def _days(self, product: str) -> list[date]:
        dates = self._held.dates[product if product == QUOTES else TRADES]
        return [day.item() for day in np.unique(dates)]

    def ticks(self, day: date) -> Ticks:
        held = self._held
        quotes, trades = (self._of(held, product, day).sort_by("arrival") for product in (QUOTES, TRADES))
        return Ticks(quotes, trades)

    def _of(self, held: Held, product: str, day: date) -> pa.Table:
        return held.ticks[product].filter(pa.array(held.dates[product] == np.datetime64(day)))

    def _read(self, product: str, day: date) -> pa.Table:
        if product in (QUOTES, TRADES):
            table = self._of(self._held, product, day)
            return table.sort_by(
                [("symbol", "ascending"), ("ts_event", "ascending"), ("arrival", "ascending")]
            )
        return _bars_of(self.table(TRADES, day), product)


class SimulatedTape(_MadeTape):
    """The simulated market: bars for all its sessions, ticks for the last few."""

    def __init__(self, market: SimulatedMarket, *, tick_days: int = 3) -> None:
        super().__init__()
        self.identity = f"simulated seed={market.seed}"
        self._market = market
        self._bar_days = [session.date for session in market.sessions]
        self._tick_days = self._bar_days[-tick_days:]

    def _days(self, product: str) -> list[date]:
        return self._bar_days if product in (DAY_BARS, MINUTE_BARS) else self._tick_days

    def splits(self) -> list[Row]:
        return []

    def dividends(self) -> list[Row]:
        return []

    def bands(self, day: date) -> list[Row]:
        from tapelab.exchange.bands import bands

        session = sessions.session(Market.STOCKS, day)
        if session is None or day not in self._tick_days:
            return []
        made = partial(bands, self.table(TRADES, day), session)
        return self._cache.kept(("bands", self._key(TRADES, day)), made, lambda rows: 200 * len(rows))

    def _read(self, product: str, day: date) -> pa.Table:
        quotes, trades = self._cache.kept(
            ("ticks", day), lambda: self._market.ticks(day), lambda both: sum(int(t.nbytes) for t in both)
        )
        if product == QUOTES:
            return quotes
        return trades if product == TRADES else _bars_of(trades, product)


@lru_cache(maxsize=4)
def simulated(seed: int) -> SimulatedTape:
    """The simulated market of a seed, made once in a process."""
    from tapelab.exchange.simulate import SimulatedMarket

    return SimulatedTape(SimulatedMarket(seed))


def of_dataset(name: str | Path | Dataset, *, follow: bool = False) -> DatasetTape:
    """The tape of a dataset, given by name, path or itself; `follow`: of a recording that still grows."""
    from tapelab.exchange.following import GrowingTape
    from tapelab.store.dataset import open_dataset

    kind = GrowingTape if follow else DatasetTape
    if not isinstance(name, str | Path):
        return kind(name)
    try:
        return kind(open_dataset(name))
    except DatasetNotFound as cause:
        raise ServeError(cause.message, remedy=cause.remedy) from cause


def _bars_of(trades: pa.Table, product: str) -> pa.Table:
    from tapelab.market import bars

    interval = wire.PRODUCTS[product].interval
    assert interval is not None
    return bars.from_trades(trades, interval)


def with_vwap(bars: pa.Table, built: pa.Table) -> pa.Table:
    """A file's bars with the volume-weighted price of the same windows, as its trades have it."""
    import polars as pl

    keys = ["symbol", "timestamp"]
    left, right = (
        cast("pl.DataFrame", pl.from_arrow(t.replace_schema_metadata(None))) for t in (bars, built)
    )
    joined = left.select(keys).join(right.select(*keys, "vwap"), on=keys, how="left", maintain_order="left")
    index = bars.column_names.index("vwap")
    return bars.set_column(index, bars.schema.field(index), joined["vwap"].to_arrow())


def rounded(bars: pa.Table) -> pa.Table:
    index = bars.column_names.index("vwap")
    return bars.set_column(index, bars.schema.field(index), pc.round(bars.column("vwap"), VWAP_DECIMALS))


def _sorted(table: pa.Table) -> pa.Table:
    stamp = "timestamp" if "timestamp" in table.column_names else "ts_event"
    names = table.column("symbol").combine_chunks().dictionary_encode()
    known = names.dictionary.to_pylist()
    onward = np.diff(names.indices.to_numpy())
    later = np.diff(table.column(stamp).to_numpy()) >= 0
    # The vendor promises no order, but its files are in this one; looking costs less than sorting.
    if known == sorted(known) and np.all((onward > 0) | ((onward == 0) & later)):
        return table
    return table.sort_by([("symbol", "ascending"), (stamp, "ascending")])


def _moment_of(row: Row) -> int:
    if not {"T", "h", "l"} <= set(row):
        raise KeyError("T, h, l")
    return int(str(row["t"]))


def _header_safe(name: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
