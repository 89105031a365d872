"""What a user asks of history, with every word of it checked before anything is sent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

from tapelab.errors import BadRange, UnknownName, UsageError
from tapelab.market import ranges, sessions, symbols
from tapelab.market.adjust import ADJUSTMENTS, Adjustment
from tapelab.market.intervals import Base, Interval
from tapelab.market.ranges import Moment, Range
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market, Symbol
from tapelab.massive.wire.catalogue import CATALOGUE, kind_named, product_of
from tapelab.store.lake.ticks import Kind

if TYPE_CHECKING:
    from tapelab.market.bars import Hours

Method = Literal["auto", "rest", "flat_file", "cheapest"]
METHODS: tuple[Method, ...] = ("auto", "rest", "flat_file", "cheapest")
HOURS: tuple[Hours, ...] = ("all", "regular")

_Word = TypeVar("_Word", bound=str)


@dataclass(frozen=True)
class Request:
    """Bars of some symbols over a range, and how to get and shape them."""

    symbols: tuple[Symbol, ...]
    range: Range
    interval: Interval
    method: Method = "auto"
    adjust: Adjustment = "splits"
    hours: Hours = "all"
    fallback: bool = True

    @property
    def market(self) -> Market:
        return self.range.market

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(symbol.text for symbol in self.symbols)

    @property
    def base(self) -> Base:
        """The raw bars that the answer is made of; a day of regular hours is made of its minutes."""
        return "1m" if self.hours == "regular" and self.interval.text == "1d" else self.interval.base

    @property
    def product(self) -> str | None:
        """The flat files that hold the base bars; None where the vendor has none."""
        known = product_of(self.market, self.base)
        return known.name if known else None

    @property
    def needs_splits(self) -> bool:
        return self.adjust != "none" and self.market is Market.STOCKS

    @property
    def needs_dividends(self) -> bool:
        return self.adjust == "all" and self.market is Market.STOCKS


class Asked(Protocol):
    """What the plan has to know of a question: bars (`Request`) or ticks (`TickRequest`)."""

    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def range(self) -> Range: ...
    @property
    def market(self) -> Market: ...
    @property
    def base(self) -> str:
        """`1s`, `1m`, `1d`, `trades` or `quotes`."""

    @property
    def product(self) -> str | None: ...
    @property
    def method(self) -> str: ...
    @property
    def fallback(self) -> bool: ...


@dataclass(frozen=True)
class TickRequest:
    """Trades or quotes of some symbols over a range, and how to get them."""

    symbols: tuple[Symbol, ...]
    range: Range
    base: Kind
    method: Method = "auto"
    fallback: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(symbol.text for symbol in self.symbols)

    @property
    def market(self) -> Market:
        return self.range.market

    @property
    def product(self) -> str | None:
        """The flat files that hold these ticks."""
        known = product_of(self.market, self.base)
        return known.name if known else None

    def window(self, session: Session) -> tuple[int, int]:
        """The part of a session's calendar day that was asked for: a file holds the whole day."""
        following = date.fromordinal(session.date.toordinal() + 1)
        begin = sessions.day_start(self.market, session.date)
        end = sessions.day_start(self.market, following)
        return max(begin, self.range.start), min(end, self.range.end)


def parse(
    symbols_: str | Symbol | Sequence[str],
    start: Moment,
    end: Moment,
    interval: str | Interval,
    method: str,
    adjust: str,
    hours: str,
    fallback: bool,
) -> Request:
    """A request from a user's words. Raises `UsageError` (or a child of it) that says which word is wrong."""
    bar = Interval.parse(interval)
    asked = symbols.parse_all(symbols_)
    way = _one_of("method", method, METHODS)
    part = _one_of("kind of hours", hours, HOURS)
    adjustment = _one_of("adjustment", adjust, ADJUSTMENTS)
    if part == "regular" and bar.text in ("1w", "1mo"):
        raise UsageError(
            f"Regular hours have no {bar} bars.", remedy="Ask for all hours, or for 1d and shorter."
        )
    range_ = ranges.resolve(start, end, asked[0].market)
    if bar.text in ("1w", "1mo"):
        range_ = _whole_periods(range_, bar)
    found = Request(tuple(asked), range_, bar, way, adjustment, part, fallback)
    since = kind_named(found.product).since if found.product else range_.first
    if range_.last < since:
        raise BadRange(
            f"The vendor's history of {found.market} begins on {since}, and the range ends on {range_.last}.",
            remedy="Ask for later days.",
            since=str(since),
        )
    return found


def parse_ticks(
    kind: Kind,
    symbols_: str | Symbol | Sequence[str],
    start: Moment,
    end: Moment,
    method: str,
    fallback: bool,
) -> TickRequest:
    """The same for trades or quotes."""
    asked = symbols.parse_all(symbols_)
    market, way = asked[0].market, _one_of("method", method, METHODS)
    if product_of(market, kind) is None:
        files = [name for name, known in CATALOGUE.items() if known.market is market and not known.bars]
        raise UsageError(f"The vendor has no {kind} of {market}.", remedy=f"It has {', '.join(files)}.")
    return TickRequest(tuple(asked), ranges.resolve(start, end, market), kind, way, fallback)


def _whole_periods(range_: Range, interval: Interval) -> Range:
    """Weeks (from Sunday) and months that a range touches are given whole, as the vendor does."""
    first, last = range_.first, range_.last
    if interval.text == "1w":
        first -= timedelta(days=first.isoweekday() % 7)
        last += timedelta(days=6 - last.isoweekday() % 7)
    else:
        first = first.replace(day=1)
        last = date(last.year + last.month // 12, last.month % 12 + 1, 1) - timedelta(days=1)
    return ranges.resolve(first, last, range_.market)


def _one_of(kind: str, given: str, known: Sequence[_Word]) -> _Word:
    for word in known:
        if word == given:
            return word
    raise UnknownName.among(kind, str(given), known)
