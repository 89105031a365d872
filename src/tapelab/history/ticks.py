"""`fetch_trades` and `fetch_quotes`: ticks as a table, by REST or from the day's flat file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from tapelab.history.gather_ticks import TickGatherer
from tapelab.history.progress import Progress
from tapelab.history.request import Method, parse_ticks
from tapelab.market import tables
from tapelab.market.ranges import Moment
from tapelab.market.symbols import Symbol, parse_all
from tapelab.market.tables import Frame
from tapelab.massive.wire.catalogue import product_of
from tapelab.settings import current
from tapelab.store.lake.ticks import Kind

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

    from tapelab.store.datasets.dataset import Dataset

Symbols = str | Symbol | Sequence[str]


@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["pandas"] = ...,
    fallback: bool = ...,
) -> pd.DataFrame: ...
@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["polars"],
    fallback: bool = ...,
) -> pl.DataFrame: ...
@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["arrow"],
    fallback: bool = ...,
) -> pa.Table: ...
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> Any:
    """Every trade of one or more symbols over a range of days, complete or not at all.

    `start`, `end`: a date (whole exchange days, both included) or a datetime (an instant, end excluded).
    `method`: `"auto"` and `"cheapest"` take what is cheaper, pages of REST or the files of whole days;
    `"rest"`, `"flat_file"`. A route that fails falls back to the other unless `fallback=False`.

    Columns: `ts_event` (the SIP's clock, UTC, exact to the nanosecond), `ts_recv` (null: nobody was there),
    `arrival` (the row's number), `symbol`, `price`, `size`, `exchange`, `conditions`, `sequence`, `id`,
    `tape`, `correction`, `ts_participant`, `trf_id`, `ts_trf`; sorted by `ts_event`, ties by symbol and then
    as the vendor has them. Nothing is adjusted. Cancelled trades are in it, marked by `correction`.

    Raises `UsageError`, `SettingError`, `SourceError`, `BudgetExceeded`, `NoData` or `Damaged`.
    """
    return _fetch("trades", symbols, start, end, method, frame, fallback)


@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["pandas"] = ...,
    fallback: bool = ...,
) -> pd.DataFrame: ...
@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["polars"],
    fallback: bool = ...,
) -> pl.DataFrame: ...
@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["arrow"],
    fallback: bool = ...,
) -> pa.Table: ...
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> Any:
    """Every quote (NBBO) of one or more symbols over a range of days, complete or not at all.

    Arguments, order and errors as in `fetch_trades`. Columns: `ts_event`, `ts_recv`, `arrival`, `symbol`,
    `bid`, `ask` (null: that side is empty), `bid_size`, `ask_size` (as the vendor has them: shares or lots),
    `bid_exchange`, `ask_exchange`, `sequence`, `conditions`, `indicators`, `tape`, `ts_participant` and
    `ts_trf`.
    """
    return _fetch("quotes", symbols, start, end, method, frame, fallback)


def dataset_of_ticks(
    name: str,
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    fallback: bool = True,
) -> Dataset:
    """Trades and quotes of a range as a dataset that strategies replay in order of the exchange's clock.

    Crypto has no quotes and forex no trades. Its `clock` is `"event"`: nobody received these ticks. Raises
    what `fetch_trades` raises, and `UsageError` where the name is taken.
    """
    from tapelab.store.datasets import catalogue

    market = parse_all(symbols)[0].market
    both: tuple[Kind, ...] = ("trades", "quotes")
    kinds = [kind for kind in both if product_of(market, kind)] or both
    found = {kind: _fetch(kind, symbols, start, end, method, "arrow", fallback) for kind in kinds}
    known = [tables.facts(table) for table in found.values()]
    routes = {route for facts in known for route in facts["routes"]}
    return catalogue.from_tables(
        name,
        trades=found.get("trades"),
        quotes=found.get("quotes"),
        source="flat_file" if routes == {"flat_file"} else "rest" if routes == {"rest"} else "history",
        provenance={"market": market.value, "simulated": any(facts["simulated"] for facts in known)},
    )


def _fetch(
    kind: Kind, symbols: Symbols, start: Moment, end: Moment, method: Method, frame: Frame, fallback: bool
) -> Any:
    tables.check_frame(frame)
    request = parse_ticks(kind, symbols, start, end, method, fallback)
    with Progress() as progress, TickGatherer(request, current(), progress) as gatherer:
        table = gatherer.gather()
    return tables.to_frame(table, frame)
