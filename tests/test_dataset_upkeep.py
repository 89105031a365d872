"""Datasets kept in order: checked, marked, taken away, relieved of old journals; what is wrong is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from streams import Vendor, both, message, quote, settings_for, until
from tapelab.errors import (
    BadRange,
    Damaged,
    DatasetNotFound,
    Locked,
    StoreError,
    UnknownName,
    UsageError,
)
from tapelab.live.connector import get_connector
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.market import clock
from tapelab.market.clock import FixedClock
from tapelab.settings import Settings, use
from tapelab.store.datasets import manifest, parts, upkeep
from tapelab.store.datasets.dataset import Dataset, list_datasets, open_dataset
from tapelab.store.datasets.manifest import Filled, Lost
from test_dataset import T0, made, quotes, trades


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished recording of 40 quotes and 40 trades with its journal."""
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path_factory.mktemp("recording"))
        with WebSocketDataRecorder("AAPL", settings=settings) as recorder:
            vendor.tell(*map(both, range(40)))
            until(lambda: recorder.stats.events == 80)
        return recorder.save_dataset("day").parent


@pytest.fixture
def recorded(recording: Path, tmp_path: Path) -> Dataset:
    return open_dataset(shutil.copytree(recording, tmp_path / "day"))


def spoil_manifest(path: Path) -> None:
    manifest.path_of(path, 1).write_bytes(b"{}")


HARM: dict[str, tuple[Callable[[Path], object], str]] = {
    "a manifest that is no JSON": (lambda p: manifest.path_of(p, 1).write_bytes(b"\xff{"), "manifest-000001"),
    "a manifest of something else": (spoil_manifest, "manifest-000001"),
    "an empty manifest": (lambda p: manifest.path_of(p, 1).write_bytes(b""), "manifest-000001"),
    "a manifest that is a folder": (
        lambda p: (manifest.path_of(p, 1).unlink(), manifest.path_of(p, 1).mkdir()),
        "manifest-000001",
    ),
    "no segments": (lambda p: shutil.rmtree(p / "segments"), "quotes-000001"),
    "a segment that is missing": (lambda p: (p / "segments/quotes-000001.parquet").unlink(), "quotes-000001"),
    "a segment that is a folder": (
        lambda p: ((s := p / "segments/quotes-000001.parquet").unlink(), s.mkdir()),
        "quotes-000001",
    ),
    "a segment of another dataset": (
        lambda p: parts.write_parquet(quotes(*range(40)), p / "segments/quotes-000001.parquet", replace=True),
        "quotes-000001",
    ),
    "a segment of other columns": (
        lambda p: parts.write_parquet(trades(*range(40)), p / "segments/quotes-000001.parquet", replace=True),
        "quotes-000001",
    ),
    "a segment that is no Parquet": (
        lambda p: (p / "segments/quotes-000001.parquet").write_text("bid,ask\n1,2\n"),
        "quotes-000001",
    ),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_is_wrong_with_a_dataset_is_refused_by_name(recorded: Dataset, harm: str) -> None:
    spoil, name = HARM[harm]
    spoil(recorded.path)
    if "manifest" in harm:
        with pytest.raises(StoreError, match=name):
            open_dataset(recorded.path)
    asked = (
        recorded.verify,
        recorded.quotes,
        lambda: list(recorded.replay()),
        lambda: recorded.bars(of="quotes"),
    )
    for ask in asked if "segment" in harm else ():
        with pytest.raises(Damaged, match=name):
            ask()


@pytest.mark.parametrize("position", range(8))
def test_no_flipped_bit_of_a_segment_becomes_a_row(recorded: Dataset, position: int) -> None:
    path = recorded.path / "segments" / "quotes-000001.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) * position // 8] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="quotes-000001"):
        recorded.table("quotes")


def test_files_that_belong_to_no_version_are_foreign(recorded: Dataset) -> None:
    assert recorded.verify() == 3
    shutil.copy(
        recorded.path / "segments/quotes-000001.parquet", recorded.path / "segments/quotes-000009.parquet"
    )
    (recorded.path / "journal" / "notes.txt").write_text("mine")
    shutil.copytree(recorded.path / "journal", recorded.path / "journal-007")
    (recorded.path / "bars_5min.parquet").write_bytes(b"derived, and not looked at")
    with pytest.raises(Damaged) as caught:
        recorded.verify()
    names = [str(problem).split()[0] for problem in caught.value.facts["problems"]]  # type: ignore[union-attr]
    assert names == ["journal/notes.txt", "journal-007", "segments/quotes-000009.parquet"]
    assert recorded.table("quotes").num_rows == 40


def test_a_journal_of_another_recording_is_foreign(recorded: Dataset) -> None:
    [own] = (recorded.path / "journal").glob("*.zst")
    with Vendor() as vendor:
        settings = settings_for(vendor, recorded.path.parent / "other")
        with WebSocketDataRecorder("AAPL", settings=settings) as recorder:
            vendor.tell(*map(both, range(100)))
            until(lambda: recorder.stats.events == 200)
        [others] = (recorder.save_dataset("other").parent / "journal").glob("*.zst")
    shutil.copy(others, own.with_name(own.name.replace("000001", "000002")))
    with pytest.raises(Damaged, match=r"journal/000002\.tlj is foreign: it belongs to another recording"):
        recorded.verify()


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_journal_that_lacks_something_says_what(recorded: Dataset, harm: str) -> None:
    [sealed] = (recorded.path / "journal").glob("*.zst")
    if harm == "gone":
        sealed.unlink()
    else:
        sealed.write_bytes(sealed.read_bytes()[:200])
    with pytest.raises(Damaged, match=r"journal(/000001\.tlj is damaged| ends at record -1 instead of)"):
        recorded.verify()


def test_a_dataset_is_taken_away_whole(recorded: Dataset) -> None:
    open_dataset(recorded.path).tag("x").remove()
    assert not recorded.path.exists()
    assert list(recorded.path.parent.glob(".*removed")) == []
    with pytest.raises(DatasetNotFound):
        recorded.remove()


def test_a_recording_under_way_is_neither_removed_nor_pruned() -> None:
    with Vendor() as vendor:
        settings = settings_for(vendor, Path(Settings.load().home) / "r")
        with WebSocketDataRecorder("AAPL", settings=settings) as recorder:
            vendor.tell(both(1))
            until(lambda: recorder.stats.events == 2)
            dataset = open_dataset(recorder.stats.dataset, settings=settings)
            with pytest.raises(Locked, match="being recorded"):
                dataset.remove()
            with pytest.raises(UsageError, match="still recorded"):
                upkeep.prune(dataset)
            with pytest.raises(StoreError, match="still recorded"):
                dataset.mark("x", "2023-11-14", "2023-11-15")
            assert not dataset.complete
        assert recorder.save_dataset("whole").exists()


def later(days: float) -> object:
    return clock.use(FixedClock(clock.now() + round(days * clock.DAY)))


def test_an_old_journal_is_dropped_once_the_columns_are_verified(recorded: Dataset) -> None:
    with pytest.raises(UsageError, match=r"stays: it ended 0\.\d days ago"):
        upkeep.prune(recorded)
    before = list(recorded.replay())
    with later(31):
        pruned, freed = upkeep.prune(recorded)
        with pytest.raises(UsageError, match="no raw journal"):
            upkeep.prune(pruned)
    assert freed > 500
    assert not (recorded.path / "journal").exists()
    assert "pruned of its raw journal" in pruned.versions[-1].change
    assert list(pruned.replay()) == before
    assert pruned.verify() == open_dataset(pruned.path, version=1).verify() == 2


def test_what_a_prune_that_was_killed_has_left_goes_with_the_next(recorded: Dataset) -> None:
    shutil.copytree(recorded.path / "journal", recorded.path / "kept")
    with later(31):
        pruned, _ = upkeep.prune(recorded)
        (recorded.path / "kept").rename(recorded.path / "journal")
        assert pruned.verify() == 2
        again, freed = upkeep.prune(pruned)
    assert freed > 500
    assert (again.version, (recorded.path / "journal").exists()) == (2, False)


def test_a_journal_stays_where_the_columns_are_not_what_it_holds(recorded: Dataset) -> None:
    (recorded.path / "segments/quotes-000001.parquet").write_bytes(b"gone")
    with later(31), pytest.raises(Damaged, match="quotes-000001"):
        upkeep.prune(recorded)
    short = parts.write_segment(recorded.path, 1, "quotes", quotes(1, 2))
    segments = tuple(short if s.kind == "quotes" else s for s in recorded._manifest.segments)
    manifest.next_version(recorded.path, recorded._manifest, segments=segments)
    with later(31), pytest.raises(Damaged, match="holds 40 quotes of AAPL, its columns 2"):
        upkeep.prune(open_dataset(recorded.path))
    assert (recorded.path / "journal").is_dir()


def test_a_journal_that_holds_more_than_the_tables_stays_unless_it_may_go(tmp_path: Path) -> None:
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path)
        with WebSocketDataRecorder("AAPL", settings=settings) as recorder:
            vendor.tell(both(1), message({"ev": "NOI", "T": "AAPL"}), both(2))
            until(lambda: recorder.stats.events == 4)
        dataset = open_dataset(recorder.save_dataset("odd"))
    with later(31):
        with pytest.raises(UsageError, match="1 events lie in the journal alone"):
            upkeep.prune(dataset)
        assert upkeep.prune(dataset, unknown=True)[0].version == 2


def test_a_journal_of_more_symbols_than_were_asked_for_stays_unless_it_may_go(tmp_path: Path) -> None:
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path)
        connector = get_connector("massive", settings=settings)
        connector.enable_recording(symbols=["AAPL"])
        connector.start_stream(["AAPL", "MSFT"], callback=lambda symbol, book: None)
        vendor.tell(message(quote(1), quote(2, "MSFT"), quote(3)))
        until(lambda: connector._growing and connector._growing.table("quotes").num_rows == 2)  # type: ignore[attr-defined]
        path = connector.disable_recording()
        connector.stop_stream()
    dataset = open_dataset(path)
    assert dataset.symbols == ("AAPL",)
    with later(31):
        with pytest.raises(UsageError, match="it holds MSFT, which"):
            upkeep.prune(dataset)
        assert upkeep.prune(dataset, unknown=True)[0].version == 2


def test_a_mark_is_a_labelled_stretch_that_says_what_it_was_fitted_on() -> None:
    dataset = made(quotes=quotes(1, 2, 3))
    second = dataset.mark("fast", "2013-10-09T10:00", "2013-10-09T10:00:02", symbol="AAPL", fitted_on="day 8")
    third = second.mark("whole day", "2013-10-09", "2013-10-09")
    assert third.version == 3
    assert third.marks[1] == manifest.Mark("fast", T0, T0 + 2 * clock.SECOND, "AAPL", "day 8")
    assert [mark.label for mark in open_dataset("day").marks] == ["whole day", "fast"]
    assert third.mark("whole day", "2013-10-09", "2013-10-09") is third
    assert open_dataset("day", version=1).marks == ()
    assert [version.change for version in third.versions] == ["imported", "marked fast", "marked whole day"]


def test_marks_that_mean_nothing_are_refused() -> None:
    dataset = made(quotes=quotes(1, 2, 3))
    with pytest.raises(UsageError, match="label"):
        dataset.mark(" ", "2013-10-09", "2013-10-09")
    with pytest.raises(UnknownName, match="MSFT"):
        dataset.mark("x", "2013-10-09", "2013-10-09", symbol="MSFT")
    for start, end in (
        ("2013-10-08", "2013-10-08"),
        ("2013-10-10", "2013-10-11"),
        ("2013-10-09", "2013-10-08"),
    ):
        with pytest.raises(BadRange):
            dataset.mark("x", start, end)
    with pytest.raises(BadRange, match="is not a date"):
        dataset.mark("x", "soon", datetime(2013, 10, 9))


def test_the_catalogue_is_searched_by_completeness() -> None:
    made("whole")
    gap = Lost(5, 9, "cut", ("quotes",))
    lossy = made("lossy")
    manifest.next_version(lossy.path, lossy._manifest, gaps=(gap,))
    healed = made("healed")
    filled = Filled(5, 9, "quotes", "rest", 3, 1, final=True)
    manifest.next_version(healed.path, healed._manifest, gaps=(gap,), filled=(filled,))
    half = made("half")
    still = msgspec.structs.replace(filled, channel="trades", open="no answer", final=False)
    manifest.next_version(half.path, half._manifest, gaps=(gap,), filled=(filled, still))
    assert [d.name for d in list_datasets(complete=True)] == ["whole", "healed"]
    assert [d.name for d in list_datasets(complete=False)] == ["lossy", "half"]


def test_bars_come_at_any_interval_of_what_is_asked_for() -> None:
    dataset = made(quotes=quotes(*range(60)), trades=trades(*range(0, 60, 2)))
    assert dataset.bars("1s").attrs["tapelab"]["built_from"] == "trades"
    assert len(dataset.bars("1s")) == 30
    mids = dataset.bars("10 sec", of="quotes")
    assert mids["open"].tolist() == [100.5 + n for n in range(0, 60, 10)]
    assert mids.attrs["tapelab"] | {"built_from": "quotes", "interval": "10s"} == mids.attrs["tapelab"]
    assert len(dataset.bars("45m")) == len(dataset.bars("90min")) == 1
    # 45 minutes are counted from the exchange's midnight: 09:45 in New York, then 10:30
    assert (
        dataset.bars("45m")["timestamp"].iloc[0].hour * 60 + dataset.bars("45m")["timestamp"].iloc[0].minute
        == 585 + 240
    )
    for odd in ("7m", "25h", "0s", "1.5m", "10x"):
        with pytest.raises(UsageError, match="no interval"):
            dataset.bars(odd)
    with pytest.raises(UnknownName, match="tirades"):
        dataset.bars(of="tirades")  # type: ignore[call-overload]


def test_bars_are_not_made_of_longer_bars() -> None:
    from test_dataset import bars

    dataset = made(bars=bars(0, 1, 3))
    assert len(dataset.bars("3m")) == 2
    for shorter in ("1s", "90s"):
        with pytest.raises(UsageError, match="cannot be made of 1m bars"):
            dataset.bars(shorter)
