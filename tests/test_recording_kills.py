"""SIGKILL at random moments at full speed: every acknowledged byte is there, and recovery is quick.

The vendor of these tests sends one block of frames over and over, so that what must be there is known to
the byte: the block, from its start, up to at least what had been acknowledged.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from streams import KEY, WAIT, Flood, both, settings_for, until
from tapelab.live.process import Process
from tapelab.live.talk import Config
from tapelab.store import journal
from tapelab.store.datasets.dataset import list_datasets, open_dataset
from tapelab.store.journal.segments import is_held, lock_path
from test_journal import frames

MESSAGES = 2000
BLOCK = frames(*map(both, range(MESSAGES)))
LONGEST = 20.0  # seconds; recovery takes a fraction of one, but not on every machine that runs tests

PROGRAM = """
import sys, time
from tapelab.live import stream
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.settings import Settings
settings = Settings.load(api_key=sys.argv[1], ws_url=sys.argv[2], rest_url="http://127.0.0.1:1",
                         s3_endpoint="http://127.0.0.1:2", home=sys.argv[3])
stream.SEGMENT_BYTES = 300_000
recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
recorder.start()
while True:
    figures = recorder._stream.figures
    print(figures.acknowledged, recorder._stream.receiver_pid, recorder.stats.dataset, flush=True)
    time.sleep(0.005)
"""


def received(folder: Path) -> bytes:
    """What the journal holds of the stream behind the login, byte for byte."""
    data = b"".join(r.payload for r in journal.records(folder) if r.kind is journal.Kind.DATA)
    start = data.find(BLOCK[:1000])
    return data[start:] if start >= 0 else b""


def check(folder: Path, acknowledged: int, causes: set[str]) -> float:
    """Put the journal in order and compare it with what was sent; gives the seconds that took."""
    begun = time.perf_counter()
    recovery = journal.recover(folder, compress=False)
    took = time.perf_counter() - begun
    assert took < LONGEST
    assert recovery.last is not None
    assert recovery.last.sequence >= acknowledged
    assert recovery.damaged == 0
    records = list(journal.records(folder))
    assert [record.sequence for record in records] == list(range(len(records)))
    assert json.loads(records[-1].payload)["cause"] in causes
    kept = received(folder)
    assert kept == (BLOCK * (len(kept) // len(BLOCK) + 1))[: len(kept)]
    journal.recover(folder)
    assert not list(folder.glob("*.tlj"))
    assert received(folder) == kept
    return took


def kill_the_receiver(folder: Path, chance: random.Random) -> float:
    """At full speed, somewhere between the first chunk and the hundredth; with small segments it rotates."""
    with Flood(BLOCK) as flood:
        process = Process(
            Config(
                flood.url,
                "stocks",
                KEY,
                ["Q.AAPL", "T.AAPL"],
                str(folder),
                bytes(16).hex(),
                str(folder.parent / "feed.lock"),
                segment_bytes=chance.choice([2**26, 5_000_000, 300_000, 300_000]),
            )
        )
        until(lambda: process.hear() and process.figures.acknowledged > 6)
        enough = process.figures.acknowledged + chance.randrange(100)
        until(lambda: process.hear() and process.figures.acknowledged > enough)
        time.sleep(chance.random() / 50)
        os.kill(process.pid, signal.SIGKILL)
        process.hear()
        acknowledged = process.figures.acknowledged
        assert process.wait() == -signal.SIGKILL
    return check(folder, acknowledged, {"killed"})


def kill_the_program(home: Path, chance: random.Random, *, both_at_once: bool) -> float:
    """The recorder's process, alone or together with its receiver."""
    with Flood(BLOCK, pause=0.02) as flood:  # no faster than rows can be compared afterwards
        settings = settings_for(flood, home)
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, KEY, flood.url, str(home)], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        with program.stdout:
            said = iter(lambda: program.stdout.readline().split(), [])  # type: ignore[union-attr]
            next(line for line in said if int(line[0]) > 6)
            stop = time.monotonic() + chance.random() / 5
            acknowledged, receiver, name = next(line for line in said if time.monotonic() > stop)
            for pid in [program.pid, int(receiver)] if both_at_once else [program.pid]:
                os.kill(pid, signal.SIGKILL)
            acknowledged = ([acknowledged] + [line[0] for line in said if len(line) == 3])[-1]
        assert program.wait(WAIT) == -signal.SIGKILL
    folder = settings.root / "datasets" / name
    until(lambda: not is_held(lock_path(folder / "journal")))  # a receiver left alone ends in order
    took = check(folder / "journal", int(acknowledged), {"killed"} if both_at_once else {"stopped", "killed"})
    dataset = open_dataset(name, settings=settings)
    assert dataset.version == 1
    assert dataset.gaps == ()
    messages = sum(b'"status"' not in m.payload for m in journal.messages(folder / "journal"))
    for kind in ("quotes", "trades"):
        numbers = dataset.table(kind).column("sequence").to_pylist()
        assert numbers == list(itertools.islice(itertools.cycle(range(MESSAGES)), messages))
    assert [d.name for d in list_datasets(settings=settings)] == [name]
    return took


def kill(home: Path, seed: int) -> float:
    """One kill by its number; gives the seconds that recovery took."""
    chance = random.Random(seed)
    if seed % 10 < 7:
        return kill_the_receiver(home / "journal", chance)
    return kill_the_program(home, chance, both_at_once=seed % 10 < 9)


@pytest.mark.parametrize("seed", [0, 1, 7, 9])
def test_a_kill_at_full_speed_loses_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    kill(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(200))
def test_two_hundred_kills_lose_nothing_that_was_acknowledged(tmp_path: Path, seed: int) -> None:
    kill(tmp_path, seed)
