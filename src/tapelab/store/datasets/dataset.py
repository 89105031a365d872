"""Datasets: recordings and imported ticks, as versions of immutable segments.

A dataset is a folder; `open_dataset` takes its name, its path, or the path of a `bars_….parquet` in it.
What adds to a dataset (a tag, a second recording) makes a new version, and the earlier ones stay as they
were.
"""

from __future__ import annotations

import itertools
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pyarrow as pa

from tapelab.errors import Damaged, DatasetNotFound, StoreError, TapelabError, UnknownName, UsageError
from tapelab.market import clock, replay, sessions, tables
from tapelab.market.events import Event, Gap
from tapelab.market.intervals import Interval
from tapelab.market.ranges import Moment
from tapelab.market.symbols import Market
from tapelab.market.tables import Frame
from tapelab.settings import Settings, current
from tapelab.store.datasets import following, manifest, parts
from tapelab.store.datasets.columns import KINDS
from tapelab.store.datasets.coverage import Coverage, coverage_of
from tapelab.store.datasets.growing import finish_killed, peek
from tapelab.store.datasets.manifest import Filled, Manifest, Mark, Segment, Version
from tapelab.store.datasets.overlay import Overlay, begin, tick_parts
from tapelab.store.datasets.shaping import Format, Kind, bar_length, bars_of, paced

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

FOLDER = "datasets"
View = Literal["received", "healed"]
VIEWS: tuple[View, ...] = ("received", "healed")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHOWN = ("endpoint", "source", "simulated", "tape", "quote_size_unit")  # facts of every table


class Dataset:
    """One version of recorded or imported quotes, trades and bars; it never changes.

    `clock`: `"received"` where order and `ts_recv` are our own, `"event"` where only the exchange's clock is
    known. `version` 0 is a recording that still grows: what is read is what is there at that moment.
    """

    def __init__(self, path: Path, known: Manifest) -> None:
        self.path = path
        self._manifest = known

    def __repr__(self) -> str:
        names = ", ".join(self.symbols[:4]) + (" …" if len(self.symbols) > 4 else "")
        simulated = ", simulated" if self.provenance.get("simulated") else ""
        return f"<Dataset {self.name!r} version {self.version}: {names or 'empty'}{simulated}>"

    @classmethod
    def from_tables(cls, name: str, *, quotes: Any = None, trades: Any = None, bars: Any = None) -> Dataset:
        """A new dataset of quotes, trades or bars from elsewhere, as pandas, polars or Arrow tables.

        Such as `fetch_quotes` and `fetch_trades` give; `clock` is `"event"` where nobody received them (no
        `ts_recv`). What they say of their origin is kept. Raises `UsageError` where the name is taken, a
        column is missing, or a time has no zone.
        """
        from tapelab.store.datasets import catalogue

        given = {"quotes": quotes, "trades": trades, "bars": bars}
        return catalogue.from_frames(
            name, {kind: table for kind, table in given.items() if table is not None}
        )

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def version(self) -> int:
        return self._manifest.version

    @property
    def growing(self) -> bool:
        """Whether this is a recording under way."""
        return self.version == 0

    @property
    def clock(self) -> Literal["received", "event"]:
        return "received" if self._manifest.clock == "received" else "event"

    @property
    def market(self) -> Market:
        return Market(str(self.provenance.get("market", Market.STOCKS)))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Those of which there is at least one row, in order of name."""
        return tuple(self._manifest.symbols)

    @property
    def start(self) -> datetime | None:
        """The exchange's time of the first event, UTC; None while there is none."""
        return _moment(min((seen.first for seen in self._manifest.symbols.values()), default=None))

    @property
    def end(self) -> datetime | None:
        """The exchange's time of the last event, UTC; None while there is none."""
        return _moment(max((seen.last for seen in self._manifest.symbols.values()), default=None))

    @property
    def coverage(self) -> dict[str, Coverage]:
        """By symbol, what is there, and when we listened."""
        return coverage_of(self._manifest)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """What the recording knows it lost, and why; our clock, ns UTC."""
        return tuple(Gap(g.start, g.end, g.cause, g.channels, g.symbols) for g in self._manifest.gaps)

    @property
    def filled(self) -> tuple[Filled, ...]:
        """What `heal` did about each channel of each gap: how many rows, from where, what is still open."""
        return self._manifest.filled

    @property
    def complete(self) -> bool:
        """Whether nothing is lacking: it has ended, and has no gap that was not healed for good."""
        healed = {(one.start, one.end): True for one in self.filled}
        healed |= {(one.start, one.end): False for one in self.filled if one.open or not one.final}
        return not self.growing and all(
            healed.get((gap.start, gap.end), False) for gap in self._manifest.gaps
        )

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every version that there is, the oldest first, and what made it; `open_dataset(…, version=N)`."""
        return manifest.history(self.path)

    @property
    def tags(self) -> tuple[str, ...]:
        return self._manifest.tags

    @property
    def marks(self) -> tuple[Mark, ...]:
        """Labelled stretches."""
        return self._manifest.marks

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it came from: endpoint, source, simulated, quote_size_unit and more."""
        return dict(self._manifest.provenance)

    @property
    def counts(self) -> dict[str, int]:
        """Of a recording: frames, bytes, unknown events and fields, malformed and dropped messages."""
        return dict(self._manifest.counts)

    @overload
    def quotes(self, *, view: View = ..., frame: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def quotes(self, *, view: View = ..., frame: Literal["polars"]) -> pl.DataFrame: ...
    @overload
    def quotes(self, *, view: View = ..., frame: Literal["arrow"]) -> pa.Table: ...
    def quotes(self, *, view: View = "received", frame: Frame = "pandas") -> Any:
        """Every quote, in order of arrival; `view="healed"` with those that `heal` filled in.

        Filled rows have no `ts_recv`: that is how they are told from what was received.
        """
        return tables.to_frame(self.table("quotes", view), frame)

    @overload
    def trades(self, *, view: View = ..., frame: Literal["pandas"] = "pandas") -> pd.DataFrame: ...
    @overload
    def trades(self, *, view: View = ..., frame: Literal["polars"]) -> pl.DataFrame: ...
    @overload
    def trades(self, *, view: View = ..., frame: Literal["arrow"]) -> pa.Table: ...
    def trades(self, *, view: View = "received", frame: Frame = "pandas") -> Any:
        """Every trade, in order of arrival; `view="healed"` with those that `heal` filled in.

        Filled rows have no `ts_recv`: that is how they are told from what was received.
        """
        return tables.to_frame(self.table("trades", view), frame)

    @overload
    def bars(
        self,
        interval: str = ...,
        *,
        of: Kind | None = ...,
        view: View = ...,
        frame: Literal["pandas"] = "pandas",
    ) -> pd.DataFrame: ...
    @overload
    def bars(
        self, interval: str = ..., *, of: Kind | None = ..., view: View = ..., frame: Literal["polars"]
    ) -> pl.DataFrame: ...
    @overload
    def bars(
        self, interval: str = ..., *, of: Kind | None = ..., view: View = ..., frame: Literal["arrow"]
    ) -> pa.Table: ...
    def bars(
        self,
        interval: str = "1m",
        *,
        of: Kind | None = None,
        view: View = "received",
        frame: Frame = "pandas",
    ) -> Any:
        """Bars of any interval that divides a day (`10s`, `5m`), or of days, weeks and months.

        `of`: built from the `"trades"`, or from the mid prices of the `"quotes"`; without it from trades, or
        where there are none from quotes. A dataset of bars alone gives those, or longer ones. The fact
        `built_from` says which it was.
        """
        return tables.to_frame(self.bar_table(interval, view, of), frame)

    def bar_table(
        self, interval: str | Interval, view: View = "received", of: Kind | None = None
    ) -> pa.Table:
        """`bars` as an Arrow table with int64 ns times."""
        recorded = str(self.provenance.get("interval", "1m"))
        whole = partial(self.table, view=view)
        return bars_of(whole, Interval.any(interval), self.market, of, recorded=recorded)

    def table(self, kind: str, view: View = "received") -> pa.Table:
        """All rows of a kind (`quotes`, `trades`, `bars`) as an Arrow table; ticks in order of arrival."""
        if kind not in KINDS:
            raise UnknownName.among("kind of table", kind, KINDS)
        overlay = self._overlay(view)
        laid = (*self._manifest.segments, *overlay)
        found = [parts.read_segment(self.path, s) for s in laid if s.kind == kind]
        if self.growing:
            found += [batch[kind] for batch in following.so_far(self.path, self._manifest)]
        table = tables.concat(found, tables.SCHEMAS[kind])
        if kind == "bars":
            table = parts.newest_bars(table)
        elif overlay:
            table = table.sort_by("arrival")
        shown = {name: self.provenance[name] for name in _SHOWN if name in self.provenance}
        return tables.with_facts(table, dataset=self.name, version=self.version, view=view, **shown)

    def replay(
        self,
        view: View = "received",
        *,
        follow: bool = False,
        speed: float | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Event]:
        """Every event in the order in which it arrived, as objects.

        `view="received"`: what was received, nothing filled in; `"healed"`: with what `heal` filled in, where
        it would have come. `speed`: None as fast as you read, 1 at the
        pace at which it came, 10 ten times as fast. `follow`: go on with what a recording under way still
        receives, until it ends. `stop`: ends the replay soon after it is set.
        """
        overlay = self._overlay(view)
        if speed is not None and not speed > 0:
            raise UsageError(
                f"A replay cannot run at speed {speed}.", remedy="Use a number above 0, or None."
            )
        ends = stop or threading.Event()
        found = self._events(overlay, follow, ends)
        if speed is not None:
            wait = stop.wait if stop else clock.sleep
            found = paced(found, speed, wait, received=self.clock == "received")
        return itertools.takewhile(lambda _: not ends.is_set(), found)

    def verify(self) -> int:
        """Check every file against its checksum, and the journal from its first record to its last.

        Gives the number of files that were checked. Raises `Damaged` that names each one that is missing,
        foreign, or not what was written (`facts["problems"]`).
        """
        from tapelab.store.datasets import upkeep

        found = list(upkeep.check(self))
        problems = [problem for problem in found if problem]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise Damaged(
                f"The dataset {self.name} is not what was written: {'; '.join(problems[:3])}{more}.",
                remedy="Restore these files from a backup; take away what is foreign.",
                problems=problems,
            )
        return len(found)

    def latest(self) -> Dataset:
        """The dataset as it is now: its newest version, and what a recording under way has gained."""
        return open_dataset(following.found_again(self.path, self._manifest))

    def remove(self) -> None:
        """Take the dataset away, every version of it. Raises `Locked` while it is recorded."""
        from tapelab.store.datasets import upkeep

        upkeep.remove(self)

    def tag(self, *tags: str) -> Dataset:
        """The dataset with tags added: a new version of it."""
        if self.growing:
            raise StoreError(f"{self.name} is still recorded.", remedy="Tag it when it has ended.")
        for tag in tags:
            if not tag.strip() or "," in tag:
                raise UsageError(f"{tag!r} is no tag.", remedy="Use a word without commas.")
        more = tuple(dict.fromkeys((*self.tags, *tags)))
        if more == self.tags:
            return self
        change = f"tagged {', '.join(tag for tag in more if tag not in self.tags)}"
        return Dataset(self.path, manifest.next_version(self.path, self._manifest, change=change, tags=more))

    def mark(
        self, label: str, start: Moment, end: Moment, *, symbol: str = "", fitted_on: str = ""
    ) -> Dataset:
        """The dataset with a labelled stretch of the exchange's time: a new version of it.

        `start` and `end` as everywhere: a date is the whole day, a datetime an instant, the end excluded.
        `symbol`: of one symbol only. `fitted_on`: which data the label was learned from; whoever tests on
        these must not test on that. Raises `BadRange` where the stretch lies outside the dataset.
        """
        from tapelab.store.datasets import marking

        return marking.marked(self, [marking.made(self, label, start, end, symbol, fitted_on)])

    def merge(self, *others: Dataset | str | Path, name: str) -> Dataset:
        """This dataset and others as a new one called `name`: other symbols, a second machine, a second day.

        Each event counts once, by everything that was said of it; of two copies that stays which came first,
        and events are in order of arrival by our clocks. What one of them covers is no gap of the whole.
        Raises `UsageError` where they differ in endpoint, market or clock.
        """
        from tapelab.store.datasets import catalogue

        found = [one if isinstance(one, Dataset) else open_dataset(one) for one in others]
        return catalogue.merge(self, *found, name=name)

    def export(
        self,
        path: str | Path,
        format: Format = "parquet",  # noqa: A002
        *,
        interval: str = "1m",
        view: View = "received",
    ) -> Path:
        """Write the dataset for other programs into a new folder, whole or not at all; gives that folder.

        `format`: `"parquet"` or `"csv"` (quotes, trades, and bars of `interval`), or `"flat_files"`, the
        vendor's layout. `export.json` beside them says what is lacking. What is simulated says so in every
        name. Raises `UsageError` where something is there already.
        """
        from tapelab.store.datasets import export

        return export.export(self, Path(path).expanduser(), format, interval=interval, view=view)

    def _overlay(self, view: str) -> tuple[Segment, ...]:
        if view not in VIEWS:
            raise UnknownName.among("view", view, VIEWS)
        return self._manifest.overlay if view == "healed" else ()

    def _events(self, overlay: Sequence[Segment], follow: bool, stop: threading.Event) -> Iterator[Event]:
        ticks = tick_parts(self._manifest.segments)
        if not ticks and not self.growing:
            bars = self.table("bars", "healed" if overlay else "received")
            yield from replay.bars(bars, bar_length(self.provenance))
            return
        filled = Overlay(self.path, overlay)
        for part, behind in itertools.zip_longest(ticks, ticks[1:]):
            read = {kind: parts.read_segment(self.path, segment) for kind, segment in part.items()}
            yield from replay.events(**filled.among(read, before=begin(behind) if behind else None))
        if self.growing:
            path, known = self.path, self._manifest
            for batch in following.to_come(path, known, stop) if follow else following.so_far(path, known):
                yield from replay.events(quotes=batch.get("quotes"), trades=batch.get("trades"))


def folder_of(settings: Settings) -> Path:
    """Where the datasets of an endpoint lie."""
    return settings.root / FOLDER


def check_name(name: str) -> str:
    """`name`, if a dataset may be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a dataset.", remedy="Use letters, digits, dots, dashes and _."
        )
    return name


def open_dataset(
    name_or_path: str | Path, *, version: int | None = None, settings: Settings | None = None
) -> Dataset:
    """A recorded or imported dataset, by name, by its folder, or by a `bars_….parquet` in it.

    A recording whose program was killed is put in order first. Raises `DatasetNotFound` with the nearest
    name, `Damaged` with the file.
    """
    path = _find(name_or_path, settings)
    known = finish_killed(path)
    if version is not None:
        known = manifest.load(path, version)
    return Dataset(path, peek(path, known) if known.version == 0 else known)


def list_datasets(
    *,
    symbol: str | None = None,
    date: str | date | None = None,
    tag: str | None = None,
    complete: bool | None = None,
    settings: Settings | None = None,
) -> list[Dataset]:
    """The datasets of this endpoint, oldest first.

    `symbol`: only those that hold it. `date`: only those with events on that trading day. `tag`: only those
    that carry it. `complete`: only those that lack nothing (see `Dataset.complete`), or, with False, those
    that do. One that cannot be read is warned of and left out.
    """
    folder = folder_of(settings or current())
    day = _day(date)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not manifest.versions(path):
            continue
        try:
            dataset = open_dataset(path)
        except TapelabError as error:
            warnings.warn(f"The dataset {path.name} is left out: {error}", UserWarning, stacklevel=2)
            continue
        wanted = (
            (symbol is None or symbol in dataset.symbols)
            and (tag is None or tag in dataset.tags)
            and (day is None or _covers(dataset, day))
            and (complete is None or dataset.complete is complete)
        )
        if wanted:
            found.append(dataset)
    return sorted(found, key=lambda dataset: dataset._manifest.created)


def _find(name_or_path: str | Path, settings: Settings | None) -> Path:
    given = Path(name_or_path)
    plain = isinstance(name_or_path, str) and given.name == name_or_path
    if plain:
        folder = folder_of(settings or current())
        if manifest.versions(folder / name_or_path):
            return folder / name_or_path
    for path in (given, given.parent) if given.suffix == ".parquet" else (given,):
        if manifest.versions(path):
            return path.absolute()
    if not plain:
        raise DatasetNotFound(
            f"There is no dataset in {given}.", remedy="Give the folder of a dataset, or its name."
        )
    known = [p.name for p in folder.iterdir() if manifest.versions(p)] if folder.is_dir() else []
    near = get_close_matches(str(name_or_path), known, n=1, cutoff=0.5)
    raise DatasetNotFound(
        f"There is no dataset {str(name_or_path)!r}.",
        remedy=f"Did you mean {near[0]!r}?" if near else "See list_datasets(), or `tapelab datasets`.",
        name=str(name_or_path),
    )


def _covers(dataset: Dataset, day: date) -> bool:
    if dataset.start is None or dataset.end is None:
        return False
    zone = sessions.zone(dataset.market)
    seen = dataset._manifest.symbols.values()
    first, last = (min(s.first for s in seen), max(s.last for s in seen))
    return clock.date_of(first, zone) <= day <= clock.date_of(last, zone)


def _day(given: str | date | None) -> date | None:
    if not isinstance(given, str):
        return given
    try:
        return date.fromisoformat(given)
    except ValueError as error:
        raise UsageError(f"{given!r} is not a date.", remedy="Write it like 2026-01-05.") from error


def _moment(instant: int | None) -> datetime | None:
    if instant is None:
        return None
    seconds, rest = divmod(instant, clock.SECOND)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // clock.MICROSECOND)
