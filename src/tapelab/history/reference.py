"""What belongs to bars: splits, dividends and who owns the symbol.

Splits and dividends come with the fetch, once a day. Each that can be compared with raw prices around its
date is, and is refused where they disagree. Ticker events are looked at where the budget has room for it, and
never stop a fetch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import BudgetExceeded, MalformedAnswer, SettingError, SourceError
from tapelab.history.final import keepable, usable
from tapelab.history.overrides import NO_OVERRIDES, Overrides, dividends_file, splits_file
from tapelab.market import adjust, clock, sessions, tables
from tapelab.market.adjust import NEAR, Closes, Dividend, Doubt, Payout, Split
from tapelab.market.sessions import Session
from tapelab.store import files
from tapelab.store.lake import sheets

if TYPE_CHECKING:
    from tapelab.history.gather import Gatherer

KEPT_OWNERS = 30  # days after which ticker events of the past are asked for again
MOST_OWNERS = 20  # symbols whose ticker events one fetch asks for; of a universe nothing is claimed
DAY_BARS = "us_stocks_sip/day_aggs_v1"
UNKNOWN = "unknown"


class Owner(msgspec.Struct, frozen=True):
    """Who owns a symbol today, and the symbols that they went by, each from its date on.

    Without a name and changes: the vendor has no events.
    """

    known_at: int
    name: str = ""
    changes: tuple[tuple[date, str], ...] = ()

    def seams(self, symbol: str) -> list[Seam]:
        """The dates on which `symbol` came to this owner, oldest first."""
        found: list[Seam] = []
        earlier, given_up = "", date.min
        for day, ticker in sorted(self.changes):
            if ticker == symbol and earlier != symbol:
                found.append(Seam(given_up, day, earlier))
            elif ticker != symbol and earlier == symbol:
                given_up = day
            earlier = ticker
        return found


class Seam(NamedTuple):
    """A symbol came to its owner on `since`, who was `earlier` before; since `given_up` it was another's."""

    given_up: date
    since: date
    earlier: str


class References:
    """The reference data of what a gatherer has brought; splits and dividends came with it, by its plan.

    Two things are asked for only now, since only now it is known which: closes before dividends, and owners.
    """

    def __init__(self, gatherer: Gatherer) -> None:
        self._gatherer = gatherer
        self._request = gatherer.request
        self._lake = gatherer.lake
        self._home = gatherer.settings.home
        self._overrides = Overrides.load(self._home) if self._request.needs_splits else NO_OVERRIDES
        self._warnings: list[str] = []
        self._facts: dict[str, Any] = {}

    def apply(self, raw: pa.Table) -> pa.Table:
        """Raw bars adjusted as the request wants it.

        Raises `MalformedAnswer` for a split or dividend that the raw prices contradict, and `SourceError` for
        a dividend that cannot be taken out of prices.
        """
        if not self._request.needs_splits or len(raw) == 0:
            return raw
        splits = [split for name in self._request.names for split in self._splits(name)]
        payouts = self._payouts() if self._request.needs_dividends else []
        if not (splits or payouts):
            self._facts["splits"] = []
            return raw
        closes = self._closes_around(raw, splits, payouts)
        theirs = [s for s in splits if s.symbol not in self._overrides.splits]
        paid = [p for p in payouts if p.symbol not in self._overrides.dividends]
        if wrong := adjust.doubts(theirs, paid, closes):
            raise self._refused(wrong)
        self._warnings += adjust.disagreements([*theirs]) + adjust.disagreements([*paid])
        self._facts["splits"] = [
            {
                "symbol": s.symbol,
                "date": s.day.isoformat(),
                "ratio": f"{s.split_to:g}:{s.split_from:g}",
                "seen_in_prices": bool(closes.before(s.symbol, s.day) and closes.on(s.symbol, s.day)),
            }
            for s in splits
        ]
        return adjust.apply(raw, splits, payouts)

    def facts(self, raw: pa.Table) -> dict[str, Any]:
        """What `attrs["tapelab"]` says: the `splits` that count, who a symbol is (`identity`), `warnings`.

        `identity` is `"unknown"` where the vendor has no ticker events or was not asked; of a universe it
        names only what is known.
        """
        if self._request.needs_splits:
            self._look_up_owners()
        names = self._request.names
        identity = dict.fromkeys(names, UNKNOWN) if len(names) <= MOST_OWNERS else {}
        for name in names:
            owner = self._owner(name)
            if owner is None or not owner.changes:
                continue
            identity[name] = owner.name or UNKNOWN
            days = pc.unique(raw.filter(pc.equal(raw["symbol"], name))["session"]).to_pylist()
            for seam in owner.seams(name):
                if any(seam.given_up <= day < seam.since for day in days):
                    self._warnings.append(_warning(name, owner, seam))
        return {**self._facts, "identity": identity, "warnings": list(self._warnings)}

    # Splits and dividends.

    def _splits(self, name: str) -> list[Split]:
        """Those that took effect after the range's first day."""
        known = self._lake.splits(name)
        rows = self._overrides.splits.get(name, known.rows if known else ())
        return [split for split in rows if self._matters(split.day)]

    def _dividends(self, name: str) -> list[Dividend]:
        known = self._lake.dividends(name)
        rows = self._overrides.dividends.get(name, known.rows if known else ())
        return [dividend for dividend in rows if self._matters(dividend.day) and dividend.cash_amount]

    def _matters(self, day: date) -> bool:
        return self._request.range.first < day <= _today()

    def _payouts(self) -> list[Payout]:
        by_name = {name: self._dividends(name) for name in self._request.names}
        for dividends in by_name.values():
            self._refuse_foreign(dividends)
            self._refuse_twins(dividends)
        without = [name for name in by_name if self._lacks_closes(name)]
        self._gatherer.budget.check(rest_calls=len(without))
        try:
            self._gatherer.side_by_side([partial(self._ask_closes, name) for name in without])
        except SourceError as error:
            remedy = f"{error.remedy} Or leave dividends in prices: {_instead('splits')}"
            raise type(error)(error.message, remedy=remedy, **error.facts) from error
        found: list[Payout] = []
        for name, dividends in by_name.items():
            mine = self._payouts_of(name)
            if missing := {d.day for d in dividends} - {p.day for p in mine}:
                raise SourceError(
                    f"{name} paid a dividend on {min(missing)}, and there is no close shortly before it.",
                    remedy=f"Use {_instead('splits')}",
                    symbol=name,
                )
            found += mine
        return found

    def _refuse_foreign(self, dividends: Sequence[Dividend]) -> None:
        for dividend in dividends:
            if dividend.currency.upper() != adjust.CURRENCY:
                raise SourceError(
                    f"{dividend.symbol} has {dividend}, and its price is in {adjust.CURRENCY}.",
                    remedy=f"Write its dividends in {adjust.CURRENCY} to {dividends_file(self._home)}, "
                    f"or use {_instead('splits')}",
                    symbol=dividend.symbol,
                    currency=dividend.currency,
                )

    def _refuse_twins(self, dividends: Sequence[Dividend]) -> None:
        for number, one in enumerate(dividends):
            if one in dividends[number + 1 :] and one.symbol not in self._overrides.dividends:
                raise self._refused([Doubt(one.symbol, "dividends", one.day, f"{one} is listed twice.")])

    def _refused(self, wrong: Sequence[Doubt]) -> MalformedAnswer:
        doubt = wrong[0]
        more = f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""
        path = splits_file(self._home) if doubt.kind == "splits" else dividends_file(self._home)
        return MalformedAnswer(
            f"{doubt.symbol} cannot be adjusted: {doubt.why}{more}",
            remedy=f"Write the right list for {doubt.symbol} to {path}, or use {_instead('none')}",
            symbol=doubt.symbol,
            day=doubt.day.isoformat(),
        )

    # Raw closes around a date.

    def _payouts_of(self, name: str) -> list[Payout]:
        """Those whose close is certain: nothing between it and the ex-date is unknown."""
        dividends = self._dividends(name)
        bars, covered = self._day_bars(name, [dividend.day for dividend in dividends])
        traded = set(bars["session"].to_pylist())
        certain = set()
        for day in {dividend.day for dividend in dividends}:
            for session in reversed(self._sessions(day - NEAR, day - timedelta(days=1))):
                if session.date in traded:
                    certain.add(day)
                if session.date in traded or session.date not in covered:
                    break
        return adjust.payouts((d for d in dividends if d.day in certain), Closes(bars))

    def _lacks_closes(self, name: str) -> bool:
        return len(self._payouts_of(name)) < len({dividend.day for dividend in self._dividends(name)})

    def _ask_closes(self, name: str) -> None:
        days = [dividend.day for dividend in self._dividends(name)]
        self._ask_day_bars(name, min(days) - NEAR, max(days) - timedelta(days=1))

    def _ask_day_bars(self, name: str, first: date, last: date) -> None:
        now, client = clock.now(), self._gatherer.rest
        bars = tables.concat(list(client.bars(name, "1d", first, last)), tables.BARS)
        traded = set(pc.unique(bars["session"]).to_pylist())
        days = {
            session.date: final
            for session in self._sessions(first, last)
            if (final := keepable(session, now, traded)) is not None
        }
        self._lake.keep_rest(name, "1d", bars, days, known_at=now, tape=client.tape)

    def _day_bars(self, name: str, around: Iterable[date]) -> tuple[pa.Table, set[date]]:
        """A symbol's raw day bars near some dates, as far as the lake holds them, and which it holds."""
        near = {s.date: s for day in around for s in self._sessions(day - NEAR, day + NEAR)}
        if not near:
            return tables.BARS.empty_table(), set()
        now = clock.now()
        bars, held = self._lake.read([name], sorted(near), "1d", product=DAY_BARS)
        covered = {day for day, session in near.items() if usable(held.get((name, day)), session, now)}
        return bars.filter(pc.is_in(bars["session"], pa.array(sorted(covered), pa.date32()))), covered

    def _sessions(self, first: date, last: date) -> list[Session]:
        return sessions.between(self._request.market, first, last)

    def _closes_around(self, raw: pa.Table, splits: Sequence[Split], payouts: Sequence[Payout]) -> Closes:
        """From the answer and the lake, which cost nothing; for what looks wrong also by REST."""
        suspects = adjust.suspects(splits)
        dates: dict[str, set[date]] = {}
        events: list[Split | Payout] = [*splits, *filter(adjust.shows, payouts)]
        for event in events:
            dates.setdefault(event.symbol, set()).add(event.day)
        bars = [raw.filter(_near(raw, dates))]
        answered = {session.date for session in self._request.range.sessions()}
        for name, days in dates.items():
            held, covered = self._day_bars(name, days)
            doubtful = [split.day for split in suspects if split.symbol == name]
            if doubtful:
                first, last = min(doubtful) - NEAR, min(max(doubtful) + NEAR, _today())
                if {session.date for session in self._sessions(first, last)} - covered - answered:
                    with contextlib.suppress(SourceError, BudgetExceeded, SettingError):
                        self._ask_day_bars(name, first, last)
                    held, _ = self._day_bars(name, days)
            bars.append(held)
        return Closes(tables.concat(bars, tables.BARS))

    # Who owned the symbol.

    def _look_up_owners(self) -> None:
        """By REST, unless that took the last calls of the day or a wait for the next minute."""
        stale = [name for name in self._request.names if self._owner_is_stale(self._owner(name))]
        left = self._gatherer.budget.left()
        if all(room is None or len(stale) <= room for room in (MOST_OWNERS, left.rest_minute, left.rest_day)):
            self._gatherer.side_by_side([partial(self._ask_owner, name) for name in stale])

    def _owner_is_stale(self, owner: Owner | None) -> bool:
        if owner is None:
            return True
        days = (_today() - clock.date_of(owner.known_at, sessions.NEW_YORK)).days
        return days >= (KEPT_OWNERS if owner.known_at >= self._request.range.end else 1)

    def _ask_owner(self, name: str) -> None:
        now = clock.now()
        try:
            found = self._gatherer.rest.ticker_events(name)
            owner = Owner(now, found.name, tuple((e.date, e.ticker_change.ticker) for e in found.events))
        except (SourceError, BudgetExceeded, SettingError):
            owner = Owner(now)  # nothing is claimed, and it is not asked again today
        path = self._owner_path(name)
        files.make_folder(path.parent)
        files.write_bytes(path, msgspec.json.encode(owner), replace=True)

    def _owner(self, name: str) -> Owner | None:
        try:
            return msgspec.json.decode(self._owner_path(name).read_bytes(), type=Owner)
        except (FileNotFoundError, NotADirectoryError, msgspec.DecodeError):
            return None  # a damaged one is asked for again

    def _owner_path(self, name: str) -> Path:
        return self._lake.folder / "reference" / "ticker_events" / f"{sheets.file_name(name)}.json"


def _near(raw: pa.Table, dates: dict[str, set[date]]) -> pa.ChunkedArray:
    near = {
        d + timedelta(n) for days in dates.values() for d in days for n in range(-NEAR.days, NEAR.days + 1)
    }
    of_names = pc.is_in(raw["symbol"], pa.array(list(dates), pa.string()))
    return pc.and_(of_names, pc.is_in(raw["session"], pa.array(sorted(near), pa.date32())))


def _warning(symbol: str, owner: Owner, seam: Seam) -> str:
    who = f"{owner.name} ({seam.earlier} before)" if seam.earlier else owner.name
    return f"{symbol} is {who} only from {seam.since} on: the rows before are of another owner of the symbol."


def _instead(adjustment: str) -> str:
    return f'adjust="{adjustment}".'


def _today() -> date:
    return clock.today(sessions.NEW_YORK)
