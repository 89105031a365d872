"""Bars of other markets by either route: crypto, forex, options and indices, each by its own day and hours.

A REST server of ours and a real S3 server hold the same rows, written here without tapelab, over the days
around the clock change of 2024-03-10.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from s3 import KEY_ID, SECRET, serving_folder
from tapelab import errors
from tapelab.budget import Budget
from tapelab.history import (
    dataset_of_ticks,
    download_flat_file,
    fetch_data,
    fetch_quotes,
    fetch_trades,
    plan_fetch,
    sync_flat_files,
)
from tapelab.market import sessions
from tapelab.massive.wire.catalogue import CATALOGUE
from tapelab.massive.wire.csvfile import Notes
from tapelab.massive.wire.fields import FIELDS
from tapelab.massive.wire.otherfile import flat_file
from tapelab.settings import Settings, use
from test_rest import KEY, Asked, Reply, serving

NEW_YORK, CHICAGO, UTC = ZoneInfo("America/New_York"), ZoneInfo("America/Chicago"), ZoneInfo("UTC")
FIRST, LAST = date(2024, 3, 7), date(2024, 3, 12)
DAYS = [FIRST + timedelta(n) for n in range(6)]  # a Thursday to a Tuesday
PRICES = ["open", "close", "high", "low"]
HEADER = ["ticker", "volume", *PRICES, "window_start", "transactions"]

# Of each market: the folder of its files, its zone, its symbols, from when to when there are bars, its days.
MARKETS = {
    "crypto": ("global_crypto", UTC, ["X:BTC-USD", "X:ETH-USD"], ("00:00", "23:59"), DAYS),
    "forex": ("global_forex", UTC, ["C:EUR-USD"], ("00:00", "23:59"), [d for d in DAYS if d.weekday() != 5]),
    "options": (
        "us_options_opra",
        NEW_YORK,
        ["O:SPY240419C00510000", "O:SPY240419P00510000"],
        ("02:00", "16:14"),
        [d for d in DAYS if d.weekday() < 5],
    ),
    "indices": (
        "us_indices",
        CHICAGO,
        ["I:NDX", "I:SPX"],
        ("02:00", "15:05"),
        [d for d in DAYS if d.weekday() < 5],
    ),
}
SYMBOLS = {market: found[2] for market, found in MARKETS.items()}


def made(market: str, span: str) -> pd.DataFrame:
    """Rows of a market in the vendor's columns; minutes with gaps, days at midnight in the market's zone."""
    _, zone, symbols, (begin, end), days = MARKETS[market]
    rng = np.random.default_rng(len(market))
    parts = []
    for symbol in symbols:
        starts = [pd.Timestamp(day, tz=zone) for day in days]
        if span == "minute":
            clock = pd.timedelta_range(f"{begin}:00", f"{end}:00", freq="1min")
            whole = [pd.Timestamp(day) + at for day in days for at in clock]
            stamps = pd.DatetimeIndex(whole).tz_localize(zone, ambiguous="NaT", nonexistent="NaT").dropna()
            starts = list(stamps[rng.random(len(stamps)) < 0.2])
        close = np.round(100 + rng.normal(0, 0.05, len(starts)).cumsum(), 2)
        parts.append(
            pd.DataFrame(
                {
                    "ticker": symbol,
                    "volume": np.round(1 + rng.lognormal(1, 1, len(starts)), 6 if market == "crypto" else 0),
                    "open": np.round(close + 0.01, 2),
                    "close": close,
                    "high": np.round(close + 0.02, 2),
                    "low": np.round(close - 0.03, 2),
                    "window_start": [stamp.value for stamp in starts],
                    "transactions": rng.integers(1, 9, len(starts)),
                }
            )
        )
    rows = pd.concat(parts, ignore_index=True)
    return rows.drop(columns=["volume", "transactions"]) if market == "indices" else rows


def publish(root: Path, market: str, kind: str, rows: pd.DataFrame) -> None:
    folder, zone, *_ = MARKETS[market]
    dates = pd.to_datetime(rows["window_start"], utc=True).dt.tz_convert(zone).dt.date
    for day, mine in rows.groupby(dates):
        assert isinstance(day, date)
        path = root / f"flatfiles/{folder}/{kind}/{day:%Y}/{day:%m}/{day}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(mine.to_csv(index=False).encode(), 1, mtime=0))


TICK_VALUES: dict[str, Callable[[int], object]] = {
    "price": lambda n: 100 + n / 8,
    "bid_price": lambda n: 100 + n / 8,
    "ask_price": lambda n: 100.5 + n / 8,
    "size": lambda n: n + 1,
    "bid_size": lambda n: n + 1,
    "ask_size": lambda n: n + 2,
    "exchange": lambda n: 2,
    "bid_exchange": lambda n: 48,
    "ask_exchange": lambda n: 48,
    "conditions": lambda n: n % 2 + 1,
    "correction": lambda n: 0,
    "id": lambda n: f"0{n}",
    "sequence_number": lambda n: n,
}


class Rest:
    """The vendor's bars over the same rows: milliseconds, pairs without a dash, no volume of an index."""

    def __init__(self, rows: dict[tuple[str, str], pd.DataFrame]) -> None:
        self.rows = rows

    def __call__(self, asked: Asked) -> Reply:
        _, _, _, _, ticker, _, _, span, first, last = asked.path.split("/")
        market = next((m for m, s in SYMBOLS.items() if s[0][:2] == ticker[:2]), None)
        if market is None:
            return Reply(json.dumps({"status": "OK", "ticker": ticker, "resultsCount": 0}).encode())
        zone = MARKETS[market][1]
        rows = self.rows[market, span]
        stamps = pd.to_datetime(rows["window_start"], utc=True)
        end = pd.Timestamp(last, tz=zone) + pd.DateOffset(days=1)
        inside = (stamps >= pd.Timestamp(first, tz=zone)) & (stamps < end)
        mine = rows[inside & (rows["ticker"].str.replace("-", "") == ticker)]
        short = {"volume": "v", "open": "o", "close": "c", "high": "h", "low": "l", "transactions": "n"}
        found = mine.drop(columns="ticker").rename(columns=short)
        found["t"] = found.pop("window_start") // 10**6
        results = found.to_dict("records")
        body = {"status": "OK", "ticker": ticker, "resultsCount": len(results), "results": results}
        return Reply(json.dumps(body if results else {**body, "results": None}).encode())


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    root = tmp_path_factory.mktemp("markets")
    rows = {(market, span): made(market, span) for market in MARKETS for span in ("minute", "day")}
    for (market, span), table in rows.items():
        publish(root, market, f"{span}_aggs_v1", table)
    with serving() as vendor, serving_folder(root) as url:
        vendor.answer = Rest(rows)
        yield {"rest_url": vendor.url, "s3_endpoint": url, "rows": rows}


@pytest.fixture
def here(doors: dict[str, object], tmp_path: Path) -> Iterator[Settings]:
    settings = Settings.load(
        api_key=KEY,
        s3_access_key_id=KEY_ID,
        s3_secret_access_key=SECRET,
        home=tmp_path,
        rest_calls_per_day=1000,
        rest_calls_per_minute=0,
        flat_file_gb_per_month=1,
        **{name: doors[name] for name in ("rest_url", "s3_endpoint")},
    )
    with use(settings):
        yield settings


def same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(one.drop(columns="vwap"), other.drop(columns="vwap"), check_exact=True)


@pytest.mark.parametrize("market", MARKETS)
def test_other_markets_have_the_same_bars_by_rest_by_flat_file_and_from_the_cache(
    here: Settings, market: str
) -> None:
    for interval, hours in [
        *((interval, "all") for interval in ("1m", "4h", "1d", "1w")),
        *((interval, "regular") for interval in ("30m", "1d")),
    ]:
        asked = (SYMBOLS[market], FIRST, LAST, interval)
        found = {}
        for method in ("rest", "flat_file"):
            with use(here.with_(home=here.home / method)):
                found[method] = fetch_data(*asked, method, hours=hours)  # type: ignore[call-overload]
                again = fetch_data(*asked, hours=hours)  # type: ignore[call-overload]
                # Days before the first bar may be what the plan left out: they are asked for again.
                assert again.attrs["tapelab"]["route"] == ("rest" if interval == "1w" else "cache")
            same(found[method], again)
            assert found[method]["symbol"].unique().tolist() == SYMBOLS[market]
        same(found["rest"], found["flat_file"])


@pytest.mark.parametrize("market", MARKETS)
def test_minutes_and_days_of_other_markets_are_the_vendors_own_rows(
    here: Settings, doors: dict[str, object], market: str
) -> None:
    for interval, span in (("1m", "minute"), ("1d", "day")):
        rows = doors["rows"][market, span]  # type: ignore[index]
        found = fetch_data(SYMBOLS[market], FIRST, LAST, interval)  # type: ignore[call-overload]
        assert found["timestamp"].astype("int64").tolist() == rows["window_start"].tolist()
        assert found["symbol"].tolist() == rows["ticker"].tolist()
        for name in [n for n in rows.columns if n not in ("ticker", "window_start")]:
            assert found[name].tolist() == rows[name].tolist()


def test_hours_of_a_market_that_never_closes_lie_on_utc(here: Settings, doors: dict[str, object]) -> None:
    rows = doors["rows"]["crypto", "minute"]  # type: ignore[index]
    rows = rows[rows["ticker"] == "X:BTC-USD"].assign(at=pd.to_datetime(rows["window_start"], utc=True))
    for interval, frequency in (("1h", "1h"), ("4h", "4h")):
        by_hand = (
            rows.set_index("at")
            .resample(frequency, origin="epoch")
            .agg({"open": "first", "high": "max", "low": "min", "close": "last", "transactions": "sum"})
        )
        found = fetch_data("X:BTCUSD", FIRST, LAST, interval).set_index("timestamp")  # type: ignore[call-overload]
        assert found["symbol"].unique().tolist() == ["X:BTC-USD"], "both spellings mean the same pair"
        for name in by_hand.columns:
            assert found[name].tolist() == by_hand[name].tolist()
    days = fetch_data("X:BTCUSD", FIRST, LAST)
    assert days["session"].tolist() == DAYS, "Saturday and Sunday are days too"
    assert days["timestamp"].dt.strftime("%H:%M").unique().tolist() == ["00:00"]


TICKS = {
    "options trades": ("O:SPY240419C00510000", "conditions correction exchange price sip_timestamp size"),
    "options quotes": (
        "O:SPY240419C00510000",
        "ask_exchange ask_price ask_size bid_exchange bid_price bid_size sequence_number sip_timestamp",
    ),
    "crypto trades": ("X:BTC-USD", "conditions exchange id participant_timestamp price size"),
    "forex quotes": ("C:EUR-USD", "ask_exchange ask_price bid_exchange bid_price participant_timestamp"),
}


@pytest.mark.parametrize("which", TICKS)
def test_ticks_of_other_markets_are_the_same_by_either_route_and_become_a_dataset(
    here: Settings, tmp_path: Path, which: str
) -> None:
    market, kind = which.split()
    symbol, columns = TICKS[which]
    folder, zone, *_ = MARKETS[market]
    begin = pd.Timestamp("2024-03-07 10:00", tz=zone).value
    stamps = [begin + n * 1_000_000_007 for n in range(50)]
    values = {
        name: [TICK_VALUES[name](n) for n in range(50)] for name in columns.split() if name in TICK_VALUES
    }
    rows = pd.DataFrame({**values, next(name for name in columns.split() if "timestamp" in name): stamps})
    path = tmp_path / f"s3/flatfiles/{folder}/{kind}_v1/2024/03/2024-03-07.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(rows.assign(ticker=symbol).to_csv(index=False).encode()))

    def answer(asked: Asked) -> Reply:
        assert asked.path == f"/v3/{kind}/{symbol}"
        listed = rows.to_dict("records")
        for row in listed:
            row |= {"conditions": [row["conditions"]]} if "conditions" in row else {}
        return Reply(json.dumps({"status": "OK", "results": listed}).encode())

    fetch = fetch_trades if kind == "trades" else fetch_quotes
    found = {}
    with serving() as vendor, serving_folder(tmp_path / "s3") as url:
        vendor.answer = answer
        for method in ("rest", "flat_file"):
            with use(here.with_(home=tmp_path / method, rest_url=vendor.url, s3_endpoint=url)):
                asked = (symbol, FIRST, FIRST)
                found[method] = fetch(*asked, method=method, fallback=False)  # type: ignore[call-overload]
                if market != "options":  # whose dataset would need both
                    dataset = dataset_of_ticks("ticks", *asked, method=method)  # type: ignore[arg-type]
                    assert (dataset.clock, dataset.market) == ("event", market)
                    assert len(dataset.table(kind)) == 50  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(found["rest"], found["flat_file"])
    assert found["rest"]["ts_event"].astype("int64").tolist() == stamps
    theirs, ours = ("price", "price") if kind == "trades" else ("bid_price", "bid")
    assert found["rest"][ours].tolist() == values[theirs]


def test_currencies_rest_on_saturday(here: Settings) -> None:
    plan = plan_fetch("C:EURUSD", FIRST, LAST, "1m", "flat_file")
    assert (plan.files, plan.requests) == (5, 0)
    with pytest.raises(errors.NoData, match="no trading session"):
        fetch_data("C:EURUSD", "2024-03-09", "2024-03-09")


def test_options_keep_new_yorks_hours_and_have_bars_outside_them(here: Settings) -> None:
    name = SYMBOLS["options"][0]
    regular = fetch_data(name, "2024-03-11", "2024-03-11", "1h", hours="regular")
    assert regular["timestamp"].dt.tz_convert(NEW_YORK).dt.strftime("%H:%M").tolist() == [
        "09:30", "10:30", "11:30", "12:30", "13:30", "14:30", "15:30",
    ]  # fmt: skip
    night = fetch_data(name, "2024-03-11T02:00", "2024-03-11T03:00", "1m")
    assert len(night) > 0


def test_an_index_has_no_volume_its_day_is_chicagos_and_it_may_be_negative(
    here: Settings, doors: dict[str, object]
) -> None:
    days = fetch_data("I:SPX", FIRST, LAST, "1d", "rest")
    hours = fetch_data("I:SPX", FIRST, LAST, "1h", "flat_file")
    for frame in (days, hours, fetch_data("I:SPX", FIRST, LAST, "1w")):
        assert frame[["volume", "vwap", "transactions"]].isna().all(axis=None)
    assert days["timestamp"].dt.tz_convert(CHICAGO).dt.strftime("%m-%d %H:%M").tolist() == [
        "03-07 00:00", "03-08 00:00", "03-11 00:00", "03-12 00:00",
    ]  # fmt: skip
    row = {"ticker": "I:TICK", "open": -3.0, "close": -7.5, "high": 12.0, "low": -40.0, "window_start": 0}
    row["window_start"] = pd.Timestamp("2024-03-04 10:00", tz=CHICAGO).value
    rest = Rest({("indices", "minute"): pd.DataFrame([row])})
    with serving() as vendor, use(here.with_(rest_url=vendor.url)):
        vendor.answer = rest
        [found] = fetch_data("I:TICK", "2024-03-04", "2024-03-04", "1m", "rest").to_dict("records")
    assert [found[name] for name in PRICES] == [row[name] for name in PRICES]


def test_a_sync_of_crypto_counts_every_day_and_writes_no_month_that_is_not_over(here: Settings) -> None:
    report = sync_flat_files("global_crypto/minute_aggs_v1", FIRST, date(2024, 3, 13))
    assert report.brought == tuple(DAYS)
    assert report.missing == (date(2024, 3, 13),)
    assert len(pd.read_parquet(download_flat_file("global_crypto/day_aggs_v1", FIRST))) == 2
    known = fetch_data("X:ETHUSD", FIRST, LAST, "15m").attrs["tapelab"]
    assert (known["route"], known["routes"]) == ("cache", {"cache": 6})
    assert Budget(here).left().calls_today == 0


def samples(shared: Path) -> dict[Path, str]:
    """The vendor's own files of other markets, in `payloads`, and which product each is."""
    found = {}
    for path in sorted((shared / "payloads/flatfiles").glob("*.csv")):
        folder, _, kind = path.stem.removeprefix("header-only--").partition("-")
        kind = kind.partition("-")[0]
        if folder != "us_stocks_sip":
            found[path] = f"{folder.replace('futures_X', 'futures_comex')}/{kind}"
    return found


@pytest.mark.judge
def test_the_vendors_files_of_every_other_product_are_read_value_by_value(shared: Path) -> None:
    found = samples(shared)
    stocks = {name for name in CATALOGUE if name.startswith("us_stocks_sip/")}
    exchanges = {name for name in CATALOGUE if name.startswith("us_futures_") and "comex" not in name}
    assert set(found.values()) == set(CATALOGUE) - stocks - exchanges
    for path, product in found.items():
        theirs = pd.read_csv(path, dtype=str, keep_default_na=False)
        kind = CATALOGUE[product]
        assert tuple(theirs.columns) == kind.header
        ours = {field.csv: field.column for field in FIELDS[kind.product.kind]} if kind.product else {}
        if "sip_timestamp" not in kind.header:
            ours["participant_timestamp"] = "ts_event"
        clock = next(name for name in theirs.columns if name == "window_start" or "timestamp" in name)
        stamp = int(theirs[clock].iloc[0]) if len(theirs) else pd.Timestamp(FIRST).value
        day = pd.Timestamp(stamp, tz="UTC").tz_convert(sessions.zone(kind.market)).date()
        _, parts = flat_file(path, product, day=day, notes=Notes())
        rows = [row for part in parts for row in part.to_pylist()]
        assert len(rows) == len(theirs)
        for row, text in zip(rows, theirs.to_dict("records"), strict=True):
            for name, value in text.items():
                mine = row[ours.get(str(name), str(name))]
                if isinstance(mine, datetime):
                    mine = pd.Timestamp(mine).value
                if isinstance(mine, list):
                    mine = ",".join(map(str, mine))
                # An empty side of a quote has no price.
                assert str(mine) == value or float(mine or 0) == float(value), (path.name, name)


def test_what_is_spelt_like_a_future_is_told_where_futures_are(here: Settings) -> None:
    with pytest.raises(errors.NoData, match=r"futures come by download_flat_file only.*us_futures_cme"):
        fetch_data("ESM4", FIRST, FIRST, "1m", "rest", adjust="none")


def test_what_other_markets_lack_is_said_before_anything_is_sent(here: Settings) -> None:
    with pytest.raises(errors.UsageError, match=r"no quotes of crypto\. It has global_crypto/trades_v1\."):
        fetch_quotes("X:BTCUSD", FIRST, FIRST)
    with pytest.raises(errors.UsageError, match=r"no trades of indices\. It has us_indices/values_v1\."):
        dataset_of_ticks("values", "I:SPX", FIRST, FIRST)
    with pytest.raises(errors.BadRange, match="history of indices begins on 2023-01-01"):
        fetch_data("I:SPX", "2020-01-02", "2020-01-03")
    assert Budget(here).left().calls_today == 0
