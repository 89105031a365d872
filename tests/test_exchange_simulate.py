"""The simulated market: the same for everybody, and without contradictions."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tapelab.exchange.tape.simulate import INSTRUMENTS, SimulatedMarket
from tapelab.market import bars, sessions, symbols
from tapelab.market.sessions import Session


@pytest.fixture(scope="module")
def market() -> SimulatedMarket:
    return SimulatedMarket(7)


@pytest.fixture(scope="module")
def session(market: SimulatedMarket) -> Session:
    return market.sessions[-1]


@pytest.fixture(scope="module")
def ticks(market: SimulatedMarket, session: Session) -> tuple[pa.Table, pa.Table]:
    return market.ticks(session.date)


def test_the_same_seed_gives_the_same_market_whichever_day_is_asked_first(market: SimulatedMarket) -> None:
    other = SimulatedMarket(7)
    days = [s.date for s in market.sessions[-2:]]
    forwards = [market.ticks(day) for day in days]
    backwards = [other.ticks(day) for day in reversed(days)][::-1]
    assert forwards == backwards


def test_another_seed_gives_another_market(market: SimulatedMarket, session: Session) -> None:
    quotes, _ = market.ticks(session.date)
    others, _ = SimulatedMarket(8).ticks(session.date)
    assert not quotes.column("bid").equals(others.column("bid"))


def test_only_test_symbols_are_traded(ticks: tuple[pa.Table, pa.Table]) -> None:
    for table in ticks:
        names = pc.unique(table.column("symbol")).to_pylist()
        assert names == sorted(i.symbol for i in INSTRUMENTS)
        assert all(symbols.is_test(name) for name in names)


def test_every_event_lies_inside_the_session_in_order_of_time(
    ticks: tuple[pa.Table, pa.Table], session: Session
) -> None:
    for table in ticks:
        for instrument in INSTRUMENTS:
            own = table.filter(pc.equal(table.column("symbol"), instrument.symbol))
            stamps = own.column("ts_event").to_numpy()
            assert session.start <= stamps[0]
            assert stamps[-1] < session.end
            assert np.all(np.diff(stamps) > 0)
            assert np.all(np.diff(own.column("sequence").to_numpy()) > 0)
            assert np.all(own.column("ts_participant").to_numpy() < stamps)


def test_the_spread_is_positive_and_prices_are_whole_cents(ticks: tuple[pa.Table, pa.Table]) -> None:
    quotes, trades = ticks
    bid, ask = quotes.column("bid").to_numpy(), quotes.column("ask").to_numpy()
    assert np.all(ask - bid > 0.009)
    for price in (bid, ask, trades.column("price").to_numpy()):
        assert np.all(price > 0)
        assert np.array_equal(price, np.rint(price * 100) / 100)


def test_every_print_is_at_or_inside_the_quote_that_stood_before_it(ticks: tuple[pa.Table, pa.Table]) -> None:
    quotes, trades = ticks
    for instrument in INSTRUMENTS:
        q = quotes.filter(pc.equal(quotes.column("symbol"), instrument.symbol))
        t = trades.filter(pc.equal(trades.column("symbol"), instrument.symbol))
        standing = np.searchsorted(q.column("ts_event").to_numpy(), t.column("ts_event").to_numpy()) - 1
        assert standing.min() >= 0
        price = t.column("price").to_numpy()
        assert np.all(price >= q.column("bid").to_numpy()[standing])
        assert np.all(price <= q.column("ask").to_numpy()[standing])


def test_prints_carry_the_conditions_of_their_hour_and_size(
    ticks: tuple[pa.Table, pa.Table], session: Session
) -> None:
    _, trades = ticks
    rows = trades.select(["ts_event", "size", "conditions", "exchange", "trf_id", "ts_trf"]).to_pylist()
    for row in rows:
        codes = row["conditions"] or []
        regular = session.open <= row["ts_event"] < session.close
        assert (12 in codes) == (not regular and 8 not in codes)
        assert (37 in codes) == (row["size"] < 100)
        assert (row["exchange"] == 4) == (row["trf_id"] is not None) == (row["ts_trf"] is not None)
    crosses = [code for row in rows for code in row["conditions"] or [] if code in (25, 8)]
    assert sorted(crosses) == [8] * len(INSTRUMENTS) + [25] * len(INSTRUMENTS)
    shares = {name: np.mean([predicate(row) for row in rows]) for name, predicate in _KINDS.items()}
    assert 0.25 < shares["odd"] < 0.45
    assert 0.1 < shares["off exchange"] < 0.35


_KINDS = {"odd": lambda row: row["size"] < 100, "off exchange": lambda row: row["trf_id"] is not None}


def test_volume_is_high_at_the_open_and_the_close_and_thin_outside(
    ticks: tuple[pa.Table, pa.Table], session: Session
) -> None:
    _, trades = ticks
    minutes = bars.from_trades(trades, "1m")
    counts = minutes.column("transactions").to_numpy()
    since_open = (minutes.column("timestamp").to_numpy() - session.open) // 60_000_000_000

    def rate(first: int, last: int) -> float:
        return counts[(since_open >= first) & (since_open < last)].sum() / (last - first)

    assert rate(0, 30) > 1.5 * rate(180, 210) < 1.5 * rate(360, 390)
    assert rate(-300, -30) < 0.2 * rate(180, 210) > 0.2 * rate(400, 600)


def test_spreads_are_wide_at_the_open(ticks: tuple[pa.Table, pa.Table], session: Session) -> None:
    quotes, _ = ticks
    spread = quotes.column("ask").to_numpy() - quotes.column("bid").to_numpy()
    minute = (quotes.column("ts_event").to_numpy() - session.open) // 60_000_000_000
    assert spread[(minute >= 0) & (minute < 5)].mean() > 2 * spread[(minute >= 60) & (minute < 300)].mean()


def test_events_come_in_bursts(ticks: tuple[pa.Table, pa.Table], session: Session) -> None:
    quotes, _ = ticks
    stamps = quotes.filter(pc.equal(quotes.column("symbol"), "ZVZZT")).column("ts_event").to_numpy()
    noon = stamps[(stamps >= session.open + 9_000 * 10**9) & (stamps < session.open + 12_600 * 10**9)]
    counts = np.bincount((noon - noon[0]) // (10 * 10**9))
    # Independent arrivals would have a variance equal to their mean.
    assert counts.var() > 1.8 * counts.mean()


def test_two_symbols_move_together_and_their_spread_returns(
    ticks: tuple[pa.Table, pa.Table], session: Session
) -> None:
    quotes, _ = ticks
    mids = bars.from_quotes(quotes, "1m").to_pandas()
    mids = mids[(mids.timestamp >= session.open) & (mids.timestamp < session.close)]
    logs = np.log(mids.pivot(index="timestamp", columns="symbol", values="close").ffill().dropna())
    moves = logs.diff().dropna()
    assert moves["ZVZZT"].corr(moves["ZWZZT"]) > 0.6
    assert abs(moves["ZVZZT"].corr(moves["ZXZZT"])) < 0.6
    spread = logs["ZWZZT"] - logs["ZVZZT"]
    assert spread.std() < 0.5 * logs["ZWZZT"].std() + 0.003


def test_sessions_are_the_exchanges_own(market: SimulatedMarket) -> None:
    first, last = market.sessions[0].date, market.sessions[-1].date
    assert market.sessions == sessions.between(symbols.Market.STOCKS, first, last)
    with pytest.raises(KeyError):
        market.ticks(last.replace(day=last.day + 1))
