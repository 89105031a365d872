"""What a user of `Strategy` meets: parameters, callbacks, bars on the way, timers, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab_tape import OPEN, bought, quote, script, tape, trade
from tapelab.errors import NoData, StrategyError, UnknownInterval, UnknownName, UsageError
from tapelab.lab import Fill, Order, Strategy, backtest, rules, strategies
from tapelab.market.clock import HOUR, MILLISECOND, SECOND
from tapelab.market.events import Bar, Quote, Trade


class Tuned(Strategy):
    fast = 5
    threshold = 1.5
    name = "x"
    loud = False
    symbols_wanted: tuple[str, ...] = ()
    anything: object = None


# Parameters


def test_parameters_are_class_attributes() -> None:
    assert Tuned().params["fast"] == 5
    tuned = Tuned(fast=np.int64(7), threshold=2, symbols_wanted=["A", "B"])
    assert (tuned.fast, tuned.threshold, tuned.symbols_wanted) == (7, 2.0, ("A", "B"))
    assert type(tuned.fast) is int
    assert type(tuned.threshold) is float
    assert Tuned.fast == 5
    assert set(Tuned().params) == {
        "bars", "timer", "fast", "threshold", "name", "loud", "symbols_wanted", "anything",
    }  # fmt: skip


def test_a_misspelt_parameter_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(UnknownName, match=r"parameter of Tuned 'treshold'.*Did you mean 'threshold'"):
        Tuned(treshold=1.0)


@pytest.mark.parametrize(
    "wrong", [{"fast": 5.5}, {"fast": "5"}, {"fast": True}, {"threshold": "high"}, {"loud": 1}, {"name": 3}]
)
def test_a_parameter_of_the_wrong_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=rf"Tuned\.{next(iter(wrong))} is"):
        Tuned(**wrong)


def test_a_parameter_without_a_default_has_to_be_given() -> None:
    class Needs(Strategy):
        symbol: str

    with pytest.raises(UsageError, match="needs a value for 'symbol'"):
        Needs()
    assert Needs(symbol="IBM").params["symbol"] == "IBM"


def test_an_unknown_interval_and_an_impossible_timer_are_refused_at_once() -> None:
    with pytest.raises(UnknownInterval, match="no interval '7x'"):
        strategies.MovingAverageCross(bars="7x")
    with pytest.raises(UsageError, match="never rings"):
        strategies.MarketMaker(timer=0.0)


def test_a_parameter_cannot_hide_what_every_strategy_has() -> None:
    with pytest.raises(UsageError, match=r"Mine\.cash hides"):
        type("Mine", (Strategy,), {"cash": 5})
    with pytest.raises(UsageError, match=r"Mine\.on_quote hides"):
        type("Mine", (Strategy,), {"on_quote": 5})


# Running


def test_callbacks_come_in_order_and_know_the_time() -> None:
    calls: list[tuple[str, float]] = []

    class Notes(Strategy):
        def note(self, name: str) -> None:
            calls.append((name, (self.now - OPEN) / MILLISECOND))

        def on_start(self) -> None:
            self.note("start")
            self.buy("AAA", 10)

        def on_quote(self, quote: Quote) -> None:
            self.note("quote")

        def on_trade(self, trade: Trade) -> None:
            self.note("trade")

        def on_fill(self, fill: Fill) -> None:
            assert self.position("AAA") == fill.position == 10
            self.note("fill")

        def on_stop(self) -> None:
            self.note("stop")

    backtest(Notes, tape(quote(0, 10.00, 10.02), trade(1, 10.01), quote(2, 10.00, 10.02)))
    names = ["start", "fill", "quote", "trade", "quote", "stop"]
    assert calls == list(zip(names, [0, 0, 0, 1, 2, 2], strict=True))


def test_money_and_positions_are_known_inside() -> None:
    seen: list[tuple[float, float, float, float]] = []

    class Looks(Strategy):
        def on_quote(self, quote: Quote) -> None:
            if not seen:
                self.buy("AAA", 100)
            seen.append((self.position("AAA"), self.in_flight("AAA"), self.cash, self.equity))

    backtest(Looks, tape(quote(0, 9.99, 10.01), quote(1, 9.99, 10.01), quote(2, 10.49, 10.51)), cash=5_000)
    # 100 × 10.01 = 1,001 paid; worth 1,000 at the mid of 10.00, 1,050 at 10.50.
    assert seen == [(0, 100, 5_000, 5_000), (100, 0, 3_999, 4_999), (100, 0, 3_999, 5_049)]


def test_an_instance_stays_as_it_was_and_every_run_starts_anew() -> None:
    class Counts(Strategy):
        def __init__(self, **params: Any) -> None:
            super().__init__(**params)
            self.count = 0

        def on_quote(self, quote: Quote) -> None:
            self.count += 1
            assert self.count <= 2

    counts = Counts()
    data = tape(quote(0, 1, 2), quote(1, 1, 2))
    backtest(counts, data)
    backtest(counts, data)
    assert counts.count == 0


def test_working_orders_can_be_listed_and_cancelled() -> None:
    listed: list[list[Order]] = []

    def look(strategy: Strategy) -> None:
        listed.append(strategy.orders("AAA"))
        assert all(strategy.cancel(order) for order in strategy.orders())
        assert strategy.in_flight("AAA") == 0
        assert not strategy.cancel(listed[-1][0])

    plan = script(
        at_1=lambda s: [s.buy("AAA", 5, limit=9), s.submit(Order("AAA", -7, limit=11.0, tag="far"))],
        at_2=look,
    )
    backtest(plan, tape(quote(0, 10, 10.1), quote(1, 10, 10.1)))
    assert [(order.size, order.limit, order.tag, order.id) for order in listed[0]] == [
        (5, 9, "", 1),
        (-7, 11.0, "far", 2),
    ]


@pytest.mark.parametrize(
    "senseless",
    [
        lambda s: s.buy("AAA", 0),
        lambda s: s.buy("AAA", -5),
        lambda s: s.sell("AAA", float("nan")),
        lambda s: s.buy("AAA", float("inf")),
        lambda s: s.buy("AAA", 5, limit=-1),
        lambda s: s.buy("", 5),
        lambda s: s.submit(Order("AAA", 0)),
    ],
)
def test_senseless_orders_are_errors(senseless: Any) -> None:
    with pytest.raises(StrategyError, match=r"makes no sense|is no price|is not a symbol"):
        backtest(script(at_1=senseless), tape(quote(0, 1, 2)))


def test_an_order_for_a_symbol_that_the_data_does_not_hold_is_an_error() -> None:
    with pytest.raises(UnknownName, match=r"no symbol in this data 'AAB'.*Did you mean 'AAA'"):
        backtest(script(at_1=lambda s: s.buy("AAB", 1)), tape(quote(0, 1, 2)))


def test_a_strategy_that_breaks_says_where() -> None:
    class Breaks(Strategy):
        def on_quote(self, quote: Quote) -> None:
            1 / 0  # noqa: B018

    with pytest.raises(
        StrategyError, match=r"Breaks\.on_quote broke: ZeroDivisionError: division by zero\."
    ) as caught:
        backtest(Breaks, tape(quote(0, 1, 2)))
    assert "test_lab_strategy.py, line" in caught.value.remedy
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_orders_outside_a_run_are_errors() -> None:
    with pytest.raises(StrategyError, match="not running"):
        Tuned().buy("AAA", 1)


def test_what_cannot_be_tested_on_is_said() -> None:
    with pytest.raises(UsageError, match="A list is nothing to test a strategy on"):
        backtest(Tuned, [1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no kind of table 'ticks'"):
        backtest(Tuned, {"ticks": tape(quote(0, 1, 2))["quotes"]})
    with pytest.raises(NoData, match="is empty"):
        backtest(Tuned, tape(quote(0, 1, 2))["quotes"].slice(0, 0))
    with pytest.raises(UsageError, match="is not a strategy"):
        backtest(object(), tape(quote(0, 1, 2)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="Starting with nan"):
        backtest(Tuned, tape(quote(0, 1, 2)), cash=float("nan"))


# Bars on the way


class Bars(Strategy):
    bars = "1s"

    def on_start(self) -> None:
        self.log: list[tuple[str, object]] = []

    def on_trade(self, trade: Trade) -> None:
        self.log.append(("trade", (trade.ts_event - OPEN) / MILLISECOND))

    def on_quote(self, quote: Quote) -> None:
        self.log.append(("quote", (quote.ts_event - OPEN) / MILLISECOND))

    def on_bar(self, bar: Bar) -> None:
        assert self.now >= bar.ends
        self.log.append(("bar", (bar.symbol, bar.open, bar.high, bar.low, bar.close, bar.volume)))

    def on_stop(self) -> None:
        LOGS.append(self.log)


LOGS: list[list[tuple[str, object]]] = []


def log_of(strategy: Strategy, *events: Any, received: bool = True) -> list[tuple[str, object]]:
    LOGS.clear()
    backtest(strategy, tape(*events, received=received))
    return LOGS[0]


def test_bars_over_ticks_come_before_the_first_event_at_or_after_their_end() -> None:
    log = log_of(
        Bars(),
        trade(100, 10.0, 5),
        trade(200, 10.3, 5),
        trade(300, 9.8, 5, symbol="BBB"),
        trade(900, 10.1, 5),
        quote(1_000, 9, 11),  # exactly at the end: the bars come first
        trade(1_500, 10.2, 5),  # its window is still open when the data ends
    )
    assert log == [
        ("trade", 100), ("trade", 200), ("trade", 300), ("trade", 900),
        ("bar", ("AAA", 10.0, 10.3, 10.0, 10.1, 15)), ("bar", ("BBB", 9.8, 9.8, 9.8, 9.8, 5)),
        ("quote", 1_000), ("trade", 1_500),
    ]  # fmt: skip


def test_without_trades_bars_are_made_of_mids_and_say_so() -> None:
    log = log_of(Bars(), quote(0, 10, 12), quote(500, 11, 13), quote(1_200, 1, 2))
    assert log[2] == ("bar", ("AAA", 11, 12, 11, 12, 0))
    result = backtest(Bars(), tape(quote(0, 10, 12)))
    assert any("built from mids" in each.text for each in result.assumptions)


def test_a_print_that_arrives_after_its_bar_was_shown_is_left_out_and_counted() -> None:
    events = (trade(500, 10.0), trade(1_000, 10.1), trade(999, 99.0), trade(2_000, 10.2))
    log = log_of(Bars(), *events)
    assert [each for each in log if each[0] == "bar"] == [
        ("bar", ("AAA", 10.0, 10.0, 10.0, 10.0, 100)),
        ("bar", ("AAA", 10.1, 10.1, 10.1, 10.1, 100)),
    ]
    result = backtest(Bars(), tape(*events))
    assert any("are in none: 1." in each.text for each in result.assumptions)


def test_prints_move_bars_by_the_vendors_condition_rules() -> None:
    log = log_of(
        Bars(),
        trade(100, 10.0, 5),
        trade(200, 99.0, 7, conditions=(2,)),  # average price: volume only
        trade(300, 88.0, 9, conditions=(15,)),  # official close: nothing at all
        trade(400, 11.0, 3, conditions=(10,)),  # derivatively priced: high and low, not close
        trade(1_500, 1.0),
    )
    assert log[4] == ("bar", ("AAA", 10.0, 11.0, 10.0, 10.0, 15))


def test_an_order_sent_on_a_bar_can_fill_at_the_event_that_ended_it() -> None:
    """The bar held nothing of that event, and the order was there before it."""

    class Buys(Strategy):
        bars = "1s"

        def on_bar(self, bar: Bar) -> None:
            self.target_position("AAA", 1)

    data = tape(quote(0, 10.0, 10.1), trade(500, 10.05), quote(1_250, 10.2, 10.3))
    assert bought(backtest(Buys, data)) == [(1_250, 1, 10.3)]


# Timers


class Rings(Strategy):
    def on_start(self) -> None:
        self.log: list[float] = []

    def on_timer(self) -> None:
        self.log.append((self.now - OPEN) / SECOND)

    def on_stop(self) -> None:
        LOGS.append(self.log)  # type: ignore[arg-type]


def test_a_timer_rings_on_the_clock_and_before_the_event_at_its_time() -> None:
    assert log_of(Rings(timer=2.0), quote(500, 1, 2), quote(1_000, 1, 2), quote(6_000, 1, 2)) == [2, 4, 6]


def test_a_timer_sleeps_through_long_silence_and_wakes_with_the_next_event() -> None:
    night = 8 * HOUR // SECOND
    rings = log_of(
        Rings(timer=600.0),
        quote(0, 1, 2),
        quote(night * 1_000 + 1, 1, 2),
        quote((night + 1_000) * 1_000, 1, 2),
    )
    assert rings == [600, 1200, 1800, 2400, 3000, 3600, night + 600]


def test_every_sets_the_timer_from_now_on() -> None:
    class Later(Rings):
        def on_quote(self, quote: Quote) -> None:
            if self.now == OPEN:
                self.every(1)

    assert log_of(Later(), quote(0, 1, 2), quote(2_500, 1, 2)) == [1, 2]


# Names


def test_a_strategy_is_found_by_its_name() -> None:
    assert strategies.by_name("MarketMaker") is strategies.MarketMaker
    with pytest.raises(UnknownName, match=r"no strategy 'MarketMakr'.*Did you mean 'MarketMaker'"):
        strategies.by_name("MarketMakr")


def test_a_strategy_is_found_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import tapelab as tl\nclass Mine(tl.Strategy):\n    size = 3\nclass Other(Mine):\n    pass\n"
    )
    assert strategies.by_name(f"{path}:Mine").size == 3  # type: ignore[attr-defined]
    with pytest.raises(UnknownName, match=r"no strategy in .* 'Mien'.*Did you mean 'Mine'"):
        strategies.by_name(f"{path}:Mien")
    with pytest.raises(UnknownName, match="no strategy file"):
        strategies.by_name(f"{tmp_path}/none.py:Mine")
    path.write_text("import nothing_like_this\n")
    with pytest.raises(StrategyError, match="cannot be imported: ModuleNotFoundError"):
        strategies.by_name(f"{path}:Mine")
    path.write_text("import tapelab as tl\nclass Only(tl.Strategy):\n    pass\n")
    assert strategies.by_name(str(path)).__name__ == "Only"


def test_a_recipe_names_the_file_of_a_strategy_and_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import tapelab as tl\nclass Mine(tl.Strategy):\n    pass\n")
    recipe = backtest(strategies.by_name(f"{path}:Mine"), tape(quote(0, 1, 2))).recipe
    assert recipe["strategy"]["file"] == "mine.py"
    assert len(recipe["strategy"]["sha256"]) == 64


class EveryMinute(Strategy):
    """Buys and sells by turns on each bar's end and on a timer; notes the time."""

    bars = "1m"
    timer = 7.0

    def on_start(self) -> None:
        self.times: list[int] = []

    def on_bar(self, bar: Bar) -> None:
        self.times.append(self.now)
        self.target_position("AAA", 0 if self.position("AAA") else 100)

    def on_timer(self) -> None:
        self.times.append(self.now)


def test_a_recording_gives_the_same_result_at_whatever_speed_it_was_made() -> None:
    events = [
        event
        for second in range(0, 400, 3)
        for event in (
            quote(second * 1000, 10 + second / 100, 10.02 + second / 100),
            trade(second * 1000 + 1, 10.01 + second / 100),
        )
    ]
    at_real_speed = [event._replace(ts_recv=event.ts_event + 5_000_000) for event in events]
    unpaced = [event._replace(ts_recv=OPEN + n) for n, event in enumerate(events)]
    found = [
        backtest(EveryMinute(), tape(*made), latency=rules.FixedLatency(ms=4000)).fills
        for made in (events, at_real_speed, unpaced)
    ]
    assert len(found[0]) == 6
    assert found[0].equals(found[1])
    assert found[0].equals(found[2])
