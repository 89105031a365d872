"""Several strategies on several datasets, by the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tapelab.errors import UsageError
from tapelab.lab import rules
from tapelab.lab.backtest import backtest
from tapelab.lab.result import Result, write_whole
from tapelab.lab.sources import Data
from tapelab.lab.strategy import Strategy

if TYPE_CHECKING:
    import pandas as pd

# The metrics of a row, the most telling first; a result holds all of them.
COLUMNS = (
    "profit",
    "profit_bp",
    "max_drawdown",
    "round_trips",
    "hit_rate",
    "t_statistic",
    "fills",
    "fees",
    "spread_captured",
    "mark_out_5s",
    "turnover",
    "time_in_market",
    "max_inventory",
)

Entrant = Strategy | type[Strategy] | str


@dataclass(frozen=True)
class Comparison:
    """Every result, in the order of the strategies and, within each, of the datasets."""

    results: tuple[Result, ...]

    @property
    def table(self) -> pd.DataFrame:
        """One row for each strategy on each dataset, with the main metrics."""
        import pandas as pd

        rows = [
            {
                "strategy": result.strategy,
                "dataset": result.dataset["name"],
                **{name: result.metrics[name] for name in COLUMNS},
                "simulated": result.simulated,
            }
            for result in self.results
        ]
        return pd.DataFrame(rows)

    @property
    def simulated(self) -> bool:
        """Whether any of the datasets comes from a simulated market."""
        return any(result.simulated for result in self.results)

    def to_html(self, path: str | Path) -> Path:
        """Write one report of all: curves over each other, metrics side by side. Returns its path."""
        from tapelab.picture import report

        return write_whole(Path(path), report.html([result.as_run() for result in self.results]).encode())

    def __str__(self) -> str:
        return "\n".join(str(result) for result in self.results)


def compare(
    strategies: Entrant | Iterable[Entrant],
    datasets: Data | Sequence[Data],
    *,
    executor: Executor | None = None,
    cash: float = 100_000,
    fees: rules.Fees | None = None,
    latency: rules.Latency | None = None,
    fill: rules.FillRule | Sequence[rules.FillRule] | None = None,
    risk: rules.RiskLimits | None = None,
) -> Comparison:
    """Every strategy on every dataset, each as `backtest` runs it.

    `strategies`: classes, instances or names. `datasets`: one or a list of what `backtest` takes. An
    `executor` (of `concurrent.futures`, or Dask's) runs them side by side; the answer is the same.
    Raises `UsageError` where there is nothing to compare, and what `backtest` raises.
    """
    entrants = [strategies] if isinstance(strategies, Strategy | type | str) else list(strategies)
    places: list[Data] = list(datasets) if isinstance(datasets, list | tuple) else [datasets]
    if not entrants or not places:
        what = "strategy" if not entrants else "dataset"
        raise UsageError(f"There is no {what} to compare.", remedy="Give at least one of each.")
    run = partial(backtest, cash=cash, fees=fees, latency=latency, fill=fill, risk=risk)
    pairs = [(entrant, place) for entrant in entrants for place in places]
    if executor is None:
        return Comparison(tuple(run(entrant, place) for entrant, place in pairs))
    running = [executor.submit(run, entrant, place) for entrant, place in pairs]
    return Comparison(tuple(each.result() for each in running))
