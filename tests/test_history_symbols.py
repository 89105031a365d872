"""Who traded on a day; and what is said to somebody who asks for what is not there."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from history_tape import DAY_BARS, HEADER, write_folder
from tapelab import errors
from tapelab.exchange import Exchange, serve
from tapelab.history import fetch_data, plan_fetch
from tapelab.history.symbols import list_symbols
from tapelab.market import sessions
from tapelab.market.symbols import Market
from tapelab.settings import Settings, use
from test_flatfiles import bucket, settings_for  # noqa: F401

DAY = "2013-10-09"
NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture(scope="module")
def exchange(real_day: Path) -> Iterator[Exchange]:
    with serve(flat_files=real_day, speed=0) as found:
        yield found


@pytest.fixture(scope="module")
def settings(exchange: Exchange, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose lake holds the day bars of one day, and no more than that."""
    found = exchange.settings(tmp_path_factory.mktemp("home"))
    with use(found):
        assert list_symbols(DAY) == ["AIG", "BAC", "IBM", "SPY"]
    return found


@pytest.fixture
def here(settings: Settings) -> Iterator[Settings]:
    with use(settings):
        yield settings


def test_symbols_of_a_day_are_those_of_its_file_largest_first(here: Settings, real_day: Path) -> None:
    raw = pd.read_csv(real_day / f"us_stocks_sip/day_aggs_v1/2013/10/{DAY}.csv.gz").set_index("ticker")
    largest = (raw["close"] * raw["volume"]).sort_values(ascending=False).index.tolist()
    assert list_symbols(DAY, top=2) == largest[:2]
    assert list_symbols(date(2013, 10, 9), top=99) == largest


def test_a_file_that_is_here_needs_no_exchange(settings: Settings) -> None:
    with use(settings.with_(s3_secret_access_key="wrong")):
        assert len(list_symbols(DAY)) == 4


def test_test_symbols_are_left_out_and_a_row_that_comes_twice_counts_once(tmp_path: Path) -> None:
    start = sessions.day_start(Market.STOCKS, date(2026, 10, 2))
    rows = [("AAA", 10, 5.0), ("ZVZZT", 10_000, 20.0), ("NTEST.Q", 10_000, 9.0), ("BBB", 30, 1.0)]
    rows += [("BBB", 30, 1.0), ("KIMpL", 1, 25.0)]
    table = pd.DataFrame([(t, v, c, c, c, c, start, 1) for t, v, c in rows], columns=HEADER)
    folder = write_folder(tmp_path / "tape", {DAY_BARS: table}, {})
    with serve(flat_files=folder) as exchange, exchange.use():
        assert list_symbols("2026-10-02") == ["AAA", "BBB", "KIMpL"]
        assert list_symbols("2026-10-02", top=2) == ["AAA", "BBB"]


def test_other_markets_have_their_symbols_and_their_test_currencies(
    bucket: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = bucket / "flatfiles/global_crypto/day_aggs_v1/2024/01/2024-01-06.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = sessions.day_start(Market.CRYPTO, date(2024, 1, 6))
    rows = [("X:BTC-USD", 10.5, 44_000.0), ("X:ETH-USD", 3.25, 2_200.0), ("X:XTS-USD", 9.0, 1.0)]
    table = pd.DataFrame([(t, v, c, c, c, c, start, 1) for t, v, c in rows], columns=HEADER)
    path.write_bytes(gzip.compress(table.to_csv(index=False).encode()))
    with use(settings_for((bucket / "url").read_text(), tmp_path / "home", flat_file_gb_per_month=1)):
        assert list_symbols("2024-01-06", market="crypto") == ["X:BTC-USD", "X:ETH-USD"]
        assert list_symbols("2024-01-06", market="crypto", top=1) == ["X:BTC-USD"]


def test_a_simulated_market_lists_the_only_symbols_it_has() -> None:
    with serve(simulate=True, speed=0) as exchange, exchange.use():
        assert "ZVZZT" in list_symbols(exchange.day)


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"day": "2013-10-12"}, errors.NoData, "no trading session between 2013-10-12"),
        ({"day": "2099-01-05"}, errors.BadRange, "future"),
        ({"day": "9 October"}, errors.BadRange, "is not a date"),
        ({"day": "2013-10-15"}, errors.NotFound, "no file of us_stocks_sip/day_aggs_v1 for 2013-10-15"),
        ({"day": DAY, "top": 0}, errors.UsageError, "top=0 is not a number of symbols"),
        ({"day": DAY, "top": 2.5}, errors.UsageError, r"top=2\.5"),
        ({"day": DAY, "market": "stock"}, errors.UnknownName, "no market 'stock'.*'stocks'"),
        ({"day": DAY, "market": "indices", "top": 3}, errors.UsageError, "Indices have no volume"),
        ({"day": DAY, "market": "crypto"}, errors.NotFound, "no file of global_crypto/day_aggs_v1 for"),
    ],
)
def test_a_day_or_market_that_cannot_be_is_one_sentence(
    here: Settings, asked: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        list_symbols(**asked)  # type: ignore[arg-type]
    assert pd.Series([str(caught.value)]).str.contains(says).all()


# Questions that have no answer.


@pytest.mark.parametrize(
    ("symbols", "span", "error", "says"),
    [
        (["SPY", "BCA"], (DAY, DAY), errors.UnknownSymbol, "BCA has no bars .*Did you mean BAC"),
        ("BCA", (DAY, DAY), errors.UnknownSymbol, "BCA has no bars .*Did you mean BAC"),
        ("Spy", (DAY, DAY), errors.UnknownSymbol, "Spy has no bars .*Did you mean SPY"),
        ("spy", (DAY, DAY), errors.UnknownSymbol, "'spy' is not spelt like a stock.*Did you mean 'SPY'"),
        ("", (DAY, DAY), errors.UsageError, "is not a symbol"),
        ([], (DAY, DAY), errors.UsageError, "No symbol was given"),
        (["SPY", "X:BTC-USD"], (DAY, DAY), errors.UsageError, r"different markets \(crypto, stocks\)"),
        ("SPY", ("1998-03-02", "2003-09-09"), errors.BadRange, "begins on 2003-09-10, and the range ends on"),
        ("SPY", ("2013-10-12", "2013-10-13"), errors.NoData, "no trading session"),
        ("SPY", ("2013-12-25", "2013-12-25"), errors.NoData, "no trading session.*holidays"),
        ("SPY", ("2013-10-09T21:00", "2013-10-09T22:00"), errors.NoData, "no trading session.*closed hours"),
        ("SPY", ("2013-10-11", "2013-10-07"), errors.BadRange, "ends .* before it starts"),
        ("SPY", ("2013-11-03T01:30", "2013-11-04"), errors.BadRange, "happens twice on the exchange's clock"),
        ("SPY", ("2013-03-10T02:30", "2013-03-11"), errors.BadRange, "happens never on the exchange's clock"),
        ("SPY", ("soon", DAY), errors.BadRange, "start='soon' is not a date"),
        ("SPY", (20131009, DAY), errors.UsageError, "neither a date nor a datetime"),
    ],
)
def test_a_question_without_an_answer_is_one_sentence_with_a_next_step(
    here: Settings, symbols: str | list[str], span: tuple[object, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        fetch_data(symbols, *span, adjust="none")  # type: ignore[arg-type]
    assert isinstance(caught.value, errors.TapelabError)
    assert caught.value.remedy or caught.value.message.count(".") == 1
    assert pd.Series([str(caught.value)]).str.contains(says).all(), str(caught.value)


def test_the_repeated_hour_has_an_answer_once_it_has_a_zone(here: Settings) -> None:
    once = datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=0)
    again = datetime(2013, 11, 3, 1, 30, tzinfo=NEW_YORK, fold=1)
    ranges_ = [
        plan_fetch("SPY", moment, "2013-11-04", "1m", adjust="none").request.range for moment in (once, again)
    ]
    assert ranges_[1].start - ranges_[0].start == 3600 * 10**9


def test_naive_means_new_york_and_aware_means_what_it_says(here: Settings) -> None:
    naive = fetch_data("SPY", "2013-10-09T09:30", "2013-10-09T09:35", "1m", adjust="none")
    aware = fetch_data("SPY", "2013-10-09T13:30+00:00", "2013-10-09T15:35+02:00", "1m", adjust="none")
    assert len(naive) == 5
    assert naive.equals(aware)
