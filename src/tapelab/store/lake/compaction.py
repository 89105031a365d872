"""A month of day files as one file sorted by symbol: derived, and derived again when a day changes.

A few symbols over a month are then a few row groups of one file, where day files cost a few groups each.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.store.lake import sheets
from tapelab.store.lake.arriving import DayFile

SLICE = 1_000_000  # rows that are sorted at a time; a month of minute bars is 40 million
ALONE = 2_048  # rows from which on a symbol's month is a row group of its own, read without a neighbour


class Month(msgspec.Struct, frozen=True):
    """What a month file was made of: each of its days as it was then; one that changed since is not in it."""

    product: str
    month: date
    days: dict[date, DayFile] = {}


class _Source:
    """A file that gives rows: a day, or the month file as it was, less the days that changed."""

    def __init__(
        self, path: Path, found: sheets.Footer, file: pq.ParquetFile, days: list[date] | None
    ) -> None:
        self.path = path
        self.index = found.index
        self._file = file
        self._days = days

    def between(self, first: str, end: str | None) -> pa.Table:
        """The rows of the symbols from `first`, up to `end` which is not one of them."""
        groups = [
            n
            for n, group in enumerate(self.index)
            if group.last >= first and (end is None or group.first < end)
        ]
        with sheets.understood(self.path):
            table = self._file.read_row_groups(groups)
        inside = pc.greater_equal(table["symbol"], first)
        if end is not None:
            inside = pc.and_(inside, pc.less(table["symbol"], end))
        if self._days is not None:
            inside = pc.and_(inside, pc.is_in(table["session"], pa.array(self._days, pa.date32())))
        return table.filter(inside)


def compact(path: Path, product: str, days: Mapping[date, Path]) -> Path | None:
    """Write the month file at `path` from its day files, taking what is unchanged from the old one.

    Gives `path`, or None where there was nothing to do. Takes some 600 MB of memory at most. The caller holds
    the lock of `path`; a day that is replaced meanwhile is out of date in the result, and known to be.
    """
    old = sheets.footer(path)
    before = sheets.decoded(old.about, Month, path) if old else None
    with ExitStack() as stack:
        known: dict[date, DayFile] = {}
        sources: list[_Source] = []
        for day, day_path in sorted(days.items()):
            found = sheets.footer(day_path)
            if found is None:
                continue
            known[day] = sheets.decoded(found.about, DayFile, day_path)
            if before is None or before.days.get(day) != known[day]:
                file = stack.enter_context(sheets.opened(day_path, found))
                sources.append(_Source(day_path, found, file, None))
        if before is not None and before.days == known:
            return None
        kept = [day for day, file in known.items() if before and before.days.get(day) == file]
        if old is not None and kept:
            file = stack.enter_context(sheets.opened(path, old))
            sources.append(_Source(path, old, file, kept))
        if not known:
            path.unlink(missing_ok=True)
            return None
        schema = pq.read_schema(next(day_path for day, day_path in days.items() if day in known))
        month = Month(product, min(known).replace(day=1), known)

        def fill(beside: Path) -> None:
            with sheets.Writer(beside, schema) as writer:
                for first, end in _stretches(sources):
                    for group in _sorted([source.between(first, end) for source in sources]):
                        writer.write_group(group)
                writer.close(month)

        sheets.write(path, fill)
    return path


def _stretches(sources: list[_Source]) -> Iterator[tuple[str, str | None]]:
    """Stretches of symbols of about `SLICE` rows each, by what the row groups begin with."""
    begins = sorted((group.first, group.rows) for source in sources for group in source.index)
    first, rows = "", 0
    for symbol, more in begins:
        if rows >= SLICE and symbol > first:
            yield first, symbol
            first, rows = symbol, 0
        rows += more
    yield first, None


def _sorted(parts: list[pa.Table]) -> Iterator[pa.Table]:
    """The rows by symbol and time, as row groups of whole symbols; busy ones do not share theirs."""
    plain = [part.replace_schema_metadata(None) for part in parts]
    # Promoted, since files of an older version do not say which columns are never null.
    table = pa.concat_tables(plain, promote_options="default").combine_chunks()
    if len(table) == 0:
        return
    encoded = table["symbol"].combine_chunks().dictionary_encode()
    rank = pc.rank(encoded.dictionary, sort_keys="ascending", tiebreaker="dense").to_numpy()
    codes = rank[encoded.indices.to_numpy()].astype(np.int32)
    order = np.lexsort((table["timestamp"].cast(pa.int64()).to_numpy(), codes))
    codes = codes[order]
    table = table.take(pa.array(order))
    ends = [*np.flatnonzero(np.diff(codes)) + 1, len(codes)]
    begin = before = 0
    for end in ends:
        busy = end - before >= ALONE
        if busy and begin < before:
            yield table.slice(begin, before - begin)
            begin = before
        if busy or end - begin >= sheets.ROW_GROUP or end == len(codes):
            yield table.slice(begin, end - begin)
            begin = end
        before = end
