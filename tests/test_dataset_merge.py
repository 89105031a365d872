"""Recordings merged into one: every event once, in order of arrival, and honest about what all lost."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from streams import Vendor, settings_for, until
from streams import both as stream_of_both
from tapelab.errors import StoreError, UsageError
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.market import clock, tables
from tapelab.settings import Settings, use
from tapelab.store.datasets import catalogue, manifest, merging
from tapelab.store.datasets.dataset import Dataset, list_datasets, open_dataset
from tapelab.store.datasets.manifest import Heard, Lost

T0 = 1_700_000_000 * clock.SECOND
SAID = {"quotes": ("bid", "conditions"), "trades": ("price", "conditions")}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setattr(merging, "TOGETHER", 3)  # less than there is, whatever there is
    with use(Settings.load(home=tmp_path)) as settings:
        yield settings


def rows_of(kind: str, events: list[tuple[int, int, str, int]]) -> pa.Table:
    """Rows (number on the tape, ns after T0 of its arrival, symbol, arrival) as a table of `kind`."""
    rows = [
        {
            "ts_event": T0 + number // 2, "ts_recv": T0 + at, "arrival": arrival, "symbol": symbol,
            "bid": number / 4, "price": number / 4, "size": 1.0, "sequence": number,
            "conditions": [number % 3] if number % 3 else None, "correction": 0,
        }
        for number, at, symbol, arrival in events
    ]  # fmt: skip
    return (
        tables.conform(pa.Table.from_pylist(rows), tables.SCHEMAS[kind])
        if rows
        else tables.SCHEMAS[kind].empty_table()
    )


def recorded(name: str, events: list[tuple[str, int, int, str]], **known: object) -> Dataset:
    """A dataset of (kind, number, ns after T0, symbol) in order of arrival; `known` changes its manifest."""
    numbered = [(*event, arrival * 7) for arrival, event in enumerate(events)]
    made = catalogue.from_tables(
        name,
        **{k: rows_of(k, [e[1:] for e in numbered if e[0] == k]) for k in ("quotes", "trades")},
        source="live",
    )
    if known:
        manifest.next_version(made.path, made._manifest, **known)
    return open_dataset(name)


def said(dataset: Dataset) -> list[tuple[object, ...]]:
    return [(type(e).__name__, e.symbol, e.ts_event, getattr(e, "bid", None) or getattr(e, "price", 0))
            for e in dataset.replay()]  # fmt: skip


tapes = st.lists(
    st.tuples(st.sampled_from(("quotes", "trades")), st.sampled_from("AB")), min_size=1, max_size=14
)
ears = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), min_size=14, max_size=14)


@st.composite
def heard_twice(draw: st.DrawFn) -> tuple[list[tuple[str, int, int, str]], list[tuple[str, int, int, str]]]:
    """One tape, told to two recorders: each may miss an event, hear it late, or be told it twice."""
    tape = draw(tapes)
    both = []
    for _ in range(2):
        heard, late = [], 0
        for number, ((kind, symbol), (copies, delay)) in enumerate(zip(tape, draw(ears), strict=False)):
            late = max(late, 2 * number + delay)
            heard += [(kind, number, late, symbol)] * copies
        both.append(heard)
    opening = [(tape[0][0], 0, 0, tape[0][1])]
    return both[0] or opening, both[1] or opening


@hypothesis_settings(max_examples=50)
@given(heard_twice())
def test_what_either_recorder_heard_is_there_once_in_the_order_of_the_tape(
    both: tuple[list[tuple[str, int, int, str]], list[tuple[str, int, int, str]]],
) -> None:
    sources = []
    for heard in both:
        numbered = [(*event, arrival) for arrival, event in enumerate(heard)]
        sources.append({k: rows_of(k, [e[1:] for e in numbered if e[0] == k]) for k in ("quotes", "trades")})
    merged = merging.union(sources, received=True)
    counts = [Counter((event[0], event[1]) for event in heard) for heard in both]
    found = sorted(
        (arrival, kind, sequence, received)
        for kind, table in merged.items()
        for arrival, sequence, received in zip(
            *(table.column(n).to_pylist() for n in ("arrival", "sequence", "ts_recv")), strict=True
        )
    )
    assert Counter((kind, number) for _, kind, number, _ in found) == counts[0] | counts[1]
    assert [arrival for arrival, *_ in found] == [n * merging.SPACE for n in range(len(found))]
    kept = [(kind, number) for _, kind, number, _ in found]
    for heard in both:
        onward = iter(kept)
        assert all(event[:2] in onward for event in heard)
    for _, kind, number, received in found:
        assert received in {T0 + event[2] for heard in both for event in heard if event[:2] == (kind, number)}
    soonest = min(T0 + event[2] for heard in both for event in heard)
    assert min(received for *_, received in found) == soonest
    for kind, table in merging.union([merged, *sources], received=True).items():
        assert table.equals(merged[kind])
    swapped = merging.union(sources[::-1], received=True)
    assert all(swapped[kind].drop(["arrival"]).num_rows == merged[kind].num_rows for kind in merged)


stretch = st.tuples(st.integers(0, 30), st.integers(1, 12))


@st.composite
def listening(draw: st.DrawFn) -> tuple[tuple[Heard, ...], tuple[Lost, ...]]:
    topics = draw(
        st.lists(st.sampled_from(["Q.A", "Q.B", "T.A", "Q.*"]), min_size=1, max_size=3, unique=True)
    )
    heard, at = [], 0
    for wait, length in draw(st.lists(stretch, min_size=1, max_size=4)):
        heard.append(Heard(tuple(sorted(topics)), at + wait, at + wait + length))
        at += wait + length
    channels = draw(st.sampled_from([(), ("quotes",), ("quotes", "trades")]))
    gaps = tuple(
        Lost(start, start + length, "cut", channels) for start, length in draw(st.lists(stretch, max_size=4))
    )
    return tuple(heard), gaps


@given(st.lists(listening(), min_size=1, max_size=3))
def test_a_moment_is_lost_if_one_lost_it_and_nobody_had_it(
    sources: list[tuple[tuple[Heard, ...], tuple[Lost, ...]]],
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(merging, "APART", 0)
        found = merging.gaps_of_all(sources)
    heard = merging.heard_by(heard for heard, _ in sources)
    topics = sorted({topic for one in heard for topic in one.topics})
    for at in range(100):
        moment = at + 0.5
        here = {t for h in heard if h.start < moment < h.end for t in h.topics}
        assert here == {t for s, _ in sources for h in s if h.start < moment < h.end for t in h.topics}
        for topic in topics:
            losers = [
                n
                for n, (mine, gaps) in enumerate(sources)
                for gap in gaps
                if gap.start < moment < gap.end and topic in merging._concerned(gap, mine)
            ]
            had = any(
                start < moment < end for s in sources for start, end in merging._covered_exactly(topic, *s)
            )
            declared = [g for g in found if g.start < moment < g.end and merging._is_of(g, topic)]
            if losers and not had:
                assert declared
            if had and not any(not gap.symbols for gap in declared):
                assert not declared
    for gap in found:
        assert gap.start < gap.end


def test_two_machines_on_one_feed_cover_for_each_other() -> None:
    second = clock.SECOND
    tape = [("quotes" if n % 2 else "trades", n, n * second, "AAPL") for n in range(40)]
    topics = ("Q.AAPL", "T.AAPL")
    left = recorded(
        "left",
        [e for e in tape if not 10 < e[1] < 20],
        begun=T0,
        ended=T0 + 40 * second,
        heard=(Heard(topics, T0, T0 + 11 * second), Heard(topics, T0 + 19 * second, T0 + 40 * second)),
        gaps=(Lost(T0 + 10 * second, T0 + 19 * second, "cut", ("quotes", "trades")),),
        tags=("one",),
    )
    recorded(
        "right",
        [(k, n, at + 5, s) for k, n, at, s in tape if n < 16 or n > 30],
        begun=T0 + 1,
        ended=T0 + 39 * second,
        heard=(Heard(topics, T0 + 1, T0 + 16 * second), Heard(topics, T0 + 30 * second, T0 + 39 * second)),
        gaps=(Lost(T0 + 15 * second, T0 + 30 * second, "stalled", ("quotes", "trades")),),
        tags=("two",),
    )
    both = left.merge("right", name="both")
    assert (both.version, both.tags, both.clock) == (1, ("one", "two"), "received")
    assert both.table("quotes").num_rows + both.table("trades").num_rows == 40 - 4
    # From 15 to 19 nobody had it; a second before, the machines' clocks may not agree.
    assert [((g.start - T0) / second, (g.end - T0) / second, g.cause) for g in both.gaps] == [
        (14, 19, "cut"), (19, 20, "stalled"),
    ]  # fmt: skip
    assert both.gaps[0].channels == ("quotes", "trades")
    assert both.gaps[0].symbols == ()
    assert both.coverage["AAPL"].listened == ((T0, T0 + 16 * second), (T0 + 19 * second, T0 + 40 * second))
    assert [(one["name"], one["version"]) for one in both.provenance["merged"]] == [("left", 2), ("right", 2)]
    # of two copies the first is kept, and the left machine's line was quicker
    assert {e.ts_recv % second for e in both.replay() if (e.ts_recv or 0) < T0 + 10 * second} == {0}
    assert both.verify() == 2
    assert [d.version for d in (open_dataset("left"), open_dataset("right"))] == [2, 2]
    assert said(open_dataset("both")) == said(both)


def newest(recorder: WebSocketDataRecorder) -> int:
    """The number on the tape of the last event that has been taken in."""
    assert recorder._growing is not None
    return ((recorder._growing.newest or 0) - T0) // clock.MILLISECOND


def test_two_recorders_of_one_stream_are_whole_together_though_each_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "APART", 0)  # they ask the same clock
    with Vendor() as vendor, ExitStack() as running:
        recorders = [
            running.enter_context(
                WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path / name))
            )
            for name in ("left", "right")
        ]
        vendor.tell(*map(stream_of_both, range(100)))
        until(lambda: all(recorder.stats.events == 200 for recorder in recorders))
        for turn, told in ((1, 100), (2, 250)):
            vendor.cut_oldest()
            vendor.tell(*map(stream_of_both, range(told, told + 100)))
            until(lambda turn=turn: sum(recorder.stats.gaps for recorder in recorders) == turn)
            vendor.await_subscribers(2)
            vendor.tell(*map(stream_of_both, range(told + 100, told + 150)))
            until(lambda last=told + 149: {newest(r) for r in recorders} == {last})
        running.close()
        saved = [recorder.save_dataset("day").parent for recorder in recorders]
    left, right = map(open_dataset, saved)
    both = left.merge(right, name="both")
    for kind in ("quotes", "trades"):
        assert both.table(kind).column("sequence").to_pylist() == list(range(400))
        assert left.table(kind).num_rows < 400
        assert right.table(kind).num_rows < 400
    assert (len(left.gaps), len(right.gaps), both.gaps, both.complete) == (1, 1, (), True)
    assert both.verify() >= 4
    assert len(both._manifest.journals) == 2


def test_a_gap_of_one_symbol_says_so_beside_another_that_was_heard() -> None:
    second = clock.SECOND
    made = {}
    for name, gaps in (("AAPL", (Lost(T0 + second, T0 + 5 * second, "cut", ("quotes",)),)), ("MSFT", ())):
        events = [("quotes", n, n * second, name) for n in range(10)]
        heard = (Heard((f"Q.{name}",), T0, T0 + 10 * second),)
        made[name] = recorded(name, events, heard=heard, gaps=gaps, begun=T0, ended=T0 + 10 * second)
    both = made["AAPL"].merge(made["MSFT"], name="both")
    assert both.symbols == ("AAPL", "MSFT")
    [gap] = both.gaps
    assert (gap.start, gap.end, gap.symbols) == (T0 + second, T0 + 5 * second, ("AAPL",))


def test_a_second_day_comes_behind_the_first() -> None:
    first = recorded("monday", [("quotes", n, n, "A") for n in range(5)])
    second = recorded("tuesday", [("quotes", n + 100, n + clock.DAY, "A") for n in range(5)])
    both = second.merge(first, name="week")
    sequences = both.table("quotes").column("sequence").to_pylist()
    assert sequences == [*range(5), *range(100, 105)]
    assert both.gaps == ()


def test_days_that_do_not_overlap_are_merged_one_at_a_time_with_the_same_outcome(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two recorders, three days, each with a loss of its own; and a machine that heard another symbol."""
    made, taken = [], list[int]()
    for n, lost in enumerate((3, 5, 2, 7, 0, 1)):
        day, late = n // 2, n % 2
        begun = T0 + day * clock.DAY
        events = [
            ("quotes" if k % 2 else "trades", day * 2 * clock.DAY + k, day * clock.DAY + 9 * k + late, "A")
            for k in range(9)
            if k != lost
        ]
        made.append(recorded(f"{n}", events, begun=begun, ended=begun + 100))
    union = merging.union

    def counted(sources: list[dict[str, pa.Table]], **how: Any) -> dict[str, pa.Table]:
        taken.append(len(sources))
        return union(sources, **how)

    monkeypatch.setattr(merging, "union", counted)
    week = made[5].merge(*made[:5], name="week")
    assert taken == [2, 2, 2]
    always = recorded("always", [("quotes", 1, 1, "B")], begun=T0, ended=T0 + 3 * clock.DAY)
    whole = always.merge(*made, name="whole")
    assert taken[3:] == [7]
    for kind in ("quotes", "trades"):
        alone = whole.table(kind).filter(pa.compute.equal(whole.table(kind)["symbol"], "A"))
        assert len(alone) == (12 if kind == "quotes" else 15)
        assert week.table(kind).drop(["arrival"]).equals(alone.drop(["arrival"]))
    arrivals = [event.arrival for event in week.replay()]
    assert arrivals == sorted(set(arrivals))
    assert len(arrivals) == week.coverage["A"].quotes + week.coverage["A"].trades == 27
    assert week.verify() == 6


def test_imported_days_merge_by_the_exchanges_clock_trades_first_at_a_tie() -> None:
    def imported(name: str, kind: str) -> Dataset:
        table = rows_of(kind, [(n, 0, "A", n) for n in range(6)])
        table = table.set_column(1, "ts_recv", pa.nulls(6, pa.int64()))
        return catalogue.from_tables(name, **{kind: table}, source="flat_file")

    both = imported("q", "quotes").merge(imported("t", "trades"), name="qt")
    assert both.clock == "event"
    assert [name for name, *_ in said(both)] == ["Trade", "Trade", "Quote", "Quote"] * 3


def test_bars_that_both_have_count_once_with_the_later_volume() -> None:
    def bars(name: str, volume: float) -> Dataset:
        prices = dict.fromkeys(("open", "high", "low", "close"), 1.0)
        row = {"timestamp": T0, "session": date(2023, 11, 14), "symbol": "A", "volume": volume, **prices}
        return catalogue.from_tables(
            name, bars=tables.conform(pa.Table.from_pylist([row]), tables.BARS), source="x"
        )

    both = bars("early", 10.0).merge(bars("late", 12.0), bars("again", 12.0), name="both")
    assert both.bars("1m")["volume"].tolist() == [12.0]


def test_what_does_not_belong_together_is_not_merged() -> None:
    one = recorded("one", [("quotes", 1, 1, "A")])
    manifest.next_version(one.path, one._manifest, provenance={**one.provenance, "simulated": True})
    with pytest.raises(UsageError, match="two datasets"):
        one.merge(name="alone")
    with pytest.raises(UsageError, match="simulated differs"):
        one.merge("one", name="both")
    with pytest.raises(UsageError, match="already"):
        one.merge(one, name="one")
    begun = msgspec.structs.replace(one._manifest, version=0)
    with pytest.raises(StoreError, match="still recorded"):
        one.merge(Dataset(one.path, begun), name="both")
    assert [d.name for d in list_datasets()] == ["one"]


def test_a_merge_that_fails_leaves_nothing(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    one = recorded("one", [("quotes", 1, 1, "A")])
    monkeypatch.setattr(manifest, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StoreError, match="no room"):
        one.merge(one, name="both")
    assert [path.name for path in one.path.parent.iterdir()] == ["one"]
    (one.path.parent / "both").mkdir()
    (one.path.parent / "both" / "mine.txt").write_text("not a dataset")
    with pytest.raises(UsageError, match="something"):
        one.merge(one, name="both")
