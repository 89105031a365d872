"""Events that were received beside what history says: which are the same, where the others belong. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tapelab.errors import StoreError
from tapelab.massive import wire
from tapelab.massive.wire.fields import Channel
from tapelab.store.datasets.parts import stamp_of

Ints = npt.NDArray[np.int64]

CHANNELS: dict[str, Channel] = {"quotes": "Q", "trades": "T", "bars": "AM"}
NOWHERE = np.iinfo(np.int64)

# What names an event in every protocol. The unit of a quote's sizes and the spelling of conditions may differ
# between the vendor's doors, and a whole size stands where the stream does not know the fraction.
_NAMING = {
    "quotes": ("ts_event", "symbol", "sequence", "bid", "ask", "bid_exchange", "ask_exchange"),
    "trades": ("ts_event", "symbol", "sequence", "id", "price", "exchange"),
    "bars": ("timestamp", "symbol"),
}
_OURS = ("ts_recv", "arrival", "session")


def match(source: pa.Table, had: pa.Table, kind: str) -> Ints:
    """For each row of `source` the row of `had` that is the same event, or -1; each row of `had` once.

    Compared is what the stream carries of both: first all of it, then, of what is left, what names an event.
    Events that are alike are told apart by their number only.
    """
    told, heard = _as_heard(source, kind), _as_heard(had, kind)
    found = np.full(len(source), -1, np.int64)
    everything = [name for name in told.columns if name not in (*_OURS, "row")]
    for names in ([] if kind == "bars" else [everything]) + [list(_NAMING[kind])]:
        both = pl.concat(
            [
                told[np.flatnonzero(found < 0)].with_columns(heard=pl.lit(False)),
                heard.filter(~pl.col("row").is_in(found[found >= 0])).with_columns(heard=pl.lit(True)),
            ]
        )
        both = both.with_columns(nth=pl.int_range(pl.len()).over("heard", *names))
        twin = pl.col("row").filter(pl.col("heard")).first().over(*names, "nth")
        pairs = both.select("row", "heard", twin=twin).filter(~pl.col("heard") & pl.col("twin").is_not_null())
        found[pairs["row"].to_numpy()] = pairs["twin"].to_numpy()
    return found


def _as_heard(table: pa.Table, kind: str) -> pl.DataFrame:
    frame = pl.from_arrow(wire.as_streamed(table, CHANNELS[kind]).replace_schema_metadata(None))
    assert isinstance(frame, pl.DataFrame)
    lists = [name for name, type_ in frame.schema.items() if isinstance(type_, pl.List)]
    return frame.with_columns(
        *(pl.col(name).cast(pl.List(pl.String)).list.join(",") for name in lists),
        row=pl.int_range(pl.len(), dtype=pl.Int64),
    )


@dataclass(frozen=True)
class Lacking:
    """Rows of a source that were not received, in the source's order.

    `before`, `behind`: the arrival numbers of the received rows of the same symbol next to each.
    """

    table: pa.Table
    before: Ints
    behind: Ints

    def take(self, chosen: npt.NDArray[np.bool_]) -> Lacking:
        return Lacking(self.table.filter(pa.array(chosen)), self.before[chosen], self.behind[chosen])


def lacking(source: pa.Table, had: pa.Table, found: Ints) -> Lacking:
    """What of `source` is not in `had`, `found` being what `match` said."""
    if "arrival" not in source.column_names:
        nowhere = np.full(len(source), -1, np.int64)
        return Lacking(source, nowhere, nowhere).take(found < 0)
    arrivals = had.column("arrival").to_numpy()
    at = pl.when(pl.col("found") >= 0).then(pl.col("arrival"))
    frame = pl.DataFrame(
        {
            "symbol": pl.Series(source.column("symbol").to_pylist(), dtype=pl.String),
            "found": found,
            "arrival": arrivals[found] if len(arrivals) else found,
        }
    ).select(
        before=at.forward_fill().over("symbol").fill_null(NOWHERE.min),
        behind=at.backward_fill().over("symbol").fill_null(NOWHERE.max),
    )
    return Lacking(source, frame["before"].to_numpy(), frame["behind"].to_numpy()).take(found < 0)


def which_gap(rows: Lacking, lows: Ints, highs: Ints, seams: Ints, kind: str) -> Ints:
    """The number of the gap to which each row belongs, of several in order.

    `lows`, `highs`: the arrival numbers at their ends; `seams`: the exchange's clock between one gap and the
    next. A row lies in a gap between the received rows next to it; where several are, or none is, its own
    clock says in which.
    """
    stamps = rows.table.column(stamp_of(kind)).to_numpy()
    by_clock = np.searchsorted(np.maximum.accumulate(seams), stamps, "right")
    first = np.searchsorted(highs, rows.before, "right")
    last = np.searchsorted(lows, rows.behind, "left") - 1
    chosen: Ints = np.where(first <= last, np.clip(by_clock, first, np.maximum(first, last)), by_clock)
    return chosen


def numbered(rows: Sequence[tuple[str, Lacking]], edges: Ints, clocks: Ints) -> list[pa.Table]:
    """Rows of several kinds with arrival numbers of their own, where they would have come.

    `edges`: the numbers that are taken around and inside a gap; `clocks`: the exchange's time of those
    inside. A row stands behind those inside that are not younger, and between the received rows beside it.
    """
    stamps = np.concatenate([one.table.column("ts_event").to_numpy() for _, one in rows])
    trades_first = np.concatenate([np.full(len(one.table), kind == "quotes") for kind, one in rows])
    before = np.concatenate([one.before for _, one in rows])
    behind = np.concatenate([one.behind for _, one in rows])
    order = np.lexsort((np.arange(len(stamps)), trades_first, stamps))
    slots = np.searchsorted(np.maximum.accumulate(clocks), stamps, "right")
    inside = edges[1:-1]
    least, most = np.searchsorted(inside, before, "right"), np.searchsorted(inside, behind, "left")
    slots = np.clip(slots, least, np.maximum(least, most))[order]
    numbers = np.empty(len(order), np.int64)
    numbers[order[np.argsort(slots, kind="stable")]] = _spread(np.bincount(slots), edges)
    found, at = [], 0
    for _, one in rows:
        column = pa.array(numbers[at : at + len(one.table)])
        index = one.table.column_names.index("arrival")
        found.append(one.table.set_column(index, one.table.schema.field(index), column).sort_by("arrival"))
        at += len(one.table)
    return found


def _spread(counts: Ints, edges: Ints) -> Ints:
    """Free numbers, so many between each two edges, evenly; where there is no room, in the room before."""
    counts = counts.copy()
    free = np.diff(edges)[: len(counts)] - 1
    for slot in range(len(counts) - 1, 0, -1):
        if counts[slot] > free[slot]:
            counts[slot - 1] += counts[slot] - max(free[slot], 0)
            counts[slot] = max(free[slot], 0)
    if len(counts) and counts[0] > free[0]:
        raise StoreError(
            f"A gap has no room for {counts[0]:,} rows in the order of arrival.", remedy="Please report this."
        )
    given = [
        edges[slot] + (np.arange(count, dtype=np.int64) + 1) * (free[slot] + 1) // (count + 1)
        for slot, count in enumerate(counts.tolist())
        if count
    ]
    return np.concatenate(given) if given else np.empty(0, np.int64)
