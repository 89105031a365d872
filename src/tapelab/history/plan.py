"""Decides where each symbol's bars or ticks of each session come from: cache, REST or flat file. Pure.

The rule: what the cache holds costs nothing and is used first. Of the rest, bars of at most 5 symbols and at
most 7 calendar days come by REST, more by flat files; ticks come by whatever is cheaper. A door that is
closed, a budget that would break, and days that have no file yet turn the choice; each is said in one line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import groupby

from tapelab.budget import Left
from tapelab.errors import BudgetExceeded, NotFound, SettingError, TapelabError
from tapelab.history.fetchplan import NAMES, FetchPlan, ReferenceCall, RestCall, Route, counted
from tapelab.history.final import usable
from tapelab.history.request import Asked
from tapelab.market import clock
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.sessions import Session
from tapelab.massive.flatfiles import Listed
from tapelab.settings import NO_KEYS
from tapelab.store.lake import Coverage

SMALL_SYMBOLS = 5
SMALL_DAYS = 7

_BAR: dict[str, int] = {"1s": SECOND, "1m": MINUTE}  # one of these in each; of longer ones one a session
# What a session of a busy symbol has, for a guess; the most liquid have several times that.
_TICKS = {"trades": 150_000, "quotes": 1_000_000}

# The vendor's lists of the whole market, in pages of 1,000: about 1,000 splits and 40,000 dividends a year.
SPLITS, DIVIDENDS = "splits", "dividends"
_LIST_PAGES_A_YEAR = {SPLITS: 1.5, DIVIDENDS: 50.0}
MARKET = "*"

WAYS: tuple[Route, ...] = ("rest", "flat_file")


@dataclass(frozen=True)
class Doors:
    """What the routes offer now: the files listed (None: nobody looked), and why a route is shut."""

    files: Mapping[date, Listed] | None = None
    files_closed: str = ""
    rest_closed: str = ""


def wants_listing(
    request: Asked,
    coverage: Coverage,
    doors: Doors,
    left: Left,
    now: int,
    *,
    references: Sequence[str] = (),
) -> bool:
    """Whether the list of flat files has to be looked at to decide."""
    job = _Job(request, coverage, doors, left, now, tuple(references))
    if job.shut("flat_file") or doors.files is not None or not job.missing:
        return False
    likely_rest = request.method == "rest" or (request.method == "auto" and not (job.of_ticks or job.large))
    return not likely_rest or bool(doors.rest_closed or job.by_rest("").broken_budget)


def plan(
    request: Asked,
    coverage: Coverage,
    doors: Doors,
    left: Left,
    now: int,
    *,
    references: Sequence[str] = (),
) -> FetchPlan:
    """Decide. `coverage`: what the lake holds; `references`: questions that have to be asked, `splits AAPL`.

    Every symbol on every session gets exactly one route. Raises `BudgetExceeded` when no route fits, with
    what is needed and when it resets, `SettingError` when no route is open, `NotFound` when a day has no file
    yet and REST is shut.
    """
    job = _Job(request, coverage, doors, left, now, tuple(references))
    open_ = [way for way in WAYS if not job.shut(way)]
    if job.missing and not open_:
        raise SettingError(
            f"No route is open: {doors.rest_closed} and {job.shut('flat_file')}.",
            remedy=f"Set MASSIVE_API_KEY or the flat-file keys. {NO_KEYS}",
        )
    if references and doors.rest_closed:
        raise SettingError(
            f"Splits and dividends come by REST, and {doors.rest_closed}.",
            remedy=f'Take raw prices with adjust="none", or set MASSIVE_API_KEY. {NO_KEYS}',
        )
    if not job.missing:
        return job.from_cache()
    wanted, title = job.wanted()
    chosen = job.by(wanted, title) if wanted in open_ else None
    other: Route = "flat_file" if wanted == "rest" else "rest"
    if chosen is None:
        why = job.shut(wanted)
        if request.method in ("rest", "flat_file") and not request.fallback:
            no_files = wanted == "flat_file" and request.product is None
            raise SettingError(
                f"{NAMES[wanted]} cannot be used: {why}.",
                remedy='Use method="rest".'
                if no_files
                else "`tapelab doctor` shows what is set; fallback=True takes the other route.",
            )
        return _affordable(job.by(other, _turned(request, other, f"{why}; {job.size}")))
    rival = job.by(other, "") if other in open_ and (other == "rest" or doors.files is not None) else None
    if why := chosen.broken_budget:
        may_turn = request.method == "auto" or request.fallback
        if rival is not None and not rival.broken_budget and may_turn:
            return job.by(other, _turned(request, other, why))
        raise _too_dear(chosen, rival)
    if rival is None or rival.broken_budget or rival.cost >= chosen.cost:
        return chosen
    return replace(chosen, cheapest=replace(rival, reason=f"{NAMES[other]} ({rival.amount})"))


class _Job:
    """One request beside what is there, and the ways of getting what is missing."""

    def __init__(
        self,
        request: Asked,
        coverage: Coverage,
        doors: Doors,
        left: Left,
        now: int,
        references: tuple[str, ...],
    ) -> None:
        self.request = request
        self.coverage = coverage
        self.doors = doors
        self.left = left
        self.references = _shortest(references, (now - request.range.start) / clock.DAY / 365)
        self.sessions = request.range.sessions()
        self.rows = {session.date: self._rows(session) for session in self.sessions}
        self.missing = {
            (name, session.date)
            for session in self.sessions
            for name in request.names
            if not usable(coverage.get((name, session.date)), session, now)
        }

    @property
    def days(self) -> list[date]:
        """The sessions that lack something, oldest first."""
        return sorted({day for _, day in self.missing})

    @property
    def symbols(self) -> list[str]:
        lacking = {name for name, _ in self.missing}
        return [name for name in self.request.names if name in lacking]

    @property
    def calendar_days(self) -> int:
        """Calendar days touched by what is missing; weekends at the request's own ends count as touched."""
        days, all_days = self.days, [session.date for session in self.sessions]
        first = self.request.range.first if days[0] == all_days[0] else days[0]
        last = self.request.range.last if days[-1] == all_days[-1] else days[-1]
        return (last - first).days + 1

    @property
    def of_ticks(self) -> bool:
        return self.request.base in _TICKS

    @property
    def large(self) -> bool:
        return len(self.symbols) > SMALL_SYMBOLS or self.calendar_days > SMALL_DAYS

    @property
    def size(self) -> str:
        what = f"{counted(len(self.symbols), 'symbol')}, {counted(self.calendar_days, 'day')}"
        return f"{'large' if self.large else 'small'} query: {what}"

    def shut(self, way: str) -> str:
        """Why a route cannot be used; empty if it can."""
        if way == "rest":
            return self.doors.rest_closed
        if self.request.product is None:
            what = self.request.base if self.of_ticks else f"{self.request.base} bars"
            return f"there are no flat files of {what} of {self.request.market}"
        return self.doors.files_closed

    def wanted(self) -> tuple[Route, str]:
        """The route that the rule or the user asks for, and the line that says so."""
        method = self.request.method
        if method == "cheapest" or (method == "auto" and self.of_ticks):
            open_ = [way for way in WAYS if not self.shut(way)]
            plans = [self.by(way, "") for way in [way for way in open_ if self._whole(way)] or open_]
            best = min(plans, key=lambda p: (bool(p.broken_budget), p.cost))
            if method == "cheapest":
                return best.route, f"Cheapest: {NAMES[best.route]} ({best.amount})"
            return best.route, f"Auto-selected {NAMES[best.route]} (cheaper: {best.amount})"
        if method == "auto":
            way: Route = "flat_file" if self.large else "rest"
            return way, f"Auto-selected {NAMES[way]} ({self.size})"
        asked: Route = "rest" if method == "rest" else "flat_file"
        return asked, f"Asked for {NAMES[asked]} ({self.size})"

    def _whole(self, way: Route) -> bool:
        """Whether a route needs no other: a day without a file (yet) comes by REST."""
        listed = self.doors.files or {}
        return way == "rest" or not self.doors.rest_closed or all(day in listed for day in self.days)

    def by(self, way: str, title: str) -> FetchPlan:
        return self.by_rest(title) if way == "rest" else self.by_files(title)

    def from_cache(self) -> FetchPlan:
        what = f"{counted(len(self.request.names), 'symbol')}, {counted(len(self.sessions), 'session')}"
        title = f"Used the cache ({what}, nothing to fetch)"
        found = self._plan("cache", title, self.missing, set())
        if found.broken_budget:
            raise _too_dear(found, None)
        return found

    def by_rest(self, title: str) -> FetchPlan:
        return self._plan("rest", title, self.missing, set())

    def by_files(self, title: str) -> FetchPlan:
        """Flat files for the days that have one, REST for those that have none yet."""
        listed = self.doors.files or {}
        later = {(name, day) for name, day in self.missing if day not in listed}
        if later and self.doors.rest_closed:
            day = min(day for _, day in later)
            raise NotFound(
                f"{self.request.product} has no file for {day} (yet), and {self.doors.rest_closed}.",
                remedy="A day's file appears about 11:00 New York on the day after.",
                day=str(day),
            )
        days = {day for _, day in self.missing} & set(listed)
        replaced = {
            day
            for (_, day), held in self.coverage.items()
            if held.origin == "flat_file" and day in listed and listed[day].etag != held.etag
        }
        return self._plan("flat_file", title, later, days | replaced, replaced=replaced)

    def _plan(
        self,
        way: Route,
        title: str,
        by_rest: Iterable[tuple[str, date]],
        from_files: set[date],
        *,
        replaced: Iterable[date] = (),
    ) -> FetchPlan:
        asked = set(by_rest)
        routes: dict[tuple[str, date], Route] = {}
        for name in self.request.names:
            for session in self.sessions:
                key = (name, session.date)
                routes[key] = "rest" if key in asked else "flat_file" if key[1] in from_files else "cache"
        notes = []
        if way == "flat_file" and asked:
            without = sorted({day for _, day in asked})
            notes.append(
                f"By REST, for want of a file (yet): {counted(len(without), 'day')} ({_span(without)})"
            )
        if again := sorted(replaced):
            notes.append(f"The vendor replaced {counted(len(again), 'file')} ({_span(again)}): fetched again")
        listed = self.doors.files or {}
        return FetchPlan(
            request=self.request,
            route=way,
            reason=title,
            routes=routes,
            calls=tuple(call for name in self.symbols for call in self._calls(name, asked)),
            downloads=tuple(listed[day] for day in sorted(from_files)),
            references=self.references,
            left=self.left,
            notes=tuple(notes),
        )

    def _calls(self, name: str, asked: set[tuple[str, date]]) -> list[RestCall]:
        """One call for each stretch of missing sessions; stretches are joined where that costs no page.

        Where calls are free, none is longer than a page, so that the pages come side by side.
        """
        free = self.left.rest_day is None and self.left.rest_minute is None
        calls: list[RestCall] = []
        for day in (session.date for session in self.sessions if (name, session.date) in asked):
            call = self._call(name, day, day)
            if calls:
                joined = self._call(name, calls[-1].first, day)
                if joined.pages <= (1 if free else calls[-1].pages + call.pages):
                    calls[-1] = joined
                    continue
            calls.append(call)
        return calls

    def _call(self, name: str, first: date, last: date) -> RestCall:
        return RestCall(name, first, last, sum(n for day, n in self.rows.items() if first <= day <= last))

    def _rows(self, session: Session) -> int:
        """Rows of one symbol that the vendor reads for a session: the most for bars, a guess for ticks."""
        base = self.request.base
        if base in _BAR:
            return (session.end - session.start) // _BAR[base]
        if base not in _TICKS:
            return 1
        low, high = max(session.start, self.request.range.start), min(session.end, self.request.range.end)
        return round(_TICKS[base] * min(max(high - low, 0) / max(session.close - session.open, 1), 1.0))


def _shortest(questions: Sequence[str], years: float) -> tuple[ReferenceCall, ...]:
    """A question a symbol, or the market's list since the range began where that has fewer pages."""
    found: list[ReferenceCall] = []
    for kind, same in groupby(sorted(questions, key=_kind), key=_kind):
        of_kind = list(same)
        pages = 1 + math.ceil(_LIST_PAGES_A_YEAR[kind] * years) if kind in _LIST_PAGES_A_YEAR else 0
        if 0 < pages < len(of_kind):
            found.append(ReferenceCall(f"{kind} {MARKET}", pages))
        else:
            found += map(ReferenceCall, of_kind)
    return tuple(found)


def _kind(question: str) -> str:
    return question.partition(" ")[0]


def _turned(request: Asked, way: Route, why: str) -> str:
    said = "Auto-selected" if request.method == "auto" else "Turned to"
    return f"{said} {NAMES[way]} ({why})"


def _affordable(found: FetchPlan) -> FetchPlan:
    if found.broken_budget:
        raise _too_dear(found, None)
    return found


def _too_dear(chosen: FetchPlan, rival: FetchPlan | None) -> TapelabError:
    """Says what is needed, when the budget is whole again, and the cheaper plan, before anything is sent."""
    by_rest = "REST" in chosen.broken_budget
    resets = chosen.left.day_resets if by_rest else chosen.left.month_resets
    setting = "TAPELAB_REST_CALLS_PER_DAY" if by_rest else "TAPELAB_FLAT_FILE_GB_PER_MONTH"
    remedy = f"The budget resets at {clock.iso(resets)}; {setting} changes it."
    if rival is not None and not rival.broken_budget:
        remedy += f' method="{rival.route}" would fit.'
    elif chosen.references:
        remedy += ' adjust="none" saves the calls for splits and dividends.'
    return BudgetExceeded(
        f"This would break your budget: {chosen.broken_budget}.",
        remedy=remedy,
        requests=chosen.requests,
        bytes=chosen.bytes,
    )


def _span(days: Sequence[date]) -> str:
    return str(days[0]) if len(days) == 1 else f"{days[0]} to {days[-1]}"
