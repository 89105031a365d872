"""Symbols, intervals, ranges, sessions and the clock mean what the interface says they mean."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.errors import BadRange, NoData, UnknownInterval, UnknownSymbol, UsageError
from tapelab.market import clock, ranges, sessions, symbols
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

NEW_YORK = ZoneInfo("America/New_York")


def ns(text: str, zone: ZoneInfo = NEW_YORK) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * clock.SECOND


@pytest.mark.parametrize(
    ("text", "market", "v2", "v3", "stream", "file"),
    [
        # massive-api.md 1.2
        ("AAPL", Market.STOCKS, "AAPL", "AAPL", "AAPL", "AAPL"),
        ("BRK.B", Market.STOCKS, "BRK.B", "BRK.B", "BRK.B", "BRK.B"),
        ("KIMpL", Market.STOCKS, "KIMpL", "KIMpL", "KIMpL", "KIMpL"),
        ("O:AAPL251219C00150000", Market.OPTIONS, *["O:AAPL251219C00150000"] * 4),
        ("X:BTC-USD", Market.CRYPTO, "X:BTCUSD", "X:BTC-USD", "BTC-USD", "X:BTC-USD"),
        ("X:BTCUSD", Market.CRYPTO, "X:BTCUSD", "X:BTC-USD", "BTC-USD", "X:BTC-USD"),
        ("C:EURUSD", Market.FOREX, "C:EURUSD", "C:EUR-USD", "EUR/USD", "C:EUR-USD"),
        ("C:EUR/USD", Market.FOREX, "C:EURUSD", "C:EUR-USD", "EUR/USD", "C:EUR-USD"),
        ("I:SPX", Market.INDICES, *["I:SPX"] * 4),
    ],
)
def test_every_protocol_spells_a_symbol_its_own_way(text, market, v2, v3, stream, file):
    found = symbols.parse(text)
    assert (found.market, found.rest_v2, found.rest_v3, found.websocket, found.flat_file) == (
        market,
        v2,
        v3,
        stream,
        file,
    )


def test_futures_are_told_by_their_market():
    assert symbols.parse("ESZ4", Market.FUTURES).websocket == "ESZ4"


@pytest.mark.parametrize("bad", ["", "aapl", "AAPL ", "../AAPL", "O:AAPL", "X:BTC", "C:€", "A" * 3 + "\n"])
def test_what_is_not_spelt_like_a_symbol_is_refused(bad):
    with pytest.raises(UsageError):
        symbols.parse(bad)


def test_a_lower_case_stock_is_asked_about_and_never_changed():
    with pytest.raises(UnknownSymbol, match="Did you mean 'AAPL'"):
        symbols.parse("aapl")


def test_one_call_is_about_one_market():
    with pytest.raises(UsageError, match="crypto, stocks"):
        symbols.parse_all(["AAPL", "X:BTC-USD"])
    assert [s.text for s in symbols.parse_all(["B", "A", "B"])] == ["B", "A"]
    for wrong in (12, None, [12]):
        with pytest.raises(UsageError, match="is not a symbol"):
            symbols.parse_all(wrong)


def test_test_symbols_are_known():
    assert symbols.is_test("ZVZZT")
    assert symbols.is_test("NTEST.Q")
    assert symbols.is_test(symbols.parse("C:XTS-USD"))
    assert not symbols.is_test("AAPL")


@pytest.mark.parametrize(
    ("text", "means"),
    [
        *[("1m", "1m"), ("1min", "1m"), ("5min", "5m"), ("1h", "1h"), ("1H", "1h"), ("60", None)],
        *[("1d", "1d"), ("1D", "1d"), ("D", "1d"), ("1W", "1w"), ("1mo", "1mo"), ("1ME", None), ("7m", None)],
    ],
)
def test_intervals_are_spelt_as_here_or_as_in_pandas(text, means):
    if means is None:
        with pytest.raises(UnknownInterval, match="Known: 1s 1m 5m"):
            Interval.parse(text)
    else:
        assert Interval.parse(text).text == means


@pytest.mark.parametrize(
    ("start", "end", "begins", "ends"),
    [
        ("2026-10-02", "2026-10-02", "2026-10-02T00:00", "2026-10-03T00:00"),
        (date(2026, 10, 1), date(2026, 10, 2), "2026-10-01T00:00", "2026-10-03T00:00"),
        (datetime(2026, 10, 1), datetime(2026, 10, 2), "2026-10-01T00:00", "2026-10-03T00:00"),
        (pd.Timestamp("2026-10-01"), pd.Timestamp("2026-10-02"), "2026-10-01T00:00", "2026-10-03T00:00"),
        ("2026-10-02T09:30", "2026-10-02T16:00", "2026-10-02T09:30", "2026-10-02T16:00"),
        ("2026-10-02T13:30+00:00", "2026-10-02T20:00Z", "2026-10-02T09:30", "2026-10-02T16:00"),
        # A day of 25 hours when the clocks go back, and of 23 when they go forward.
        ("2026-10-30", "2026-11-02", "2026-10-30T00:00", "2026-11-03T00:00"),
    ],
)
def test_a_date_means_the_whole_exchange_day_and_an_instant_excludes_its_end(start, end, begins, ends):
    found = ranges.resolve(start, end)
    assert (found.start, found.end) == (ns(begins), ns(ends))


def test_an_instant_keeps_its_nanoseconds():
    found = ranges.resolve(pd.Timestamp("2026-10-02T09:30:00.123456789Z"), "2026-10-02T16:00Z")
    assert found.start % clock.SECOND == 123_456_789


@pytest.mark.parametrize(
    ("start", "end", "error", "says"),
    [
        ("2026-10-05", "2026-10-02", BadRange, "ends .* before it starts"),
        ("2099-01-01", "2099-01-02", BadRange, "future"),
        ("2026-10-03", "2026-10-04", NoData, "no trading session"),
        ("2026-13-01", "2026-10-04", BadRange, "not a date"),
        (20261002, "2026-10-04", UsageError, "neither"),
        # Clocks change on 2026-11-01 and 2026-03-08 at 02:00 New York.
        ("2026-11-01T01:30", "2026-11-02", BadRange, "twice"),
        ("2026-03-08T02:30", "2026-03-09", BadRange, "never"),
    ],
)
def test_a_senseless_range_is_refused_with_what_is_wrong(start, end, error, says):
    with pytest.raises(error, match=says):
        ranges.resolve(start, end)


def test_an_end_in_the_future_is_cut_to_now():
    with clock.use(clock.FixedClock(ns("2026-10-02T12:00"))):
        assert ranges.resolve("2026-10-01", "2026-12-31").end == ns("2026-10-02T12:00")


@given(
    st.datetimes(datetime(2000, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC)),
    st.timedeltas(pd.Timedelta(days=10), pd.Timedelta(days=90)),
)
def test_no_moment_belongs_to_two_days(start, length):
    whole = ranges.resolve(start, start + length)
    days = [s.date for s in whole.sessions()]
    assert days == sorted(set(days))
    assert whole.first <= days[0]
    assert days[-1] <= whole.last


def test_a_session_knows_its_hours_and_its_early_close():
    normal = sessions.session(Market.STOCKS, date(2026, 10, 2))
    assert normal is not None
    assert (normal.start, normal.open, normal.close, normal.end) == tuple(
        ns(f"2026-10-02T{at}") for at in ("04:00", "09:30", "16:00", "20:00")
    )
    assert normal.regular_minutes == 390
    early = sessions.session(Market.STOCKS, date(2026, 11, 27))
    assert early is not None
    assert early.early_close
    assert (early.close, early.end) == (ns("2026-11-27T13:00"), ns("2026-11-27T17:00"))
    assert sessions.session(Market.STOCKS, date(2026, 11, 26)) is None


def test_an_exchange_date_is_the_date_on_the_exchanges_wall():
    import numpy as np

    instants = np.array([ns("2026-10-02T00:00"), ns("2026-10-02T23:59")], dtype=np.int64)
    assert sessions.dates_of(Market.STOCKS, instants).tolist() == [date(2026, 10, 2)] * 2
    assert sessions.dates_of(Market.CRYPTO, instants).tolist() == [date(2026, 10, 2), date(2026, 10, 3)]
    assert sessions.dates_of(Market.INDICES, instants).tolist() == [date(2026, 10, 1), date(2026, 10, 2)]


def test_crypto_never_closes_and_currencies_rest_on_saturday():
    assert len(sessions.between(Market.CRYPTO, date(2026, 10, 1), date(2026, 10, 7))) == 7
    forex = [s.date.day for s in sessions.between(Market.FOREX, date(2026, 10, 1), date(2026, 10, 7))]
    assert forex == [1, 2, 4, 5, 6, 7]


@pytest.mark.parametrize(("market", "midnight"), [(Market.OPTIONS, "00:00"), (Market.INDICES, "01:00")])
def test_options_and_indices_keep_new_yorks_calendar_and_have_bars_at_any_hour(market, midnight):
    found = sessions.session(market, date(2026, 11, 27))
    assert found is not None
    assert (found.start, found.end) == (ns(f"2026-11-27T{midnight}"), ns(f"2026-11-28T{midnight}"))
    assert (found.open, found.close) == (ns("2026-11-27T09:30"), ns("2026-11-27T13:00"))
    assert sessions.session(market, date(2026, 11, 26)) is None
