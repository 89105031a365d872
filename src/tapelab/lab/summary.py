"""What happened in a run, summed up: tables, metrics, description, recipe."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tapelab.lab import loop, metrics, result, rules, sources
from tapelab.lab.assumed import assumed
from tapelab.lab.broker import Broker, Fill, Position
from tapelab.lab.result import Result
from tapelab.lab.strategy import Strategy
from tapelab.market.clock import iso

CHARTED_SYMBOLS = 8  # whose prices a result keeps: the ones with the most fills


def summed_up(
    strategy: Strategy,
    source: sources.Source,
    broker: Broker,
    record: loop.Record,
    used: list[rules.Rule],
    cash: float,
    unit: str,
) -> Result:
    """The result of a run, with its metrics and everything that it takes for granted."""
    fills = _fills_table(record)
    trips = metrics.round_trips(
        fills.column("symbol").to_pylist(),
        fills.column("timestamp").to_numpy(),
        *(fills.column(name).to_numpy() for name in ("size", "price", "fee")),
    )
    tables = {
        "equity": _equity_table(record),
        "fills": fills,
        "round_trips": pa.Table.from_pylist([trip._asdict() for trip in trips], result.ROUND_TRIPS),
        "positions": _positions_table(broker),
        "prices": source.prices(_charted(source, broker.fills)).rename_columns(result.PRICES.names),
    }
    per_year = metrics.SESSIONS_PER_YEAR.get(source.market, metrics.WEEKDAYS_PER_YEAR)
    numbers, notes = _metrics(tables, record, broker, cash, per_year)
    name = type(strategy).__name__
    dataset = _describe(source, record)
    return Result(
        name,
        _plain(strategy.params),
        dataset,
        numbers,
        notes,
        tuple(rule.assumption for rule in used) + assumed(strategy, source, broker, record, unit),
        {
            "tapelab": importlib.metadata.version("tapelab"),
            "strategy": {"class": name, **_where(type(strategy))},
            "params": _plain(strategy.params),
            "data": {key: dataset[key] for key in ("name", "version", "symbols", "start", "end")},
            "cash": cash,
            "rules": [rule.recipe for rule in used],
        },
        tables,
    )


def _metrics(
    tables: dict[str, pa.Table], record: loop.Record, broker: Broker, cash: float, per_year: int
) -> tuple[dict[str, float | int | None], dict[str, str]]:
    fills, trips = tables["fills"], tables["round_trips"]
    sizes, prices, positions = (fills.column(n).to_numpy() for n in ("size", "price", "position"))
    nets = trips.column("net").to_numpy()
    equity = tables["equity"].column("equity").to_numpy()
    profit = metrics.profit(equity)
    closes = np.array(record.curve.closes)
    returns = metrics.daily_returns(closes, cash) if cash else None
    sharpe, why = (None, "There is no cash.") if returns is None else metrics.sharpe(returns, per_year)
    turnover = metrics.turnover(sizes, prices)
    numbers: dict[str, float | int | None] = {
        "profit": profit,
        "profit_bp": metrics.basis_points(profit, cash),
        "final_equity": broker.equity(),
        "max_drawdown": metrics.max_drawdown(equity),
        "sharpe": sharpe,
        "fees": float(np.sum(fills.column("fee").to_numpy())),
        "turnover": turnover,
        "fills": len(fills),
        "maker_share": float(np.mean(fills.column("maker").to_numpy())) if len(fills) else None,
        "round_trips": len(trips),
        "hit_rate": metrics.hit_rate(nets),
        "average_trip": float(np.mean(nets)) if len(nets) else None,
        "t_statistic": metrics.t_statistic(nets),
        "spread_captured": metrics.spread_captured(sizes, prices, _floats(fills, "mid")),
        **{
            f"mark_out_{seconds}s": metrics.mark_out(sizes, prices, _floats(fills, f"mid_{seconds}s"))
            for seconds in metrics.MARK_OUTS
        },
        "time_in_market": metrics.time_in_market(
            fills.column("symbol").to_pylist(),
            fills.column("timestamp").to_numpy(),
            positions,
            record.start,
            record.end,
        ),
        "max_inventory": metrics.max_inventory(positions),
        "orders": broker.placed,
        "cancelled": broker.cancelled,
        "refused": broker.refused,
        "unfilled": record.unfilled,
        "events": record.events,
        "sessions": len(closes),
    }
    notes = {"sharpe": why} if why else {}
    if numbers["t_statistic"] is None:
        notes["t_statistic"] = "Needs at least two round trips that differ."
    if numbers["mark_out_1s"] is None:
        on_bars = broker.on_bars is not None
        notes["mark_outs"] = (
            "Bars do not show the seconds after a fill." if on_bars else "Nothing was filled."
        )
    return numbers, notes


def _fills_table(record: loop.Record) -> pa.Table:
    later = [f"mid_{seconds}s" for seconds in metrics.MARK_OUTS]
    rows = [
        {
            "timestamp": fill.ts,
            "symbol": fill.symbol,
            "size": fill.size,
            "price": fill.price,
            "fee": fill.fee,
            "maker": fill.maker,
            "position": fill.position,
            "order": fill.order,
            "tag": fill.tag,
            "mid": fill.mid,
            **{name: None if math.isnan(mid) else mid for name, mid in zip(later, mids, strict=True)},
        }
        for fill, mids in zip(record.fills, record.later_mids, strict=True)
    ]
    return pa.Table.from_pylist(rows, result.FILLS)


def _equity_table(record: loop.Record) -> pa.Table:
    points = record.curve.points()
    equity = np.array([point.equity for point in points])
    fall = equity - np.maximum.accumulate(equity)
    stamps = pa.array([point.ts for point in points], pa.int64())
    return pa.table([stamps, pa.array(equity), pa.array(fall)], schema=result.EQUITY)


def _positions_table(broker: Broker) -> pa.Table:
    rows = []
    for symbol, size in sorted(broker.held.items()):
        own = [fill for fill in broker.fills if fill.symbol == symbol]
        price = metrics.average_price(np.array([f.size for f in own]), np.array([f.price for f in own]))
        held = Position(symbol, size, price, broker.marks[symbol])
        rows.append(
            {
                "symbol": symbol,
                "size": size,
                "price": price,
                "mark": held.mark,
                "value": held.value,
                "unrealised": held.unrealised,
            }
        )
    return pa.Table.from_pylist(rows, result.POSITIONS)


def _floats(table: pa.Table, name: str) -> metrics.Floats:
    """A column as doubles; null is NaN."""
    values: metrics.Floats = table.column(name).to_numpy().astype(np.float64)
    return values


def _charted(source: sources.Source, fills: list[Fill]) -> list[str]:
    """The symbols with the most fills; where nothing was filled, the first ones."""
    counts: dict[str, int] = {}
    for fill in fills:
        counts[fill.symbol] = counts.get(fill.symbol, 0) + 1
    ranked = sorted(counts, key=lambda symbol: (-counts[symbol], symbol)) or list(source.symbols)
    return ranked[:CHARTED_SYMBOLS]


def _describe(source: sources.Source, record: loop.Record) -> dict[str, Any]:
    return {
        "name": source.name,
        "version": _plain(source.version),
        "symbols": list(source.symbols),
        "market": str(source.market),
        "start": iso(record.start),
        "end": iso(record.end),
        "kinds": {kind: len(getattr(source, kind)) for kind in source.kinds},
        "clock": "ours, at arrival" if source.received else "the exchange's",
        "provenance": _plain(source.provenance),
        "gaps": [
            {"start": gap.start, "end": gap.end, "cause": gap.cause, "channels": list(gap.channels)}
            for gap in source.gaps
        ],
    }


def _where(kind: type[Strategy]) -> dict[str, str]:
    """Where a strategy's code is, and what exactly it was: the hash of its file."""
    if kind.__module__.startswith("tapelab."):
        return {"module": kind.__module__}
    try:
        path = Path(inspect.getfile(kind))
        return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except (OSError, TypeError):  # typed at a prompt
        return {"module": kind.__module__}


def _plain(value: Any) -> Any:
    """A value as JSON can carry it, so that what is saved equals what is loaded."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return str(value)
