"""What a backtest assumes about fills, fees, latency and limits.

Each assumption is a small frozen class with a name and a version. Its docstring is the assumption: the
same words stand in `Result.assumptions` and in every report. A rule that changes its answers gets a new
version.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import ClassVar, NamedTuple

from tapelab.errors import UsageError
from tapelab.lab.bars import moves
from tapelab.market.clock import MILLISECOND
from tapelab.market.events import Bar, Quote, Trade


class Assumption(NamedTuple):
    """One thing that a result takes for granted, in words."""

    topic: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.topic}: {self.name}. {self.text}"


class Match(NamedTuple):
    """What an order may have of one event: at `price`, up to `size`; `maker` if it was resting."""

    price: float
    size: float
    maker: bool


@dataclass(frozen=True)
class Rule:
    """A named, versioned assumption."""

    version: ClassVar[int] = 1
    topic: ClassVar[str] = "rule"

    @property
    def name(self) -> str:
        """The class with what was set on it: `PerShare(rate=0.005)`."""
        given = ", ".join(f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if self._is_set(f.name))
        return f"{type(self).__name__}({given})" if given else type(self).__name__

    @property
    def assumption(self) -> Assumption:
        """The docstring in one paragraph, with what was set on it."""
        text = " ".join(inspect.cleandoc(type(self).__doc__ or "").split())
        for each in fields(self):
            value = getattr(self, each.name)
            text = text.replace(f"`{each.name}`", "(no limit)" if value is None else f"{value:g}")
        return Assumption(self.topic, f"{self.name}, version {self.version}", text)

    @property
    def recipe(self) -> dict[str, object]:
        """What is needed to make this rule again."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}
        return {"rule": type(self).__name__, "version": self.version, **settings}

    def _is_set(self, field: str) -> bool:
        return getattr(self, field) is not None


# Fills


@dataclass(frozen=True)
class FillRule(Rule):
    """When an order fills, at what price and how much of it."""

    reads: ClassVar[frozenset[type]] = frozenset()  # the kinds of event that it understands

    def rests(self, buys: bool, limit: float, standing: Quote | None) -> bool:
        """Whether a limit order that reaches the market while `standing` is the quote rests in the book."""
        return True

    def on_quote(self, buys: bool, limit: float | None, quote: Quote) -> Match | None:
        """What a quote offers to an order; a size in the unit of the quote."""
        return None

    def on_trade(self, buys: bool, limit: float | None, trade: Trade) -> Match | None:
        """What a print offers to an order."""
        return None

    def on_bar(self, buys: bool, limit: float | None, rested: bool, bar: Bar) -> Match | None:
        """What a bar offers to an order that was in the market before the bar began."""
        return None


class TakerRule(FillRule):
    """How a market order, or a limit order that can trade at once, fills."""

    topic = "Taker fills"


class MakerRule(FillRule):
    """How a limit order that rests in the book fills."""

    topic = "Maker fills"


class BarRule(FillRule):
    """How orders fill when only bars are known."""

    topic = "Fills on bars"


class TakerAtTouch(TakerRule):
    """A market order, or a limit order at or beyond the opposite side, fills at the next quote of its symbol
    that is seen after it (and after the latency): at the touch, up to the size displayed there. What exceeds
    that size waits for the next quote; no depth behind the touch is assumed. A crossed quote (bid above ask)
    and an empty side fill nothing.
    """

    reads = frozenset({Quote})

    def rests(self, buys: bool, limit: float, standing: Quote | None) -> bool:
        if standing is None or _crossed(standing):
            return False
        opposite = standing.ask if buys else standing.bid
        return opposite is None or (opposite > limit if buys else opposite < limit)

    def on_quote(self, buys: bool, limit: float | None, quote: Quote) -> Match | None:
        price, size = (quote.ask, quote.ask_size) if buys else (quote.bid, quote.bid_size)
        if price is None or size <= 0 or _crossed(quote):
            return None
        if limit is not None and (price > limit if buys else price < limit):
            return None
        return Match(price, size, maker=False)


class TakerAtPrint(TakerRule):
    """The data holds no quotes: a market order fills at the next on-exchange print of its symbol that is seen
    after it (and after the latency), at the print's price and up to its size. No spread is paid, which
    flatters the result.
    """

    reads = frozenset({Trade})

    def on_trade(self, buys: bool, limit: float | None, trade: Trade) -> Match | None:
        if limit is not None or not _on_the_book(trade):
            return None
        return Match(trade.price, trade.size, maker=False)


class MakerOnCross(MakerRule):
    """A resting limit order fills at its own price, and only when the market moves through it: all of it when
    the opposite touch is strictly beyond its price, up to the print's size when an on-exchange trade prints
    strictly beyond it. A touch or a print at its price fills nothing: the queue ahead is unknown and taken to
    be endless. Off-exchange (TRF) prints, prints whose conditions may not move high and low, and crossed
    quotes fill nothing.
    """

    reads = frozenset({Quote, Trade})

    def on_quote(self, buys: bool, limit: float | None, quote: Quote) -> Match | None:
        opposite = quote.ask if buys else quote.bid
        if limit is None or opposite is None or (opposite >= limit if buys else opposite <= limit):
            return None
        return None if _crossed(quote) else Match(limit, inf, maker=True)

    def on_trade(self, buys: bool, limit: float | None, trade: Trade) -> Match | None:
        if limit is None or not (trade.price < limit if buys else trade.price > limit):
            return None
        return Match(limit, trade.size, maker=True) if _on_the_book(trade) else None


class NextBarOpen(BarRule):
    """A market order fills at the open of the first bar of its symbol that starts after the order (and after
    the latency), never in the bar that caused it. A limit order fills at the open of that bar if the open is
    better than its price, otherwise at its own price in the first bar that trades strictly through it. No
    more than a bar's volume fills in it, where the bar has one; the rest waits for the next. No spread is
    paid, which flatters the result.
    """

    reads = frozenset({Bar})

    def on_bar(self, buys: bool, limit: float | None, rested: bool, bar: Bar) -> Match | None:
        size = bar.volume if bar.volume else inf
        if limit is None:
            return Match(bar.open, size, maker=False)
        if not rested and (bar.open < limit if buys else bar.open > limit):
            return Match(bar.open, size, maker=False)
        through = bar.low < limit if buys else bar.high > limit
        return Match(limit, size, maker=True) if through else None


def _crossed(quote: Quote) -> bool:
    return quote.bid is not None and quote.ask is not None and quote.bid > quote.ask


def _on_the_book(trade: Trade) -> bool:
    return not trade.off_exchange and moves(trade.conditions).high_low


# Fees


@dataclass(frozen=True)
class Fees(Rule):
    """What a fill costs beyond its price."""

    topic = "Fees"

    def of(self, size: float, price: float, maker: bool) -> float:
        """The fee in money of a fill of `size` shares (positive); negative is a rebate."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoFees(Fees):
    """Trading costs nothing beyond the price."""

    def of(self, size: float, price: float, maker: bool) -> float:
        return 0.0


@dataclass(frozen=True)
class PerShare(Fees):
    """Each fill costs `rate` a share, in the currency of the prices, and at least `minimum`."""

    rate: float = 0.005
    minimum: float = 0.0

    def of(self, size: float, price: float, maker: bool) -> float:
        return max(size * self.rate, self.minimum)


@dataclass(frozen=True)
class BasisPoints(Fees):
    """A taker pays `rate` basis points of a fill's value, a maker `maker`; below zero it is paid them."""

    rate: float = 1.0
    maker: float | None = None  # None: the same as the taker

    def of(self, size: float, price: float, maker: bool) -> float:
        rate = self.maker if maker and self.maker is not None else self.rate
        return size * price * rate / 10_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "maker", self.rate if self.maker is None else self.maker)


# Latency


@dataclass(frozen=True)
class Latency(Rule):
    """How long an order or a cancellation travels."""

    topic = "Latency"

    @property
    def ns(self) -> int:
        """Nanoseconds from the decision to the market."""
        raise NotImplementedError


@dataclass(frozen=True)
class NoLatency(Latency):
    """Orders and cancellations reach the market at once, after the event that caused them and before the
    next.
    """

    @property
    def ns(self) -> int:
        return 0


@dataclass(frozen=True)
class FixedLatency(Latency):
    """Every order and every cancellation takes `ms` milliseconds to reach the market. Meanwhile the strategy
    sees it as in flight, and an order that is to be cancelled can still fill.
    """

    ms: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ms < inf:
            raise UsageError(f"A latency of {self.ms!r} ms makes no sense.", remedy="Give 0 ms or more.")

    @property
    def ns(self) -> int:
        return round(self.ms * MILLISECOND)


# Limits


@dataclass(frozen=True)
class RiskLimits(Rule):
    """An order is refused if it is larger than `max_order` shares, or if it could take the position in its
    symbol, with all that is already in flight on its side, beyond `max_position` shares.
    """

    topic = "Risk limits"

    max_position: float | None = None
    max_order: float | None = None

    def refusal(self, size: float, reachable: float) -> str:
        """Why an order of signed `size` may not go out; `reachable`: the position if its side all fills."""
        if self.max_order is not None and abs(size) > self.max_order:
            return f"larger than {self.max_order:g} shares"
        # An order that leads back towards flat is never refused for the position it leaves.
        if self.max_position is not None and size * reachable > 0 and abs(reachable) > self.max_position:
            return f"could take the position beyond {self.max_position:g} shares"
        return ""


@dataclass(frozen=True)
class NoLimits(RiskLimits):
    """No order is refused for its size or for the position that it leads to."""


def choose_fills(
    given: FillRule | Sequence[FillRule] | None, default: tuple[FillRule, ...]
) -> tuple[FillRule, ...]:
    """The rules that were asked for, the rest from `default`; raises `UsageError` where one does not fit."""
    chosen = {rule.topic: rule for rule in default}
    known = frozenset[type]().union(*(rule.reads for rule in default))
    for rule in (given,) if isinstance(given, FillRule) else given or ():
        if not isinstance(rule, FillRule):
            raise UsageError(
                f"{rule!r} is not a fill rule.", remedy="Give objects such as tl.rules.TakerAtTouch()."
            )
        if rule.topic not in chosen or not rule.reads & known:
            fitting = ", ".join(type(each).__name__ for each in default)
            raise UsageError(
                f"The fill rule {type(rule).__name__} cannot read this data.", remedy=f"It takes {fitting}."
            )
        chosen[rule.topic] = rule
    return tuple(chosen.values())
