"""A long recording takes no more memory than a short one, in the receiver and in who follows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from streams import Flood, settings_for
from tapelab.exchange import serve
from tapelab.exchange.tape import QUOTES, TRADES, simulated
from tapelab.settings import Settings
from test_recording_kills import BLOCK
from test_recording_programs import environment

MB = 2**20
RECEIVER_GROWS = 8 * MB  # beyond what it takes when the first chunks have come
ROWS_WAIT = 400 * MB  # rows that wait to be laid down, read-ahead, and Arrow's pool

PROGRAM = """
import os, sys, time
from pathlib import Path
import tapelab as tl
symbols, enough = sys.argv[1].split(","), int(sys.argv[2])
def rss(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
with tl.WebSocketDataRecorder(symbols) as recorder:
    events = 0
    while events < enough:
        time.sleep(0.05)
        events = recorder.stats.events
        print(events, rss(recorder._stream.receiver_pid), rss(os.getpid()), flush=True)
"""


class Sample(NamedTuple):
    events: int
    receiver: int
    follower: int


def record(settings: Settings, symbols: list[str], events: int) -> list[Sample]:
    """Record in a process of its own until so many events have come; what memory was taken meanwhile."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells how much memory another process takes")
    command = [sys.executable, "-c", PROGRAM, ",".join(symbols), str(events)]
    env = environment(settings) | {"MASSIVE_API_KEY": str(settings.need_api_key())}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=280, check=True)
    found = [Sample(*map(int, line.split())) for line in done.stdout.splitlines()]
    return [sample for sample in found if sample.events > 0]


def check(samples: list[Sample], what: str) -> None:
    half = len(samples) // 2
    receiver = max(s.receiver for s in samples[half:]) - max(s.receiver for s in samples[: half or 1])
    follower = max(s.follower for s in samples) - samples[0].follower
    settled = max(s.follower for s in samples[half:]) - max(s.follower for s in samples[: half or 1])
    print(
        f"{what}: {samples[-1].events:,} events; receiver {max(s.receiver for s in samples) / MB:.0f} MB "
        f"({receiver / MB:+.1f} in the second half), follower {max(s.follower for s in samples) / MB:.0f} MB "
        f"({settled / MB:+.1f})"
    )
    assert receiver < RECEIVER_GROWS
    assert follower < ROWS_WAIT


def simulated_day(home: Path, start: str | None, until: str | None) -> list[Sample]:
    tape = simulated(7)
    day = tape.days(QUOTES)[-1]
    count = sum(len(tape.table(product, day)) for product in (QUOTES, TRADES)) if start is None else 10_000
    with (
        serve(simulate=True, speed=0, seed=7, start=start, until=until) as exchange,
        exchange.use(home=home) as settings,
    ):
        return record(settings, ["ZVZZT", "ZWZZT", "ZXZZT", "ZJZZT"], count)


def test_an_hour_at_speed_0_takes_no_more_memory_in_its_second_half(tmp_path: Path) -> None:
    check(simulated_day(tmp_path, "09:30", "10:30"), "an hour")


@pytest.mark.slow
def test_a_simulated_day_at_speed_0_takes_no_more_memory_in_its_second_half(tmp_path: Path) -> None:
    check(simulated_day(tmp_path, None, None), "a day")


@pytest.mark.slow
def test_four_million_events_take_no_more_memory_than_two(tmp_path: Path) -> None:
    with Flood(BLOCK, pause=0.004) as flood:
        samples = record(settings_for(flood, tmp_path), ["AAPL"], 4_000_000)
    check(samples, "a flood")
