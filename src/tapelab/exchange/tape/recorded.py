"""A tape of a dataset: what was recorded or imported, in the order in which it arrived."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapelab.errors import ServeError
from tapelab.exchange.tape.base import MadeTape, Ticks, header_safe
from tapelab.exchange.tape.products import QUOTES, TRADES
from tapelab.market import sessions, tables
from tapelab.market.symbols import Market

if TYPE_CHECKING:
    from tapelab.store.datasets.dataset import Dataset


@dataclass(frozen=True)
class Held:
    """Quotes and trades in order of arrival, and the exchange's date of each, by product."""

    ticks: Mapping[str, pa.Table]
    dates: Mapping[str, npt.NDArray[np.datetime64]]

    @classmethod
    def of(cls, table: Callable[[str], pa.Table]) -> Held:
        """Of a dataset's tables."""
        ticks = {
            product: tables.conform(table(kind), tables.SCHEMAS[kind])
            for product, kind in ((QUOTES, "quotes"), (TRADES, "trades"))
        }
        dates = {p: sessions.dates_of(Market.STOCKS, t.column("ts_event")) for p, t in ticks.items()}
        return cls(ticks, dates)


class DatasetTape(MadeTape):
    """A recorded or imported dataset: its ticks as they arrived, bars built from its trades."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        simulated = "simulated " if dataset.provenance.get("simulated") else ""
        self.identity = f"{simulated}dataset {header_safe(dataset.name)}"
        self._whole = self._hold(dataset)

    @property
    def _held(self) -> Held:
        return self._whole

    def _hold(self, dataset: Dataset) -> Held:
        held = Held.of(dataset.table)
        if not any(map(len, held.ticks.values())):
            raise ServeError(
                f"The dataset {dataset.name!r} holds no quotes and no trades.", remedy="Record some first."
            )
        return held

    def _days(self, product: str) -> list[date]:
        dates = self._held.dates[product if product == QUOTES else TRADES]
        return [day.item() for day in np.unique(dates)]

    def ticks(self, day: date) -> Ticks:
        held = self._held
        quotes, trades = (self._of(held, product, day).sort_by("arrival") for product in (QUOTES, TRADES))
        return Ticks(quotes, trades)

    def _of(self, held: Held, product: str, day: date) -> pa.Table:
        return held.ticks[product].filter(pa.array(held.dates[product] == np.datetime64(day)))

    def _read(self, product: str, day: date) -> pa.Table:
        if product in (QUOTES, TRADES):
            table = self._of(self._held, product, day)
            return table.sort_by(
                [("symbol", "ascending"), ("ts_event", "ascending"), ("arrival", "ascending")]
            )
        return self._built(product, day)
