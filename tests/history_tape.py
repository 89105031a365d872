"""Flat-file folders for the exchange, made of bars that other people collected."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from tapelab.market import sessions
from tapelab.market.symbols import Market

DAY_BARS, MINUTES = "day_aggs_v1", "minute_aggs_v1"
HEADER = ["ticker", "volume", "open", "close", "high", "low", "window_start", "transactions"]


def days_of(shared: Path, symbols: Sequence[str], first: str, last: str) -> pd.DataFrame:
    """Raw day bars of `aapl_splits`, in the vendor's columns; a bar's start is midnight in New York."""
    raw = pd.read_parquet(shared / "data/aapl_splits/bars_daily_trade_raw.parquet")
    raw = raw[raw["symbol"].isin(list(symbols)) & (raw["datetime"] >= first) & (raw["datetime"] <= last)]
    starts = [sessions.day_start(Market.STOCKS, day) for day in raw["datetime"].dt.date]
    return _vendors(raw, starts)


def minutes_of(shared: Path, symbols: Sequence[str], first: str, last: str) -> pd.DataFrame:
    """Raw minute bars of `aapl_splits`, in the vendor's columns."""
    raw = pd.read_parquet(shared / "data/aapl_splits/bars_minute_trade.parquet")
    days = pd.to_datetime(raw["ts_ns"], utc=True).dt.tz_convert("America/New_York").dt.strftime("%Y-%m-%d")
    raw = raw[raw["symbol"].isin(list(symbols)) & (days >= first) & (days <= last)]
    return _vendors(raw, raw["ts_ns"].tolist())


def _vendors(raw: pd.DataFrame, starts: list[int]) -> pd.DataFrame:
    return raw.assign(ticker=raw["symbol"], window_start=starts, transactions=1)[HEADER]


def write_folder(
    folder: Path, files: Mapping[str, pd.DataFrame], reference: Mapping[str, list[dict[str, object]]]
) -> Path:
    """A folder as the vendor's bucket has it, and `reference/` beside; nothing of tapelab writes it."""
    for product, rows in files.items():
        of_days = pd.to_datetime(rows["window_start"], utc=True).dt.tz_convert("America/New_York").dt.date
        for day, mine in rows.groupby(of_days):
            assert isinstance(day, date)
            path = folder / f"us_stocks_sip/{product}/{day:%Y}/{day:%m}/{day}.csv.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = mine.sort_values(["ticker", "window_start"]).to_csv(index=False)
            path.write_bytes(gzip.compress(text.encode(), 1, mtime=0))
    for name, found in reference.items():
        path = folder / "reference" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return folder


def light_day(real_day: Path, folder: Path, trades_of: Mapping[str, tuple[str, str]]) -> Path:
    """The five real days of bars, and of the 9th's trades only those of some symbols between two times.

    A whole day of trades takes seconds to read, and every new exchange reads it.
    """
    (folder / "us_stocks_sip").mkdir(parents=True)
    for product in (DAY_BARS, MINUTES):
        (folder / "us_stocks_sip" / product).symlink_to(real_day / "us_stocks_sip" / product)
    key = "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz"
    rows = pd.read_csv(real_day / key, dtype=str, keep_default_na=False)
    kept = []
    for name, span in sorted(trades_of.items()):
        begin, end = (pd.Timestamp(f"2013-10-09 {at}", tz="America/New_York").value for at in span)
        mine = rows[rows["ticker"] == name]
        stamps = mine["sip_timestamp"].astype("int64")
        kept.append(mine[(stamps >= begin) & (stamps < end)])
    (folder / key).parent.mkdir(parents=True)
    pd.concat(kept).to_csv(folder / key, index=False)
    return folder


def split(ticker: str, day: str, split_from: float, split_to: float) -> dict[str, object]:
    return {"ticker": ticker, "execution_date": day, "split_from": split_from, "split_to": split_to}


def dividend(ticker: str, day: str, cash: float, currency: str = "USD") -> dict[str, object]:
    return {"ticker": ticker, "ex_dividend_date": day, "cash_amount": cash, "currency": currency}


APPLE_SPLITS = [
    split("AAPL", "2005-02-28", 1, 2),
    split("AAPL", "2014-06-09", 1, 7),
    split("AAPL", "2020-08-31", 1, 4),
]
# As the company declared them, in the shares of the day.
APPLE_DIVIDENDS = [
    dividend("AAPL", "2014-05-08", 3.29),
    dividend("AAPL", "2019-02-08", 0.73),
    dividend("AAPL", "2019-05-10", 0.77),
    dividend("AAPL", "2019-08-09", 0.77),
    dividend("AAPL", "2019-11-07", 0.77),
    dividend("AAPL", "2020-02-07", 0.77),
    dividend("AAPL", "2020-05-08", 0.82),
    dividend("AAPL", "2020-08-07", 0.82),
    dividend("AAPL", "2020-11-06", 0.205),
]
