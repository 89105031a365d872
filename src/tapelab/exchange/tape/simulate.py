"""A market with known truth, on the exchange's own test symbols: seeded, the same on every machine.

It is there to try programs, not ideas: what a strategy earns here says nothing about any real market. Its
truth: ZVZZT and ZWZZT follow one price and a spread that returns to its mean within minutes; sizes and prints
lean the way the price goes in the next seconds; events come in bursts, most at the open and the close.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapelab.market import sessions, tables
from tapelab.market.clock import MICROSECOND, MILLISECOND, MINUTE, SECOND
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Drawn = TypeVar("Drawn", Floats, npt.NDArray[np.int16])

LAST_SESSION = date(2026, 10, 9)
SESSIONS = 10
SEED = 7


@dataclass(frozen=True)
class Instrument:
    """One test symbol: about where it trades (dollars), how wide (cents), and how often on a day."""

    symbol: str
    price: float
    spread: float
    quotes: int
    trades: int
    beta: float  # how it follows the market
    own: float  # its own daily volatility
    leans: float = 0.0  # its part of the pair's spread


INSTRUMENTS = (
    Instrument("ZJZZT", 181.40, 4.0, 25_000, 6_000, beta=0.8, own=0.012),
    Instrument("ZVZZT", 25.30, 1.3, 40_000, 11_000, beta=1.2, own=0.0002),
    Instrument("ZWZZT", 41.75, 1.6, 38_000, 10_000, beta=1.2, own=0.0002, leans=1.0),
    Instrument("ZXZZT", 96.20, 2.4, 35_000, 10_000, beta=0.5, own=0.010),
)

# Daily volatilities, and the pair's spread: its size and how fast half of it is gone.
MARKET_VOLATILITY = 0.012
OVERNIGHT = 0.4
PAIR_SPREAD = 0.0018
PAIR_HALF_LIFE = 30 * 60.0  # seconds

# Bursts: each event brings on this many others on average, within about this time.
OFFSPRING = 0.45
BURST = 1.5  # seconds

EXTENDED_SHARE = 0.04  # of the day's events come before the open or after the close
LOOK_AHEAD = 8  # seconds by which sizes and prints know where the price goes

LIT = np.array([12, 11, 8, 19, 21, 15], dtype=np.int16)  # Nasdaq, Arca, EDGX, BZX, MEMX, IEX
FINRA = 4
TRFS = np.array([201, 202], dtype=np.int16)
NASDAQ_LISTED = 3

OFF_EXCHANGE, ODD_LOT, SWEEP = 0.22, 0.34, 0.30  # shares of all prints
FORM_T, OPENING, CLOSING, SWEPT, ODD = 12, 25, 8, 14, 37  # sale conditions, in the order they are written
REGULAR_QUOTE = 1


class SimulatedMarket:
    """Sessions of a made-up market. The same seed gives the same ticks, whichever day is asked first."""

    def __init__(self, seed: int = SEED, *, last: date = LAST_SESSION, count: int = SESSIONS) -> None:
        self.seed = seed
        recent = sessions.between(Market.STOCKS, last - timedelta(days=2 * count + 10), last)
        self.sessions = recent[-count:]
        self._levels = self._daily_levels()

    def ticks(self, day: date) -> tuple[pa.Table, pa.Table]:
        """Quotes and trades of one session, each sorted by symbol and time. `KeyError` on other days."""
        number = {s.date: n for n, s in enumerate(self.sessions)}[day]
        session = self.sessions[number]
        paths = _paths(np.random.default_rng([self.seed, 1, number]), session, self._levels[number])
        made = [
            _instrument_day(np.random.default_rng([self.seed, 2, number, n]), instrument, session, path)
            for n, (instrument, path) in enumerate(zip(INSTRUMENTS, paths, strict=True))
        ]
        quotes, trades = (tables.concat([pair[n] for pair in made], s) for n, s in enumerate(_SCHEMAS))
        return _numbered(quotes), _numbered(trades)

    def _daily_levels(self) -> list[tuple[Floats, Floats]]:
        """Log returns since the beginning, at each session's start and end: the market's, then each own."""
        rng = np.random.default_rng([self.seed, 0])
        scale = np.array([MARKET_VOLATILITY, *(i.own for i in INSTRUMENTS)])
        level = np.zeros(len(scale))
        levels = []
        for _ in self.sessions:
            start = level + OVERNIGHT * scale * rng.standard_normal(len(scale))
            level = start + scale * rng.standard_normal(len(scale))
            levels.append((start, level))
        return levels


_SCHEMAS = (tables.QUOTES, tables.TRADES)


def _paths(rng: np.random.Generator, session: Session, levels: tuple[Floats, Floats]) -> Iterator[Floats]:
    """Each instrument's fair price at every second of the session."""
    start, end = levels
    weight = _activity(session)
    market, *own = (
        _bridge(rng, weight, a, b, scale)
        for a, b, scale in zip(start, end, [MARKET_VOLATILITY, *(i.own for i in INSTRUMENTS)], strict=True)
    )
    spread = _returning(rng, len(weight), PAIR_SPREAD, PAIR_HALF_LIFE)
    for instrument, alone in zip(INSTRUMENTS, own, strict=True):
        yield instrument.price * np.exp(instrument.beta * market + alone + instrument.leans * spread)


def _bridge(rng: np.random.Generator, weight: Floats, start: float, end: float, scale: float) -> Floats:
    """A random walk from `start` to `end` whose variance is spread over the day as activity is."""
    elapsed = np.cumsum(weight)
    walk = np.cumsum(rng.standard_normal(len(weight)) * np.sqrt(weight)) * scale
    bridge: Floats = start + walk - elapsed * (walk[-1] - (end - start))
    return bridge


def _returning(rng: np.random.Generator, n: int, size: float, half_life: float) -> Floats:
    """A deviation that returns to zero (Ornstein-Uhlenbeck), one value a second."""
    rate = np.log(2) / half_life
    kicks = rng.standard_normal(n) * size * np.sqrt(2 * rate)
    kicks[0] = rng.standard_normal() * size
    growth = np.exp(rate * np.arange(n))
    deviation: Floats = np.cumsum(kicks * growth) / growth
    return deviation


@lru_cache(maxsize=2)
def _activity(session: Session) -> Floats:
    """The share of a day's events in each of its seconds: high at the open and the close, thin outside."""
    at = session.start + np.arange((session.end - session.start) // SECOND, dtype=np.int64) * SECOND
    since_open = (at - session.open) / MINUTE
    to_close = (session.close - at) / MINUTE
    inside = (since_open >= 0) & (to_close > 0)
    curve = 1 + 3.5 * np.exp(-since_open / 18) + 2.2 * np.exp(-to_close / 14)
    regular = np.where(inside, curve, 0.0)
    near = np.exp(-np.abs(np.where(since_open < 0, since_open, np.minimum(to_close, 0))) / 60)
    thin = np.where(inside, 0.0, 0.15 + near)
    share: Floats = regular / regular.sum() * (1 - EXTENDED_SHARE) + thin / thin.sum() * EXTENDED_SHARE
    return share


def _distinct(*instants: Ints) -> Ints:
    """In order of time, none twice (at these sizes sorting is quicker than numpy's hashing)."""
    ordered = np.sort(np.concatenate(instants))
    distinct: Ints = ordered[np.concatenate([[True], np.diff(ordered) > 0])]
    return distinct


def _arrivals(rng: np.random.Generator, session: Session, mean: int) -> Ints:
    """Instants of events (ns, none twice): a Hawkes process, built from families of events and offspring."""
    weight = _activity(session)
    founders = rng.poisson(mean * (1 - OFFSPRING))
    edges = np.concatenate([[0.0], np.cumsum(weight)])
    generation = np.interp(rng.random(founders), edges / edges[-1], np.arange(len(edges), dtype=np.float64))
    family = [generation]
    while len(generation):
        children = np.repeat(generation, rng.poisson(OFFSPRING, len(generation)))
        generation = children + rng.exponential(BURST, len(children))
        family.append(generation)
    instants = session.start + (np.concatenate(family) * SECOND).astype(np.int64)
    return _distinct(instants[instants < session.end - SECOND])


def _instrument_day(
    rng: np.random.Generator, instrument: Instrument, session: Session, fair: Floats
) -> tuple[pa.Table, pa.Table]:
    first = session.start + MILLISECOND * int(rng.integers(5, 400))
    at = _distinct(_arrivals(rng, session, instrument.quotes), np.array([first]))
    at = at[at >= first]
    lean = _lean(session, fair, at, instrument)
    bid, ask = _touches(rng, instrument, session, fair, at)
    prints = _Prints.made(rng, instrument, session, fair, at, bid, ask)
    order = np.argsort(np.concatenate([at, prints.at]), kind="stable")
    sequence = np.empty(len(order), dtype=np.int64)
    sequence[order] = np.cumsum(rng.integers(1, 4, len(order)))
    quotes = pa.table(
        {
            "ts_event": at,
            "symbol": _constant(instrument.symbol, len(at)),
            "bid": bid / 100,
            "ask": ask / 100,
            "bid_size": _sizes(rng, lean),
            "ask_size": _sizes(rng, -lean),
            "bid_exchange": _lasting(rng, LIT[rng.integers(0, len(LIT), len(at))], 0.3),
            "ask_exchange": _lasting(rng, LIT[rng.integers(0, len(LIT), len(at))], 0.3),
            "sequence": sequence[: len(at)],
            "conditions": _codes(np.ones((len(at), 1), dtype=np.bool_), [REGULAR_QUOTE]),
            "tape": np.full(len(at), NASDAQ_LISTED, dtype=np.int8),
            "ts_participant": at - _delay(rng, len(at)),
            "arrival": np.zeros(len(at), dtype=np.int64),
        }
    )
    return (
        tables.conform(quotes, tables.QUOTES),
        prints.table(rng, instrument.symbol, session, sequence[len(at) :]),
    )


def _touches(
    rng: np.random.Generator, instrument: Instrument, session: Session, fair: Floats, at: Ints
) -> tuple[Ints, Ints]:
    """Bid and ask in cents, at least one cent apart: wide at the open and outside regular hours."""
    since_open = (at - session.open) / MINUTE
    regular = (since_open >= 0) & (at < session.close)
    widening = np.where(regular, 1 + 3 * np.exp(-since_open / 6), 5.0)
    drawn = instrument.spread * np.exp(0.35 * rng.standard_normal(len(at)))
    width = np.maximum(1, np.rint(_lasting(rng, drawn, 0.12) * widening)).astype(np.int64)
    bid = np.rint(_price_at(session, fair, at) * 100 - width / 2).astype(np.int64)
    return bid, bid + width


def _lean(session: Session, fair: Floats, at: Ints, instrument: Instrument) -> Floats:
    """Where the price goes next, between -1 (down) and 1 (up)."""
    ahead = _price_at(session, fair, np.minimum(at + LOOK_AHEAD * SECOND, session.end - SECOND))
    lean: Floats = np.tanh((ahead - _price_at(session, fair, at)) * 100 / instrument.spread)
    return lean


@dataclass
class _Prints:
    at: Ints
    price: Ints  # cents
    size: Ints
    off_exchange: Mask
    opening: Mask
    closing: Mask

    @classmethod
    def made(
        cls,
        rng: np.random.Generator,
        instrument: Instrument,
        session: Session,
        fair: Floats,
        quoted: Ints,
        bid: Ints,
        ask: Ints,
    ) -> _Prints:
        """Prints at the touch, or inside it off exchange; always against the quote that stood before them."""
        opening = session.open + MILLISECOND * int(rng.integers(150, 900))
        closing = session.close + MILLISECOND * int(rng.integers(100, 600))
        arrivals = _arrivals(rng, session, instrument.trades)
        at = _distinct(arrivals[arrivals > quoted[0]], np.array([opening, closing]))
        # Regular trading begins with the opening cross and ends at the close.
        at = at[(at < session.open) | (at >= opening)]
        n = len(at)
        crosses = (at == opening) | (at == closing)
        standing = np.searchsorted(quoted, at, side="left") - 1
        bid, ask = bid[standing], ask[standing]
        buys = rng.random(n) < 0.5 + 0.3 * _lean(session, fair, at, instrument)
        off_exchange = (rng.random(n) < OFF_EXCHANGE) & ~crosses
        improved = (off_exchange & (ask - bid > 1)).astype(np.int64)
        price = np.where(buys, ask - improved, bid + improved)
        odd = rng.random(n) < ODD_LOT
        size = np.where(odd, rng.integers(1, 100, n), 100 * rng.geometric(0.45, n))
        size = np.where(crosses, 100 * rng.integers(80, 400, n), size)
        return cls(
            at, np.where(crosses, (bid + ask) // 2, price), size, off_exchange, at == opening, at == closing
        )

    def table(self, rng: np.random.Generator, symbol: str, session: Session, sequence: Ints) -> pa.Table:
        n = len(self.at)
        outside = ((self.at < session.open) | (self.at >= session.close)) & ~self.closing
        swept = (rng.random(n) < SWEEP) & ~self.off_exchange & ~self.opening & ~self.closing
        flags = np.column_stack([self.opening, self.closing, outside, swept, self.size < 100])
        lit = LIT[rng.integers(0, len(LIT), n)]
        trf = TRFS[rng.integers(0, len(TRFS), n)]
        reported = self.at - rng.integers(10, 60, n) * MICROSECOND
        made = reported - rng.integers(1, 300, n) * MILLISECOND
        trades = pa.table(
            {
                "ts_event": self.at,
                "symbol": _constant(symbol, n),
                "price": self.price / 100,
                "size": self.size.astype(np.float64),
                "exchange": np.where(self.off_exchange, FINRA, lit).astype(np.int16),
                "conditions": _codes(flags, [OPENING, CLOSING, FORM_T, SWEPT, ODD]),
                "sequence": sequence,
                "id": pa.array(np.arange(1, n + 1).astype(str), pa.string()),
                "tape": np.full(n, NASDAQ_LISTED, dtype=np.int8),
                "correction": np.zeros(n, dtype=np.int8),
                "ts_participant": np.where(self.off_exchange, made, self.at - _delay(rng, n)),
                "trf_id": pa.array(trf, mask=~self.off_exchange),
                "ts_trf": pa.array(reported, mask=~self.off_exchange),
                "arrival": np.zeros(n, dtype=np.int64),
            }
        )
        return tables.conform(trades, tables.TRADES)


def _price_at(session: Session, fair: Floats, at: Ints) -> Floats:
    price: Floats = np.interp((at - session.start) / SECOND, np.arange(len(fair), dtype=np.float64), fair)
    return price


def _sizes(rng: np.random.Generator, lean: Floats) -> Floats:
    """Displayed shares in round lots; more on the side that the price leans away from."""
    lots = np.exp(0.9 + 0.7 * lean + 0.6 * rng.standard_normal(len(lean)))
    shares: Floats = 100 * np.maximum(1, np.rint(lots))
    return shares


def _lasting(rng: np.random.Generator, drawn: Drawn, chance: float) -> Drawn:
    """Values that stay until, by `chance` at each event, a new one is drawn."""
    fresh = np.where(rng.random(len(drawn)) < chance, np.arange(len(drawn)), 0)
    kept: Drawn = drawn[np.maximum.accumulate(fresh)]
    return kept


def _delay(rng: np.random.Generator, n: int) -> Ints:
    """From the exchange's clock to the SIP's, ns."""
    delay: Ints = 150_000 + rng.exponential(200_000, n).astype(np.int64)
    return delay


def _codes(flags: Mask, codes: list[int]) -> pa.Array:
    """For each row the codes whose flag is set; null where none is."""
    values = np.array(codes, dtype=np.int16)[np.nonzero(flags)[1]]
    counts = flags.sum(axis=1)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(counts == 0))


def _constant(text: str, n: int) -> pa.Array:
    return pa.repeat(pa.scalar(text, pa.string()), n)


def _numbered(table: pa.Table) -> pa.Table:
    index = table.column_names.index("arrival")
    return table.set_column(index, table.schema.field(index), pa.array(np.arange(len(table), dtype=np.int64)))
