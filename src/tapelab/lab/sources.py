"""What a backtest reads: a dataset, or a user's table, as one stream of events with what is known of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import NoData, UnknownSymbol, UsageError
from tapelab.market import replay, symbols, tables
from tapelab.market.clock import DAY, HOUR
from tapelab.market.events import Bar, Event, Gap
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

CHARTED_POINTS = 1_500  # prices kept for each symbol's chart

_MARKS = {"bars": ("open", "close"), "quotes": ("bid", "ask"), "trades": ("price", "size")}


@runtime_checkable
class DatasetLike(Protocol):
    """What a backtest asks of a dataset."""

    @property
    def name(self) -> str: ...

    @property
    def provenance(self) -> Mapping[str, Any]: ...

    def table(self, kind: str) -> pa.Table: ...


TableLike: TypeAlias = "pd.DataFrame | pl.DataFrame | pa.Table"
Data: TypeAlias = "DatasetLike | TableLike | Mapping[str, TableLike]"


@dataclass(frozen=True)
class Source:
    """Tables in order, and what is known about them. Bars are read only where there are no ticks."""

    name: str
    quotes: pa.Table
    trades: pa.Table
    bars: pa.Table
    provenance: Mapping[str, Any] = field(default_factory=dict)
    version: object = None
    gaps: tuple[Gap, ...] = ()
    stated_market: Market | None = None
    heard: tuple[str, ...] = ()  # symbols that were subscribed, whether or not anything came

    @property
    def ticks(self) -> bool:
        return len(self.quotes) > 0 or len(self.trades) > 0

    @property
    def kinds(self) -> list[str]:
        """What is read, the most telling first."""
        if not self.ticks:
            return ["bars"]
        return [kind for kind in ("quotes", "trades") if len(getattr(self, kind))]

    @property
    def symbols(self) -> tuple[str, ...]:
        """In alphabetical order."""
        found = [getattr(self, kind).column("symbol").unique().to_pylist() for kind in self.kinds]
        return tuple(sorted({name for names in found for name in names}))

    @property
    def tradable(self) -> tuple[str, ...]:
        """The symbols that orders may name."""
        return tuple(sorted({*self.symbols, *self.heard}))

    @property
    def carried(self) -> list[str]:
        """The kinds that a recording was meant to hold, whatever has come; else those that are there."""
        channels = self.provenance.get("channels") or ()
        meant = [kind for kind in ("quotes", "trades") if kind in channels]
        return meant if meant and not len(self.bars) else self.kinds

    @property
    def market(self) -> Market:
        """As the data says, otherwise by the first symbol; a spelling that no market has is a stock."""
        if self.stated_market is not None:
            return self.stated_market
        try:
            return symbols.parse(self.symbols[0]).market
        except UnknownSymbol:
            return Market.STOCKS

    @property
    def received(self) -> bool:
        """Whether our own clock is known, so that events come as they came to us."""
        return any(len(t) and t.column("ts_recv").null_count < len(t) for t in (self.quotes, self.trades))

    def events(self) -> Iterator[Event]:
        """Everything, in the order in which it became known."""
        if self.ticks:
            return replay.events(quotes=self.quotes, trades=self.trades)
        return _bar_events(self.bars, self.provenance.get("interval"))

    def prices(self, wanted: list[str]) -> pa.Table:
        """The course of each symbol's mid (or print, or close) in at most `CHARTED_POINTS` points."""
        parts = [_course(self, symbol) for symbol in wanted]
        return pa.concat_tables([_PRICES.empty_table(), *parts])


_PRICES = pa.schema([("ts", pa.int64()), ("symbol", pa.string()), ("price", pa.float64())])


def read(data: Data) -> Source:
    """Recognise what was given: a dataset, a table by its columns, or a dict of tables by kind.

    Ticks that nobody received are put in order by the exchange's clock, trades before quotes at a tie.
    Raises `UsageError` for what it cannot read, `NoData` for what is empty.
    """
    source = _from_dataset(data) if isinstance(data, DatasetLike) else _from_tables(data)
    if not source.ticks and len(source.bars) == 0:
        raise NoData(
            f"There is nothing to test on: {source.name} is empty.",
            remedy="Record or fetch something first.",
            dataset=source.name,
        )
    return source


def _from_dataset(data: DatasetLike) -> Source:
    quotes = _clean(data.table("quotes"), "quotes")
    trades = _clean(data.table("trades"), "trades")
    bars = tables.BARS.empty_table() if len(quotes) or len(trades) else _clean(data.table("bars"), "bars")
    return Source(
        data.name,
        quotes,
        trades,
        bars,
        dict(data.provenance),
        getattr(data, "version", None),
        tuple(getattr(data, "gaps", ())),
        getattr(data, "market", None),
        tuple(getattr(data, "coverage", ())),
    )


def to_come(data: DatasetLike) -> Source:
    """What a recording under way is going to bring, without the rows that are there already."""
    none = {kind: schema.empty_table() for kind, schema in tables.SCHEMAS.items()}
    market, heard = getattr(data, "market", None), tuple(getattr(data, "coverage", ()))
    return Source(data.name, **none, provenance=dict(data.provenance), stated_market=market, heard=heard)


def _from_tables(data: TableLike | Mapping[str, TableLike]) -> Source:
    given = data if isinstance(data, Mapping) else {_recognise(data): data}
    unknown = set(given) - set(tables.SCHEMAS)
    if unknown:
        raise UsageError(
            f"There is no kind of table {min(unknown)!r}.", remedy="Name them bars, quotes or trades."
        )
    read = {
        kind: _clean(tables.from_frame(table, tables.SCHEMAS[kind]), kind) for kind, table in given.items()
    }
    known: dict[str, Any] = {}
    for table in read.values():
        known |= tables.facts(table)
    empty = {kind: schema.empty_table() for kind, schema in tables.SCHEMAS.items()}
    found = empty | read
    source = Source(
        f"a table of {' and '.join(sorted(read))}", found["quotes"], found["trades"], found["bars"], known
    )
    if not source.ticks:
        return source
    if source.received:
        quotes, trades = source.quotes.sort_by("arrival"), source.trades.sort_by("arrival")
    else:
        quotes, trades = replay.in_order_of_arrival(source.quotes, source.trades)
    return Source(source.name, quotes, trades, source.bars, known)


def _recognise(data: object) -> str:
    columns = getattr(data, "column_names", None) or getattr(data, "columns", None)
    if columns is not None and not callable(columns):
        for kind, telling in _MARKS.items():
            if all(name in columns for name in telling):
                return kind
    raise UsageError(
        f"A {type(data).__name__} is nothing to test a strategy on, as it stands.",
        remedy="Give a dataset, or a table with the columns of bars (open high low close), quotes (bid ask) "
        "or trades (price size).",
    )


def _clean(table: pa.Table, kind: str) -> pa.Table:
    """In our own form, without rows that carry no price."""
    table = tables.conform(table, tables.SCHEMAS[kind])
    if kind == "bars":
        telling = ["open", "high", "low", "close"]
    else:
        telling = ["price", "size"] if kind == "trades" else []
    for name in telling:
        if table.column(name).null_count:
            table = table.filter(pc.is_valid(table.column(name)))
    return table


def _bar_events(table: pa.Table, interval: str | None) -> Iterator[Bar]:
    """Bars by their end, then by symbol.

    A bar ends where the next one of its symbol starts, if that is earlier than its length says: the day on
    which clocks go forward has 23 hours.
    """
    by_symbol = table.sort_by([("symbol", "ascending"), ("timestamp", "ascending")])
    starts = by_symbol.column("timestamp").to_numpy()
    names = by_symbol.column("symbol").combine_chunks().dictionary_encode().indices.to_numpy()
    same = names[1:] == names[:-1]
    steps = np.diff(starts)[same]
    ends = starts + _length(steps, interval)
    ends[:-1][same] = np.minimum(ends[:-1][same], starts[1:][same])
    order = np.lexsort((names, ends))
    ordered, ends = by_symbol.take(pa.array(order)), ends[order]
    columns = ["open", "high", "low", "close", "volume", "vwap", "transactions"]
    for first in range(0, len(ordered), replay.CHUNK):
        part = ordered.slice(first, replay.CHUNK)
        values = [part.column(name).to_pylist() for name in columns]
        stamps = part.column("timestamp").to_pylist()
        known = ends[first : first + replay.CHUNK].tolist()
        yield from map(Bar, part.column("symbol").to_pylist(), stamps, known, *values)


def _length(steps: npt.NDArray[np.int64], interval: str | None) -> int:
    """How long a bar lasts: by what is known, otherwise the smallest step between two of one symbol."""
    if interval is not None and (length := Interval.parse(interval).ns) is not None:
        return length
    smallest = int(steps[steps > 0].min()) if (steps > 0).any() else DAY
    return DAY if abs(smallest - DAY) <= HOUR else smallest


def _course(source: Source, symbol: str) -> pa.Table:
    for kind in source.kinds:
        table = getattr(source, kind)
        table = table.filter(pc.equal(table.column("symbol"), symbol))
        if kind == "quotes":
            price = pc.divide(pc.add(table.column("bid"), table.column("ask")), 2.0)
        else:
            price = table.column("price" if kind == "trades" else "close")
        known = pc.is_valid(price)
        stamps = table.column("timestamp" if kind == "bars" else "ts_event").filter(known).to_numpy()
        values = price.filter(known).to_numpy()
        if len(stamps):
            chosen = np.unique(np.linspace(0, len(stamps) - 1, CHARTED_POINTS).astype(np.int64))
            if len(stamps) > CHARTED_POINTS:
                grid = np.linspace(stamps[0], stamps[-1], CHARTED_POINTS)
                chosen = np.unique(np.searchsorted(stamps, grid, side="right") - 1)
            return pa.table(
                [pa.array(stamps[chosen]), pa.array([symbol] * len(chosen)), pa.array(values[chosen])],
                schema=_PRICES,
            )
    return _PRICES.empty_table()
