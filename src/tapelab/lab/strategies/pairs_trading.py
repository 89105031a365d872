"""Bet that two symbols that move together come back together."""

from __future__ import annotations

from collections import deque
from math import log, sqrt
from statistics import fmean

from tapelab.errors import UsageError
from tapelab.lab.strategy import Strategy
from tapelab.market.events import Bar


class PairsTrading(Strategy):
    """Sell the dear one and buy the cheap one of a pair, for `notional` money each.

    After each bar in which both traded, z = (log(first / second) − its mean) / its standard deviation, over
    the `lookback` bars before. Beyond ±`entry` the pair is opened against z, within ±`exit` it is closed.
    Without names, the first two symbols of the data are the pair.
    """

    bars = "1m"
    first = ""
    second = ""
    lookback = 60
    entry = 2.0
    exit = 0.5
    notional = 20_000.0

    def on_start(self) -> None:
        if not self.first and not self.second and len(self.symbols) >= 2:
            self.first, self.second = self.symbols[:2]
        if not self.first or not self.second or self.first == self.second:
            raise UsageError("A pair is two symbols.", remedy="Give first=… and second=….")
        if self.lookback < 2 or not self.entry > self.exit >= 0:
            raise UsageError(
                f"lookback={self.lookback}, entry={self.entry:g}, exit={self.exit:g} do not fit together.",
                remedy="Give a lookback of 2 or more and entry > exit ≥ 0.",
            )
        self.latest: dict[str, Bar] = {}
        self.ratios: deque[float] = deque(maxlen=self.lookback)
        self.side = 0

    def on_bar(self, bar: Bar) -> None:
        if bar.symbol not in (self.first, self.second):
            return
        self.latest[bar.symbol] = bar
        one, other = self.latest.get(self.first), self.latest.get(self.second)
        if one is None or other is None or one.ends != other.ends:
            return
        ratio = log(one.close / other.close)
        if len(self.ratios) == self.lookback:
            mean = fmean(self.ratios)
            spread = sqrt(fmean((each - mean) ** 2 for each in self.ratios))
            if spread > 0:
                self.decide((ratio - mean) / spread, one.close, other.close)
        self.ratios.append(ratio)

    def decide(self, z: float, one: float, other: float) -> None:
        """Open, close or hold, given how far the ratio is from its mean."""
        side = self.side
        if abs(z) <= self.exit:
            side = 0
        elif abs(z) >= self.entry:
            side = -1 if z > 0 else 1
        if side != self.side:
            self.side = side
            self.target_position(self.first, side * (self.notional // one))
            self.target_position(self.second, -side * (self.notional // other))
