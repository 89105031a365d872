"""A recording beside what history says of the same time: what is there, what is lacking, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import NoData
from tapelab.live import matching
from tapelab.live.listening import MARGIN, WILDCARD, Listening, Missed, Stretch
from tapelab.live.lookup import Answer, Source
from tapelab.market import clock, sessions, tables
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.massive.feed import CHANNELS
from tapelab.store.datasets import overlay
from tapelab.store.datasets.dataset import Dataset
from tapelab.store.datasets.parts import stamp_of

if TYPE_CHECKING:
    import pandas as pd

LATE = clock.SECOND  # behind the events before it, or reported so long after the trade
EDGE = (
    clock.SECOND
)  # at both ends of a recording nobody knows which came first, the event or the subscription
CHUNK = clock.HOUR  # of a whole market that is looked at together

COUNTS = (
    "source", "received", "healed", "lost", "undeclared", "extra", "late", "corrected", "revised",
)  # fmt: skip
_KEYS = ("minute", "symbol", "channel")
_VALUES = ("open", "high", "low", "close", "volume")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Completeness:
    """What a dataset has of what happened, by minute, symbol and channel.

    `table`: one row for each minute (its start, UTC, by the exchange's clock), symbol and channel. `source`
    counts the events that history has; each of them is `received`, `healed`, `lost` (in a gap) or
    `undeclared` (lacking outside the gaps). `extra`: received, but unknown to the source. Of the source's
    events, `late` were reported or came more than a second behind those before them, `corrected` do not stand
    as they were printed; of the bars, `revised` have other values now. `status`: `complete`, `healed`,
    `lost`, `undeclared`, or `silent` where the source has nothing either.

    `stretches`: what was compared, by the exchange's clock (ns UTC); lacking events in the first and last
    second of each are not counted. `final`: the source will say the same tomorrow.
    """

    name: str
    version: int
    table: pd.DataFrame
    stretches: tuple[tuple[int, int], ...]
    final: bool
    notes: tuple[str, ...] = ()

    @property
    def lacking(self) -> int:
        """Events that are neither received nor healed."""
        return int(self.table["lost"].sum() + self.table["undeclared"].sum())

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON: the sums, and the minutes in which something is lacking."""
        sums = self.table.groupby("channel")[list(COUNTS)].sum()
        lacking = self.table[self.table["status"].isin(["lost", "undeclared"])]
        return {
            "final": self.final,
            "lacking": self.lacking,
            "channels": {
                str(kind): {str(name): int(n) for name, n in row.items()} for kind, row in sums.iterrows()
            },
            "minutes": [
                {**row, "minute": row["minute"].isoformat()} for row in lacking.to_dict(orient="records")
            ],
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        lines = [
            f"{self.name}, version {self.version}, beside history" + ("" if self.final else " (provisional)")
        ]
        lines += [f"  {clock.iso(start)} to {clock.iso(end)}" for start, end in self.stretches]
        shown = [name for name in COUNTS if name in ("source", "received") or self.table[name].any()]
        widths = [max(len(name), 10) for name in shown]
        lines.append("  " + "channel" + "".join(f"  {n:>{w}}" for n, w in zip(shown, widths, strict=True)))
        for kind, row in self.table.groupby("channel")[shown].sum().iterrows():
            values = (f"  {int(row[n]):>{w},}" for n, w in zip(shown, widths, strict=True))
            lines.append(f"  {kind:<7}" + "".join(values))
        lines += [f"  {said}" for said in (*self._lacking_in(), *self._silence(), *self.notes)]
        return "\n".join(lines)

    def _lacking_in(self) -> Iterator[str]:
        if not self.lacking:
            yield "Nothing is lacking."
        for status, where in (("lost", "in gaps"), ("undeclared", "outside the gaps")):
            rows = self.table[self.table[status] > 0].sort_values(status, ascending=False)
            if len(rows):
                worst, minutes = rows.iloc[0], rows["minute"].nunique()
                yield (
                    f"{int(rows[status].sum()):,} lacking {where}, in {minutes:,} minutes; most of them "
                    f"{worst['channel']} of {worst['symbol']} in {worst['minute']:%Y-%m-%d %H:%M} UTC: "
                    f"{int(worst[status]):,}."
                )

    def _silence(self) -> Iterator[str]:
        silent = int((self.table["status"] == "silent").sum())
        if silent:
            yield f"In {silent:,} of {len(self.table):,} minutes of a symbol and channel nothing happened."


def compare(dataset: Dataset, source: Source) -> Completeness:
    """What a dataset has of what the source says of the same time."""
    listening = Listening(dataset)
    stretches = listening.stretches()
    work = [
        (kind, stretch, start, end)
        for kind in CHANNELS
        for stretch in stretches
        if stretch.symbols(kind)
        for start, end in _chunks(kind, stretch)
    ]
    if not work:
        raise NoData(f"{dataset.name} received nothing that could be compared.", remedy="Record something.")
    counted, notes, final = list[pl.DataFrame](), list[str](), True
    for kind, stretch, start, end in work:
        names, everybody = sorted(stretch.symbols(kind) - {WILDCARD}), WILDCARD in stretch.symbols(kind)
        if everybody:
            names = sorted({*names, *dataset.symbols})
        calls = len(names) * sum(one == kind for one, *_ in work)
        answer = source.ask(kind, names, start, end, calls=calls, everybody=everybody)
        final = final and answer.final
        if everybody:
            names = sorted({*names, *answer.table.column("symbol").unique().to_pylist()})
            if answer.route != "flat_file":
                notes.append(f"REST was asked for the symbols that were seen; others may lack {kind}.")
        if (reached := _reached(kind, answer)) < end - clock.SECOND:
            notes.append(f"History has {kind} up to {clock.iso(reached)} only yet; compared is that.")
            end = reached
        one = _Side(dataset, kind, answer.table, names, start, end)
        counted.append(one.counted(stretch, listening.gaps(kind)))
        if not everybody:
            counted.append(_every_minute(kind, names, start, end))
    return Completeness(
        dataset.name,
        dataset.version,
        _framed(pl.concat(counted, how="diagonal")),
        tuple((stretch.start, stretch.end) for stretch in stretches),
        final,
        tuple(dict.fromkeys(notes)),
    )


class _Side:
    """The rows of one channel that the source tells of a time beside those that the dataset has."""

    def __init__(
        self, dataset: Dataset, kind: str, told: pa.Table, names: Sequence[str], start: int, end: int
    ) -> None:
        path, known = dataset.path, dataset._manifest
        self.kind, self.told = kind, told
        self.received = overlay.rows(path, known.segments, kind, start, end, names)
        laid = overlay.rows(path, known.overlay, kind, start, end, names)
        self.had = tables.concat([self.received, laid], tables.SCHEMAS[kind])
        self.found = matching.match(told, self.had, kind)

    def counted(self, stretch: Stretch, gaps: Sequence[Missed]) -> pl.DataFrame:
        """Per minute and symbol, how many of each sort."""
        found, lacking = self.found, self.found < 0
        heard = ~lacking & (found < len(self.received))
        lost = lacking & self._in_a_gap(gaps)
        judged = ~lacking | lost | self._can_be_judged(stretch)
        told = self._frame(self.told).with_columns(
            source=pl.lit(1),
            received=heard,
            healed=~lacking & ~heard,
            lost=lost,
            undeclared=lacking & ~lost,
            late=self._late(heard),
            corrected=self._corrected(),
            revised=self._revised(),
        )
        known = np.zeros(len(self.received), bool)
        known[found[heard]] = True
        extra = self._frame(self.received).with_columns(extra=pl.lit(1)).filter(~known)
        both = pl.concat([told.filter(judged), extra], how="diagonal")
        return both.group_by(_KEYS).agg(pl.col(name).cast(pl.Int64).sum() for name in COUNTS)

    def _frame(self, table: pa.Table) -> pl.DataFrame:
        stamps = table.column(stamp_of(self.kind)).to_numpy()
        return pl.DataFrame(
            {
                "minute": stamps // clock.MINUTE * clock.MINUTE,
                "symbol": pl.Series(table.column("symbol").to_pylist(), dtype=pl.String),
            }
        ).with_columns(channel=pl.lit(self.kind))

    def _in_a_gap(self, gaps: Sequence[Missed]) -> Mask:
        stamps = self.told.column(stamp_of(self.kind)).to_numpy()
        names = self.told.column("symbol")
        inside = np.zeros(len(stamps), bool)
        for gap in gaps:
            if gap.window is not None:
                here = (stamps >= gap.window[0]) & (stamps < gap.window[1])
                mine = np.ones(len(stamps), bool) if gap.everybody else _among(names, gap.symbols)
                inside |= here & mine
        return inside

    def _can_be_judged(self, stretch: Stretch) -> Mask:
        """Not so close to an end of the recording that nobody knows whether it was listened to."""
        stamps = self.told.column(stamp_of(self.kind)).to_numpy()
        if self.kind == "bars":  # which come at their end, or a little later
            stamps = stamps + clock.MINUTE
        spare = MARGIN if self.kind == "bars" else EDGE
        sure: Mask = (stamps >= stretch.start + EDGE) & (stamps < stretch.end - spare)
        return sure

    def _late(self, heard: Mask) -> Mask:
        """Reported long after it happened, or come long after its own time had passed on the stream."""
        late = np.zeros(len(self.told), bool)
        if self.kind == "bars":
            return late
        stamps = self.received.column("ts_event").to_numpy()
        if len(stamps):
            late[heard] = (stamps < np.maximum.accumulate(stamps) - LATE)[self.found[heard]]
        waited = pc.subtract(self.told.column("ts_event"), self.told.column("ts_participant"))
        reported: Mask = pc.fill_null(pc.greater(waited, LATE), False).to_numpy()
        return late | reported

    def _corrected(self) -> Mask:
        if self.kind != "trades":
            return np.zeros(len(self.told), bool)
        corrected: Mask = pc.fill_null(pc.not_equal(self.told.column("correction"), 0), False).to_numpy()
        return corrected

    def _revised(self) -> Mask:
        revised = np.zeros(len(self.told), bool)
        if self.kind == "bars" and len(self.had):
            both = self.found >= 0
            told, had = wire.as_streamed(self.told, "AM"), self.had
            for name in _VALUES:
                now, then = told.column(name).to_numpy(), had.column(name).to_numpy()
                revised[both] |= now[both] != then[self.found[both]]
        return revised


def _among(names: pa.ChunkedArray, symbols: frozenset[str]) -> Mask:
    found: Mask = pc.is_in(names, pa.array(sorted(symbols), pa.string())).to_numpy()
    return found


def _reached(kind: str, answer: Answer) -> int:
    """How far the source has come."""
    if answer.final:
        return 2**63 - 1
    stamps = answer.table.column(stamp_of(kind)).to_numpy()
    return int(stamps.max()) + clock.MILLISECOND if len(stamps) else 0


def _chunks(kind: str, stretch: Stretch) -> Iterator[tuple[int, int]]:
    """What is asked for at a time: all of a few symbols, hours of a whole market."""
    start, end = stretch.window(kind)
    step = CHUNK if WILDCARD in stretch.symbols(kind) else end - start
    while start < end:
        yield start, min(start + step, end)
        start += step


def _every_minute(kind: str, names: Sequence[str], start: int, end: int) -> pl.DataFrame:
    """Each minute in which the market was open, with nothing counted."""
    zone = sessions.zone(Market.STOCKS)
    days = sessions.between(Market.STOCKS, clock.date_of(start, zone), clock.date_of(end, zone))
    first = start // clock.MINUTE * clock.MINUTE
    minutes = [
        np.arange(max(first, day.start), min(end, day.end), clock.MINUTE, dtype=np.int64) for day in days
    ]
    grid = pl.DataFrame({"minute": np.concatenate([np.empty(0, np.int64), *minutes])})
    symbols = pl.DataFrame({"symbol": pl.Series(list(names), dtype=pl.String)})
    return grid.join(symbols, how="cross").with_columns(channel=pl.lit(kind))


def _framed(counted: pl.DataFrame) -> pd.DataFrame:
    summed = counted.group_by(_KEYS).agg(pl.col(name).sum() for name in COUNTS).sort(_KEYS)
    status = (
        pl.when(pl.col("undeclared") > 0)
        .then(pl.lit("undeclared"))
        .when(pl.col("lost") > 0)
        .then(pl.lit("lost"))
        .when(pl.col("healed") > 0)
        .then(pl.lit("healed"))
        .when((pl.col("source") > 0) | (pl.col("extra") > 0))
        .then(pl.lit("complete"))
        .otherwise(pl.lit("silent"))
    )
    minute = pl.from_epoch("minute", time_unit="ns").dt.replace_time_zone("UTC")
    return summed.with_columns(minute=minute, status=status).to_pandas()
