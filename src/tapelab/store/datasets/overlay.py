"""Rows that were filled in later: how they lie among the received ones, and where a gap lies.

Gaps are stretches of our clock; the exchange's events carry the exchange's clock. What a gap swallowed is
found by the rows beside it, so that a delayed feed, a wrong clock of ours and a replayed day are all the
same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market import tables
from tapelab.store.datasets import parts
from tapelab.store.datasets.manifest import Manifest, Segment

TICKS = ("quotes", "trades")
BESIDE = 101  # rows on each side that say where the exchange's clock stood
ENDLESS = 2**40  # arrival numbers before the first row, and behind the last

Ints = npt.NDArray[np.int64]
_CLOCKS = ("arrival", "ts_recv", "ts_event")


@dataclass(frozen=True)
class Around:
    """Received rows around a stretch of our clock: some before it, all inside, some after it.

    Each is an array of `_CLOCKS`, one column a row, in order of arrival.
    """

    before: Ints
    within: Ints
    after: Ints

    @property
    def began(self) -> int | None:
        """Where the exchange's clock stood at the start, rather too early; None where no row says.

        The middle of some rows, so that one that came late or with a wrong stamp does not move it.
        """
        return int(np.median(self.before[2])) if self.before.size else None

    @property
    def ended(self) -> int | None:
        """Where it stood at the end, rather too late."""
        return int(np.median(self.after[2])) if self.after.size else None

    @property
    def last(self) -> int | None:
        """The exchange's clock of the last row before."""
        return int(self.before[2, -1]) if self.before.size else None

    @property
    def first(self) -> int | None:
        """The exchange's clock of the first row after."""
        return int(self.after[2, 0]) if self.after.size else None

    @property
    def lag(self) -> int | None:
        """How far the exchange's clock was behind ours; None where no row says."""
        rows = np.concatenate([self.before, self.within, self.after], axis=1)
        return int(np.median(rows[1] - rows[2])) if rows.size else None

    @property
    def edges(self) -> Ints:
        """The arrival numbers between which there is room: the last before, those inside, the first after."""
        inside = self.within[0].tolist()
        rows = [*self.before[0, -1:].tolist(), *inside, *self.after[0, :1].tolist()] or [0]
        low = [] if self.before.size else [rows[0] - ENDLESS]
        high = [] if self.after.size else [rows[-1] + ENDLESS]
        return np.array([*low, *rows, *high], np.int64)


class Overlay:
    """Filled rows, given out among the received ones."""

    def __init__(self, folder: Path, segments: Sequence[Segment]) -> None:
        self._rest = {
            kind: tables.concat(
                [parts.read_segment(folder, segment) for segment in segments if segment.kind == kind],
                tables.SCHEMAS[kind],
            ).sort_by("arrival")
            for kind in TICKS
            if any(segment.kind == kind for segment in segments)
        }

    def among(self, received: dict[str, pa.Table], *, before: int | None) -> dict[str, pa.Table]:
        """`received` with the filled rows that come before that arrival number, each given out once."""
        merged = dict(received)
        for kind, rest in self._rest.items():
            due = len(rest)
            if before is not None:
                due = int(np.searchsorted(rest.column("arrival").to_numpy(), before))
            if due:
                self._rest[kind] = rest.slice(due)
                given = [received[kind]] if kind in received else []
                merged[kind] = tables.concat([*given, rest.slice(0, due)], rest.schema).sort_by("arrival")
        return merged


def tick_parts(segments: Iterable[Segment]) -> list[dict[str, Segment]]:
    """The segments of quotes and trades that were laid down together, in order of arrival."""
    by_part: dict[int, dict[str, Segment]] = {}
    for segment in segments:
        if segment.kind in TICKS:
            by_part.setdefault(segment.part, {})[segment.kind] = segment
    return sorted(by_part.values(), key=begin)


def begin(part: dict[str, Segment]) -> int:
    """The first arrival number of a part."""
    return min(segment.first + segment.shift for segment in part.values())


def around(folder: Path, known: Manifest, stretches: Sequence[tuple[int, int]]) -> list[Around]:
    """The received rows around each stretch of our clock; a row of the very moment it starts is before it."""
    empty = np.empty((3, 0), np.int64)
    found = [Around(empty, empty, empty) for _ in stretches]
    bounds = np.array(stretches, np.int64).reshape(-1, 2)
    for clocks in _clocks(folder, known):
        cuts = np.searchsorted(clocks[1], bounds, "right").tolist()
        for n, (start, end) in enumerate(cuts):
            old = found[n]
            found[n] = Around(
                _joined(old.before, clocks[:, max(start - BESIDE, 0) : start])[:, -BESIDE:],
                _joined(old.within, clocks[:, start:end]),
                _joined(old.after, clocks[:, end : end + BESIDE])[:, :BESIDE],
            )
    return found


def _joined(some: Ints, more: Ints) -> Ints:
    return np.concatenate([some, more], axis=1) if more.size else some


def _clocks(folder: Path, known: Manifest) -> Iterator[Ints]:
    if known.clock != "received":
        return
    for part in tick_parts(known.segments):
        read = [parts.read_segment(folder, segment, _CLOCKS) for segment in part.values()]
        both = np.concatenate([np.array([t.column(name).to_numpy() for name in _CLOCKS]) for t in read], 1)
        yield both[:, np.argsort(both[0], kind="stable")]


def rows(
    folder: Path, segments: Iterable[Segment], kind: str, start: int, end: int, symbols: Sequence[str]
) -> pa.Table:
    """The rows of these symbols from `start` to before `end` (the exchange's clock), in order of arrival."""
    stamp, wanted = parts.stamp_of(kind), pa.array(symbols, pa.string())
    found = []
    for segment in segments:
        if segment.kind == kind and segment.start < end and segment.end >= start:
            table = parts.read_segment(folder, segment)
            inside = pc.and_(pc.greater_equal(table[stamp], start), pc.less(table[stamp], end))
            found.append(table.filter(pc.and_(inside, pc.is_in(table["symbol"], wanted))))
    table = tables.concat(found, tables.SCHEMAS[kind])
    return parts.newest_bars(table) if kind == "bars" else table.sort_by("arrival")


def last_part(folder: Path) -> int:
    """The highest number of a file of filled rows, whatever version it is of."""
    taken = (path.stem.rpartition("-")[2] for path in (folder / parts.OVERLAY).glob("*.parquet"))
    return max((int(number) for number in taken if number.isdigit()), default=0)


def lay_down(folder: Path, filled: Mapping[str, pa.Table]) -> tuple[Segment, ...]:
    """Filled rows as segments that no version names yet; whatever fails leaves nothing behind."""
    part = last_part(folder) + 1
    laid: list[Segment] = []
    try:
        for kind, table in filled.items():
            if len(table):
                laid.append(parts.write_segment(folder, part, kind, table, overlay=True))
    except BaseException:
        take_away(folder, laid)
        raise
    return tuple(laid)


def take_away(folder: Path, laid: Iterable[Segment]) -> None:
    """Remove segments that no version came to name."""
    for segment in laid:
        (folder / segment.file).unlink(missing_ok=True)
