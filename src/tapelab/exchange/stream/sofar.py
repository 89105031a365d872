"""What a streamed bar says of its day until its end: the volume, its average price, the official open."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date

import polars as pl
import pyarrow as pa

from tapelab.exchange.tape import VWAP_DECIMALS, Row
from tapelab.market import sessions
from tapelab.market.conditions import rules_of
from tapelab.market.symbols import Market
from tapelab.massive.wire.columns import SIZE_DECIMALS

_SUMS = {"symbol": pl.String, "at": pl.Int64, "volume": pl.Float64, "paid": pl.Float64, "open": pl.Float64}


class DaySoFar:
    """A day's prints added up, symbol by symbol, as they pass.

    `official`: the day's official prices by symbol, known from the open on; without one, the first price of
    regular hours stands for it.
    """

    def __init__(self, day: date, official: Mapping[str, Row]) -> None:
        session = sessions.session(Market.STOCKS, day)
        self._open, self._close = (0, 0) if session is None else (session.open, session.close)
        self._official = {symbol: row["open"] for symbol, row in official.items()}
        self._sums = pl.DataFrame(schema=_SUMS)

    def beside(self, bars: pa.Table, prints: pa.Table, length: int) -> pa.Table:
        """Bars of this `length` (ns) with `day_volume`, `day_vwap` and `day_open`; null where not known.

        `prints` are the trades since the last time, up to the end of these bars. Of a day without trades,
        give the bars themselves; they know no average price.
        """
        ends = pl.DataFrame(
            {
                "symbol": bars.column("symbol").to_numpy(zero_copy_only=False),
                "at": bars.column("timestamp").to_numpy() + (length - 1),
            },
            schema={"symbol": pl.String, "at": pl.Int64},
        )
        running = self.add(prints).sort("at", maintain_order=True)
        found = (
            ends.with_row_index("place")
            .sort("at")
            .join_asof(running, on="at", by="symbol", check_sortedness=False)
            .sort("place")
        )
        told = pl.col("symbol").replace_strict(self._official, default=None, return_dtype=pl.Float64)
        figures = found.select(
            day_volume=pl.col("volume").round(SIZE_DECIMALS),
            day_vwap=(pl.col("paid") / pl.col("volume")).round(VWAP_DECIMALS).fill_nan(None),
            day_open=pl.coalesce(pl.when(pl.col("at") >= self._open).then(told), "open"),
        )
        for name in figures.columns:
            bars = bars.append_column(name, figures[name].to_arrow())
        return bars

    def add(self, prints: pa.Table) -> pl.DataFrame:
        """Add these prints; gives how the sums of each symbol ran, from where they stood."""
        come = self._traded(prints) if "price" in prints.column_names else self._barred(prints)
        known = pl.col("open").is_not_null()
        running = (
            pl.concat([self._sums.with_columns(at=pl.lit(0, pl.Int64)), come])
            .sort("symbol", "at", maintain_order=True)
            .with_columns(
                pl.col("volume", "paid").cum_sum().over("symbol"),
                pl.when(known & (known.cum_sum() == 1)).then("open").forward_fill().over("symbol"),
            )
        )
        self._sums = running.group_by("symbol", maintain_order=True).last().select(*_SUMS)
        return running

    def _traded(self, trades: pa.Table) -> pl.DataFrame:
        opens = rules_of(trades, waive_extended_hours=False).open_close
        counts = rules_of(trades, waive_extended_hours=True).volume
        frame = pl.DataFrame(
            {
                "symbol": trades.column("symbol").to_numpy(zero_copy_only=False),
                "at": trades.column("ts_event").to_numpy(),
                "price": trades.column("price").to_numpy(),
                "size": trades.column("size").to_numpy() * counts,
                "opens": opens,
            },
            schema_overrides={"symbol": pl.String},
        )
        return self._summed(frame, pl.col("price") * pl.col("size"))

    def _barred(self, bars: pa.Table) -> pl.DataFrame:
        frame = pl.DataFrame(
            {
                "symbol": bars.column("symbol").to_numpy(zero_copy_only=False),
                "at": bars.column("timestamp").to_numpy(),
                "price": bars.column("open").to_numpy(),
                "size": bars.column("volume").to_numpy(),
                "opens": True,
            },
            schema_overrides={"symbol": pl.String},
        )
        return self._summed(frame, pl.lit(None, pl.Float64))

    def _summed(self, frame: pl.DataFrame, paid: pl.Expr) -> pl.DataFrame:
        opens = pl.col("opens") & pl.col("at").is_between(self._open, self._close, closed="left")
        return frame.select("symbol", "at", volume="size", paid=paid, open=pl.when(opens).then("price"))
