"""What came of a session: when it no longer changes, when it may be kept, when it may be used."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date, time, timedelta

from tapelab.market import sessions
from tapelab.market.sessions import Session
from tapelab.store.lake import Held

# The vendor publishes a day's file about 11:00 New York on the day after; until then a day may still change.
FILES_DUE = time(11)


def final_at(session: Session) -> int:
    """When a session's bars no longer change, ns UTC: its flat file is due, if it is not there before."""
    day_after = session.date + timedelta(days=1)
    return sessions.instant(day_after, FILES_DUE, sessions.NEW_YORK)


def usable(held: Held | None, session: Session, now: int) -> bool:
    """Whether held bars may be used: final ones always, provisional ones until the day is final."""
    return held is not None and (held.final or now < final_at(session))


def keepable(session: Session, asked_at: int, traded: Collection[date]) -> bool | None:
    """Whether what REST said of a session may be kept: True as final, False until the day is final, None not.

    `traded`: the dates that have bars in the same answer. A running session is never kept, and an empty one
    only once it is final and something came before it: where the answer begins later, the vendor may have cut
    it to what the plan covers without a word.
    """
    if asked_at < session.end:
        return None
    final = asked_at >= final_at(session)
    if session.date in traded:
        return final
    return True if final and any(day < session.date for day in traded) else None
