"""`fetch_data` and what belongs to it: bars as a table, whichever way they came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.budget import Budget
from tapelab.errors import NoData, NotFound, UnknownSymbol
from tapelab.history import names
from tapelab.history.fetchplan import FetchPlan
from tapelab.history.gather import Gathered, Gatherer, bring
from tapelab.history.progress import Progress
from tapelab.history.reference import References
from tapelab.history.request import Method, Request, parse
from tapelab.market import clock, ranges, tables
from tapelab.market.adjust import Adjustment
from tapelab.market.intervals import Interval
from tapelab.market.ranges import Moment
from tapelab.market.symbols import Symbol, looks_like_a_future
from tapelab.market.tables import Frame
from tapelab.massive.flatfiles import FlatFiles
from tapelab.massive.wire.catalogue import kind_named
from tapelab.settings import current
from tapelab.store.lake import Lake

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from tapelab.market.bars import Hours

Symbols = str | Symbol | Sequence[str]


@overload
def fetch_data(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    interval: str | Interval = ...,
    method: Method = ...,
    *,
    adjust: Adjustment = ...,
    hours: Hours = ...,
    frame: Literal["pandas"] = ...,
    fallback: bool = ...,
) -> pd.DataFrame: ...
@overload
def fetch_data(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    interval: str | Interval = ...,
    method: Method = ...,
    *,
    adjust: Adjustment = ...,
    hours: Hours = ...,
    frame: Literal["polars"],
    fallback: bool = ...,
) -> pl.DataFrame: ...
@overload
def fetch_data(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    interval: str | Interval = ...,
    method: Method = ...,
    *,
    adjust: Adjustment = ...,
    hours: Hours = ...,
    frame: Literal["arrow"],
    fallback: bool = ...,
) -> pa.Table: ...
def fetch_data(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    interval: str | Interval = "1d",
    method: Method = "auto",
    *,
    adjust: Adjustment = "splits",
    hours: Hours = "all",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> Any:
    """Bars of one or more symbols over a range of days, complete or not at all.

    `start`, `end`: a date (whole exchange days, both included) or a datetime (an instant, end excluded; naive
    means the exchange's zone). Intraday bars belong to the range if they start in it; days, weeks and months
    that the range touches are given whole. `interval`: `1s 1m 5m 15m 30m 1h 4h 1d 1w 1mo`. `method`: `"auto"`
    (at most 5 symbols and 7 days by REST, more by flat files), `"rest"`, `"flat_file"`, `"cheapest"`; a route
    that fails falls back to the other unless `fallback=False`. `adjust`: `"splits"`, `"all"` (splits and cash
    dividends, as `tapelab.market.adjust` says) or `"none"`. `hours`: `"all"` (the vendor's series) or
    `"regular"`. `frame`: `"pandas"`, `"polars"` or `"arrow"`.

    Columns: `timestamp` (start of the bar, UTC), `session`, `symbol`, `open high low close`, `volume`, `vwap`
    (null where the source has none), `transactions`; sorted by symbol, then timestamp. How the rows were got
    is in `attrs["tapelab"]` (arrow: in the schema's metadata).

    Raises `UsageError`, `SettingError`, `SourceError`, `BudgetExceeded`, `NoData` or `Damaged`.
    """
    tables.check_frame(frame)
    from tapelab.market import bars

    request = parse(symbols, start, end, interval, method, adjust, hours, fallback)
    with Progress() as progress, Gatherer(request, current(), progress) as gatherer:
        found = gatherer.gather()
        _refuse_unknown(request, found.bars, gatherer)
        references = References(gatherer)
        raw = references.apply(found.bars)
        table = bars.from_bars(raw, request.interval, hours=request.hours, market=request.market)
        table = _inside(table, request)
        if len(table) == 0:
            raise _nothing(request)
        known = _facts(request, found, gatherer.settings.endpoint) | references.facts(raw)
        for warning in known["warnings"]:
            progress.line(warning)
    return tables.to_frame(tables.with_facts(table, **known), frame)


def plan_fetch(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    interval: str | Interval = "1d",
    method: Method = "auto",
    *,
    adjust: Adjustment = "splits",
    hours: Hours = "all",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> FetchPlan:
    """What `fetch_data` would do with the same arguments, without doing it; prints as a short table.

    It may look at the list of flat files, which costs nothing. Raises what `fetch_data` raises before its
    first request.
    """
    request = parse(symbols, start, end, interval, method, adjust, hours, fallback)
    with Progress() as progress, Gatherer(request, current(), progress) as gatherer:
        return gatherer.decide(gatherer.doors(), look=True)[0]


def download_flat_file(product: str, day: date | str) -> Path:
    """One of the vendor's daily files (`"us_stocks_sip/minute_aggs_v1"`, a date) in the lake, as Parquet.

    Any of the vendor's products. Futures and values of indices keep the vendor's columns; all others get
    ours. Whole or not at all; a file that is here and that the vendor did not replace is not downloaded
    again. Returns its path. Raises `UnknownName` for a product, `NotFound` where there is no file (yet),
    `NotInPlan`, `NotAuthorized`, `BudgetExceeded`.
    """
    kind = kind_named(product)
    name = kind.name
    on = day.date() if isinstance(day, datetime) else day
    asked = ranges.resolve(on, on, kind.market).first
    settings = current()
    files, lake = FlatFiles(settings, Budget(settings)), Lake(settings)
    listed = files.list(name, asked, asked).get(asked)
    if listed is None:
        raise NotFound(
            f"There is no file of {name} for {asked} (yet).",
            remedy="A day's file appears about 11:00 New York on the day after.",
            product=name,
            day=str(asked),
        )
    bring(listed, files, lake)
    return lake.day_path(name, asked)


def _inside(table: pa.Table, request: Request) -> pa.Table:
    """Intraday bars that start in the range; longer ones are whole sessions already."""
    if not request.interval.intraday:
        return table
    starts = table["timestamp"]
    inside = pc.and_(pc.greater_equal(starts, request.range.start), pc.less(starts, request.range.end))
    return table.filter(inside)


def _refuse_unknown(request: Request, raw: pa.Table, gatherer: Gatherer) -> None:
    """A symbol without a single bar is a misspelt one, or did not trade.

    It is refused where others of the request have bars, or where one that looks like it is known.
    """
    traded = set(pc.unique(raw["symbol"]).to_pylist())
    silent = [name for name in request.names if name not in traded]
    if not silent:
        return
    name, days = silent[0], [session.date for session in request.range.sessions()]
    known = (
        names.in_lake(gatherer.lake, request.product, days)
        or names.of_any_day(gatherer.lake, request.product)
        or names.asked(gatherer, request.market, name)
    )
    near = [] if name in known else names.nearest(name, known or sorted(traded))
    if not (traded or near):
        return
    remedy = f"Did you mean {', '.join(near)}?" if near else "Check its spelling; case matters."
    span = f"{request.range.first} to {request.range.last}"
    raise UnknownSymbol(f"{name} has no bars from {span}.", remedy=remedy, symbols=silent)


def _nothing(request: Request) -> NoData:
    what = f"{request.interval} bars of {', '.join(request.names)}"
    hours = " in regular hours" if request.hours == "regular" else ""
    capitals = [name.upper() for name in request.names if name != name.upper()]
    near = f"Did you mean {', '.join(capitals)}? " if capitals else ""
    if any(map(looks_like_a_future, request.symbols)):
        near += "Bars of futures come by download_flat_file only, such as us_futures_cme/minute_aggs_v1. "
    return NoData(
        f"There are no {what} from {request.range.first} to {request.range.last}{hours}.",
        remedy=f"{near}Check the symbols' spelling and the dates; a symbol that did not trade has no bars.",
        symbols=list(request.names),
    )


def _facts(request: Request, found: Gathered, endpoint: str) -> dict[str, Any]:
    """What `attrs["tapelab"]` says of the rows; `routes` counts symbols times sessions."""
    return {
        "source": "history",
        "method": request.method,
        "route": found.plan.route,
        "reason": found.plan.reason,
        "lines": list(found.lines),
        "routes": dict(sorted(Counter(found.routes.values()).items())),
        "endpoint": endpoint,
        "interval": request.interval.text,
        "adjust": request.adjust,
        "hours": request.hours,
        "simulated": any(tape.startswith("simulated") for tape in found.tapes),
        "tapes": sorted(found.tapes),
        "provisional": [day.isoformat() for day in found.provisional],
        "fetched_at": clock.iso(clock.now()),
    }
