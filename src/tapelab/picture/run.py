"""What a picture of a backtest is made of: plain values and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tapelab.market import sessions
from tapelab.market.symbols import Market


@dataclass(frozen=True)
class Run:
    """One strategy on one dataset.

    `dataset`: `name version symbols market start end kinds clock provenance gaps`. `assumptions`: topic,
    name, text. `tables`, times in int64 ns UTC: `equity` (timestamp equity drawdown), `fills` (timestamp
    symbol size price fee maker position …), `round_trips` (symbol opened closed size entry exit gross fees
    net fills), `positions` (symbol size price mark value unrealised), `prices` (timestamp symbol price).
    """

    name: str
    params: dict[str, Any]
    dataset: dict[str, Any]
    metrics: dict[str, float | int | None]
    notes: dict[str, str]
    assumptions: list[tuple[str, ...]]
    recipe: dict[str, Any]
    tables: dict[str, pa.Table]

    @property
    def simulated(self) -> bool:
        """Whether the prices were made up."""
        return bool(self.dataset.get("provenance", {}).get("simulated"))

    @property
    def zone(self) -> str:
        """The time zone in which the market's day lies; times are shown in it."""
        return sessions.zone(Market(self.dataset.get("market") or Market.STOCKS))

    @property
    def currency(self) -> str:
        """What stands before an amount of money; nothing where the currency is not known."""
        return "$" if self.dataset.get("market") in (Market.STOCKS, Market.OPTIONS) else ""
