"""Flat files in bulk, from a real S3 server: resumable, once each, by threads, processes and Dask workers."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from s3 import SECRET, serving_folder, settings_for
from tapelab import errors
from tapelab.budget import GIGABYTE, Budget
from tapelab.history import sync
from tapelab.history.bulk import Bulk
from tapelab.history.mend import mend_lake
from tapelab.history.sync import sync_flat_files, worker_environment
from tapelab.market import sessions, tables
from tapelab.market.clock import MINUTE
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.massive.flatfiles import Listed
from tapelab.settings import Settings, use
from tapelab.store.lake import Lake

MINUTES, DAYS_OF_BARS = "us_stocks_sip/minute_aggs_v1", "us_stocks_sip/day_aggs_v1"
FIRST, LAST = date(2024, 3, 1), date(2024, 4, 12)
SESSIONS = [s.date for s in sessions.between(Market.STOCKS, FIRST, LAST)]
NAMES = ["AAPL", "BAPA", "BApA", "ZVZZT"]
KILLS = 4


def minute_bars(day: date, *, rows: int = 60, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([day.toordinal(), seed])
    count = rows * len(NAMES)
    begin = sessions.day_start(Market.STOCKS, day) + 570 * MINUTE
    price = np.round(rng.uniform(5, 500, count), 2)
    return tables.conform(
        pa.table(
            {
                "timestamp": np.tile(begin + np.arange(rows) * MINUTE, len(NAMES)),
                "session": pa.repeat(pa.scalar(day, pa.date32()), count),
                "symbol": pa.array(np.repeat(NAMES, rows)),
                "open": price,
                "high": price + 1,
                "low": price - 1,
                "close": price,
                "volume": rng.integers(1, 10_000, count).astype(float),
                "transactions": rng.integers(1, 100, count),
            }
        ),
        tables.BARS,
    )


def publish(root: Path, day: date, content: bytes | None = None, *, product: str = MINUTES) -> int:
    """A day's file in the bucket; gives its size."""
    path = root / "flatfiles" / product / f"{day:%Y/%m}" / f"{day}.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = wire.write_flat_file(minute_bars(day), product) if content is None else content
    path.write_bytes(gzip.compress(text, 1))
    return path.stat().st_size


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    root = tmp_path_factory.mktemp("bucket")
    for day in SESSIONS:
        publish(root, day)
    with serving_folder(root) as url:
        yield root, url


@pytest.fixture
def here(served: tuple[Path, str], tmp_path: Path) -> Iterator[Settings]:
    with use(settings_for(served[1], tmp_path / "home", flat_file_gb_per_month=1)) as settings:
        yield settings


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Path]:
    """A bucket of one's own, to change; the settings of the context point at it."""
    for day in SESSIONS[:6]:
        publish(tmp_path / "s3", day)
    with serving_folder(tmp_path / "s3") as url, use(settings_for(url, tmp_path / "home")):
        yield tmp_path / "s3"


def whole(settings: Settings, days: list[date] = SESSIONS) -> None:
    """Every row of every day is in the lake, and no file that is not whole."""
    lake = Lake(settings)
    for day in days:
        assert lake.rows(MINUTES, day).equals(minute_bars(day))
    assert lake.verify() == []
    left = [path for path in lake.folder.rglob("*") if path.name.endswith(".part")]
    assert left == []


def total(served: tuple[Path, str]) -> int:
    return sum(path.stat().st_size for path in served[0].rglob("*.csv.gz"))


def spent(settings: Settings) -> int:
    return Budget(settings).left().bytes_this_month


def test_a_sync_brings_every_day_and_the_next_one_costs_nothing(
    served: tuple[Path, str], here: Settings
) -> None:
    report = sync_flat_files(MINUTES, FIRST, LAST)
    assert report.brought == tuple(SESSIONS)
    assert (report.rows, report.bytes, report.missing) == (240 * len(SESSIONS), total(served), ())
    whole(here)
    again = sync_flat_files(MINUTES, FIRST, LAST)
    assert (again.brought, again.held, again.bytes) == ((), tuple(SESSIONS), 0)
    assert spent(here) == total(served)
    assert "30 were here" in str(again)


def test_a_terminal_shows_how_far_how_fast_and_how_long_still(
    here: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for stderr, last in ((terminal, SESSIONS[3]), (pipe, SESSIONS[5])):
        monkeypatch.setattr(sys, "stderr", stderr)
        with Bulk() as bulk:
            bulk.begin(MINUTES, [Listed(MINUTES, last, "key", "etag", 2_000_000, 0)])
            bulk.came(500_000)
            bulk.came(500_000)
        sync_flat_files(MINUTES, FIRST, last)
    shown = terminal.getvalue()
    assert "1.0/2.0 MB" in shown, "how far"
    assert "B/s" in shown or "?" in shown, "how fast, once that is known"
    assert ":--" in shown or "0:0" in shown, "how long still"
    assert pipe.getvalue() == ""


def test_months_that_are_over_are_read_from_one_file_with_the_same_rows(here: Settings) -> None:
    lake = Lake(here)
    report = sync_flat_files(MINUTES, FIRST, LAST)
    assert report.months == 2
    days = [day for day in SESSIONS if day.month == 3]
    assert lake.month_path(MINUTES, days[0]).exists()
    from_month, held = lake.read(["BApA", "AAPL"], days, "1m", product=MINUTES)
    lake.month_path(MINUTES, days[0]).unlink()
    from_days, _ = lake.read(["BApA", "AAPL"], days, "1m", product=MINUTES)
    assert from_month.equals(from_days)
    assert len(from_days) == 120 * len(days)
    assert {known.origin for known in held.values()} == {"flat_file"}


def test_a_file_that_the_vendor_replaced_is_noticed_by_the_list(changing: Path) -> None:
    sync_flat_files(MINUTES, FIRST, SESSIONS[5])
    publish(changing, SESSIONS[2], wire.write_flat_file(minute_bars(SESSIONS[2], seed=1), MINUTES))
    report = sync_flat_files(MINUTES, FIRST, SESSIONS[5])
    assert report.brought == report.replaced == (SESSIONS[2],)
    lake = Lake(sync.current())
    table, _ = lake.read(NAMES, SESSIONS[:6], "1m", product=MINUTES)
    parts = [minute_bars(day, seed=day == SESSIONS[2]) for day in SESSIONS[:6]]
    expected = tables.concat(parts, tables.BARS).sort_by(
        [("symbol", "ascending"), ("timestamp", "ascending")]
    )
    assert table.equals(expected)


def test_sessions_without_a_file_are_named(changing: Path) -> None:
    report = sync_flat_files(MINUTES, FIRST, SESSIONS[7])
    assert report.missing == (SESSIONS[6], SESSIONS[7])
    assert "2 sessions have no file" in str(report)


def test_a_bad_file_is_an_error_that_names_it_and_stops_no_other(changing: Path) -> None:
    publish(changing, SESSIONS[3], b"ticker,volume\nAAPL,1\n")
    with pytest.raises(
        errors.MalformedAnswer, match=r"lacks 'open'\. The other 5 files are in the lake"
    ) as caught:
        sync_flat_files(MINUTES, FIRST, SESSIONS[5])
    assert caught.value.facts["days"] == [str(SESSIONS[3])]
    lake = Lake(sync.current())
    assert not lake.day_path(MINUTES, SESSIONS[3]).exists()
    assert list(lake.sound_files(MINUTES, SESSIONS)) == [d for d in SESSIONS[:6] if d != SESSIONS[3]]


def test_a_budget_that_would_break_says_so_before_the_first_file(here: Settings) -> None:
    with use(here.with_(flat_file_gb_per_month=0.00001)) as tight:
        with pytest.raises(errors.BudgetExceeded, match="TAPELAB_FLAT_FILE_GB_PER_MONTH"):
            sync_flat_files(MINUTES, FIRST, LAST)
        assert spent(tight) == 0
        assert Lake(tight).sound_files(MINUTES, SESSIONS) == {}


def test_an_unknown_product_names_the_nearest(here: Settings) -> None:
    with pytest.raises(errors.UnknownName, match="minute_aggs_v1"):
        sync_flat_files("us_stocks_sip/minute_agg_v1", FIRST, LAST)


PROGRAM = f"""
import sys
from datetime import date
from tapelab.history.sync import sync_flat_files
print("ready", flush=True)
print(sync_flat_files({MINUTES!r}, date.fromisoformat(sys.argv[1]), date.fromisoformat(sys.argv[2])).bytes)
"""


FETCHING = f"""
import sys
from tapelab.history import fetch_data
print(len(fetch_data({NAMES!r}, sys.argv[1], sys.argv[2], "1m", "flat_file", adjust="none")))
"""


def syncing(settings: Settings, program: str = PROGRAM) -> subprocess.Popen[str]:
    environment = {**os.environ, **worker_environment(settings)}
    command = [sys.executable, "-c", program, FIRST.isoformat(), LAST.isoformat()]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_that_sync_and_fetch_at_once_download_each_file_once(
    served: tuple[Path, str], here: Settings
) -> None:
    processes = [syncing(here), syncing(here), syncing(here, FETCHING)]
    said = [process.communicate(timeout=240)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert said[2] == [str(240 * len(SESSIONS))]
    assert spent(here) == total(served)
    whole(here)


def kill_and_go_on(settings: Settings, times: int) -> None:
    chance = random.Random(7)
    for _ in range(times):
        with syncing(settings) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(chance.uniform(0.0, 0.6))
            process.send_signal(signal.SIGKILL)
        for path in Lake(settings).folder.rglob("????-??-??.parquet"):
            day = date.fromisoformat(path.stem)
            assert Lake(settings).rows(MINUTES, day).equals(minute_bars(day)), (
                "a file has its name only when whole"
            )
        if times > KILLS and chance.random() < 0.2:
            for path in Lake(settings).folder.rglob("2024-03-*.parquet"):
                path.unlink()
    with use(settings):
        sync_flat_files(MINUTES, FIRST, LAST)
    whole(settings)


def test_a_sync_that_is_killed_again_and_again_goes_on_to_a_whole_lake(here: Settings) -> None:
    kill_and_go_on(here, KILLS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sync_that_is_killed_a_hundred_times_goes_on_to_a_whole_lake(here: Settings) -> None:
    kill_and_go_on(here, 100)


def test_the_work_that_travels_holds_no_secret(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    class Post(ProcessPoolExecutor):
        def submit(self, call, /, *arguments, **named):  # type: ignore[no-untyped-def]
            sent.append(pickle.dumps((call, arguments, named)))
            return super().submit(call, *arguments, **named)

    for name, value in worker_environment(here).items():
        monkeypatch.setenv(name, value)
    spawn = multiprocessing.get_context("spawn")
    with Post(2, mp_context=spawn) as executor:
        report = sync_flat_files(MINUTES, FIRST, SESSIONS[5], executor=executor)
    assert len(sent) == 6 == len(report.brought)
    assert not any(SECRET.encode() in each for each in sent)
    whole(here, SESSIONS[:6])


def test_workers_without_keys_say_how_to_start_them(
    here: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in worker_environment(here):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor,
        pytest.raises(errors.SettingError, match="worker_environment"),
    ):
        sync_flat_files(MINUTES, FIRST, LAST, executor=executor)


def test_forked_workers_are_refused_with_the_way_out(here: Settings) -> None:
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor,
        pytest.raises(errors.UsageError, match="spawn"),
    ):
        sync_flat_files(MINUTES, FIRST, LAST, executor=executor)


@pytest.mark.filterwarnings("ignore")
def test_a_sync_spreads_over_two_dask_workers(here: Settings) -> None:
    distributed = pytest.importorskip("distributed", reason="needs tapelab[scale]")
    cluster = distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        dashboard_address=None,
        host="127.0.0.1",
        env=worker_environment(here),
    )
    with cluster, distributed.Client(cluster) as client:
        report = sync_flat_files(MINUTES, FIRST, SESSIONS[9], executor=client.get_executor(pure=False))
    assert report.brought == tuple(SESSIONS[:10])
    assert spent(here) == report.bytes
    whole(here, SESSIONS[:10])


def test_what_is_damaged_is_named_and_fetched_again(here: Settings) -> None:
    sync_flat_files(MINUTES, FIRST, LAST)
    lake = Lake(here)
    day, month = lake.day_path(MINUTES, SESSIONS[4]), lake.month_path(MINUTES, SESSIONS[0])
    for path in (day, month):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    assert [(broken.what, broken.path) for broken in lake.verify()] == [("day", day), ("month", month)]
    mended = mend_lake()
    assert (len(mended.again), mended.left) == (2, {})
    whole(here)
    assert month.exists()


def test_what_cannot_be_had_again_is_taken_away_and_told(changing: Path) -> None:
    sync_flat_files(MINUTES, FIRST, SESSIONS[2])
    lake = Lake(sync.current())
    path = lake.day_path(MINUTES, SESSIONS[1])
    path.write_bytes(path.read_bytes()[:-9])
    (changing / "flatfiles" / wire.file_key(MINUTES, SESSIONS[1])).unlink()
    mended = mend_lake()
    assert [broken.day for broken in mended.left] == [SESSIONS[1]]
    assert not path.exists()


def day_file(day: date, stamp: int, *rows: str) -> bytes:
    header = "ticker,volume,open,close,high,low,window_start,transactions\n"
    return (header + "".join(row.replace("STAMP", str(stamp)) + "\n" for row in rows)).encode()


@pytest.mark.parametrize("hours", [0, 16])
def test_a_day_bar_has_one_stamp_whichever_the_file_gives_it(changing: Path, hours: int) -> None:
    midnight = sessions.day_start(Market.STOCKS, SESSIONS[0])
    content = day_file(SESSIONS[0], midnight + hours * 60 * MINUTE, "A,1.5,2,3,4,1,STAMP,7")
    publish(changing, SESSIONS[0], content, product=DAYS_OF_BARS)
    report = sync_flat_files(DAYS_OF_BARS, SESSIONS[0], SESSIONS[0])
    assert Lake(sync.current()).rows(DAYS_OF_BARS, SESSIONS[0])["timestamp"].to_pylist() == [midnight]
    assert bool(report.notes) == bool(hours)


@pytest.mark.parametrize("product", [DAYS_OF_BARS, "us_options_opra/day_aggs_v1"])
def test_a_day_whose_stamps_are_lost_is_repaired_by_its_name_and_said(changing: Path, product: str) -> None:
    day = date(2025, 2, 10)
    symbol = "A" if product == DAYS_OF_BARS else "O:A260618C00100000"
    lost = day_file(day, -68_400_000_000_000, f"{symbol},3,16.2,16.2,16.2,16.2,STAMP,1")
    publish(changing, day, lost, product=product)
    report = sync_flat_files(product, day, day)
    assert report.notes[day][0].startswith("1 rows: window_start -68400000000000 is no time")
    table = Lake(sync.current()).rows(product, day)
    assert table["timestamp"].to_pylist() == [sessions.day_start(Market.STOCKS, day)]


def test_of_two_bars_of_one_symbol_and_time_one_is_kept_and_the_other_quoted(changing: Path) -> None:
    day = SESSIONS[0]
    midnight = sessions.day_start(Market.STOCKS, day)
    rows = ["A,5,2,3,4,1,STAMP,7", "B,1,2,3,4,1,STAMP,1", "B,9,2,3,4.5,1,STAMP,8", "C,5,2,3,4,1,STAMP,7"]
    publish(changing, day, day_file(day, midnight, *rows), product=DAYS_OF_BARS)
    report = sync_flat_files(DAYS_OF_BARS, day, day)
    table = Lake(sync.current()).rows(DAYS_OF_BARS, day)
    assert table["symbol"].to_pylist() == ["A", "B", "C"]
    assert table["volume"].to_pylist() == [5, 9, 5]
    assert report.rows == 3
    (note,) = report.notes[day]
    assert "symbol=B" in note
    assert "volume=1.0" in note


def test_bars_in_no_order_lose_nothing(changing: Path) -> None:
    day = SESSIONS[0]
    midnight = sessions.day_start(Market.STOCKS, day)
    rows = ["BCC,1,2,3,4,1,STAMP,1", "CLDX,1,2,3,4,1,STAMP,1", "A,1,2,3,4,1,STAMP,1", "BFS,1,2,3,4,1,STAMP,1"]
    publish(changing, day, day_file(day, midnight, *rows), product=DAYS_OF_BARS)
    assert sync_flat_files(DAYS_OF_BARS, day, day).notes == {}
    lake = Lake(sync.current())
    assert lake.rows(DAYS_OF_BARS, day)["symbol"].to_pylist() == ["BCC", "CLDX", "A", "BFS"]
    assert lake.rows(DAYS_OF_BARS, day, ["A", "BFS"])["symbol"].to_pylist() == ["A", "BFS"]


@pytest.mark.parametrize(
    ("product", "text", "expected"),
    [
        (
            "us_indices/values_v1",
            "ticker,value,timestamp\nI:AAPLCW,87.27,1709303401137000000\n",
            {"ticker": "I:AAPLCW", "value": 87.27},
        ),
        (
            "us_futures_cme/session_aggs_v1",
            "ticker,session_end_date,window_start,open,high,low,close,volume,dollar_volume,transactions,"
            "settlement_price,unheard_of\nESM4,2024-03-01,1709247600000000000,1,2,0.5,1.5,10,15,3,,new\n",
            {"session_end_date": date(2024, 3, 1), "settlement_price": None, "unheard_of": "new"},
        ),
    ],
)
def test_files_without_columns_of_ours_keep_the_vendors_with_exact_types(
    changing: Path, product: str, text: str, expected: dict[str, object]
) -> None:
    publish(changing, FIRST, text.encode(), product=product)
    assert sync_flat_files(product, FIRST, FIRST).rows == 1
    table = Lake(sync.current()).rows(product, FIRST)
    row = table.to_pylist()[0]
    assert {name: row[name] for name in expected} == expected
    (stamp,) = [name for name in table.column_names if name.endswith("timestamp") or name == "window_start"]
    longest = max(text.replace("\n", ",").split(","), key=lambda part: len(part) if part.isdigit() else 0)
    assert pc.cast(table[stamp], pa.int64())[0].as_py() == int(longest)


def test_nonsense_in_a_file_of_another_market_is_refused_by_row(changing: Path) -> None:
    publish(changing, FIRST, b"ticker,value,timestamp\nI:A,1,17\n", product="us_indices/values_v1")
    with pytest.raises(errors.MalformedAnswer, match=r"row 2: timestamp 17 is no time"):
        sync_flat_files("us_indices/values_v1", FIRST, FIRST)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
@pytest.mark.parametrize(
    ("pieces", "bound"), [(2, 0.4 * GIGABYTE), pytest.param(24, GIGABYTE, marks=pytest.mark.slow)]
)
def test_a_file_larger_than_memory_streams_through(changing: Path, pieces: int, bound: float) -> None:
    """0.12 GB (or 1.4 GB) of trades, made of one piece of gzip many times over, in 0.4 GB (or 1 GB)."""
    begin = sessions.day_start(Market.STOCKS, FIRST) + 600 * MINUTE
    header = ",".join(wire.PRODUCTS["us_stocks_sip/trades_v1"].header)
    row = f'A,"12,37",0,4,52983525159748,{begin},114.79,3478,{begin},4,1,0,0\n'
    piece = gzip.compress(row.encode() * 800_000, 1)
    path = changing / "flatfiles" / wire.file_key("us_stocks_sip/trades_v1", FIRST)
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(f"{header}\n".encode()) + piece * pieces)
    program = (
        "from pathlib import Path\nfrom tapelab.history.sync import sync_flat_files\n"
        f"rows = sync_flat_files('us_stocks_sip/trades_v1', {str(FIRST)!r}, {str(FIRST)!r}).rows\n"
        "print(rows, 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]))\n"
    )
    environment = {**os.environ, **worker_environment(sync.current())}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    rows, peak = map(int, done.stdout.split())
    assert rows == 800_000 * pieces
    assert peak < bound
