"""Every method of the vendor's own client whose endpoint the exchange serves, over real sockets.

`tests/test_exchange_rest.py` has the bars, trades and quotes over a range.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import pytest
from massive import RESTClient
from massive.exceptions import BadResponse

import history_tape
from tapelab.exchange import Exchange, serve
from tapelab.exchange.tape import DAY_BARS, QUOTES, TRADES
from tapelab.massive import wire
from test_exchange_reference import DIVIDENDS, EVENTS, SPLITS, TICKERS, tape_with
from test_exchange_snapshots import CLOSE, DAY, MIDNIGHT, MINUTE, THURSDAY

pytestmark = pytest.mark.judge


@pytest.fixture(scope="module")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    folder = tmp_path_factory.mktemp("judged")
    official = [{"symbol": "AAPL", "from": "2024-04-05", "open": 101, "close": 103}]
    tape_with(
        folder, splits=SPLITS, dividends=DIVIDENDS, tickers=TICKERS, ticker_events=EVENTS, official=official
    )
    with serve(flat_files=folder, speed=0) as found:
        yield found


@pytest.fixture
def client(exchange: Exchange) -> Iterator[RESTClient]:
    yield from _client(exchange)


def _client(exchange: Exchange) -> Iterator[RESTClient]:
    client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
    yield client
    client.client.clear()


def test_bars_in_one_page(client: RESTClient) -> None:
    [bar] = client.get_aggs("AAPL", 1, "day", DAY, DAY, adjusted=True)
    assert (bar.open, bar.close, bar.high, bar.low, bar.volume) == (101, 103, 103, 101, 30450.5)
    assert bar.timestamp * 10**6 == MIDNIGHT
    seconds = client.get_aggs("AAPL", 1, "second", DAY, DAY, sort="desc")
    assert [bar.close for bar in seconds] == [103.2, 103, 102, 101, 100]


def test_grouped_daily_bars(client: RESTClient) -> None:
    found = client.get_grouped_daily_aggs(THURSDAY)
    assert [(bar.ticker, bar.close) for bar in found] == [
        ("AAPL", 100),
        ("BRK.A", 50),
        ("GONE", 5),
        ("THIN", 1),
    ]
    assert client.get_grouped_daily_aggs("2024-04-06", include_otc=True) == []


def test_the_previous_close_and_a_day_from_open_to_close(client: RESTClient) -> None:
    [before] = client.get_previous_close_agg("AAPL")
    assert (before.ticker, before.close, before.volume) == ("AAPL", 100, 1000)
    day = client.get_daily_open_close_agg("AAPL", DAY)
    assert (day.symbol, day.from_, day.status) == ("AAPL", "2024-04-05", "OK")
    assert (day.open, day.high, day.low, day.close, day.volume) == (101, 103, 101, 103, 30450.5)
    assert (day.pre_market, day.after_hours) == (100, 103.2)


def test_the_last_trade_and_the_last_quote(client: RESTClient) -> None:
    trade = client.get_last_trade("AAPL")
    assert (trade.ticker, trade.price, trade.size, trade.fractional_size) == ("AAPL", 104, 0, "0.5")
    assert (trade.conditions, trade.sip_timestamp) == ([12, 37], CLOSE + 30 * MINUTE)
    quote = client.get_last_quote("AAPL")
    assert (quote.ticker, quote.bid_price, quote.ask_price, quote.ask_size) == ("AAPL", 0, 102.2, 1)


def test_snapshots_of_all_of_some_and_of_one(client: RESTClient) -> None:
    everybody = client.get_snapshot_all("stocks")
    assert [one.ticker for one in everybody] == ["AAPL", "BRK.A", "THIN"]
    assert [one.ticker for one in client.get_snapshot_all("stocks", ["THIN", "AAPL"])] == ["AAPL", "THIN"]
    one = client.get_snapshot_ticker("stocks", "AAPL")
    assert one == everybody[0]
    assert (one.day.close, one.prev_day.close, one.last_trade.price) == (103, 100, 104)
    assert (one.min.close, one.min.transactions, one.min.accumulated_volume) == (103.2, 1, 30450)
    assert (one.todays_change, one.todays_change_percent) == (4, 4)
    assert one.last_quote.ask_price == 102.2


def test_gainers_and_losers(client: RESTClient) -> None:
    assert [one.ticker for one in client.get_snapshot_direction("stocks", "gainers")] == ["AAPL"]
    [loser] = client.get_snapshot_direction("stocks", direction="losers")
    assert (loser.ticker, loser.todays_change_percent) == ("BRK.A", -10)


def test_universal_snapshots_page_by_page(client: RESTClient) -> None:
    found = list(client.list_universal_snapshots(limit=1))
    assert [one.ticker for one in found] == ["AAPL", "BRK.A", "THIN"]
    assert {one.type for one in found} == {"stocks"}
    apple = found[0]
    assert (apple.session.price, apple.session.late_trading_change) == (104, 1)
    assert (apple.last_trade.fractional_size, apple.last_quote.ask_exchange) == ("0.5", 8)
    assert (apple.last_minute.close, apple.market_status) == (103.2, "closed")
    [lost] = client.list_universal_snapshots(ticker_any_of=["NOBODY"])
    assert (lost.error, lost.message) == ("NOT_FOUND", "Ticker not found.")


def test_tickers_their_details_types_and_events(client: RESTClient) -> None:
    assert [one.ticker for one in client.list_tickers(market="stocks", active=True, limit=1)] == ["AA", "SPY"]
    assert [one.ticker for one in client.list_tickers(cusip=13872106)] == ["AA"]
    assert [one.name for one in client.list_tickers(date="2020-01-02", ticker_gt="S")] == [
        "SPDR S&P 500 ETF Trust",
        "Twitter, Inc.",
    ]
    details = client.get_ticker_details("AA")
    assert (details.name, details.address.city, details.total_employees) == (
        "Alcoa Corporation",
        "PITTSBURGH",
        13600,
    )
    assert client.get_ticker_details("TWTR", date="2020-01-02").name == "Twitter, Inc."
    assert {one.code for one in client.get_ticker_types(asset_class="stocks")} >= {"CS", "ETF", "ADRC"}
    events = client.get_ticker_events("META", types="ticker_change")
    assert events.name.startswith("Meta Platforms")


def test_splits_and_dividends_of_both_generations(client: RESTClient) -> None:
    assert [one.id for one in client.list_splits("AAPL", limit=1)] == ["E1", "E2", "E3"]
    assert [one.id for one in client.list_splits(reverse_split=True)] == ["E4"]
    newer = list(client.list_stocks_splits("AAPL", limit=2, sort="execution_date.asc"))
    assert [one.historical_adjustment_factor for one in newer] == [0.017857, 0.035714, 0.25]
    assert [one.ex_dividend_date for one in client.list_dividends("AAPL", frequency=4)] == [
        "2025-11-10",
        "2025-08-11",
    ]
    [special] = client.list_stocks_dividends(distribution_type_any_of="special,irregular")
    assert (special.ticker, special.split_adjusted_cash_amount) == ("MSFT", 0.83)
    assert special.historical_adjustment_factor is None


def test_exchanges_conditions_status_and_holidays(client: RESTClient) -> None:
    exchanges = {(one.id, one.mic) for one in client.get_exchanges(asset_class="stocks", locale="us")}
    assert {(10, "XNYS"), (12, "XNAS"), (15, "IEXG"), (4, "FINN")} <= exchanges
    found = list(client.list_conditions(asset_class="stocks", data_type="trade", limit=7))
    assert len(found) == len({one.id for one in found}) == 33
    odd = next(one for one in found if one.id == 37)
    assert odd.update_rules.consolidated.updates_volume
    assert not odd.update_rules.consolidated.updates_high_low
    assert odd.sip_mapping.UTP == "I"
    status = client.get_market_status()
    assert (status.market, status.exchanges.nyse, status.server_time) == (
        "closed",
        "closed",
        "2024-04-05T20:00:00-04:00",
    )
    assert {one.exchange for one in client.get_market_holidays()} == {"NYSE", "NASDAQ", "OTC"}


@pytest.mark.parametrize(
    ("method", "arguments", "words"),
    [
        ("get_ticker_details", ("NOBODY",), "Ticker not found."),
        ("get_last_trade", ("NOBODY",), "no us_stocks_sip/trades_v1 of 2024-04-04"),
        ("get_snapshot_ticker", ("stocks", "NOBODY"), "Ticker not found."),
        ("get_daily_open_close_agg", ("AAPL", "2024-04-03"), "has no day bars and no trades of 2024-04-03"),
        ("get_grouped_daily_aggs", ("2024-13-01",), "is not a date"),
        ("get_exchanges", ("options",), "speaks for stocks"),
        ("get_snapshot_all", ("crypto",), "404 page not found"),
        ("get_related_companies", ("AAPL",), "404 page not found"),
    ],
)
def test_what_is_not_there_is_an_error_to_the_client(
    client: RESTClient, method: str, arguments: tuple[str, ...], words: str
) -> None:
    with pytest.raises(BadResponse, match=words):
        getattr(client, method)(*arguments)


def test_a_real_day_agrees_with_its_files(real_day: Path) -> None:
    """Grouped bars are the day file's rows; the last of the day are the last rows of the tick files."""
    day = date(2013, 10, 9)
    text = gzip.decompress((real_day / wire.file_key(DAY_BARS, day)).read_bytes()).decode()
    rows = sorted(line.split(",") for line in text.splitlines()[1:])
    with serve(flat_files=real_day, speed=0) as exchange:
        client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
        found = client.get_grouped_daily_aggs(day, adjusted=False)
        assert [(b.ticker, b.volume, b.open, b.close, b.high, b.low, b.transactions) for b in found] == [
            (r[0], *map(float, r[1:6]), int(r[7])) for r in rows
        ]
        for product, listed in ((TRADES, client.list_trades), (QUOTES, client.list_quotes)):
            newest = next(iter(listed("IBM", timestamp=day, limit=1)))
            table = exchange.tape.of_symbol(product, day, "IBM")
            assert newest.sip_timestamp == pc.max(table.column("ts_event")).as_py()
        # At the tape's end, two days later, nobody knows the last trade: these days have bars only.
        with pytest.raises(BadResponse, match="no us_stocks_sip/trades_v1 of 2013-10-11"):
            client.get_last_trade("IBM")
        client.client.clear()


def test_apples_splits_and_dividends_have_the_factors_that_others_found(tmp_path: Path, shared: Path) -> None:
    """Bars of one source, factors and adjusted bars of two others, through the vendor's client."""
    folder = shared / "data/aapl_splits"
    payouts = {"2020-05-08": 0.82, "2020-08-07": 0.82, "2020-11-06": 0.205, "2021-02-05": 0.205}
    paid = [{"ticker": "AAPL", "ex_dividend_date": day, "cash_amount": cash} for day, cash in payouts.items()]
    days = history_tape.days_of(shared, ["AAPL"], "2020-05-01", "2021-02-12")
    reference = {"splits": [history_tape.split("AAPL", "2020-08-31", 1, 4)], "dividends": paid}
    history_tape.write_folder(tmp_path, {history_tape.DAY_BARS: days}, reference)
    with serve(flat_files=tmp_path, speed=0) as exchange:
        client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=0)
        dividends = list(client.list_stocks_dividends("AAPL", sort="ex_dividend_date.asc"))
        bars = list(client.list_aggs("AAPL", 1, "day", "2020-05-01", "2021-02-12", limit=50))
        client.client.clear()
    lean = pd.read_csv(folder / "factor_files.csv").query("symbol == 'AAPL'").set_index("date")
    last_days = [20200507, 20200806, 20201105, 20210204]  # of the old price
    theirs = [round(factor, 6) for factor in lean.loc[last_days, "price_factor"]]
    assert [one.historical_adjustment_factor for one in dividends] == theirs
    assert [one.split_adjusted_cash_amount for one in dividends] == [0.205] * 4
    answer = pd.read_csv(folder / "aapl_2019_2024_split_adjusted.csv").set_index("date")["close"]
    dates = pd.to_datetime([bar.timestamp for bar in bars], unit="ms", utc=True)
    found = pd.Series([bar.close for bar in bars], dates.tz_convert("America/New_York").strftime("%Y-%m-%d"))
    assert len(found) == len(days)
    # Both sources round to the cent, one before and one after the split.
    assert ((found - answer.loc[found.index]).abs() < 0.021).mean() > 0.98
