"""Obeys a plan for bars: asks, downloads, keeps what it got in the lake, gives the raw bars back whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import Damaged, MalformedAnswer, SourceError, StoreError
from tapelab.history.fetchplan import FetchPlan, ReferenceCall, RestCall, Route
from tapelab.history.final import final_at, keepable, usable
from tapelab.history.plan import DIVIDENDS, MARKET, SPLITS, Doors, plan, wants_listing
from tapelab.history.progress import Progress
from tapelab.history.request import Request
from tapelab.history.routes import RouteFailed, Routes
from tapelab.market import clock, sessions, tables
from tapelab.market.adjust import Dividend, Split
from tapelab.market.intervals import Base
from tapelab.market.sessions import Session
from tapelab.massive.flatfiles import FlatFiles, Listed
from tapelab.settings import Settings
from tapelab.store.lake import Dividends, Lake, Splits
from tapelab.store.lake.arriving import DayFile
from tapelab.store.lake.references import LakeWithLists, MarketList

Key = tuple[str, date]


@dataclass(frozen=True)
class Gathered:
    """The raw bars of every symbol and session that was asked for, and how each was got."""

    bars: pa.Table
    plan: FetchPlan
    lines: tuple[str, ...]
    routes: dict[Key, Route]
    provisional: tuple[date, ...]
    tapes: frozenset[str]


class Gatherer(Routes):
    """One request for bars, both routes and the lake."""

    lake: LakeWithLists

    def __init__(self, request: Request, settings: Settings, progress: Progress) -> None:
        super().__init__(settings, progress)
        self.request = request
        self.lake = LakeWithLists(settings, request.range.first)
        self.sessions = {session.date: session for session in request.range.sessions()}
        self._fetched: dict[Key, Route] = {}
        self._answered: set[Key] = set()
        self._answers: list[pa.Table] = []

    def decide(self, doors: Doors, *, look: bool = False) -> tuple[FetchPlan, Doors]:
        """The plan for what is missing now. `look`: list the flat files even if the choice needs none."""
        request, now, left = self.request, clock.now(), self.budget.left()
        held = self.lake.coverage(request.names, list(self.sessions), request.base, product=request.product)
        references = self._stale_references()
        needed = wants_listing(request, held, doors, left, now, references=references)
        if needed or (look and not doors.files_closed):
            doors = self.listed(request, doors, needed=needed)
        return plan(request, held, doors, left, now, references=references), doors

    def gather(self) -> Gathered:
        """Everything that was asked for, or an error: never a part.

        What came before an error is kept, so that the same request, made again, asks for the rest only.
        """
        chosen, lines = self.carry_out(self.request, self.decide, self._obey)
        return self._whole(chosen, lines)

    def splits(self) -> list[Split]:
        """The splits of every symbol, as known today; announced ones included."""
        known = [self.lake.splits(name) for name in self.request.names]
        return [split for found in known if found for split in found.rows]

    def dividends(self) -> list[Dividend]:
        """The cash dividends of every symbol, as known today; announced ones included."""
        known = [self.lake.dividends(name) for name in self.request.names]
        return [dividend for found in known if found for dividend in found.rows]

    def _stale_references(self) -> list[str]:
        """What was not asked for today: splits and dividends are announced on any day."""
        today, names = clock.today(sessions.NEW_YORK), self.request.names
        held: dict[str, Splits | Dividends | None] = {}
        if self.request.needs_splits:
            held |= {f"{SPLITS} {name}": self.lake.splits(name) for name in names}
        if self.request.needs_dividends:
            held |= {f"{DIVIDENDS} {name}": self.lake.dividends(name) for name in names}
        return [
            question
            for question, known in held.items()
            if known is None or clock.date_of(known.known_at, sessions.NEW_YORK) != today
        ]

    def _obey(self, chosen: FetchPlan) -> None:
        self._answers.clear()
        self._answered.clear()
        if chosen.references:
            self._ask_references(chosen.references)
        self.obey(
            chosen,
            [
                ("flat_file", [partial(self._bring, listed) for listed in chosen.downloads]),
                ("rest", [partial(self._ask, call, chosen) for call in chosen.calls]),
            ],
        )

    def _ask_references(self, calls: Sequence[ReferenceCall]) -> None:
        self.rest  # noqa: B018 - a missing key is said before any thread begins
        self.progress.begin("REST API: splits and dividends", len(calls))
        try:
            self.side_by_side([partial(self._ask_reference, call) for call in calls])
        except SourceError as error:
            remedy = f'{error.remedy} Or take raw prices, which need no splits: adjust="none".'
            raise type(error)(error.message, remedy=remedy, **error.facts) from error

    def _ask_reference(self, call: ReferenceCall) -> None:
        now, since = clock.now(), self.request.range.first
        kind, name = call.question.split(" ")
        if name == MARKET and kind == SPLITS:
            self.lake.keep_list(MarketList(since, now, splits=tuple(self.rest.splits(since=since))))
        elif name == MARKET:
            self.lake.keep_list(MarketList(since, now, dividends=tuple(self.rest.dividends(since=since))))
        elif kind == SPLITS:
            self.lake.keep_reference(name, Splits(now, tuple(self.rest.splits(name))))
        else:
            self.lake.keep_reference(name, Dividends(now, tuple(self.rest.dividends(name))))

    def _bring(self, listed: Listed) -> None:
        bring(listed, self.files, self.lake)
        for name in self.request.names:
            self._fetched[name, listed.day] = "flat_file"

    def _ask(self, call: RestCall, chosen: FetchPlan) -> None:
        """A symbol's bars, kept as their days become whole; what came meanwhile is not asked for again."""
        name, base = call.symbol, self.request.base
        with self.asking(base, name, call.first):
            asked_at = clock.now()
            planned = [day for day in self.sessions if call.first <= day <= call.last]
            held = self.lake.coverage([name], planned, base, product=None)
            mine = [
                day
                for day in planned
                if chosen.routes[name, day] == "rest"
                and not usable(held.get((name, day)), self.sessions[day], asked_at)
            ]
            if not mine:
                return
            kept = _Kept(self.lake, name, base, {day: self.sessions[day] for day in mine}, asked_at)
            try:
                for page in self.rest.bars(name, base, mine[0], mine[-1]):
                    kept.whole_days(self.rest.tape)
                    kept.pages.append(page)
            except BaseException:
                kept.whole_days(self.rest.tape)
                raise
            self._answers.append(kept.all_days(self.rest.tape))
        self._answered.update((name, day) for day in mine)
        self._fetched.update(((name, day), "rest") for day in mine)

    def _whole(self, chosen: FetchPlan, lines: Sequence[str]) -> Gathered:
        """The lake's rows, with today's answers in the place of what the lake holds of those days."""
        request, days = self.request, list(self.sessions)
        table, held = self.lake.read(request.names, days, request.base, product=request.product)
        asked = self._answered
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


class _Kept:
    """One symbol's answer on its way into the lake."""

    def __init__(self, lake: Lake, name: str, base: Base, days: dict[date, Session], asked_at: int) -> None:
        self.pages: list[pa.Table] = []
        self._lake = lake
        self._name = name
        self._base = base
        self._left = dict(days)
        self._days = list(days)
        self._asked_at = asked_at

    def whole_days(self, tape: str) -> None:
        """Keep the days before the last that the pages reach: nothing more of them can come."""
        bars = self._bars()
        if len(bars):
            reached = bars["session"][-1].as_py()
            self._keep(bars, [day for day in self._left if day < reached], tape)

    def all_days(self, tape: str) -> pa.Table:
        """Keep the rest, the answer being whole, and give all of its bars."""
        bars = self._bars()
        self._keep(bars, list(self._left), tape)
        return bars.filter(pc.is_in(bars["session"], pa.array(self._days, pa.date32())))

    def _bars(self) -> pa.Table:
        return tables.concat(self.pages, tables.BARS)

    def _keep(self, bars: pa.Table, days: Iterable[date], tape: str) -> None:
        traded = set(pc.unique(bars["session"]).to_pylist())
        found: dict[date, bool] = {}
        for day in days:
            final = keepable(self._left.pop(day), self._asked_at, traded)
            if final is not None:
                found[day] = final
        if found:
            self._lake.keep_rest(self._name, self._base, bars, found, known_at=self._asked_at, tape=tape)


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
    if not asked:
        return []
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


__all__ = ["Gathered", "Gatherer", "RouteFailed", "bring"]
