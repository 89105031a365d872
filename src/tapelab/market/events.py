"""A quote, a trade, a bar and a gap as objects: what a strategy's callbacks are given."""

from __future__ import annotations

from typing import NamedTuple


class Quote(NamedTuple):
    """The best bid and offer of a symbol at a moment.

    Times are int64 ns UTC: `ts_event` by the exchange's (SIP) clock, `ts_recv` by ours at arrival
    (None where we were not there); `arrival` orders events across channels. A side that is empty has
    price None and size 0.
    """

    symbol: str
    ts_event: int
    ts_recv: int | None
    arrival: int
    bid: float | None
    ask: float | None
    bid_size: float
    ask_size: float

    @property
    def mid(self) -> float | None:
        """Halfway between bid and ask; None while a side is empty."""
        return None if self.bid is None or self.ask is None else (self.bid + self.ask) / 2


class Trade(NamedTuple):
    """One print on the tape: `size` shares at `price`.

    Times and `arrival` as in `Quote`. `off_exchange`: reported by a TRF, so no displayed queue traded.
    """

    symbol: str
    ts_event: int
    ts_recv: int | None
    arrival: int
    price: float
    size: float
    exchange: int | None
    conditions: tuple[int, ...]
    off_exchange: bool


class Bar(NamedTuple):
    """OHLCV over an interval: stamped with its start, known only at its end.

    `timestamp` (the start) and `ends` are int64 ns UTC. `vwap` and `transactions` are None where the source
    does not have them.
    """

    symbol: str
    timestamp: int
    ends: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float | None
    transactions: int | None


class Gap(NamedTuple):
    """A stretch that a recording knows it lost: from `start` to `end` (ns UTC), and why.

    `channels` and `symbols` say of what; no symbol named means all that were subscribed.
    """

    start: int
    end: int
    cause: str
    channels: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()


Event = Quote | Trade | Bar
