"""What a result says, and that it says the same after it was saved."""

from __future__ import annotations

import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lab_tape import OPEN, bar, quote, script, tape, trade
from tapelab.errors import Damaged, NotFound, UnknownName, Unwritable, UsageError
from tapelab.lab import Result, Strategy, backtest, compare, rules, strategies
from tapelab.lab.curve import SAMPLES
from tapelab.market import tables
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.events import Gap


class Small:
    """A dataset as the lab sees one."""

    def __init__(self, data: dict[str, pa.Table], name: str = "small", **provenance: Any) -> None:
        self.data, self.name, self.version = data, name, 3
        self.provenance = {"endpoint": "127.0.0.1-9000", "source": "live", **provenance}
        self.gaps = (Gap(OPEN, OPEN + SECOND, "connection lost", ("quotes",)),)

    def table(self, kind: str) -> pa.Table:
        return self.data.get(kind, tables.SCHEMAS[kind].empty_table())


TICKS = tape(
    quote(0, 9.99, 10.01),
    quote(10, 10.00, 10.02),
    trade(500, 10.05),
    quote(2_000, 10.10, 10.12),
    quote(40_000, 10.30, 10.32),
    quote(50_000, 10.20, 10.22),
)
IN_AND_OUT = script(
    at_1=lambda s: s.buy("AAA", 100), at_4=lambda s: s.sell("AAA", 100), at_5=lambda s: s.buy("AAA", 10)
)


@pytest.fixture
def result() -> Result:
    return backtest(
        IN_AND_OUT, Small(TICKS, simulated=True, quote_size_unit="shares"), fees=rules.PerShare(0.01)
    )


def test_a_result_counts_what_happened(result: Result) -> None:
    # Bought 100 at 10.02 (10 ms), sold 100 at 10.30 (40 s), bought 10 at 10.22 (50 s); mid at the end 10.21.
    fills = result.fills
    assert fills["price"].tolist() == [10.02, 10.30, 10.22]
    assert fills["fee"].tolist() == pytest.approx([1.0, 1.0, 0.1])
    assert fills["position"].tolist() == [100, 0, 10]
    assert str(fills["timestamp"].dtype) == "datetime64[ns, UTC]"
    # 1 s and 30 s after the first fill the mids were 10.01 and 10.11; the others lie beyond the data.
    assert fills.loc[0, ["mid", "mid_1s", "mid_5s", "mid_30s"]].tolist() == [10.01, 10.01, 10.11, 10.11]
    assert fills.loc[2, ["mid_1s", "mid_5s", "mid_30s"]].isna().all()

    metrics = result.metrics
    # 100 × 0.28 − 2.00 = 26.00 round trip; 10 × (10.21 − 10.22) − 0.10 = −0.20 still open.
    assert metrics["profit"] == pytest.approx(25.80)
    assert metrics["profit_bp"] == pytest.approx(2.58)
    assert metrics["fees"] == pytest.approx(2.10)
    assert metrics["turnover"] == pytest.approx(1_002 + 1_030 + 102.2)
    assert (metrics["fills"], metrics["round_trips"], metrics["orders"]) == (3, 1, 3)
    assert metrics["hit_rate"] == 1.0
    assert metrics["average_trip"] == pytest.approx(26.0)
    assert metrics["t_statistic"] is None
    # Half a spread of 1 cent on each of 210 shares.
    assert metrics["spread_captured"] == pytest.approx(-2.10)
    assert metrics["time_in_market"] == pytest.approx(39_990 / 50_000)
    assert metrics["max_inventory"] == 100
    assert metrics["sharpe"] is None
    assert "this is 1 session" in result.notes["sharpe"]

    assert result.round_trips[["symbol", "entry", "exit", "net"]].values.tolist() == [
        ["AAA", 10.02, 10.3, pytest.approx(26.0)]
    ]
    held = result.positions.iloc[0]
    assert (held["size"], held["price"], held["mark"]) == (10, 10.22, pytest.approx(10.21))
    assert held["unrealised"] == pytest.approx(-0.10)


def test_the_equity_curve_has_every_fill_and_the_ends(result: Result) -> None:
    curve = result.equity_curve
    assert curve.index.tz is not None
    assert curve["equity"].iloc[0] == 100_000
    assert curve["equity"].iloc[-1] == pytest.approx(100_025.80)
    assert set(result.fills["timestamp"]) <= set(curve.index)
    assert curve["drawdown"].max() == 0
    assert -curve["drawdown"].min() == pytest.approx(result.metrics["max_drawdown"])


def test_the_equity_curve_is_bounded_on_long_data() -> None:
    prices = 100 + np.cumsum(np.random.default_rng(1).normal(0, 0.1, 12_000))
    many = tape(*(bar(n, p, p, p, p) for n, p in enumerate(prices.tolist())))["bars"]
    result = backtest(script(at_1=lambda s: s.buy("AAA", 100)), many)
    assert len(result.equity_curve) <= SAMPLES + result.metrics["sessions"] + 10  # type: ignore[operator]
    worth = 100 * (prices[1:] - prices[1])
    assert result.metrics["max_drawdown"] == pytest.approx(np.max(np.maximum.accumulate(worth) - worth))
    assert result.metrics["profit"] == pytest.approx(worth[-1])
    assert len(result.tables["prices"]) <= 1_500


@pytest.mark.parametrize(
    ("symbol", "zone", "per_year"), [("AAA", "America/New_York", 252), ("X:BTC-USD", "UTC", 365)]
)
def test_the_sharpe_ratio_of_many_sessions_is_that_of_their_daily_returns(
    symbol: str, zone: str, per_year: int
) -> None:
    """Day bars of 30 weekdays, held from the second open on, against pandas."""
    stamps = pd.bdate_range("2024-01-02", periods=30, tz=zone).tz_convert("UTC")
    closes = 100 + np.cumsum(np.random.default_rng(2).normal(0, 1, 30))
    opens = closes + 0.3
    table = pd.DataFrame({"timestamp": stamps, "symbol": symbol, "open": opens, "close": closes})
    table["high"], table["low"], table["volume"] = closes + 1, closes - 1, 1e6
    result = backtest(script(at_1=lambda s: s.buy(symbol, 500)), table)
    equity = pd.Series(100_000 + 500 * (closes - opens[1]) * (np.arange(30) >= 1))
    returns = pd.concat([pd.Series([100_000.0]), equity]).pct_change().dropna()
    assert result.metrics["sessions"] == 30
    assert result.metrics["sharpe"] == pytest.approx(returns.mean() / returns.std() * per_year**0.5)


def test_a_saved_result_is_the_same_when_loaded(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "results" / "one.tapelab")
    assert Result.load(path) == result
    assert [each.name for each in path.parent.iterdir()] == ["one.tapelab"]  # nothing is left beside it
    again = result.save(tmp_path / "two.tapelab")
    assert again.read_bytes() == path.read_bytes()


def test_a_result_without_a_fill_is_saved_too(tmp_path: Path) -> None:
    result = backtest(Strategy, TICKS)
    assert Result.load(result.save(tmp_path / "none")) == result
    assert result.metrics["profit"] == 0
    assert result.metrics["mark_out_1s"] is None


def test_a_damaged_a_missing_and_a_newer_file_are_told_apart(result: Result, tmp_path: Path) -> None:
    path = result.save(tmp_path / "one")
    with pytest.raises(NotFound, match="no result at"):
        Result.load(tmp_path / "other")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Damaged, match="not a whole result"):
        Result.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", '{"format": 99}')
    with pytest.raises(Damaged, match="newer tapelab"):
        Result.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", '{"format": 1}')
    with pytest.raises(Damaged, match="not a whole result"):
        Result.load(path)


def test_what_cannot_be_written_is_said(result: Result, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unwritable, match="cannot be written"):
        result.save(tmp_path / "file" / "one")


def test_a_simulated_market_is_named_everywhere(result: Result) -> None:
    assert result.simulated
    assert "SIMULATED" in str(result)
    assert any("made up" in each.text for each in result.assumptions)
    assert "SIMULATED" in result.plot().to_json()
    table = compare([IN_AND_OUT], Small(TICKS, simulated=True)).table
    assert table["simulated"].all()
    assert not backtest(IN_AND_OUT, Small(TICKS)).simulated


def test_a_result_says_what_it_ran_on_and_how(result: Result) -> None:
    assert result.dataset["name"] == "small"
    assert result.dataset["version"] == 3
    assert result.dataset["symbols"] == ["AAA"]
    assert result.dataset["kinds"] == {"quotes": 5, "trades": 1}
    assert result.dataset["gaps"][0]["cause"] == "connection lost"
    recipe = result.recipe
    assert recipe["cash"] == 100_000
    assert {"rule": "PerShare", "version": 1, "rate": 0.01, "minimum": 0.0} in recipe["rules"]
    assert recipe["strategy"]["class"] == "Script"
    shipped = backtest(strategies.MarketMaker(size=50.0), TICKS).recipe
    assert shipped["strategy"]["module"] == "tapelab.lab.strategies.market_maker"
    assert shipped["params"]["size"] == 50.0
    topics = [each.topic for each in result.assumptions]
    expected = ["Taker fills", "Maker fills", "Fees", "Latency", "Risk limits", "Order of events"]
    assert topics[:6] == expected
    assert {"Quote sizes", "Impact", "Money", "End", "Gaps", "Market"} <= set(topics)


def test_a_unit_of_sizes_that_nobody_knows_is_named() -> None:
    result = backtest(IN_AND_OUT, TICKS)
    assert any("unit unknown" in each.name for each in result.assumptions)


def test_symbols_that_could_not_be_traded_are_named() -> None:
    data = tape(quote(0, 1, 2), trade(1, 50.0, symbol="SPY"))
    result = backtest(script(at_1=lambda s: s.buy("SPY", 1)), data)
    assert result.metrics["unfilled"] == 1
    assert [each.name for each in result.assumptions if each.topic == "Symbols without quotes"] == ["SPY"]


# Comparing


def test_every_strategy_meets_every_dataset() -> None:
    first, second = Small(TICKS, "first"), Small(TICKS, "second")
    comparison = compare(
        [IN_AND_OUT, strategies.MarketMaker, "MovingAverageCross"], [first, second], cash=50_000
    )
    table = comparison.table
    assert table["strategy"].tolist() == [
        "Script", "Script", "MarketMaker", "MarketMaker", "MovingAverageCross", "MovingAverageCross",
    ]  # fmt: skip
    assert table["dataset"].tolist() == ["first", "second"] * 3
    assert list(table.columns[:5]) == ["strategy", "dataset", "profit", "profit_bp", "max_drawdown"]
    assert table["profit"].tolist() == [result.metrics["profit"] for result in comparison.results]
    assert all(result.recipe["cash"] == 50_000 for result in comparison.results)


def test_an_executor_gives_the_same_answer() -> None:
    with ThreadPoolExecutor(2) as executor:
        side_by_side = compare([IN_AND_OUT, strategies.MarketMaker], Small(TICKS), executor=executor)
    assert side_by_side == compare([IN_AND_OUT, strategies.MarketMaker], Small(TICKS))


def test_comparing_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="no strategy to compare"):
        compare([], Small(TICKS))
    with pytest.raises(UsageError, match="no dataset to compare"):
        compare(IN_AND_OUT, [])
    with pytest.raises(UnknownName, match="MarketMaker"):
        compare("MarketMakers", Small(TICKS))


def test_the_shipped_strategies_refuse_parameters_without_sense() -> None:
    with pytest.raises(UsageError, match="cannot cross"):
        backtest(strategies.MovingAverageCross(fast=30, slow=10), TICKS)
    with pytest.raises(UsageError, match="A pair is two symbols"):
        backtest(strategies.PairsTrading(), TICKS)
    with pytest.raises(UsageError, match="do not fit together"):
        backtest(strategies.PairsTrading(first="A", second="B", entry=0.1), TICKS)
    with pytest.raises(UsageError, match="above 0"):
        backtest(strategies.MarketMaker(size=0.0), TICKS)


def test_equal_averages_change_nothing() -> None:
    """0.1 + 0.2 is not 0.3 in doubles: averages of 10.1 10.2 10.3 against 10.2 tie only in whole ticks."""
    closes = [10.0, 10.0, 10.6, 10.2, 10.2, 10.2, 10.1, 10.2, 10.3]
    data = tape(*(bar(n, c, c, c, c) for n, c in enumerate(closes)))
    result = backtest(strategies.MovingAverageCross(fast=1, slow=3, size=1.0), data)
    # Above from the third bar on (10.6 against 10.2); 10.2 against 10.2667 ends it; the ties after it do
    # nothing; 10.1 is below, 10.2 against 10.1667 is above: bought at the next open.
    assert [(f["timestamp"] - OPEN) // MINUTE for f in result.tables["fills"].to_pylist()] == [3, 4, 8]


def test_a_pair_is_opened_against_the_spread_and_closed_when_it_is_back() -> None:
    ratios = [1.00, 1.01, 0.99, 1.01, 0.99, 1.10, 1.00, 1.00]
    events = []
    for minute, ratio in enumerate(ratios):
        events += [
            bar(minute, 100 * ratio, 200, 50, 100 * ratio),
            bar(minute, 100, 100, 100, 100, symbol="BBB"),
        ]
    result = backtest(strategies.PairsTrading(lookback=5, notional=1_000.0), tape(*events))
    rows = [
        ((f["timestamp"] - OPEN) // MINUTE, f["symbol"], f["size"])
        for f in result.tables["fills"].to_pylist()
    ]
    # At the sixth bar the first is dear (z far above 2): sell 1,000 // 110 = 9 of it, buy 10 of the other.
    # At the seventh the ratio is back at its mean.
    assert rows == [(6, "AAA", -9), (6, "BBB", 10), (7, "AAA", 9), (7, "BBB", -10)]


def test_a_market_maker_leans_against_what_it_holds() -> None:
    sent: list[tuple[float, float | None]] = []

    class Watched(strategies.MarketMaker):
        def requote(self, symbol: str) -> None:
            super().requote(symbol)
            sent.extend((order.size, order.limit) for order in self.orders(symbol))

    maker = Watched(timer=1.0, size=100.0, half_spread=10.0, skew=20.0, max_inventory=200.0)
    data = tape(
        quote(0, 99.99, 100.01),  # at 1 s: mid 100.00 ± 10 bp = 99.90 and 100.10
        quote(1_500, 99.80, 99.85),  # through the bid: 100 bought at 99.90
        # at 2 s: mid 99.825; centre − 20 bp × 100/200 = 99.725175; ± 0.099825 → 99.62535, 99.825
        quote(2_500, 99.90, 99.92),
    )
    result = backtest(maker, data)
    assert [(f["size"], f["price"]) for f in result.tables["fills"].to_pylist()] == [
        (100, 99.90),
        (-100, 99.83),
    ]
    assert sent == [(100, 99.90), (-100, 100.10), (100, 99.62), (-100, 99.83)]
