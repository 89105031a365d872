"""What the stream says on one day, in which order and when: quotes, trades and bars, encoded by the chunk.

Ticks come in order of arrival; each is said when the exchange's clock stood at the latest stamp until then. A
bar is said at its end, before anything that happened from then on. Memory is bounded by the day's tables and
the chunks in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tapelab.exchange.tape import TRADES, Tape
from tapelab.market import sessions, symbols, tables
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.massive.wire.fields import Channel

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

FAR = 1 << 62
CHUNK = 16_384  # events encoded at a time


@dataclass(frozen=True)
class Chunk:
    """A run of encoded events: their places in the script, when each is said (ns UTC), its topic and bytes.

    The events from place `first` to before `stop` were looked at; those on `wanted` topics are in it.
    """

    first: int
    stop: int
    places: Ints
    at: Ints
    topics: npt.NDArray[np.int32]
    payloads: list[bytes]
    wanted: Mask

    def covers(self, wanted: Mask) -> bool:
        """Whether nothing that is wanted was left out when this was encoded."""
        return not bool(np.any(wanted & ~self.wanted))

    def heard(self, topics: Mask, first: int, stop: int) -> list[bytes]:
        """The events of some topics between two places of this chunk."""
        if bool(np.all(topics[self.wanted])):
            return self.payloads[first:stop]
        return [self.payloads[n] for n in (np.flatnonzero(topics[self.topics[first:stop]]) + first).tolist()]


class Script:
    """Everything that is said on `day` between `start` and `until` (ns UTC; None: all day), in order.

    Of bars, only those that lie wholly in between are said. `start` and `end` are the first and last moment.
    """

    def __init__(self, tape: Tape, day: date, start: int | None = None, until: int | None = None) -> None:
        self.simulated = tape.simulated
        self._sources = _sources(tape, day)
        self._names = [name for source in self._sources for name in source.names]
        self._source, self._row, self.at = _merged(self._sources, start or 0, until or FAR)
        midnight = sessions.day_start(Market.STOCKS, day)
        self.start = int(self.at[0]) if start is None and len(self.at) else start or midnight
        self.end = int(self.at[-1]) if len(self.at) else self.start
        offsets = np.cumsum([0, *(len(source.names) for source in self._sources)])
        self._topic = np.empty(len(self.at), dtype=np.int32)
        for n, source in enumerate(self._sources):
            mine = self._source == n
            self._topic[mine] = source.codes[self._row[mine]] + offsets[n]

    def __len__(self) -> int:
        return len(self.at)

    def topics(self, wanted: set[str]) -> Mask:
        """Which topics a client hears that subscribed to `wanted`, such as `T.AAPL` or `Q.*`.

        Test symbols are left out of wildcards, unless the market is made of them.
        """
        heard = [
            name in wanted
            or (f"{name.split('.')[0]}.*" in wanted and (self.simulated or not _for_tests(name)))
            for name in self._names
        ]
        return np.array(heard, dtype=np.bool_)

    def chunk(self, first: int, wanted: Mask) -> Chunk:
        """The next events from place `first` on, those of wanted topics encoded."""
        stop = min(first + CHUNK, len(self))
        places = np.flatnonzero(wanted[self._topic[first:stop]]) + first
        encoded: list[bytes] = []
        order = np.empty(len(places), dtype=np.int64)
        for n, source in enumerate(self._sources):
            mine = np.flatnonzero(self._source[places] == n)
            if len(mine):
                order[mine] = np.arange(len(encoded), len(encoded) + len(mine))
                encoded += source.encoded(self._row[places[mine]])
        payloads = [encoded[n] for n in order.tolist()]
        return Chunk(first, stop, places, self.at[places], self._topic[places], payloads, wanted)


@dataclass(frozen=True)
class _Source:
    """One channel's rows in the order in which they are said."""

    channel: Channel
    table: pa.Table
    length: int  # ns from a row's stamp to when it is known
    names: list[str]
    codes: Ints

    @classmethod
    def of(cls, channel: Channel, table: pa.Table, length: int = 0) -> _Source:
        if length:
            table = table.sort_by([("timestamp", "ascending"), ("symbol", "ascending")])
        column = table.column("symbol").combine_chunks().dictionary_encode()
        names = [f"{channel}.{symbol}" for symbol in column.dictionary.to_pylist()]
        return cls(channel, table.combine_chunks(), length, names, column.indices.to_numpy().astype(np.int64))

    def stamps(self) -> Ints:
        stamps: Ints = self.table.column("timestamp" if self.length else "ts_event").to_numpy()
        return stamps

    def encoded(self, rows: Ints) -> list[bytes]:
        together = int(rows[-1] - rows[0]) + 1 == len(rows)
        part = self.table.slice(rows[0], len(rows)) if together else self.table.take(rows)
        return wire.encode_events(part, self.channel)


def _sources(tape: Tape, day: date) -> list[_Source]:
    ticks = tape.ticks(day)
    seconds = tape.all_bars("1s", day) if day in tape.days(TRADES) else tables.BARS.empty_table()
    return [
        _Source.of("Q", ticks.quotes),
        _Source.of("T", ticks.trades),
        _Source.of("A", seconds, SECOND),
        _Source.of("AM", tape.all_bars("1m", day), MINUTE),
    ]


def _merged(sources: list[_Source], start: int, until: int) -> tuple[npt.NDArray[np.int8], Ints, Ints]:
    """For every event in order: its source, its row there, and when it is said."""
    ticks = [(n, source) for n, source in enumerate(sources) if not source.length]
    bars = [(n, source) for n, source in enumerate(sources) if source.length]
    source, row, stamp = _stacked(ticks)
    arrival = np.concatenate([source.table.column("arrival").to_numpy() for _, source in ticks])
    order = np.argsort(arrival, kind="stable")
    source, row, at = source[order], row[order], np.maximum.accumulate(stamp[order])
    inside = (at >= start) & (at < until)

    bar_source, bar_row, begin = _stacked(bars)
    ends = begin + np.array([s.length for s in sources], dtype=np.int64)[bar_source]
    order = np.argsort(ends, kind="stable")
    bar_source, bar_row, begin, ends = bar_source[order], bar_row[order], begin[order], ends[order]
    places = np.searchsorted(at, ends, side="left")

    inside = np.insert(inside, places, (begin >= start) & (ends <= until))
    return (
        np.insert(source, places, bar_source)[inside],
        np.insert(row, places, bar_row)[inside],
        np.insert(at, places, ends)[inside],
    )


def _stacked(sources: list[tuple[int, _Source]]) -> tuple[npt.NDArray[np.int8], Ints, Ints]:
    counts = [len(source.table) for _, source in sources]
    numbers = np.repeat(np.array([n for n, _ in sources], dtype=np.int8), counts)
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts])
    return numbers, rows, np.concatenate([source.stamps() for _, source in sources])


def _for_tests(topic: str) -> bool:
    return symbols.is_test(topic.partition(".")[2])
