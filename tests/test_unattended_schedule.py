"""When sessions begin and end, and which silence is worth a word: pure, against answers written by hand."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.errors import NotAuthorized, RecordingError
from tapelab.live.problems import Sight, expected_quiet, is_stalled, problems
from tapelab.live.schedule import delay_of, next_session
from tapelab.live.unattended import patience
from tapelab.market import sessions
from tapelab.market.clock import HOUR, MINUTE, SECOND
from tapelab.market.symbols import Market

NEW_YORK = ZoneInfo("America/New_York")


def at(text: str) -> int:
    """A wall-clock time in New York, ns UTC."""
    return round(datetime.fromisoformat(text).replace(tzinfo=NEW_YORK).timestamp()) * SECOND


@pytest.mark.parametrize(
    ("now", "hours", "start", "stop"),
    [
        ("2026-03-03 01:00", "all", "2026-03-03 03:55", "2026-03-03 20:05"),
        ("2026-03-03 01:00", "regular", "2026-03-03 09:25", "2026-03-03 16:05"),
        ("2026-03-03 12:00", "all", "2026-03-03 03:55", "2026-03-03 20:05"),  # it is on
        ("2026-03-03 20:04", "all", "2026-03-03 03:55", "2026-03-03 20:05"),
        ("2026-03-03 20:05", "all", "2026-03-04 03:55", "2026-03-04 20:05"),
        (
            "2026-03-06 21:00",
            "all",
            "2026-03-09 03:55",
            "2026-03-09 20:05",
        ),  # a weekend, and the clocks change
        ("2026-11-25 21:00", "all", "2026-11-27 03:55", "2026-11-27 17:05"),  # Thanksgiving, then half a day
        ("2026-11-25 21:00", "regular", "2026-11-27 09:25", "2026-11-27 13:05"),
        ("2026-11-27 17:05", "all", "2026-11-30 03:55", "2026-11-30 20:05"),
        ("2026-12-24 18:00", "all", "2026-12-28 03:55", "2026-12-28 20:05"),  # Christmas on a Friday
        (
            "2026-07-02 23:00",
            "all",
            "2026-07-06 03:55",
            "2026-07-06 20:05",
        ),  # the Fourth, observed on the 3rd
    ],
)
def test_a_session_is_recorded_from_before_the_open_until_after_the_close(now, hours, start, stop):
    slot = next_session(at(now), hours=hours)
    assert (slot.start, slot.stop) == (at(start), at(stop))
    assert slot.name == f"session_{start[:10]}"


def test_a_name_and_a_margin_of_ones_own():
    slot = next_session(at("2026-03-03 01:00"), margin=30 * MINUTE, prefix="open")
    assert (slot.name, slot.start) == ("open_2026-03-03", at("2026-03-03 03:30"))
    assert (slot.opens, slot.closes) == (at("2026-03-03 04:00"), at("2026-03-03 20:00"))


def test_a_delayed_feed_is_heard_a_quarter_of_an_hour_longer():
    assert (
        delay_of("wss://delayed.massive.com") == delay_of("wss://delayed-business.massive.com") == 15 * MINUTE
    )
    assert delay_of("wss://socket.massive.com") == delay_of("ws://127.0.0.1:8000") == 0
    slot = next_session(at("2026-03-03 20:07"), delay=15 * MINUTE)
    assert (slot.start, slot.stop) == (at("2026-03-03 04:10"), at("2026-03-03 20:20"))


def test_markets_that_never_close_are_recorded_day_by_day_without_a_seam():
    first = next_session(at("2026-03-07 12:00"), market=Market.CRYPTO)
    second = next_session(first.stop, market=Market.CRYPTO)
    assert first.session.date == date(2026, 3, 7)
    assert first.stop == second.start
    assert second.stop - second.start == 24 * HOUR


@given(
    now=st.integers(at("2024-01-01 00:00"), at("2026-11-01 00:00")),
    market=st.sampled_from([Market.STOCKS, Market.CRYPTO, Market.FUTURES]),
    margin=st.integers(0, 2 * HOUR),
)
def test_sessions_follow_each_other_and_never_overlap(now, market, margin):
    slot = next_session(now, market=market, margin=margin)
    following = next_session(slot.stop, market=market, margin=margin)
    assert now < slot.stop <= following.start
    assert slot.start <= slot.opens < slot.closes <= slot.stop
    assert following.session.date > slot.session.date
    assert next_session(slot.start, market=market, margin=margin) == slot


HALF_DAY = sessions.session(Market.STOCKS, date(2026, 11, 27))
BEGUN = at("2026-11-27 03:55")


@pytest.mark.parametrize(
    ("now", "events", "last", "stalled"),
    [
        ("2026-11-27 04:30", 3, "2026-11-27 04:01", False),  # before the open silence is right
        ("2026-11-27 09:34", 500, "2026-11-27 09:29", False),
        ("2026-11-27 11:00", 200_000, "2026-11-27 10:59", False),
        ("2026-11-27 11:00", 200_000, "2026-11-27 10:58", True),  # many a second, then none for two minutes
        ("2026-11-27 11:00", 500, "2026-11-27 10:40", False),  # one in a minute or so: that may be
        ("2026-11-27 12:00", 500, "2026-11-27 11:20", True),
        ("2026-11-27 13:00", 200_000, "2026-11-27 12:30", False),  # half a day: it is over
        ("2026-11-27 15:00", 200_000, "2026-11-27 12:59", False),
        ("2026-11-27 09:34", 0, None, False),
        ("2026-11-27 09:36", 0, None, True),  # nothing at all since the open
    ],
)
def test_silence_is_told_from_a_stall_by_the_sessions_clock(now, events, last, stalled):
    assert is_stalled(at(now), BEGUN, events, last and at(last), HALF_DAY) == stalled


def test_on_a_holiday_nothing_stalls():
    assert sessions.session(Market.STOCKS, date(2026, 11, 26)) is None
    assert not is_stalled(at("2026-11-26 11:00"), at("2026-11-26 03:55"), 0, None, None)


@given(events=st.integers(0, 10**9), listened=st.integers(0, 24 * HOUR))
def test_the_quiet_that_is_expected_is_bounded_and_shrinks_with_the_events(events, listened):
    assert MINUTE <= expected_quiet(events, listened) <= 30 * MINUTE
    assert expected_quiet(events + 1, listened) <= expected_quiet(events, listened)


def test_each_trouble_is_told_by_its_kind_in_a_sentence():
    now = at("2026-11-27 10:00")
    well = Sight(now=now, session=HALF_DAY, begun=BEGUN, events=10_000, last_event=now - SECOND, free=10**12)
    assert problems(well) == {}
    silent = {**vars(well), "last_event": now - 5 * MINUTE}
    assert problems(Sight(**silent)) == {
        "stalled": "No event for 300 s while the session is open; the connection is up."
    }
    assert "there is no connection" in problems(Sight(**{**silent, "connected": False}))["stalled"]
    unopened = Sight(**{**vars(well), "last_event": at("2026-11-27 09:20")})
    assert problems(unopened) == {"no_events": "No event for 1,800 s since the open; the connection is up."}
    assert set(problems(Sight(**{**vars(well), "error": NotAuthorized("refused")}))) == {"not_authorized"}
    assert set(problems(Sight(**{**vars(well), "error": RecordingError("broke")}))) == {"failed"}
    assert problems(Sight(**{**vars(well), "free": 10**9})) == {
        "disk": "1.0 GB are left on the disk, less than 5.0."
    }


def test_a_session_is_tried_again_ever_more_slowly_and_hardly_where_another_took_the_connection():
    broken = RecordingError("broke")
    assert [patience(broken, tries) for tries in (1, 2, 3, 99)] == [1.0, 2.0, 4.0, 60.0]
    assert patience(RecordingError("taken", status="max_connections"), 1) == 600.0
