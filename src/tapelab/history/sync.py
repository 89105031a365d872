"""Flat files in bulk: a range of days into the lake, resumable, in parallel, by whatever workers."""

from __future__ import annotations

import contextvars
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from tapelab.budget import Budget
from tapelab.errors import MalformedAnswer, NotFound, SettingError, SourceError, UsageError
from tapelab.history.bulk import Bulk
from tapelab.history.gather import bring
from tapelab.market import clock, ranges, sessions
from tapelab.market.ranges import Moment
from tapelab.massive.flatfiles import FlatFiles, Listed
from tapelab.massive.wire.catalogue import kind_named
from tapelab.settings import TABLE, Secret, Settings, current, use
from tapelab.store.lake import Lake
from tapelab.store.lake.arriving import DayFile

WORKERS = 8  # files on their way at a time, where no executor is given
SMALL = 2 << 20  # bytes; of files that are smaller on average
SMALL_WORKERS = 32  # so many are on their way, for most of their time is waiting

_log = logging.getLogger("tapelab")


@dataclass(frozen=True)
class SyncReport:
    """What a sync did. `str()` is one line, and one more for each day that was strange.

    `brought`: days that came now, of which the vendor had `replaced` some; `held`: days that were here;
    `missing`: sessions without a file at the vendor; `notes`: what was strange in which file, and what was
    done about it; `months`: month files written. `seconds` is how long it took.
    """

    product: str
    first: date
    last: date
    brought: tuple[date, ...] = ()
    replaced: tuple[date, ...] = ()
    held: tuple[date, ...] = ()
    missing: tuple[date, ...] = ()
    rows: int = 0
    bytes: int = 0
    months: int = 0
    seconds: float = 0.0
    notes: Mapping[date, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        size = f"{self.bytes / 1e6:,.1f} MB, {self.rows:,} rows"
        came = f"{len(self.brought)} files, {size} in {self.seconds:.1f} s"
        parts = [came, f"{len(self.held)} were here"]
        parts += [f"{len(self.replaced)} replaced by the vendor"] if self.replaced else []
        parts += [f"{len(self.missing)} sessions have no file"] if self.missing else []
        lines = [f"{self.product} {self.first} to {self.last}: {'; '.join(parts)}."]
        lines += [f"{day}: {note}." for day, notes in sorted(self.notes.items()) for note in notes]
        return "\n".join(lines)


def sync_flat_files(
    product: str, start: Moment, end: Moment, *, executor: Executor | None = None
) -> SyncReport:
    """Bring every daily file of a product from `start` to `end` (days, both included) into the lake.

    Files that are here and that the vendor did not replace cost nothing: one listing tells. A sync that was
    killed goes on where it was; two at once download each file once. The last day comes first, then the first
    day, then all others in parallel: in threads, or spread over `executor` (any `concurrent.futures` one:
    processes started by "spawn", a Dask client's). Its workers must see the same TAPELAB_HOME. Keys never
    travel with the work: each worker reads its own settings, and `worker_environment` is what to start it
    with. A file that is bad does not stop the others; its error is raised at the end.

    Raises `UnknownName` for a product, `BudgetExceeded` before anything is downloaded, `NotInPlan`,
    `NotAuthorized`, `MalformedAnswer` and others of `SourceError`.
    """
    kind = kind_named(product)
    span = ranges.resolve(start, end, kind.market)
    settings, began = current(), clock.monotonic()
    with Bulk() as bulk:
        lake, budget = Lake(settings), Budget(settings)
        files = FlatFiles(settings, budget, came=bulk.came)
        listed = files.list(kind.name, span.first, span.last)
        held = lake.sound_files(kind.name, listed)
        wanted = [file for day, file in listed.items() if day not in held or held[day].etag != file.etag]
        budget.check(file_bytes=sum(file.size for file in wanted))
        bulk.begin(kind.name, wanted)
        known, failed = _Crew(settings, files, lake, bulk, executor).bring(wanted)
        months = lake.compact(kind.name, first=span.first, last=span.last)
    today = clock.today(sessions.zone(kind.market))
    expected = [s.date for s in sessions.between(kind.market, span.first, span.last) if s.date < today]
    sizes = {file.day: file.size for file in wanted}
    report = SyncReport(
        kind.name,
        span.first,
        span.last,
        brought=tuple(sorted(known)),
        replaced=tuple(sorted(known.keys() & held.keys())),
        held=tuple(sorted(listed.keys() - sizes.keys())),
        missing=tuple(day for day in expected if day not in listed),
        rows=sum(file.rows for file in known.values()),
        bytes=sum(sizes[day] for day in known),
        months=len(months),
        seconds=(clock.monotonic() - began) / clock.SECOND,
        notes={day: file.notes for day, file in known.items() if file.notes},
    )
    for line in str(report).splitlines():
        _log.info("%s", line)
    if failed:
        raise _some_failed(failed, report)
    return report


def worker_environment(settings: Settings | None = None) -> dict[str, str]:
    """The environment that gives a worker these settings, for the moment when it is started.

    For example `LocalCluster(env=worker_environment())`. It holds your keys as plain text: hand it to a
    process, never to a log, a file or a task.
    """
    given = settings or current()
    found: dict[str, str] = {}
    for setting in TABLE:
        value = getattr(given, setting.attribute)
        if value is not None and value != "":
            found[setting.name] = value.reveal() if isinstance(value, Secret) else str(value)
    return found


@dataclass(frozen=True)
class _Here:
    """A sync in the process that began it: its workers there use what it has."""

    process: int
    files: FlatFiles
    lake: Lake


_here: dict[str, _Here] = {}


@dataclass(frozen=True)
class _Task:
    """One file to bring, as it travels to a worker: with all settings but the secret ones."""

    sync: str
    listed: Listed
    endpoint: str
    settings: dict[str, Any]


class _Crew:
    """Brings files with the workers there are; the first refusal stops all, a bad file only itself."""

    def __init__(
        self, settings: Settings, files: FlatFiles, lake: Lake, bulk: Bulk, executor: Executor | None
    ) -> None:
        self._open = {s.attribute: getattr(settings, s.attribute) for s in TABLE if not s.secret}
        self._settings = settings
        self._here = _Here(os.getpid(), files, lake)
        self._bulk = bulk
        self._executor = executor
        self._known: dict[date, DayFile] = {}
        self._failed: dict[date, SourceError] = {}

    def bring(self, wanted: Sequence[Listed]) -> tuple[dict[date, DayFile], dict[date, SourceError]]:
        name = uuid.uuid4().hex
        tasks = [_Task(name, listed, self._settings.endpoint, self._open) for listed in wanted]
        ordered = [*tasks[-1:], *tasks[:-1]]
        _here[name] = self._here
        try:
            if self._executor is not None:
                self._spread(ordered, self._given)
            else:
                with ThreadPoolExecutor(_threads(wanted)) as pool:
                    # Threads do not inherit contexts, and the clock lives in one.
                    self._spread(
                        ordered, lambda task: pool.submit(contextvars.copy_context().run, _bring, task)
                    )
        finally:
            del _here[name]
        return self._known, self._failed

    def _given(self, task: _Task) -> Future[DayFile]:
        assert self._executor is not None
        return self._executor.submit(_bring, task)

    def _spread(self, tasks: Sequence[_Task], submit: Callable[[_Task], Future[DayFile]]) -> None:
        """The first two alone, so that a refusal costs two requests, then the rest together."""
        for task in tasks[:2]:
            self._take(submit(task), task)
        running = {submit(task): task for task in tasks[2:]}
        try:
            for done in as_completed(running):
                self._take(done, running[done])
        finally:
            for waiting in running:
                waiting.cancel()

    def _take(self, done: Future[DayFile], task: _Task) -> None:
        try:
            self._known[task.listed.day] = done.result()
        except SourceError as error:
            if not isinstance(error, MalformedAnswer | NotFound) and type(error) is not SourceError:
                raise
            self._failed[task.listed.day] = error
            _log.warning("%s: %s", task.listed.day, error.message)
        self._bulk.done(task.listed)


def _bring(task: _Task) -> DayFile:
    """In a worker: one file into the lake."""
    here = _here.get(task.sync) or _arrive(task)
    if here.process != os.getpid():
        raise UsageError(
            "The workers of this executor are forks of this process, in which connections do not work.",
            remedy='Start them afresh: ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")).',
        )
    bring(task.listed, here.files, here.lake)
    known = here.lake.day_file(task.listed.product, task.listed.day)
    if known is None:
        raise NotFound(f"{task.listed.key} was deleted while it was being brought.", remedy="Try again.")
    return known


def _arrive(task: _Task) -> _Here:
    """In another process: the settings that came along, and the keys of this very process."""
    settings = Settings.load(**task.settings)
    if settings.endpoint != task.endpoint or not (
        settings.s3_access_key_id and settings.s3_secret_access_key
    ):
        raise SettingError(
            "A worker has no keys, or others than the process that sent it work.",
            remedy="Start workers with the environment that history.sync.worker_environment() gives.",
        )
    with use(settings):
        here = _Here(os.getpid(), FlatFiles(settings, Budget(settings)), Lake(settings))
    _here.clear()
    _here[task.sync] = here
    return here


def _threads(wanted: Sequence[Listed]) -> int:
    return SMALL_WORKERS if sum(listed.size for listed in wanted) < SMALL * len(wanted) else WORKERS


def _some_failed(failed: Mapping[date, SourceError], report: SyncReport) -> SourceError:
    day, first = min(failed.items())
    more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    return type(first)(
        f"{first.message.rstrip('.')}{more}. The other {len(report.brought)} files are in the lake.",
        remedy=first.remedy,
        **{**first.facts, "day": str(day), "days": [str(each) for each in sorted(failed)]},
    )
