"""When an unattended recording begins and ends: by the exchange's calendar, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tapelab.errors import BadRange
from tapelab.market import clock, sessions
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market

if TYPE_CHECKING:
    from tapelab.market.bars import Hours

MARGIN = 5 * clock.MINUTE
DELAYED = 15 * clock.MINUTE  # how far behind the market the vendor's cheaper feeds are
LOOK_BACK, LOOK_AHEAD = timedelta(days=14), timedelta(days=30)  # no exchange was ever closed for so long


@dataclass(frozen=True)
class Slot:
    """One session to be recorded: from `start` to `stop` (ns UTC, `stop` excluded), as the dataset `name`.

    `opens` and `closes` bound the hours that were asked for, when they reach us; what lies outside is margin.
    """

    name: str
    session: Session
    opens: int
    closes: int
    start: int
    stop: int


def next_session(
    now: int,
    *,
    market: Market = Market.STOCKS,
    hours: Hours = "all",
    margin: int = MARGIN,
    delay: int = 0,
    prefix: str = "session",
) -> Slot:
    """The session that is on at `now` (ns UTC), or the next one; its dataset is `<prefix>_<date>`.

    `hours`: `"all"` from the pre-market's begin to the post-market's end, `"regular"` from the open to the
    close. It begins `margin` (ns) before and ends so long after, but never reaches into its neighbours.
    `delay` (ns): how far the feed is behind the market (see `delay_of`).
    """
    today = clock.date_of(now - delay, sessions.zone(market))
    known = sessions.between(market, today - LOOK_BACK, today + LOOK_AHEAD)
    whole = hours == "all"
    bounds = [
        (begin + delay, end + delay)
        for begin, end in ((s.start, s.end) if whole else (s.open, s.close) for s in known)
    ]
    for n, ((_, before), (opens, closes)) in enumerate(pairwise(bounds), 1):
        after = bounds[n + 1][0] if n + 1 < len(bounds) else closes + margin
        stop = min(closes + margin, after)
        if now < stop:
            name = f"{prefix}_{known[n].date}"
            return Slot(name, known[n], opens, closes, max(opens - margin, before), stop)
    raise BadRange("The calendar knows no session ahead.", remedy="Check the clock of this machine.")


def delay_of(ws_url: str) -> int:
    """How far behind the market a feed is, ns: the vendor's delayed ones say so in their name."""
    return DELAYED if (urlsplit(ws_url).hostname or "").startswith("delayed") else 0
