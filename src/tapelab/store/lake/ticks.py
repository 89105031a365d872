"""Ticks that REST gave, in the lake: each answer in a file whose name says what it covers.

    lake/ticks/trades/AAPL/2013-10-09/1381291200000000000-1381377600000000000.parquet

The two numbers are ns UTC, the second excluded: every trade of that stretch is in the file, in the vendor's
order. Files are never changed; an interrupted answer leaves those that were whole. Each opens with pandas or
polars and says in its metadata (key `tapelab`) when it was asked for and whether that is final.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.market import tables
from tapelab.settings import Settings
from tapelab.store import files
from tapelab.store.lake import sheets

Kind = Literal["trades", "quotes"]

ROW_GROUP = 65_536  # rows; a few minutes of a busy day then cost a few groups

_INSTANT = pa.timestamp("ns", tz="UTC")
_REPEATED = ["symbol", "exchange", "bid_exchange", "ask_exchange", "tape", "price", "bid", "ask", "trf_id"]


class About(msgspec.Struct, frozen=True):
    """When a stretch was asked for (ns UTC), whether it can still change, and what the source said it is."""

    known_at: int
    final: bool
    tape: str = ""


@dataclass(frozen=True)
class Stretch:
    """Every tick of one symbol from `start` to before `end`, ns UTC, within one session's date."""

    start: int
    end: int
    path: Path
    about: About


class TickStore:
    """The stretches of one endpoint."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.root / "lake" / "ticks"

    def stretches(self, kind: Kind, symbol: str, day: date) -> list[Stretch]:
        """What is held of a symbol on a day, oldest first; creates nothing."""
        folder = self._folder(kind, symbol, day)
        found = []
        for path in folder.glob("[0-9]*-[0-9]*.parquet") if folder.is_dir() else ():
            start, _, end = path.stem.partition("-")
            if start.isdigit() and end.isdigit():
                found.append(Stretch(int(start), int(end), path, _about(path)))
        return sorted(found, key=lambda part: (part.start, -part.end))

    def keep(
        self, kind: Kind, symbol: str, day: date, ticks: pa.Table, start: int, end: int, about: About
    ) -> None:
        """Keep every tick of a stretch, whole or not at all."""
        folder = files.make_folder(self._folder(kind, symbol, day))
        stored = _stored(kind).with_metadata({sheets.ABOUT: msgspec.json.encode(about)})

        def fill(beside: Path) -> None:
            pq.write_table(
                ticks.replace_schema_metadata(None).cast(stored),
                beside,
                compression="zstd",
                compression_level=1,
                row_group_size=ROW_GROUP,
                use_dictionary=[name for name in _REPEATED if name in stored.names],
                write_page_checksum=True,
            )

        files.write_whole(folder / f"{start}-{end}.parquet", fill, replace=True)

    def read(self, kind: Kind, stretches: Sequence[Stretch], start: int, end: int) -> pa.Table:
        """The ticks of these stretches from `start` to before `end`; what two of them hold comes once.

        Raises `Damaged` for a file that is not what was written.
        """
        found, reached = [], start
        for part in sorted(stretches, key=lambda part: (part.start, -part.end)):
            if part.end > reached and part.start < end:
                low, high = max(part.start, reached), min(part.end, end)
                found.append(rows_in(part.path, kind, stretch(low, high)))
                reached = high
        return tables.concat(found, tables.SCHEMAS[kind])

    def _folder(self, kind: Kind, symbol: str, day: date) -> Path:
        return self.folder / kind / sheets.file_name(symbol) / day.isoformat()


def missing(start: int, end: int, stretches: Sequence[Stretch]) -> list[tuple[int, int]]:
    """What of the time from `start` to before `end` no stretch covers, oldest first."""
    found, reached = [], start
    for part in sorted(stretches, key=lambda part: part.start):
        if part.start >= end:
            break
        if part.start > reached:
            found.append((reached, part.start))
        reached = max(reached, part.end)
    if reached < end:
        found.append((reached, end))
    return found


def between(ticks: pa.Table, start: int, end: int) -> pa.Table:
    """The ticks from `start` to before `end`, in the order they are in."""
    stamps = ticks["ts_event"]
    return ticks.filter(pc.and_(pc.greater_equal(stamps, start), pc.less(stamps, end)))


def stretch(start: int, end: int) -> pc.Expression:
    """The same as a filter for a Parquet file in the lake, whose clocks are instants."""
    stamps = pc.field("ts_event")
    return (stamps >= pa.scalar(start, _INSTANT)) & (stamps < pa.scalar(end, _INSTANT))


def _stored(kind: Kind) -> pa.Schema:
    fields = (f.with_type(_INSTANT) if f.name.startswith("ts_") else f for f in tables.SCHEMAS[kind])
    return pa.schema(list(fields))


def rows_in(path: Path, kind: Kind, wanted: pc.Expression) -> pa.Table:
    """Those rows of a file of ticks, in its order. Raises `Damaged`."""
    try:
        found = pq.read_table(path, filters=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as cause:
        raise sheets.damaged(path) from cause
    return tables.conform(found.replace_schema_metadata(None), tables.SCHEMAS[kind])


def _about(path: Path) -> About:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return msgspec.json.decode(metadata[sheets.ABOUT], type=About)
    except PermissionError as cause:
        raise files.unwritable(path, cause) from cause
    except (pa.ArrowException, OSError, KeyError, msgspec.DecodeError) as cause:
        raise sheets.damaged(path) from cause
