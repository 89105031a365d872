"""What is wrong with a recording, told from silence that is right: pure, by the session's clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tapelab.errors import NotAuthorized, NotInPlan, TapelabError
from tapelab.market import clock

if TYPE_CHECKING:
    from tapelab.market.sessions import Session

QUIET_EVENTS = 60  # silence is strange once it lasts as long as so many events usually take …
QUIET_LEAST, QUIET_MOST = clock.MINUTE, 30 * clock.MINUTE  # … within these bounds
FIRST_EVENT = 5 * clock.MINUTE  # after the open; by then any symbol worth recording has a quote
FREE_LEAST = 5 * 10**9  # bytes


@dataclass(frozen=True)
class Sight:
    """A recording as it looks at `now`. Times are ns UTC, all by the same clock.

    `events` came since `begun`, the newest of them at `last_event`. `session` is the one that is on. `error`
    is why nothing is recorded although it should be. `connected`: the topics are confirmed just now.
    """

    now: int
    session: Session | None
    begun: int
    events: int = 0
    last_event: int | None = None
    connected: bool = True
    error: TapelabError | None = None
    free: int | None = None


def expected_quiet(events: int, listened: int) -> int:
    """How long a silence may last (ns) on a stream that brought so many events while it was listened to."""
    usual = QUIET_EVENTS * listened // (events + 1)
    return min(max(usual, QUIET_LEAST), QUIET_MOST)


def silence(now: int, last_event: int | None, session: Session | None) -> int:
    """For how long (ns) nothing came though the session is open; 0 outside its regular hours."""
    if session is None or not session.open <= now < session.close:
        return 0
    return now - max(last_event or 0, session.open)


def is_stalled(now: int, begun: int, events: int, last_event: int | None, session: Session | None) -> bool:
    """Whether nothing comes although the session is open and something should have come.

    Pre-market and post-market may be silent for as long as they like; a close at 13:00 is a close.
    """
    quiet = silence(now, max(last_event or 0, begun), session)
    if events == 0 or last_event is None:
        return quiet > FIRST_EVENT
    return quiet > expected_quiet(events, last_event - begun)


def problems(sight: Sight, *, free_least: int = FREE_LEAST) -> dict[str, str]:
    """What a person should be told of now: by kind, in one sentence each."""
    found: dict[str, str] = {}
    if isinstance(sight.error, NotAuthorized | NotInPlan):
        found["not_authorized"] = str(sight.error)
    elif sight.error is not None:
        found["failed"] = str(sight.error)
    elif is_stalled(sight.now, sight.begun, sight.events, sight.last_event, sight.session):
        last, session = max(sight.last_event or 0, sight.begun), sight.session
        quiet = silence(sight.now, last, session) // clock.SECOND
        line = "the connection is up" if sight.connected else "there is no connection"
        if session is not None and (sight.last_event or 0) < session.open:
            found["no_events"] = f"No event for {quiet:,} s since the open; {line}."
        else:
            found["stalled"] = f"No event for {quiet:,} s while the session is open; {line}."
    if sight.free is not None and sight.free < free_least:
        found["disk"] = f"{sight.free / 1e9:,.1f} GB are left on the disk, less than {free_least / 1e9:,.1f}."
    return found
