"""Healing: what was received and what was filled in are the tape, and what is not known stays a gap."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from heal_tape import T0, Loss, Recorder, Tape, Tick, by_symbol, told
from tapelab.budget import Budget
from tapelab.errors import (
    BudgetExceeded,
    Locked,
    NotFound,
    SettingError,
    StoreError,
    Unreachable,
    UsageError,
)
from tapelab.exchange import serve
from tapelab.lab import sources
from tapelab.live import matching
from tapelab.live.heal import heal, heal_from
from tapelab.live.listening import MARGIN
from tapelab.live.lookup import Answer
from tapelab.market import clock, tables
from tapelab.market.clock import FixedClock
from tapelab.settings import Settings, use
from tapelab.store import files
from tapelab.store.datasets import catalogue, manifest
from tapelab.store.datasets.dataset import Dataset, open_dataset
from tapelab.store.journal.segments import Lock, lock_path

LIVE = Recorder()
REPLAY = Recorder(lag=13 * 365 * clock.DAY, speed=60)
TICKS = ("quotes", "trades")


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


def ticks(count: int, apart: int = clock.SECOND) -> list[Tick]:
    """Quotes and trades of two symbols in turn, off the millisecond."""
    return [Tick(TICKS[n % 2], ("AAA", "BBB")[n // 2 % 2], n * apart + 123_456) for n in range(count)]


def assert_is_the_tape(dataset: Dataset, tape: Tape) -> None:
    for kind in TICKS:
        assert by_symbol(told(dataset.table(kind, "healed"), kind)) == by_symbol(told(tape.table(kind), kind))


STEPS = st.sampled_from([0, 1, 400_000, clock.MILLISECOND, clock.SECOND, 25 * clock.SECOND])


@st.composite
def recordings(draw: st.DrawFn) -> tuple[Tape, list[Loss], Recorder]:
    """Any tape, ties included; any losses; our clock near the exchange's, or years away and faster."""
    made, at = [], 0
    for step in draw(st.lists(STEPS, min_size=4, max_size=24)):
        at += step
        made.append(Tick(draw(st.sampled_from(TICKS)), draw(st.sampled_from(["AAA", "BBB"])), at))
    live = draw(st.booleans())
    # Of a replay nobody knows where its clock stood before the first event, or after the last.
    first, last = (0, len(made)) if live else (1, len(made) - 1)
    cuts = sorted(draw(st.sets(st.integers(first, last), max_size=6)))
    losses = [
        Loss(start, stop, draw(st.sampled_from([(), (), ("AAA",)])))
        for start, stop in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    return Tape(made), losses, LIVE if live else REPLAY


@hypothesis_settings(max_examples=25)
@given(recordings())
def test_whatever_the_gaps_received_and_healed_are_the_tape_and_healing_again_changes_nothing(
    made: tuple[Tape, list[Loss], Recorder],
) -> None:
    tape, losses, recorder = made
    with (
        tempfile.TemporaryDirectory() as folder,
        use(Settings.load(home=folder)),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(files.os, "fsync", lambda _: None)
        dataset = recorder.record(tape, losses, "recorded")
        if not dataset.symbols:
            return
        healing = heal_from(dataset, tape)
        assert not healing.open
        assert_is_the_tape(healing.dataset, tape)
        for kind in TICKS:
            healed, known = healing.dataset.table(kind, "healed"), tape.table(kind)
            filled = healed.filter(healed.column("ts_recv").is_null())
            assert len(filled) == sum(one.rows for one in healing.filled if one.channel == kind)
            assert set(filled["ts_event"].to_pylist()) <= set(known["ts_event"].to_pylist())
            assert healing.dataset.table(kind).equals(dataset.table(kind))
        arrivals = [event.arrival for event in healing.dataset.replay("healed")]
        assert arrivals == sorted(set(arrivals))
        assert len(arrivals) == len(tape.ticks)
        again = heal_from(healing.dataset, tape)
        assert again.dataset._manifest == healing.dataset._manifest
        assert again.added == 0


@hypothesis_settings(max_examples=12)
@given(recordings(), st.dictionaries(st.integers(1, 20), st.integers(1, 5), max_size=4))
def test_events_that_came_a_little_late_are_filled_where_they_fell_into_a_gap_and_none_is_there_twice(
    made: tuple[Tape, list[Loss], Recorder], late: dict[int, int]
) -> None:
    tape, losses, recorder = made
    last = len(tape.ticks) - 1
    late = {
        n: n + by
        for n, by in late.items()
        if n + by < last and tape.ticks[n + by].at - tape.ticks[n].at < MARGIN
    }
    inside = [loss for loss in losses if loss.first > 0 and loss.stop <= last]
    with tempfile.TemporaryDirectory() as folder, use(Settings.load(home=folder)):
        dataset = replace(recorder, late=late).record(tape, inside, "recorded", parts_of=50)
        healed = heal_from(dataset, tape).dataset
        for kind in TICKS:
            numbers = [row["sequence"] for row in told(healed.table(kind, "healed"), kind)]
            assert sorted(numbers) == [n for n, tick in enumerate(tape.ticks) if tick.kind == kind]


def test_filled_rows_are_marked_by_having_no_ts_recv_and_are_seen_only_where_they_are_asked_for() -> None:
    tape = Tape(ticks(40))
    dataset = heal_from(LIVE.record(tape, [Loss(8, 20)], "day"), tape).dataset
    assert len(dataset.quotes()) + len(dataset.trades()) == 28
    assert dataset.quotes()["ts_recv"].notna().all()
    healed = dataset.quotes(view="healed")
    assert healed["ts_recv"].isna().sum() == 6
    assert healed.attrs["tapelab"]["view"] == "healed"
    assert len(dataset.bars("1m", view="healed")) == len(
        tape.table("trades").group_by("symbol").aggregate([])
    )
    assert [event.ts_recv is None for event in dataset.replay("healed")] == [8 <= n < 20 for n in range(40)]
    assert all(event.ts_recv is not None for event in dataset.replay())
    assert dataset.verify() == len(list(dataset.path.rglob("*.parquet")))
    assert open_dataset("day", version=1).filled == ()


def test_only_the_gap_and_a_margin_is_asked_for_and_gaps_close_together_are_one_question() -> None:
    tape = Tape(ticks(400))
    dataset = LIVE.record(tape, [Loss(10, 12), Loss(14, 16), Loss(390, 392)], "day")
    assert_is_the_tape(heal_from(dataset, tape).dataset, tape)
    assert len(tape.asked) == 2 * 2
    assert all(end - start < 250 * clock.SECOND for _, _, start, end in tape.asked)


def test_only_the_channels_and_symbols_that_were_subscribed_are_filled() -> None:
    tape = Tape(ticks(40))
    dataset = Recorder(topics=("Q.AAA", "T.BBB")).record(tape, [Loss(8, 20)], "day")
    healed = heal_from(dataset, tape).dataset
    filled = {
        kind: healed.table(kind, "healed").filter(pa.compute.is_null(healed.table(kind, "healed")["ts_recv"]))
        for kind in TICKS
    }
    assert set(filled["quotes"]["symbol"].to_pylist()) == {"AAA"}
    assert set(filled["trades"]["symbol"].to_pylist()) == {"BBB"}


@pytest.mark.parametrize(("route", "open_"), [("rest", True), ("flat_file", False)])
def test_of_a_whole_market_rest_can_only_be_asked_for_symbols_that_were_seen(route: str, open_: bool) -> None:
    tape = Tape(ticks(40), route=route)
    dataset = Recorder(topics=("Q.*", "T.*")).record(tape, [Loss(8, 20)], "day")
    healing = heal_from(dataset, tape)
    assert_is_the_tape(healing.dataset, tape)
    assert [bool(one.open) for one in healing.filled] == [open_, open_]
    asked = len(tape.asked)
    assert heal_from(healing.dataset, tape, again=False).added == 0
    assert len(tape.asked) == asked


def test_of_a_whole_market_the_days_file_says_later_what_rest_could_not() -> None:
    tape = Tape(ticks(40))
    dataset = Recorder(topics=("Q.*", "T.*")).record(tape, [Loss(8, 20)], "day")
    tape.ticks[10] = Tick(tape.ticks[10].kind, "RARE", tape.ticks[10].at)
    first = heal_from(dataset, AsNamed(tape.ticks)).dataset
    assert "RARE" not in first.table("quotes", "healed")["symbol"].to_pylist()
    tape.route = "flat_file"
    assert not heal_from(first, tape).open
    assert_is_the_tape(open_dataset("day"), tape)


def test_what_was_filled_before_the_day_was_final_is_asked_for_once_more_when_it_is() -> None:
    tape = Tape(ticks(40), final=False)
    late = tape.ticks[10]
    tape.ticks[10] = Tick(late.kind, "LATE", late.at)  # not there yet
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    first = heal_from(dataset, tape)
    assert (first.added, len(first.provisional)) == (11, 2)
    asked = len(tape.asked)
    assert heal_from(first.dataset, tape).dataset.version == first.dataset.version
    assert len(tape.asked) == asked
    tape.ticks[10], tape.final = late, True
    second = heal_from(first.dataset, tape)
    assert (second.added, second.provisional) == (1, ())
    assert_is_the_tape(second.dataset, tape)
    assert sum(one.rows for one in second.filled) == 12


def test_a_source_that_is_not_that_far_yet_fills_nothing() -> None:
    tape = Tape(ticks(40), final=False, until=T0 + 18 * clock.SECOND)
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    healing = heal_from(dataset, tape)
    assert healing.added == 0
    assert all("not that far yet" in one.open for one in healing.filled)
    tape.until = 2**62
    assert_is_the_tape(heal_from(healing.dataset, tape).dataset, tape)


def test_a_source_that_does_not_know_what_was_received_is_not_believed() -> None:
    tape = Tape(ticks(40))
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    other = Tape([Tick(tick.kind, tick.symbol, tick.at + 5 * clock.MILLISECOND) for tick in tape.ticks])
    healing = heal_from(dataset, other)
    assert healing.added == 0
    assert all("0 of" in one.open for one in healing.filled)
    assert "open: the source knows 0 of" in str(healing)


def test_what_a_final_answer_leaves_open_is_asked_again_only_by_who_heals_himself() -> None:
    tape = Tape(ticks(40))
    other = Tape([Tick(tick.kind, tick.symbol, tick.at + 5 * clock.MILLISECOND) for tick in tape.ticks])
    other.final = False
    first = heal_from(LIVE.record(tape, [Loss(8, 20)], "day"), other)
    assert [(bool(one.open), one.final) for one in first.filled] == [(True, False)] * 2
    other.final = True
    last = heal_from(first.dataset, other, again=False)
    assert [(bool(one.open), one.final) for one in last.filled] == [(True, True)] * 2
    asked = len(other.asked)
    assert heal_from(last.dataset, other, again=False).dataset.version == last.dataset.version
    assert len(other.asked) == asked
    assert not last.dataset.complete
    assert_is_the_tape(heal_from(last.dataset, tape).dataset, tape)


class AsNamed(Tape):
    """Knows only the symbols that it is asked for, as REST does."""

    def ask(self, *args: Any, **more: Any) -> Answer:
        return super().ask(*args, **(more | {"everybody": False}))


class Broken(Tape):
    """Fails at a question."""

    def ask(self, kind: str, *args: object, **more: object) -> Answer:  # type: ignore[override]
        if kind == "trades":
            raise Unreachable("The network is down.", remedy="Look at the cable.")
        return super().ask(kind, *args, **more)  # type: ignore[arg-type]


def test_what_could_be_had_is_kept_and_the_rest_is_open_until_the_next_time() -> None:
    tape = Broken(ticks(40))
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    healing = heal_from(dataset, tape)
    assert healing.added == 6
    assert [(one.channel, one.open) for one in healing.open] == [
        ("trades", "The network is down. Look at the cable.")
    ]
    assert_is_the_tape(heal_from(healing.dataset, Tape(tape.ticks)).dataset, tape)


def test_where_nothing_could_be_had_the_error_says_what_is_open_and_the_dataset_is_as_it_was() -> None:
    tape = Broken([Tick("trades", "AAA", n * clock.SECOND) for n in range(40)])
    dataset = Recorder(channels=("trades",)).record(tape, [Loss(8, 20), Loss(30, 32)], "day")
    before = sorted(dataset.path.rglob("*"))
    with pytest.raises(Unreachable) as caught:
        heal_from(dataset, tape)
    assert str(caught.value) == (
        "Nothing of day was healed: The network is down. Open: 2 gaps of trades, 2013-10-09T14:00:07+00:00 "
        "to 2013-10-09T14:00:32+00:00. Look at the cable. Then heal it again."
    )
    assert sorted(dataset.path.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_healing_leaves_the_dataset_as_it_was(
    error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    tape = Tape(ticks(40))
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    before = sorted(dataset.path.rglob("*.*"))

    def interrupted(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "next_version", interrupted)
        with pytest.raises(error):
            heal_from(dataset, tape)
    assert sorted(dataset.path.rglob("*.*")) == [*before]
    assert_is_the_tape(heal_from(dataset, tape).dataset, tape)


def test_two_programs_do_not_heal_over_each_other() -> None:
    tape = Tape(ticks(40))
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")
    with Lock(lock_path(dataset.path)), pytest.raises(Locked):
        heal_from(dataset, tape)
    dataset.tag("open")
    with pytest.raises(StoreError, match="someone else"):
        heal_from(dataset, tape)
    tagged = heal_from(open_dataset("day"), tape).dataset
    assert tagged.tags == ("open",)
    assert_is_the_tape(tagged, tape)


def test_what_comes_from_elsewhere_is_never_mixed_in(tmp_path: Path) -> None:
    tape = Tape(ticks(40))
    dataset = LIVE.record(tape, [Loss(8, 20)], "day")

    class Simulated(Tape):
        def ask(self, *args: object, **more: object) -> Answer:  # type: ignore[override]
            return super().ask(*args, **more)._replace(simulated=True)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="one is simulated"):
        heal_from(dataset, Simulated(tape.ticks))
    elsewhere = Settings.load(home=tmp_path, rest_url="http://127.0.0.1:1")
    with use(elsewhere), pytest.raises(UsageError, match="endpoints never mix"):
        heal(dataset.path)


def test_without_keys_the_error_names_the_gaps_and_the_keys(tmp_path: Path) -> None:
    dataset = LIVE.record(Tape(ticks(40)), [Loss(8, 20)], "day")
    with pytest.raises(SettingError) as caught:
        heal(dataset)
    assert "Nothing of day was healed: No route is open" in caught.value.message
    assert "Open: 1 gap of quotes and trades" in caught.value.message
    assert "MASSIVE_API_KEY" in caught.value.remedy


def test_a_budget_that_would_break_is_kept_and_nothing_is_sent(tmp_path: Path) -> None:
    poor = Settings.load(home=tmp_path, api_key="a-key", rest_calls_per_day=1)
    with use(poor):
        dataset = LIVE.record(Tape(ticks(40)), [Loss(8, 20)], "day")
        with pytest.raises(BudgetExceeded, match="Nothing of day was healed: This would break your budget"):
            heal(dataset)
        assert Budget(poor).left().calls_today == 0


def test_where_the_days_file_is_not_there_yet_the_error_says_when_it_will_be(tmp_path: Path) -> None:
    with serve(simulate=True, speed=0) as exchange:
        without_rest = replace(exchange.settings(tmp_path), api_key=None)
        with use(without_rest):
            dataset = LIVE.record(Tape(ticks(40)), [Loss(8, 20)], "day")
            with pytest.raises(NotFound, match="has no file for 2013-10-09") as caught:
                heal(dataset)
    assert "11:00 New York on the day after. Then heal it again." in caught.value.remedy


def test_a_dataset_without_gaps_has_nothing_to_heal() -> None:
    dataset = catalogue.from_tables("imported", quotes=Tape(ticks(4)).table("quotes"), source="flat_file")
    healing = heal(dataset)
    assert (healing.added, healing.filled, str(healing)) == (0, (), "imported has no gaps.")


def test_a_gap_whose_place_nobody_can_know_stays_open() -> None:
    tape = Tape(ticks(40))
    healing = heal_from(REPLAY.record(tape, [Loss(0, 20)], "day"), tape)
    assert [one.open for one in healing.filled] == [
        "nothing was received beside it that tells where it lies on the exchange's clock"
    ] * 2


def test_a_recorder_that_began_late_or_ended_early_is_healed_from_the_open_to_the_close() -> None:
    tape = Tape(ticks(90, apart=20 * clock.MILLISECOND))
    losses = [
        Loss(0, 20, cause="not_running"),
        Loss(20, 24, declared=False),
        Loss(70, 90, cause="not_running"),
    ]
    dataset = LIVE.record(tape, losses, "day", changed={24: LIVE.topics})  # the topics are confirmed later
    healing = heal_from(dataset, tape)
    assert_is_the_tape(healing.dataset, tape)
    report = healing.report()
    assert (report.lacking, report.table["healed"].sum()) == (0, 44)
    assert len(report.stretches) == 1


def test_an_event_that_was_sent_twice_is_no_reason_to_lack_another() -> None:
    tape = Tape(ticks(12))
    source = tape.table("quotes")
    had = pa.concat_tables([source.slice(0, 3), source.slice(0, 1)])
    assert matching.match(source, had, "quotes").tolist() == [0, 1, 2, -1, -1, -1]
    same = pa.concat_tables([source.slice(0, 1)] * 3)
    assert sorted(matching.match(same, same.slice(0, 2), "quotes").tolist()) == [-1, 0, 1]


def test_events_are_known_by_their_names_where_the_vendors_doors_differ_in_size_or_condition() -> None:
    source = Tape(ticks(12)).table("quotes")
    heard = source.set_column(source.column_names.index("bid_size"), "bid_size", pa.array([100.0] * 6))
    heard = heard.set_column(
        source.column_names.index("conditions"), "conditions", pa.nulls(6, pa.list_(pa.int16()))
    )
    assert matching.match(source, tables.conform(heard, tables.QUOTES), "quotes").tolist() == list(range(6))


def test_minute_bars_that_a_gap_swallowed_are_filled() -> None:
    tape = Tape(ticks(400))
    minutes = [
        {
            "timestamp": T0 + n * clock.MINUTE, "session": None, "symbol": "AAA", "open": 1.0, "high": 2.0,
            "low": 0.5, "close": 1.5, "volume": 10.0, "vwap": None, "transactions": 3,
        }
        for n in range(6)
    ]  # fmt: skip
    for row in minutes:
        row["session"] = clock.date_of(T0, "America/New_York")
    tape.bars = pa.Table.from_pylist(minutes, schema=tables.BARS)
    recorder = Recorder(
        topics=("T.AAA", "Q.AAA", "AM.AAA", "T.BBB", "Q.BBB"), channels=("quotes", "trades", "bars")
    )
    received = tape.bars.take([0, 1, 4, 5])
    dataset = recorder.record(tape, [Loss(160, 290)], "day", bars=received)
    healed = heal_from(dataset, tape).dataset
    assert len(healed.table("bars")) == 4
    assert healed.table("bars", "healed").column("timestamp").to_pylist() == [r["timestamp"] for r in minutes]
    assert [one.rows for one in healed.filled if one.channel == "bars"] == [2]


def test_a_healed_replay_keeps_the_pace_of_what_was_received() -> None:
    tape = Tape(ticks(40))
    dataset = heal_from(LIVE.record(tape, [Loss(8, 20)], "day"), tape).dataset
    standing = FixedClock(0)
    with clock.use(standing):
        seen = [(event.ts_recv, standing.at) for event in dataset.replay("healed", speed=1)]
    received = [(recv, at) for recv, at in seen if recv is not None]
    assert [at for _, at in received] == [recv - received[0][0] for recv, _ in received]
    assert len(seen) == 40


@pytest.mark.parametrize("frame", ["pandas", "polars", "arrow"])
def test_a_backtest_of_healed_tables_sees_what_the_healed_replay_tells(frame: Any) -> None:
    tape = Tape(ticks(40))
    dataset = heal_from(LIVE.record(tape, [Loss(8, 20)], "day"), tape).dataset
    healed = {
        "quotes": dataset.quotes(view="healed", frame=frame),
        "trades": dataset.trades(view="healed", frame=frame),
    }
    assert list(sources.read(healed).events()) == list(dataset.replay("healed"))
    assert len(list(sources.read(dataset).events())) == 28


def test_a_healed_recording_can_be_appended_and_merged_and_healed_further() -> None:
    tape = Tape(ticks(80))
    first = heal_from(LIVE.record(Tape(tape.ticks[:40]), [Loss(8, 20)], "one"), tape).dataset
    later = Recorder(lag=clock.MINUTE)
    second = heal_from(later.record(tape, [Loss(0, 41), Loss(50, 60)], "two"), tape).dataset
    whole = catalogue.append(first, second)
    assert len(whole.table("quotes", "healed")) == len(first.table("quotes", "healed")) + len(
        second.table("quotes", "healed")
    )
    events = list(whole.replay("healed"))
    assert [event.arrival for event in events] == sorted({event.arrival for event in events})
    one_after_the_other = [*first.replay("healed"), *second.replay("healed")]
    assert [event.ts_event for event in events] == [event.ts_event for event in one_after_the_other]
    assert whole.filled == (*first.filled, *second.filled)
    assert whole.verify() > 0
