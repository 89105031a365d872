"""What a dataset takes of the disk, and when a recording will have filled it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.market import clock
from tapelab.market.clock import HOUR, SECOND, FixedClock
from tapelab.store.datasets import room


def test_a_steady_recording_fills_the_disk_when_it_says() -> None:
    found = room.forecast(taken=3_600_000_000, elapsed=HOUR, free=36_000_000_000)
    assert (found.per_second, found.hours) == (1e6, 10.0)
    assert str(found) == "36.0 GB free, full in 10.0 hours at 1.0 MB/s"
    assert found.soon
    later = room.forecast(taken=3_600_000, elapsed=HOUR, free=36_000_000_000)
    assert str(later) == "36.0 GB free, full in 417 days at 1.0 kB/s"
    assert not later.soon


@pytest.mark.parametrize(("taken", "elapsed"), [(0, HOUR), (10, 0), (-1, HOUR)])
def test_nothing_is_forecast_while_nothing_comes(taken: int, elapsed: int) -> None:
    found = room.forecast(taken, elapsed, free=5_000)
    assert (found.hours, found.soon, str(found)) == (None, False, "5.0 kB free")


@given(st.integers(1, 2**50), st.integers(1, 10**9), st.integers(0, 2**50), st.integers(2, 50))
def test_twice_the_pace_is_never_longer_and_twice_the_room_never_shorter(
    taken: int, seconds: int, free: int, times: int
) -> None:
    usual = room.forecast(taken, seconds * SECOND, free)
    faster = room.forecast(taken * times, seconds * SECOND, free)
    wider = room.forecast(taken, seconds * SECOND, free * times)
    assert usual.hours is not None
    assert faster.hours is not None
    assert wider.hours is not None
    assert faster.hours <= usual.hours <= wider.hours
    assert usual.hours * 3600 * usual.per_second == pytest.approx(free)


def test_what_a_folder_takes_is_counted_below_it_too(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "one").write_bytes(b"x" * 700)
    (tmp_path / "below" / "two").write_bytes(b"x" * 500)
    assert room.taken_by(tmp_path) == 1200
    assert room.taken_by(tmp_path / "absent") == 0
    assert room.free_at(tmp_path) > 0
    with clock.use(FixedClock(90 * SECOND)):
        assert room.forecast_of(tmp_path, begun=30 * SECOND).per_second == 20.0
    assert [room.in_words(n) for n in (999, 1000, 1.5e12)] == ["999 B", "1.0 kB", "1.5 TB"]
