"""Split and dividend factors: one function, applied on reading, the same whatever the route.

Prices before an ex-date are multiplied by the factors of everything that came after it; volumes by split
factors only. A factor steps at the start of the ex-date's session: that session's first bar, before the open,
is already in new shares. Factors are applied to raw base bars, before weeks or months are made of them.

A split of `split_from` for `split_to` multiplies earlier prices by `split_from / split_to` and earlier
volumes by the inverse. A cash dividend multiplies earlier prices by `1 - cash / close`, where `close` is the
raw close (the vendor's day bar: the official one) of the last session before the ex-date, and `cash` is the
amount as it was declared: both in the shares of that day. Dividends that share an ex-date are added first.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Adjustment = Literal["none", "splits", "all"]
ADJUSTMENTS: tuple[Adjustment, ...] = ("none", "splits", "all")

CURRENCY = "USD"  # what US stocks are quoted in

NEAR = timedelta(days=14)  # closes further from an ex-date than this say nothing about it
REPEATED_WITHIN = timedelta(days=60)  # the same split twice in this time is one that was recorded twice
JUDGED_FROM = math.log(1.4)  # a smaller factor cannot be told from a day's news
LARGEST_NEWS = math.log(1.9)  # beyond its factor a price hardly moves more than this in a session
ABSURD = math.log(150.0)  # larger splits are looked at before they are believed

_PRICES = ("open", "high", "low", "close", "vwap")


@dataclass(frozen=True)
class Split:
    """`split_from` old shares became `split_to` new ones from the start of `execution_date`'s session.

    `historical_adjustment_factor` is the vendor's own product of this and all later factors, where it says.
    """

    symbol: str
    execution_date: date
    split_from: float
    split_to: float
    historical_adjustment_factor: float | None = None

    @property
    def day(self) -> date:
        return self.execution_date

    @property
    def factor(self) -> float:
        """What prices before it are multiplied by: 0.25 for a 4:1 split."""
        return self.split_from / self.split_to

    def __str__(self) -> str:
        return f"the {self.split_to:g}:{self.split_from:g} split of {self.execution_date}"


@dataclass(frozen=True)
class Dividend:
    """`cash_amount` a share for those who held it before `ex_dividend_date`, in the shares of that day."""

    symbol: str
    ex_dividend_date: date
    cash_amount: float
    currency: str = CURRENCY
    historical_adjustment_factor: float | None = None

    @property
    def day(self) -> date:
        return self.ex_dividend_date

    def __str__(self) -> str:
        return f"the dividend of {self.cash_amount:g} {self.currency} of {self.ex_dividend_date}"


@dataclass(frozen=True)
class Payout:
    """The cash of an ex-date beside the raw close of the last session before it."""

    symbol: str
    day: date
    cash: float
    close: float
    historical_adjustment_factor: float | None = None

    @property
    def factor(self) -> float:
        """What prices before it are multiplied by."""
        return 1 - self.cash / self.close

    def __str__(self) -> str:
        return f"the dividend of {self.cash:g} of {self.day}"


@dataclass(frozen=True)
class Doubt:
    """A split or dividend that cannot be right, and why."""

    symbol: str
    kind: Literal["splits", "dividends"]
    day: date
    why: str


class Closes:
    """The last raw price of each symbol and session of some bars, of days or of less."""

    def __init__(self, bars: pa.Table) -> None:
        ordered = bars.select(["symbol", "session", "timestamp", "close"]).sort_by(
            [("symbol", "ascending"), ("timestamp", "ascending")]
        )
        last = ordered.group_by(["symbol", "session"], use_threads=False).aggregate([("close", "last")])
        found: dict[str, dict[date, float]] = {}
        columns = (last[name].to_pylist() for name in ("symbol", "session", "close_last"))
        for symbol, day, close in zip(*columns, strict=True):
            if close:
                found.setdefault(symbol, {})[day] = close
        self._closes = {symbol: dict(sorted(closes.items())) for symbol, closes in found.items()}
        self._days = {symbol: list(closes) for symbol, closes in self._closes.items()}

    def before(self, symbol: str, day: date) -> tuple[date, float] | None:
        """The last close before a day, if there is one near it."""
        days = self._days.get(symbol, [])
        place = bisect_left(days, day) - 1
        if place < 0 or day - days[place] > NEAR:
            return None
        return days[place], self._closes[symbol][days[place]]

    def on(self, symbol: str, day: date) -> tuple[date, float] | None:
        """The first close on or after a day, if there is one near it."""
        days = self._days.get(symbol, [])
        place = bisect_left(days, day)
        if place == len(days) or days[place] - day > NEAR:
            return None
        return days[place], self._closes[symbol][days[place]]


def apply(bars: pa.Table, splits: Sequence[Split], payouts: Sequence[Payout] = ()) -> pa.Table:
    """Raw bars with every price and volume in the shares of today, and with payouts taken out of prices.

    Give all that is known of the symbols, also what came after the last bar; what lies before a bar leaves it
    as it is. Nothing is rounded.
    """
    if len(bars) == 0 or not (splits or payouts):
        return bars
    price, volume = factors(bars, splits, payouts)
    for name in _PRICES:
        bars = _scaled(bars, name, price)
    return _scaled(bars, "volume", volume)


def factors(
    bars: pa.Table, splits: Sequence[Split], payouts: Sequence[Payout] = ()
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each bar what its prices and its volume are multiplied by: the product over all later events."""
    sessions = bars.column("session").to_numpy().astype("datetime64[D]")
    names = pc.dictionary_encode(bars.column("symbol")).combine_chunks()
    codes, known = names.indices.to_numpy(), names.dictionary.to_pylist()
    price, volume = np.ones(len(bars)), np.ones(len(bars))
    events: list[Split | Payout] = [*splits, *payouts]
    for symbol, mine in groupby(sorted(events, key=attrgetter("symbol")), key=attrgetter("symbol")):
        if symbol not in known:
            continue
        rows = np.flatnonzero(codes == known.index(symbol))
        for event in mine:
            before = rows[sessions[rows] < np.datetime64(event.day)]
            price[before] *= event.factor
            if isinstance(event, Split):
                volume[before] *= event.split_to / event.split_from
    return price, volume


def payouts(dividends: Iterable[Dividend], closes: Closes) -> list[Payout]:
    """Each ex-date's cash beside the close before it, `closes` being of raw day bars.

    A dividend without a close near before it is left out.
    """
    found = []
    ordered = sorted(dividends, key=lambda dividend: (dividend.symbol, dividend.day))
    for (symbol, day), same in groupby(ordered, key=lambda dividend: (dividend.symbol, dividend.day)):
        of_day = list(same)
        cash = sum(dividend.cash_amount for dividend in of_day)
        before = closes.before(symbol, day)
        if cash and before is not None:
            found.append(Payout(symbol, day, cash, before[1], of_day[0].historical_adjustment_factor))
    return found


def shows(event: Split | Payout) -> bool:
    """Whether it is large enough to be seen in prices, or has no sense at all."""
    return event.factor <= 0 or abs(math.log(event.factor)) >= JUDGED_FROM


def suspects(splits: Sequence[Split]) -> list[Split]:
    """Splits that look wrong in the list alone: recorded twice, none at all, or enormous."""
    found = []
    for split in splits:
        size = abs(math.log(split.factor))
        twin = any(
            other is not split
            and other.symbol == split.symbol
            and math.isclose(other.factor, split.factor)
            and abs(other.day - split.day) <= REPEATED_WITHIN
            for other in splits
        )
        if twin or size == 0 or size > ABSURD:
            found.append(split)
    return found


def doubts(splits: Sequence[Split], payouts: Sequence[Payout], closes: Closes) -> list[Doubt]:
    """What cannot be right, by raw closes on both sides of each date.

    All splits between two closes together must explain how the price moved. What `closes` does not reach is
    not judged, but a split that is listed twice is refused without a price.
    """
    found: list[Doubt] = []
    for (symbol, _, _), same in _between_closes(splits, closes).items():
        day, factor = same[0].day, math.prod(split.factor for split in same)
        times = max(Counter((split.day, split.split_from, split.split_to) for split in same).values())
        moved, seen = _moved(symbol, day, closes)
        named = " and ".join(map(str, same)) if times == 1 else f"{same[0]}, listed {times} times,"
        if times > 1 and (moved is None or not _explains(factor, moved)):
            found.append(Doubt(symbol, "splits", day, f"{named} is in the vendor's list. {seen}".strip()))
        elif any(split.factor == 1 for split in same):
            found.append(Doubt(symbol, "splits", day, f"{named} changes nothing."))
        elif moved is not None and not _explains(factor, moved):
            found.append(Doubt(symbol, "splits", day, f"{named} is not in the raw prices. {seen}"))
    for split in suspects(splits):
        judged = any(doubt.symbol == split.symbol for doubt in found)
        if not judged and _moved(split.symbol, split.day, closes)[0] is None:
            why = f"{split} looks wrong, and there are no raw prices around it to compare with."
            found.append(Doubt(split.symbol, "splits", split.day, why))
    for payout in payouts:
        moved, seen = _moved(payout.symbol, payout.day, closes)
        at = f"{payout}, on a close of {payout.close:g},"
        if not 0 < payout.factor <= 1:
            found.append(Doubt(payout.symbol, "dividends", payout.day, f"{at} leaves no price."))
        elif moved is None or any((s.symbol, s.day) == (payout.symbol, payout.day) for s in splits):
            continue  # of a day that also had a split, prices tell too little
        elif not _explains(payout.factor, moved):
            why = f"{at} is not in the raw prices. {seen}"
            found.append(Doubt(payout.symbol, "dividends", payout.day, why))
    return found


def disagreements(events: Sequence[Split | Payout]) -> list[str]:
    """Where the vendor's `historical_adjustment_factor` says something else than our factor of that date.

    The vendor's is a product over all later events, so two that follow each other give the factor of one
    date; the last is not compared if a later one is not listed.
    """
    found = []
    for symbol, mine in groupby(sorted(events, key=attrgetter("symbol", "day")), key=attrgetter("symbol")):
        later: float | None = 1.0
        of_days = [list(same) for _, same in groupby(mine, key=attrgetter("day"))]
        for same in reversed(of_days):
            theirs = same[0].historical_adjustment_factor
            ours = math.prod(event.factor for event in same)
            if theirs is not None and later and abs(theirs / later - ours) > 1e-4 + 0.05 * abs(1 - ours):
                found.append(
                    f"{symbol}: the vendor's own factor for {same[0]} is {theirs / later:.6g}, "
                    f"ours is {ours:.6g}."
                )
            later = theirs
    return found


def _between_closes(
    splits: Sequence[Split], closes: Closes
) -> dict[tuple[str, date | None, date], list[Split]]:
    """Splits that lie between the same two closes; those that lie between none, by their date."""
    found: dict[tuple[str, date | None, date], list[Split]] = {}
    for split in sorted(splits, key=attrgetter("symbol", "day")):
        before, after = closes.before(split.symbol, split.day), closes.on(split.symbol, split.day)
        key = (split.symbol, before[0], after[0]) if before and after else (split.symbol, None, split.day)
        found.setdefault(key, []).append(split)
    return found


def _moved(symbol: str, day: date, closes: Closes) -> tuple[float | None, str]:
    """How the raw price moved over a date, and that in words; None where nobody knows."""
    before, after = closes.before(symbol, day), closes.on(symbol, day)
    if before is None or after is None:
        return None, ""
    seen = f"They closed at {before[1]:g} on {before[0]} and at {after[1]:g} on {after[0]}."
    return after[1] / before[1], seen


def _explains(factor: float, moved: float) -> bool:
    """Whether a price that moved so had this factor in it, rather than none or another."""
    size, rest = abs(math.log(factor)), abs(math.log(moved / factor))
    return size < JUDGED_FROM or rest <= min(size / 2, LARGEST_NEWS)


def _scaled(bars: pa.Table, name: str, factor: npt.NDArray[np.float64]) -> pa.Table:
    column = bars.column(name)
    missing = column.is_null().to_numpy()
    values = column.to_numpy() * factor
    scaled = pa.array(values, pa.float64(), mask=missing)
    return bars.set_column(bars.column_names.index(name), bars.schema.field(name), scaled)
