"""The script of a day that does not fit in memory: read from a sort on disk, stretch after stretch.

What is said is the same, to the byte, as if the day were in memory. In memory are the stretch that is said
and the one behind it, what the sort needs to read (`sorting.MEMORY`), and the day's file of minute bars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.exchange.stream import dayscript
from tapelab.exchange.stream.dayscript import FAR
from tapelab.exchange.stream.script import Part, Run, Script, Topics
from tapelab.exchange.stream.sofar import DaySoFar
from tapelab.exchange.tape import MINUTE_BARS, TRADES, Tape, rounded, with_vwap
from tapelab.exchange.tape.sorting import SortedDay
from tapelab.market import bars, sessions, tables
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.symbols import Market


class LongScript(Script):
    """Everything that is said on `day` between `start` and `until`, from its sorted ticks.

    Closing frees their disk.
    """

    def __init__(
        self, tape: Tape, ticks: SortedDay, day: date, start: int | None = None, until: int | None = None
    ) -> None:
        self.topics = Topics(tests_too=tape.simulated)
        self._ticks = ticks
        self._span = (start or 0, until or FAR)
        filed = day in tape.days(MINUTE_BARS)
        self._minutes = tape.table(MINUTE_BARS, day).sort_by("timestamp") if filed else None
        self._traded = day in tape.days(TRADES)
        self._at_midnight = DaySoFar(day, tape.official(day))
        self._bands = tape.bands(day)
        for symbol in sorted(ticks.symbols):
            for channel in ("Q", "T", "A", "AM"):
                self.topics.number(channel, symbol)
        first = self.part(0)
        midnight = sessions.day_start(Market.STOCKS, day)
        self.start = int(first.at[0]) if start is None and first is not None else start or midnight
        self.end = self._last_moment() if first is not None else self.start

    def part(self, since: int) -> Part | None:
        # Bars that end at `since` began a minute before.
        begin = max(since - since % MINUTE - MINUTE, self._span[0] // MINUTE * MINUTE)
        parts = _linked(self._said(begin, self._day_until(begin)))
        part = parts()
        while part is not None and part.place(since) == len(part):
            part = part.following()
        return part

    def close(self) -> None:
        self._ticks.close()

    def _last_moment(self) -> int:
        near = min(self._ticks.last or 0, self._span[1])
        last = self.start
        for at, _, _ in self._said(near // MINUTE * MINUTE - MINUTE, self._at_midnight):
            last = int(at[-1])
        return last

    def _day_until(self, begin: int) -> DaySoFar:
        """What there was of the day at `begin` (a whole minute)."""
        day = copy(self._at_midnight)
        if self._traded:
            for _, trades in self._ticks.stretches(until=begin, trades_only=True):
                day.add(trades)
        elif self._minutes is not None:
            day.add(self._minutes.filter(pc.less(self._minutes.column("timestamp"), begin)))
        return day

    def _said(self, begin: int, day: DaySoFar) -> Iterator[Run]:
        """What is said from `begin` (a whole minute) on, a stretch at a time."""
        start, until = self._span
        begin = max(begin, start // MINUTE * MINUTE)
        building = _Building(self._minutes, self._traded, begin, day)
        told = begin - 1
        for quotes, trades in self._ticks.stretches(begin, until):
            last = max(_last(quotes), _last(trades))
            yield from self._part(quotes, trades, *building.until(last, trades), (told, last))
            told = last
        yield from self._part(
            tables.QUOTES.empty_table(), tables.TRADES.empty_table(), *building.until(FAR), (told, FAR)
        )

    def _part(
        self, quotes: pa.Table, trades: pa.Table, seconds: pa.Table, minutes: pa.Table, after: tuple[int, int]
    ) -> Iterator[Run]:
        bands = [row for row in self._bands if after[0] < int(str(row["t"])) <= after[1]]
        part = dayscript.merged(
            (
                dayscript.ticks("Q", quotes, self.topics),
                dayscript.ticks("T", trades, self.topics),
                dayscript.bars("A", seconds, self.topics),
                dayscript.bars("AM", minutes, self.topics),
                dayscript.bands(bands, self.topics),
            ),
            *self._span,
        )
        if len(part[0]):
            yield part


class _Building:
    """Bars of seconds and minutes, built as the trades pass; the unfinished ones are carried on.

    `filed` are the minutes of the day's file; `day` is what there was of the day at `begin`.
    """

    def __init__(self, filed: pa.Table | None, traded: bool, begin: int, day: DaySoFar) -> None:
        self._seconds = _Windows("1s", SECOND)
        self._minutes = _Windows("1m", MINUTE)
        self._day_by_seconds, self._day_by_minutes = copy(day), copy(day)
        self._filed = filed
        self._traded = traded
        self._told = begin

    def until(self, instant: int, trades: pa.Table | None = None) -> tuple[pa.Table, pa.Table]:
        """The bars of seconds and of minutes that have ended since, up to `instant`."""
        seconds, printed = self._seconds.ended(instant, trades)
        seconds = self._day_by_seconds.beside(seconds, printed, SECOND)
        minutes, printed = self._minutes.ended(instant, trades)
        if self._filed is not None:
            ends = self._filed.column("timestamp").to_numpy() + MINUTE
            first, stop = np.searchsorted(ends, (self._told, instant), side="right")
            minutes = with_vwap(self._filed.slice(first, stop - first), minutes)
        minutes = self._day_by_minutes.beside(minutes, printed if self._traded else minutes, MINUTE)
        self._told = instant
        return rounded(seconds), rounded(minutes)


class _Windows:
    def __init__(self, interval: str, length: int) -> None:
        self._interval = interval
        self._length = length
        self._held = tables.TRADES.empty_table()

    def ended(self, instant: int, trades: pa.Table | None) -> tuple[pa.Table, pa.Table]:
        """The bars of windows that have ended by `instant`, and their trades."""
        held = self._held if trades is None else pa.concat_tables([self._held, trades])
        running = pc.greater_equal(held.column("ts_event"), instant - instant % self._length)
        self._held = held.filter(running).combine_chunks()
        done = held.filter(pc.invert(running))
        return bars.from_trades(done, self._interval), done


def _linked(parts: Iterator[Run]) -> Callable[[], Part | None]:
    def following() -> Part | None:
        found = next(parts, None)
        return None if found is None else Part(*found, following)

    return following


def _last(table: pa.Table) -> int:
    return int(table.column("ts_event")[-1].as_py()) if len(table) else 0
