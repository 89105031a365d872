"""Orders, positions and cash: what was asked for, what was got, what is held.

Cash is kept as an exact decimal: every fill changes it by size × price and the fee, to the last digit.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from decimal import Context, Decimal
from math import inf, isfinite

from tapelab.errors import StrategyError, UnknownName
from tapelab.lab.bars import NEVER
from tapelab.lab.rules import BarRule, Fees, FillRule, Latency, MakerRule, RiskLimits, TakerRule
from tapelab.market.events import Bar, Quote, Trade

SIZE_DIGITS = 9  # the finest share or coin that anyone sells; sums of fractions come back to zero
_MONEY = Context(prec=60)  # size × price of two doubles, without rounding


@dataclass(frozen=True)
class Order:
    """What was asked for: `size` shares (negative sells) at the market or at `limit` or better.

    `id` and `placed` (ns UTC) are given when it is sent. `refused` says why it never left; empty: it did.
    """

    symbol: str
    size: float
    limit: float | None = None
    tag: str = ""
    id: int = 0
    placed: int = 0
    refused: str = ""


@dataclass(frozen=True)
class Fill:
    """What was got: `size` shares (negative: sold) of `order` at `price`, for `fee`.

    `ts` is the time of the event that filled it (ns UTC). `mid` is the mid price of the quote that was
    taken, or the mid that stood when a resting order was filled; None where only bars are known.
    `position` is what is held afterwards.
    """

    order: int
    symbol: str
    ts: int
    size: float
    price: float
    fee: float
    maker: bool
    mid: float | None
    position: float
    tag: str = ""


@dataclass(frozen=True)
class Position:
    """What is held: `size` shares (negative: short) at an average `price`, worth `value` at the `mark`."""

    symbol: str
    size: float
    price: float
    mark: float

    @property
    def value(self) -> float:
        return self.size * self.mark

    @property
    def unrealised(self) -> float:
        """Profit if it were closed at the mark, without fees."""
        return self.size * (self.mark - self.price)


class _Live:
    """An order that can still fill."""

    __slots__ = ("active", "buys", "cancelled", "left", "limit", "order", "rests")

    def __init__(self, order: Order, active: int) -> None:
        self.order = order
        self.buys = order.size > 0
        self.limit = order.limit
        self.left = abs(order.size)
        self.active = active  # when it reaches the market
        self.cancelled = NEVER  # when its cancellation does
        self.rests = False


def _priority(live: _Live) -> float:
    """Market orders first, then the better price; the older one where prices tie."""
    if live.limit is None:
        return -inf
    return -live.limit if live.buys else live.limit


class Broker:
    """Keeps the account of one backtest and fills its orders by the rules.

    The clock (`backtest.py`) sets `now`, shows each event to `see_quote`, `see_trade` or `see_bars` and keeps
    `marks`, the last price at which a position is valued. `lot` turns quote sizes into shares.
    """

    def __init__(
        self,
        *,
        cash: float,
        fills: Iterable[FillRule],
        fees: Fees,
        latency: Latency,
        risk: RiskLimits,
        lot: float = 1.0,
        symbols: tuple[str, ...] = (),
    ) -> None:
        rules = {rule.topic: rule for rule in fills}
        self.taker = rules.get(TakerRule.topic, FillRule())
        self.maker = rules.get(MakerRule.topic, FillRule())
        self.on_bars = rules.get(BarRule.topic)
        self.fees, self.latency, self.risk, self.lot, self.symbols = fees, latency.ns, risk, lot, symbols
        self.now = 0
        self.cash = _exact(cash)
        self.held: dict[str, float] = {}
        self.marks: dict[str, float] = {}
        self.quotes: dict[str, Quote] = {}
        self.working: dict[str, list[_Live]] = {}
        self.fills: list[Fill] = []
        self.placed = self.refused = self.cancelled = 0
        self.tell: Callable[[Fill], None] = lambda fill: None
        self.set_timer: Callable[[float], None] = lambda seconds: None

    # Orders

    def submit(self, order: Order) -> Order:
        """Take an order; it can fill with the next event at the earliest."""
        _check(order)
        if self.symbols and order.symbol not in self.symbols:
            raise UnknownName.among("symbol in this data", order.symbol, self.symbols)
        order = replace(order, size=float(order.size), id=self.placed + 1, placed=self.now, refused="")
        self.placed += 1
        symbol, size = order.symbol, order.size
        ahead = self.position(symbol) + sum(
            live.left if live.buys else -live.left
            for live in self.working.get(symbol, ())
            if live.buys == (size > 0) and live.cancelled > self.now
        )
        why = self.risk.refusal(size, ahead + size)
        if why:
            self.refused += 1
            return replace(order, refused=why)
        insort(self.working.setdefault(symbol, []), _Live(order, self.now + self.latency), key=_priority)
        return order

    def cancel(self, order: Order) -> bool:
        """Take an order back; False if it is no longer there."""
        for live in self.working.get(order.symbol, ()):
            if live.order.id == order.id and live.cancelled == NEVER:
                live.cancelled = self.now + self.latency
                if self.latency == 0:
                    self._remove(live)
                self.cancelled += 1
                return True
        return False

    def cancel_all(self) -> int:
        """End of the data: what is still working is withdrawn. Returns how many orders that were."""
        left = sum(len(orders) for orders in self.working.values())
        self.working.clear()
        return left

    # What is known

    def position(self, symbol: str) -> float:
        return self.held.get(symbol, 0.0)

    def in_flight(self, symbol: str) -> float:
        return sum(
            live.left if live.buys else -live.left
            for live in self.working.get(symbol, ())
            if live.cancelled > self.now
        )

    def live_orders(self, symbol: str | None = None) -> list[Order]:
        groups = self.working.values() if symbol is None else [self.working.get(symbol, [])]
        found = [live.order for group in groups for live in group if live.cancelled > self.now]
        return sorted(found, key=lambda order: order.id)

    def equity(self) -> float:
        value = float(self.cash)
        for symbol, size in self.held.items():
            value += size * self.marks[symbol]
        return value

    # Events

    def see_quote(self, quote: Quote, before: float | None) -> None:
        """Fill what a quote fills. `before` is the mid that stood until now."""
        symbol, taker = quote.symbol, self.taker
        standing = self.quotes.get(symbol)
        taken = [0.0, 0.0]
        for live in self._in_the_market(symbol):
            limit = live.limit
            if limit is not None and not live.rests and standing is not None:
                # What the book was when the order reached it decides whether it rests or takes.
                live.rests = taker.rests(live.buys, limit, standing)
            match = (self.maker if live.rests else taker).on_quote(live.buys, limit, quote)
            if match is None:
                if limit is not None and not live.rests:
                    live.rests = taker.rests(live.buys, limit, quote)
            elif match.maker:
                self._fill(live, self.now, match.price, match.size, True, before)
            else:
                room = match.size * self.lot - taken[live.buys]
                taken[live.buys] += self._fill(live, self.now, match.price, room, False, quote.mid)

    def see_trade(self, trade: Trade) -> None:
        """Fill what a print fills."""
        symbol = trade.symbol
        standing, mid = self.quotes.get(symbol), self.marks.get(symbol)
        taken = 0.0
        for live in self._in_the_market(symbol):
            if live.limit is not None and not live.rests:
                live.rests = self.taker.rests(live.buys, live.limit, standing)
            rule = self.maker if live.rests else self.taker
            match = rule.on_trade(live.buys, live.limit, trade)
            if match is not None:
                known = mid if standing is not None else None
                taken += self._fill(live, self.now, match.price, match.size - taken, match.maker, known)

    def see_bars(self, bars: list[Bar]) -> None:
        """Fill what bars of one interval fill. Orders that their fills cause wait for later bars."""
        if not self.working or self.on_bars is None:
            return
        waiting = [(bar, list(self.working.get(bar.symbol, ()))) for bar in bars]
        for bar, orders in waiting:
            taken = 0.0
            for live in orders:
                if live.active > bar.timestamp or self._is_gone(live, bar.timestamp):
                    continue
                match = self.on_bars.on_bar(live.buys, live.limit, live.rests, bar)
                if match is not None:
                    room = match.size - taken
                    taken += self._fill(live, bar.timestamp, match.price, room, match.maker, None)
                live.rests = live.limit is not None

    # Inside

    def _in_the_market(self, symbol: str) -> list[_Live]:
        """The orders that have reached the market, in order of priority: a copy, as fills change the list."""
        orders = list(self.working.get(symbol, ()))
        if self.latency == 0:
            return orders
        return [live for live in orders if live.active <= self.now and not self._is_gone(live, self.now)]

    def _is_gone(self, live: _Live, at: int) -> bool:
        """Whether nothing of an order is left at a time; drops it when its cancellation has arrived."""
        if live.left > 0 and live.cancelled <= at:
            self._remove(live)
        return live.left <= 0

    def _remove(self, live: _Live) -> None:
        orders = self.working[live.order.symbol]
        orders.remove(live)
        live.left = 0.0
        if not orders:
            del self.working[live.order.symbol]

    def _fill(self, live: _Live, ts: int, price: float, room: float, maker: bool, mid: float | None) -> float:
        """Trade as much as there is room for; returns how much."""
        size = round(min(live.left, room), SIZE_DIGITS)
        if size <= 0:
            return 0.0
        live.left = round(live.left - size, SIZE_DIGITS)
        if live.left <= 0:
            self._remove(live)
        symbol, signed = live.order.symbol, size if live.buys else -size
        fee = float(self.fees.of(size, price, maker))
        paid = _MONEY.add(_MONEY.multiply(_exact(signed), _exact(price)), _exact(fee))
        self.cash = _MONEY.subtract(self.cash, paid)
        position = round(self.position(symbol) + signed, SIZE_DIGITS)
        if position:
            self.held[symbol] = position
        else:
            self.held.pop(symbol, None)
        self.marks.setdefault(symbol, price)
        fill = Fill(live.order.id, symbol, ts, signed, price, fee, maker, mid, position, live.order.tag)
        self.fills.append(fill)
        self.tell(fill)
        return size


def _check(order: Order) -> None:
    if not isfinite(order.size) or order.size == 0:
        raise StrategyError(
            f"An order of {order.size!r} shares makes no sense.", remedy="Give a number other than 0."
        )
    if order.limit is not None and not (isfinite(order.limit) and order.limit > 0):
        raise StrategyError(f"A limit of {order.limit!r} is no price.", remedy="Give a price above 0.")
    if not order.symbol or not isinstance(order.symbol, str):
        raise StrategyError(f"{order.symbol!r} is not a symbol.", remedy="Give text such as 'AAPL'.")


def _exact(number: float) -> Decimal:
    """The decimal that is written, not the binary fraction beside it."""
    return Decimal(repr(float(number)))
