"""The best single test: tape → exchange → feed → recorder → dataset, and the dataset is the tape.

What the wire cannot carry is known (milliseconds, one condition of a quote, no corrections), so the
recorded tables equal `as_streamed(tape)`, in order, none twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tapelab as tl
from tapelab.exchange import Exchange, serve
from tapelab.market import clock, replay
from tapelab.massive import wire

DAY = date(2013, 10, 9)
LONGEST = 240.0  # seconds; the whole day is over long before


def tape(real_day: Path, start: int, end: int) -> dict[str, pa.Table]:
    """The real quotes and trades of a stretch, in the order in which the exchange tells them."""
    found = {}
    for kind, product in (("quotes", "us_stocks_sip/quotes_v1"), ("trades", "us_stocks_sip/trades_v1")):
        found[kind] = wire.read_flat_file(real_day / wire.file_key(product, DAY), product, day=DAY)
    quotes, trades = replay.in_order_of_arrival(found["quotes"], found["trades"])
    return {"quotes": between(quotes, start, end), "trades": between(trades, start, end)}


def between(table: pa.Table, start: int, end: int) -> pa.Table:
    stamps = table.column("ts_event").to_numpy()
    return table.filter(pa.array((stamps >= start) & (stamps < end)))


def ten_oclock(seconds: float) -> tuple[int, int]:
    start = 1_381_327_200 * clock.SECOND  # 2013-10-09 10:00 New York
    return start, start + round(seconds * clock.SECOND)


@contextmanager
def recording(real_day: Path, home: Path, *, start: int, end: int, speed: float) -> Iterator[tuple]:
    with (
        serve(flat_files=real_day, day=DAY, speed=speed, start=start, until=end) as exchange,
        exchange.use(home=home),
        tl.WebSocketDataRecorder(["AIG", "BAC", "IBM", "SPY"]) as recorder,
    ):
        yield exchange, recorder


def wait_until_told(exchange: Exchange, recorder: tl.WebSocketDataRecorder, events: int) -> None:
    """Bounded: the recorder has counted what the exchange told, or the time is over."""
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not (exchange.finished.is_set() and recorder.stats.events >= events):
        time.sleep(0.05)


def identity(table: pa.Table) -> pa.Table:
    return table.drop(["ts_recv", "arrival"])


def expected(told: dict[str, pa.Table]) -> dict[str, pa.Table]:
    return {
        "quotes": wire.as_streamed(told["quotes"], "Q"),
        "trades": wire.as_streamed(told["trades"], "T"),
    }


def across_channels(tables: dict[str, pa.Table]) -> list[tuple[str, str, int]]:
    events = replay.events(quotes=tables["quotes"], trades=tables["trades"])
    return [(type(event).__name__, event.symbol, event.ts_event) for event in events]


def assert_equal(dataset: tl.Dataset, told: dict[str, pa.Table]) -> None:
    want = expected(told)
    got = {kind: dataset.table(kind) for kind in want}
    for kind, table in want.items():
        assert len(got[kind]) == len(table)
        for name in identity(table).column_names:
            assert got[kind].column(name).equals(table.column(name)), (kind, name)
    assert across_channels(got) == across_channels(want)
    recv = got["quotes"].column("ts_recv").to_numpy()
    assert (np.diff(recv) >= 0).all()


@pytest.mark.parametrize("speed", [0, 60])
def test_a_recorded_minute_of_the_real_day_is_that_minute(real_day, tmp_path, speed):
    start, end = ten_oclock(60)
    told = tape(real_day, start, end)
    with recording(real_day, tmp_path, start=start, end=end, speed=speed) as (exchange, recorder):
        wait_until_told(exchange, recorder, sum(map(len, told.values())))
    assert_equal(tl.open_dataset(recorder.save_dataset("loop")), told)
    assert recorder.stats.gaps == 0


def assert_equal_up_to_gaps(dataset: tl.Dataset, want: dict[str, pa.Table]) -> None:
    """Every event of the tape is there, in order, or the recording says that it was not listening."""
    for kind, table in want.items():
        got = dataset.table(kind)
        stamps = got.column("ts_recv").to_pylist()
        rows, told = identity(got).to_pylist(), identity(table).to_pylist()
        assert 0 < len(rows) <= len(told)
        at = 0
        for n, row in enumerate(rows):
            skipped = at
            while told[at] != row:
                at += 1
            if at > skipped and n > 0:
                before, after = stamps[n - 1], stamps[n]
                assert any(before <= gap.end and gap.start <= after for gap in dataset.gaps), (kind, n)
            at += 1


@pytest.mark.slow
def test_the_whole_real_day_unpaced_is_that_day(real_day, tmp_path):
    start, end = 0, 2**62
    told = tape(real_day, start, end)
    with recording(real_day, tmp_path, start=start, end=end, speed=0) as (exchange, recorder):
        wait_until_told(exchange, recorder, sum(map(len, told.values())))
    assert_equal(tl.open_dataset(recorder.save_dataset("whole")), told)


@pytest.mark.slow
def test_half_an_hour_at_sixty_times_real_speed_is_that_half_hour(real_day, tmp_path):
    start, end = ten_oclock(1800)
    told = tape(real_day, start, end)
    with recording(real_day, tmp_path, start=start, end=end, speed=60) as (exchange, recorder):
        wait_until_told(exchange, recorder, sum(map(len, told.values())))
    assert_equal(tl.open_dataset(recorder.save_dataset("half-hour")), told)
    assert recorder.stats.gaps == 0
