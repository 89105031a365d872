"""Datasets: versions that never change, files that are checked, ticks in order of arrival."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tapelab.errors import Damaged, DatasetNotFound, NoData, StoreError, UnknownName, UsageError
from tapelab.market import clock, tables
from tapelab.market.clock import FixedClock
from tapelab.market.events import Bar, Quote, Trade
from tapelab.massive import wire
from tapelab.settings import Settings, use
from tapelab.store.datasets import catalogue, manifest, parts
from tapelab.store.datasets.dataset import Dataset, list_datasets, open_dataset

T0 = 1_381_327_200 * clock.SECOND  # 2013-10-09 10:00 New York


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


def quotes(*at: int, symbol: str = "AAPL") -> pa.Table:
    rows = [
        {
            "ts_event": T0 + n * clock.SECOND, "ts_recv": None, "arrival": n, "symbol": symbol,
            "bid": 100.0 + n, "ask": 101.0 + n, "bid_size": 1.0, "ask_size": 2.0,
            "sequence": n, "conditions": [1],
        }
        for n in at
    ]  # fmt: skip
    return tables.conform(pa.Table.from_pylist(rows), tables.QUOTES)


def trades(*at: int, symbol: str = "AAPL") -> pa.Table:
    rows = [
        {
            "ts_event": T0 + n * clock.SECOND, "arrival": n, "symbol": symbol,
            "price": 100.5 + n, "size": 10.0, "sequence": n,
            "conditions": None, "exchange": 4, "id": str(n), "correction": 0,
        }
        for n in at
    ]  # fmt: skip
    return tables.conform(pa.Table.from_pylist(rows), tables.TRADES)


def bars(*at: int) -> pa.Table:
    rows = [
        {
            "timestamp": T0 + n * clock.MINUTE, "session": date(2013, 10, 9), "symbol": "AAPL", "open": 1.0,
            "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0, "vwap": 1.2, "transactions": 3,
        }
        for n in at
    ]  # fmt: skip
    return tables.conform(pa.Table.from_pylist(rows), tables.BARS)


def made(name: str = "day", **given: pa.Table) -> Dataset:
    given = given or {"quotes": quotes(1, 2, 3), "trades": trades(2, 4)}
    return catalogue.from_tables(name, **given, source="flat_file")


def test_imported_ticks_are_in_the_order_of_the_exchange_trades_first_at_a_tie() -> None:
    dataset = made()
    events = [(type(event).__name__, (event.ts_event - T0) // clock.SECOND) for event in dataset.replay()]
    assert events == [("Quote", 1), ("Trade", 2), ("Quote", 2), ("Quote", 3), ("Trade", 4)]
    assert dataset.clock == "event"
    assert dataset.provenance["source"] == "flat_file"
    assert dataset.start == datetime(2013, 10, 9, 14, 0, 1, tzinfo=UTC)
    assert dataset.end == datetime(2013, 10, 9, 14, 0, 4, tzinfo=UTC)
    assert dataset.coverage["AAPL"].quotes == 3
    assert dataset.coverage["AAPL"].trades == 2


def test_parts_share_the_rows_out_and_a_replay_puts_them_together(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made("whole", quotes=quotes(*range(0, 40, 2)), trades=trades(*range(1, 40, 3)))
    monkeypatch.setattr(catalogue, "PART_ROWS", 7)
    cut = made("cut", quotes=quotes(*range(0, 40, 2)), trades=trades(*range(1, 40, 3)))
    assert len(list((cut.path / "segments").iterdir())) > 5
    assert list(cut.replay()) == list(whole.replay())
    assert cut.table("quotes").equals(whole.table("quotes"))


@pytest.mark.parametrize("frame", ["pandas", "polars", "arrow"])
def test_tables_come_as_the_frame_that_is_asked_for(frame: str) -> None:
    found = made().quotes(frame=frame)  # type: ignore[call-overload]
    assert isinstance(found, {"pandas": pd.DataFrame, "polars": pl.DataFrame, "arrow": pa.Table}[frame])
    assert len(found) == 3


def test_bars_come_from_trades_then_quotes_then_bars() -> None:
    by = {kind: made(kind, **{kind: table}) for kind, table in (("quotes", quotes(1)), ("bars", bars(0, 1)))}
    by["trades"] = made("trades", trades=trades(1, 2), quotes=quotes(1))
    for kind, dataset in by.items():
        frame = dataset.bars("1min")
        assert frame.attrs["tapelab"]["built_from"] == kind
        assert frame.attrs["tapelab"]["dataset"] == kind
    assert by["trades"].bars("1m")["volume"].tolist() == [20.0]
    assert len(by["bars"].bars("5m")) == 1


def test_a_bar_that_was_sent_again_counts_once_with_its_later_values() -> None:
    later = bars(0).set_column(3, tables.BARS.field("open"), pa.array([9.0]))
    dataset = made(bars=pa.concat_tables([bars(0, 1), later]))
    assert dataset.table("bars").column("open").to_pylist() == [9.0, 1.0]
    assert [type(event) for event in dataset.replay()] == [Bar, Bar]


def test_a_tag_makes_a_version_and_the_earlier_one_stays() -> None:
    first = made()
    second = first.tag("open", "quiet").tag("fomc")
    assert (first.version, second.version) == (1, 3)
    assert open_dataset("day").tags == ("open", "quiet", "fomc")
    assert open_dataset("day", version=1).tags == ()
    assert second.tag("open") is second
    with pytest.raises(UsageError):
        second.tag("a,b")
    with pytest.raises(StoreError, match="someone else"):
        manifest.save(first.path, first._manifest)


def test_datasets_are_found_by_name_folder_and_bars(tmp_path: Path) -> None:
    dataset = made()
    inside = dataset.path / "bars_1min.parquet"
    for way in ("day", dataset.path, str(dataset.path), inside, str(inside)):
        assert open_dataset(way).path == dataset.path
    with pytest.raises(DatasetNotFound, match="'dya'") as caught:
        open_dataset("dya")
    assert "'day'" in caught.value.remedy
    with pytest.raises(DatasetNotFound):
        open_dataset(tmp_path)
    with pytest.raises(DatasetNotFound, match="version 7"):
        open_dataset("day", version=7)


def test_the_catalogue_is_searched_by_symbol_day_and_tag() -> None:
    made("one").tag("quiet")
    made("two", quotes=quotes(1, symbol="MSFT"))
    assert [d.name for d in list_datasets()] == ["one", "two"]
    assert [d.name for d in list_datasets(symbol="MSFT")] == ["two"]
    assert [d.name for d in list_datasets(tag="quiet")] == ["one"]
    assert [d.name for d in list_datasets(date="2013-10-09")] == ["one", "two"]
    assert list_datasets(date=date(2013, 10, 10)) == []
    with pytest.raises(UsageError, match="not a date"):
        list_datasets(date="yesterday")


def test_a_damaged_manifest_is_left_out_of_the_list_with_a_warning() -> None:
    made("good")
    path = manifest.path_of(made("bad").path, 1)
    path.write_bytes(path.read_bytes().replace(b"AAPL", b"AAPM"))
    with pytest.raises(Damaged, match=r"bad/manifest-000001\.json"):
        open_dataset("bad")
    with pytest.warns(UserWarning, match="bad is left out"):
        assert [d.name for d in list_datasets()] == ["good"]


@pytest.mark.parametrize("harm", ["remove", "flip", "cut", "replace"])
def test_a_segment_that_is_missing_or_changed_is_named(harm: str) -> None:
    dataset = made()
    assert dataset.verify() == 2
    path = dataset.path / "segments" / "trades-000001.parquet"
    content = bytearray(path.read_bytes())
    if harm == "remove":
        path.unlink()
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif harm == "cut":
        path.write_bytes(content[:-20])
    else:
        parts.write_parquet(trades(1), path, replace=True)
    with pytest.raises(Damaged, match=r"trades-000001\.parquet") as caught:
        dataset.verify()
    assert len(caught.value.facts["problems"]) == 1  # type: ignore[arg-type]
    with pytest.raises(Damaged, match=r"trades-000001\.parquet"):
        dataset.table("trades")


def test_a_newer_manifest_is_refused_by_name() -> None:
    path = manifest.path_of(made().path, 1)
    envelope = json.loads(path.read_bytes())
    path.write_text(json.dumps({**envelope, "format": manifest.FORMAT + 1}))
    with pytest.raises(StoreError, match="day was written by a newer tapelab"):
        open_dataset("day")


def test_bad_names_and_empty_tables_are_refused() -> None:
    for name in ("", "..", "a/b", ".hidden", "a b", "é"):
        with pytest.raises(UsageError):
            made(name)
    with pytest.raises(NoData):
        made("empty", quotes=quotes())
    made()
    with pytest.raises(UsageError, match="already"):
        made()
    with pytest.raises(UnknownName, match="tirades"):
        open_dataset("day").table("tirades")
    with pytest.raises(UnknownName, match="haeled"):
        next(open_dataset("day").replay(view="haeled"))  # type: ignore[arg-type]


def test_a_replay_keeps_the_pace_it_is_asked_for() -> None:
    standing = FixedClock(0)
    with clock.use(standing):
        seen = [(standing.at, event.ts_event - T0) for event in made().replay(speed=2)]
    assert seen == [((at - clock.SECOND) // 2, at) for _, at in seen]
    with pytest.raises(UsageError):
        made("other").replay(speed=0)


def test_datasets_of_different_endpoints_do_not_see_each_other(home: Settings) -> None:
    made()
    with use(home.with_(rest_url="http://127.0.0.1:9")):
        assert list_datasets() == []
        with pytest.raises(DatasetNotFound):
            open_dataset("day")


numbers = st.integers(-(2**62), 2**62)
prices = st.one_of(st.none(), st.floats(0.01, 1e6))


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(numbers, numbers, prices, st.lists(st.integers(0, 90), max_size=3) | st.none()), min_size=1
    )
)
def test_a_segment_gives_back_every_value(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int, float | None, list[int] | None]]
) -> None:
    table = tables.conform(
        pa.table(
            {
                "ts_event": pa.array([row[0] for row in rows]),
                "ts_recv": pa.array([row[1] for row in rows]),
                "arrival": pa.array(range(len(rows))),
                "symbol": pa.array(["A"] * len(rows)),
                "bid": pa.array([row[2] for row in rows], pa.float64()),
                "conditions": pa.array([row[3] for row in rows], pa.list_(pa.int16())),
            }
        ),
        tables.QUOTES,
    )
    folder = tmp_path_factory.mktemp("dataset")
    segment = parts.write_segment(folder, 1, "quotes", table)
    assert parts.read_segment(folder, segment).equals(table)
    assert segment.start == min(row[0] for row in rows)


def test_the_real_day_as_a_dataset_replays_in_order(real_day: Path) -> None:
    day = date(2013, 10, 9)
    ticks = {}
    for kind, product in (("quotes", "us_stocks_sip/quotes_v1"), ("trades", "us_stocks_sip/trades_v1")):
        path = real_day / wire.file_key(product, day)
        ticks[kind] = wire.read_flat_file(path, product, day=day).slice(0, 100_000)
    dataset = made("real", **ticks)
    events = list(dataset.replay())
    assert len(events) == 200_000
    stamps = [event.ts_event for event in events if isinstance(event, Quote | Trade)]
    assert stamps == sorted(stamps)
    assert dataset.table("quotes").num_rows == 100_000
    assert dataset.verify() == 2


def test_what_was_fetched_elsewhere_becomes_a_dataset_by_the_exchanges_clock(home: Settings) -> None:
    facts = {"endpoint": home.endpoint, "routes": {"flat_file": 2, "cache": 1}, "simulated": False}
    frame = tables.to_frame(tables.with_facts(quotes(1, 2), **facts))
    made = Dataset.from_tables("day", quotes=frame, trades=tables.to_frame(trades(1), "arrow"))
    assert (made.clock, made.provenance["simulated"], made.symbols) == ("event", False, ("AAPL",))
    assert [type(event) for event in made.replay()] == [Trade, Quote, Quote]
    assert Dataset.from_tables("quotes", quotes=frame).provenance["source"] == "flat_file"
    mine = pl.DataFrame({"ts_event": [T0], "symbol": ["ZVZZT"], "price": [1.0], "size": [2.0]})
    assert Dataset.from_tables("mine", trades=mine).provenance["simulated"] is True
    hours = tables.to_frame(tables.with_facts(bars(0), interval="1h", adjust="all")).drop(columns="session")
    assert Dataset.from_tables("hours", bars=hours).bars("1h")["session"].tolist() == [date(2013, 10, 9)]
    assert open_dataset("hours").provenance["adjust"] == "all"
    with pytest.raises(UsageError, match="came from elsewhere"):
        Dataset.from_tables("x", quotes=tables.with_facts(quotes(1), endpoint="elsewhere"))
    with pytest.raises(UsageError, match="lacks the column 'symbol'"):
        Dataset.from_tables("x", quotes=quotes(1).drop(["symbol"]))
    with pytest.raises(NoData):
        Dataset.from_tables("x")
