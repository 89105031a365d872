"""The lines of the page that lead into other engines, run in those that are installed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapelab.settings import Settings, use
from tapelab.store.datasets import catalogue
from tapelab.store.datasets.dataset import Dataset
from test_dataset import quotes, trades

PAGE = (Path(__file__).parents[1] / "docs" / "recording.md").read_text()
LINES = re.findall(r"^```py\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[Dataset]:
    with use(Settings.load(home=tmp_path)):
        ticks = {"quotes": quotes(*range(240), symbol="ZVZZT"), "trades": trades(*range(240), symbol="ZVZZT")}
        yield catalogue.from_tables("day", **ticks, source="x", provenance={"simulated": True})


def peer(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return pytest.importorskip(name, reason=f"{name} is not installed")
        except (ValueError, AttributeError) as error:  # vectorbt beside a plotly that is too new
            pytest.skip(f"{name} does not load here: {type(error).__name__}")


def ran(number: int, **names: Any) -> dict[str, Any]:
    exec(LINES[number], names)
    return names


def test_the_page_has_a_line_for_each_engine() -> None:
    assert [line.split()[0] for line in LINES] == ["ohlcv", "closes", "ticks", "prints"]


def test_backtesting_py_takes_the_bars(dataset: Dataset) -> None:
    engine = peer("backtesting")

    class Hold(engine.Strategy):  # type: ignore[misc, name-defined]
        def init(self) -> None:
            pass

        def next(self) -> None:
            if not self.position:
                self.buy(size=10)

    bars = ran(0, dataset=dataset)["ohlcv"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = engine.Backtest(bars, Hold, cash=100_000, finalize_trades=True).run()
    assert result["# Trades"] == 1
    assert result["_equity_curve"].index[0] == dataset.bars("1m")["timestamp"][0]


def test_vectorbt_takes_the_closes(dataset: Dataset) -> None:
    engine = peer("vectorbt")
    closes = ran(1, dataset=dataset)["closes"]
    held = engine.Portfolio.from_holding(closes, freq="1min").total_return()
    assert held["ZVZZT"] == pytest.approx(closes["ZVZZT"].iloc[-1] / closes["ZVZZT"].iloc[0] - 1)


def test_a_nautilus_catalogue_gives_back_the_ticks(dataset: Dataset, tmp_path: Path) -> None:
    peer("nautilus_trader")
    from nautilus_trader.persistence.catalog import ParquetDataCatalog  # type: ignore[import-not-found]
    from nautilus_trader.persistence.wranglers import (  # type: ignore[import-not-found]
        QuoteTickDataWrangler,
        TradeTickDataWrangler,
    )
    from nautilus_trader.test_kit.providers import (  # type: ignore[import-not-found]
        TestInstrumentProvider,
    )

    catalog = ParquetDataCatalog(str(tmp_path / "catalogue"))
    instrument = TestInstrumentProvider.equity(symbol="ZVZZT", venue="XNAS")
    names = {
        "dataset": dataset, "catalog": catalog, "instrument": instrument,
        "QuoteTickDataWrangler": QuoteTickDataWrangler, "TradeTickDataWrangler": TradeTickDataWrangler,
    }  # fmt: skip
    ran(2, **names)
    ran(3, **names)
    quoted, traded = catalog.quote_ticks(), catalog.trade_ticks()
    assert [float(tick.bid_price) for tick in quoted] == dataset.quotes()["bid"].tolist()
    assert [tick.ts_event for tick in traded] == dataset.table("trades").column("ts_event").to_pylist()
    assert [float(tick.price) for tick in traded] == dataset.trades()["price"].tolist()
