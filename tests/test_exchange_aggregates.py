"""The vendor's aggregates by hand-worked examples, and pages that always make up the whole."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapelab.exchange.rest.aggregates import BASES, Page, Windows, fold, page
from tapelab.market import sessions, tables
from tapelab.market.symbols import Market

MINUTE = 60_000_000_000
HOUR = 60 * MINUTE
DAY = date(2024, 4, 5)
MIDNIGHT = 1712289600000000000  # 2024-04-05 00:00 New York


def minutes(*starts: int) -> pa.Table:
    """Minute bars at these minutes after midnight of 2024-04-05; open 1, 2, 3 … close one more."""
    n = len(starts)
    return tables.conform(
        pa.table(
            {
                "timestamp": [MIDNIGHT + start * MINUTE for start in starts],
                "session": pa.array([DAY] * n, pa.date32()),
                "symbol": ["AAPL"] * n,
                "open": [float(k + 1) for k in range(n)],
                "high": [float(k + 3) for k in range(n)],
                "low": [float(k) for k in range(n)],
                "close": [float(k + 2) for k in range(n)],
                "volume": [100.0] * n,
                "vwap": [float(k + 1) for k in range(n)],
                "transactions": [2] * n,
            }
        ),
        tables.BARS,
    )


def days(*dates: date) -> list[pa.Table]:
    def bar(day: date) -> pa.Table:
        row = {"timestamp": sessions.day_start(Market.STOCKS, day), "session": day, "symbol": "AAPL"}
        numbers = {"open": 1.0, "high": 2.0, "low": 0.5, "close": 1.5, "volume": 10.0, "transactions": 1}
        return tables.conform(pa.table({k: [v] for k, v in {**row, **numbers}.items()}), tables.BARS)

    return [bar(day) for day in dates]


def starts_of(found: Page) -> list[int]:
    return [(t - MIDNIGHT) // MINUTE for t in found.bars.column("timestamp").to_pylist()]


def test_the_vendors_example_of_the_limit() -> None:
    """1/hour over 14:00-16:00 with limit=100: the second hour has 40 of its 60 minutes, so one row."""
    table = minutes(*range(14 * 60, 16 * 60))
    low, high = MIDNIGHT + 14 * HOUR, MIDNIGHT + 16 * HOUR - 1
    found = page([table], Windows(1, "hour", DAY), low, high, limit=100, sort="asc")
    assert starts_of(found) == [14 * 60]
    assert found.base == 60
    assert found.more == MIDNIGHT + 15 * HOUR
    rest = page([table], Windows(1, "hour", DAY), MIDNIGHT + 15 * HOUR, high, limit=100, sort="asc")
    assert (starts_of(rest), rest.more) == ([15 * 60], None)


def test_newest_first_drops_the_oldest_part_instead() -> None:
    table = minutes(*range(14 * 60, 16 * 60))
    found = page([table], Windows(1, "hour", DAY), MIDNIGHT, MIDNIGHT + 24 * HOUR - 1, limit=100, sort="desc")
    assert starts_of(found) == [15 * 60]
    assert found.more == MIDNIGHT + 15 * HOUR - 1


def test_the_last_page_has_no_next_even_if_it_is_exactly_full() -> None:
    table = minutes(570, 571, 572, 573)
    ends = MIDNIGHT, MIDNIGHT + 24 * HOUR - 1
    assert page([table], Windows(1, "minute", DAY), *ends, limit=4, sort="asc").more is None
    assert (
        page([table], Windows(1, "minute", DAY), *ends, limit=3, sort="asc").more == MIDNIGHT + 573 * MINUTE
    )


def test_the_next_page_begins_where_the_last_window_ends_not_where_the_next_bar_is() -> None:
    """As in the vendor's own sample: two day bars to Friday 2020-01-03, then from Saturday 00:00 New York."""
    tables_ = days(date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 6))
    first = sessions.day_start(Market.STOCKS, date(2020, 1, 2))
    last = sessions.day_start(Market.STOCKS, date(2020, 1, 11)) - 1
    found = page(tables_, Windows(1, "day", date(2020, 1, 2)), first, last, limit=2, sort="asc")
    assert found.more == 1578114000000 * 1_000_000


def test_a_window_longer_than_the_limit_is_given_whole() -> None:
    table = minutes(*range(600, 660), 700)
    found = page([table], Windows(1, "hour", DAY), MIDNIGHT, MIDNIGHT + 24 * HOUR - 1, limit=5, sort="asc")
    assert (starts_of(found), found.base) == ([600], 60)
    assert found.more == MIDNIGHT + 660 * MINUTE


def test_from_and_to_are_widened_to_whole_windows() -> None:
    table = minutes(*range(600, 720))
    low, high = MIDNIGHT + 610 * MINUTE, MIDNIGHT + 625 * MINUTE
    found = page([table], Windows(1, "hour", DAY), low, high, limit=5000, sort="asc")
    assert starts_of(found) == [600]
    assert found.base == 60


def test_a_bar_is_folded_from_its_minutes() -> None:
    table = minutes(600, 601, 603, 660)
    [first, second] = fold(
        table, Windows(1, "hour", DAY).starts(table.column("timestamp").to_numpy())
    ).to_pylist()
    assert (first["open"], first["high"], first["low"], first["close"]) == (1, 5, 0, 4)
    assert (first["volume"], first["vwap"], first["transactions"]) == (300, 2, 6)
    assert (second["open"], second["close"], second["vwap"]) == (4, 5, 4)


def test_a_bar_with_an_unknown_part_has_no_vwap() -> None:
    table = minutes(600, 601, 660)
    index = table.column_names.index("vwap")
    table = table.set_column(index, table.schema.field(index), pa.array([1.0, None, 3.0]))
    hours = fold(table, Windows(1, "hour", DAY).starts(table.column("timestamp").to_numpy()))
    assert hours.column("vwap").to_pylist() == [None, 3.0]


NEW_YEAR = date(2024, 1, 1)


@pytest.mark.parametrize(
    ("multiplier", "timespan", "day", "first", "following"),
    [
        (1, "day", date(2024, 4, 5), date(2024, 4, 5), date(2024, 4, 6)),
        (1, "week", date(2024, 4, 5), date(2024, 3, 31), date(2024, 4, 7)),  # weeks begin on Sunday
        (1, "week", date(2024, 3, 31), date(2024, 3, 31), date(2024, 4, 7)),
        (1, "month", date(2024, 2, 29), date(2024, 2, 1), date(2024, 3, 1)),
        (1, "quarter", date(2024, 6, 28), date(2024, 4, 1), date(2024, 7, 1)),
        (1, "year", date(2024, 6, 28), date(2024, 1, 1), date(2025, 1, 1)),
        (3, "day", date(2024, 1, 6), date(2024, 1, 4), date(2024, 1, 7)),  # counted from 1 January
        (2, "week", date(2024, 1, 9), date(2023, 12, 31), date(2024, 1, 14)),
        (2, "month", date(2024, 4, 5), date(2024, 3, 1), date(2024, 5, 1)),
        (2, "quarter", date(2024, 8, 5), date(2024, 7, 1), date(2025, 1, 1)),
    ],
)
def test_long_windows_begin_where_the_calendar_says(
    multiplier: int, timespan: str, day: date, first: date, following: date
) -> None:
    windows = Windows(multiplier, timespan, NEW_YEAR)
    start = windows.start(sessions.day_start(Market.STOCKS, day))
    assert start == sessions.day_start(Market.STOCKS, first)
    assert windows.end(start) == sessions.day_start(Market.STOCKS, following)


def test_short_windows_are_counted_from_midnight_of_the_exchange() -> None:
    seven = Windows(7, "minute", DAY)
    assert seven.start(MIDNIGHT + 20 * MINUTE) == MIDNIGHT + 14 * MINUTE
    # The last one of a day ends with the day: 1440 is no multiple of 7.
    assert seven.end(MIDNIGHT + 1435 * MINUTE) == MIDNIGHT + 1440 * MINUTE
    assert Windows(4, "hour", DAY).start(MIDNIGHT + 570 * MINUTE) == MIDNIGHT + 8 * HOUR


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[pa.Table], Windows, int, str]:
    marks = draw(st.sets(st.integers(240, 1199), min_size=1, max_size=120))
    span, longest = draw(st.sampled_from([("minute", 90), ("hour", 5)]))
    windows = Windows(draw(st.integers(1, longest)), span, DAY)
    table = minutes(*sorted(marks))
    cut = draw(st.integers(0, len(table)))
    parts = [part for part in (table.slice(0, cut), table.slice(cut)) if len(part)]
    return parts, windows, draw(st.integers(1, 130)), draw(st.sampled_from(["asc", "desc"]))


@settings(deadline=None, max_examples=150)
@given(questions())
def test_the_pages_make_up_the_whole_whatever_the_limit(
    question: tuple[list[pa.Table], Windows, int, str],
) -> None:
    parts, windows, limit, sort = question
    low, high = MIDNIGHT, MIDNIGHT + 24 * HOUR - 1
    ordered = parts if sort == "asc" else parts[::-1]
    whole = page(ordered, windows, low, high, limit=50_000, sort=sort).bars  # type: ignore[arg-type]
    pages = []
    while True:
        found = page(ordered, windows, low, high, limit=limit, sort=sort)  # type: ignore[arg-type]
        assert found.base <= max(limit, windows.multiplier * (60 if windows.timespan == "hour" else 1))
        pages.append(found.bars)
        if found.more is None:
            break
        low, high = (found.more, high) if sort == "asc" else (low, found.more)
    assert pa.concat_tables(pages) == whole
    starts = whole.column("timestamp").to_numpy()
    assert np.all(np.diff(starts) > 0 if sort == "asc" else np.diff(starts) < 0)


@given(st.integers(1, 40), st.sampled_from(sorted(BASES)), st.integers(0, 4000))
def test_every_instant_lies_in_exactly_one_window(multiplier: int, timespan: str, days_on: int) -> None:
    windows = Windows(multiplier, timespan, date(2015, 1, 1))
    instant = sessions.day_start(Market.STOCKS, date(2015, 1, 1) + timedelta(days=days_on)) + 10 * HOUR
    start = windows.start(instant)
    end = windows.end(start)
    assert start <= instant < end
    assert windows.start(end) == end
    assert windows.start(end - 1) == start
