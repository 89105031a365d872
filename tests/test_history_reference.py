"""Splits and dividends that cannot be right are refused with the way out; a symbol's owners are named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pandas as pd
import pytest

from history_tape import DAY_BARS, days_of, dividend, split, write_folder
from tapelab import errors
from tapelab.exchange import serve
from tapelab.history import fetch_data
from tapelab.history.overrides import Overrides
from tapelab.history.reference import Owner, Seam
from tapelab.settings import Settings, use
from test_flatfiles import bucket  # noqa: F401
from test_history_fetch import (
    ALL,
    RestOfFiles,
    about,
    fetch,
    here,  # noqa: F401
    settings,  # noqa: F401
    spent,
    vendor,  # noqa: F401
)
from test_rest import Reply, Vendor

# ruff: noqa: F811

APPLE = ("2020-08-24", "2020-09-04")
FOUR_FOR_ONE = split("AAPL", "2020-08-31", 1, 4)
Tape = Callable[..., Settings]


@pytest.fixture
def apple(shared: Path, tmp_path: Path) -> object:
    """An exchange that speaks AAPL's days around its 4:1 split with some list of splits and dividends."""
    exchanges = []

    def start(*splits: dict[str, object], dividends: list[dict[str, object]] | None = None) -> Settings:
        name = f"tape{len(exchanges)}"
        folder = write_folder(
            tmp_path / name,
            {DAY_BARS: days_of(shared, ["AAPL", "IBM"], *APPLE)},
            {"splits": list(splits), "dividends": dividends or []},
        )
        exchanges.append(serve(flat_files=folder))
        return exchanges[-1].settings(tmp_path / f"home{name}")

    yield start
    for exchange in exchanges:
        exchange.close()


@pytest.mark.parametrize(
    ("splits", "why"),
    [
        (
            (FOUR_FOR_ONE, FOUR_FOR_ONE),
            "the 4:1 split of 2020-08-31, listed 2 times, is in the vendor's list",
        ),
        ((FOUR_FOR_ONE, split("AAPL", "2020-08-28", 1, 4)), "the 4:1 split of 2020-08-28 is not in the raw"),
        ((FOUR_FOR_ONE, split("AAPL", "2020-09-02", 1, 4)), "the 4:1 split of 2020-09-02 is not in the raw"),
        ((split("AAPL", "2020-08-31", 1, 40),), "the 40:1 split of 2020-08-31 is not in the raw prices"),
        ((split("AAPL", "2020-08-31", 4, 1),), "the 1:4 split of 2020-08-31 is not in the raw prices"),
        ((split("AAPL", "2020-08-31", 1, 1),), "the 1:1 split of 2020-08-31 changes nothing"),
        ((split("IBM", "2020-09-01", 1, 2),), "IBM cannot be adjusted: the 2:1 split of 2020-09-01"),
    ],
)
def test_a_split_that_raw_prices_contradict_is_refused_with_the_way_out(
    apple: Tape, splits: tuple[dict[str, object], ...], why: str
) -> None:
    settings = apple(*splits)
    with use(settings):
        with pytest.raises(errors.MalformedAnswer, match=why) as caught:
            fetch_data(["AAPL", "IBM"], *APPLE)
        assert str(settings.home / "overrides" / "splits.json") in caught.value.remedy
        assert len(fetch_data(["AAPL", "IBM"], *APPLE, adjust="none")) == 20


def test_the_explanation_names_the_prices_on_both_sides(apple: Tape) -> None:
    with use(apple(FOUR_FOR_ONE, FOUR_FOR_ONE)), pytest.raises(errors.MalformedAnswer) as caught:
        fetch_data("AAPL", *APPLE)
    assert "They closed at 499.23 on 2020-08-28 and at 129.04 on 2020-08-31." in caught.value.message


def test_a_split_after_the_range_is_compared_with_days_that_are_asked_for(apple: Tape) -> None:
    """It lies outside the bars of the answer; the list alone makes it suspect, and costs one call."""
    with use(apple(FOUR_FOR_ONE, FOUR_FOR_ONE)), pytest.raises(errors.MalformedAnswer, match=r"499\.23"):
        fetch_data("AAPL", "2020-08-24", "2020-08-25")


def test_your_own_list_takes_the_vendors_place(apple: Tape) -> None:
    settings = apple(FOUR_FOR_ONE, FOUR_FOR_ONE)
    path = settings.home / "overrides" / "splits.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"AAPL": [{"execution_date": "2020-08-31", "split_from": 1, "split_to": 4}]}))
    with use(settings):
        adjusted = fetch_data("AAPL", *APPLE).set_index("session")["close"]
        assert adjusted[date(2020, 8, 28)] == pytest.approx(499.23 / 4)
        path.write_text('{"AAPL": []}')
        raw = fetch_data("AAPL", *APPLE).set_index("session")["close"]
        assert raw[date(2020, 8, 28)] == 499.23


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"AAPL": {}}',
        '{"AAPL": [{"execution_date": "31 August", "split_from": 1, "split_to": 4}]}',
        '{"AAPL": [{"execution_date": "2020-08-31", "split_from": 0, "split_to": 4}]}',
        '{"AAPL": [{"execution_date": "2020-08-31", "split_from": 1, "split_too": 4}]}',
        "{",
    ],
)
def test_a_list_of_your_own_that_is_not_one_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "overrides" / "splits.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(errors.SettingError, match=r"splits\.json is not a list of rows.*looks like"):
        Overrides.load(tmp_path)


@pytest.mark.parametrize(
    ("dividends", "error", "why"),
    [
        ([dividend("AAPL", "2020-09-01", 0.5, "GBP")], errors.SourceError, "0.5 GBP .*price is in USD"),
        ([dividend("AAPL", "2020-09-01", 0.5)] * 2, errors.MalformedAnswer, "is listed twice"),
        ([dividend("AAPL", "2020-09-01", 130.0)], errors.MalformedAnswer, "on a close of 129.04, leaves no"),
        ([dividend("AAPL", "2020-09-01", 60.0)], errors.MalformedAnswer, "is not in the raw prices"),
        ([dividend("AAPL", "2020-08-24", 1.0)], None, ""),
    ],
)
def test_a_dividend_that_cannot_be_taken_out_of_prices_is_explained(
    apple: Tape, dividends: list[dict[str, object]], error: type[Exception] | None, why: str
) -> None:
    with use(apple(FOUR_FOR_ONE, dividends=dividends)):
        splits_only = fetch_data("AAPL", *APPLE)
        if error is None:
            # On the range's first day it is behind every bar.
            assert fetch_data("AAPL", *APPLE, adjust="all").equals(splits_only)
            return
        with pytest.raises(error, match=why):
            fetch_data("AAPL", *APPLE, adjust="all")


def test_two_dividends_of_a_day_are_added_and_prices_alone_take_them(apple: Tape) -> None:
    paid = [dividend("AAPL", "2020-09-01", 0.5), dividend("AAPL", "2020-09-01", 2.0)]
    with use(apple(FOUR_FOR_ONE, dividends=paid)):
        splits_only = fetch_data("AAPL", *APPLE).set_index("session")
        everything = fetch_data("AAPL", *APPLE, adjust="all").set_index("session")
    ratio = everything["close"] / splits_only["close"]
    assert ratio[: date(2020, 8, 31)].to_numpy() == pytest.approx(1 - 2.5 / 129.04)
    assert ratio[date(2020, 9, 1) :].to_numpy() == pytest.approx(1)
    assert everything["volume"].equals(splits_only["volume"])


# Closes before dividends.


def test_closes_before_dividends_are_asked_for_once(here: Settings, vendor: Vendor) -> None:
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.dividends["BAC"] = [dividend("BAC", "2013-10-10", 0.01)]
    raw = fetch("BAC", interval="1d").set_index("session")["close"]
    for _ in range(2):
        found = fetch("BAC", interval="1m", adjust="all").set_index("session")["close"]
    days = [a.path for a in vendor.asked if "/range/1/day/" in a.path]
    assert len(days) == 1, "the days of the first call hold the close"
    raw_minutes = fetch("BAC", interval="1m").set_index("session")["close"]
    factor = 1 - 0.01 / raw[date(2013, 10, 9)]
    before = found.index < date(2013, 10, 10)
    assert (found / raw_minutes)[before].to_numpy() == pytest.approx(factor)
    assert (found / raw_minutes)[~before].to_numpy() == pytest.approx(1)


def test_a_close_that_is_not_here_costs_one_call_of_days(here: Settings, vendor: Vendor) -> None:
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.dividends["BAC"] = [dividend("BAC", "2013-10-10", 0.01)]
    for _ in range(2):
        fetch("BAC", interval="1m", adjust="all", method="flat_file")
    paths = [a.path for a in vendor.asked]
    assert sum("/range/1/day/" in path for path in paths) == 1
    assert (paths.count("/v3/reference/splits"), paths.count("/v3/reference/dividends")) == (1, 1)


def test_the_close_before_a_dividend_is_that_of_the_last_session_and_no_earlier_one(
    here: Settings, vendor: Vendor
) -> None:
    """The lake holds the days up to two sessions before the ex-date: near it, and not the ones that count."""
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.dividends["BAC"] = [dividend("BAC", "2013-10-11", 1.0)]
    early = ("2013-10-07", "2013-10-09")
    raw = fetch("BAC", early).set_index("session")["close"]
    found = fetch("BAC", early, adjust="all").set_index("session")["close"]
    close = fetch("BAC").set_index("session")["close"][date(2013, 10, 10)]
    assert (found / raw).to_numpy() == pytest.approx(1 - 1.0 / close)


# Who owns a symbol.

WASTE = {
    "name": "Waste Management, Inc.",
    "events": [
        {"type": "ticker_change", "date": "2009-08-05", "ticker_change": {"ticker": "WM"}},
        {"type": "ticker_change", "date": "2003-09-10", "ticker_change": {"ticker": "WMI"}},
    ],
}


def test_a_series_that_joins_two_companies_carries_a_warning_at_the_seam(
    shared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """WM was Washington Mutual until its bank failed in 2008; in 2009 Waste Management took the symbol."""
    days = [("2008-09-22", "2008-09-26"), ("2009-08-05", "2009-08-11")]
    folder = write_folder(
        tmp_path / "tape",
        {DAY_BARS: pd.concat([days_of(shared, ["WM", "IBM"], *span) for span in days])},
        {"splits": [], "ticker_events": [WASTE]},
    )
    says = "WM is Waste Management, Inc. (WMI before) only from 2009-08-05 on: "
    with serve(flat_files=folder) as exchange, exchange.use():
        with caplog.at_level(logging.INFO, logger="tapelab"):
            joined = fetch_data(["WM", "IBM"], "2008-09-22", "2009-08-11")
        later = fetch_data(["WM", "IBM"], "2009-08-05", "2009-08-11")
    [warning] = joined.attrs["tapelab"]["warnings"]
    assert warning.startswith(says)
    assert sum(warning in message for message in caplog.messages) == 1
    assert joined.attrs["tapelab"]["identity"] == {"IBM": "unknown", "WM": "Waste Management, Inc."}
    assert later.attrs["tapelab"]["warnings"] == []
    assert len(joined) == 2 * 5 + 2 * 5


def test_owners_are_asked_for_once_and_a_source_that_has_none_claims_nothing(
    here: Settings, vendor: Vendor
) -> None:
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.owners["BAC"] = {
        "name": "Bank of America",
        "events": [{"date": "2003-09-10", "type": "ticker_change", "ticker_change": {"ticker": "BAC"}}],
    }
    for _ in range(2):
        found = fetch(["BAC", "SPY"], adjust="splits")
        assert about(found)["identity"] == {"BAC": "Bank of America", "SPY": "unknown"}
        assert about(found)["warnings"] == []
    assert sum(a.path.startswith("/vX/") for a in vendor.asked) == 2


def test_raw_prices_cost_no_question_about_owners(here: Settings, vendor: Vendor) -> None:
    assert about(fetch(adjust="none"))["identity"] == {"SPY": "unknown"}
    assert spent(here) == (1, 0)


def test_owners_never_take_the_last_calls_of_the_budget_nor_stop_a_fetch(
    settings: Settings, vendor: Vendor
) -> None:
    with use(settings.with_(rest_calls_per_day=2 * len(ALL) + 3)):
        assert len(fetch(ALL, adjust="splits")) == 20
    assert not any(a.path.startswith("/vX/") for a in vendor.asked)
    whole = vendor.answer
    vendor.answer = lambda asked: Reply(status=403) if asked.path.startswith("/vX/") else whole(asked)
    with use(settings.with_(home=settings.home / "other")):
        assert about(fetch(adjust="splits"))["identity"] == {"SPY": "unknown"}


@pytest.mark.parametrize(
    ("changes", "seams"),
    [
        ([("2003-09-10", "X")], [(date.min, "2003-09-10", "")]),
        ([("2012-05-18", "FB"), ("2022-06-09", "X")], [(date.min, "2022-06-09", "FB")]),
        (
            [("2003-09-10", "X"), ("2008-01-02", "Y"), ("2010-01-04", "X")],
            [(date.min, "2003-09-10", ""), ("2008-01-02", "2010-01-04", "Y")],
        ),
        ([("2003-09-10", "X"), ("2008-01-02", "X")], [(date.min, "2003-09-10", "")]),
        ([], []),
    ],
)
def test_seams_lie_where_a_symbol_came_to_its_owner(
    changes: list[tuple[str, str]], seams: list[tuple[str | date, str, str]]
) -> None:
    owner = Owner(0, "Someone", tuple((date.fromisoformat(day), ticker) for day, ticker in changes))

    def day(text: str | date) -> date:
        return text if isinstance(text, date) else date.fromisoformat(text)

    assert owner.seams("X") == [Seam(day(a), day(b), earlier) for a, b, earlier in seams]
