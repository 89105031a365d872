"""Recordings of one feed as one dataset: what any of them received, once; what all of them missed, a gap.

An event is known by everything that was said of it; only our own clock and numbering tell two copies apart.
Of the copies the one that arrived first is kept, as whoever listens on two lines keeps it. What a recording
holds twice is held twice afterwards, never four times.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tapelab.market import clock, tables
from tapelab.massive.wire.fields import CHANNELS
from tapelab.store.datasets.manifest import Heard, Lost

SPACE = 2**25  # arrival numbers from one event to the next: healing puts events in between
APART = clock.SECOND  # how far the clocks of two machines may differ before a gap is covered in error

TOGETHER = 250_000  # rows that are compared at a time, which bounds the memory of it
ROUNDS = 1000  # in which the order of recordings is brought into agreement; two or three are usual

Stretch = tuple[int, int]
Ints = npt.NDArray[np.int64]

_KINDS = {str(channel): str(kind) for channel, kind in CHANNELS.items()}
_OURS = ("ts_recv", "arrival")
NO_TOPIC = ""
_LISTS = ("conditions", "indicators")
_NOW = 2**63 - 1


def union(
    sources: Sequence[Mapping[str, pa.Table]], *, received: bool, first: int = 0
) -> dict[str, pa.Table]:
    """Quotes and trades of several recordings, each event once, numbered from `first` in order of arrival.

    `received`: by our clock, else by the exchange's. An event never comes before one that preceded it in a
    recording that holds both, unless recordings contradict each other.
    """
    whole = {
        kind: tables.concat([source[kind] for source in sources], tables.SCHEMAS[kind])
        for kind in ("quotes", "trades")
    }
    origin = {k: np.repeat(np.arange(len(sources)), [len(s[k]) for s in sources]) for k in whole}
    events = {kind: _events(table, origin[kind]) for kind, table in whole.items()}
    # From here on all rows are in one line, first the quotes, then the trades.
    cut = len(whole["quotes"])
    event = np.concatenate([events["quotes"], events["trades"] + cut])
    source = np.concatenate([origin["quotes"], origin["trades"]])
    arrival = np.concatenate([table.column("arrival").to_numpy() for table in whole.values()])
    stamp = "ts_recv" if received else "ts_event"
    stamps = np.concatenate([table.column(stamp).to_numpy() for table in whole.values()])
    order = np.lexsort((arrival, source))
    lines = np.split(order, np.searchsorted(source[order], range(1, len(sources))))
    due = np.empty(len(stamps), dtype=np.int64)
    for line in lines:
        due[line] = np.maximum.accumulate(stamps[line])
    known, event = np.unique(event, return_inverse=True)
    soonest = np.lexsort((source, due))
    copy = np.empty(len(known), dtype=np.int64)
    copy[event[soonest[::-1]]] = soonest[::-1]  # of the copies the last that is written stays
    ways = [event[line] for line in lines]
    when = _never_before(due[copy], ways)
    tie = (arrival[copy], source[copy])
    order = np.lexsort((*tie, when) if received else (*tie, copy < cut, when))
    rows = copy[_straightened(order, when, ways)]
    numbers = (np.arange(len(rows), dtype=np.int64) + first) * SPACE
    return {
        "quotes": _numbered(whole["quotes"], rows[rows < cut], numbers[rows < cut]),
        "trades": _numbered(whole["trades"], rows[rows >= cut] - cut, numbers[rows >= cut]),
    }


def _events(table: pa.Table, source: Ints) -> Ints:
    """Of each row which event it is, told by everything but what is ours: the row of its first copy."""
    said = [name for name in table.column_names if name not in _OURS]
    frame = pl.from_arrow(table.select(said))
    assert isinstance(frame, pl.DataFrame)
    stamps = table.column("ts_event").to_numpy()
    order = np.argsort(stamps, kind="stable")
    stamps = stamps[order]
    cuts = np.unique(np.searchsorted(stamps, stamps[TOGETHER::TOGETHER]))  # what happened at once stays so
    found = np.empty(len(stamps), dtype=np.int64)
    for rows in np.split(order, cuts):
        found[rows] = rows[_first_copies(frame[rows], source[rows], said)]
    return found


def _first_copies(frame: pl.DataFrame, source: Ints, said: Sequence[str]) -> Ints:
    found = (
        frame.with_columns(
            pl.col(name).cast(pl.List(pl.String)).list.join(",") for name in _LISTS if name in said
        )
        .with_columns(source=pl.Series(source, dtype=pl.Int64), row=pl.int_range(pl.len(), dtype=pl.Int64))
        .with_columns(nth=pl.int_range(pl.len()).over("source", *said))
        .select(pl.col("row").min().over("nth", *said))
    )
    return found["row"].to_numpy()


def _never_before(when: Ints, ways: Sequence[Ints]) -> Ints:
    """When events come, none before what preceded it on one of the ways that they were told."""
    for _ in range(ROUNDS):
        before = when.copy()
        for way in ways:
            when[way] = np.maximum.accumulate(when[way])
        if np.array_equal(when, before):
            break
    return when


def _straightened(order: Ints, when: Ints, ways: Sequence[Ints]) -> Ints:
    """`order` (by `when`), with events that come at the same moment in the order of their ways."""
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    turned = np.unique(np.concatenate([when[way[:-1][np.diff(rank[way]) < 0]] for way in ways]))
    spans = np.searchsorted(when[order], np.stack([turned, turned + 1])).T.tolist()
    parts = [np.searchsorted(when[way], np.stack([turned, turned + 1])).T.tolist() for way in ways]
    for n, (begin, end) in enumerate(spans):
        after: dict[int, list[int]] = {}
        before: Counter[int] = Counter()
        for way, part in zip(ways, parts, strict=True):
            start, stop = part[n]
            for one, next_ in itertools.pairwise(way[start:stop].tolist()):
                after.setdefault(one, []).append(next_)
                before[next_] += 1
        left = dict.fromkeys(order[begin:end].tolist())
        straight = []
        while left:
            # Where recordings contradict each other nothing is free; then the first goes.
            one = next((event for event in left if not before[event]), next(iter(left)))
            del left[one]
            straight.append(one)
            before.subtract(after.get(one, ()))
        order[begin:end] = straight
    return order


def _numbered(table: pa.Table, rows: Ints, numbers: Ints) -> pa.Table:
    index = table.column_names.index("arrival")
    return table.take(pa.array(rows)).set_column(index, table.schema.field(index), pa.array(numbers))


def busiest_bars(found: Iterable[pa.Table]) -> pa.Table:
    """Bars of several recordings, one of each; the vendor sends a bar again when late prints have come, so
    that of more volume counts."""
    bars = tables.concat(list(found), tables.BARS)
    ordered = bars.sort_by([("symbol", "ascending"), ("timestamp", "ascending"), ("volume", "descending")])
    names, stamps = ordered.column("symbol"), ordered.column("timestamp").to_numpy()
    codes = names.combine_chunks().dictionary_encode().indices.to_numpy()
    same = (np.diff(codes, prepend=-1) == 0) & (np.diff(stamps, prepend=-1) == 0)
    return ordered.filter(pa.array(~same))


def heard_by(sources: Iterable[Sequence[Heard]]) -> tuple[Heard, ...]:
    """From when to when which topics were subscribed by at least one, one stretch after another."""
    stretches = [heard for source in sources for heard in source]
    edges = sorted({edge for heard in stretches for edge in (heard.start, heard.end or _NOW)})
    found: list[Heard] = []
    for start, end in itertools.pairwise(edges):
        here = [h for h in stretches if h.start <= start and (h.end or _NOW) >= end]
        topics = tuple(dict.fromkeys(topic for heard in here for topic in heard.topics))
        if found and found[-1].end == start and set(found[-1].topics) == set(topics):
            found[-1] = Heard(found[-1].topics, found[-1].start, end)
        elif topics:
            found.append(Heard(topics, start, end))
    return tuple(found)


def gaps_of_all(sources: Sequence[tuple[Sequence[Heard], Sequence[Lost]]]) -> tuple[Lost, ...]:
    """What none of several recordings has, by channel and symbol: a gap of one that another covers is none.

    Another covers what it listened to and did not lose, but for `APART` at either end.
    """
    everyone = {topic for heard, _ in sources for one in heard for topic in one.topics}
    covered = {
        topic: [_covered(topic, heard, gaps) for heard, gaps in sources] for topic in [*everyone, NO_TOPIC]
    }
    declared: dict[str, list[Stretch]] = {}
    lost: dict[tuple[int, int, str], dict[str, tuple[str, ...]]] = {}
    for n, (heard, gaps) in enumerate(sources):
        for gap in gaps:
            for topic in _concerned(gap, heard):
                mine = declared.setdefault(topic, [])
                others = (s for m, stretches in enumerate(covered[topic]) if m != n for s in stretches)
                rest = _without([(gap.start, gap.end)], [*others, *mine])
                mine.extend(rest)
                for start, end in rest:
                    lost.setdefault((start, end, gap.cause), {})[topic] = gap.channels
    found = [gap for stretch, topics in lost.items() for gap in _gaps_of(stretch, topics, everyone)]
    return tuple(sorted(found, key=lambda gap: (gap.start, gap.end)))


def _gaps_of(
    stretch: tuple[int, int, str], topics: Mapping[str, tuple[str, ...]], everyone: set[str]
) -> list[Lost]:
    """Topics lost in one stretch as gaps: channels that lost the same symbols are one."""
    unnamed = [Lost(*stretch, topics[NO_TOPIC])] if NO_TOPIC in topics else []
    by_channel: dict[str, set[str]] = {}
    for topic in set(topics) - {NO_TOPIC}:
        by_channel.setdefault(topic.partition(".")[0], set()).add(topic)
    by_symbols: dict[tuple[str, ...], list[str]] = {}
    for channel, names in by_channel.items():
        all_of_it = f"{channel}.*" in names or names == {t for t in everyone if t.startswith(f"{channel}.")}
        symbols = () if all_of_it else tuple(sorted(topic.partition(".")[2] for topic in names))
        by_symbols.setdefault(symbols, []).append(_KINDS.get(channel, channel))
    named = [Lost(*stretch, tuple(sorted(kinds)), symbols=names) for names, kinds in by_symbols.items()]
    return unnamed + named


def _concerned(gap: Lost, heard: Sequence[Heard]) -> list[str]:
    """The topics of which a gap may have lost something: those subscribed around it.

    Without any (a connection that never was confirmed) it counts for whatever was to be heard.
    """
    around = [h for h in heard if h.start <= gap.end and (h.end or _NOW) >= gap.start]
    around = around or [h for h in heard if h.start <= gap.start][-1:]
    topics = dict.fromkeys(topic for one in around for topic in one.topics)
    return [topic for topic in topics if _is_of(gap, topic)] or [NO_TOPIC]


def _is_of(gap: Lost, topic: str) -> bool:
    channel, _, symbol = topic.partition(".")
    kind = _KINDS.get(channel)
    of_channel = not gap.channels or kind is None or kind in gap.channels
    return of_channel and (not gap.symbols or symbol == "*" or symbol in gap.symbols)


def _covered(topic: str, heard: Sequence[Heard], gaps: Sequence[Lost]) -> list[Stretch]:
    """When a recording had a topic, whatever the clocks of others say."""
    sure = _covered_exactly(topic, heard, gaps)
    return [(start + APART, end - APART) for start, end in sure if start + APART < end - APART]


def _covered_exactly(topic: str, heard: Sequence[Heard], gaps: Sequence[Lost]) -> list[Stretch]:
    wildcard = f"{topic.partition('.')[0]}.*"
    listened = [(h.start, h.end or _NOW) for h in heard if topic in h.topics or wildcard in h.topics]
    lost = [(gap.start, gap.end) for gap in gaps if _is_of(gap, topic)]
    return _without(_run_together(listened), lost)


def _run_together(stretches: Iterable[Stretch]) -> list[Stretch]:
    """Stretches that touch or overlap as one, in order."""
    found: list[Stretch] = []
    for start, end in sorted(stretches):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _without(stretches: Iterable[Stretch], taken: Iterable[Stretch]) -> list[Stretch]:
    """What is left of stretches when others are taken out of them."""
    left = list(stretches)
    for begin, stop in _run_together(taken):
        left = [
            piece
            for start, end in left
            for piece in ((start, min(end, begin)), (max(start, stop), end))
            if piece[0] < piece[1]
        ]
    return left
