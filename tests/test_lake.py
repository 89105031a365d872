"""The lake: what was kept comes back, whole, with where it came from, and opens without us."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tapelab import errors
from tapelab.market import sessions, tables
from tapelab.market.adjust import Dividend, Split
from tapelab.market.clock import MINUTE
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.settings import Settings
from tapelab.store.lake import DayFile, Dividends, Held, Lake, Splits, compaction, sheets

MINUTES = "us_stocks_sip/minute_aggs_v1"
DAYS = [date(2013, 10, day) for day in (7, 8, 9, 10, 11)]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(Settings.load(home=tmp_path))


def bars(symbol: str, *days: date, price: float = 100.0, rows: int = 3) -> pa.Table:
    starts = [
        sessions.day_start(Market.STOCKS, day) + 570 * MINUTE + n * MINUTE
        for day in days
        for n in range(rows)
    ]
    columns = {
        "timestamp": pa.array(starts, pa.int64()),
        "session": pa.array([day for day in days for _ in range(rows)], pa.date32()),
        "symbol": pa.array([symbol] * len(starts)),
        **{
            name: pa.array([price] * len(starts))
            for name in ("open", "high", "low", "close", "volume", "vwap")
        },
        "transactions": pa.array([1] * len(starts), pa.int64()),
    }
    return tables.conform(pa.table(columns), tables.BARS)


def about(day: date, etag: str = "e1", known_at: int = 5) -> DayFile:
    return DayFile(MINUTES, day, etag, 1, 2, known_at, tape="flat-files")


def keep_file(lake: Lake, source: Path, day: date, etag: str = "e1") -> Path:
    with lake.incoming(MINUTES, day) as place:
        shutil.copyfile(source, place)
        return lake.keep_file(place, about(day, etag))


@pytest.fixture
def minute_file(real_day: Path) -> Path:
    return real_day / wire.file_key(MINUTES, date(2013, 10, 9))


def test_an_empty_lake_holds_nothing_and_creates_nothing(lake: Lake) -> None:
    table, coverage = lake.read(["AAPL"], DAYS, "1m", product=MINUTES)
    assert (len(table), coverage) == (0, {})
    assert table.schema.equals(tables.BARS)
    assert not lake.folder.exists()


def test_what_rest_gave_comes_back_with_its_origin(lake: Lake) -> None:
    given_bars = bars("AAPL", *DAYS[:2])
    lake.keep_rest(
        "AAPL", "1m", given_bars, {DAYS[0]: True, DAYS[1]: False}, known_at=7, tape="simulated seed=7"
    )
    table, coverage = lake.read(["AAPL"], DAYS, "1m", product=MINUTES)
    assert table.equals(given_bars)
    assert coverage == {
        ("AAPL", DAYS[0]): Held("rest", 7, True, tape="simulated seed=7"),
        ("AAPL", DAYS[1]): Held("rest", 7, False, tape="simulated seed=7"),
    }


def test_a_day_without_bars_is_covered_too(lake: Lake) -> None:
    lake.keep_rest("AAPL", "1m", bars("AAPL", DAYS[0]), {DAYS[0]: True, DAYS[1]: True}, known_at=7)
    table, coverage = lake.read(["AAPL"], DAYS[1:2], "1m", product=MINUTES)
    assert len(table) == 0
    assert coverage["AAPL", DAYS[1]].final


def test_days_of_one_month_share_a_file_and_a_new_answer_replaces_its_days_only(lake: Lake) -> None:
    lake.keep_rest("AAPL", "1m", bars("AAPL", *DAYS[:2]), dict.fromkeys(DAYS[:2], False), known_at=7)
    lake.keep_rest(
        "AAPL", "1m", bars("AAPL", *DAYS[1:3], price=200), dict.fromkeys(DAYS[1:3], True), known_at=8
    )
    table, coverage = lake.read(["AAPL"], DAYS, "1m", product=None)
    assert table["close"].to_pylist() == [100.0] * 3 + [200.0] * 6
    assert [held.known_at for held in coverage.values()] == [7, 8, 8]
    assert [path.name for path in lake.folder.rglob("*.parquet")] == ["2013-10.parquet"]


def test_answers_with_more_days_than_are_kept_leave_the_rest_out(lake: Lake) -> None:
    lake.keep_rest("AAPL", "1m", bars("AAPL", *DAYS), {DAYS[2]: True}, known_at=7)
    table, coverage = lake.read(["AAPL"], DAYS, "1m", product=None)
    assert set(table["session"].to_pylist()) == {DAYS[2]} == {day for _, day in coverage}


def test_months_and_bases_and_symbols_that_differ_in_case_do_not_mix(lake: Lake) -> None:
    september = date(2013, 9, 30)
    for name, price in (("BApA", 1.0), ("BAPA", 2.0)):
        lake.keep_rest(
            name,
            "1m",
            bars(name, september, DAYS[0], price=price),
            {september: True, DAYS[0]: True},
            known_at=7,
        )
    lake.keep_rest("BAPA", "1d", bars("BAPA", DAYS[0], price=3.0, rows=1), {DAYS[0]: True}, known_at=7)
    assert set(lake.read(["BApA"], [september, *DAYS], "1m", product=None)[0]["close"].to_pylist()) == {1.0}
    assert set(lake.read(["BAPA"], [september, *DAYS], "1m", product=None)[0]["close"].to_pylist()) == {2.0}
    assert lake.read(["BAPA"], DAYS, "1d", product=None)[0]["close"].to_pylist() == [3.0]
    names = [str(path.relative_to(lake.folder)).lower() for path in lake.folder.rglob("*.parquet")]
    assert len(set(names)) == 5, "file names must differ where case does not count"


def test_a_flat_file_covers_every_symbol_of_its_day(lake: Lake, minute_file: Path) -> None:
    day = date(2013, 10, 9)
    path = keep_file(lake, minute_file, day)
    assert path == lake.day_path(MINUTES, day)
    table, coverage = lake.read(["SPY", "NOTHERE", "AIG"], DAYS, "1m", product=MINUTES)
    expected = wire.read_flat_file(minute_file, MINUTES, day=day)
    spy = expected.filter(pa.compute.equal(expected["symbol"], "SPY"))
    assert table.filter(pa.compute.equal(table["symbol"], "SPY")).equals(spy)
    assert table["symbol"].unique().to_pylist() == ["AIG", "SPY"]
    assert {held.origin for held in coverage.values()} == {"flat_file"}
    assert {name for name, _ in coverage} == {"SPY", "NOTHERE", "AIG"}
    held = lake.day_file(MINUTES, day)
    assert held is not None
    assert msgspec.structs.replace(held, rows=0) == about(day)
    assert (held.rows, held.notes) == (len(expected), ())
    assert lake.names(MINUTES, day) == ["AIG", "BAC", "IBM", "SPY"]


def test_where_both_routes_hold_a_day_the_file_wins(lake: Lake, minute_file: Path) -> None:
    lake.keep_rest("SPY", "1m", bars("SPY", *DAYS), dict.fromkeys(DAYS, True), known_at=7)
    keep_file(lake, minute_file, DAYS[2])
    table, coverage = lake.read(["SPY"], DAYS, "1m", product=MINUTES)
    assert [coverage["SPY", day].origin for day in DAYS] == ["rest", "rest", "flat_file", "rest", "rest"]
    rows = pa.compute.equal(table["session"], pa.scalar(DAYS[2], pa.date32()))
    assert len(table.filter(rows)) > 700
    assert len(table) == 12 + len(table.filter(rows))
    assert table.equals(table.sort_by("timestamp"))


def test_a_replaced_file_takes_the_place_of_the_old_one(lake: Lake, minute_file: Path) -> None:
    keep_file(lake, minute_file, DAYS[2])
    keep_file(lake, minute_file, DAYS[2], etag="e2")
    found = lake.day_file(MINUTES, DAYS[2])
    assert found is not None
    assert found.etag == "e2"


def test_pandas_and_polars_open_the_lake_without_us(lake: Lake, minute_file: Path) -> None:
    path = keep_file(lake, minute_file, DAYS[2])
    lake.keep_rest("SPY", "1m", bars("SPY", DAYS[0]), {DAYS[0]: True}, known_at=7)
    filled = lake.folder / "rest/1m/SPY/2013-10.parquet"
    for one in (path, filled):
        by_pandas, by_polars = pd.read_parquet(one), pl.read_parquet(one)
        assert by_pandas["timestamp"].dt.tz is not None
        assert list(by_pandas) == by_polars.columns == tables.BARS.names
        assert by_polars["close"].to_list() == by_pandas["close"].tolist()
    assert pd.read_parquet(filled)["timestamp"].iloc[0] == pd.Timestamp(
        "2013-10-07 09:30", tz="America/New_York"
    )


def test_a_file_that_is_not_what_was_written_is_named_with_the_remedy(lake: Lake, minute_file: Path) -> None:
    path = keep_file(lake, minute_file, DAYS[2])
    whole = path.read_bytes()
    middle = len(whole) // 2
    for broken in (whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]):
        path.write_bytes(broken)
        with pytest.raises(errors.Damaged, match=r"2013-10-09\.parquet is not what was written\. Delete it"):
            lake.read(["AIG", "BAC", "IBM", "SPY"], DAYS, "1m", product=MINUTES)


def test_a_file_of_somebody_else_is_not_taken_for_ours(lake: Lake) -> None:
    path = lake.day_path(MINUTES, DAYS[0])
    path.parent.mkdir(parents=True)
    pd.DataFrame({"close": [1.0]}).to_parquet(path)
    with pytest.raises(errors.Damaged):
        lake.coverage(["SPY"], DAYS, "1m", product=MINUTES)


@pytest.mark.parametrize("content", [b"", b"ticker,volume\nSPY,1\n", b"\x1f\x8bnot gzip"])
def test_a_file_that_cannot_be_what_it_claims_leaves_nothing(
    lake: Lake, tmp_path: Path, content: bytes
) -> None:
    source = tmp_path / "file"
    source.write_bytes(content)
    with pytest.raises((errors.Damaged, errors.MalformedAnswer)):
        keep_file(lake, source, DAYS[0])
    assert [path for path in lake.folder.rglob("*") if path.is_file() and path.suffix != ".lock"] == []
    assert lake.day_file(MINUTES, DAYS[0]) is None


def test_a_writer_killed_in_the_middle_leaves_a_whole_lake(lake: Lake, minute_file: Path) -> None:
    day = DAYS[2]
    keep_file(lake, minute_file, day)
    lake.keep_rest("SPY", "1m", bars("SPY", DAYS[0]), {DAYS[0]: True}, known_at=7)
    script = f"""
import os, pathlib, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import pyarrow.parquet as pq
from test_lake import DAYS, bars, keep_file
from tapelab.settings import Settings
from tapelab.store.lake import Lake
write = pq.ParquetWriter.write_table
def killed(self, *args, **more):
    write(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
pq.ParquetWriter.write_table = killed
lake = Lake(Settings.load(home={str(lake.folder.parents[1])!r}))
if sys.argv[1] == "file":
    keep_file(lake, pathlib.Path({str(minute_file)!r}), DAYS[2], etag="e2")
else:
    lake.keep_rest("SPY", "1m", bars("SPY", *DAYS[:2]), dict.fromkeys(DAYS[:2], True), known_at=8)
"""
    both = [subprocess.Popen([sys.executable, "-c", script, what]) for what in ("file", "rest")]
    assert [process.wait(timeout=120) for process in both] == [-signal.SIGKILL] * 2
    assert list(lake.folder.rglob("*.part")), "the test must kill in the middle of writing"
    table, coverage = lake.read(["SPY"], DAYS, "1m", product=MINUTES)
    assert set(coverage) == {("SPY", DAYS[0]), ("SPY", day)}
    assert coverage["SPY", day].etag == "e1"
    assert len(table) > 700
    keep_file(lake, minute_file, day, etag="e3")
    lake.keep_rest("SPY", "1m", bars("SPY", *DAYS[:2]), dict.fromkeys(DAYS[:2], True), known_at=9)
    assert not list(lake.folder.rglob("*.part")), "the next writer takes away what was left"


def test_many_writers_of_one_month_lose_nothing(lake: Lake) -> None:
    days = [s.date for s in sessions.between(Market.STOCKS, date(2013, 10, 1), date(2013, 10, 31))]

    def keep(day: date) -> None:
        lake.keep_rest("SPY", "1m", bars("SPY", day), {day: True}, known_at=7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, days))
    table, coverage = lake.read(["SPY"], days, "1m", product=None)
    assert len(coverage) == len(days)
    assert len(table) == 3 * len(days)


def test_splits_and_dividends_are_kept_with_the_time_they_were_known(lake: Lake) -> None:
    splits = Splits(7, (Split("AAPL", date(2020, 8, 31), 1, 4),))
    dividends = Dividends(8, (Dividend("AAPL", date(2020, 8, 7), 0.82),))
    assert lake.splits("AAPL") is None
    lake.keep_reference("AAPL", splits)
    lake.keep_reference("AAPL", dividends)
    assert (lake.splits("AAPL"), lake.dividends("AAPL")) == (splits, dividends)
    (lake.folder / "reference/splits/AAPL.json").write_text("{")
    with pytest.raises(errors.Damaged, match=r"AAPL\.json"):
        lake.splits("AAPL")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file, not a folder")
    lake = Lake(Settings.load(home=tmp_path / "home"))
    with pytest.raises(errors.Unwritable, match="TAPELAB_HOME"):
        lake.keep_rest("SPY", "1m", bars("SPY", DAYS[0]), {DAYS[0]: True}, known_at=7)


@hypothesis_settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None
)
@given(
    answers=st.lists(
        st.tuples(st.sampled_from(["A", "B"]), st.lists(st.sampled_from(DAYS), unique=True, min_size=1)),
        max_size=6,
    )
)
def test_the_lake_is_the_last_answer_of_each_day(
    tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[str, list[date]]]
) -> None:
    lake = Lake(Settings.load(home=tmp_path_factory.mktemp("home")))
    last: dict[tuple[str, date], float] = {}
    for number, (symbol, days) in enumerate(answers, start=1):
        table = bars(symbol, *sorted(days), price=float(number))
        lake.keep_rest(symbol, "1m", table, dict.fromkeys(days, True), known_at=number)
        last.update(((symbol, day), float(number)) for day in days)
    table, coverage = lake.read(["A", "B"], DAYS, "1m", product=None)
    assert {key: float(held.known_at) for key, held in coverage.items()} == last
    keys = zip(table["symbol"].to_pylist(), table["session"].to_pylist(), strict=True)
    assert np.array_equal(table["close"].to_numpy(), [last[key] for key in keys])
    assert len(table) == 3 * len(last)


MONTH = [s.date for s in sessions.between(Market.STOCKS, date(2013, 10, 1), date(2013, 10, 31))]
CROWD = ["A", "AIG", "BAC", "BApA", "Z"]


def day_bars(day: date, price: float, rows: int = 3) -> pa.Table:
    parts = [bars(name, day, price=price + number, rows=rows) for number, name in enumerate(CROWD)]
    return tables.concat(parts, tables.BARS).drop("vwap")


def keep_day(
    lake: Lake, folder: Path, day: date, *, price: float = 1.0, etag: str = "e1", rows: int = 3
) -> None:
    source = folder / f"{day}.csv"
    source.write_bytes(wire.write_flat_file(day_bars(day, price, rows), MINUTES))
    keep_file(lake, source, day, etag)


def closes(lake: Lake, days: list[date], symbols: list[str] = CROWD) -> list[float]:
    table, coverage = lake.read(symbols, days, "1m", product=MINUTES)
    assert len(coverage) == len(days) * len(symbols)
    assert table.equals(table.sort_by([("symbol", "ascending"), ("timestamp", "ascending")]))
    return [float(close) for close in table["close"].to_pylist()]


def test_a_month_waits_until_it_is_worth_a_file_and_is_then_written_when_it_is_over(
    lake: Lake, tmp_path: Path
) -> None:
    path = lake.month_path(MINUTES, MONTH[0])
    for day in MONTH[:4]:
        keep_day(lake, tmp_path, day)
    assert lake.compact(MINUTES) == []
    keep_day(lake, tmp_path, MONTH[4])
    assert lake.compact(MINUTES) == [path]
    for day in MONTH[5:-1]:
        keep_day(lake, tmp_path, day)
    assert lake.compact(MINUTES) == [path]
    keep_day(lake, tmp_path, MONTH[-1])
    assert lake.compact(MINUTES, last=date(2013, 9, 30)) == []
    assert lake.compact(MINUTES) == [path]
    assert lake.compact(MINUTES) == []
    assert closes(lake, MONTH) == [1.0 + n for n in range(5) for _ in range(3 * len(MONTH))]


def test_days_kept_by_an_older_version_go_into_one_month_with_those_of_this_one(
    lake: Lake, tmp_path: Path
) -> None:
    for day in MONTH:
        keep_day(lake, tmp_path, day)
    for day in (MONTH[0], MONTH[7]):
        old = lake.day_path(MINUTES, day)
        with sheets.Writer(old, tables.BARS) as writer:  # where every column but the key's may be null
            writer.write(tables.conform(day_bars(day, 1.0), tables.BARS))
            writer.close(msgspec.structs.replace(about(day), rows=3 * len(CROWD)))
    folder = lake.day_path(MINUTES, MONTH[0]).parent
    rows = 3 * len(CROWD) * len(MONTH)
    assert len(pd.read_parquet(folder)) == len(pl.read_parquet(folder / "*.parquet")) == rows
    lake.compact(MINUTES)
    assert closes(lake, MONTH) == [1.0 + n for n in range(5) for _ in range(3 * len(MONTH))]


def test_a_day_that_was_replaced_is_read_from_its_own_file_until_the_month_is_written_again(
    lake: Lake, tmp_path: Path
) -> None:
    for day in MONTH:
        keep_day(lake, tmp_path, day)
    lake.compact(MINUTES)
    keep_day(lake, tmp_path, MONTH[7], price=50.0, etag="e2", rows=1)
    before = closes(lake, MONTH, ["A"])
    assert before == [1.0] * 21 + [50.0] + [1.0] * 3 * (len(MONTH) - 8)
    assert lake.compact(MINUTES)
    assert closes(lake, MONTH, ["A"]) == before
    lake.day_path(MINUTES, MONTH[7]).unlink()
    _, coverage = lake.read(["A"], MONTH, "1m", product=MINUTES)
    assert ("A", MONTH[7]) not in coverage, "day files are the truth"


def test_a_damaged_month_file_is_not_missed_and_is_written_again(lake: Lake, tmp_path: Path) -> None:
    for day in MONTH:
        keep_day(lake, tmp_path, day)
    (path,) = lake.compact(MINUTES)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(closes(lake, MONTH)) == 3 * len(CROWD) * len(MONTH)
    assert [(broken.what, broken.path) for broken in lake.verify()] == [("month", path)]
    assert lake.compact(MINUTES) == [path]
    assert lake.verify() == []


def test_a_busy_symbols_month_is_read_without_its_neighbours(lake: Lake, tmp_path: Path) -> None:
    busy = 390
    for day in MONTH:
        parts = [bars(name, day, rows=busy if name == "BAC" else 3) for name in CROWD]
        source = tmp_path / f"{day}.csv"
        table = tables.concat(parts, tables.BARS).drop("vwap")
        source.write_bytes(wire.write_flat_file(table, MINUTES))
        keep_file(lake, source, day)
    (path,) = lake.compact(MINUTES)
    assert busy * len(MONTH) >= compaction.ALONE
    footer = sheets.footer(path)
    assert footer is not None
    assert [(group.first, group.last, group.rows) for group in footer.index] == [
        ("A", "AIG", 6 * len(MONTH)),
        ("BAC", "BAC", busy * len(MONTH)),
        ("BApA", "Z", 6 * len(MONTH)),
    ]
    assert len(closes(lake, MONTH, ["BAC"])) == busy * len(MONTH)


@pytest.mark.parametrize(("alone", "rows_at_a_time"), [(5, 7), (90, 100), (10_000, 40), (10_000, 10_000)])
def test_a_month_in_many_slices_and_groups_is_the_same(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: int, rows_at_a_time: int
) -> None:
    monkeypatch.setattr("tapelab.store.lake.compaction.ALONE", alone)
    for number, day in enumerate(MONTH):
        keep_day(lake, tmp_path, day, price=float(number), rows=4)
    expected = closes(lake, MONTH)
    monkeypatch.setattr("tapelab.store.lake.compaction.SLICE", rows_at_a_time)
    monkeypatch.setattr("tapelab.store.lake.sheets.ROW_GROUP", rows_at_a_time)
    lake.compact(MINUTES)
    assert closes(lake, MONTH) == expected
    assert closes(lake, MONTH[3:9], ["BApA"]) == [3.0 + n for n in range(3, 9) for _ in range(4)]


def test_a_compaction_killed_in_the_middle_leaves_a_whole_lake(lake: Lake, tmp_path: Path) -> None:
    for day in MONTH:
        keep_day(lake, tmp_path, day)
    script = f"""
import os, signal, sys
import pyarrow.parquet as pq
from tapelab.settings import Settings
from tapelab.store.lake import Lake
write = pq.ParquetWriter.write_table
def killed(self, *args, **more):
    write(self, *args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
pq.ParquetWriter.write_table = killed
Lake(Settings.load(home={str(lake.folder.parents[1])!r})).compact({MINUTES!r})
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert list(lake.folder.rglob("*.part")), "the test must kill in the middle of writing"
    assert len(closes(lake, MONTH)) == 3 * len(CROWD) * len(MONTH)
    assert lake.compact(MINUTES)
    assert lake.verify() == []
    assert not list(lake.folder.rglob("*.part"))


def test_pandas_and_polars_open_a_month_and_a_year_of_days_without_us(lake: Lake, tmp_path: Path) -> None:
    for day in MONTH:
        keep_day(lake, tmp_path, day)
    (month,) = lake.compact(MINUTES)
    folder = lake.folder / MINUTES
    by_pandas = pd.read_parquet(month, filters=[("symbol", "==", "BApA")])
    by_polars = pl.scan_parquet(folder / "2013/*/*.parquet").filter(pl.col("symbol") == "BApA").collect()
    assert len(by_pandas) == len(by_polars) == 3 * len(MONTH)
    assert by_pandas["close"].tolist() == by_polars.sort("timestamp")["close"].to_list()
    assert pl.read_parquet(month)["symbol"].is_sorted()


def test_the_manifest_says_what_each_file_is_and_is_believed_only_for_that_file(
    lake: Lake, tmp_path: Path
) -> None:
    for day in MONTH[:2]:
        keep_day(lake, tmp_path, day)
    manifest = lake.folder / MINUTES / "2013/manifest.json"
    entry = msgspec.json.decode(manifest.read_bytes())["files"][str(MONTH[0])]["file"]
    assert (entry["etag"], entry["size"], entry["rows"], entry["known_at"]) == ("e1", 1, 3 * len(CROWD), 5)
    for content in (b"", b"{", manifest.read_bytes().replace(b'"etag": "e1"', b'"etag": "e9"')):
        manifest.write_bytes(content)
        lake.day_path(MINUTES, MONTH[0]).touch()
        held = lake.day_file(MINUTES, MONTH[0])
        assert held is not None
        assert held.etag == "e1"
    manifest.unlink()
    assert list(lake.sound_files(MINUTES, MONTH)) == MONTH[:2]


def test_every_kind_of_damage_is_named_with_what_it_held(lake: Lake, tmp_path: Path) -> None:
    keep_day(lake, tmp_path, MONTH[0])
    lake.keep_rest("BApA", "1m", bars("BApA", DAYS[0]), {DAYS[0]: True}, known_at=7)
    lake.keep_reference("AAPL", Splits(7, ()))
    assert lake.verify() == []
    for path in [*lake.folder.rglob("*.parquet"), *lake.folder.rglob("AAPL.json")]:
        path.write_bytes(path.read_bytes()[:-5])
    found = {broken.what: broken for broken in lake.verify()}
    assert (found["day"].product, found["day"].day) == (MINUTES, MONTH[0])
    assert (found["rest"].symbol, found["rest"].base, found["rest"].stretch) == ("BApA", "1m", "2013-10")
    assert found["reference"].path.name == "AAPL.json"
    assert len(found) == 3
    for broken in found.values():
        lake.discard(broken)
    assert lake.verify() == []
    assert lake.coverage(["BApA"], DAYS, "1m", product=MINUTES) == {}
