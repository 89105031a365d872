"""Heal a recording: what its gaps swallowed, from REST or the day's flat file, laid over what was received.

Received rows are never touched. A gap is a stretch of our clock; what it swallowed is found by the rows next
to it (see `store.overlay`), with a margin, and what was received of that comes once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from tapelab.errors import StoreError, TapelabError, UsageError
from tapelab.live import matching
from tapelab.live.completeness import Completeness, compare
from tapelab.live.listening import Listening, Missed, clusters, hull, names_of
from tapelab.live.lookup import Answer, History, Source
from tapelab.live.matching import Lacking
from tapelab.market import clock, tables
from tapelab.market.symbols import Market
from tapelab.massive.feed import CHANNELS
from tapelab.settings import current
from tapelab.store.datasets import manifest, overlay, parts
from tapelab.store.datasets.dataset import Dataset, open_dataset
from tapelab.store.datasets.manifest import Filled
from tapelab.store.datasets.overlay import TICKS
from tapelab.store.journal.segments import Lock, lock_path

LATEST = clock.MILLISECOND - 1  # a stamp of the stream may be as much later
AGREEMENT = 0.5  # of the received rows beside a gap the source must know so many, or it speaks of others


@dataclass(frozen=True)
class Healing:
    """What `heal` did.

    `dataset`: its newest version. `added`: rows filled in by this call. `filled`: for each gap and channel
    how many rows, from where, when, whether that is final, and what is still open and why.
    """

    dataset: Dataset
    added: int
    filled: tuple[Filled, ...]
    _source: Source = field(repr=False, compare=False)

    def report(self) -> Completeness:
        """What the dataset has of what happened, by minute, symbol and channel, beside the same source.

        Asks it for all that was listened to, cache first, within your budgets. Raises what `fetch_trades`
        raises.
        """
        return compare(self.dataset, self._source)

    @property
    def open(self) -> tuple[Filled, ...]:
        """What could not be filled."""
        return tuple(one for one in self.filled if one.open)

    @property
    def provisional(self) -> tuple[Filled, ...]:
        """What was filled before the source was final: healing asks once more when it is."""
        return tuple(one for one in self.filled if not one.open and not one.final)

    def as_dict(self) -> dict[str, object]:
        """The same as plain values, for JSON."""
        filled = [msgspec.to_builtins(one) for one in self.filled]
        return {
            "name": self.dataset.name,
            "version": self.dataset.version,
            "added": self.added,
            "filled": filled,
        }

    def __str__(self) -> str:
        name = self.dataset.name
        if not self.filled:
            return f"{name} has no gaps."
        lines = [f"{name}: {self.added:,} rows filled in, version {self.dataset.version}"]
        for (start, end), group in itertools.groupby(self.filled, key=lambda one: (one.start, one.end)):
            lines.append(f"  {_moment(start)} to {_moment(end)[11:]} UTC")
            lines += [f"    {one.channel:<6}  {_said(one)}" for one in group]
        return "\n".join(lines)


def _moment(instant: int) -> str:
    return f"{clock.iso(instant)[:19]}.{instant % clock.SECOND // clock.MILLISECOND:03}"


def _said(one: Filled) -> str:
    if one.open:
        return f"open: {one.open}"
    source = {"rest": "REST", "flat_file": "the flat file"}.get(one.source, one.source)
    return f"{one.rows:,} from {source}" + ("" if one.final else ", provisional")


def heal(dataset: Dataset | str | Path) -> Healing:
    """Fill the gaps of a recording from REST or the day's flat file: a new version over what was received.

    `view="healed"` shows the filled rows, which have no `ts_recv`; `view="received"`, the default, does not.
    Asked for are the channels and symbols that were subscribed, the cache first and within your budgets,
    from the endpoint of the recording alone. Healing again does only what is still open: what nobody could
    give, and what REST gave before the day was final. `tapelab update` does not ask again for what was final.

    Raises what kept it from filling anything (`SettingError`, `SourceError`, `BudgetExceeded`), with what is
    open; `UsageError` for another endpoint or market; `StoreError` while the recording grows.
    """
    path = dataset.path if isinstance(dataset, Dataset) else dataset
    return heal_from(open_dataset(path), History())


def heal_from(dataset: Dataset, source: Source, *, again: bool = True) -> Healing:
    """`heal` from whatever knows what happened; `again`: ask also where its last answer was final."""
    if dataset.growing:
        raise StoreError(f"{dataset.name} is still recorded.", remedy="Heal it when it has ended.")
    if dataset.market is not Market.STOCKS:
        raise UsageError(
            f"{dataset.name} is of {dataset.market.value}.", remedy="US stocks alone can be healed yet."
        )
    endpoint = dataset.provenance.get("endpoint")
    if dataset.gaps and endpoint != current().endpoint:
        raise UsageError(
            f"{dataset.name} was recorded from {endpoint}; asked now would be {current().endpoint}.",
            remedy="Heal it with the settings that it was recorded with: endpoints never mix.",
        )
    work = _Work(dataset, source, again)
    for kind in CHANNELS:
        work.fill(kind)
    if work.error is not None and not work.answered:
        raise _nothing_healed(work)
    return work.save()


@dataclass
class _Work:
    """One healing: what it has found so far. Nothing is written before `save`."""

    dataset: Dataset
    source: Source
    again: bool
    answered: bool = False
    error: TapelabError | None = None
    rows: dict[tuple[int, int], list[tuple[str, Lacking]]] = field(default_factory=dict)
    bars: list[pa.Table] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.known = self.dataset._manifest
        self.listening = Listening(self.dataset)
        self.filled = {(one.start, one.end, one.channel): one for one in self.known.filled}

    def fill(self, kind: str) -> None:
        """Ask for what the gaps of a channel lack."""
        asked = clusters([gap for gap in self.listening.gaps(kind) if self._is_due(kind, gap)])
        calls = sum(len(names_of(cluster)) for cluster in asked)
        failed: TapelabError | None = None
        for cluster in asked:
            window = cluster[0].window
            if window is None:
                why = "nothing was received beside it that tells where it lies on the exchange's clock"
            elif failed is not None:
                why = str(failed)
            else:
                try:
                    self._fill(kind, cluster, calls)
                    continue
                except TapelabError as error:
                    self.error = failed = error
                    why = str(error)
            self._leave_open(kind, cluster, why)

    def _is_due(self, kind: str, gap: Missed) -> bool:
        """Whether there is something to do: not what is filled and final, nor as final as it can be yet."""
        old = self.filled.get((*gap.key, kind))
        if old is None or gap.window is None:
            return True
        if old.open:
            return self.again or not old.final
        return not old.final and self.source.final_at(kind, *gap.window) <= clock.now()

    def _fill(self, kind: str, cluster: Sequence[Missed], calls: int) -> None:
        start, end = hull(cluster)
        names = names_of(cluster)
        everybody = any(gap.everybody for gap in cluster)
        answer = self.source.ask(kind, names, start, end, calls=calls, everybody=everybody)
        if answer.simulated != bool(self.dataset.provenance.get("simulated", False)) and len(answer.table):
            raise UsageError(
                f"{self.dataset.name} and what is asked now are not the same market: one is simulated.",
                remedy="Heal it from the exchange that it was recorded from.",
            )
        if everybody:
            names = sorted({*names, *answer.table.column("symbol").unique().to_pylist()})
        path, known = self.dataset.path, self.known
        received = overlay.rows(path, known.segments, kind, start, end, names)
        laid = overlay.rows(path, known.overlay, kind, start, end, names)
        had = tables.concat([received, laid], tables.SCHEMAS[kind])
        found = matching.match(answer.table, had, kind)
        if why := _disagreement(answer, received, found, kind):
            self._leave_open(kind, cluster, why, final=answer.final)
            return
        self.answered = True
        lacking = matching.lacking(answer.table, had, found)
        counts = self._share_out(kind, cluster, lacking)
        for gap in cluster:
            old = self.filled.get((*gap.key, kind))
            rows = counts.get(gap.key, 0) + (old.rows if old else 0)
            lacks = _UNKNOWN_NAMES if gap.everybody and answer.route != "flat_file" else ""
            self.filled[*gap.key, kind] = Filled(
                *gap.key, kind, answer.route, rows, clock.now(), answer.final, lacks
            )

    def _share_out(
        self, kind: str, cluster: Sequence[Missed], lacking: Lacking
    ) -> dict[tuple[int, int], int]:
        """Give every row to the gap that swallowed it; how many each got."""
        counts: dict[tuple[int, int], int] = {}
        symbols = lacking.table.column("symbol").combine_chunks().dictionary_encode()
        known = symbols.dictionary.to_pylist()
        concerned = [tuple(n for n, gap in enumerate(cluster) if gap.concerns(name)) for name in known]
        for mine in sorted(set(concerned) - {()}):
            codes = [code for code, gaps in enumerate(concerned) if gaps == mine]
            rows = lacking.take(np.isin(symbols.indices.to_numpy(), codes))
            gaps = [cluster[n] for n in mine]
            chosen = _gap_of(kind, gaps, rows)
            for n, gap in enumerate(gaps):
                given = rows.take(chosen == n)
                if not len(given.table):
                    continue
                counts[gap.key] = counts.get(gap.key, 0) + len(given.table)
                if kind == "bars":
                    self.bars.append(given.table)
                else:
                    self.rows.setdefault(gap.key, []).append((kind, given))
        return counts

    def _leave_open(self, kind: str, cluster: Iterable[Missed], why: str, *, final: bool = False) -> None:
        for gap in cluster:
            old = self.filled.get((*gap.key, kind)) or Filled(*gap.key, kind)
            self.filled[*gap.key, kind] = msgspec.structs.replace(old, at=clock.now(), final=final, open=why)

    def save(self) -> Healing:
        """Lay the rows down as a new version; where nothing is new there is none."""
        path, known = self.dataset.path, self.known
        filled = tuple(sorted(self.filled.values(), key=lambda one: (one.start, one.end, one.channel)))
        laid = self._numbered()
        added = sum(map(len, laid.values()))
        if [_timeless(one) for one in filled] == [_timeless(one) for one in known.filled] and not added:
            return Healing(self.dataset, 0, known.filled, self.source)
        with Lock(lock_path(path)):
            if manifest.versions(path)[-1] != known.version:
                raise StoreError(
                    f"The dataset {path.name} was changed by someone else at the same time.",
                    remedy="Heal it again: what was fetched is in the cache.",
                )
            segments = overlay.lay_down(path, laid)
            try:
                new = manifest.next_version(
                    path,
                    known,
                    change=f"healed: {added:,} rows",
                    overlay=(*known.overlay, *segments),
                    filled=filled,
                )
            except BaseException:
                overlay.take_away(path, segments)
                raise
        return Healing(Dataset(path, new), added, filled, self.source)

    def _numbered(self) -> dict[str, pa.Table]:
        """The rows of all gaps by kind, each with its place in the order of arrival."""
        old = [parts.read_segment(self.dataset.path, s) for s in self.known.overlay if s.kind in TICKS]
        taken = np.concatenate([_places(table) for table in [*old, tables.TRADES.empty_table()]], axis=1)
        found: dict[str, list[pa.Table]] = {kind: [] for kind in TICKS}
        for key in sorted(self.rows):
            around = self.listening.around[key]
            low, high = around.edges[[0, -1]]
            filled = taken[:, (taken[0] > low) & (taken[0] < high)]  # of two gaps nothing need lie between
            received = around.within[[0, 2]] + [[0], [LATEST]]
            inside = np.concatenate([received, filled], axis=1)
            inside = inside[:, np.argsort(inside[0], kind="stable")]
            edges = np.array([low, *inside[0], high], np.int64)
            for (kind, _), table in zip(
                self.rows[key], matching.numbered(self.rows[key], edges, inside[1]), strict=True
            ):
                found[kind].append(table)
                taken = np.concatenate([taken, _places(table)], axis=1)
        ticks = {
            kind: tables.concat(some, tables.SCHEMAS[kind]).sort_by("arrival") for kind, some in found.items()
        }
        return {**ticks, "bars": tables.concat(self.bars, tables.SCHEMAS["bars"])}


_UNKNOWN_NAMES = (
    "REST was asked for the symbols that were seen; which others traded only the day's flat file can say"
)


def _places(ticks: pa.Table) -> matching.Ints:
    return np.array([ticks.column(name).to_numpy() for name in ("arrival", "ts_event")], np.int64)


def _gap_of(kind: str, gaps: Sequence[Missed], rows: Lacking) -> matching.Ints:
    if len(gaps) == 1:
        return np.zeros(len(rows.table), np.int64)
    seams = [
        (_or(before.around.first, before.around.ended) + _or(after.around.last, after.around.began)) // 2
        for before, after in itertools.pairwise(gaps)
    ]
    lows, highs = (np.array([gap.around.edges[end] for gap in gaps], np.int64) for end in (0, -1))
    shift = clock.MINUTE if kind == "bars" else 0
    return matching.which_gap(rows, lows, highs, np.array(seams, np.int64) - shift, kind)


def _or(first: int | None, second: int | None) -> int:
    return first if first is not None else second or 0


def _disagreement(answer: Answer, received: pa.Table, found: matching.Ints, kind: str) -> str:
    """Why an answer cannot fill anything; empty if it can.

    The rows beside a gap are there twice, in the recording and in the answer: where the answer does not know
    them, it is not as far yet, or it speaks of something else.
    """
    if not len(received):
        return ""
    stamp = parts.stamp_of(kind)
    stamps = answer.table.column(stamp).to_numpy()
    reached = int(stamps.max()) if len(stamps) else 0
    newest = int(received.column(stamp).to_numpy().max())
    if not answer.final and reached < newest - clock.MILLISECOND:
        return "the source is not that far yet; heal again later"
    agreed = np.count_nonzero((found >= 0) & (found < len(received)))
    if agreed < AGREEMENT * len(received):
        return (
            f"the source knows {agreed:,} of {len(received):,} {kind} that were received beside it, "
            "so nothing of it was taken"
        )
    return ""


def _timeless(one: Filled) -> Filled:
    return msgspec.structs.replace(one, at=0)


def _nothing_healed(work: _Work) -> TapelabError:
    assert work.error is not None
    gaps = {(one.start, one.end) for one in work.filled.values() if one.open}
    channels = sorted({one.channel for one in work.filled.values() if one.open})
    first, last = min(start for start, _ in gaps), max(end for _, end in gaps)
    what = f"{len(gaps)} gap{'s' if len(gaps) > 1 else ''} of {' and '.join(channels)}"
    return type(work.error)(
        f"Nothing of {work.dataset.name} was healed: {work.error.message.rstrip('.')}. Open: {what}, "
        f"{clock.iso(first)} to {clock.iso(last)}.",
        remedy=f"{work.error.remedy} Then heal it again.".strip(),
        **work.error.facts,
    )
