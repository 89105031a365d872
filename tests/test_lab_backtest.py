"""What must hold for every backtest, and the real day against an independent reckoning."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_tape import OPEN, bar, quote, tape, trade
from tapelab.lab import Fill, Strategy, backtest, rules, sources, strategies
from tapelab.lab.broker import Broker
from tapelab.lab.loop import Loop
from tapelab.market import bars, replay, tables
from tapelab.market.clock import HOUR, MINUTE, SECOND
from tapelab.market.events import Bar, Event, Quote, Trade
from tapelab.massive import wire
from tapelab.store.datasets import catalogue

# Random tapes and a strategy that does anything


@st.composite
def ticks(draw: st.DrawFn, most: int = 60) -> list[Event]:
    """Quotes and trades of two symbols; prices walk on cents, times go on by 0 to 4 ms."""
    events: list[Event] = []
    at = 0
    for _ in range(draw(st.integers(1, most))):
        at += draw(st.integers(0, 4))
        symbol = draw(st.sampled_from(["AAA", "BBB"]))
        mid = draw(st.integers(990, 1010))
        if draw(st.booleans()):
            half = draw(st.integers(-1, 3))  # sometimes crossed or locked
            bid = None if draw(st.integers(0, 9)) == 0 else (mid - half) / 100
            sizes = draw(st.integers(0, 300)), draw(st.integers(0, 300))
            events.append(quote(at, bid, (mid + half) / 100, *sizes, symbol=symbol))
        else:
            off = draw(st.booleans())
            events.append(trade(at, mid / 100, draw(st.integers(1, 300)), off_exchange=off, symbol=symbol))
    return events


@st.composite
def minutes(draw: st.DrawFn, most: int = 30) -> list[Event]:
    """Bars of two symbols, some minutes missing."""
    events: list[Event] = []
    for minute in range(draw(st.integers(1, most))):
        for symbol in ("AAA", "BBB"):
            if draw(st.integers(0, 4)):
                prices = [draw(st.integers(990, 1010)) / 100 for _ in range(4)]
                o, c, *_ = prices
                low, high = min(prices), max(prices)
                events.append(bar(minute, o, high, low, c, volume=draw(st.integers(0, 300)), symbol=symbol))
    return events or [bar(0, 10, 10, 10, 10)]


class Anything(Strategy):
    """Orders, cancellations and targets, decided by what it has seen and a seed."""

    seed = 0

    def on_start(self) -> None:
        self.random = Random(self.seed)

    def on_quote(self, event: Quote) -> None:
        self.decide(event.symbol)

    def on_trade(self, event: Trade) -> None:
        self.decide(event.symbol)

    def on_bar(self, event: Bar) -> None:
        self.decide(event.symbol)

    def on_timer(self) -> None:
        self.decide("AAA")

    def on_fill(self, fill: Fill) -> None:
        self.decide(fill.symbol)

    def decide(self, symbol: str) -> None:
        choice, size = self.random.randrange(7), self.random.randint(1, 400)
        limit = self.random.randint(985, 1015) / 100
        if choice == 0:
            self.buy(symbol, size)
        elif choice == 1:
            self.sell(symbol, size)
        elif choice == 2:
            self.buy(symbol, size, limit=limit)
        elif choice == 3:
            self.sell(symbol, size, limit=limit)
        elif choice == 4 and self.orders(symbol):
            self.cancel(self.orders(symbol)[0])
        elif choice == 5:
            self.target_position(symbol, size - 200)


def account(on_bars: bool, latency: float) -> Broker:
    fills = (rules.NextBarOpen(),) if on_bars else (rules.TakerAtTouch(), rules.MakerOnCross())
    return Broker(
        cash=100_000,
        fills=fills,
        fees=rules.PerShare(0.0035, minimum=0.35),
        latency=rules.FixedLatency(latency),
        risk=rules.RiskLimits(max_position=1_000),
    )


def played(events: list[Event], seed: int, latency: float, **more: Any) -> Broker:
    on_bars = isinstance(events[0], Bar) if events else False
    broker = account(on_bars, latency)
    Loop(Anything(seed=seed, **more), broker).run(events)
    return broker


tapes = st.one_of(ticks(), minutes())


@settings(max_examples=150, deadline=None)
@given(tapes, st.integers(0, 10**6), st.sampled_from([0.0, 2.0]), st.integers(0, 60), st.data())
def test_changing_the_future_never_changes_the_past(
    events: list[Event], seed: int, latency: float, cut: int, data: st.DataObject
) -> None:
    timer = 20.0 if isinstance(events[0], Bar) else 0.003
    whole = played(events, seed, latency, timer=timer).fills
    past = played(events[:cut], seed, latency, timer=timer).fills
    assert whole[: len(past)] == past
    if not isinstance(events[0], Bar):
        other = events[:cut] + data.draw(ticks())[cut:]
        changed = played(other, seed, latency, timer=timer).fills
        assert changed[: len(past)] == past


@settings(max_examples=150, deadline=None)
@given(tapes, st.integers(0, 10**6), st.sampled_from([0.0, 2.0]))
def test_cash_positions_and_fees_reconcile_with_the_fills_to_the_last_digit(
    events: list[Event], seed: int, latency: float
) -> None:
    broker = played(events, seed, latency)
    cash, held = Decimal(100_000), dict[str, Decimal]()
    for fill in broker.fills:
        size, price, fee = (Decimal(repr(x)) for x in (fill.size, fill.price, fill.fee))
        cash -= size * price + fee
        held[fill.symbol] = held.get(fill.symbol, Decimal(0)) + size
    assert broker.cash == cash
    assert {symbol: Decimal(repr(size)) for symbol, size in broker.held.items()} == {
        symbol: size for symbol, size in held.items() if size
    }
    worth = float(cash) + sum(float(size) * broker.marks[symbol] for symbol, size in held.items())
    assert broker.equity() == pytest.approx(worth, abs=1e-6)


@settings(max_examples=120, deadline=None)
@given(ticks(), st.integers(0, 10**6))
def test_no_fill_is_better_than_what_the_market_offered(events: list[Event], seed: int) -> None:
    """Takers pay the touch of their moment, makers get their limit, nobody gets more than was shown."""
    broker = played(events, seed, 0.0)
    for fill in broker.fills:
        now = [e for e in events if e.symbol == fill.symbol and e.ts_event == fill.ts]  # type: ignore[union-attr]
        touches = {e.ask if fill.size > 0 else e.bid for e in now if isinstance(e, Quote)}
        sign = 1 if fill.size > 0 else -1
        if fill.maker:
            prints = {e.price for e in now if isinstance(e, Trade) and not e.off_exchange}
            assert any(p is not None and sign * (fill.price - p) > 0 for p in touches | prints)
        else:
            assert fill.price in touches
    assert all(abs(size) <= 1_000 for size in broker.held.values())


@settings(max_examples=100, deadline=None)
@given(ticks(120))
def test_bars_on_the_way_equal_bars_of_the_whole_table(events: list[Event]) -> None:
    prints = [event for event in events if isinstance(event, Trade)]
    found: list[Bar] = []

    class Keeps(Strategy):
        bars = "1s"

        def on_bar(self, bar: Bar) -> None:
            found.append(bar)

    late = [e._replace(ts_event=e.ts_event + n * 300_000_000) for n, e in enumerate(prints)]
    Loop(Keeps(), account(on_bars=False, latency=0)).run([*late, quote(10**8, 1, 2)])
    table = tape(*late)["trades"] if late else None
    expected = bars.from_trades(_with_rest(table), "1s") if table is not None else None
    _same_bars(found, expected)


def _with_rest(table: pa.Table) -> pa.Table:
    return tables.conform(table, tables.TRADES)


def _same_bars(found: list[Bar], expected: pa.Table | None) -> None:
    rows = sorted(expected.to_pylist(), key=lambda r: (r["timestamp"], r["symbol"])) if expected else []
    assert len(found) == len(rows)
    for one, row in zip(found, rows, strict=True):
        assert (one.symbol, one.timestamp, one.open, one.high, one.low, one.close, one.transactions) == tuple(
            row[name] for name in ("symbol", "timestamp", "open", "high", "low", "close", "transactions")
        )
        assert one.volume == pytest.approx(row["volume"])
        assert one.vwap == (None if row["vwap"] is None else pytest.approx(row["vwap"]))


# What users hand in


def test_the_same_data_gives_the_same_result_whatever_holds_it() -> None:
    import polars as pl

    arrow = tape(*(bar(n, 10 + n % 3, 13, 9, 10 + (n + 1) % 3) for n in range(60)))["bars"]
    cross = strategies.MovingAverageCross(fast=2, slow=5)
    profits = {
        backtest(cross, data).metrics["profit"]
        for data in (
            arrow,
            tables.to_frame(arrow, "pandas"),
            tables.to_frame(arrow, "polars"),
            tables.to_frame(arrow, "arrow"),
            tables.to_frame(arrow, "pandas").set_index("timestamp"),
            {"bars": pl.from_arrow(arrow)},
        )
    }
    assert len(profits) == 1
    assert profits != {0.0}


def test_ticks_of_several_symbols_in_a_files_order_are_put_in_order_of_time() -> None:
    """A flat file holds one symbol after the other; a strategy sees them by the exchange's clock."""
    seen: list[tuple[str, int]] = []

    class Sees(Strategy):
        def on_quote(self, quote: Quote) -> None:
            seen.append((quote.symbol, (quote.ts_event - OPEN) // 1_000_000))

    rows = [quote(5, 1, 2), quote(9, 1, 2), quote(2, 1, 2, symbol="BBB"), quote(5, 1, 2, symbol="BBB")]
    backtest(Sees, tape(*rows, received=False)["quotes"])
    assert seen == [("BBB", 2), ("AAA", 5), ("BBB", 5), ("AAA", 9)]


# The real day


@pytest.fixture(scope="module")
def day(real_day: Path) -> dict[str, pa.Table]:
    """Quotes and trades of 2013-10-09, in order."""
    on = date(2013, 10, 9)
    quotes, trades = (
        wire.read_flat_file(real_day / wire.file_key(product, on), product, day=on)
        for product in ("us_stocks_sip/quotes_v1", "us_stocks_sip/trades_v1")
    )
    quotes, trades = replay.in_order_of_arrival(quotes, trades)
    return {"quotes": quotes, "trades": trades}


@pytest.fixture(scope="module")
def hour(day: dict[str, pa.Table]) -> dict[str, pa.Table]:
    """Half an hour of it, from 10:00."""
    start = OPEN + 30 * MINUTE

    def cut(table: pa.Table) -> pa.Table:
        ts = table.column("ts_event")
        return table.filter(pc.and_(pc.greater_equal(ts, start), pc.less(ts, start + HOUR // 2)))

    return {kind: cut(table) for kind, table in day.items()}


class EveryFewHundred(Strategy):
    """Buys a share on the 300th quote of IBM, sells it on the 600th, and so on."""

    def on_start(self) -> None:
        self.count = 0

    def on_quote(self, quote: Quote) -> None:
        if quote.symbol == "IBM":
            self.count += 1
            if self.count % 300 == 0:
                self.target_position("IBM", 1 if self.count % 600 else 0)


@pytest.mark.parametrize("ms", [0, 250])
def test_takers_on_the_real_day_equal_an_independent_reckoning(day: dict[str, pa.Table], ms: int) -> None:
    """In numpy, without a loop over events: where each order goes, and the quote that it finds there."""
    quotes = day["quotes"].filter(pc.equal(day["quotes"].column("symbol"), "IBM"))
    ts, bid, ask = (np.asarray(quotes.column(n).to_numpy()) for n in ("ts_event", "bid", "ask"))
    sizes = {1: quotes.column("ask_size").to_numpy(), -1: quotes.column("bid_size").to_numpy()}
    expected = []
    sides = [1, -1]
    for number, sent in enumerate(range(299, len(ts), 300)):
        side = sides[number % 2]
        usable = (sizes[side] > 0) & (bid <= ask) & (np.arange(len(ts)) > sent)
        found = np.flatnonzero(usable & (ts >= ts[sent] + ms * 1_000_000))
        if len(found):
            expected.append((int(ts[found[0]]), side, float((ask if side > 0 else bid)[found[0]])))
    result = backtest(EveryFewHundred, day["quotes"], latency=rules.FixedLatency(ms))
    fills = result.tables["fills"].to_pylist()
    assert len(expected) > 200
    assert [(f["timestamp"], f["size"], f["price"]) for f in fills] == expected
    money = -sum(side * price for _, side, price in expected)
    held = sum(side for _, side, _ in expected)
    assert result.metrics["profit"] == pytest.approx(
        money + held * result.tables["positions"].num_rows * _last_mid(quotes)
    )


def _last_mid(quotes: pa.Table) -> float:
    return float((quotes.column("bid")[-1].as_py() + quotes.column("ask")[-1].as_py()) / 2)


SHIPPED = {
    "cross": strategies.MovingAverageCross(symbol="IBM", fast=3, slow=8),
    "pairs": strategies.PairsTrading(first="AIG", second="BAC", lookback=10, entry=1.5),
    "maker": strategies.MarketMaker(),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_strategies_trade_the_real_morning_at_prices_that_were_there(
    hour: dict[str, pa.Table], name: str
) -> None:
    result = backtest(SHIPPED[name], hour)
    fills = result.tables["fills"].to_pylist()
    assert len(fills) >= 3
    quotes, trades = hour["quotes"], hour["trades"]
    for fill in fills:
        now = _at(quotes, fill)
        touches = now.column("ask" if fill["size"] > 0 else "bid").to_pylist()
        if not fill["maker"]:
            assert fill["price"] in touches
            continue
        sign = 1 if fill["size"] > 0 else -1
        lit = _at(trades, fill)
        lit = lit.filter(pc.is_null(lit.column("trf_id"))).column("price").to_pylist()
        assert any(sign * (fill["price"] - other) > 0 for other in touches + lit)
    cash = 100_000 - sum(f["size"] * f["price"] + f["fee"] for f in fills)
    worth = sum(row["value"] for row in result.tables["positions"].to_pylist())
    assert result.metrics["final_equity"] == pytest.approx(cash + worth, abs=1e-6)
    trips = result.tables["round_trips"].column("net").to_numpy().sum()
    if not worth:
        assert result.metrics["profit"] == pytest.approx(trips, abs=1e-6)


def _at(table: pa.Table, fill: dict[str, Any]) -> pa.Table:
    same = pc.equal(table.column("ts_event"), fill["timestamp"])
    return table.filter(pc.and_(same, pc.equal(table.column("symbol"), fill["symbol"])))


def test_bars_on_the_way_over_the_real_morning_equal_those_of_the_whole_table(
    hour: dict[str, pa.Table],
) -> None:
    found: list[Bar] = []

    class Keeps(Strategy):
        bars = "1m"

        def on_bar(self, bar: Bar) -> None:
            found.append(bar)

    backtest(Keeps, hour)
    expected = bars.from_trades(hour["trades"], "1m")
    last = pc.max(expected.column("timestamp")).as_py()  # its end is not in the half hour
    _same_bars(found, expected.filter(pc.less(expected.column("timestamp"), last)))
    assert len(found) == 29 * 4


def test_mark_outs_are_the_mids_that_stood_so_many_seconds_later(hour: dict[str, pa.Table]) -> None:
    result = backtest(SHIPPED["maker"], hour)
    quotes = hour["quotes"]
    checked = 0
    for fill in result.tables["fills"].to_pylist()[:60]:
        own = quotes.filter(pc.equal(quotes.column("symbol"), fill["symbol"]))
        ts = own.column("ts_event").to_numpy()
        for seconds in (1, 5, 30):
            row = np.searchsorted(ts, fill["timestamp"] + seconds * SECOND) - 1
            expected = (own.column("bid")[row].as_py() + own.column("ask")[row].as_py()) / 2
            assert fill[f"mid_{seconds}s"] == expected
            checked += 1
    assert checked > 30


def test_minute_bars_of_the_real_week_run_through_every_day(real_day: Path) -> None:
    product = "us_stocks_sip/minute_aggs_v1"
    days = [date(2013, 10, number) for number in range(7, 12)]
    table = pa.concat_tables(
        wire.read_flat_file(
            real_day / wire.file_key(product, each), product, day=each
        ).replace_schema_metadata(None)
        for each in days
    )
    result = backtest(strategies.MovingAverageCross(symbol="SPY"), table)
    assert result.metrics["sessions"] == 5
    assert result.metrics["sharpe"] is None
    assert "this is 5 sessions" in result.notes["sharpe"]
    opens = {
        (row["timestamp"], row["open"])
        for row in table.filter(pc.equal(table.column("symbol"), "SPY")).to_pylist()
    }
    fills = result.tables["fills"].to_pylist()
    assert len(fills) > 50
    assert all((fill["timestamp"], fill["price"]) in opens for fill in fills)


def test_a_dataset_gives_what_its_tables_give(hour: dict[str, pa.Table], tmp_path: Path) -> None:
    dataset = catalogue.from_tables("morning", **hour, source="flat_file", folder=tmp_path)
    assert isinstance(dataset, sources.DatasetLike)
    ours, theirs = (backtest(SHIPPED["maker"], data) for data in (dataset, hour))
    assert ours.tables == theirs.tables
    assert ours.metrics == theirs.metrics
    assert ours.dataset["name"] == "morning"
    assert ours.dataset["provenance"]["source"] == "flat_file"
    assert any("unit unknown" in each.name for each in ours.assumptions)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_the_whole_real_day(day: dict[str, pa.Table], name: str) -> None:
    result = backtest(SHIPPED[name], day)
    assert result.metrics["events"] == len(day["quotes"]) + len(day["trades"])
    assert result.metrics["fills"]


def test_a_source_reads_events_from_anywhere() -> None:
    """The clock takes any iterator: here a generator that makes them up one by one."""

    def endless() -> Iterator[Event]:
        for at in range(100):
            yield quote(at, 10.0, 10.02)

    broker = account(on_bars=False, latency=0)
    record = Loop(Anything(seed=1), broker).run(endless())
    assert record.events == 100
    assert sources.read(tape(quote(0, 1, 2))).symbols == ("AAA",)
