"""Quotes, trades or bars in, bars out.

No bar where nothing traded. Intervals of all hours lie on the clock; those of regular hours are counted
from the session's open. The vendor's day bar carries the official open and close, so a day is never
built from minutes unless regular hours ask for it.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tapelab.errors import UsageError
from tapelab.market import sessions, tables
from tapelab.market.clock import DAY, HOUR
from tapelab.market.conditions import rules_of
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

Hours = Literal["all", "regular"]
A_SUNDAY = np.datetime64("1970-01-04", "D")


def from_bars(
    bars: pa.Table, interval: Interval, *, hours: Hours = "all", market: Market = Market.STOCKS
) -> pa.Table:
    """Longer bars from base bars: `1m` from seconds, `5m` to `4h` from minutes, `1w` `1mo` from days.

    With `hours="regular"` only base bars that start inside the regular session count, intervals are counted
    from its open, and `1d` is made of them. `vwap`, `volume` and `transactions` are null unless every part
    has them.
    """
    if hours == "regular":
        bars = _inside_regular_hours(bars, market)
    if len(bars) == 0:
        return bars
    starts = _starts(bars, interval, hours, market)
    if np.array_equal(starts, bars.column("timestamp").to_numpy()):
        return bars
    known = bars.schema.metadata
    keyed = bars.set_column(0, tables.BARS.field("timestamp"), pa.array(starts))
    # Base bars arrive sorted by symbol and time, so first and last are open and close.
    lazy = pl.from_arrow(keyed)
    assert isinstance(lazy, pl.DataFrame)
    weight = pl.col("volume")
    whole = lazy.group_by("symbol", "timestamp", maintain_order=True).agg(
        pl.col("session").last() if interval.text in ("1w", "1mo") else pl.col("session").first(),
        pl.col("open").first(),
        pl.col("high").max(),
        pl.col("low").min(),
        pl.col("close").last(),
        pl.when(pl.col("vwap").is_null().any() | (weight.sum() == 0))
        .then(None)
        .otherwise((pl.col("vwap") * weight).sum() / weight.sum())
        .alias("vwap"),
        _whole_sum("volume"),
        _whole_sum("transactions"),
    )
    return _ordered(whole).replace_schema_metadata(known)


def from_trades(trades: pa.Table, interval: Interval | str, *, market: Market = Market.STOCKS) -> pa.Table:
    """Bars from prints by the vendor's condition rules (`conditions.py`): which print moves which price.

    Corrected and cancelled prints are left out. A window whose prints move no price has no bar. A day
    (`1d`) takes the strict rules, an intraday bar waives extended hours (`12`), as the vendor's bars do.
    """
    interval = Interval.parse(interval)
    if len(trades) == 0:
        return tables.BARS.empty_table()
    rules = rules_of(trades, waive_extended_hours=interval.intraday)
    ts = trades.column("ts_event").to_numpy()
    frame = pl.DataFrame(
        {
            "symbol": trades.column("symbol").to_numpy(zero_copy_only=False),
            "timestamp": _floor(ts, interval, market),
            "ts": ts,
            "price": trades.column("price").to_numpy(),
            "size": trades.column("size").to_numpy(),
            "moves_open": rules.open_close,
            "moves_high": rules.high_low,
            "counts": rules.volume,
        }
    )
    return _aggregate(frame, interval, market)


def from_quotes(quotes: pa.Table, interval: Interval | str, *, market: Market = Market.STOCKS) -> pa.Table:
    """Bars of the mid price: no volume, and `transactions` counts quotes. One-sided quotes are left out."""
    interval = Interval.parse(interval)
    if len(quotes) == 0:
        return tables.BARS.empty_table()
    ts = quotes.column("ts_event").to_numpy()
    mid = (quotes.column("bid").to_numpy() + quotes.column("ask").to_numpy()) / 2
    frame = pl.DataFrame(
        {
            "symbol": quotes.column("symbol").to_numpy(zero_copy_only=False),
            "timestamp": _floor(ts, interval, market),
            "ts": ts,
            "price": mid,
            "size": np.zeros(len(ts)),
        }
    ).filter(pl.col("price").is_not_nan())
    moves = pl.lit(True)
    return _aggregate(frame.with_columns(moves_open=moves, moves_high=moves, counts=moves), interval, market)


def _aggregate(frame: pl.DataFrame, interval: Interval, market: Market) -> pa.Table:
    """Each row says what it may move. Prices come from eligible rows, in order of time, then of the table."""
    opens = pl.col("price").filter(pl.col("moves_open"))
    highs = pl.col("price").filter(pl.col("moves_high"))
    sizes = pl.col("size").filter(pl.col("counts"))
    paid = (pl.col("price") * pl.col("size")).filter(pl.col("counts"))
    bars = (
        frame.sort("symbol", "ts", maintain_order=True)
        .group_by("symbol", "timestamp", maintain_order=True)
        .agg(
            opens.first().alias("open"),
            highs.max().alias("high"),
            highs.min().alias("low"),
            opens.last().alias("close"),
            sizes.sum().alias("volume"),
            pl.when(sizes.sum() > 0).then(paid.sum() / sizes.sum()).alias("vwap"),
            pl.col("counts").sum().cast(pl.Int64).alias("transactions"),
        )
        .filter(pl.col("high").is_not_null())
        # A print may set high and low without open and close; then the extremes are all that is known.
        .filter(pl.col("open").is_not_null())
    )
    dates = sessions.dates_of(market, bars["timestamp"].to_numpy())
    return _ordered(bars.with_columns(session=pl.Series(dates)))


def _whole_sum(name: str) -> pl.Expr:
    """Null unless every part is known: indices have no volume."""
    return pl.when(pl.col(name).is_null().any()).then(None).otherwise(pl.col(name).sum()).alias(name)


def _ordered(bars: pl.DataFrame) -> pa.Table:
    table = bars.select(tables.BARS.names).sort("symbol", "timestamp").to_arrow()
    return tables.conform(table, tables.BARS)


def _inside_regular_hours(bars: pa.Table, market: Market) -> pa.Table:
    opens, closes = _bounds(bars, market)
    starts = bars.column("timestamp").to_numpy()
    return bars.filter(pa.array((starts >= opens) & (starts < closes)))


def _bounds(bars: pa.Table, market: Market) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    dates = bars.column("session").to_numpy().astype("datetime64[D]")
    days, where = np.unique(dates, return_inverse=True)
    found = [sessions.session(market, day) for day in days.tolist()]
    opens = np.array([s.open if s else np.iinfo(np.int64).max for s in found], dtype=np.int64)
    closes = np.array([s.close if s else np.iinfo(np.int64).min for s in found], dtype=np.int64)
    return opens[where], closes[where]


def _starts(bars: pa.Table, interval: Interval, hours: Hours, market: Market) -> npt.NDArray[np.int64]:
    ts = bars.column("timestamp").to_numpy()
    if hours == "regular":
        opens, _ = _bounds(bars, market)
        if interval.text == "1d":
            return opens
        if interval.ns is None or interval.ns > DAY:
            raise UsageError(
                f"Regular hours have no {interval} bars.", remedy="Ask for all hours, or for 1d and shorter."
            )
        counted: npt.NDArray[np.int64] = ts - (ts - opens) % interval.ns
        return counted
    return _floor(ts, interval, market)


def _floor(ts: npt.NDArray[np.int64], interval: Interval, market: Market) -> npt.NDArray[np.int64]:
    """The start of each instant's bar.

    Minutes and hours are multiples from the exchange's midnight, on its wall clock (so a 4h bar starts at
    04:00, 08:00, … New York in summer and winter). Weeks start on Sunday, months on the first.
    """
    if interval.ns is not None and HOUR % interval.ns == 0:
        return ts - ts % interval.ns
    dates = sessions.dates_of(market, ts)
    if interval.text == "1w":
        dates = dates - (dates - A_SUNDAY) % np.timedelta64(7, "D")
    elif interval.text == "1mo":
        dates = dates.astype("datetime64[M]").astype("datetime64[D]")
    days, where = np.unique(dates, return_inverse=True)
    midnight = np.array([sessions.day_start(market, day) for day in days.tolist()], dtype=np.int64)[where]
    if interval.ns is None or interval.ns >= DAY:
        return midnight
    offset = _local(ts, market) - dates.astype("datetime64[ns]").astype(np.int64)
    return ts - offset % interval.ns


def _local(ts: npt.NDArray[np.int64], market: Market) -> npt.NDArray[np.int64]:
    # The exchange's wall clock as if it were UTC, in ns.
    import pyarrow.compute as pc

    stamps = pa.array(ts, pa.int64()).cast(pa.timestamp("ns", tz=sessions.zone(market)))
    local: npt.NDArray[np.int64] = pc.local_timestamp(stamps).cast(pa.int64()).to_numpy()
    return local
