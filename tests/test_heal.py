"""Healing: what was received and what was filled in are the tape, and what is not known stays a gap."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from heal_tape import T0, Loss, Recorder, Tape, Tick, by_symbol, told
from tapelab.errors import BudgetExceeded, StoreError, UsageError
from tapelab.live.heal import heal_from
from tapelab.market import clock
from tapelab.settings import Settings, use
from tapelab.store.dataset import Dataset, open_dataset

REPLAY = Recorder(lag=13 * 365 * clock.DAY, speed=60)


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


def ticks(n: int, apart: int = clock.SECOND) -> list[Tick]:
    """Quotes and trades of two symbols in turn."""
    return [
        Tick(("quotes", "trades")[k % 2], ("AAA", "BBB")[k // 2 % 2], k * apart + 123_456) for k in range(n)
    ]


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Tape, list[Loss], Recorder]:
    """Any tape (ties included), any losses, near or far from our clock; something was received."""
    count = draw(st.integers(4, 40))
    steps = st.sampled_from([0, 1, 400_000, clock.MILLISECOND, clock.SECOND, 25 * clock.SECOND])
    at, made = 0, []
    for _ in range(count):
        at += draw(steps)
        made.append(
            Tick(draw(st.sampled_from(["quotes", "trades"])), draw(st.sampled_from(["AAA", "BBB"])), at)
        )
    live = draw(st.booleans())
    cuts = draw(st.lists(st.integers(0 if live else 1, count - (0 if live else 1)), max_size=8, unique=True))
    cuts = sorted(cuts)[: len(cuts) // 2 * 2]
    losses = [
        Loss(first, stop, draw(st.sampled_from([(), (), ("AAA",)])))
        for first, stop in zip(cuts[::2], cuts[1::2], strict=True)
    ]
    if sum(loss.stop - loss.first for loss in losses if not loss.symbols) == count:
        losses = []
    return Tape(made), losses, Recorder() if live else REPLAY


@hypothesis_settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(recordings())
def test_whatever_the_gaps_received_and_healed_are_the_tape_and_healing_again_changes_nothing(
    made: tuple[Tape, list[Loss], Recorder],
) -> None:
    tape, losses, recorder = made
    with tempfile.TemporaryDirectory() as folder, use(Settings.load(home=folder)):
        dataset = recorder.record(tape, losses, "recorded")
        if not dataset.symbols:
            return
        healing = heal_from(dataset, tape)
        assert not healing.open
        for kind in ("quotes", "trades"):
            healed = healing.dataset.table(kind, "healed")
            assert by_symbol(told(healed, kind)) == by_symbol(told(tape.table(kind), kind))
            filled = healed.filter(healed.column("ts_recv").is_null())
            assert len(filled) == sum(f.rows for f in healing.filled if f.channel == kind)
            assert set(filled["ts_event"].to_pylist()) <= set(tape.table(kind)["ts_event"].to_pylist())
            assert (
                healing.dataset.table(kind)
                .drop_columns("ts_recv")
                .equals(dataset.table(kind).drop_columns("ts_recv"))
            )
        arrivals = [event.arrival for event in healing.dataset.replay("healed")]
        assert arrivals == sorted(set(arrivals))
        assert len(arrivals) == len(tape.ticks)
        again = heal_from(healing.dataset, tape)
        assert (again.added, again.dataset.version) == (0, healing.dataset.version)
        assert again.dataset._manifest == healing.dataset._manifest
