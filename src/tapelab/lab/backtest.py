"""Test a strategy on a dataset or a table: choose the rules, run the clock, sum up."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tapelab.errors import UsageError
from tapelab.lab import rules, sources
from tapelab.lab.assumed import ROUND_LOT
from tapelab.lab.broker import Broker
from tapelab.lab.loop import Loop, Record
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
    source = sources.read(data)
    run = prepare(strategy, source, cash=cash, fees=fees, latency=latency, fill=fill, risk=risk)
    return run.result(source, run.loop.run(source.events()))


@dataclass(frozen=True)
class Run:
    """A strategy with its account and its clock, ready to go through events."""

    loop: Loop
    rules: list[rules.Rule]
    cash: float
    quote_size_unit: str

    def result(self, source: sources.Source, record: Record) -> Result:
        """What came of it, beside what it was run on."""
        loop = self.loop
        return summed_up(
            loop.strategy, source, loop.broker, record, self.rules, self.cash, self.quote_size_unit
        )


def prepare(
    strategy: Strategy | type[Strategy] | str,
    source: sources.Source,
    *,
    cash: float,
    fees: rules.Fees | None,
    latency: rules.Latency | None,
    fill: rules.FillRule | Sequence[rules.FillRule] | None,
    risk: rules.RiskLimits | None,
) -> Run:
    """Check what is asked for and choose the rules that are not given, by what the source carries."""
    running = instance(strategy)
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
        symbols=source.tradable,
    )
    bars_from: Literal["trades", "quotes"] = "trades" if "trades" in source.carried else "quotes"
    loop = Loop(running, broker, source.market, bars_from)
    return Run(loop, [*chosen, fees, latency, risk], cash, unit)


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
    if "bars" in source.carried:
        return (rules.NextBarOpen(),)
    taker = rules.TakerAtTouch() if "quotes" in source.carried else rules.TakerAtPrint()
    return (taker, rules.MakerOnCross())
