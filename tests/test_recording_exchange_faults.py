"""Every fault of the exchange's script against a recorder: no crash, nothing missing that is not a gap."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

import tapelab as tl
from tapelab.exchange import serve
from tapelab.exchange.faults import KINDS
from tapelab.exchange.tape import QUOTES, TRADES, simulated
from tapelab.market import clock, replay
from tapelab.massive import wire
from test_loop import assert_equal_up_to_gaps, between, identity

SEED = 7
SYMBOLS = ["ZVZZT", "ZWZZT", "ZXZZT", "ZJZZT"]
LONGEST = 60.0  # seconds; the stretch is over in two

FAULTS: dict[str, dict[str, Any]] = {
    "cut": {"first": 300, "every": 600, "times": 3},
    "cut with a close frame": {"fault": "cut", "clean": True, "first": 300, "every": 600, "times": 3},
    "slow_client": {"first": 300, "every": 600, "times": 2},
    "stall": {"seconds": 0.4, "first": 300, "every": 1000},
    "duplicate": {"every": 50, "copies": 2},
    "reorder": {"every": 40, "by": 3},
    "garbage": {"every": 100},
    "garbage cut in half": {"fault": "garbage", "how": "half", "every": 100},
    "unknown": {"every": 70},
    "status": {"status": "force_disconnect", "every": 500},
    "status that names an end": {"fault": "status", "status": "max_connections", "first": 300, "times": 1},
}
CUTS = {"cut": "cut", "cut with a close frame": "closed", "slow_client": "slow_consumer"}


def test_no_kind_of_fault_is_left_out() -> None:
    assert {rule.get("fault", name) for name, rule in FAULTS.items()} == set(KINDS["stream"])


class Stretch(NamedTuple):
    start: int
    end: int
    told: dict[str, pa.Table]


@pytest.fixture(scope="module")
def stretch() -> Stretch:
    """Three minutes of the exchange's simulated market, as the wire tells them."""
    tape = simulated(SEED)
    day = tape.days(QUOTES)[-1]
    quotes, trades = replay.in_order_of_arrival(tape.table(QUOTES, day), tape.table(TRADES, day))
    start = int(quotes.column("ts_event")[40_000].as_py())
    end = start + 3 * clock.MINUTE
    told = {
        "quotes": wire.as_streamed(between(quotes, start, end), "Q"),
        "trades": wire.as_streamed(between(trades, start, end), "T"),
    }
    return Stretch(start, end, told)


@pytest.mark.parametrize("name", FAULTS)
def test_a_recording_survives_the_fault_and_misses_nothing_undeclared(
    stretch: Stretch, tmp_path: Path, name: str
) -> None:
    start, end, told = stretch
    count = sum(map(len, told.values()))
    script = {"seed": 1, "stream": [{"fault": name, **FAULTS[name]}]}
    with (
        serve(
            simulate=True, seed=SEED, speed=60 if name in CUTS else 0, start=start, until=end, faults=script
        ) as exchange,
        exchange.use(home=tmp_path),
        tl.WebSocketDataRecorder(SYMBOLS) as recorder,
    ):
        wanted = 0 if name in CUTS else count
        until = time.monotonic() + LONGEST
        while not (exchange.finished.is_set() and recorder.stats.events >= wanted):
            assert time.monotonic() < until, recorder.stats
            time.sleep(0.02)
        time.sleep(0.2)  # what was still on the way
    dataset = tl.open_dataset(recorder.save_dataset("faulty"))
    stats = recorder.stats
    assert stats.error is None
    if name in CUTS:
        assert {gap.cause for gap in dataset.gaps} == {CUTS[name]}
        assert stats.reconnects <= len(dataset.gaps) <= FAULTS[name]["times"]
        assert_equal_up_to_gaps(dataset, told)
        return
    assert dataset.gaps == ()
    struck = len(range(FAULTS[name].get("first", 1), count + 1, FAULTS[name].get("every", 10**9)))
    assert stats.malformed == (struck if "garbage" in name else 0)
    assert stats.unknown == (struck if name == "unknown" else 0)
    copies = FAULTS[name].get("copies", 0) * struck
    assert stats.events == count + copies
    for kind, table in told.items():
        got, want = rows(dataset.table(kind)), rows(table)
        if name in ("duplicate", "reorder"):
            assert set(got) == set(want)
            assert sorted(got) != sorted(want) if copies else got != want
            assert copies or Counter(got) == Counter(want)
        else:
            assert got == want


def rows(table: pa.Table) -> list[str]:
    return [repr(row) for row in identity(table).to_pylist()]
