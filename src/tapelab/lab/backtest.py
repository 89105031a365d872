"""Test a strategy on a dataset or a table: choose the rules, run the clock, sum up."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from tapelab.errors import UsageError
from tapelab.lab import loop, rules, sources
from tapelab.lab.assumed import ROUND_LOT
from tapelab.lab.broker import Broker
from tapelab.lab.result import Result
from tapelab.lab.strategy import Strategy
from tapelab.lab.summary import summed_up


def backtest(
    strategy: Strategy | type[Strategy] | str,
    data: sources.Data,
    *,
    cash: float = 100_000,
    fees: rules.Fees | None = None,
    latency: rules.Latency | None = None,
    fill: rules.FillRule | Sequence[rules.FillRule] | None = None,
    risk: rules.RiskLimits | None = None,
) -> Result:
    """Run a strategy over what was recorded, event by event, and see what it would have made.

    `strategy`: a class, an instance (which stays as it is) or the name of a shipped one. `data`: a
    `Dataset`; a table (pandas, polars, Arrow) of bars, quotes or trades, told by its columns; or a dict of
    tables by kind. Events come in order of arrival; an order fills at the next one at the earliest. Rules
    that are not given: no fees, no latency, no limits; `TakerAtTouch` and `MakerOnCross` on quotes,
    `TakerAtPrint` on trades alone, `NextBarOpen` on bars.

    Raises `UsageError` for what it cannot read, `NoData` for an empty dataset, `StrategyError` where a
    callback breaks.
    """
    running = instance(strategy)
    source = sources.read(data)
    if not (isinstance(cash, int | float) and math.isfinite(cash) and cash >= 0):
        raise UsageError(f"Starting with {cash!r} makes no sense.", remedy="Give cash of 0 or more.")
    fees, latency, risk = fees or rules.NoFees(), latency or rules.NoLatency(), risk or rules.NoLimits()
    for given, kind in ((fees, rules.Fees), (latency, rules.Latency), (risk, rules.RiskLimits)):
        if not isinstance(given, kind):
            raise UsageError(
                f"{given!r} is not a rule for {kind.topic.lower()}.", remedy="Give an object of tl.rules."
            )
    chosen = rules.choose_fills(fill, _default_fills(source))
    unit = str(source.provenance.get("quote_size_unit") or "unknown")
    broker = Broker(
        cash=cash,
        fills=chosen,
        fees=fees,
        latency=latency,
        risk=risk,
        lot=ROUND_LOT if unit == "lots" else 1,
        symbols=source.symbols,
    )
    record = loop.run(
        running,
        source.events(),
        broker,
        market=source.market,
        bars_from="trades" if len(source.trades) else "quotes",
    )
    used: list[rules.Rule] = [*chosen, fees, latency, risk]
    return summed_up(running, source, broker, record, used, cash, unit)


def instance(strategy: Strategy | type[Strategy] | str) -> Strategy:
    """A fresh strategy to run: each run has its own, so none sees what another remembered."""
    if isinstance(strategy, str):
        from tapelab.lab.strategies import by_name

        strategy = by_name(strategy)
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        return strategy()
    if isinstance(strategy, Strategy):
        return copy.deepcopy(strategy)
    raise UsageError(
        f"{strategy!r} is not a strategy.", remedy="Give a subclass of tl.Strategy, or one made from it."
    )


def _default_fills(source: sources.Source) -> tuple[rules.FillRule, ...]:
    if not source.ticks:
        return (rules.NextBarOpen(),)
    taker = rules.TakerAtTouch() if len(source.quotes) else rules.TakerAtPrint()
    return (taker, rules.MakerOnCross())
