"""Prices to a callback, with or without a recording beside it, and nothing lost to a bad callback."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from streams import Vendor, message, quote, settings_for, trade, until
from tapelab.errors import MissingExtra, NoData, NotAuthorized, RecordingError, UnknownName, UnknownSymbol
from tapelab.exchange import serve
from tapelab.live import books
from tapelab.live.connector import MassiveConnector, get_connector, list_connectors
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.market.events import Quote
from tapelab.settings import Settings, use
from tapelab.store.datasets.dataset import Dataset, list_datasets, open_dataset


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Iterator[Settings]:
    with use(settings_for(vendor, tmp_path)) as used:
        yield used


@pytest.fixture
def connector(settings: Settings) -> Iterator[MassiveConnector]:
    made = get_connector("massive")
    assert isinstance(made, MassiveConnector)
    yield made
    made.close()


class Told(list[tuple[str, dict[str, Any]]]):
    def __call__(self, symbol: str, orderbook: dict[str, Any]) -> None:
        self.append((symbol, orderbook))


def quotes(*numbers: int, symbol: str = "AAPL") -> bytes:
    return message(*(quote(n, symbol) for n in numbers))


def sequences(dataset: Dataset) -> list[int]:
    found: list[int] = dataset.table("quotes").column("sequence").to_pylist()
    return found


def test_every_quote_reaches_the_callback_as_an_order_book(
    vendor: Vendor, connector: MassiveConnector
) -> None:
    told = Told()
    connector.start_stream(["AAPL"], told)
    vendor.tell(*(quotes(n) for n in range(300)), message(trade(1)), quotes(1, symbol="MSFT"))
    until(lambda: len(told) == 300)
    symbol, orderbook = told[10]
    bid, ask = orderbook["bids"][0][0], orderbook["asks"][0][0]
    assert (symbol, bid, ask) == ("AAPL", 100.1, 100.12)
    assert orderbook["bids"][0] == [100.1, 4.0]
    assert [book["ts_event"] for _, book in told] == [(1_700_000_000_000 + n) * 1_000_000 for n in range(300)]
    until(lambda: connector.latest_snapshot("AAPL")["last_trade"])  # type: ignore[index]
    assert connector.latest_snapshot("AAPL")["last_trade"]["size"] == 11.0  # type: ignore[index]
    assert connector.latest_snapshot("TSLA") is None
    assert vendor.subscribed == {"Q.AAPL", "T.AAPL"}


def test_a_side_that_is_empty_is_an_empty_list(vendor: Vendor, connector: MassiveConnector) -> None:
    told = Told()
    connector.start_stream(["AAPL"], told)
    vendor.tell(message({**quote(1), "bp": 0, "bs": 0}))
    until(lambda: told)
    assert told[0][1]["bids"] == []
    assert told[0][1]["asks"][0] == [100.03, 2.0]


def test_recording_enabled_before_the_stream_starts(
    vendor: Vendor, connector: MassiveConnector, settings: Settings
) -> None:
    connector.enable_recording(symbols=["AAPL", "GOOGL"])
    told = Told()
    connector.start_stream(["AAPL", "GOOGL"], told)
    vendor.tell(*(quotes(n) for n in range(50)), quotes(50, symbol="GOOGL"))
    until(lambda: len(told) == 51)
    until(lambda: connector.get_stats()["quotes"] == 51)
    live = connector.get_recorded_dataframe()
    path = connector.disable_recording()
    assert path.name.startswith("massive_live_")
    assert path.parent == settings.root / "datasets"
    dataset = open_dataset(path)
    assert dataset.symbols == ("AAPL", "GOOGL")
    assert sequences(dataset) == list(range(51))
    pd.testing.assert_frame_equal(live, connector.get_recorded_dataframe())
    assert len(pd.read_parquet(path / "bars_1min.parquet")) == 2
    vendor.tell(quotes(99))
    until(lambda: len(told) == 52)  # the stream goes on
    assert vendor.connections == 1


def test_recording_enabled_while_the_stream_runs_holds_what_came_meanwhile(
    vendor: Vendor, connector: MassiveConnector
) -> None:
    told = Told()
    connector.start_stream(["AAPL"], told)
    vendor.tell(*(quotes(n) for n in range(10)))
    until(lambda: len(told) == 10)
    connector.enable_recording()
    vendor.tell(*(quotes(n) for n in range(10, 20)))
    until(lambda: len(told) == 20)
    first = connector.disable_recording()
    vendor.tell(*(quotes(n) for n in range(20, 30)))
    until(lambda: len(told) == 30)
    connector.enable_recording()
    vendor.tell(*(quotes(n) for n in range(30, 40)))
    until(lambda: len(told) == 40)
    connector.stop_stream()
    second = connector.disable_recording()
    assert sequences(open_dataset(first)) == list(range(10, 20))
    assert sequences(open_dataset(second)) == list(range(30, 40))
    assert open_dataset(first).gaps == open_dataset(second).gaps == ()
    assert open_dataset(first).coverage["AAPL"].listened
    assert vendor.connections == 1
    assert {d.path for d in list_datasets()} == {first, second}


def test_only_the_symbols_asked_for_are_recorded(vendor: Vendor, connector: MassiveConnector) -> None:
    told = Told()
    connector.start_stream(["AAPL"], told)
    connector.enable_recording(["MSFT"])
    until(lambda: "Q.MSFT" in vendor.subscribed)
    vendor.tell(quotes(1), quotes(2, symbol="MSFT"), quotes(3))
    until(lambda: len(told) == 2)
    recorded = open_dataset(connector.disable_recording())
    assert recorded.symbols == tuple(recorded.coverage) == ("MSFT",)


def test_symbols_come_and_go_on_one_connection(vendor: Vendor, connector: MassiveConnector) -> None:
    apples, others = Told(), Told()
    connector.start_stream(["AAPL"], apples)
    connector.start_stream(["MSFT"], others)
    until(lambda: "Q.MSFT" in vendor.subscribed)
    connector.stop_stream(["AAPL"])
    until(lambda: vendor.subscribed == {"Q.MSFT", "T.MSFT"})
    vendor.tell(quotes(1), quotes(2, symbol="MSFT"))
    until(lambda: others)
    assert apples == []
    assert vendor.connections == 1


def test_a_callback_that_raises_or_sleeps_costs_no_frame(
    vendor: Vendor, connector: MassiveConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(books, "MAX_WAITING", 100)
    release, seen = threading.Event(), []

    def slow(symbol: str, orderbook: dict[str, Any]) -> None:
        seen.append(orderbook["ts_event"])
        release.wait(20)

    def broken(symbol: str, orderbook: dict[str, Any]) -> None:
        raise RuntimeError("the user's mistake")

    connector.enable_recording()
    connector.start_stream(["AAPL"], slow)
    connector.start_stream(["AAPL"], broken)
    vendor.tell(*(quotes(*range(n * 10, n * 10 + 10)) for n in range(200)))
    until(lambda: connector.get_stats()["quotes"] == 2000)
    release.set()
    until(lambda: seen[-1] == (1_700_000_000_000 + 1999) * 1_000_000)  # the newest is seen in the end
    until(lambda: connector.get_stats()["callback_errors"] == len(seen))
    stats = connector.get_stats()
    assert stats["callback_skipped"] + len(seen) == 2000
    assert stats["callback_last_error"] == 'RuntimeError("the user\'s mistake")'
    assert sequences(open_dataset(connector.disable_recording())) == list(range(2000))


def test_a_refused_key_leaves_the_connector_as_it_was(vendor: Vendor, tmp_path: Path) -> None:
    settings = settings_for(vendor, tmp_path, key="not-the-key")
    connector = get_connector("massive", settings=settings)
    connector.enable_recording(["AAPL"])
    with pytest.raises(NotAuthorized):
        connector.start_stream(["AAPL"], Told())
    assert not connector.get_stats()["streaming"]
    assert connector.get_stats()["symbols"] == []
    with pytest.raises(NoData, match="never started"):
        connector.disable_recording()
    with pytest.raises(RecordingError, match="No recording"):
        connector.disable_recording()
    assert list_datasets(settings=settings) == []
    assert not list((settings.root / "streams").glob("*"))


def test_a_recording_in_which_nothing_came_leaves_nothing(
    connector: MassiveConnector, settings: Settings
) -> None:
    connector.enable_recording(["AAPL"])
    connector.start_stream(["AAPL"], Told())
    with pytest.raises(NoData, match="Nothing was received"):
        connector.disable_recording()
    assert connector.get_stats()["streaming"]
    assert not list((settings.root / "datasets").iterdir())


def test_what_was_streamed_beside_a_silent_symbol_is_kept(
    vendor: Vendor, connector: MassiveConnector
) -> None:
    connector.enable_recording(["MSFT"])
    told = Told()
    connector.start_stream(["AAPL"], told)
    vendor.tell(quotes(1))
    until(lambda: told)
    with pytest.raises(NoData, match="Nothing was received"):
        connector.disable_recording()
    assert [dataset.counts["frames"] > 1 for dataset in list_datasets()] == [True]


def test_a_stream_that_follows_another_recording_is_not_recorded_apart_and_leaves_nothing(
    connector: MassiveConnector, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL"]) as leader:
        connector.start_stream(["AAPL"], Told())
        with pytest.raises(RecordingError, match="cannot be recorded apart"):
            connector.enable_recording()
        assert [path.name for path in (settings.root / "datasets").iterdir()] == [leader.stats.dataset]


def test_connectors_are_known_by_name() -> None:
    assert list_connectors() == ["massive", "replay"]
    with pytest.raises(UnknownName, match="masive") as caught:
        get_connector("masive")
    assert "massive" in caught.value.remedy


@pytest.fixture
def recorded(vendor: Vendor, settings: Settings) -> Dataset:
    with WebSocketDataRecorder(["AAPL", "MSFT"]) as recorder:
        vendor.tell(*(message(quote(n, s), trade(n, s)) for n in range(500) for s in ("AAPL", "MSFT")))
        until(lambda: recorder.stats.events == 2000)
    return open_dataset(recorder.save_dataset("recorded"))


def test_a_replay_tells_callbacks_what_the_live_stream_told(recorded: Dataset) -> None:
    connector = get_connector("replay", dataset="recorded", speed=0)
    assert connector.list_symbols() == ["AAPL", "MSFT"]
    told = Told()
    connector.enable_recording(["AAPL"])
    connector.start_stream(["AAPL"], told)
    assert connector.wait(20)  # type: ignore[attr-defined]
    until(lambda: len(told) == 500)
    assert told[10][1]["bids"][0] == [100.1, 4.0]
    assert connector.get_stats()["callback_skipped"] == 0
    again = open_dataset(connector.disable_recording())
    assert again.symbols == ("AAPL",)
    assert again.clock == "received"
    assert again.provenance["simulated"] is True
    mine = recorded.quotes()
    mine = mine[mine["symbol"] == "AAPL"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again.quotes(), mine)
    with pytest.raises(UnknownSymbol, match="TSLA"):
        connector.start_stream(["TSLA"], told)
    connector.close()  # type: ignore[attr-defined]


def test_a_replay_can_be_stopped_midway(recorded: Dataset) -> None:
    connector = get_connector("replay", dataset=recorded, speed=0.001)
    told = Told()
    connector.start_stream(["AAPL"], told)
    until(lambda: told)
    connector.stop_stream()
    assert len(told) < 500


def test_a_replay_that_was_stopped_begins_afresh(recorded: Dataset) -> None:
    connector = get_connector("replay", dataset=recorded, speed=0)
    for _ in range(2):
        told = Told()
        connector.start_stream(["AAPL"], told)
        until(lambda told=told: len(told) == 500)
        connector.stop_stream()
    connector.close()  # type: ignore[attr-defined]


def quoted(symbol: str, n: int) -> Quote:
    return Quote(symbol, n, n, n, 10.0, 10.01, 1, 1)


def test_a_slow_callback_is_told_what_is_new_and_not_what_is_long_past(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(books, "MAX_BEHIND", 0)
    release, seen = threading.Event(), list[tuple[str, int]]()

    def slow(symbol: str, orderbook: dict[str, Any]) -> None:
        seen.append((symbol, orderbook["ts_event"]))
        release.wait(20)

    told = books.Books()
    told.listen(["A", "B"], slow)
    told.add([quoted("A", 0)])
    until(lambda: seen)
    told.add([quoted(symbol, n) for n in range(1, 50) for symbol in ("A", "B")])
    release.set()
    until(lambda: len(seen) == 3)
    told.close()
    assert seen == [("A", 0), ("A", 49), ("B", 49)]
    assert told.skipped == 96
    assert caplog.text.count("too slow") == 1


def test_a_callback_that_wants_to_exit_is_counted_said_once_and_called_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def leaves(symbol: str, orderbook: dict[str, Any]) -> None:
        raise SystemExit("enough")

    told = books.Books()
    told.listen(["A"], leaves)
    told.add([quoted("A", n) for n in range(3)])
    until(lambda: told.errors == 3)
    told.close()
    assert caplog.text.count("A callback raised SystemExit('enough')") == 1


def plugin(folder: Path, package: str, module: str) -> None:
    """Another package that brings a connector, as an installer lays it down."""
    (folder / f"{package}.py").write_text(module)
    about = folder / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[tapelab.connectors]\ntheirs = {package}:Theirs\n")


def test_a_connector_of_another_package_is_known_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "class Theirs:\n    def __init__(self, *, depth=1):\n        self.depth = depth\n"
    plugin(tmp_path, "their_package", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list_connectors() == ["massive", "replay", "theirs"]
    assert get_connector("theirs", depth=5).depth == 5  # type: ignore[attr-defined]


def test_a_connector_of_another_package_that_is_broken_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin(tmp_path, "their_broken_package", "import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(MissingExtra, match=r"'theirs' cannot be loaded from their_broken_package:Theirs"):
        get_connector("theirs")


@pytest.fixture
def apples(vendor: Vendor, settings: Settings) -> Dataset:
    """A recording of what the lines of the brief ask for."""
    with WebSocketDataRecorder(["AAPL", "GOOGL"]) as recorder:
        vendor.tell(*(message(quote(n, s), trade(n, s)) for n in range(500) for s in ("AAPL", "GOOGL")))
        until(lambda: recorder.stats.events == 2000)
    return open_dataset(recorder.save_dataset("apples"))


@pytest.mark.parametrize("name", ["massive", "replay"])
@pytest.mark.parametrize("recorded_first", [True, False])
def test_the_lines_that_were_asked_for_work_as_written_in_either_order(
    apples: Dataset, tmp_path: Path, name: str, recorded_first: bool
) -> None:
    told: list[tuple[str, float, float]] = []

    def on_quote(symbol, orderbook):
        bid, ask = orderbook["bids"][0][0], orderbook["asks"][0][0]
        told.append((symbol, bid, ask))

    options = {"dataset": apples, "speed": 5} if name == "replay" else {}
    with serve(dataset=apples, speed=5, wait_for=1) as exchange, exchange.use(home=tmp_path / "there"):
        connector = get_connector(name, **options)
        if recorded_first:
            connector.enable_recording(symbols=["AAPL", "GOOGL"])
            connector.start_stream(["AAPL", "GOOGL"], callback=on_quote)
        else:
            connector.start_stream(["AAPL", "GOOGL"], callback=on_quote)
            connector.enable_recording(symbols=["AAPL", "GOOGL"])
        until(lambda: len(told) == 1000)
        path = connector.disable_recording()
        df = connector.get_recorded_dataframe()
        connector.stop_stream()
        recorded = open_dataset(path)
        connector.close()  # type: ignore[attr-defined]
    assert path.name.startswith("massive_live_" if name == "massive" else "replay_")
    assert {symbol for symbol, _, _ in told} == {"AAPL", "GOOGL"}
    assert told[20][1:] == (100.1, 100.12)
    assert list(df["symbol"]) == ["AAPL", "GOOGL"]
    kept = len(recorded.quotes())
    assert kept == 1000 if recorded_first else 0 < kept <= 1000
