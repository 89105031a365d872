"""What makes datasets, or makes them longer: tables from elsewhere, recordings beside or behind others."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import NoData, StoreError, UsageError
from tapelab.market import clock, replay, sessions, tables
from tapelab.market.symbols import Market, is_test
from tapelab.settings import Settings, current
from tapelab.store import files
from tapelab.store.datasets import manifest, merging, overlay, parts
from tapelab.store.datasets.dataset import Dataset, check_name, folder_of
from tapelab.store.datasets.growing import JOURNAL
from tapelab.store.datasets.manifest import Journaled, Manifest, Seen, Segment
from tapelab.store.journal.reading import ARRIVAL_BITS

PART_ROWS = 1_000_000
_NEVER = 2**63 - 1

# Datasets are put together only where these agree.
_SAME = ("endpoint", "market", "simulated", "quote_size_unit", "clock")


def from_tables(
    name: str,
    *,
    quotes: pa.Table | None = None,
    trades: pa.Table | None = None,
    bars: pa.Table | None = None,
    source: str,
    provenance: Mapping[str, object] | None = None,
    settings: Settings | None = None,
    folder: Path | None = None,
) -> Dataset:
    """A dataset of ticks from elsewhere, such as a flat file.

    Where nobody received them (no `ts_recv`), `clock` is `"event"`: they are put in order by the exchange's
    clock, trades before quotes at a tie. Else their `arrival` is kept. `source`: `"flat_file"`,
    `"rest"` …; `folder`: where it goes instead of the endpoint's datasets. Raises `UsageError` where the
    name is taken, `NoData` where every table is empty.
    """
    settings = settings or current()
    path = (folder or folder_of(settings)) / check_name(name)
    if manifest.versions(path):
        raise UsageError(f"There is a dataset {name!r} already.", remedy="Choose another name.", name=name)
    rows = {
        kind: tables.conform(table if table is not None else schema.empty_table(), schema)
        for kind, table, schema in (
            ("quotes", quotes, tables.QUOTES),
            ("trades", trades, tables.TRADES),
            ("bars", bars, tables.BARS),
        )
    }
    ticks = (rows["quotes"], rows["trades"])
    received = any(map(len, ticks)) and not any(t.column("ts_recv").null_count for t in ticks)
    if received:
        rows |= {kind: rows[kind].sort_by("arrival") for kind in ("quotes", "trades")}
    else:
        rows["quotes"], rows["trades"] = replay.in_order_of_arrival(*ticks)
    if not any(map(len, rows.values())):
        raise NoData(f"There is nothing to put into {name!r}.", remedy="Give quotes, trades or bars.")
    known: dict[str, object] = {
        "endpoint": settings.endpoint,
        "source": source,
        "market": Market.STOCKS.value,
        "simulated": False,
        "quote_size_unit": "unknown",
        **(provenance or {}),
    }
    made = Manifest(
        id=uuid.uuid4().hex,
        version=1,
        clock="received" if received else "event",
        created=clock.now(),
        provenance=known,
        change="imported",
    )
    return _made(path, made, [rows])


def from_frames(name: str, frames: Mapping[str, Any], settings: Settings | None = None) -> Dataset:
    """A dataset of what users hold: tables of ours or of their own, by kind.

    What the tables say of themselves is believed: an endpoint, a simulated market, an adjustment. Where they
    say nothing and hold only test symbols, they are taken for simulated.
    """
    settings = settings or current()
    rows = {kind: tables.from_frame(frame, tables.SCHEMAS[kind]) for kind, frame in frames.items()}
    said = [tables.facts(table) for table in rows.values()]
    for facts in said:
        if facts.get("endpoint", settings.endpoint) != settings.endpoint:
            raise UsageError(
                f"These rows came from {facts['endpoint']}, and you are at {settings.endpoint}.",
                remedy="What came from different places is kept apart; go back there first.",
            )
    names = {name for table in rows.values() for name in pc.unique(table.column("symbol")).to_pylist()}
    routes = {route for facts in said for route in facts.get("routes", ())} - {"cache"}
    known = {
        k: v for facts in said for k, v in facts.items() if k in ("interval", "adjust", "quote_size_unit")
    }
    known["simulated"] = any(facts.get("simulated") for facts in said) or (
        not all(said) and all(map(is_test, names))
    )
    rows = {kind: _completed(kind, table) for kind, table in rows.items()}
    source = next(iter(routes)) if len(routes) == 1 else "history" if all(said) else "tables"
    return from_tables(name, **rows, source=source, provenance=known, settings=settings)


def _completed(kind: str, table: pa.Table) -> pa.Table:
    """With the columns that follow from others: a number of the row, the exchange's date."""
    if kind == "bars" and "session" not in table.column_names:
        dates = sessions.dates_of(Market.STOCKS, table.column("timestamp").to_numpy())
        return table.append_column("session", pa.array(dates, pa.date32()))
    if kind != "bars" and "arrival" not in table.column_names:
        return table.append_column("arrival", pa.array(np.arange(len(table))))
    return table


def merge(first: Dataset, *others: Dataset, name: str) -> Dataset:
    """Several datasets as a new one, beside the first: the rows of all, each event once.

    What one of them covers is no gap of the whole. The sources stay as they are; their journals belong to the
    new one too. Raises `UsageError` where they do not come from the same source.
    """
    sources = (first, *others)
    path = first.path.parent / check_name(name)
    if not others:
        raise UsageError("There is nothing to merge with.", remedy="Name two datasets or more.")
    if manifest.versions(path):
        raise UsageError(f"There is a dataset {name!r} already.", remedy="Choose another name.", name=name)
    for source in sources:
        _same_source(first, source, "merged with")
        if source.growing:
            raise StoreError(f"{source.name} is still recorded.", remedy="Merge it when it has ended.")
    found = [source._manifest for source in sources]
    made = Manifest(
        id=uuid.uuid4().hex,
        version=1,
        clock=first.clock,
        created=clock.now(),
        begun=min(one.begun for one in found),
        ended=max(one.ended for one in found),
        heard=merging.heard_by(one.heard for one in found),
        gaps=merging.gaps_of_all([(one.heard, one.gaps) for one in found]),
        tags=tuple(dict.fromkeys(tag for one in found for tag in one.tags)),
        marks=tuple(dict.fromkeys(mark for one in found for mark in one.marks)),
        counts={k: sum(one.counts.get(k, 0) for one in found) for one in found for k in one.counts},
        provenance={
            **found[-1].provenance,
            **found[0].provenance,
            "merged": [
                {"name": s.name, "id": m.id, "version": m.version}
                for s, m in zip(sources, found, strict=True)
            ],
        },
        change=f"merged from {', '.join(source.name for source in sources)}",
    )
    journals = [(s.path / j.folder, j) for s, one in zip(sources, found, strict=True) for j in one.journals]
    return _made(path, made, _merged(sources), journals)


def _merged(sources: Sequence[Dataset]) -> Iterator[dict[str, pa.Table]]:
    """The rows of the whole, one stretch after the other in which sources overlap."""
    bars, first = merging.busiest_bars(source.table("bars") for source in sources), 0
    for group in _apart(sources):
        ticks = ({kind: source.table(kind) for kind in ("quotes", "trades")} for source in group)
        received = group[0].clock == "received"
        yield {**merging.union(list(ticks), received=received, first=first), "bars": bars}
        bars = bars.slice(0, 0)
        first += sum(segment.rows for source in group for segment in source._manifest.segments)


def _apart(sources: Sequence[Dataset]) -> list[list[Dataset]]:
    """Sources in groups of which each is over, by our clock and the exchange's, before the next begins."""
    groups: list[list[int]] = []
    over = (0, 0)
    for begins, ends, n in sorted((*_span(source), n) for n, source in enumerate(sources)):
        if groups and (begins[0] <= over[0] or begins[1] <= over[1]):
            groups[-1].append(n)
        else:
            groups.append([n])
        over = max(over[0], ends[0]), max(over[1], ends[1])
    return [[sources[n] for n in sorted(group)] for group in groups]


def _span(source: Dataset) -> tuple[tuple[int, int], tuple[int, int]]:
    """From when to when it goes, by our clock and the exchange's."""
    known = source._manifest
    first = min((seen.first for seen in known.symbols.values()), default=known.begun)
    last = max((seen.last for seen in known.symbols.values()), default=0)
    if known.clock == "event":
        return (first, first), (last, last)
    return (known.begun, first), (known.ended or _NEVER, last)


def _made(
    path: Path,
    made: Manifest,
    stretches: Iterable[Mapping[str, pa.Table]],
    journals: Sequence[tuple[Path, Journaled]] = (),
) -> Dataset:
    """Lay the rows of a new dataset down, stretch by stretch, and its first version over them."""
    with files.whole_folder(path) as beside:
        laid = list(map(partial(_lay_down, beside, itertools.count(1)), stretches))
        whole = msgspec.structs.replace(
            made,
            segments=tuple(segment for segments, _ in laid for segment in segments),
            symbols=parts.merge(seen for _, seen in laid),
            journals=tuple(_adopt_journal(source, beside, journaled) for source, journaled in journals),
        )
        manifest.save(beside, whole)
    return Dataset(path, whole)


def _lay_down(
    folder: Path, numbers: Iterator[int], rows: Mapping[str, pa.Table]
) -> tuple[list[Segment], dict[str, Seen]]:
    segments = [
        parts.write_segment(folder, part, kind, table)
        for cut, part in zip(_parts(rows), numbers, strict=False)
        for kind, table in cut.items()
        if len(table)
    ]
    return segments, parts.merge(parts.count(kind, table) for kind, table in rows.items())


def append(target: Dataset, recording: Dataset) -> Dataset:
    """`target` with `recording` behind it, as a new version; the recording itself stays as it is.

    Rows and journal are shared or copied, never decoded again. Raises `UsageError` where the two do not
    come from the same source, or overlap in time.
    """
    mine, more = target._manifest, recording._manifest
    _same_source(target, recording, "appended to")
    if more.begun < mine.ended:
        raise UsageError(
            f"{recording.name} did not begin after {target.name} had ended.",
            remedy="Save it under a name of its own; merge() puts overlapping recordings together.",
        )
    shift = ((mine.last_arrival - min(more.first_arrival, 0) >> ARRIVAL_BITS) + 1) << ARRIVAL_BITS
    first = max((segment.part for segment in mine.segments), default=0)
    segments = [_adopt(recording.path, target.path, s, first, shift) for s in more.segments]
    first = overlay.last_part(target.path)
    filled = [_adopt(recording.path, target.path, s, first, shift) for s in more.overlay]
    journals = [
        _adopt_journal(recording.path / journaled.folder, target.path, journaled, shift)
        for journaled in more.journals
    ]
    files.sync_folder(target.path)
    return Dataset(
        target.path,
        manifest.next_version(
            target.path,
            mine,
            change=f"appended {recording.name}",
            created=clock.now(),
            ended=more.ended,
            segments=(*mine.segments, *segments),
            symbols=parts.merge([mine.symbols, more.symbols]),
            heard=(*mine.heard, *more.heard),
            gaps=(*mine.gaps, *more.gaps),
            tags=tuple(dict.fromkeys((*mine.tags, *more.tags))),
            marks=(*mine.marks, *more.marks),
            counts={k: mine.counts.get(k, 0) + more.counts.get(k, 0) for k in {**mine.counts, **more.counts}},
            journals=(*mine.journals, *journals),
            overlay=(*mine.overlay, *filled),
            filled=(*mine.filled, *more.filled),
        ),
    )


def _same_source(target: Dataset, other: Dataset, what: str) -> None:
    mine = {**target.provenance, "clock": target.clock}
    more = {**other.provenance, "clock": other.clock}
    for fact in _SAME:
        if mine.get(fact) != more.get(fact):
            raise UsageError(
                f"{other.name} cannot be {what} {target.name}: their {fact} differs "
                f"({more.get(fact)} and {mine.get(fact)}).",
                remedy="What came from different places is kept apart; save it under a name of its own.",
            )


def _adopt_journal(source: Path, target: Path, journaled: Journaled, shift: int = 0) -> Journaled:
    """A journal under a number of its own beside those that `target` has, or ever had."""
    taken = [int(path.name.rpartition("-")[2]) for path in target.glob(f"{JOURNAL}-[0-9]*")]
    folder = f"{JOURNAL}-{max(taken, default=0) + 1:03d}"
    shutil.copytree(source, target / folder, copy_function=_share)
    return Journaled(folder, journaled.last, journaled.shift + shift)


def _parts(rows: Mapping[str, pa.Table]) -> list[dict[str, pa.Table]]:
    """The rows cut into parts that do not overlap in order of arrival; bars go with the first."""
    ticks = {kind: table.column("arrival").to_numpy() for kind, table in rows.items() if kind != "bars"}
    order = np.sort(np.concatenate(list(ticks.values())))
    begins = [0, *order[PART_ROWS::PART_ROWS].tolist(), 2**63 - 1]
    cut = []
    for begin, end in itertools.pairwise(begins):
        part = {}
        for kind, numbers in ticks.items():
            start, stop = numbers.searchsorted([begin, end])
            part[kind] = rows[kind].slice(start, stop - start)
        cut.append(part)
    cut[0]["bars"] = rows["bars"]
    return cut


def _adopt(source: Path, target: Path, segment: Segment, parts_before: int, shift: int) -> Segment:
    part = parts_before + segment.part
    name = f"{Path(segment.file).parent}/{segment.kind}-{part:06d}.parquet"
    files.make_folder((target / name).parent)
    (target / name).unlink(missing_ok=True)
    _share(source / segment.file, target / name)
    return msgspec.structs.replace(segment, file=name, part=part, shift=segment.shift + shift)


def _share(source: str | Path, target: str | Path) -> str:
    """The same file under a second name, which is safe as it never changes; a copy on another disk."""
    try:
        os.link(source, target)
    except FileExistsError:
        pass
    except OSError:
        shutil.copy2(source, target)
    return str(target)
