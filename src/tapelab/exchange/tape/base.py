"""What every tape can do: products × days, tables and bars of each, and how much of it somebody may see."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Literal, Protocol, Self, cast

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.exchange.tape import beside
from tapelab.exchange.tape.beside import Row
from tapelab.exchange.tape.cache import Cache
from tapelab.exchange.tape.products import DAY_BARS, MINUTE_BARS, PRODUCTS, PUBLISHED, QUOTES, TRADES
from tapelab.exchange.tape.sorting import SortedDay
from tapelab.market import clock, sessions, tables
from tapelab.market.adjust import Split
from tapelab.market.clock import MINUTE
from tapelab.market.symbols import Market
from tapelab.massive import wire

TAPE_HEADER = "X-Tapelab-Tape"  # of every answer: which tape it is from
CACHE_BYTES = 1 << 30  # of tables kept in memory, beside the day that is being streamed
VWAP_DECIMALS = 4  # as the vendor rounds it

Base = Literal["1s", "1m", "1d"]
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

    @property
    def end(self) -> int:
        """When everything on it has happened, ns UTC."""
        held = [days[-1] for product in PRODUCTS if (days := self.days(product))]
        last = max(held, default=clock.today(sessions.NEW_YORK))
        session = sessions.session(Market.STOCKS, last)
        return sessions.day_start(Market.STOCKS, last + timedelta(days=1)) if session is None else session.end

    def reference(self, name: beside.Name) -> Sequence[Row] | None:
        """Reference data in the vendor's REST form; None: this tape does not know it."""
        return None

    def splits(self) -> Sequence[Split] | None:
        """Splits in our own form; None: this tape does not know them."""
        rows = self.reference("splits")
        return None if rows is None else beside.as_splits(rows)

    def official(self, day: date) -> Mapping[str, Row]:
        """The official prices of a day by symbol, as far as the tape knows them."""
        return {}

    def bands(self, day: date) -> Sequence[Row]:
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


class MadeTape(Tape):
    """A tape of ticks, whose bars are built and whose files are written when somebody asks for them."""

    def raw(self, product: str, day: date) -> bytes:
        return self._cache.kept(("raw", self._key(product, day)), lambda: self._compressed(product, day), len)

    def _built(self, product: str, day: date) -> pa.Table:
        """A product's bars of a day, of its trades."""
        from tapelab.market import bars

        interval = wire.PRODUCTS[product].interval
        assert interval is not None
        return bars.from_trades(self.table(TRADES, day), interval)

    def _compressed(self, product: str, day: date) -> bytes:
        from isal import igzip

        text = wire.write_flat_file(self.table(product, day), product)
        return bytes(igzip.compress(text, mtime=0))


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


def header_safe(name: str) -> str:
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
