"""A strategy trades on paper while the market is recorded; the later backtest agrees fill by fill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import tapelab as tl
from streams import Vendor, both, message, quote, settings_for, until
from tapelab.errors import NoData, RecordingError, StrategyError, UsageError
from tapelab.exchange import serve
from tapelab.settings import Settings, use


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Iterator[Settings]:
    with use(settings_for(vendor, tmp_path)) as used:
        yield used


class Reverse(tl.Strategy):
    """Long and short in turn, every so many quotes."""

    symbol = "AAPL"
    pause = 10
    bars = "1s"

    def on_start(self) -> None:
        self.seen = 0

    def on_quote(self, quote: tl.Quote) -> None:
        self.seen += 1
        if quote.symbol == self.symbol and self.seen % self.pause == 0:
            self.target_position(self.symbol, 1 if self.seen // self.pause % 2 else -1)


def same(paper: tl.Result, later: tl.Result) -> None:
    pd.testing.assert_frame_equal(paper.fills, later.fills)
    pd.testing.assert_frame_equal(paper.equity_curve, later.equity_curve)
    pd.testing.assert_frame_equal(paper.round_trips, later.round_trips)
    assert paper.metrics == later.metrics
    assert paper.assumptions == later.assumptions


def test_fills_on_paper_are_those_of_the_later_backtest(vendor: Vendor, settings: Settings) -> None:
    recorder = tl.WebSocketDataRecorder(["AAPL"])
    recorder.start()
    session = tl.paper_trade(Reverse, tl.open_dataset(recorder.stats.dataset))
    vendor.await_subscribers()
    vendor.tell(*map(both, range(200)))
    until(lambda: recorder.stats.events == 400 and session.result.metrics["events"] == 400)
    assert session.running
    early = session.result.fills
    assert len(early) > 5
    vendor.tell(*map(both, range(200, 500)))
    until(lambda: recorder.stats.events == 1000)
    recorder.stop()
    path = recorder.save_dataset("traded")  # at once, though the session may still read the last of it
    assert session.wait(20)
    later = tl.backtest(Reverse, tl.open_dataset(path))
    assert later.metrics["events"] == 1000
    same(session.result, later)
    pd.testing.assert_frame_equal(session.result.fills.head(len(early) - 1), early.head(len(early) - 1))


def test_who_begins_late_has_seen_the_recording_from_its_beginning(
    vendor: Vendor, settings: Settings
) -> None:
    with tl.WebSocketDataRecorder(["AAPL"]) as recorder:
        vendor.await_subscribers()
        vendor.tell(*map(both, range(100)))
        until(lambda: recorder.stats.events == 200)
        session = tl.paper_trade(Reverse(pause=7), tl.open_dataset(recorder.stats.dataset))
        until(lambda: got(session) == 200)
        session.stop()
        assert not session.running
        assert session.result.metrics["unfilled"] == 0
        assert recorder.stats.state == "recording"
    later = tl.backtest(Reverse(pause=7), tl.open_dataset(recorder.save_dataset("late")))
    same(session.result, later)


def got(session: Any) -> int:
    try:
        return session.result.metrics["events"]
    except NoData:
        return 0


def test_two_strategies_trade_beside_one_recording(vendor: Vendor, settings: Settings) -> None:
    with tl.WebSocketDataRecorder(["AAPL"]) as recorder:
        dataset = tl.open_dataset(recorder.stats.dataset)
        sessions = [tl.paper_trade(Reverse(pause=pause), dataset) for pause in (5, 9)]
        vendor.await_subscribers()
        vendor.tell(*map(both, range(150)))
        until(lambda: recorder.stats.events == 300)
    for session, pause in zip(sessions, (5, 9), strict=True):
        assert session.wait(20)
        same(session.result, tl.backtest(Reverse(pause=pause), tl.open_dataset(recorder.stats.dataset)))


def test_a_strategy_trades_on_what_a_connector_records(vendor: Vendor, settings: Settings) -> None:
    connector = tl.get_connector("massive")
    connector.start_stream(["AAPL"], lambda *_: None)
    with pytest.raises(RecordingError, match="Nothing is recorded"):
        tl.paper_trade(Reverse, connector)
    connector.enable_recording()
    with tl.paper_trade(Reverse, connector) as session:
        vendor.tell(*map(both, range(100)))
        until(lambda: got(session) == 200)
        path = connector.disable_recording()
        assert session.wait(20)
    connector.close()
    same(session.result, tl.backtest(Reverse, tl.open_dataset(path)))


def test_a_replay_is_traded_at_its_pace(vendor: Vendor, settings: Settings) -> None:
    with tl.WebSocketDataRecorder(["AAPL"]) as recorder:
        vendor.await_subscribers()
        vendor.tell(*map(both, range(100)))
        until(lambda: recorder.stats.events == 200)
    dataset = tl.open_dataset(recorder.save_dataset("played"))
    session = tl.paper_trade(Reverse, tl.get_connector("replay", dataset=dataset, speed=20))
    assert session.wait(20)
    same(session.result, tl.backtest(Reverse, dataset))


def test_nothing_yet_is_said_so_and_a_broken_strategy_too(vendor: Vendor, settings: Settings) -> None:
    class Broken(tl.Strategy):
        def on_quote(self, quote: tl.Quote) -> None:
            raise ValueError("never mind")

    with tl.WebSocketDataRecorder(["AAPL"]) as recorder:
        session = tl.paper_trade(Broken, tl.open_dataset(recorder.stats.dataset))
        with pytest.raises(NoData):
            _ = session.result
        vendor.await_subscribers()
        vendor.tell(message(quote(1)))
        assert session.wait(20)
        with pytest.raises(StrategyError, match="on_quote broke"):
            _ = session.result
        with pytest.raises(StrategyError):
            session.stop()
        until(lambda: recorder.stats.quotes == 1)  # the recording went on
    with pytest.raises(UsageError, match="nothing to trade on paper"):
        tl.paper_trade(Broken, "AAPL")  # type: ignore[arg-type]


def test_a_recording_without_ticks_cannot_be_traded_on(vendor: Vendor, settings: Settings) -> None:
    with (
        tl.WebSocketDataRecorder(["AAPL"], channels=("bars",)) as recorder,
        pytest.raises(UsageError, match="neither quotes nor trades"),
    ):
        tl.paper_trade(Reverse, tl.open_dataset(recorder.stats.dataset))


def test_a_market_maker_on_the_exchange_makes_on_paper_what_it_makes_later(tmp_path: Path) -> None:
    with (
        serve(simulate=True, speed=240, start="10:00", until="10:20") as exchange,
        exchange.use(home=tmp_path),
        tl.WebSocketDataRecorder(["ZVZZT", "ZWZZT"]) as recorder,
    ):
        maker = tl.strategies.MarketMaker(symbol="ZVZZT")
        session = tl.paper_trade(maker, tl.open_dataset(recorder.stats.dataset))
        wait(exchange.finished.is_set)
        time.sleep(0.2)
        recorder.stop()
        assert session.wait(30)
        result = session.result
        later = tl.backtest(maker, tl.open_dataset(recorder.stats.dataset))
    assert result.simulated
    assert later.metrics["orders"]
    same(result, later)


def wait(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)
