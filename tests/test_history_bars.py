"""Bars at every interval through the exchange: REST ≡ flat files ≡ cache ≡ what the vendor's client reads.

The tape: four real symbols, their five real days laid over sessions on both clock changes and an early close,
with a split each way, dividends, and day bars that open and close at official prices.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from massive import RESTClient

from history_tape import DAY_BARS, MINUTES, dividend, split, write_folder
from tapelab import errors
from tapelab.exchange import Exchange, serve
from tapelab.history import fetch_data
from tapelab.market import sessions
from tapelab.market.symbols import Market
from tapelab.settings import Settings, use

Method = Literal["rest", "flat_file"]
NEW_YORK = ZoneInfo("America/New_York")
ALL = ["AIG", "BAC", "IBM", "SPY"]
REAL = [date(2013, 10, day) for day in (7, 8, 9, 10, 11)]

# Clocks change on 2025-03-09 and 2025-11-02, New York closes at 13:00 on 2025-11-28.
OF_MINUTES = [("2025-03-06", "2025-03-11"), ("2025-10-30", "2025-11-04"), ("2025-11-26", "2025-11-28")]
OF_DAYS = [("2025-03-01", "2025-03-31"), ("2025-10-01", "2025-11-30")]  # whole months
# Ranges are taken from these, so that weeks and months that they touch have files.
SPANS = {"minutes": OF_MINUTES, "days": [("2025-03-03", "2025-03-28"), ("2025-10-06", "2025-11-28")]}

# IBM 4:1 between two Mondays of the same month, AIG 1:5 on the day after the clocks changed.
SPLITS = {"IBM": ("2025-03-10", 1, 4), "AIG": ("2025-11-03", 5, 1)}
DIVIDENDS = [
    dividend("BAC", "2025-03-11", 0.12),
    dividend("IBM", "2025-11-06", 0.4),
    dividend("SPY", "2025-10-31", 0.8),
    dividend("SPY", "2025-11-28", 0.3),
]
INTRADAY = ["1m", "5m", "15m", "30m", "1h", "4h"]
DAILY = ["1d", "1w", "1mo"]
ADJUSTMENTS = ["none", "splits", "all"]


@pytest.fixture(scope="module")
def exchange(real_day: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    folder = write_folder(
        tmp_path_factory.mktemp("tape"),
        {MINUTES: laid_over(real_day, MINUTES, OF_MINUTES), DAY_BARS: laid_over(real_day, DAY_BARS, OF_DAYS)},
        {"splits": [split(name, *of) for name, of in SPLITS.items()], "dividends": DIVIDENDS},
    )
    with serve(flat_files=folder, speed=0) as found:
        yield found


def laid_over(real_day: Path, product: str, spans: list[tuple[str, str]]) -> pd.DataFrame:
    """The five real days, again and again, at the same wall clock, in the shares of each session."""
    real = [pd.read_csv(real_day / f"us_stocks_sip/{product}/2013/10/{day}.csv.gz") for day in REAL]
    parts = []
    found = [s for span in spans for s in sessions.between(Market.STOCKS, *map(date.fromisoformat, span))]
    for number, session in enumerate(found):
        rows = real[number % 5].copy()
        was = sessions.day_start(Market.STOCKS, REAL[number % 5])
        midnight = sessions.day_start(Market.STOCKS, session.date)
        rows["window_start"] += midnight - was
        if product == MINUTES:
            rows = rows[rows["window_start"] < session.end]
        for name, (day, old, new) in SPLITS.items():
            of = (rows["ticker"] == name) & (session.date >= date.fromisoformat(day))
            shares = new / old
            rows = rows.astype({"volume": float})
            for column in ("open", "high", "low", "close"):
                rows.loc[of, column] = (rows.loc[of, column] / shares).round(4)
            rows.loc[of, "volume"] = (rows.loc[of, "volume"] * shares).round(6)  # as the vendor writes it
        if product == DAY_BARS:
            # Official prices are not the first and the last minute's.
            rows["open"] = (rows["open"] + 0.01).round(4)
            rows["close"] = (rows["close"] - 0.02).round(4)
            rows["high"] = rows[["high", "open", "close"]].max(axis=1)
            rows["low"] = rows[["low", "open", "close"]].min(axis=1)
        parts.append(rows)
    return pd.concat(parts)


@pytest.fixture(scope="module")
def homes(exchange: Exchange, tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Settings]:
    """A home that saw all of it by REST and one that saw all of it by flat file."""
    found: dict[Method, Settings] = {}
    for method in ("rest", "flat_file"):
        found[method] = exchange.settings(tmp_path_factory.mktemp(method))
        with use(found[method]):
            for spans, interval in ((OF_MINUTES, "1m"), (OF_DAYS, "1d")):
                for span in spans:
                    known = fetch_data(ALL, *span, interval, method, adjust="none").attrs["tapelab"]
                    assert set(known["routes"]) == {method}
    return found


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="vwap"), other.drop(columns="vwap"), check_exact=True)


def both(
    homes: dict[Method, Settings], symbols: list[str], span: tuple[object, object], **how: str
) -> pd.DataFrame | str:
    """What either home answers, which has to be the same; an error as its text."""
    found: list[pd.DataFrame | str] = []
    for settings in homes.values():
        with use(settings):
            try:
                found.append(fetch_data(symbols, *span, **how))  # type: ignore[call-overload]
            except errors.TapelabError as error:
                found.append(f"{type(error).__name__}: {error}")
    one, other = found
    if isinstance(one, str) or isinstance(other, str):
        assert str(one) == str(other)
        return str(one)
    same(one, other)
    return one


@pytest.mark.parametrize("adjust", ["none", "all"])
@pytest.mark.parametrize("hours", ["all", "regular"])
@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "4h", *DAILY])
def test_what_came_by_rest_is_what_came_by_flat_file(
    homes: dict[Method, Settings], interval: str, hours: str, adjust: str
) -> None:
    spans = SPANS["minutes" if interval in INTRADAY or (interval, hours) == ("1d", "regular") else "days"]
    for span in spans:
        found = both(homes, ALL, span, interval=interval, hours=hours, adjust=adjust)
        if hours == "regular" and interval in ("1w", "1mo"):
            assert found == "UsageError: " + (
                f"Regular hours have no {interval} bars. Ask for all hours, or for 1d and shorter."
            )
            continue
        assert isinstance(found, pd.DataFrame)
        assert found.attrs["tapelab"]["route"] == "cache"
        assert found["symbol"].unique().tolist() == ALL
        assert (found["high"] >= found["low"]).all()
        if adjust != "none":
            # No jump of 4 or 5 is left within a series.
            closes = found.groupby("symbol")["close"]
            assert (closes.max() / closes.min()).max() < 1.5


def moments(spans: list[tuple[str, str]]) -> st.SearchStrategy[tuple[object, object]]:
    def within(span: tuple[str, str]) -> st.SearchStrategy[tuple[object, object]]:
        day = st.dates(*map(date.fromisoformat, span))
        minute = st.integers(1, 24 * 60 - 1).map(lambda n: timedelta(minutes=n))
        instant = st.builds(lambda d, m: datetime.combine(d, time()) + m, day, minute)
        return st.tuples(day | instant, day | instant)

    return st.sampled_from(spans).flatmap(within)


questions = st.fixed_dictionaries(
    {
        "interval": st.sampled_from([*INTRADAY, *DAILY]),
        "hours": st.sampled_from(["all", "regular"]),
        "adjust": st.sampled_from(ADJUSTMENTS),
    }
).flatmap(
    lambda how: st.tuples(
        st.just(how),
        moments(SPANS["days" if how["interval"] in DAILY and how["hours"] == "all" else "minutes"]),
        st.lists(st.sampled_from(ALL), min_size=1, max_size=4, unique=True),
    )
)
Question = tuple[dict[str, str], tuple[object, object], list[str]]


def ask_both_ways(exchange: Exchange, homes: dict[Method, Settings], question: Question) -> None:
    """The cache of both, then either route from nothing."""
    how, span, symbols = question
    known = both(homes, symbols, span, **how)
    for method in ("rest", "flat_file"):
        with exchange.use():
            try:
                fresh: pd.DataFrame | str = fetch_data(symbols, *span, method=method, **how)  # type: ignore[call-overload]
            except errors.TapelabError as error:
                fresh = f"{type(error).__name__}: {error}"
        if isinstance(known, str) or isinstance(fresh, str):
            assert str(fresh) == str(known)
            continue
        same(fresh, known)
        assert fresh.attrs["tapelab"]["route"] == method
        starts = fresh["timestamp"]
        if how["interval"] in INTRADAY and type(span[1]) is datetime:
            assert starts.max() < pd.Timestamp(span[1], tz=NEW_YORK)


@hypothesis_settings(
    max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=questions)
@example(
    question=(
        {"interval": "1h", "hours": "regular", "adjust": "all"},
        (date(2025, 10, 30), datetime(2025, 11, 4, 11)),
        ["AIG", "SPY"],
    )
)
def test_any_question_has_one_answer_by_either_route_and_from_the_cache(
    exchange: Exchange, homes: dict[Method, Settings], question: Question
) -> None:
    ask_both_ways(exchange, homes, question)


@pytest.mark.slow
@hypothesis_settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(question=questions)
def test_any_question_has_one_answer_at_length(
    exchange: Exchange, homes: dict[Method, Settings], question: Question
) -> None:
    ask_both_ways(exchange, homes, question)


# The vendor's own client.

CLIENTS = {
    "5m": (5, "minute"),
    "15m": (15, "minute"),
    "1h": (1, "hour"),
    "4h": (4, "hour"),
    "1d": (1, "day"),
    "1w": (1, "week"),
    "1mo": (1, "month"),
}


@pytest.fixture(scope="module")
def client(exchange: Exchange) -> Iterator[RESTClient]:
    found = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
    yield found
    found.client.clear()


@pytest.mark.parametrize("adjust", ["none", "splits"])
@pytest.mark.parametrize("interval", list(CLIENTS))
@pytest.mark.parametrize("symbol", ["IBM", "AIG"])
def test_the_vendors_client_reads_the_same_bars(
    homes: dict[Method, Settings], client: RESTClient, symbol: str, interval: str, adjust: str
) -> None:
    spans = SPANS["days" if interval in DAILY else "minutes"]
    if (symbol, interval, adjust) == ("IBM", "1mo", "splits"):
        # A month with a split inside: we add up adjusted days. What the vendor does is not known, and the
        # exchange scales the finished month.
        spans = spans[1:]
    for span in spans:
        with use(homes["rest"]):
            mine = fetch_data(symbol, *span, interval, adjust=adjust)  # type: ignore[call-overload]
        rows = client.list_aggs(symbol, *CLIENTS[interval], *span, adjusted=adjust == "splits", limit=50_000)
        theirs = pd.DataFrame([vars(row) for row in rows])
        assert (mine["timestamp"].astype("int64") // 10**6).tolist() == theirs["timestamp"].tolist()
        for name in ("open", "high", "low", "close", "volume"):
            # The vendor rounds what it adjusts; we do not.
            assert np.allclose(mine[name], theirs[name], rtol=0, atol=1e-6 + 1e-9 * mine[name].abs().max())


# By hand.


def starts(frame: pd.DataFrame) -> list[str]:
    return frame["timestamp"].dt.tz_convert(NEW_YORK).dt.strftime("%m-%d %H:%M").tolist()


def test_an_early_close_cuts_the_last_regular_hour_and_the_evening(homes: dict[Method, Settings]) -> None:
    with use(homes["flat_file"]):
        hours = fetch_data("SPY", "2025-11-28", "2025-11-28", "1h", hours="regular")
        minutes = fetch_data("SPY", "2025-11-28", "2025-11-28", "1m")
        regular = fetch_data("SPY", "2025-11-28", "2025-11-28", "1m", hours="regular")
        [day] = fetch_data("SPY", "2025-11-28", "2025-11-28", "1d", hours="regular").to_dict("records")
    assert starts(hours) == ["11-28 09:30", "11-28 10:30", "11-28 11:30", "11-28 12:30"]
    assert starts(minutes)[-1] < "11-28 17:00"
    assert (starts(regular)[0], starts(regular)[-1]) == ("11-28 09:30", "11-28 12:59")
    assert hours["volume"].iloc[-1] == regular["volume"][-30:].sum()
    assert (day["open"], day["close"]) == (regular["open"].iloc[0], regular["close"].iloc[-1])


@pytest.mark.parametrize(
    ("days", "utc_opens"),
    [
        (("2025-03-07", "2025-03-10"), ["14:30", "13:30"]),
        (("2025-10-31", "2025-11-03"), ["13:30", "14:30"]),
    ],
)
def test_over_a_clock_change_bars_keep_to_the_exchanges_wall_clock(
    homes: dict[Method, Settings], days: tuple[str, str], utc_opens: list[str]
) -> None:
    with use(homes["rest"]):
        regular = fetch_data("SPY", *days, "30m", hours="regular")
        four_hours = fetch_data("SPY", *days, "4h")
        whole = fetch_data("SPY", *days, "1d")
    opens = regular.groupby("session")["timestamp"].min().dt.strftime("%H:%M").tolist()
    assert opens == utc_opens
    assert regular.groupby("session").size().tolist() == [13, 13]
    of_day = ["04:00", "08:00", "12:00", "16:00"]
    assert [start[6:] for start in starts(four_hours)] == of_day * 2
    assert [start[6:] for start in starts(whole)] == ["00:00", "00:00"]


def test_the_vendors_day_bar_is_official_and_a_regular_day_is_its_minutes(
    homes: dict[Method, Settings],
) -> None:
    day = ("2025-03-07", "2025-03-07")
    with use(homes["rest"]):
        [official] = fetch_data("SPY", *day, "1d", adjust="none").to_dict("records")
        [regular] = fetch_data("SPY", *day, "1d", adjust="none", hours="regular").to_dict("records")
        minutes = fetch_data("SPY", *day, "1m", adjust="none", hours="regular")
    assert regular["open"] == minutes["open"].iloc[0] != official["open"]
    assert regular["close"] == minutes["close"].iloc[-1] != official["close"]
    assert regular["timestamp"] == pd.Timestamp("2025-03-07 09:30", tz=NEW_YORK)
    assert official["timestamp"] == pd.Timestamp("2025-03-07", tz=NEW_YORK)


def test_no_bar_is_made_where_nothing_traded(homes: dict[Method, Settings]) -> None:
    with use(homes["rest"]):
        minutes = fetch_data("AIG", "2025-11-28", "2025-11-28", "1m")
        five = fetch_data("AIG", "2025-11-28", "2025-11-28", "5m")
    traded = set(minutes["timestamp"].dt.floor("5min"))
    assert set(five["timestamp"]) == traded
    assert len(traded) < 13 * 12
