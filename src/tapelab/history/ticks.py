"""`fetch_trades` and `fetch_quotes`: ticks as a table, by REST or from the day's flat file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.errors import Damaged, NoData, UnknownName, UnknownSymbol, UsageError
from tapelab.history.gather import bring
from tapelab.history.plan import Doors, FetchPlan, RestCall, Route, final_at, plan, usable, wants_listing
from tapelab.history.progress import Progress
from tapelab.history.request import METHODS, Method
from tapelab.history.routes import Routes
from tapelab.market import clock, ranges, sessions, tables
from tapelab.market import symbols as names_of
from tapelab.market.ranges import Moment, Range
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market, Symbol
from tapelab.market.tables import Frame
from tapelab.massive.flatfiles import Listed
from tapelab.settings import Settings, current
from tapelab.store.lake import Held
from tapelab.store.ticks import About, Kind, Stretch, TickStore, between, missing, stretch

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from tapelab.store.dataset import Dataset

PART_ROWS = 500_000  # ticks that a kill may lose of a long answer
NEAREST = 3  # names suggested for one that is not known

Symbols = str | Symbol | Sequence[str]
Key = tuple[str, date]


@dataclass(frozen=True)
class TickRequest:
    """Trades or quotes of some symbols over a range, and how to get them."""

    symbols: tuple[Symbol, ...]
    range: Range
    base: Kind
    method: Method = "auto"
    fallback: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(symbol.text for symbol in self.symbols)

    @property
    def market(self) -> Market:
        return self.range.market

    @property
    def product(self) -> str | None:
        """The flat files that hold these ticks; None where there are none that we read."""
        return f"us_stocks_sip/{self.base}_v1" if self.market is Market.STOCKS else None

    def window(self, session: Session) -> tuple[int, int]:
        """The part of a session's calendar day that was asked for: a file holds the whole day."""
        following = date.fromordinal(session.date.toordinal() + 1)
        begin = sessions.day_start(self.market, session.date)
        end = sessions.day_start(self.market, following)
        return max(begin, self.range.start), min(end, self.range.end)


@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["pandas"] = ...,
    fallback: bool = ...,
) -> pd.DataFrame: ...
@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["polars"],
    fallback: bool = ...,
) -> pl.DataFrame: ...
@overload
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["arrow"],
    fallback: bool = ...,
) -> pa.Table: ...
def fetch_trades(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> Any:
    """Every trade of one or more symbols over a range of days, complete or not at all.

    `start`, `end`: a date (whole exchange days, both included) or a datetime (an instant, end excluded).
    `method`: `"auto"` and `"cheapest"` take what is cheaper, pages of REST or the files of whole days;
    `"rest"`, `"flat_file"`. A route that fails falls back to the other unless `fallback=False`.

    Columns: `ts_event` (the SIP's clock, UTC, exact to the nanosecond), `ts_recv` (null: nobody was there),
    `arrival` (the row's number), `symbol`, `price`, `size`, `exchange`, `conditions`, `sequence`, `id`,
    `tape`, `correction`, `ts_participant`, `trf_id`, `ts_trf`; sorted by `ts_event`, ties by symbol and then
    as the vendor has them. Nothing is adjusted. Cancelled trades are in it, marked by `correction`.

    Raises `UsageError`, `SettingError`, `SourceError`, `BudgetExceeded`, `NoData` or `Damaged`.
    """
    return _fetch("trades", symbols, start, end, method, frame, fallback)


@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["pandas"] = ...,
    fallback: bool = ...,
) -> pd.DataFrame: ...
@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["polars"],
    fallback: bool = ...,
) -> pl.DataFrame: ...
@overload
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = ...,
    frame: Literal["arrow"],
    fallback: bool = ...,
) -> pa.Table: ...
def fetch_quotes(
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    frame: Frame = "pandas",
    fallback: bool = True,
) -> Any:
    """Every quote (NBBO) of one or more symbols over a range of days, complete or not at all.

    Arguments, order and errors as in `fetch_trades`. Columns: `ts_event`, `ts_recv`, `arrival`, `symbol`,
    `bid`, `ask` (null: that side is empty), `bid_size`, `ask_size` (as the vendor has them: shares or lots),
    `bid_exchange`, `ask_exchange`, `sequence`, `conditions`, `indicators`, `tape`, `ts_participant` and
    `ts_trf`.
    """
    return _fetch("quotes", symbols, start, end, method, frame, fallback)


def dataset_of_ticks(
    name: str,
    symbols: Symbols,
    start: Moment,
    end: Moment,
    *,
    method: Method = "auto",
    fallback: bool = True,
) -> Dataset:
    """Trades and quotes of a range as a dataset that strategies replay in order of the exchange's clock.

    Its `clock` is `"event"`: nobody received these ticks. Raises what `fetch_trades` raises, and `UsageError`
    where the name is taken.
    """
    from tapelab.store import catalogue

    found = {
        kind: _fetch(kind, symbols, start, end, method, "arrow", fallback) for kind in ("trades", "quotes")
    }
    known = [tables.facts(table) for table in found.values()]
    routes = {route for facts in known for route in facts["routes"]}
    return catalogue.from_tables(
        name,
        trades=found["trades"],
        quotes=found["quotes"],
        source="flat_file" if routes == {"flat_file"} else "rest" if routes == {"rest"} else "history",
        provenance={"simulated": any(facts["simulated"] for facts in known)},
    )


def _fetch(
    kind: Kind, symbols: Symbols, start: Moment, end: Moment, method: Method, frame: Frame, fallback: bool
) -> Any:
    if frame not in ("pandas", "polars", "arrow"):
        raise UsageError(
            f"There is no frame {frame!r}.", remedy="Use 'pandas', 'polars' or 'arrow'.", frame=frame
        )
    if method not in METHODS:
        raise UnknownName.among("method", method, METHODS)
    asked = tuple(names_of.parse_all(symbols if isinstance(symbols, str | Symbol) else list(symbols)))
    request = TickRequest(asked, ranges.resolve(start, end, asked[0].market), kind, method, fallback)
    with Progress() as progress, TickGatherer(request, current(), progress) as gatherer:
        table = gatherer.gather()
    return tables.to_frame(table, frame)


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
                path = self.lake.day_path(request.product, day)
                yield _in_file(path, request.names, request.base, start, end)
                continue
            for name in request.names:
                yield self.store.read(request.base, self._usable(name, session, now), start, end)

    def _silent(self, table: pa.Table) -> list[str]:
        """A word on symbols without a tick; an error where that can only be a wrong name."""
        request = self.request
        spoke = set(pc.unique(table["symbol"]).to_pylist())
        silent = [name for name in request.names if name not in spoke]
        known = self._names() if silent else []
        span = f"from {clock.iso(request.range.start)} to {clock.iso(request.range.end)}"
        strange = [name for name in silent if known and name not in known]
        if strange or (silent and spoke and self._whole_session()):
            name = (strange or silent)[0]
            near = get_close_matches(name, known, n=NEAREST)
            remedy = f"Did you mean {', '.join(near)}?" if near else "Check its spelling; case matters."
            raise UnknownSymbol(f"{name} has no {request.base} {span}.", remedy=remedy, symbols=silent)
        if not spoke:
            raise NoData(
                f"There are no {request.base} of {', '.join(request.names)} {span}.",
                remedy="Check the symbols' spelling and the dates.",
                symbols=list(request.names),
            )
        return [f"No {request.base} of {', '.join(silent)} {span}"] if silent else []

    def _whole_session(self) -> bool:
        """Whether the range holds all regular hours of some session."""
        return any(
            start <= session.open and session.close <= end
            for session in self.sessions.values()
            for start, end in [self.request.window(session)]
        )

    def _names(self) -> list[str]:
        """Every symbol of a day's file that is here."""
        for day in reversed(self.sessions):
            if self.request.product and self.lake.day_file(self.request.product, day) is not None:
                return self.lake.names(self.request.product, day)
        return []


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


def _in_file(path: Path, names: Sequence[str], kind: Kind, start: int, end: int) -> pa.Table:
    wanted = pc.field("symbol").isin(list(names)) & stretch(start, end)
    try:
        found = pq.read_table(path, filters=wanted, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as cause:
        raise Damaged(
            f"{path} is not what was written.",
            remedy="Delete it; the next call fetches it again.",
            path=str(path),
        ) from cause
    return tables.conform(found.replace_schema_metadata(None), tables.SCHEMAS[kind])


def _in_order(table: pa.Table) -> pa.Table:
    """By the exchange's clock, ties by symbol, then as they came; `arrival` counts them."""
    stamps = table["ts_event"].to_numpy()
    symbols = pc.rank(table["symbol"], tiebreaker="dense").to_numpy()
    table = table.take(pa.array(np.lexsort((symbols, stamps))))
    index = table.column_names.index("arrival")
    arrival = pa.array(np.arange(len(table), dtype=np.int64))
    return table.set_column(index, table.schema.field(index), arrival)
