"""Follow the trend: hold a symbol while its short average is above its long one."""

from __future__ import annotations

from collections import deque

from tapelab.errors import UsageError
from tapelab.lab.strategy import Strategy
from tapelab.market.events import Bar


class MovingAverageCross(Strategy):
    """Long while the average close of `fast` bars is above that of `slow` bars, otherwise flat (or short).

    `size` shares of each symbol (`symbol=""`: of every symbol in the data). Closes are counted in whole
    `tick`s and the averages compared as integers, so that equal averages are equal: then nothing changes.
    """

    bars = "1m"
    symbol = ""
    fast = 10
    slow = 30
    size = 100.0
    short = False
    tick = 0.0001

    def on_start(self) -> None:
        if not 0 < self.fast < self.slow:
            raise UsageError(
                f"fast={self.fast} and slow={self.slow} cannot cross.", remedy="Give 0 < fast < slow."
            )
        self.closes: dict[str, deque[int]] = {}

    def on_bar(self, bar: Bar) -> None:
        if self.symbol and bar.symbol != self.symbol:
            return
        closes = self.closes.setdefault(bar.symbol, deque(maxlen=self.slow))
        closes.append(round(bar.close / self.tick))
        if len(closes) < self.slow:
            return
        fast = sum(list(closes)[-self.fast :]) * self.slow
        slow = sum(closes) * self.fast
        if fast > slow:
            self.target_position(bar.symbol, self.size)
        elif fast < slow:
            self.target_position(bar.symbol, -self.size if self.short else 0)
