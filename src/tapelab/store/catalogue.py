"""What makes datasets, or makes them longer: tables from elsewhere, a recording behind another."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from tapelab.errors import NoData, UsageError
from tapelab.market import clock, replay, tables
from tapelab.market.symbols import Market
from tapelab.settings import Settings, current
from tapelab.store import files, manifest, parts
from tapelab.store.dataset import Dataset, check_name, folder_of
from tapelab.store.growing import JOURNAL
from tapelab.store.manifest import Journaled, Lost, Manifest, Segment
from tapelab.store.reading import ARRIVAL_BITS

PART_ROWS = 1_000_000

# Recordings are appended to each other only where these agree.
_SAME = ("endpoint", "market", "simulated", "quote_size_unit")


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
    files.make_folder(path)
    segments = []
    for part, cut in enumerate(_parts(rows), 1):
        segments += [parts.write_segment(path, part, kind, t) for kind, t in cut.items() if len(t)]
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
        segments=tuple(segments),
        symbols=parts.merge(parts.count(kind, table) for kind, table in rows.items()),
        provenance=known,
    )
    manifest.save(path, made)
    return Dataset(path, made)


def append(target: Dataset, recording: Dataset) -> Dataset:
    """`target` with `recording` behind it, as a new version; the recording itself stays as it is.

    Rows and journal are shared or copied, never decoded again. Raises `UsageError` where the two do not
    come from the same source, or overlap in time.
    """
    mine, more = target._manifest, recording._manifest
    for fact in _SAME:
        ours, theirs = mine.provenance.get(fact), more.provenance.get(fact)
        if ours != theirs:
            raise UsageError(
                f"{recording.name} cannot be appended to {target.name}: their {fact} differs "
                f"({theirs} and {ours}).",
                remedy="What came from different places is kept apart; save it under a name of its own.",
            )
    if mine.clock != more.clock or more.begun < mine.ended:
        raise UsageError(
            f"{recording.name} did not begin after {target.name} had ended.",
            remedy="Save it under a name of its own.",
        )
    shift = ((mine.last_arrival >> ARRIVAL_BITS) + 1) << ARRIVAL_BITS
    first = max((segment.part for segment in mine.segments), default=0)
    segments = [_adopt(recording.path, target.path, s, first, shift) for s in more.segments]
    journals = []
    for n, journaled in enumerate(more.journals, len(mine.journals) + 1):
        folder = f"{JOURNAL}-{n:03d}"
        shutil.copytree(
            recording.path / journaled.folder, target.path / folder, copy_function=_share, dirs_exist_ok=True
        )
        journals.append(Journaled(folder, journaled.last, journaled.shift + shift))
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
            gaps=(*mine.gaps, *(_shifted(gap, shift) for gap in more.gaps)),
            tags=tuple(dict.fromkeys((*mine.tags, *more.tags))),
            marks=(*mine.marks, *more.marks),
            counts={k: mine.counts.get(k, 0) + more.counts.get(k, 0) for k in {**mine.counts, **more.counts}},
            journals=(*mine.journals, *journals),
        ),
    )


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


def _shifted(gap: Lost, shift: int) -> Lost:
    return msgspec.structs.replace(gap, after=gap.after + shift)
