"""Processes that fetch at once, or are killed: each byte paid once, a whole lake, exact budgets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from history_tape import light_day
from tapelab import errors
from tapelab.budget import Budget
from tapelab.exchange import Exchange, serve
from tapelab.history import fetch_data
from tapelab.history.ticks import fetch_trades
from tapelab.massive import wire
from tapelab.settings import Settings, use
from test_flatfiles import bucket  # noqa: F401
from test_history_fetch import ALL, RestOfFiles, settings, vendor  # noqa: F401
from test_rest import Asked, Reply, Vendor

# ruff: noqa: F811

FIRST, LAST = date(2013, 10, 7), date(2013, 10, 11)
MINUTES = "us_stocks_sip/minute_aggs_v1"
TRADES = "us_stocks_sip/trades_v1"
PATIENCE = 120  # seconds for a process to end

PROGRAM = """
import sys
from tapelab.history import fetch_data
from tapelab.history.ticks import fetch_trades
from tapelab.settings import Settings, use
names = ("api_key", "s3_access_key_id", "s3_secret_access_key", "s3_endpoint", "rest_url", "ws_url", "home")
limits = {"rest_calls_per_day": 1000, "rest_calls_per_minute": 0, "flat_file_gb_per_month": 1}
with use(Settings.load(**dict(zip(names, sys.argv[1:8])), **limits)):
    print("ready", flush=True)
    sys.stdin.readline()
"""


def program(here: Settings, work: str) -> subprocess.Popen[str]:
    """A process that does `work` with these settings once it reads a line."""
    id_, secret = here.need_s3()
    given = [here.need_api_key(), id_, secret, here.s3_endpoint, here.rest_url, here.ws_url, str(here.home)]
    code = PROGRAM + "".join(f"    {line}\n" for line in work.strip().splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", code, *given], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(*processes: subprocess.Popen[str]) -> list[str]:
    """Let them all go at once; what each printed."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=PATIENCE)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return said


@pytest.fixture(scope="module")
def tape(real_day: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ticks_of = {"AIG": ("04:00", "20:00"), "BAC": ("09:30", "09:40")}
    return light_day(real_day, tmp_path_factory.mktemp("processes") / "tape", ticks_of)


@pytest.fixture(scope="module")
def exchange(tape: Path) -> Iterator[Exchange]:
    with serve(flat_files=tape, speed=0) as found:
        yield found


@pytest.fixture
def counted(exchange: Exchange, tmp_path: Path) -> Settings:
    return exchange.settings(tmp_path).with_(rest_calls_per_day=1000, flat_file_gb_per_month=1)


def spent(here: Settings) -> tuple[int, int]:
    left = Budget(here).left()
    return left.calls_today, left.bytes_this_month


def assert_whole(here: Settings) -> None:
    assert not list(here.root.rglob("*.part"))
    for path in here.root.rglob("*.parquet"):
        pq.ParquetFile(path).read()


def test_two_processes_that_ask_the_same_of_rest_ask_once(counted: Settings) -> None:
    work = f"print(len(fetch_data({ALL}, {str(FIRST)!r}, {str(LAST)!r}, '1m', 'rest', adjust='none')))"
    said = run(program(counted, work), program(counted, work))
    assert said[0] == said[1]
    assert spent(counted) == (4, 0)
    assert_whole(counted)


def test_two_processes_that_want_the_same_files_download_each_once(counted: Settings, tape: Path) -> None:
    work = (
        f"found = fetch_data({ALL}, {str(FIRST)!r}, {str(LAST)!r}, '1m', 'flat_file', adjust='none')\n"
        f"ticks = fetch_trades('AIG', {str(date(2013, 10, 9))!r}, '2013-10-09', method='flat_file')\n"
        "print(len(found), len(ticks))"
    )
    said = run(program(counted, work), program(counted, work))
    assert said[0] == said[1]
    days = [date(2013, 10, day) for day in (7, 8, 9, 10, 11)]
    keys = [*(wire.file_key(MINUTES, day) for day in days), wire.file_key(TRADES, days[2])]
    assert spent(counted) == (0, sum((tape / key).stat().st_size for key in keys))
    assert_whole(counted)


def test_two_processes_with_different_wishes_share_one_lake_and_one_ledger(counted: Settings) -> None:
    one = (
        f"print(len(fetch_data(['SPY', 'AIG'], {str(FIRST)!r}, {str(LAST)!r}, '1d', 'rest', adjust='none')))"
    )
    two = (
        f"print(len(fetch_data(['BAC', 'IBM'], {str(FIRST)!r}, {str(LAST)!r}, '1m', 'rest', adjust='none')))"
    )
    run(program(counted, one), program(counted, two))
    assert spent(counted) == (4, 0)
    with use(counted):
        for interval, names in (("1d", ["SPY", "AIG"]), ("1m", ["BAC", "IBM"])):
            found = fetch_data(names, FIRST, LAST, interval, adjust="none")
            assert found.attrs["tapelab"]["route"] == "cache"
    assert spent(counted) == (4, 0)


def test_two_processes_that_want_the_same_ticks_of_rest_ask_once(counted: Settings) -> None:
    span = "'2013-10-09T09:30', '2013-10-09T09:40'"
    work = f"print(len(fetch_trades(['BAC', 'AIG'], {span}, method='rest')))"
    said = run(program(counted, work), program(counted, work))
    assert said[0] == said[1]
    assert spent(counted) == (2, 0)
    assert_whole(counted)


def test_a_killed_fetch_keeps_its_whole_days_and_the_next_asks_for_the_rest(
    settings: Settings, vendor: Vendor, tmp_path: Path
) -> None:
    """The process is killed while its first symbol's second page is on its way."""
    assert isinstance(vendor.answer, RestOfFiles)
    whole, killed = vendor.answer, threading.Event()
    process: list[subprocess.Popen[str]] = []

    def answer(asked: Asked) -> Reply:
        if "cursor" in asked.query and len(vendor.asked) >= 3 and not killed.is_set():
            killed.set()
            os.kill(process[0].pid, signal.SIGKILL)
        return whole(asked)

    vendor.answer = answer
    work = f"fetch_data('SPY', {str(FIRST)!r}, {str(LAST)!r}, '1m', 'rest', adjust='none')"
    process.append(program(settings, work))
    assert process[0].stdin is not None
    process[0].communicate("go\n", timeout=PATIENCE)
    assert process[0].returncode == -signal.SIGKILL
    assert_whole(settings)
    vendor.asked.clear()
    with use(settings.with_(rest_calls_per_day=1000)):
        found = fetch_data("SPY", FIRST, LAST, "1m", "rest", adjust="none")
    assert found.attrs["tapelab"]["routes"] == {"cache": 1, "rest": 4}
    assert vendor.asked[0].path.split("/")[8] == "2013-10-08"
    with use(settings.with_(home=tmp_path / "elsewhere")):
        pd.testing.assert_frame_equal(found, fetch_data("SPY", FIRST, LAST, "1m", "rest", adjust="none"))


FULL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fetch_data("AIG", "2013-10-09", "2013-10-09", "1m", "flat_file", adjust="none")
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
from tapelab.errors import TapelabError
try:
    <work>
except TapelabError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    "work",
    [
        "fetch_data(['SPY', 'AIG'], '2013-10-07', '2013-10-11', '1m', 'rest', adjust='none')",
        "fetch_data(['SPY', 'AIG'], '2013-10-07', '2013-10-11', '1m', 'flat_file', adjust='none')",
        "fetch_trades('AIG', '2013-10-09', '2013-10-09', method='rest')",
        "fetch_trades('AIG', '2013-10-09', '2013-10-09', method='flat_file')",
    ],
    ids=["bars by rest", "bars by file", "ticks by rest", "ticks by file"],
)
def test_a_full_disk_is_one_sentence_and_nothing_is_lost(counted: Settings, work: str) -> None:
    [said] = run(program(counted, FULL_DISK.replace("<work>", work)))
    assert said.startswith("Unwritable There is no room left to write "), said
    assert said.count("\n") == 0
    assert_whole(counted)
    with use(counted):
        before = spent(counted)
        assert len(fetch_data("AIG", "2013-10-09", "2013-10-09", "1m", adjust="none")) > 0
        assert spent(counted) == before, "what had been paid for is still here"
        fetch_data(["SPY", "AIG"], FIRST, LAST, "1m", adjust="none")
        fetch_trades("AIG", "2013-10-09", "2013-10-09")
    assert_whole(counted)


def test_a_lake_that_may_not_be_written_is_one_sentence(exchange: Exchange, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    with use(exchange.settings(tmp_path / "home")), pytest.raises(errors.Unwritable, match="TAPELAB_HOME"):
        fetch_data("SPY", FIRST, LAST, adjust="none")
