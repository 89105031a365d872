"""What the vendor's history says of a stretch of a recording: cache first, budgets kept, by REST or file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.errors import NoData, UnknownSymbol
from tapelab.history import fetch_data, fetch_quotes, fetch_trades
from tapelab.history.final import final_at
from tapelab.history.request import Method
from tapelab.market import clock, sessions, tables
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market
from tapelab.settings import Settings, current
from tapelab.store.datasets.parts import stamp_of
from tapelab.store.lake import Lake, sheets
from tapelab.store.lake.ticks import stretch

PRODUCTS = {
    "quotes": "us_stocks_sip/quotes_v1",
    "trades": "us_stocks_sip/trades_v1",
    "bars": "us_stocks_sip/minute_aggs_v1",
}
MANY_CALLS = 20  # REST calls that are dearer than a day's file, where they are counted


class Answer(NamedTuple):
    """Rows in the order of the exchange's clock; `final`: the source will say the same tomorrow."""

    table: pa.Table
    route: str = "rest"
    final: bool = True
    simulated: bool = False


class Source(Protocol):
    """Whoever knows what happened."""

    def ask(
        self, kind: str, symbols: Sequence[str], start: int, end: int, *, calls: int, everybody: bool
    ) -> Answer:
        """Every event from `start` to before `end` (the exchange's clock, ns UTC).

        `calls`: how many such questions there are in all. `everybody`: of every symbol, if the source knows
        them all; else of those that are named.
        """

    def final_at(self, kind: str, start: int, end: int) -> int:
        """When what it says of these times will not change any more, ns UTC."""


class History:
    """The vendor's history of US stocks, through the settings of the moment."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or current()
        self._lake = Lake(settings)
        self._counted = bool(settings.rest_calls_per_day or settings.rest_calls_per_minute)

    def ask(
        self, kind: str, symbols: Sequence[str], start: int, end: int, *, calls: int, everybody: bool
    ) -> Answer:
        many = everybody or (self._counted and calls > MANY_CALLS)
        method: Method = "flat_file" if many else "auto"
        table = _fetch(kind, symbols, start, end, method)
        simulated = bool(tables.facts(table).get("simulated", False))
        days = _sessions(start, end)
        from_files = bool(days) and self._have_files(kind, days)
        if everybody and from_files:
            found = [self._whole_market(kind, day, start, end) for day in days]
            table = tables.concat([rows for rows, _ in found], tables.SCHEMAS[kind])
            simulated = any(one for _, one in found)
        final = self.final_at(kind, start, end) <= clock.now()
        return Answer(table, "flat_file" if from_files else "rest", final, simulated)

    def final_at(self, kind: str, start: int, end: int) -> int:
        days = _sessions(start, end)
        if not days or self._have_files(kind, days):
            return 0
        return max(map(final_at, days))

    def _whole_market(self, kind: str, day: Session, start: int, end: int) -> tuple[pa.Table, bool]:
        """What the day's file has of every symbol, in order; and whether it is simulated."""
        file = self._lake.day_file(PRODUCTS[kind], day.date)
        if kind == "bars":
            rows = self._lake.rows(PRODUCTS[kind], day.date)
            stamps = rows.column("timestamp")
            rows = rows.filter(pc.and_(pc.greater_equal(stamps, start), pc.less(stamps, end)))
        else:
            path = self._lake.day_path(PRODUCTS[kind], day.date)
            with sheets.understood(path):
                rows = pq.read_table(path, filters=stretch(start, end), page_checksum_verification=True)
        rows = tables.conform(rows.replace_schema_metadata(None), tables.SCHEMAS[kind])
        order = np.argsort(rows.column(stamp_of(kind)).to_numpy(), kind="stable")
        return rows.take(pa.array(order)), file is not None and file.tape.startswith("simulated")

    def _have_files(self, kind: str, days: Sequence[Session]) -> bool:
        return all(self._lake.day_file(PRODUCTS[kind], day.date) is not None for day in days)


def _sessions(start: int, end: int) -> list[Session]:
    zone = sessions.zone(Market.STOCKS)
    return sessions.between(Market.STOCKS, clock.date_of(start, zone), clock.date_of(end - 1, zone))


def _fetch(kind: str, symbols: Sequence[str], start: int, end: int, method: Method) -> pa.Table:
    """The rows, where there are any; of symbols that have none, none."""
    import pandas as pd

    schema, names = tables.SCHEMAS[kind], list(symbols)
    begin, stop = (pd.Timestamp(at, unit="ns", tz="UTC") for at in (start, end))
    while names:
        try:
            if kind == "bars":
                found = fetch_data(names, begin, stop, "1m", method, adjust="none", frame="arrow")
            elif kind == "quotes":
                found = fetch_quotes(names, begin, stop, method=method, frame="arrow")
            else:
                found = fetch_trades(names, begin, stop, method=method, frame="arrow")
        except NoData:
            break
        except UnknownSymbol as error:
            # A symbol that was subscribed and has nothing all day: it was silent, or it is no symbol.
            silent = error.facts.get("symbols")
            left = [name for name in names if name not in silent] if isinstance(silent, list) else names
            if len(left) == len(names):
                raise
            names = left
        else:
            table = tables.conform(tables.from_frame(found, schema), schema)
            return table.sort_by("timestamp") if kind == "bars" else table
    return schema.empty_table()
