"""The script of one day of a tape whose tables fit in memory: quotes, trades, bars and price bands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapelab.exchange.stream.script import Encode, Ints, Numbers, Part, Run, Script, Topics
from tapelab.exchange.stream.sofar import DaySoFar
from tapelab.exchange.tape import TRADES, Row, Tape
from tapelab.market import sessions, tables
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.symbols import Market
from tapelab.massive import wire

FAR = 1 << 62
BANDS = "LULD"
LENGTHS: dict[Literal["A", "AM"], int] = {"A": SECOND, "AM": MINUTE}

_BAND_KEYS = ("T", "h", "l", "i", "z", "t", "q")  # in the vendor's order; its `t` is in nanoseconds


@dataclass(frozen=True)
class Source:
    """One channel's rows in the order in which they are said.

    `begins` is a row's own stamp, `known` when it is known (the end of a bar), both ns UTC. `arrival` orders
    ticks across channels; what has none is said when it is known, before what happened from then on.
    """

    begins: Ints
    known: Ints
    topics: Numbers
    encoded: Encode
    arrival: Ints | None = None


def ticks(channel: Literal["Q", "T"], table: pa.Table, topics: Topics) -> Source:
    """Quotes or trades, sorted by `arrival`."""
    stamps = table.column("ts_event").to_numpy()
    numbers, encoded = _numbered(channel, table, topics)
    return Source(stamps, stamps, numbers, encoded, table.column("arrival").to_numpy())


def bars(channel: Literal["A", "AM"], table: pa.Table, topics: Topics) -> Source:
    """Second or minute bars, in any order."""
    table = table.sort_by([("timestamp", "ascending"), ("symbol", "ascending")])
    begins = table.column("timestamp").to_numpy()
    return Source(begins, begins + LENGTHS[channel], *_numbered(channel, table, topics))


def bands(rows: Sequence[Row], topics: Topics) -> Source:
    """Limit-up limit-down bands, rows of the vendor's stream in order of `t`."""
    at = np.array([row["t"] for row in rows], dtype=np.int64)
    numbers = np.array([topics.number(BANDS, str(row["T"])) for row in rows], dtype=np.int32)

    def encoded(places: Ints) -> list[bytes]:
        return [_band(rows[n]) for n in places.tolist()]

    return Source(at, at, numbers, encoded)


def _band(row: Row) -> bytes:
    return msgspec.json.encode({"ev": BANDS} | {key: row[key] for key in _BAND_KEYS if key in row})


def _numbered(channel: wire.fields.Channel, table: pa.Table, topics: Topics) -> tuple[Numbers, Encode]:
    table = table.combine_chunks()
    column = table.column("symbol").combine_chunks().dictionary_encode()
    known = [topics.number(channel, symbol) for symbol in column.dictionary.to_pylist()]
    numbers = np.array(known, dtype=np.int32)[column.indices.to_numpy()]

    def encoded(places: Ints) -> list[bytes]:
        together = int(places[-1] - places[0]) + 1 == len(places)
        part = table.slice(places[0], len(places)) if together else table.take(places)
        return wire.encode_events(part, channel)

    return numbers, encoded


def merged(sources: Iterable[Source], start: int = 0, until: int = FAR) -> Run:
    """What lies between two instants, in order: when each is said, its topic, how to encode it.

    Of bars, only those that lie wholly in between.
    """
    sources = list(sources)
    live = [(n, source) for n, source in enumerate(sources) if source.arrival is not None]
    timed = [(n, source) for n, source in enumerate(sources) if source.arrival is None]

    which, row = _stacked(live)
    order = np.argsort(_all([s.arrival for _, s in live if s.arrival is not None]), kind="stable")
    at = np.maximum.accumulate(_all([source.begins for _, source in live])[order])
    inside = (at >= start) & (at < until)

    timed_which, timed_row = _stacked(timed)
    known = _all([source.known for _, source in timed])
    timed_order = np.argsort(known, kind="stable")
    known = known[timed_order]
    begins = _all([source.begins for _, source in timed])[timed_order]
    timed_inside = (begins >= start) & (known <= until) & (begins < until)
    places = np.searchsorted(at, known, side="left")

    inside = np.insert(inside, places, timed_inside)
    which = np.insert(which[order], places, timed_which[timed_order])[inside]
    row = np.insert(row[order], places, timed_row[timed_order])[inside]
    topic = np.empty(len(row), dtype=np.int32)
    for n, source in enumerate(sources):
        mine = which == n
        topic[mine] = source.topics[row[mine]]

    def encoded(places: Ints) -> list[bytes]:
        found: list[bytes] = []
        order = np.empty(len(places), dtype=np.int64)
        for n, source in enumerate(sources):
            mine = np.flatnonzero(which[places] == n)
            if len(mine):
                order[mine] = np.arange(len(found), len(found) + len(mine))
                found += source.encoded(row[places[mine]])
        return [found[n] for n in order.tolist()]

    return np.insert(at, places, known)[inside], topic, encoded


def _stacked(sources: list[tuple[int, Source]]) -> tuple[npt.NDArray[np.int8], Ints]:
    counts = [len(source.begins) for _, source in sources]
    numbers = np.repeat(np.array([n for n, _ in sources], dtype=np.int8), counts)
    return numbers, _all([np.arange(count, dtype=np.int64) for count in counts])


def _all(arrays: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, dtype=np.int64), *arrays])


class DayScript(Script):
    """Everything that is said on `day` between `start` and `until` (ns UTC; None: all day), in one part.

    Memory is that of the day's tables and of the chunks in flight.
    """

    def __init__(self, tape: Tape, day: date, start: int | None = None, until: int | None = None) -> None:
        self.topics = Topics(tests_too=tape.simulated)
        found = tape.ticks(day)
        minutes = tape.all_bars("1m", day)
        traded = day in tape.days(TRADES)
        seconds = tape.all_bars("1s", day) if traded else tables.BARS.empty_table()
        prints, official = found.trades if traded else minutes, tape.official(day)
        sources = (
            ticks("Q", found.quotes, self.topics),
            ticks("T", found.trades, self.topics),
            bars("A", DaySoFar(day, official).beside(seconds, prints, SECOND), self.topics),
            bars("AM", DaySoFar(day, official).beside(minutes, prints, MINUTE), self.topics),
            bands(tape.bands(day), self.topics),
        )
        at, topic, encoded = merged(sources, start or 0, until or FAR)
        self._part = Part(at, topic, encoded)
        midnight = sessions.day_start(Market.STOCKS, day)
        self.start = int(at[0]) if start is None and len(at) else start or midnight
        self.end = int(at[-1]) if len(at) else self.start

    def part(self, since: int) -> Part | None:
        return self._part if self._part.place(since) < len(self._part) else None
