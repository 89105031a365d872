"""Obeys a plan for ticks: asks, downloads, keeps what it got, gives the ticks back whole and in order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import NoData, UnknownSymbol
from tapelab.history import names
from tapelab.history.fetchplan import FetchPlan, RestCall, Route
from tapelab.history.final import final_at, usable
from tapelab.history.gather import bring
from tapelab.history.plan import Doors, plan, wants_listing
from tapelab.history.progress import Progress
from tapelab.history.request import TickRequest
from tapelab.history.routes import Routes
from tapelab.market import clock, sessions, tables
from tapelab.market.sessions import Session
from tapelab.massive.flatfiles import Listed
from tapelab.settings import Settings
from tapelab.store.lake import Held
from tapelab.store.lake.ticks import About, Kind, Stretch, TickStore, between, missing, rows_in, stretch

PART_ROWS = 500_000  # ticks that a kill may lose of a long answer

Key = tuple[str, date]


class TickGatherer(Routes):
    """One request for ticks, both routes and what is held."""

    def __init__(self, request: TickRequest, settings: Settings, progress: Progress) -> None:
        super().__init__(settings, progress)
        self.request = request
        self.store = TickStore(settings)
        self.sessions = {session.date: session for session in request.range.sessions()}
        self._fetched: dict[Key, Route] = {}
        self._unkept: list[pa.Table] = []

    def decide(self, doors: Doors) -> tuple[FetchPlan, Doors]:
        """The plan for what is missing now."""
        request, now, left = self.request, clock.now(), self.budget.left()
        held = self._coverage(now)
        if wants_listing(request, held, doors, left, now):
            doors = self.listed(request, doors, needed=True)
        return plan(request, held, doors, left, now), doors

    def gather(self) -> pa.Table:
        """Every tick that was asked for, with facts, or an error: never a part."""
        chosen, lines = self.carry_out(self.request, self.decide, self._obey)
        held = self._coverage(clock.now())
        table = _in_order(tables.concat([*self._read(), *self._unkept], tables.SCHEMAS[self.request.base]))
        lines += self._silent(table)
        tapes = {known.tape for known in held.values()} | (
            {self.rest.tape} if "rest" in self.__dict__ else set()
        )
        now = clock.now()
        return tables.with_facts(
            table,
            source="history",
            kind=self.request.base,
            method=self.request.method,
            route=chosen.route,
            reason=chosen.reason,
            lines=lines,
            routes=dict(sorted(Counter(self._fetched.get(key, "cache") for key in chosen.routes).items())),
            endpoint=self.settings.endpoint,
            simulated=any(tape.startswith("simulated") for tape in tapes),
            tapes=sorted(tapes - {""}),
            quote_size_unit="unknown",
            provisional=[day.isoformat() for day in self.sessions if self._can_change(held, day, now)],
            fetched_at=clock.iso(now),
        )

    def _can_change(self, held: dict[Key, Held], day: date, now: int) -> bool:
        known = [held.get((name, day)) for name in self.request.names]
        return now < final_at(self.sessions[day]) and any(k is None or not k.final for k in known)

    def _coverage(self, now: int) -> dict[Key, Held]:
        """The symbols' sessions of which everything that was asked for is held."""
        found: dict[Key, Held] = {}
        for session in self.sessions.values():
            file = self.lake.day_file(self.request.product, session.date) if self.request.product else None
            for name in self.request.names:
                if file is not None:
                    known = Held("flat_file", file.known_at, True, file.etag, file.tape)
                    found[name, session.date] = known
                    continue
                parts = self._usable(name, session, now)
                if parts and not missing(*self.request.window(session), parts):
                    about = [part.about for part in parts]
                    found[name, session.date] = Held(
                        "rest",
                        min(a.known_at for a in about),
                        all(a.final for a in about),
                        tape=about[-1].tape,
                    )
        return found

    def _usable(self, name: str, session: Session, now: int) -> list[Stretch]:
        held = self.store.stretches(self.request.base, name, session.date)
        return [
            part for part in held if usable(Held("rest", part.about.known_at, part.about.final), session, now)
        ]

    def _obey(self, chosen: FetchPlan) -> None:
        self._unkept.clear()
        self.obey(
            chosen,
            [
                ("flat_file", [partial(self._bring, listed) for listed in chosen.downloads]),
                ("rest", [partial(self._ask, call, chosen) for call in chosen.calls]),
            ],
        )

    def _bring(self, listed: Listed) -> None:
        bring(listed, self.files, self.lake)
        for name in self.request.names:
            self._fetched[name, listed.day] = "flat_file"

    def _ask(self, call: RestCall, chosen: FetchPlan) -> None:
        """A symbol's ticks, kept as they come; what came meanwhile is not asked for again."""
        name, kind = call.symbol, self.request.base
        mine = [
            session
            for day, session in self.sessions.items()
            if call.first <= day <= call.last and chosen.routes[name, day] == "rest"
        ]
        with self.asking(kind, name, call.first):
            asked_at = clock.now()
            gaps = [
                _Gap(session, *gap)
                for session in mine
                for gap in missing(*self.request.window(session), self._usable(name, session, asked_at))
            ]
            for run in _runs(gaps, self.request):
                answer = _Answer(self.store, kind, name, run, asked_at)
                ask = self.rest.trades if kind == "trades" else self.rest.quotes
                try:
                    for page in ask(name, run[0].start, run[-1].end):
                        answer.add(page, self.rest.tape)
                except BaseException:
                    answer.keep_whole(self.rest.tape)
                    raise
                answer.keep_all(self.rest.tape)
                self._unkept += answer.unkept
        self._fetched.update(((name, session.date), "rest") for session in mine)

    def _read(self) -> Iterator[pa.Table]:
        now, request = clock.now(), self.request
        for day, session in self.sessions.items():
            start, end = request.window(session)
            if request.product and self.lake.day_file(request.product, day) is not None:
                wanted = pc.field("symbol").isin(list(request.names)) & stretch(start, end)
                yield rows_in(self.lake.day_path(request.product, day), request.base, wanted)
                continue
            for name in request.names:
                yield self.store.read(request.base, self._usable(name, session, now), start, end)

    def _silent(self, table: pa.Table) -> list[str]:
        """A word on symbols without a tick; an error where that can only be a wrong name."""
        request = self.request
        spoke = set(pc.unique(table["symbol"]).to_pylist())
        silent = [name for name in request.names if name not in spoke]
        known = names.in_lake(self.lake, request.product, list(self.sessions)) if silent else []
        span = f"from {clock.iso(request.range.start)} to {clock.iso(request.range.end)}"
        strange = [name for name in silent if known and name not in known]
        if strange or (silent and spoke and self._whole_session()):
            name = (strange or silent)[0]
            near = self._near(name, known)
            remedy = f"Did you mean {', '.join(near)}?" if near else "Check its spelling; case matters."
            raise UnknownSymbol(f"{name} has no {request.base} {span}.", remedy=remedy, symbols=silent)
        if not spoke:
            near = [] if known else self._near(silent[0], [])
            meant = f"Did you mean {', '.join(near)}? " if near else ""
            raise NoData(
                f"There are no {request.base} of {', '.join(request.names)} {span}.",
                remedy=f"{meant}Check the symbols' spelling and the dates.",
                symbols=list(request.names),
            )
        return [f"No {request.base} of {', '.join(silent)} {span}"] if silent else []

    def _near(self, name: str, known: list[str]) -> list[str]:
        known = known or names.asked(self, self.request.market, name)
        return [] if name in known else names.nearest(name, known)

    def _whole_session(self) -> bool:
        """Whether the range holds all regular hours of some session."""
        return any(
            start <= session.open and session.close <= end
            for session in self.sessions.values()
            for start, end in [self.request.window(session)]
        )


@dataclass
class _Gap:
    """A stretch of a session that is not held."""

    session: Session
    start: int
    end: int


class _Answer:
    """One symbol's pages on their way into the store."""

    def __init__(self, store: TickStore, kind: Kind, name: str, gaps: list[_Gap], asked_at: int) -> None:
        self.unkept: list[pa.Table] = []
        self._store = store
        self._kind = kind
        self._name = name
        self._gaps = gaps
        self._asked_at = asked_at
        self._pages: list[pa.Table] = []
        self._rows = 0
        self._spoke = False

    def add(self, page: pa.Table, tape: str) -> None:
        """Take a page; a long answer is kept in parts."""
        self._pages.append(page)
        self._rows += len(page)
        self._spoke = self._spoke or len(page) > 0
        if self._rows >= PART_ROWS:
            self.keep_whole(tape)

    def keep_whole(self, tape: str) -> None:
        """Keep what came before the last stamp: of that one there may be more to come."""
        table = tables.concat(self._pages, tables.SCHEMAS[self._kind])
        if len(table):
            self._keep(table, table["ts_event"][-1].as_py(), tape)

    def keep_all(self, tape: str) -> None:
        """Keep everything, the answer being whole."""
        self._keep(tables.concat(self._pages, tables.SCHEMAS[self._kind]), self._gaps[-1].end, tape)

    def _keep(self, table: pa.Table, until: int, tape: str) -> None:
        while self._gaps and self._gaps[0].start < until:
            gap = self._gaps[0]
            end = min(gap.end, until)
            rows = between(table, gap.start, end)
            final = self._asked_at >= final_at(gap.session)
            # A running session, or silence that may be where the vendor cut the answer to the plan's dates.
            if self._asked_at < gap.session.end or not self._spoke or not (final or len(rows)):
                self.unkept.append(rows)
            else:
                about = About(self._asked_at, final, tape)
                self._store.keep(self._kind, self._name, gap.session.date, rows, gap.start, end, about)
            if end == gap.end:
                self._gaps.pop(0)
            else:
                gap.start = end
        self._pages = [between(table, until, 2**63 - 1)]
        self._rows = len(self._pages[0])


def _runs(gaps: Sequence[_Gap], request: TickRequest) -> list[list[_Gap]]:
    """Gaps that one question covers: from one session's end into the next session's begin."""
    runs: list[list[_Gap]] = []
    for gap in gaps:
        before = runs[-1][-1] if runs else None
        if (
            before is not None
            and before.end == request.window(before.session)[1]
            and gap.start == request.window(gap.session)[0]
            and not sessions.between(
                request.market,
                date.fromordinal(before.session.date.toordinal() + 1),
                date.fromordinal(gap.session.date.toordinal() - 1),
            )
        ):
            runs[-1].append(gap)
        else:
            runs.append([gap])
    return runs


def _in_order(table: pa.Table) -> pa.Table:
    """By the exchange's clock, ties by symbol, then as they came; `arrival` counts them."""
    stamps = table["ts_event"].to_numpy()
    symbols = pc.rank(table["symbol"], tiebreaker="dense").to_numpy()
    table = table.take(pa.array(np.lexsort((symbols, stamps))))
    index = table.column_names.index("arrival")
    arrival = pa.array(np.arange(len(table), dtype=np.int64))
    return table.set_column(index, table.schema.field(index), arrival)
