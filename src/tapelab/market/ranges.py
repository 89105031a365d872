"""What `start` and `end` mean: whole exchange days, or instants.

A date, a date-only string or a naive midnight means the whole exchange day, both ends included. Any other
datetime is an instant and the end is excluded. Naive means the exchange's zone, never the machine's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import cached_property
from zoneinfo import ZoneInfo

from tapelab.errors import BadRange, NoData, UsageError
from tapelab.market import clock, sessions
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market

Moment = str | date | datetime


@dataclass(frozen=True)
class Range:
    """From `start` to before `end` (ns UTC), touching the exchange's days `first` to `last`."""

    market: Market
    start: int
    end: int
    first: date
    last: date

    @property
    def calendar_days(self) -> int:
        return (self.last - self.first).days + 1

    def sessions(self) -> list[Session]:
        """The sessions that the range touches, oldest first."""
        return list(self._sessions)

    @cached_property
    def _sessions(self) -> tuple[Session, ...]:
        touched = sessions.between(self.market, self.first, self.last)
        return tuple(s for s in touched if s.start < self.end and s.end > self.start)


def resolve(start: Moment, end: Moment, market: Market = Market.STOCKS) -> Range:
    """The range that a user means. Raises `BadRange` with what is wrong with it.

    An end in the future is cut to now; a start in the future, an end before the start, and a range
    without a single session are refused.
    """
    begins, ends = bounds(start, end, market)
    facts = {"start": str(start), "end": str(end)}
    now = clock.now()
    if begins > now:
        raise BadRange(
            f"The range starts in the future ({start}).",
            remedy=f"It is {clock.iso(now, sessions.zone(market))} at the exchange.",
            **facts,
        )
    found = Range(
        market,
        begins,
        min(ends, now),
        clock.date_of(begins, sessions.zone(market)),
        clock.date_of(min(ends, now) - 1, sessions.zone(market)),
    )
    if not found.sessions():
        raise NoData(
            f"There is no trading session between {start} and {end}.",
            remedy="These are weekends, holidays or closed hours; widen the range.",
            **facts,
        )
    return found


def bounds(start: Moment, end: Moment, market: Market) -> tuple[int, int]:
    """From `start` to before `end` (ns UTC), whenever that is. Raises `BadRange`."""
    zone = ZoneInfo(sessions.zone(market))
    first = _parse(start, "start")
    last = _parse(end, "end")
    begins = _instant(first, zone) if isinstance(first, datetime) else sessions.day_start(market, first)
    if isinstance(last, datetime):
        ends = _instant(last, zone)
    else:
        ends = sessions.day_start(market, last + timedelta(days=1))
    if ends <= begins:
        raise BadRange(
            f"The range ends ({end}) before it starts ({start}).",
            remedy="Swap start and end.",
            start=str(start),
            end=str(end),
        )
    return begins, ends


def _parse(moment: Moment, name: str) -> date | datetime:
    if isinstance(moment, str):
        try:
            moment = date.fromisoformat(moment) if len(moment) <= 10 else datetime.fromisoformat(moment)
        except ValueError as cause:
            raise BadRange(
                f"{name}={moment!r} is not a date.", remedy="Write it as 2026-10-02 or 2026-10-02T09:30."
            ) from cause
    if isinstance(moment, datetime):
        midnight = moment.tzinfo is None and moment.time() == time()
        return moment.date() if midnight else moment
    if not isinstance(moment, date):
        raise UsageError(
            f"{name}={moment!r} is neither a date nor a datetime.", remedy="Write it as '2026-10-02'."
        )
    return moment


def _instant(moment: datetime, zone: ZoneInfo) -> int:
    if moment.tzinfo is None:
        early, late = moment.replace(tzinfo=zone, fold=0), moment.replace(tzinfo=zone, fold=1)
        if early.utcoffset() != late.utcoffset():
            what = "twice" if early.astimezone(UTC) < late.astimezone(UTC) else "never"
            raise BadRange(
                f"{moment} happens {what} on the exchange's clock, which changes that night.",
                remedy="Give the datetime a zone, such as UTC.",
            )
        moment = early
    # Integers throughout: a double loses nanoseconds, and pandas.Timestamp carries them.
    since = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    whole = (since.days * 86_400 + since.seconds) * clock.SECOND + since.microseconds * clock.MICROSECOND
    return whole + getattr(moment, "nanosecond", 0)
