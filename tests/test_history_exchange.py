"""History through the stand-in exchange: real bars over real sockets, REST ≡ flat files ≡ cache."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tapelab import errors
from tapelab.budget import Budget
from tapelab.exchange import Exchange, serve
from tapelab.history import download_flat_file, fetch_data, fetch_trades, fetchplan, plan_fetch
from tapelab.history.progress import Progress
from tapelab.market import clock, sessions
from tapelab.market.clock import FixedClock
from tapelab.market.symbols import Market
from tapelab.massive.rest import RestClient
from tapelab.settings import Settings, current, use

ALL = ["SPY", "AIG", "BAC", "IBM"]
FIRST, LAST = date(2013, 10, 7), date(2013, 10, 11)
INTERVALS = ["1m", "5m", "15m", "30m", "1h", "4h", "1d"]
Method = Literal["rest", "flat_file"]


@pytest.fixture(scope="module")
def exchange(real_day: Path) -> Iterator[Exchange]:
    with serve(flat_files=real_day, speed=0) as found:
        yield found


@pytest.fixture(scope="module")
def homes(exchange: Exchange, tmp_path_factory: pytest.TempPathFactory) -> dict[Method, Settings]:
    """A home that has only seen REST and one that has only seen flat files, with every bar in their lakes."""
    found: dict[Method, Settings] = {}
    for method in ("rest", "flat_file"):
        found[method] = exchange.settings(tmp_path_factory.mktemp(method))
        with use(found[method]):
            for interval in ("1m", "1d"):
                known = fetch_data(ALL, FIRST, LAST, interval, method, adjust="none").attrs["tapelab"]
                assert known["routes"] == {method: 20}
    return found


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal in all columns but the one that files do not have."""
    pd.testing.assert_frame_equal(one.drop(columns="vwap"), other.drop(columns="vwap"))


@pytest.mark.parametrize("hours", ["all", "regular"])
@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1d"])
def test_real_bars_by_rest_and_by_flat_file_are_equal_in_all_columns_but_vwap(
    exchange: Exchange, interval: str, hours: Literal["all", "regular"]
) -> None:
    found: dict[Method, pd.DataFrame] = {}
    for method in ("rest", "flat_file"):
        with exchange.use():
            found[method] = fetch_data(ALL, FIRST, LAST, interval, method, adjust="none", hours=hours)
        assert found[method].attrs["tapelab"]["route"] == method
        assert found[method]["symbol"].unique().tolist() == sorted(ALL)
        assert found[method]["session"].nunique() == 5
    same(found["rest"], found["flat_file"])


def _instants(day: date, minute: int) -> datetime:
    return datetime.combine(day, datetime.min.time()) + timedelta(minutes=minute)


_day = st.dates(FIRST, LAST)
_moment = _day | st.builds(_instants, _day, st.integers(1, 24 * 60 - 1))


@hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    symbols=st.lists(st.sampled_from(ALL), min_size=1, unique=True),
    span=st.tuples(_moment, _moment),
    interval=st.sampled_from(INTERVALS),
    hours=st.sampled_from(["all", "regular"]),
)
@example(["SPY"], (date(2013, 10, 9), date(2013, 10, 9)), "4h", "all")
def test_any_range_at_any_interval_is_the_same_from_either_cache_and_inside_the_range(
    homes: dict[Method, Settings],
    symbols: list[str],
    span: tuple[date | datetime, date | datetime],
    interval: str,
    hours: Literal["all", "regular"],
) -> None:
    found = {}
    for method, settings in homes.items():
        with use(settings):
            try:
                found[method] = fetch_data(symbols, *span, interval, adjust="none", hours=hours)
            except errors.TapelabError as error:
                found[method] = f"{type(error).__name__}: {error}"
    one, other = found.values()
    if isinstance(one, str) or isinstance(other, str):
        assert one is other or str(one) == str(other)
        return
    same(one, other)
    assert one.attrs["tapelab"]["route"] == other.attrs["tapelab"]["route"] == "cache"
    assert one[["symbol", "timestamp"]].drop_duplicates().equals(one[["symbol", "timestamp"]])
    assert one.equals(one.sort_values(["symbol", "timestamp"], ignore_index=True))
    if type(span[1]) is datetime and interval != "1d":
        assert one["timestamp"].max() < pd.Timestamp(span[1], tz="America/New_York")


def test_the_cache_needs_no_exchange(exchange: Exchange, real_day: Path, tmp_path: Path) -> None:
    with serve(flat_files=real_day) as closing, closing.use(home=tmp_path) as settings:
        before = fetch_data(ALL, FIRST, LAST, "5m", adjust="none")
    with use(settings):
        after = fetch_data(ALL, FIRST, LAST, "5m", adjust="none")
        assert after.attrs["tapelab"]["route"] == "cache"
        with pytest.raises(errors.Unreachable):
            fetch_data(ALL, FIRST, LAST, "1d", adjust="none", fallback=False)
    pd.testing.assert_frame_equal(before, after)


def test_a_simulated_market_says_so_in_every_table(tmp_path: Path) -> None:
    with serve(simulate=True, speed=0) as simulated, simulated.use(home=tmp_path):
        last = simulated.day
        by_rest = fetch_data(["ZVZZT", "ZWZZT"], last, last, "1m", "rest")
        cached = fetch_data("ZVZZT", last, last, "1m")
        by_file = fetch_data("ZVZZT", last, last, "1d", "flat_file")
    for frame in (by_rest, cached, by_file):
        assert frame.attrs["tapelab"]["simulated"] is True
        assert frame.attrs["tapelab"]["tapes"] == ["simulated seed=7"]
    assert cached.attrs["tapelab"]["route"] == "cache"


@pytest.mark.parametrize("method", ["auto", "flat_file"])
def test_a_plan_without_flat_files_falls_back_to_rest(
    real_day: Path, method: Literal["auto", "flat_file"]
) -> None:
    with serve(flat_files=real_day, plan="basic") as basic, basic.use():
        many = fetch_data(ALL, FIRST, date(2013, 10, 14), "1d", method, adjust="none")
        lines = many.attrs["tapelab"]["lines"]
        failed = "Fell back to REST API (Flat Files failed: The file of us_stocks_sip/day_aggs_v1"
        assert any(line.startswith(failed) for line in lines)
        assert len(many) == 20
        with pytest.raises(
            errors.NotInPlan, match=r"us_stocks_sip/minute_aggs_v1 for 2013-10-09 is not in your plan"
        ):
            download_flat_file("us_stocks_sip/minute_aggs_v1", "2013-10-09")


def test_a_plan_without_quotes_names_the_product(real_day: Path) -> None:
    with serve(flat_files=real_day, plan="developer") as developer, developer.use():
        assert download_flat_file("us_stocks_sip/minute_aggs_v1", "2013-10-09").exists()
        with pytest.raises(errors.NotInPlan, match="us_stocks_sip/quotes_v1"):
            download_flat_file("us_stocks_sip/quotes_v1", "2013-10-09")


def test_wrong_keys_are_refused_in_one_sentence(exchange: Exchange, tmp_path: Path) -> None:
    settings = exchange.settings(tmp_path)
    wrong = settings.with_(api_key="wrong", s3_secret_access_key="wrong")
    with use(wrong), pytest.raises(errors.NotAuthorized, match="MASSIVE_API_KEY") as caught:
        fetch_data("SPY", FIRST, LAST, adjust="none")
    assert settings.need_api_key() not in str(caught.value)


def test_a_misspelt_symbol_gets_the_nearest_by_one_question_where_the_budget_has_room(
    exchange: Exchange, tmp_path: Path
) -> None:
    settings = exchange.settings(tmp_path).with_(rest_calls_per_day=10)
    with use(settings):
        with pytest.raises(errors.UnknownSymbol, match=r"SPX has no bars .* Did you mean SPY\?"):
            fetch_data("SPX", FIRST, LAST, "1d", "rest", adjust="none", fallback=False)
        assert Budget(settings).left().calls_today == 2
        with pytest.raises(errors.NoData, match=r"no trades of SPX .* Did you mean SPY\?"):
            fetch_trades("SPX", "2013-10-09T09:30", "2013-10-09T09:31", method="rest", fallback=False)
    with use(settings.with_(rest_calls_per_day=5)), pytest.raises(errors.NoData, match="no 1d bars of SPX"):
        fetch_data("SPX", FIRST, LAST, "1d", "rest", adjust="none", fallback=False)


def test_budgets_count_what_was_sent_and_nothing_else(exchange: Exchange, tmp_path: Path) -> None:
    settings = exchange.settings(tmp_path).with_(rest_calls_per_day=3, flat_file_gb_per_month=1)
    with use(settings):
        with pytest.raises(errors.BudgetExceeded, match="4 REST calls needed, 3 left today"):
            plan_fetch(ALL, FIRST, LAST, "1m", "rest", adjust="none", fallback=False)
        turned = fetch_data(ALL, FIRST, LAST, "1m", adjust="none")
        left = Budget(settings).left()
        assert turned.attrs["tapelab"]["routes"] == {"flat_file": 20}
        assert (left.calls_today, left.bytes_this_month) == (0, 140_153)
        fetch_data(ALL[:2], FIRST, LAST, "1d", adjust="none")
        fetch_data(ALL[:2], FIRST, LAST, "1d", adjust="none")
        assert Budget(settings).left().calls_today == 2


def test_pages_of_ticks_are_the_tape(exchange: Exchange, real_day: Path) -> None:
    session = sessions.session(Market.STOCKS, date(2013, 10, 9))
    assert session is not None
    raw = pd.read_csv(real_day / "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz")
    raw = raw[(raw["ticker"] == "BAC") & (raw["sip_timestamp"] < session.close)]
    with exchange.use(), RestClient(current(), Budget(current())) as client:
        pages = list(client.trades("BAC", session.start, session.close))
        assert len(pages) > 1
        assert [stamp for page in pages for stamp in page["ts_event"].to_pylist()] == raw[
            "sip_timestamp"
        ].tolist()
        assert [size for page in pages for size in page["size"].to_pylist()] == raw["size"].tolist()
        assert [row for page in pages for row in page["arrival"].to_pylist()] == list(range(len(raw)))
        assert client.market_status()["market"] in ("open", "closed", "extended-hours")
        assert client.symbols() == sorted(ALL)


def test_seconds_come_by_rest_are_kept_and_are_the_trades_of_their_second(
    exchange: Exchange, real_day: Path, tmp_path: Path
) -> None:
    day = "2013-10-09"
    with exchange.use(home=tmp_path):
        seconds = fetch_data("AIG", day, day, "1s", adjust="none")
        assert seconds.attrs["tapelab"]["route"] == "rest"
        again = fetch_data("AIG", day, day, "1s", "cheapest", adjust="none")
        assert again.attrs["tapelab"]["route"] == "cache"
        morning = fetch_data("AIG", f"{day}T09:30", f"{day}T09:31", "1s", adjust="none", hours="regular")
        with pytest.raises(errors.SettingError, match="no flat files of 1s bars"):
            fetch_data("BAC", day, day, "1s", "flat_file", adjust="none", fallback=False)
    pd.testing.assert_frame_equal(seconds, again)
    raw = pd.read_csv(real_day / "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz")
    raw = raw[raw["ticker"] == "AIG"].assign(second=raw["sip_timestamp"] // 10**9)
    # Where all prints of a second count for everything, the bar needs no rules.
    plain = raw["conditions"].isin(["14,41", "14", "41"]) | raw["conditions"].isna()
    whole = plain.groupby(raw["second"]).transform("all")
    by_hand = raw[whole].groupby("second").agg(
        open=("price", "first"), high=("price", "max"), low=("price", "min"), close=("price", "last"),
        volume=("size", "sum"), transactions=("price", "size"),
    )  # fmt: skip
    mine = seconds.set_index(seconds["timestamp"].astype("int64") // 10**9).loc[by_hand.index]
    assert len(by_hand) > 5_000
    for name in by_hand.columns:
        assert np.array_equal(mine[name], by_hand[name]), name
    assert 0 < len(morning) <= 60
    pd.testing.assert_frame_equal(
        morning, seconds[seconds["timestamp"].isin(morning["timestamp"])].reset_index(drop=True)
    )


# Reference data: a question a symbol, or one list of the market.


@pytest.fixture
def split_day(real_day: Path, tmp_path: Path) -> Path:
    """The real days beside a list of splits, one of them between the days."""
    folder = tmp_path / "tape"
    (folder / "reference").mkdir(parents=True)
    (folder / "us_stocks_sip").symlink_to(real_day / "us_stocks_sip")
    rows = [
        {"ticker": "SPY", "execution_date": "2004-01-05", "split_from": 1, "split_to": 7},
        {"ticker": "OTHER", "execution_date": "2013-10-09", "split_from": 1, "split_to": 3},
    ]
    (folder / "reference" / "splits.json").write_text(json.dumps(rows))
    return folder


def test_many_symbols_splits_cost_one_list_and_give_what_single_questions_give(
    split_day: Path, tmp_path: Path
) -> None:
    soon = FixedClock(sessions.day_start(Market.STOCKS, date(2013, 10, 20)))
    with serve(flat_files=split_day, speed=0) as exchange, clock.use(soon):
        with exchange.use(home=tmp_path / "list") as settings:
            listed = fetch_data(ALL, FIRST, LAST, "1d", "rest", adjust="splits")
            kept = settings.root / "lake" / "reference" / "splits"
            assert [path.name for path in kept.iterdir()] == ["market.json"]
            plan = plan_fetch(ALL, FIRST, LAST, "1h", "rest", adjust="splits")
            assert plan.references == (), "the list is good for the day"
            plan = plan_fetch(ALL, date(2013, 9, 3), LAST, "1h", "rest", adjust="splits")
            assert plan.references != (), "and says nothing of splits before it begins"
            kept.joinpath("market.json").write_bytes(b"{")
            with pytest.raises(errors.Damaged, match=r"market\.json is not what was written"):
                fetch_data(ALL, FIRST, LAST, "1d", "rest", adjust="splits")
        with exchange.use(home=tmp_path / "single"):
            single = pd.concat(
                [fetch_data(name, FIRST, LAST, "1d", "rest", adjust="splits") for name in sorted(ALL)],
                ignore_index=True,
            )
    pd.testing.assert_frame_equal(listed, single)


def test_calls_that_are_free_go_side_by_side_and_give_the_same(
    exchange: Exchange, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetchplan, "PAGE_ROWS", 960)
    with exchange.use(home=tmp_path / "free"):
        assert len(plan_fetch("SPY", FIRST, LAST, "1m", "rest", adjust="none").calls) == 5
        free = fetch_data(ALL, FIRST, LAST, "1m", "rest", adjust="none")
    with use(exchange.settings(tmp_path / "few").with_(rest_calls_per_day=100)):
        assert len(plan_fetch("SPY", FIRST, LAST, "1m", "rest", adjust="none").calls) == 1
        few = fetch_data(ALL, FIRST, LAST, "1m", "rest", adjust="none")
    pd.testing.assert_frame_equal(free, few)


def test_a_wait_is_counted_down_on_a_terminal_and_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with clock.use(FixedClock(0)) as now, Progress() as progress:
        progress.begin("REST API: AAPL", 3)
        progress.wait(42.0)
        progress.wait(41.0)
        assert progress.waiting() == "rate limit, 42 s"
        now.sleep(40.0)
        assert progress.waiting() == "rate limit, 2 s"
        now.sleep(3.0)
        assert progress.waiting() == ""
    assert terminal.getvalue().count("Waiting 42 s for the rate limit") == 1
    assert "41 s" not in terminal.getvalue()
