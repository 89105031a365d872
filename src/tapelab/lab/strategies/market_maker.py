"""Earn the spread: offer to buy and to sell around the mid, and lean against what you hold."""

from __future__ import annotations

from math import ceil, floor

from tapelab.errors import UsageError
from tapelab.lab.strategy import Strategy


class MarketMaker(Strategy):
    """A bid and an offer for `size` shares, `half_spread` basis points either side of a centre.

    Every `timer` seconds both are taken back and made anew. The centre is the mid, moved by `skew` basis
    points against the position when `max_inventory` is held (and in proportion before); at `max_inventory`
    that side is not quoted. Prices lie on whole `tick`s, rounded away from the mid. `symbol=""`: all of them.
    """

    timer = 5.0
    symbol = ""
    size = 100.0
    half_spread = 3.0
    skew = 3.0
    max_inventory = 500.0
    tick = 0.01

    def on_start(self) -> None:
        if not (self.size > 0 and self.tick > 0 and self.max_inventory > 0):
            raise UsageError(
                "size, tick and max_inventory have to be above 0.", remedy="Give positive numbers."
            )

    def on_timer(self) -> None:
        for symbol in (self.symbol,) if self.symbol else self.symbols:
            self.requote(symbol)

    def requote(self, symbol: str) -> None:
        """Take both orders back and make new ones around the mid of now."""
        for order in self.orders(symbol):
            self.cancel(order)
        quote = self.quote(symbol)
        if quote is None or quote.mid is None:
            return
        held = self.position(symbol)
        centre = quote.mid * (1 - self.skew / 10_000 * held / self.max_inventory)
        width = quote.mid * self.half_spread / 10_000
        bid = floor(round((centre - width) / self.tick, 6)) * self.tick
        ask = ceil(round((centre + width) / self.tick, 6)) * self.tick
        if bid > 0 and held + self.size <= self.max_inventory:
            self.buy(symbol, self.size, limit=round(bid, 6))
        if held - self.size >= -self.max_inventory:
            self.sell(symbol, self.size, limit=round(ask, 6))
