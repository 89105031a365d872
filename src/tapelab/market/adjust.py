"""Split and dividend factors, the same whatever the route.

Raw prices before an ex-date are multiplied by the factors of everything that came after it; volumes are
divided by split factors only. A factor steps at midnight of the exchange's ex-date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Adjustment = Literal["none", "splits", "all"]
ADJUSTMENTS: tuple[Adjustment, ...] = ("none", "splits", "all")


@dataclass(frozen=True)
class Split:
    """`split_from` old shares became `split_to` new ones from the open of `execution_date`."""

    symbol: str
    execution_date: date
    split_from: float
    split_to: float

    @property
    def factor(self) -> float:
        """What prices before it are multiplied by: 0.25 for a 4:1 split."""
        return self.split_from / self.split_to


@dataclass(frozen=True)
class Dividend:
    """`cash_amount` a share for those who held it before `ex_dividend_date`."""

    symbol: str
    ex_dividend_date: date
    cash_amount: float
    currency: str = "USD"


def apply(bars: pa.Table, splits: Sequence[Split]) -> pa.Table:
    """Bars with every price and volume in the shares of today.

    Only `splits` (all of the symbols' splits, also those after the last bar) matter; a bar on or after an
    execution date is untouched by that split.
    """
    if not splits or len(bars) == 0:
        return bars
    factor = split_factors(bars, splits)
    for name in ("open", "high", "low", "close", "vwap"):
        bars = _scaled(bars, name, factor)
    return _scaled(bars, "volume", 1 / factor)


def split_factors(bars: pa.Table, splits: Sequence[Split]) -> npt.NDArray[np.float64]:
    """For each bar the product of the factors of all later splits of its symbol."""
    sessions = bars.column("session").to_numpy().astype("datetime64[D]")
    symbols = bars.column("symbol").to_numpy(zero_copy_only=False)
    factor = np.ones(len(bars))
    for split in splits:
        before = (symbols == split.symbol) & (sessions < np.datetime64(split.execution_date))
        factor[before] *= split.factor
    return factor


def _scaled(bars: pa.Table, name: str, factor: npt.NDArray[np.float64]) -> pa.Table:
    column = bars.column(name)
    missing = column.is_null().to_numpy()
    values = column.to_numpy() * factor
    scaled = pa.array(values, pa.float64(), mask=missing)
    return bars.set_column(bars.column_names.index(name), bars.schema.field(name), scaled)
