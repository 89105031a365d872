"""Small tapes written by hand, for the tests of the lab."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from tapelab.lab import Strategy
from tapelab.market import tables
from tapelab.market.clock import MILLISECOND, MINUTE
from tapelab.market.events import Bar, Event, Quote, Trade

OPEN = 1_381_325_400_000_000_000  # 2013-10-09 09:30 in New York


def quote(
    ms: float,
    bid: float | None,
    ask: float | None,
    bid_size: float = 1000,
    ask_size: float = 1000,
    symbol: str = "AAA",
) -> Quote:
    at = OPEN + round(ms * MILLISECOND)
    return Quote(symbol, at, at, 0, bid, ask, bid_size, ask_size)


def trade(
    ms: float,
    price: float,
    size: float = 100,
    *,
    off_exchange: bool = False,
    conditions: tuple[int, ...] = (),
    symbol: str = "AAA",
) -> Trade:
    at = OPEN + round(ms * MILLISECOND)
    return Trade(symbol, at, at, 0, price, size, 11, conditions, off_exchange)


def bar(
    minute: int,
    open_: float,
    high: float,
    low: float,
    close: float,
    volume: float | None = 10_000,
    symbol: str = "AAA",
) -> Bar:
    start = OPEN + minute * MINUTE
    return Bar(symbol, start, start + MINUTE, open_, high, low, close, volume or 0.0, None, None)


def tape(*events: Event, received: bool = True) -> dict[str, pa.Table]:
    """The events as tables; their order is the order of arrival."""
    quotes: list[dict[str, Any]] = []
    trades: list[dict[str, Any]] = []
    bars: list[dict[str, Any]] = []
    for arrival, event in enumerate(events):
        row: dict[str, Any] = {**event._asdict(), "arrival": arrival}
        if not received:
            row["ts_recv"] = None
        if isinstance(event, Quote):
            quotes.append(row)
        elif isinstance(event, Trade):
            trades.append(
                row | {"trf_id": 201 if event.off_exchange else None, "conditions": list(event.conditions)}
            )
        else:
            bars.append(row)
    found = {"quotes": quotes, "trades": trades, "bars": bars}
    return {kind: table(kind, rows) for kind, rows in found.items() if rows}


def table(kind: str, rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = [name for name in tables.SCHEMAS[kind].names if any(name in row for row in rows)]
    columns = {name: [row.get(name) for row in rows] for name in names}
    schema = pa.schema([tables.SCHEMAS[kind].field(name) for name in names])
    return pa.table(columns, schema=schema)


class Script(Strategy):
    """Does what a test says, event by event: `plan[n]` is called at the n-th event, counted from 1."""

    plan: Any = None

    def on_start(self) -> None:
        self.seen = 0

    def on_quote(self, quote: Quote) -> None:
        self.step()

    def on_trade(self, trade: Trade) -> None:
        self.step()

    def on_bar(self, bar: Bar) -> None:
        self.step()

    def step(self) -> None:
        self.seen += 1
        if self.seen in self.plan:
            self.plan[self.seen](self)


def script(**plan: Any) -> Script:
    """`script(at_1=lambda s: s.buy("AAA", 100))`."""
    return Script(plan={int(name.removeprefix("at_")): act for name, act in plan.items()})


def bought(result: Any) -> list[tuple[float, float, float]]:
    """The fills of a result as (ms after the open, signed size, price)."""
    rows = result.tables["fills"].to_pylist()
    return [((row["timestamp"] - OPEN) / MILLISECOND, row["size"], row["price"]) for row in rows]
