"""What a result is worth, as pure functions on arrays; each docstring is the formula.

Money is in the currency of the prices, times are int64 ns UTC, sizes are signed (negative: sold).
Nothing is annualised but the Sharpe ratio, and that only from daily returns of enough sessions: ten
minutes, annualised, say nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tapelab.market.symbols import Market

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SHARPE_SESSIONS = 20  # fewer daily returns than this are not annualised
WEEKDAYS_PER_YEAR = 252  # less the holidays
SESSIONS_PER_YEAR = {Market.CRYPTO: 365}
MARK_OUTS = (1, 5, 30)  # seconds


class RoundTrip(NamedTuple):
    """From flat to flat in one symbol. `size` is the most that was held; negative: short."""

    symbol: str
    opened: int
    closed: int
    size: float
    entry: float
    exit: float
    gross: float
    fees: float
    net: float
    fills: int


def profit(equity: Floats) -> float:
    """Last equity − first equity, in money: after fees, open positions at their mark."""
    return float(equity[-1] - equity[0]) if len(equity) else 0.0


def basis_points(money: float, cash: float) -> float | None:
    """10,000 × money / cash; None without cash."""
    return 10_000 * money / cash if cash > 0 else None


def max_drawdown(equity: Floats) -> float:
    """The largest fall from a peak, in money: max over t of (max of equity up to t − equity at t)."""
    if len(equity) == 0:
        return 0.0
    return float(np.max(np.maximum.accumulate(equity) - equity))


def turnover(sizes: Floats, prices: Floats) -> float:
    """Money that changed hands: Σ |size| × price."""
    return float(np.sum(np.abs(sizes) * prices))


def hit_rate(nets: Floats) -> float | None:
    """Round trips with a profit after fees / round trips; None without any."""
    return float(np.mean(nets > 0)) if len(nets) else None


def t_statistic(nets: Floats) -> float | None:
    """mean / (standard deviation / √n) of the round trips after fees, n − 1 in the deviation.

    Beyond ±2 luck is an unlikely explanation, if the round trips are independent and this was the only
    thing tried. None below two round trips or when they are all equal.
    """
    if len(nets) < 2:
        return None
    spread = float(np.std(nets, ddof=1))
    return float(np.mean(nets)) / (spread / len(nets) ** 0.5) if spread > 0 else None


def mark_out(sizes: Floats, prices: Floats, later_mids: Floats) -> float | None:
    """Where the mid went after the fills, in basis points of their value: positive is in your favour.

    10,000 × Σ size × (mid some seconds later − price) / Σ |size| × price, over the fills whose later mid is
    known (not NaN). None without any.
    """
    known = ~np.isnan(later_mids)
    if not known.any():
        return None
    gained = np.sum(sizes[known] * (later_mids[known] - prices[known]))
    return float(10_000 * gained / turnover(sizes[known], prices[known]))


def spread_captured(sizes: Floats, prices: Floats, mids: Floats) -> float | None:
    """Σ size × (mid at the fill − price), in money: negative is spread that was paid.

    Over the fills whose mid is known (not NaN); None without any.
    """
    known = ~np.isnan(mids)
    return float(np.sum(sizes[known] * (mids[known] - prices[known]))) if known.any() else None


def time_in_market(symbols: list[str], stamps: Ints, positions: Floats, start: int, end: int) -> float:
    """Time with any position / time from `start` to `end`; `positions` are those after each fill."""
    if end <= start:
        return 0.0
    held: dict[str, float] = {}
    invested, since = 0, start
    for symbol, stamp, position in zip(symbols, stamps.tolist(), positions.tolist(), strict=True):
        invested += (stamp - since) if held else 0
        since = stamp
        held[symbol] = position
        if not position:
            del held[symbol]
    invested += (end - since) if held else 0
    return invested / (end - start)


def max_inventory(positions: Floats) -> float:
    """The most shares held in one symbol, long or short: max |position|."""
    return float(np.max(np.abs(positions))) if len(positions) else 0.0


def daily_returns(closes: Floats, cash: float) -> Floats:
    """equity at the session's end / equity at the end of the one before − 1; the first against `cash`."""
    before: Floats = np.concatenate([[cash], closes[:-1]])
    returns: Floats = closes / before - 1
    return returns


def sharpe(returns: Floats, per_year: int = WEEKDAYS_PER_YEAR) -> tuple[float | None, str]:
    """√(sessions a year) × mean / standard deviation of daily returns (n − 1), no risk-free rate.

    252 sessions, 365 where weekends are traded (crypto). With it, why it is None.
    """
    if len(returns) < SHARPE_SESSIONS:
        few = f"{len(returns)} session{'s' if len(returns) != 1 else ''}"
        return None, f"Needs daily returns of at least {SHARPE_SESSIONS} sessions; this is {few}."
    spread = float(np.std(returns, ddof=1))
    if not spread > 0:
        return None, "The equity did not move."
    return float(np.mean(returns) / spread * per_year**0.5), ""


def round_trips(
    symbols: list[str], stamps: Ints, sizes: Floats, prices: Floats, fees: Floats
) -> list[RoundTrip]:
    """Every stretch from flat to flat, in the order in which they closed.

    entry = Σ price × size / Σ size over the fills that opened or added, exit over those that reduced;
    gross = money that came back − money that went in; net = gross − fees. A fill that turns long into short
    closes one trip and opens the next, its fee shared by size. What is still open is not among them.
    """
    done: list[RoundTrip] = []
    running: dict[str, _Trip] = {}
    rows = zip(symbols, stamps.tolist(), sizes.tolist(), prices.tolist(), fees.tolist(), strict=True)
    for symbol, stamp, size, price, fee in rows:
        trip = running.setdefault(symbol, _Trip(stamp))
        closing = -trip.held if trip.held * size < 0 and abs(size) > abs(trip.held) else size
        trip.add(closing, price, fee * closing / size)
        if trip.held == 0:
            done.append(trip.ended(symbol, stamp))
            del running[symbol]
            rest = round(size - closing, _DIGITS)
            if rest:
                running[symbol] = trip = _Trip(stamp)
                trip.add(rest, price, fee * rest / size)
    return done


def average_price(sizes: Floats, prices: Floats) -> float:
    """What the position that `sizes` leave was opened at: Σ price × size / Σ size since it was last flat.

    Fills that reduce a position leave its average price as it is.
    """
    held = cost = 0.0
    for size, price in zip(sizes.tolist(), prices.tolist(), strict=True):
        if held * size < 0:
            cost = cost * (1 + size / held) if abs(size) <= abs(held) else (held + size) * price
        else:
            cost += size * price
        held = round(held + size, _DIGITS)
    return cost / held if held else float("nan")


_DIGITS = 9  # as the broker's sizes


class _Trip:
    def __init__(self, opened: int) -> None:
        self.opened = opened
        self.held = self.most = self.fees = 0.0
        self.sizes = [0.0, 0.0]  # in, out
        self.money = [0.0, 0.0]
        self.fills = 0

    def add(self, size: float, price: float, fee: float) -> None:
        way = int(self.held * size < 0)
        self.sizes[way] += abs(size)
        self.money[way] += abs(size) * price
        self.held = round(self.held + size, _DIGITS)
        self.most = self.held if abs(self.held) > abs(self.most) else self.most
        self.fees += fee
        self.fills += 1

    def ended(self, symbol: str, closed: int) -> RoundTrip:
        entry, left = (money / size for money, size in zip(self.money, self.sizes, strict=True))
        gross = (self.money[1] - self.money[0]) * (1 if self.most > 0 else -1)
        return RoundTrip(
            symbol,
            self.opened,
            closed,
            self.most,
            entry,
            left,
            gross,
            self.fees,
            gross - self.fees,
            self.fills,
        )
