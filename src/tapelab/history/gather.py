"""Obeys a plan: asks, downloads, keeps what it got in the lake, and gives the raw bars back whole."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property, partial
from types import TracebackType
from typing import Self, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.budget import Budget
from tapelab.errors import BudgetExceeded, Damaged, MalformedAnswer, SourceError, StoreError, TapelabError
from tapelab.history.plan import (
    NAMES,
    Doors,
    FetchPlan,
    RestCall,
    Route,
    final_at,
    keepable,
    plan,
    wants_listing,
)
from tapelab.history.progress import Progress
from tapelab.history.request import Request
from tapelab.market import clock, sessions, tables
from tapelab.market.adjust import Split
from tapelab.massive.flatfiles import FlatFiles, Listed
from tapelab.massive.rest import RestClient
from tapelab.settings import Settings
from tapelab.store.lake import DayFile, Lake, Splits

WORKERS = 8  # downloads or questions in flight

Key = tuple[str, date]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Gathered:
    """The raw bars of every symbol and session that was asked for, and how each was got."""

    bars: pa.Table
    plan: FetchPlan
    lines: tuple[str, ...]
    routes: dict[Key, Route]
    provisional: tuple[date, ...]
    tapes: frozenset[str]


class RouteFailed(Exception):
    """A route gave up in the middle; the other may still do."""

    def __init__(self, route: Route, error: SourceError | BudgetExceeded) -> None:
        super().__init__(route)
        self.route = route
        self.error = error
        self.why = f"{NAMES[route]} failed: {error.message.rstrip('.')}"


class Gatherer:
    """One request, both routes and the lake; each route is opened when it is first used."""

    def __init__(self, request: Request, settings: Settings, progress: Progress) -> None:
        self.request = request
        self.settings = settings
        self.progress = progress
        self.budget = Budget(settings, on_wait=progress.wait)
        self.lake = Lake(settings)
        self.sessions = {session.date: session for session in request.range.sessions()}
        self._fetched: dict[Key, Route] = {}
        self._answers: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "rest" in self.__dict__:
            self.rest.close()

    @cached_property
    def rest(self) -> RestClient:
        return RestClient(self.settings, self.budget, on_wait=self.progress.wait)

    @cached_property
    def files(self) -> FlatFiles:
        return FlatFiles(self.settings, self.budget)

    def doors(self) -> Doors:
        keys = self.settings.s3_access_key_id and self.settings.s3_secret_access_key
        return Doors(
            files_closed="" if keys else "no flat-file keys are set",
            rest_closed="" if self.settings.api_key else "no API key is set",
        )

    def decide(self, doors: Doors, *, look: bool = False) -> tuple[FetchPlan, Doors]:
        """The plan for what is missing now. `look`: list the flat files even if the choice needs none."""
        request, now, left = self.request, clock.now(), self.budget.left()
        held = self.lake.coverage(request.names, list(self.sessions), request.base, product=request.product)
        references = self._stale_references()
        needed = wants_listing(request, held, doors, left, now, references=references)
        if request.product is not None and (needed or (look and not doors.files_closed)):
            doors = self._listed(doors, request.product, needed=needed)
        return plan(request, held, doors, left, now, references=references), doors

    def gather(self) -> Gathered:
        """Everything that was asked for, or an error: never a part.

        A route that fails is shut, and what is still missing is planned again.
        """
        doors = self.doors()
        lines: list[str] = []
        failures: list[RouteFailed] = []
        while True:
            try:
                chosen, doors = self.decide(doors)
            except TapelabError:
                if len(failures) == 1:
                    raise failures[0].error from failures[0].error.__cause__
                if failures:
                    raise _both_failed(failures) from failures[0].error
                raise
            if failures:
                fell_back = f"Fell back to {NAMES[chosen.route]} ({failures[-1].why})"
                chosen = replace(chosen, reason=fell_back)
            for line in chosen.lines:
                lines.append(line)
                self.progress.line(line)
            try:
                self._obey(chosen)
            except RouteFailed as failure:
                if not self.request.fallback:
                    raise failure.error from failure.error.__cause__
                failures.append(failure)
                if failure.route == "rest":
                    doors = replace(doors, rest_closed=failure.why)
                else:
                    doors = replace(doors, files_closed=failure.why)
            else:
                return self._whole(chosen, lines)

    def splits(self) -> list[Split]:
        """The splits of every symbol that have taken effect, as known today."""
        today = clock.today(sessions.NEW_YORK)
        found = [split for name in self.request.names for split in self._known_splits(name)]
        return [split for split in found if split.execution_date <= today]

    def _known_splits(self, name: str) -> Sequence[Split]:
        known = self.lake.splits(name)
        return known.rows if known else ()

    def _stale_references(self) -> list[str]:
        """Symbols whose splits were not asked for today: a split is announced on any day."""
        if not self.request.needs_splits:
            return []
        today = clock.today(sessions.NEW_YORK)
        held = {name: self.lake.splits(name) for name in self.request.names}
        fresh = {
            name
            for name, known in held.items()
            if known is not None and clock.date_of(known.known_at, sessions.NEW_YORK) == today
        }
        return [name for name in self.request.names if name not in fresh]

    def _listed(self, doors: Doors, product: str, *, needed: bool) -> Doors:
        days = list(self.sessions)
        try:
            return replace(doors, files=self.files.list(product, days[0], days[-1]))
        except SourceError as error:
            if needed and (doors.rest_closed or not self.request.fallback):
                raise
            return replace(doors, files_closed=f"{NAMES['flat_file']} failed: {error.message.rstrip('.')}")

    def _obey(self, chosen: FetchPlan) -> None:
        self._answers.clear()
        self.progress.begin(
            f"{NAMES[chosen.route]}: {' '.join(self.request.names[:3])}",
            len(chosen.references) + len(chosen.downloads) + len(chosen.calls),
        )
        if chosen.references:
            self._ask_references(chosen.references)
        steps: list[tuple[Route, Sequence[Callable[[], None]]]] = [
            ("flat_file", [partial(self._bring, listed) for listed in chosen.downloads]),
            ("rest", [partial(self._ask, call, chosen) for call in chosen.calls]),
        ]
        for route, work in steps:
            try:
                self._in_parallel(work)
            except (SourceError, BudgetExceeded) as error:
                raise RouteFailed(route, error) from error

    def _ask_references(self, names: Sequence[str]) -> None:
        client = self.rest

        def ask(name: str) -> None:
            now = clock.now()
            self.lake.keep_reference(name, Splits(now, tuple(client.splits(name))))

        try:
            self._in_parallel([partial(ask, name) for name in names])
        except SourceError as error:
            remedy = f'{error.remedy} Or take raw prices, which need no splits: adjust="none".'
            raise type(error)(error.message, remedy=remedy, **error.facts) from error

    def _bring(self, listed: Listed) -> None:
        bring(listed, self.files, self.lake)
        for name in self.request.names:
            self._fetched[name, listed.day] = "flat_file"

    def _ask(self, call: RestCall, chosen: FetchPlan) -> None:
        asked_at = clock.now()
        base = self.request.base
        bars = tables.concat(list(self.rest.bars(call.symbol, base, call.first, call.last)), tables.BARS)
        mine = [
            day
            for day in self.sessions
            if chosen.routes[call.symbol, day] == "rest" and call.first <= day <= call.last
        ]
        traded = set(pc.unique(bars["session"]).to_pylist())
        days = {}
        for day in mine:
            final = keepable(self.sessions[day], asked_at, traded)
            if final is not None:
                days[day] = final
        self.lake.keep_rest(call.symbol, base, bars, days, known_at=asked_at, tape=self.rest.tape)
        self._answers.append(bars.filter(pc.is_in(bars["session"], pa.array(mine, pa.date32()))))
        self._fetched.update(((call.symbol, day), "rest") for day in mine)

    def _whole(self, chosen: FetchPlan, lines: Sequence[str]) -> Gathered:
        """The lake's rows, with today's answers in the place of what the lake holds of those days."""
        request, days = self.request, list(self.sessions)
        table, held = self.lake.read(request.names, days, request.base, product=request.product)
        asked = {key for key, route in chosen.routes.items() if route == "rest"}
        gone = [key for key in chosen.routes if key not in asked and key not in held]
        if gone:
            name, day = gone[0]
            raise StoreError(
                f"The lake lost the bars of {name} on {day} while they were being read.",
                remedy="Another process deleted them; call again.",
            )
        if asked:
            table = tables.concat([_without(table, asked), *self._answers], tables.BARS)
            table = table.sort_by([("symbol", "ascending"), ("timestamp", "ascending")])
        kept = {key: held[key] for key in chosen.routes if key not in asked}
        now = clock.now()
        changing = {day for _, day in asked if now < final_at(self.sessions[day])}
        changing |= {day for (_, day), known in kept.items() if not known.final}
        tapes = {known.tape for known in kept.values()} | ({self.rest.tape} if asked else set())
        routes: dict[Key, Route] = {key: self._fetched.get(key, "cache") for key in chosen.routes}
        late = _late_starts(table, asked)
        for line in late:
            self.progress.line(line)
        return Gathered(
            table, chosen, (*lines, *late), routes, tuple(sorted(changing)), frozenset(tapes - {""})
        )

    def _in_parallel(self, work: Sequence[Callable[[], None]]) -> None:
        """The last and the first alone, so that a refusal costs two requests, then the rest together."""
        ordered = [*work[-1:], *work[:-1]]
        for task in ordered[:2]:
            task()
            self.progress.step()
        if len(ordered) <= 2:
            return
        with ThreadPoolExecutor(WORKERS) as pool:
            # Threads do not inherit contexts, and the clock lives in one.
            running = [pool.submit(contextvars.copy_context().run, task) for task in ordered[2:]]
            try:
                for done in as_completed(running):
                    done.result()
                    self.progress.step()
            finally:
                for waiting in running:
                    waiting.cancel()


def bring(listed: Listed, files: FlatFiles, lake: Lake) -> None:
    """One flat file into the lake, once, however many want it; a known ETag is not fetched again."""
    with lake.incoming(listed.product, listed.day) as place:
        try:
            held = lake.day_file(listed.product, listed.day)
        except Damaged:
            held = None
        if held is not None and held.etag == listed.etag:
            return
        asked_at = clock.now()
        files.download(listed, place)
        about = DayFile(
            listed.product, listed.day, listed.etag, listed.size, listed.modified, asked_at, files.tape
        )
        try:
            lake.keep_file(place, about)
        except Damaged as cause:
            raise MalformedAnswer(
                f"The file {listed.key} came damaged: {cause.message}",
                remedy="Try again, or use REST for that day.",
                key=listed.key,
            ) from cause


def _late_starts(bars: pa.Table, asked: set[Key]) -> list[str]:
    """A word on symbols whose bars begin after the first day that REST was asked for."""
    begins = bars.group_by("symbol").aggregate([("session", "min")]).to_pylist()
    late: dict[tuple[date, date], list[str]] = {}
    for row in begins:
        name, first = row["symbol"], row["session_min"]
        before = [day for symbol, day in asked if symbol == name and day < first]
        if before:
            late.setdefault((first, min(before)), []).append(name)
    return [
        f"No bars before {first} (asked from {since}): {', '.join(sorted(names))}. "
        "Not listed then, or outside your plan's history."
        for (first, since), names in sorted(late.items())
    ]


def _without(bars: pa.Table, keys: set[Key]) -> pa.Table:
    """The bars of all other symbols' days."""
    names, days = zip(*sorted(keys), strict=True)
    dropped = pa.table({"symbol": pa.array(names, pa.string()), "session": pa.array(days, pa.date32())})
    return bars.join(dropped, keys=["symbol", "session"], join_type="left anti")


def _both_failed(failures: Sequence[RouteFailed]) -> TapelabError:
    """What the first route said, and after it why the other could not help."""
    first, second = failures[0].error, failures[1]
    return type(first)(first.message, remedy=f"{first.remedy} {second.why}.", **first.facts)
