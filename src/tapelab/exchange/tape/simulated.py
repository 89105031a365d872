"""A tape of the simulated market (`simulate.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from functools import lru_cache, partial

import pyarrow as pa

from tapelab.exchange.tape import beside
from tapelab.exchange.tape.bands import bands
from tapelab.exchange.tape.base import MadeTape
from tapelab.exchange.tape.beside import Row
from tapelab.exchange.tape.products import DAY_BARS, MINUTE_BARS, QUOTES, TRADES
from tapelab.exchange.tape.simulate import SimulatedMarket
from tapelab.market import sessions
from tapelab.market.symbols import Market


class SimulatedTape(MadeTape):
    """The simulated market: bars for all its sessions, ticks for the last few."""

    def __init__(self, market: SimulatedMarket, *, tick_days: int = 3) -> None:
        super().__init__()
        self.identity = f"simulated seed={market.seed}"
        self._market = market
        self._bar_days = [session.date for session in market.sessions]
        self._tick_days = self._bar_days[-tick_days:]

    def _days(self, product: str) -> list[date]:
        return self._bar_days if product in (DAY_BARS, MINUTE_BARS) else self._tick_days

    def reference(self, name: beside.Name) -> Sequence[Row] | None:
        return [] if name in ("splits", "dividends") else None

    def bands(self, day: date) -> Sequence[Row]:
        session = sessions.session(Market.STOCKS, day)
        if session is None or day not in self._tick_days:
            return []
        made = partial(bands, self.table(TRADES, day), session)
        return self._cache.kept(("bands", self._key(TRADES, day)), made, lambda rows: 200 * len(rows))

    def _read(self, product: str, day: date) -> pa.Table:
        quotes, trades = self._cache.kept(
            ("ticks", day), lambda: self._market.ticks(day), lambda both: sum(int(t.nbytes) for t in both)
        )
        if product == QUOTES:
            return quotes
        return trades if product == TRADES else self._built(product, day)


@lru_cache(maxsize=4)
def simulated(seed: int) -> SimulatedTape:
    """The simulated market of a seed, made once in a process."""
    return SimulatedTape(SimulatedMarket(seed))
