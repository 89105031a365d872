"""Tape → exchange → recorder with cuts and kills → heal, and the dataset is the tape again."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import tapelab as tl
from tapelab.budget import Budget
from tapelab.exchange import serve
from tapelab.faces import cli
from tapelab.massive import wire
from tapelab.settings import current
from test_loop import (
    LONGEST,
    assert_equal_up_to_gaps,
    expected,
    identity,
    recording,
    tape,
    ten_oclock,
)


def await_news(recorder: tl.WebSocketDataRecorder, gaps: int, events: int) -> None:
    """Bounded: the connection is back, and something has come over it."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not (recorder.stats.gaps >= gaps and recorder.stats.events > events):
        time.sleep(0.02)


def await_the_end(exchange: Any, recorder: tl.WebSocketDataRecorder) -> None:
    exchange.finished.wait(LONGEST)
    seen = -1
    while recorder.stats.events > seen:
        seen = recorder.stats.events
        time.sleep(0.5)


def break_often(exchange: Any, recorder: tl.WebSocketDataRecorder, times: int, every: float) -> None:
    """Close, cut and kill in turn, each when events have come again."""
    await_news(recorder, 0, 0)
    for n in range(times):
        time.sleep(every)
        events = recorder.stats.events
        if n % 3 == 2:
            os.kill(recorder._stream.receiver_pid, signal.SIGKILL)
        else:
            exchange.disconnect_clients(clean=n % 3 == 0)
        await_news(recorder, n + 1, events)
    await_the_end(exchange, recorder)


def assert_healed(dataset: tl.Dataset, want: dict[str, pa.Table]) -> None:
    """Per symbol and channel, in order, what was received and what was filled in are the tape."""
    for kind, table in want.items():
        healed = dataset.table(kind, "healed")
        got = identity(wire.as_streamed(healed, {"quotes": "Q", "trades": "T"}[kind]))
        assert len(got) == len(table)
        for symbol in pc.unique(table["symbol"]).to_pylist():
            mine, theirs = (t.filter(pc.equal(t["symbol"], symbol)) for t in (got, identity(table)))
            for name in mine.column_names:
                assert mine[name].equals(theirs[name]), (kind, symbol, name)


def break_and_heal(real_day: Path, home: Path, *, seconds: float, times: int, every: float) -> None:
    start, end = ten_oclock(seconds)
    told = expected(tape(real_day, start, end))
    with recording(real_day, home, start=start, end=end, speed=60) as (exchange, recorder):
        break_often(exchange, recorder, times, every)
        recorder.stop()
        dataset = tl.open_dataset(recorder.save_dataset("broken"))
        assert_equal_up_to_gaps(dataset, told)
        assert {gap.cause for gap in dataset.gaps} == {"closed", "cut", "killed"}
        healing = tl.heal("broken")
        assert not healing.open
        assert healing.added == sum(map(len, told.values())) - sum(len(dataset.table(kind)) for kind in told)
        assert_healed(healing.dataset, told)
        asked = Budget(current()).left().calls_today
        assert tl.heal("broken").dataset.version == healing.dataset.version
        assert Budget(current()).left().calls_today == asked
        assert healing.report().lacking == 0


def test_a_recording_that_was_closed_cut_and_killed_is_the_tape_once_it_is_healed(real_day, tmp_path):
    break_and_heal(real_day, tmp_path, seconds=300, times=3, every=0.5)


@pytest.mark.slow
def test_half_an_hour_broken_ten_times_is_that_half_hour_once_it_is_healed(real_day, tmp_path):
    break_and_heal(real_day, tmp_path, seconds=1800, times=10, every=1.5)


def test_a_recording_of_the_whole_market_is_healed_from_the_days_file(tmp_path, capsys):
    twice = {"stream": [{"fault": "duplicate", "topic": "T.*", "chance": 0.05}]}
    with (
        serve(simulate=True, start="10:00", until="10:05", speed=300, faults=twice) as exchange,
        exchange.use(home=tmp_path),
    ):
        with tl.WebSocketDataRecorder("*", channels=("quotes", "trades", "bars")) as recorder:
            break_often(exchange, recorder, 1, 0.2)
        recorder.save_dataset("market")
        assert cli.main(["heal", "market", "--report"]) == cli.DONE
        printed = capsys.readouterr().out
        assert "from the flat file" in printed
        assert "Nothing is lacking." in printed
        assert cli.main(["heal", "market", "--report", "--json"]) == cli.DONE
        said = json.loads(capsys.readouterr().out)
        dataset = tl.open_dataset("market")
        assert {one.source for one in dataset.filled} == {"flat_file"}
        assert (said["added"], said["version"], said["report"]["lacking"]) == (0, dataset.version, 0)
        assert said["report"]["channels"]["trades"]["extra"] > 0
        assert dataset.provenance["simulated"]
