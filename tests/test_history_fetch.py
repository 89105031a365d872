"""`fetch_data` end to end: real bars from a REST server and a real S3 server, whole or a clear error."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tapelab import errors
from tapelab.budget import Budget
from tapelab.history import download_flat_file, fetch_data, plan_fetch
from tapelab.market import clock, sessions, tables
from tapelab.market.clock import HOUR, FixedClock
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.settings import Settings, use
from tapelab.store.lake import Lake
from test_flatfiles import KEY_ID, SECRET, bucket  # noqa: F401
from test_rest import KEY, Asked, Reply, Vendor, serving

DAYS = [date(2013, 10, day) for day in (7, 8, 9, 10, 11)]
SPAN = ("2013-10-07", "2013-10-11")
ALL = ["SPY", "AIG", "BAC", "IBM"]
MINUTES, DAY_BARS = "us_stocks_sip/minute_aggs_v1", "us_stocks_sip/day_aggs_v1"
PAGE = 1_500  # rows of a page of our REST server, so that paging is real


class RestOfFiles:
    """The vendor's REST interface over the same real bars that the bucket holds, with a `vw` of its own."""

    def __init__(self, real_day: Path) -> None:
        self.bars = {
            span: tables.concat(
                [wire.read_flat_file(real_day / wire.file_key(p, day), p, day=day) for day in DAYS],
                tables.BARS,
            )
            for span, p in (("minute", MINUTES), ("day", DAY_BARS))
        }
        self.splits: dict[str, list[dict[str, object]]] = {}
        self.dividends: dict[str, list[dict[str, object]]] = {}
        self.owners: dict[str, dict[str, object]] = {}
        self.more: list[pa.Table] = []
        self.tape = ""

    def __call__(self, asked: Asked) -> Reply:
        if asked.key != f"Bearer {KEY}":
            return Reply(b'{"status":"ERROR","error":"Unknown API Key"}', 401)
        headers = {"X-Tapelab-Tape": self.tape} if self.tape else {}
        if asked.path.startswith("/v3/reference/"):
            kind = self.dividends if "dividends" in asked.path else self.splits
            rows = kind.get(asked.query.get("ticker", ""), [])
            return Reply(json.dumps({"status": "OK", "results": rows}).encode(), headers=headers)
        if asked.path.startswith("/vX/reference/tickers/"):
            owner = self.owners.get(asked.path.split("/")[4])
            if owner is None:
                return Reply(b'{"status":"NOT_FOUND","message":"Ticker not found."}', 404)
            return Reply(json.dumps({"status": "OK", "results": owner}).encode(), headers=headers)
        _, _, _, _, symbol, _, _, span, first, last = asked.path.split("/")
        assert asked.query.get("adjusted", "false") == "false"
        table = tables.concat([self.bars[span], *(self.more if span == "minute" else [])], tables.BARS)
        starts = pc.divide(table["timestamp"], 1_000_000)
        begin = int(first) if first.isdigit() else _midnight(first)
        inside = pc.and_(pc.greater_equal(starts, begin), pc.less(starts, _midnight(last) + 86_400_000))
        rows = table.filter(pc.and_(inside, pc.equal(table["symbol"], symbol)))
        rows = rows.set_column(rows.column_names.index("vwap"), "vwap", rows["close"])
        page, next_url = rows.slice(0, PAGE), None
        if len(rows) > PAGE:
            after = rows["timestamp"][PAGE].as_py() // 1_000_000
            next_url = f"https://api.massive.com{asked.path.replace(first, str(after), 1)}?cursor=YXNj"
        body = wire.envelope(
            wire.encode_rows(page, "bars") if len(page) else None,
            ticker=symbol,
            resultsCount=len(page),
            next_url=next_url,
        )
        return Reply(body, headers=headers)


def _midnight(day: str) -> int:
    return sessions.day_start(Market.STOCKS, date.fromisoformat(day)) // 1_000_000


@pytest.fixture
def vendor(real_day: Path) -> Iterator[Vendor]:
    with serving() as found:
        found.answer = RestOfFiles(real_day)
        yield found


@pytest.fixture
def settings(vendor: Vendor, bucket: Path, tmp_path: Path) -> Settings:  # noqa: F811
    return Settings.load(
        api_key=KEY,
        s3_access_key_id=KEY_ID,
        s3_secret_access_key=SECRET,
        s3_endpoint=(bucket / "url").read_text(),
        rest_url=vendor.url,
        ws_url=vendor.url.replace("http", "ws"),
        home=tmp_path / "home",
        rest_calls_per_day=100,
        rest_calls_per_minute=0,
        flat_file_gb_per_month=1,
    )


@pytest.fixture
def here(settings: Settings) -> Iterator[Settings]:
    with use(settings):
        yield settings


def spent(settings: Settings) -> tuple[int, int]:
    left = Budget(settings).left()
    return left.calls_today, left.bytes_this_month


def fetch(
    symbols: str | list[str] = "SPY", span: tuple[object, object] = SPAN, **more: object
) -> pd.DataFrame:
    return fetch_data(symbols, *span, **{"adjust": "none", **more})  # type: ignore[call-overload, no-any-return]


def about(frame: pd.DataFrame) -> dict[str, object]:
    return dict(frame.attrs["tapelab"])


def files_of(settings: Settings) -> list[str]:
    found = settings.root.rglob("*") if settings.root.exists() else []
    return sorted(p.name for p in found if p.is_file() and p.suffix not in (".lock", ".json"))


# The same rows by either route.


@pytest.mark.parametrize("hours", ["all", "regular"])
@pytest.mark.parametrize("interval", ["1m", "5m", "1h", "1d"])
def test_rest_and_flat_files_and_the_cache_give_the_same_rows(
    settings: Settings, interval: str, hours: str
) -> None:
    found = {}
    for method in ("rest", "flat_file"):
        with use(settings.with_(home=settings.home / method)):
            found[method] = fetch(ALL, interval=interval, hours=hours, method=method)
            again = fetch(ALL, interval=interval, hours=hours, method=method)
        assert about(found[method])["route"] == method
        assert about(again)["route"] == "cache"
        pd.testing.assert_frame_equal(found[method].drop(columns="vwap"), again.drop(columns="vwap"))
    by_rest, by_file = found["rest"], found["flat_file"]
    assert len(by_rest) > 0
    assert by_rest["vwap"].notna().all()
    assert by_file["vwap"].isna().all()
    pd.testing.assert_frame_equal(by_rest.drop(columns="vwap"), by_file.drop(columns="vwap"))


def test_minute_bars_are_the_vendors_own_rows(here: Settings, real_day: Path) -> None:
    raw = pd.concat(
        pd.read_csv(real_day / wire.file_key(MINUTES, day)).assign(session=day) for day in DAYS
    ).sort_values(["ticker", "window_start"], ignore_index=True)
    found = fetch(ALL, interval="1m", method="rest")
    assert found["timestamp"].astype("int64").tolist() == raw["window_start"].tolist()
    assert found["timestamp"].dt.tz is not None
    for name in ("open", "high", "low", "close", "volume", "transactions"):
        assert np.array_equal(found[name], raw[name])
    assert found["symbol"].tolist() == raw["ticker"].tolist()
    assert found["session"].tolist() == raw["session"].tolist()


def test_five_minutes_by_hand(here: Settings) -> None:
    minutes = fetch(interval="1m", span=("2013-10-09T10:00", "2013-10-09T10:05"))
    [five] = fetch(interval="5m", span=("2013-10-09T10:00", "2013-10-09T10:05")).to_dict("records")
    assert len(minutes) == 5
    assert five["timestamp"] == pd.Timestamp("2013-10-09 10:00", tz="America/New_York")
    assert five["open"] == minutes["open"].iloc[0]
    assert five["close"] == minutes["close"].iloc[-1]
    assert (five["high"], five["low"]) == (minutes["high"].max(), minutes["low"].min())
    assert (five["volume"], five["transactions"]) == (minutes["volume"].sum(), minutes["transactions"].sum())


def test_regular_hours_begin_at_half_past_nine(here: Settings) -> None:
    hourly = fetch(interval="1h", hours="regular", span=("2013-10-09", "2013-10-09"))
    starts = hourly["timestamp"].dt.tz_convert("America/New_York").dt.strftime("%H:%M").tolist()
    assert starts == ["09:30", "10:30", "11:30", "12:30", "13:30", "14:30", "15:30"]


def test_weeks_and_months_that_the_range_touches_are_whole(here: Settings) -> None:
    [week] = fetch(interval="1w", span=("2013-10-09", "2013-10-09")).to_dict("records")
    days = fetch(interval="1d")
    assert week["timestamp"] == pd.Timestamp("2013-10-06", tz="America/New_York")
    assert (week["open"], week["close"]) == (days["open"].iloc[0], days["close"].iloc[-1])
    assert week["volume"] == days["volume"].sum()


def test_an_instant_cuts_inside_the_day_and_its_end_is_excluded(here: Settings) -> None:
    begin = datetime(2013, 10, 9, 9, 30)
    end = pd.Timestamp("2013-10-09 13:32", tz="UTC")
    assert len(fetch(span=(begin, end), interval="1m")) == 2
    assert len(fetch(span=("2013-10-09T09:30", "2013-10-10"), interval="1d")) == 2


@pytest.mark.parametrize("frame", ["pandas", "polars", "arrow"])
def test_every_frame_holds_the_same_columns(here: Settings, frame: str) -> None:
    found = fetch(frame=frame)
    names = found.column_names if isinstance(found, pa.Table) else list(found.columns)
    assert names == tables.BARS.names
    assert len(found) == 5
    if isinstance(found, pa.Table):
        assert tables.facts(found)["route"] == "rest"


# Facts, lines, plan.


def test_the_rows_say_how_they_were_got(here: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tapelab"):
        known = about(fetch(["SPY", "AIG", "IBM"]))
    line = "Auto-selected REST API (small query: 3 symbols, 5 days)"
    assert line in caplog.messages
    assert known["reason"] == line
    assert known["lines"] == [line]
    assert known["routes"] == {"rest": 15}
    assert known["endpoint"] == here.endpoint
    assert (known["adjust"], known["hours"], known["interval"]) == ("none", "all", "1d")
    assert (known["simulated"], known["provisional"]) == (False, [])


def test_what_a_simulated_exchange_says_is_marked_also_from_the_cache(here: Settings, vendor: Vendor) -> None:
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.tape = "simulated seed=7"
    assert about(fetch())["simulated"] is True
    again = about(fetch())
    assert (again["route"], again["simulated"]) == ("cache", True)


def test_a_plan_says_what_the_fetch_then_does_and_spends_nothing(here: Settings, vendor: Vendor) -> None:
    found = plan_fetch(["SPY", "AIG"], *SPAN, "1m", adjust="none")
    assert (found.route, found.requests, found.cached) == ("rest", 2, 0)
    assert vendor.asked == []
    assert spent(here) == (0, 0)
    assert not here.root.exists() or not (here.root / "lake").exists()
    fetched = fetch(["SPY", "AIG"], interval="1m")
    assert about(fetched)["reason"] == found.reason
    assert plan_fetch(["SPY", "AIG"], *SPAN, "1m", adjust="none").route == "cache"


def test_a_large_query_goes_by_flat_files_and_costs_no_call(here: Settings, vendor: Vendor) -> None:
    known = about(fetch(["SPY", "AIG"], span=("2013-10-04", "2013-10-12"), method="flat_file"))
    assert known["routes"] == {"flat_file": 10, "rest": 2}, "the bucket has no file of the 4th"
    assert spent(here)[0] == 2
    known = about(fetch("BAC", interval="1m", method="flat_file"))
    assert spent(here)[0] == 2
    assert spent(here)[1] > 100_000


def test_the_second_call_is_free(here: Settings, vendor: Vendor) -> None:
    first = fetch(ALL, interval="1m", method="rest")
    before, asked = spent(here), len(vendor.asked)
    again = fetch(ALL, interval="5m", method="rest")
    assert about(again)["route"] == "cache"
    assert (spent(here), len(vendor.asked)) == (before, asked)
    assert again["volume"].sum() == first["volume"].sum()


def test_what_is_missing_is_all_that_is_asked_for(here: Settings, vendor: Vendor) -> None:
    fetch("SPY", span=("2013-10-08", "2013-10-09"), interval="1m")
    vendor.asked.clear()
    known = about(fetch(["SPY", "AIG"], interval="1m", method="rest"))
    assert known["routes"] == {"cache": 2, "rest": 8}
    asked = sorted(a.path for a in vendor.asked if "cursor" not in a.query)
    assert [path.split("/")[4] for path in asked] == ["AIG", "SPY"], "two stretches of SPY fit one call"


def test_a_symbol_that_the_day_file_holds_costs_nothing_more(here: Settings, vendor: Vendor) -> None:
    fetch("SPY", method="flat_file")
    known = about(fetch(["AIG", "IBM"]))
    assert known["route"] == "cache"
    assert vendor.asked == []


# Splits.


def test_prices_are_in_the_shares_of_today_by_either_route(
    settings: Settings,
    vendor: Vendor,
    bucket: Path,  # noqa: F811
) -> None:
    assert isinstance(vendor.answer, RestOfFiles)
    vendor.answer.splits["SPY"] = [
        {"execution_date": "2013-10-14", "split_from": 1, "split_to": 4, "ticker": "SPY"},
        {"execution_date": "2099-01-04", "split_from": 1, "split_to": 10, "ticker": "SPY"},
    ]
    for method in ("rest", "flat_file"):
        with use(settings.with_(home=settings.home / method)):
            raw = fetch(interval="1d", method=method)
            adjusted = fetch(interval="1d", method=method, adjust="splits")
        assert np.allclose(adjusted["close"] * 4, raw["close"])
        assert np.allclose(adjusted["volume"], raw["volume"] * 4)
        assert about(adjusted)["adjust"] == "splits"


def test_splits_are_asked_for_once_a_day(here: Settings, vendor: Vendor) -> None:
    fetch(adjust="splits")
    fetch(adjust="splits")
    assert [a.path for a in vendor.asked].count("/v3/reference/splits") == 1
    with clock.use(FixedClock(clock.now() + 24 * HOUR)):
        fetch(adjust="splits")
    assert [a.path for a in vendor.asked].count("/v3/reference/splits") == 2


def test_a_source_without_reference_data_says_so_and_names_the_way_out(
    here: Settings, vendor: Vendor
) -> None:
    said = b'{"status":"NOT_FOUND","message":"This tape has no reference data."}'
    whole = vendor.answer
    vendor.answer = lambda asked: Reply(said, 404) if "splits" in asked.path else whole(asked)
    with pytest.raises(errors.NotFound, match=r'no reference data.*adjust="none"'):
        fetch(adjust="splits")
    assert len(fetch()) == 5


# Running and provisional days.


@pytest.fixture
def today(vendor: Vendor) -> Callable[[str], FixedClock]:
    """Makes it some time of 2013-10-14 in New York, with minutes of that day up to then in REST."""
    answer = vendor.answer
    assert isinstance(answer, RestOfFiles)
    monday = answer.bars["minute"].filter(pc.equal(answer.bars["minute"]["session"], pa.scalar(DAYS[0])))
    later = pc.add(monday["timestamp"], 7 * 24 * HOUR)
    moved = monday.set_column(0, tables.BARS.field("timestamp"), later)
    moved = moved.set_column(
        1, tables.BARS.field("session"), pa.array([date(2013, 10, 14)] * len(moved), pa.date32())
    )

    def at(time: str) -> FixedClock:
        now = pd.Timestamp(f"2013-10-{time}", tz="America/New_York").value
        answer.more = [moved.filter(pc.less_equal(moved["timestamp"], now))]
        return FixedClock(now)

    return at


def test_a_running_day_is_given_and_never_kept(
    here: Settings, vendor: Vendor, today: Callable[[str], FixedClock]
) -> None:
    with clock.use(today("14 10:00")):
        early = fetch(interval="1m", span=("2013-10-11", "2013-10-14"))
        assert about(early)["provisional"] == ["2013-10-14"]
    with clock.use(today("14 11:00")):
        late = fetch(interval="1m", span=("2013-10-11", "2013-10-14"))
    assert about(late)["routes"] == {"cache": 1, "rest": 1}
    assert len(late) == len(early) + 60


def test_a_day_is_provisional_until_its_file_is_due(
    here: Settings, vendor: Vendor, today: Callable[[str], FixedClock]
) -> None:
    routes = {}
    for time in ("14 20:00", "14 23:00", "15 10:59", "15 11:00", "16 11:00"):
        with clock.use(today(time)):
            known = about(fetch(interval="1m", span=("2013-10-14", "2013-10-14")))
        routes[time] = (known["routes"], known["provisional"])
    assert routes == {
        "14 20:00": ({"rest": 1}, ["2013-10-14"]),
        "14 23:00": ({"cache": 1}, ["2013-10-14"]),
        "15 10:59": ({"cache": 1}, ["2013-10-14"]),
        "15 11:00": ({"rest": 1}, []),
        "16 11:00": ({"cache": 1}, []),
    }


def test_days_that_have_no_file_yet_come_by_rest_in_the_same_answer(
    here: Settings, vendor: Vendor, today: Callable[[str], FixedClock]
) -> None:
    with clock.use(today("14 21:00")):
        found = fetch(["SPY", "AIG"], interval="1m", span=("2013-10-10", "2013-10-14"), method="flat_file")
    assert about(found)["routes"] == {"flat_file": 4, "rest": 2}
    assert any("2013-10-14" in line for line in about(found)["lines"])  # type: ignore[attr-defined]
    assert found.groupby("symbol")["session"].nunique().tolist() == [3, 3]


# One file.


def test_a_downloaded_file_is_parquet_and_is_fetched_once(here: Settings, real_day: Path) -> None:
    path = download_flat_file(MINUTES, "2013-10-09")
    bytes_spent = spent(here)
    assert download_flat_file(MINUTES, date(2013, 10, 9)) == path
    assert spent(here) == bytes_spent == (0, (real_day / wire.file_key(MINUTES, DAYS[2])).stat().st_size)
    assert len(pd.read_parquet(path)) == len(pd.read_csv(real_day / wire.file_key(MINUTES, DAYS[2])))


@pytest.mark.parametrize(
    ("product", "day", "error", "says"),
    [
        ("us_stocks_sip/minutes", "2013-10-09", errors.UnknownName, "minute_aggs_v1"),
        (MINUTES, "2013-10-12", errors.NoData, "no trading session"),
        (MINUTES, "2099-01-05", errors.BadRange, "future"),
        (MINUTES, "2013-10-15", errors.NotFound, r"no file of us_stocks_sip/minute_aggs_v1 for 2013-10-15"),
    ],
)
def test_a_file_that_cannot_be_is_refused(
    here: Settings, product: str, day: str, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        download_flat_file(product, day)
    assert files_of(here) == []


def test_two_processes_that_want_one_file_fetch_it_once(here: Settings) -> None:
    script = f"""
from tapelab.history import download_flat_file
from tapelab.settings import Settings, use
settings = Settings.load(api_key={KEY!r}, s3_access_key_id={KEY_ID!r}, s3_secret_access_key={SECRET!r},
    s3_endpoint={here.s3_endpoint!r}, rest_url={here.rest_url!r}, ws_url={here.ws_url!r},
    home={str(here.home)!r})
with use(settings):
    print(download_flat_file({MINUTES!r}, "2013-10-09"))
"""
    both = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = {process.communicate(timeout=120)[0].strip() for process in both}
    assert all(process.returncode == 0 for process in both)
    assert paths == {str(Lake(here).day_path(MINUTES, DAYS[2]))}
    assert spent(here) == (0, 28060)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_happens_and_a_pipe_shows_nothing(
    here: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch(ALL)
    assert capfd.readouterr() == ("", "")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    fetch(ALL, interval="1m")
    assert "Auto-selected REST API (small query: 4 symbols, 5 days)" in terminal.getvalue()
    assert capfd.readouterr().out == ""


def test_importing_history_loads_no_heavy_library() -> None:
    heavy = ["pandas", "polars", "httpx", "obstore", "exchange_calendars", "rich"]
    script = f"import sys, tapelab.history; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
