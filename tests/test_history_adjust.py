"""AAPL across its 7:1 and 4:1 splits through the exchange, beside an answer that nobody here computed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest

from history_tape import (
    APPLE_DIVIDENDS,
    APPLE_SPLITS,
    DAY_BARS,
    MINUTES,
    days_of,
    minutes_of,
    write_folder,
)
from tapelab import errors
from tapelab.exchange import Exchange, serve
from tapelab.history import fetch_data
from tapelab.settings import Settings, use

FIRST, LAST = "2020-06-01", "2020-11-30"
ODD = date(2020, 7, 9)  # here the sources differ in the raw close: 382.74 and 383.01
Method = Literal["rest", "flat_file"]


@pytest.fixture(scope="module")
def exchange(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    days = pd.concat(
        [
            days_of(shared, ["AAPL", "IBM"], "2014-04-28", "2014-06-30"),
            days_of(shared, ["AAPL", "IBM"], "2019-01-02", LAST),
        ]
    )
    folder = write_folder(
        tmp_path_factory.mktemp("apple"),
        {DAY_BARS: days, MINUTES: minutes_of(shared, ["AAPL", "TWX"], "2014-06-05", "2014-06-09")},
        {"splits": APPLE_SPLITS, "dividends": APPLE_DIVIDENDS},
    )
    with serve(flat_files=folder, speed=0) as found:
        yield found


@pytest.fixture(scope="module")
def at(exchange: Exchange, tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Settings]:
    """A home for either route."""
    return {way: exchange.settings(tmp_path_factory.mktemp(way)) for way in ("rest", "flat_file")}


@pytest.fixture(scope="module")
def theirs(shared: Path) -> pd.DataFrame:
    """The independent series: `close` adjusted for splits, `adj_close` for dividends too."""
    found = pd.read_csv(shared / "data/aapl_splits/aapl_2019_2024_split_adjusted.csv")
    return found.set_index(pd.to_datetime(found["date"]).dt.date)


def closes(frame: pd.DataFrame) -> pd.Series[float]:
    return frame.set_index("session")["close"]


@pytest.mark.parametrize("method", ["rest", "flat_file"])
def test_apples_days_across_four_for_one_are_the_independent_series(
    at: dict[Method, Settings], theirs: pd.DataFrame, method: Method
) -> None:
    with use(at[method]):
        mine = fetch_data("AAPL", FIRST, LAST, "1d", method)
        raw = fetch_data("AAPL", FIRST, LAST, "1d", method, adjust="none")
    ours, answer = closes(mine), theirs["close"]
    common = ours.index.intersection(answer.index)
    before = [day for day in common if day < date(2020, 8, 31)]
    difference = (ours[common] - answer[common]).abs()
    assert len(before) == 64
    assert len(common) == len(ours) == 128
    assert (difference.drop(ODD) < 0.00501).all(), "to the cent, the rounding of their prices"
    assert ours[date(2020, 8, 28)] == pytest.approx(499.23 / 4)
    assert ours[date(2020, 8, 31)] == closes(raw)[date(2020, 8, 31)]
    volume = mine.set_index("session")["volume"] / raw.set_index("session")["volume"]
    assert set(volume[before].round(9)) == {4.0}
    [known] = mine.attrs["tapelab"]["splits"]
    assert known == {"symbol": "AAPL", "date": "2020-08-31", "ratio": "4:1", "seen_in_prices": True}


@pytest.mark.parametrize("method", ["rest", "flat_file"])
def test_with_dividends_apples_returns_are_the_independent_series(
    at: dict[Method, Settings], theirs: pd.DataFrame, method: Method
) -> None:
    with use(at[method]):
        ours = closes(fetch_data("AAPL", FIRST, LAST, "1d", method, adjust="all"))
        splits = closes(fetch_data("AAPL", FIRST, LAST, "1d", method))
    answer = theirs["adj_close"]
    last = ours.index[-1]
    # Later dividends scale the whole of their series: compare what is left of one dollar.
    relative, expected = ours / ours[last], answer[ours.index] / answer[last]
    assert (relative / expected - 1).drop(ODD).abs().max() < 1.5e-4, "two prices rounded to the cent"
    # By hand: 0.82 on 455.61 before 2020-08-07, 0.205 on 119.03 before 2020-11-06.
    assert ours[date(2020, 8, 6)] / splits[date(2020, 8, 6)] == pytest.approx(
        (1 - 0.82 / 455.61) * (1 - 0.205 / 119.03)
    )
    assert ours[date(2020, 11, 6)] == splits[date(2020, 11, 6)]


@pytest.mark.parametrize("method", ["rest", "flat_file"])
def test_apples_minutes_across_seven_for_one_step_at_the_first_bar_of_the_ex_date(
    at: dict[Method, Settings], shared: Path, method: Method
) -> None:
    with use(at[method]):
        mine = fetch_data("AAPL", "2014-06-05", "2014-06-09", "1m", method)
        dividends = fetch_data("AAPL", "2014-06-05", "2014-06-09", "1m", method, adjust="all")
    raw = minutes_of(shared, ["AAPL"], "2014-06-05", "2014-06-09").sort_values("window_start")
    assert mine["timestamp"].astype("int64").tolist() == raw["window_start"].tolist()
    ex_date = (mine["session"] >= date(2014, 6, 9)).to_numpy()
    shares = np.where(ex_date, 4, 28)  # of 2020 for one of that day
    for name in ("open", "high", "low", "close"):
        assert np.allclose(mine[name], raw[name] / shares, rtol=1e-12)
    assert np.allclose(mine["volume"], raw["volume"] * shares, rtol=1e-12)
    # In New York the first bar of the ex-date is at 04:00, long before the open.
    first = mine[ex_date].iloc[0]["timestamp"].tz_convert("America/New_York")
    assert (first.hour, first.minute) == (4, 0)
    # Eight later dividends lie on every one of these minutes alike; volumes know none of them.
    ratio = dividends["close"] / mine["close"]
    assert ratio.max() - ratio.min() < 1e-12
    assert ratio.iloc[0] < 1
    assert dividends["volume"].equals(mine["volume"])


@pytest.mark.parametrize("interval", ["1w", "1mo"])
def test_weeks_and_months_are_made_of_adjusted_days(at: dict[Method, Settings], interval: str) -> None:
    with use(at["rest"]):
        days = fetch_data("AAPL", "2020-08-01", "2020-09-30", "1d")
        longer = fetch_data("AAPL", "2020-08-01", "2020-09-30", interval)
    # The week of the split begins on it, the month before it: neither holds a jump.
    assert (longer["high"] / longer["low"]).max() < 1.35
    assert longer["high"].max() == days["high"].max()
    if interval == "1mo":
        assert longer["volume"].sum() == pytest.approx(days["volume"].sum())


def test_a_symbol_without_splits_is_as_it_was(at: dict[Method, Settings]) -> None:
    with use(at["rest"]):
        raw = fetch_data("IBM", FIRST, LAST, "1d", adjust="none")
        assert fetch_data("IBM", FIRST, LAST, "1d", adjust="all").equals(raw)


def test_a_tape_that_knows_no_dividends_says_so(shared: Path, tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path / "tape",
        {DAY_BARS: days_of(shared, ["AAPL"], "2020-08-24", "2020-09-04")},
        {"splits": APPLE_SPLITS},
    )
    with serve(flat_files=folder) as exchange, exchange.use():
        assert len(fetch_data("AAPL", "2020-08-24", "2020-09-04")) == 10
        with pytest.raises(errors.NotFound, match=r'dividends.*adjust="none"'):
            fetch_data("AAPL", "2020-08-24", "2020-09-04", adjust="all")


@pytest.mark.slow
def test_all_days_before_the_split_agree_as_often_as_the_sources_do(
    shared: Path, theirs: pd.DataFrame, tmp_path: Path
) -> None:
    days = days_of(shared, ["AAPL"], "2019-01-02", "2021-03-31")
    folder = write_folder(tmp_path / "tape", {DAY_BARS: days}, {"splits": APPLE_SPLITS})
    found = {}
    with serve(flat_files=folder) as exchange:
        for method in ("rest", "flat_file"):
            with exchange.use():
                found[method] = closes(fetch_data("AAPL", "2019-01-02", "2021-03-31", "1d", method))
    pd.testing.assert_series_equal(found["rest"], found["flat_file"])
    common = found["rest"].index.intersection(theirs.index)
    difference = (found["rest"][common] - theirs["close"][common]).abs()
    assert len(common) > 560
    # Measured by those who collected them: to the cent on 91 % of the days, within two on 99.8 %.
    assert (difference < 0.00501).mean() > 0.905
    assert (difference < 0.02001).mean() > 0.995
