"""Tables in, events out: the merge that every strategy, callback and stream reads from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.events import Bar, Event, Quote, Trade

# As `Quote._make`, without a call of Python for each event.
_quote: Callable[[Iterable[Any]], Quote] = partial(tuple.__new__, Quote)
_trade: Callable[[Iterable[Any]], Trade] = partial(tuple.__new__, Trade)

CHUNK = 50_000  # rows turned into objects at a time; bounds the memory of a replay


def events(*, quotes: pa.Table | None = None, trades: pa.Table | None = None) -> Iterator[Quote | Trade]:
    """Quotes and trades merged in order of arrival; each table is sorted by `arrival` already."""
    if trades is None or len(trades) == 0:
        yield from iter_quotes(quotes) if quotes is not None else ()
        return
    if quotes is None or len(quotes) == 0:
        yield from iter_trades(trades)
        return
    yield from _merge(iter_quotes(quotes), iter_trades(trades))


def _merge(left: Iterator[Quote], right: Iterator[Trade]) -> Iterator[Quote | Trade]:
    quote, trade = next(left, None), next(right, None)
    while quote is not None and trade is not None:
        if quote.arrival <= trade.arrival:
            yield quote
            quote = next(left, None)
        else:
            yield trade
            trade = next(right, None)
    if quote is not None:
        yield quote
        yield from left
    if trade is not None:
        yield trade
        yield from right


def iter_quotes(table: pa.Table) -> Iterator[Quote]:
    """Each row as a `Quote`, in the table's order."""
    names = ("symbol", "ts_event", "ts_recv", "arrival", "bid", "ask")
    for batch in table.to_batches(CHUNK):
        columns = [batch.column(name).to_pylist() for name in names]
        columns += [pc.fill_null(batch.column(n), 0.0).to_pylist() for n in ("bid_size", "ask_size")]
        yield from map(_quote, zip(*columns, strict=True))


def iter_trades(table: pa.Table) -> Iterator[Trade]:
    """Each row as a `Trade`, in the table's order."""
    names = ("symbol", "ts_event", "ts_recv", "arrival", "price", "size", "exchange")
    for batch in table.to_batches(CHUNK):
        conditions = [tuple(c) if c else () for c in batch.column("conditions").to_pylist()]
        columns = [batch.column(name).to_pylist() for name in names]
        columns += [conditions, pc.is_valid(batch.column("trf_id")).to_pylist()]
        yield from map(_trade, zip(*columns, strict=True))


def bars(table: pa.Table, interval_ns: int) -> Iterator[Bar]:
    """Bars in the order in which they become known: by their end, then by symbol."""
    ordered = table.sort_by([("timestamp", "ascending"), ("symbol", "ascending")])
    names = ("open", "high", "low", "close", "volume", "vwap", "transactions")
    for batch in ordered.to_batches(CHUNK):
        starts = batch.column("timestamp").to_pylist()
        ends = [start + interval_ns for start in starts]
        values = [batch.column(name).to_pylist() for name in names]
        yield from map(Bar, batch.column("symbol").to_pylist(), starts, ends, *values)


def in_order_of_arrival(quotes: pa.Table, trades: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Give ticks that nobody received an order: by the exchange's clock, trades before quotes at a tie.

    Within a symbol and channel the given order is kept (files hold it where stamps tie). A print that
    shares its nanosecond with a quote was most likely made against the quote before it.
    """
    import numpy as np

    stamps = np.concatenate([trades.column("ts_event").to_numpy(), quotes.column("ts_event").to_numpy()])
    order = np.argsort(stamps, kind="stable")
    arrival = np.empty(len(order), dtype=np.int64)
    arrival[order] = np.arange(len(order), dtype=np.int64)
    return (
        _with_arrival(quotes, arrival[len(trades) :]),
        _with_arrival(trades, arrival[: len(trades)]),
    )


def _with_arrival(table: pa.Table, arrival: object) -> pa.Table:
    index = table.column_names.index("arrival")
    field = pa.field("arrival", pa.int64(), nullable=False)
    return table.set_column(index, field, pa.array(arrival)).sort_by("arrival")


__all__ = ["Event", "bars", "events", "in_order_of_arrival", "iter_quotes", "iter_trades"]
