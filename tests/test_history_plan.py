"""The plan is pure: what it decides follows from what it is given, and from nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab import errors
from tapelab.budget import Left
from tapelab.history.fetchplan import PAGE_ROWS, FetchPlan
from tapelab.history.final import final_at, keepable, usable
from tapelab.history.plan import Doors, plan, wants_listing
from tapelab.history.request import METHODS, Request, TickRequest, parse
from tapelab.market import clock, ranges, sessions, symbols
from tapelab.market.clock import HOUR, SECOND, FixedClock
from tapelab.market.symbols import Market
from tapelab.massive.flatfiles import Listed
from tapelab.store.lake import Held
from tapelab.store.lake.ticks import Kind

NOW = 1_718_000_000 * SECOND  # Monday 2024-06-10, 02:13 New York
FILE = 22_000_000  # bytes of a day's minute file, about
LEFT = Left(100, 5, 10_000_000_000, NOW + HOUR, NOW + 1000 * HOUR, 0, 0)
TWENTY = [f"S{chr(65 + n)}" for n in range(20)]


def asked(
    symbols: str | list[str], start: str, end: str, interval: str = "1m", method: str = "auto"
) -> Request:
    with clock.use(FixedClock(NOW)):
        return parse(symbols, start, end, interval, method, "none", "all", True)


def files(first: str, last: str, size: int = FILE, etag: str = "e") -> Doors:
    days = [s.date for s in sessions.between(Market.STOCKS, *map(date.fromisoformat, (first, last)))]
    product = "us_stocks_sip/minute_aggs_v1"
    return Doors({day: Listed(product, day, f"{product}/{day}", etag, size, 0) for day in days})


def final(*keys: tuple[str, str], origin: str = "rest", etag: str = "") -> dict[tuple[str, date], Held]:
    return {(name, date.fromisoformat(day)): Held(origin, 0, True, etag) for name, day in keys}  # type: ignore[arg-type]


def decide(request: Request, doors: Doors = Doors(), left: Left = LEFT, coverage=None, **more) -> FetchPlan:  # noqa: B008
    return plan(request, coverage or {}, doors, left, NOW, **more)


# What interface.md says, to the letter.


def test_a_small_query_goes_by_rest_and_says_why():
    found = decide(asked(["AAPL", "MSFT", "SPY"], "2024-05-13", "2024-05-17"))
    assert found.reason == "Auto-selected REST API (small query: 3 symbols, 5 days)"
    assert (found.route, found.requests, found.files) == ("rest", 3, 0)


def test_a_large_query_goes_by_flat_files_and_says_why():
    request = asked(TWENTY, "2024-01-01", "2024-03-31")
    found = decide(request, files("2024-01-01", "2024-03-31"))
    assert found.reason == "Auto-selected Flat Files (large query: 20 symbols, 91 days)"
    assert (found.route, found.requests, found.files, found.bytes) == ("flat_file", 0, 61, 61 * FILE)


@pytest.mark.parametrize(
    ("symbols", "end", "route"),
    [(5, "2024-05-19", "rest"), (6, "2024-05-19", "flat_file"), (5, "2024-05-20", "flat_file")],
)
def test_the_line_between_small_and_large_is_5_symbols_and_7_days(symbols: int, end: str, route: str):
    request = asked(TWENTY[:symbols], "2024-05-13", end)
    assert decide(request, files("2024-05-13", end)).route == route


def test_one_symbol_and_one_day_are_singular():
    found = decide(asked("AAPL", "2024-05-13", "2024-05-13"))
    assert found.reason == "Auto-selected REST API (small query: 1 symbol, 1 day)"


# The cache.


def test_what_the_cache_holds_costs_nothing():
    coverage = final(("AAPL", "2024-05-13"), ("AAPL", "2024-05-14"))
    found = decide(asked("AAPL", "2024-05-13", "2024-05-14"), coverage=coverage)
    assert (found.route, found.requests, found.files, found.cached) == ("cache", 0, 0, 2)
    assert "cache" in found.reason


def test_the_rule_is_about_what_is_missing():
    request = asked("AAPL", "2024-04-01", "2024-05-17")
    held = final(*[("AAPL", str(s.date)) for s in request.range.sessions()[:-2]])
    found = decide(request, coverage=held)
    assert found.reason == "Auto-selected REST API (small query: 1 symbol, 2 days)"
    [call] = found.calls
    assert (call.first, call.last) == (date(2024, 5, 16), date(2024, 5, 17))


def test_provisional_rows_are_used_until_the_day_is_final():
    friday = sessions.session(Market.STOCKS, date(2024, 6, 7))
    assert friday is not None
    held = Held("rest", friday.end, False)
    assert final_at(friday) == friday.open + 25 * HOUR + HOUR // 2  # 11:00 New York on the day after
    assert usable(held, friday, final_at(friday) - 1)
    assert not usable(held, friday, final_at(friday))
    assert usable(Held("rest", friday.end, True), friday, final_at(friday))
    assert not usable(None, friday, NOW)


def test_a_running_day_and_an_empty_answer_that_is_not_final_are_not_kept():
    friday = sessions.session(Market.STOCKS, date(2024, 6, 7))
    assert friday is not None
    before = friday.date - timedelta(days=1)
    assert keepable(friday, friday.end - 1, {friday.date}) is None
    assert keepable(friday, friday.end, {friday.date}) is False
    assert keepable(friday, friday.end, {before}) is None
    assert keepable(friday, final_at(friday), {friday.date}) is True
    assert keepable(friday, final_at(friday), {before}) is True
    assert keepable(friday, final_at(friday), set()) is None, (
        "the vendor may have cut it to the plan's window"
    )


def test_a_replaced_file_is_fetched_again_when_the_list_is_looked_at():
    request = asked(TWENTY, "2024-05-13", "2024-05-14")
    held = final(*[(name, "2024-05-13") for name in TWENTY], origin="flat_file", etag="old")
    found = decide(request, files("2024-05-13", "2024-05-14", etag="new"), coverage=held)
    assert found.files == 2
    assert found.cached == 0
    assert any("replaced" in note for note in found.notes)


# What turns the choice.


def test_days_without_a_file_yet_come_by_rest_within_the_same_answer():
    request = asked(TWENTY, "2024-06-05", "2024-06-07")
    found = decide(request, files("2024-06-05", "2024-06-06"))
    assert found.route == "flat_file"
    assert found.files == 2
    assert {call.first for call in found.calls} == {date(2024, 6, 7)}
    assert len(found.calls) == 20
    assert found.notes == ("By REST, for want of a file (yet): 1 day (2024-06-07)",)


def test_without_flat_file_keys_a_large_query_goes_by_rest_with_the_reason():
    shut = Doors(files_closed="no flat-file keys are set")
    found = decide(asked(TWENTY, "2024-01-01", "2024-03-31"), shut)
    assert found.reason == (
        "Auto-selected REST API (no flat-file keys are set; large query: 20 symbols, 91 days)"
    )
    assert found.requests == 40


def test_without_any_key_the_error_says_so():
    shut = Doors(files_closed="no flat-file keys are set", rest_closed="no API key is set")
    with pytest.raises(errors.SettingError, match=r"no API key is set.*MASSIVE_API_KEY"):
        decide(asked("AAPL", "2024-05-13", "2024-05-13"), shut)


def test_a_budget_that_would_break_turns_the_choice():
    request = asked(TWENTY[:5], "2024-05-13", "2024-05-17")
    left = replace(LEFT, rest_day=3)
    assert wants_listing(request, {}, Doors(), left, NOW)
    found = decide(request, files("2024-05-13", "2024-05-17"), left)
    assert found.reason == "Auto-selected Flat Files (5 REST calls needed, 3 left today)"


def test_a_full_month_turns_a_large_query_to_rest():
    request = asked(TWENTY, "2024-05-01", "2024-05-17")
    found = decide(request, files("2024-05-01", "2024-05-17"), replace(LEFT, bytes_month=1_000_000))
    assert found.reason == "Auto-selected REST API (286 MB of flat files needed, 1 MB left this month)"


def test_a_plan_that_fits_no_budget_says_what_it_needs_and_when_it_resets():
    left = replace(LEFT, rest_day=1, bytes_month=1)
    with pytest.raises(errors.BudgetExceeded) as caught:
        decide(asked(["AAPL", "MSFT"], "2024-05-13", "2024-05-17"), files("2024-05-13", "2024-05-17"), left)
    assert "2 REST calls needed, 1 left today" in str(caught.value)
    assert clock.iso(LEFT.day_resets) in str(caught.value)


def test_an_explicit_method_without_fallback_keeps_its_word_and_names_what_would_fit():
    request = replace(asked(["AAPL", "MSFT"], "2024-05-13", "2024-05-17", method="rest"), fallback=False)
    with pytest.raises(errors.BudgetExceeded, match='method="flat_file" would fit'):
        decide(request, files("2024-05-13", "2024-05-17"), replace(LEFT, rest_day=1))
    with pytest.raises(errors.SettingError, match="no API key is set"):
        decide(request, Doors(rest_closed="no API key is set"))


def test_splits_that_have_to_be_asked_for_are_calls_too():
    found = decide(asked("AAPL", "2024-05-13", "2024-05-17"), references=["splits AAPL"])
    assert found.requests == 2
    with pytest.raises(errors.BudgetExceeded, match=r'adjust="none"'):
        decide(
            asked("AAPL", "2024-05-13", "2024-05-17"),
            left=replace(LEFT, rest_day=1),
            references=["splits AAPL"],
        )
    with pytest.raises(errors.SettingError, match=r'adjust="none"'):
        decide(
            asked("AAPL", "2024-05-13", "2024-05-17"),
            Doors(rest_closed="no API key is set"),
            references=["splits AAPL"],
        )


def test_many_symbols_splits_are_asked_for_in_one_list_of_the_market():
    stale = [f"splits {name}" for name in TWENTY]
    found = decide(
        asked(TWENTY, "2024-05-13", "2024-05-17"), files("2024-05-13", "2024-05-17"), references=stale
    )
    [call] = found.references
    assert (call.question, call.pages) == ("splits *", 2)
    assert found.requests == 2
    long_ago = asked(TWENTY, "2004-01-02", "2004-01-09")
    found = decide(long_ago, files("2004-01-02", "2004-01-09"), references=stale)
    assert [call.question for call in found.references] == stale, "twenty years of splits are more pages"
    both = [*stale, *(f"dividends {name}" for name in TWENTY)]
    found = decide(
        asked(TWENTY, "2024-05-13", "2024-05-17"), files("2024-05-13", "2024-05-17"), references=both
    )
    assert [call.question for call in found.references] == ["dividends *", "splits *"]
    assert found.requests == 7


def test_a_budget_of_calls_a_minute_is_reported_before_it_is_waited_for():
    left = replace(LEFT, calls_a_minute=5, rest_minute=3)
    shut = Doors(files_closed="no flat-file keys are set")
    found = decide(asked(TWENTY, "2024-05-13", "2024-05-17"), shut, left)
    assert found.lines[-1] == "20 REST calls at 5 a minute take about 4 minutes"
    assert decide(asked(TWENTY[:3], "2024-05-13", "2024-05-17"), shut, left).minutes == 0


def test_calls_are_few_where_they_count_and_a_page_each_where_they_are_free():
    request = asked("AAPL", "2023-01-01", "2024-05-31")
    [call] = decide(request, Doors(files_closed="no keys")).calls
    assert (call.first, call.last, call.pages) == (date(2023, 1, 3), date(2024, 5, 31), 7)
    free = replace(LEFT, rest_day=None, rest_minute=None)
    many = decide(request, Doors(files_closed="no keys"), free).calls
    assert len(many) == 7
    assert {call.pages for call in many} == {1}
    assert [c.last for c in many][-1] == date(2024, 5, 31)


# Ticks: the cheaper plan.


def ticks(names: str | list[str], start: str, end: str, kind: Kind = "trades", **more: object) -> TickRequest:
    known = tuple(symbols.parse_all(names))
    with clock.use(FixedClock(NOW)):
        return TickRequest(known, ranges.resolve(start, end), kind, **more)  # type: ignore[arg-type]


def test_ticks_of_a_symbol_come_by_rest_where_the_days_file_is_large():
    found = decide(
        ticks("AAPL", "2024-05-13", "2024-05-13"), files("2024-05-13", "2024-05-13", 1_500_000_000)
    )
    assert found.reason == "Auto-selected REST API (cheaper: 3 REST calls)"
    assert found.as_dict()["interval"] == "trades"
    assert "about 3" in str(found)
    assert "of trades" in str(found)


def test_ticks_of_many_symbols_come_from_the_file_where_it_is_cheaper():
    request = ticks(TWENTY, "2024-05-13", "2024-05-13", "quotes")
    assert wants_listing(request, {}, Doors(), LEFT, NOW)
    found = decide(request, files("2024-05-13", "2024-05-13", 1_500_000_000))
    assert found.reason == "Auto-selected Flat Files (cheaper: 1 file of 1.5 GB)"


def test_a_few_minutes_of_ticks_are_one_page():
    found = decide(ticks("AAPL", "2024-05-13T10:00", "2024-05-13T10:05", "quotes"))
    assert found.requests == 1


def test_ticks_of_a_day_without_a_file_yet_come_by_rest():
    found = decide(
        ticks("AAPL", "2024-06-06", "2024-06-07", method="flat_file"), files("2024-06-06", "2024-06-06")
    )
    assert (found.files, [call.first for call in found.calls]) == (1, [date(2024, 6, 7)])
    doors = replace(files("2024-06-06", "2024-06-06"), rest_closed="no API key is set")
    with pytest.raises(errors.NotFound, match="has no file for 2024-06-07"):
        decide(ticks("AAPL", "2024-06-06", "2024-06-07"), doors)


def test_cheapest_takes_the_smaller_share_of_what_is_left():
    few = asked("AAPL", "2024-01-01", "2024-03-31", method="cheapest")
    found = decide(few, files("2024-01-01", "2024-03-31"))
    assert found.reason == "Cheapest: REST API (2 REST calls)"
    many = asked(TWENTY, "2024-05-13", "2024-05-13", method="cheapest")
    assert decide(many, files("2024-05-13", "2024-05-13")).reason == "Cheapest: Flat Files (1 file of 22 MB)"


def test_a_cheaper_plan_is_named():
    found = decide(asked("AAPL", "2024-01-01", "2024-03-31"), files("2024-01-01", "2024-03-31"))
    assert found.route == "flat_file"
    assert found.cheapest is not None
    assert found.cheapest.reason == "REST API (2 REST calls)"
    assert found.cheapest.cheapest is None


def test_seconds_come_by_rest_only():
    request = asked(TWENTY, "2024-05-13", "2024-05-31", "1s")
    assert not wants_listing(request, {}, Doors(), replace(LEFT, rest_day=None), NOW)
    found = decide(request, left=replace(LEFT, rest_day=None))
    assert found.route == "rest"
    assert "no flat files of 1s bars" in found.reason


def test_seconds_by_flat_file_alone_are_refused_with_the_way_out():
    request = replace(asked("A", "2024-06-03", "2024-06-04", "1s", "flat_file"), fallback=False)
    with pytest.raises(errors.SettingError, match=r'no flat files of 1s bars of stocks\. Use method="rest"'):
        decide(request)


def test_a_small_query_does_not_look_at_the_list_of_files():
    assert not wants_listing(asked("AAPL", "2024-05-13", "2024-05-13"), {}, Doors(), LEFT, NOW)
    assert wants_listing(asked(TWENTY, "2024-05-13", "2024-05-13"), {}, Doors(), LEFT, NOW)


def test_a_plan_prints_as_a_short_table_and_as_json():
    found = decide(asked(TWENTY, "2024-01-01", "2024-03-31"), files("2024-01-01", "2024-03-31"))
    assert str(found) == (
        "Auto-selected Flat Files (large query: 20 symbols, 91 days)\n"
        "  symbols   20 (SA, SB, SC, SD, SE …)\n"
        "  sessions  61 (2024-01-02 to 2024-03-28) of 1m bars\n"
        "  cached    0 of 1220\n"
        "  requests  0 (100 left today)\n"
        "  files     61, 1.34 GB (10 GB left this month)\n"
        "  cheapest  this one"
    )
    assert json.loads(json.dumps(found.as_dict()))["files"] == 61


# What must always hold.

_DAYS = [s.date for s in sessions.between(Market.STOCKS, date(2024, 3, 1), date(2024, 5, 31))]
_NAMES = TWENTY[:7]


@given(
    names=st.lists(st.sampled_from(_NAMES), min_size=1, max_size=7, unique=True),
    span=st.tuples(st.sampled_from(_DAYS), st.sampled_from(_DAYS)).map(sorted),
    interval=st.sampled_from(["1s", "1m", "5m", "1h", "1d", "1w"]),
    method=st.sampled_from(METHODS),
    held=st.dictionaries(st.tuples(st.sampled_from(_NAMES), st.sampled_from(_DAYS)), st.booleans()),
    listed=st.sets(st.sampled_from(_DAYS)),
    shut=st.sampled_from(["", "", "rest", "files"]),
    fallback=st.booleans(),
    rest_day=st.none() | st.integers(0, 30),
    bytes_month=st.none() | st.integers(0, 60 * FILE),
    references=st.integers(0, 2),
)
def test_every_symbol_on_every_session_has_one_route_and_no_budget_breaks(
    names: list[str],
    span: list[date],
    interval: str,
    method: str,
    held: dict[tuple[str, date], bool],
    listed: set[date],
    shut: str,
    fallback: bool,
    rest_day: int | None,
    bytes_month: int | None,
    references: int,
):
    request = replace(asked(names, str(span[0]), str(span[1]), interval, method), fallback=fallback)
    coverage = {key: Held("rest", 0, final) for key, final in held.items()}
    doors = Doors(
        {day: Listed("p", day, str(day), "e", FILE, 0) for day in listed},
        "no keys" if shut == "files" else "",
        "no key" if shut == "rest" else "",
    )
    left = replace(LEFT, rest_day=rest_day, bytes_month=bytes_month)
    try:
        found = decide(
            request, doors, left, coverage, references=[f"splits {name}" for name in names[:references]]
        )
    except (errors.BudgetExceeded, errors.SettingError, errors.NotFound):
        return
    expected = {(name, session.date) for name in names for session in request.range.sessions()}
    assert set(found.routes) == expected
    assert rest_day is None or found.requests <= rest_day
    assert bytes_month is None or found.bytes <= bytes_month
    days = {day for _, day in expected}
    called = {(call.symbol, day) for call in found.calls for day in days if call.first <= day <= call.last}
    fetched = {listed.day for listed in found.downloads}
    for (name, day), route in found.routes.items():
        if route == "rest":
            assert (name, day) in called
            assert shut != "rest"
        elif route == "flat_file":
            assert day in fetched
            assert shut != "files"
        else:
            assert held[name, day], "a provisional row of a day that is final is no cover"
    assert all(
        call.pages <= -(-(call.last - call.first).days * 86_400 // PAGE_ROWS) + 2 for call in found.calls
    )
    assert found.cheapest is None or found.cheapest.cost < found.cost
    assert str(found)
