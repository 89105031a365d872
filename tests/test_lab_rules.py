"""Every fill rule, fee and latency against tables worked out by hand. Times are ms after the open."""

from __future__ import annotations

import pytest

from lab_tape import bar, bought, quote, script, tape, trade
from tapelab.errors import UsageError
from tapelab.lab import Strategy, backtest, rules
from tapelab.market import tables

MARKET_BUY = script(at_1=lambda s: s.buy("AAA", 100))


# Takers


def test_a_market_order_fills_at_the_next_touch_never_at_the_quote_that_caused_it() -> None:
    data = tape(quote(0, 10.00, 10.02), quote(1, 10.03, 10.05), quote(2, 10.00, 10.02))
    # Sent at 0 ms on seeing 10.02; the next quote of AAA offers 10.05.
    assert bought(backtest(MARKET_BUY, data)) == [(1, 100, 10.05)]


def test_a_market_sale_fills_at_the_next_bid() -> None:
    data = tape(quote(0, 10.00, 10.02), quote(1, 9.97, 9.99))
    assert bought(backtest(script(at_1=lambda s: s.sell("AAA", 100)), data)) == [(1, -100, 9.97)]


def test_a_taker_gets_no_more_than_is_displayed_and_the_rest_waits() -> None:
    data = tape(
        quote(0, 10.00, 10.02),
        quote(1, 10.00, 10.02, ask_size=60),  # 60 of 100
        quote(2, 10.00, 10.03, ask_size=30),  # 30 of the 40 left
        quote(3, 10.00, 10.04, ask_size=500),  # the last 10
        quote(4, 10.00, 10.05),
    )
    assert bought(backtest(MARKET_BUY, data)) == [(1, 60, 10.02), (2, 30, 10.03), (3, 10, 10.04)]


def test_displayed_lots_are_a_hundred_shares_each() -> None:
    data = tape(quote(0, 10.00, 10.02), quote(1, 10.00, 10.02, ask_size=2), quote(2, 10.00, 10.02))
    data["quotes"] = tables.with_facts(data["quotes"], quote_size_unit="lots")
    result = backtest(script(at_1=lambda s: s.buy("AAA", 250)), data)
    assert bought(result) == [(1, 200, 10.02), (2, 50, 10.02)]
    assert any("round lots of 100 shares" in each.text for each in result.assumptions)


def test_two_orders_share_what_one_quote_displays_the_older_first() -> None:
    data = tape(quote(0, 10.00, 10.02), quote(1, 10.00, 10.02, ask_size=150), quote(2, 10.00, 10.07))

    def two(strategy: Strategy) -> None:
        strategy.buy("AAA", 100, tag="first")
        strategy.buy("AAA", 100, tag="second")

    result = backtest(script(at_1=two), data)
    assert bought(result) == [(1, 100, 10.02), (1, 50, 10.02), (2, 50, 10.07)]
    assert result.fills["tag"].tolist() == ["first", "second", "second"]


def test_quotes_of_another_symbol_empty_sides_and_crossed_quotes_fill_nothing() -> None:
    data = tape(
        quote(0, 10.00, 10.02),
        quote(1, 5.00, 5.01, symbol="BBB"),
        quote(2, 10.00, None, ask_size=0),
        quote(3, 10.06, 10.03),  # crossed: one of the sides is stale
        quote(4, 10.03, 10.03),  # locked: both stand
    )
    assert bought(backtest(MARKET_BUY, data)) == [(4, 100, 10.03)]


def test_a_print_does_not_fill_a_market_order_while_there_are_quotes() -> None:
    data = tape(quote(0, 10.00, 10.02), trade(1, 10.02), quote(2, 10.00, 10.04))
    assert bought(backtest(MARKET_BUY, data)) == [(2, 100, 10.04)]


def test_a_marketable_limit_order_pays_the_touch_and_what_is_left_rests_at_its_limit() -> None:
    data = tape(
        quote(0, 10.00, 10.02),
        quote(1, 10.00, 10.03, ask_size=40),  # 10.03 is within the limit of 10.04: 40 at the touch
        quote(2, 10.01, 10.05),  # beyond the limit: the other 60 rest at 10.04
        quote(3, 10.03, 10.04),  # at the limit: nothing for a resting order
        quote(4, 10.00, 10.02),  # through it: filled at the limit, not at the better touch
    )
    result = backtest(script(at_1=lambda s: s.buy("AAA", 100, limit=10.04)), data)
    assert bought(result) == [(1, 40, 10.03), (4, 60, 10.04)]
    assert result.fills["maker"].tolist() == [False, True]


def test_without_quotes_a_market_order_fills_at_the_next_print_on_an_exchange() -> None:
    data = tape(
        trade(0, 10.00),
        trade(1, 10.01, off_exchange=True),
        trade(2, 10.02, size=70),
        trade(3, 10.03, size=70),
    )
    result = backtest(MARKET_BUY, data)
    assert bought(result) == [(2, 70, 10.02), (3, 30, 10.03)]
    assert any("TakerAtPrint" in each.name for each in result.assumptions)


# Makers

RESTING_BUY = script(at_1=lambda s: s.buy("AAA", 100, limit=10.00))


def test_a_resting_order_fills_at_its_price_only_when_the_touch_moves_through_it() -> None:
    data = tape(
        quote(0, 10.00, 10.02),
        quote(1, 9.99, 10.01),
        quote(2, 9.98, 10.00),  # the offer has come to our bid: a queue ahead of us is assumed
        quote(3, 9.97, 9.99, ask_size=1),  # it is through: whoever bid 10.00 has been filled
    )
    result = backtest(RESTING_BUY, data)
    assert bought(result) == [(3, 100, 10.00)]
    assert result.fills["maker"].all()


def test_a_print_fills_a_resting_order_only_beyond_its_price_and_up_to_its_size() -> None:
    data = tape(
        quote(0, 10.00, 10.02),
        trade(1, 10.00, size=5_000),  # at our price: the queue ahead may have taken it all
        trade(2, 9.99, size=30),
        trade(3, 9.98, size=500),
    )
    assert bought(backtest(RESTING_BUY, data)) == [(2, 30, 10.00), (3, 70, 10.00)]


def test_a_resting_sale_fills_when_the_bid_or_a_print_goes_above_it() -> None:
    data = tape(quote(0, 10.00, 10.02), trade(1, 10.02), trade(2, 10.03, size=40), quote(3, 10.04, 10.05))
    result = backtest(script(at_1=lambda s: s.sell("AAA", 100, limit=10.02)), data)
    assert bought(result) == [(2, -40, 10.02), (3, -60, 10.02)]


@pytest.mark.parametrize(
    "print_",
    [
        trade(1, 9.90, off_exchange=True),  # reported by a TRF: no displayed queue traded
        trade(1, 9.90, conditions=(2,)),  # average price: not a price of now
        trade(1, 9.90, conditions=(14, 52)),  # contingent
    ],
)
def test_off_exchange_prints_and_prints_of_other_times_fill_no_resting_order(print_: object) -> None:
    data = tape(quote(0, 10.00, 10.02), print_, quote(2, 10.00, 10.02))  # type: ignore[arg-type]
    assert bought(backtest(RESTING_BUY, data)) == []


def test_an_extended_hours_print_fills_a_resting_order() -> None:
    data = tape(quote(0, 10.00, 10.02), trade(1, 9.90, conditions=(12,)))
    assert bought(backtest(RESTING_BUY, data)) == [(1, 100, 10.00)]


def test_one_print_fills_the_better_price_first() -> None:
    data = tape(quote(0, 10.00, 10.02), trade(1, 9.95, size=120))

    def two(strategy: Strategy) -> None:
        strategy.buy("AAA", 100, limit=9.98)
        strategy.buy("AAA", 100, limit=9.99)

    assert bought(backtest(script(at_1=two), data)) == [(1, 100, 9.99), (1, 20, 9.98)]


def test_a_cancelled_order_does_not_fill() -> None:
    orders = []
    plan = script(
        at_1=lambda s: orders.append(s.buy("AAA", 100, limit=10.00)), at_2=lambda s: s.cancel(orders[-1])
    )
    data = tape(quote(0, 10.00, 10.02), quote(1, 10.00, 10.02), quote(2, 9.90, 9.91))
    result = backtest(plan, data)
    assert bought(result) == []
    assert result.metrics["cancelled"] == 1


def test_trades_come_before_quotes_of_the_same_time_where_nobody_received_them() -> None:
    # The quote of 1 ms would take the order; the print of 1 ms is through a bid that was not there yet.
    data = tape(quote(0, 10.00, 10.02), quote(1, 9.90, 9.92), trade(1, 9.95), received=False)
    result = backtest(RESTING_BUY, data)
    assert bought(result) == [(1, 100, 10.00)]
    assert result.fills["mid"].tolist() == [10.01]  # the mid that stood before both
    assert any("trade before quote" in each.name for each in result.assumptions)


# Bars


def test_on_bars_a_market_order_fills_at_the_open_of_the_next_bar() -> None:
    data = tape(bar(0, 10.00, 10.10, 9.90, 10.05), bar(1, 10.07, 10.20, 10.00, 10.10))
    # Sent when the first bar is over; the second opens at 10.07, at minute 1.
    assert bought(backtest(MARKET_BUY, data)) == [(60_000, 100, 10.07)]


def test_on_bars_an_order_skips_minutes_without_a_bar_of_its_symbol() -> None:
    data = tape(
        bar(0, 10.00, 10.10, 9.90, 10.05),
        bar(1, 5.0, 5.1, 4.9, 5.0, symbol="BBB"),
        bar(4, 10.30, 10.40, 10.20, 10.30),
    )
    assert bought(backtest(MARKET_BUY, data)) == [(240_000, 100, 10.30)]


def test_an_order_for_another_symbol_does_not_fill_in_a_bar_that_is_already_over() -> None:
    data = tape(
        bar(0, 10.0, 10.0, 10.0, 10.0),
        bar(0, 5.0, 5.0, 5.0, 5.0, symbol="BBB"),
        bar(1, 10.1, 10.1, 10.1, 10.1),
        bar(1, 5.1, 5.1, 5.1, 5.1, symbol="BBB"),
    )
    # AAA's bar is shown first and asks for BBB, whose bar of the same minute opened a minute ago.
    result = backtest(script(at_1=lambda s: s.buy("BBB", 10)), data)
    assert bought(result) == [(60_000, 10, 5.1)]


@pytest.mark.parametrize(
    ("second", "filled"),
    [
        (bar(1, 10.05, 10.20, 9.96, 10.10), []),  # never near 9.95
        (bar(1, 10.05, 10.20, 9.95, 10.10), []),  # touched, not through
        (bar(1, 10.05, 10.20, 9.94, 10.10), [(60_000, 100, 9.95)]),  # through: at the limit
        (bar(1, 9.90, 10.20, 9.85, 10.10), [(60_000, 100, 9.90)]),  # opens better: at the open
    ],
)
def test_on_bars_a_limit_order_needs_a_bar_that_trades_through_it(second: object, filled: object) -> None:
    data = tape(bar(0, 10.00, 10.10, 9.90, 10.05), second)  # type: ignore[arg-type]
    assert bought(backtest(script(at_1=lambda s: s.buy("AAA", 100, limit=9.95)), data)) == filled


def test_on_bars_an_order_that_has_rested_fills_at_its_limit_even_if_a_bar_opens_beyond() -> None:
    data = tape(bar(0, 10, 10, 10, 10), bar(1, 10, 10, 10, 10), bar(2, 9.50, 9.60, 9.40, 9.50))
    result = backtest(script(at_1=lambda s: s.buy("AAA", 100, limit=9.95)), data)
    assert bought(result) == [(120_000, 100, 9.95)]


def test_no_more_than_a_bars_volume_fills_in_it() -> None:
    data = tape(bar(0, 10, 10, 10, 10), bar(1, 11, 11, 11, 11, volume=70), bar(2, 12, 12, 12, 12, volume=0))
    assert bought(backtest(MARKET_BUY, data)) == [(60_000, 70, 11), (120_000, 30, 12)]


def test_what_a_fill_causes_waits_for_the_next_bar() -> None:
    class Again(Strategy):
        def on_bar(self, bar: object) -> None:
            if not self.position("AAA"):
                self.buy("AAA", 1)

        def on_fill(self, fill: object) -> None:
            self.buy("AAA", 1)

    data = tape(*(bar(n, 10 + n, 10 + n, 10 + n, 10 + n) for n in range(4)))
    assert bought(backtest(Again, data)) == [(60_000, 1, 11), (120_000, 1, 12), (180_000, 1, 13)]


def test_the_day_on_which_clocks_go_forward_loses_no_open() -> None:
    """2024-03-10 has 23 hours in New York: the stamps of day bars go from 05:00 UTC to 04:00."""
    stamps = [1_709_960_400, 1_710_046_800, 1_710_129_600]
    rows = [
        {"symbol": "AAA", "timestamp": s * 10**9, "open": 1.0 + n, "high": 9.0, "low": 0.5, "close": 2.0}
        for n, s in enumerate(stamps)
    ]
    from lab_tape import table

    result = backtest(script(at_2=lambda s: s.buy("AAA", 1)), table("bars", rows))
    assert result.fills["price"].tolist() == [3.0]


# Latency


def test_with_latency_the_first_quote_seen_after_it_fills() -> None:
    data = tape(
        quote(0, 10.00, 10.02), quote(3, 10.00, 10.03), quote(4.999, 10.00, 10.04), quote(5, 10.00, 10.05)
    )
    assert bought(backtest(MARKET_BUY, data, latency=rules.FixedLatency(5))) == [(5, 100, 10.05)]


def test_with_latency_an_order_can_fill_while_its_cancellation_travels() -> None:
    orders = []
    plan = script(
        at_1=lambda s: orders.append(s.buy("AAA", 100, limit=10.00)), at_3=lambda s: s.cancel(orders[-1])
    )
    ticks = (quote(0, 10.00, 10.02), quote(10, 10.00, 10.02), quote(20, 10.00, 10.02))
    early, late = quote(24, 9.90, 9.91), quote(25, 9.90, 9.91)
    # Cancelled at 20 ms; the cancellation arrives at 25 ms.
    assert bought(backtest(plan, tape(*ticks, early), latency=rules.FixedLatency(5))) == [(24, 100, 10.00)]
    assert bought(backtest(plan, tape(*ticks, late), latency=rules.FixedLatency(5))) == []


def test_on_bars_an_order_that_is_late_for_the_open_waits_for_the_next() -> None:
    data = tape(*(bar(n, 10 + n, 10 + n, 10 + n, 10 + n) for n in range(3)))
    result = backtest(MARKET_BUY, data, latency=rules.FixedLatency(200))
    assert bought(result) == [(120_000, 100, 12)]


def test_what_is_in_flight_counts_so_a_target_is_not_sent_twice() -> None:
    class Target(Strategy):
        def on_quote(self, quote: object) -> None:
            self.target_position("AAA", 100)

    data = tape(*(quote(n, 10.00, 10.02) for n in range(20)))
    result = backtest(Target, data, latency=rules.FixedLatency(5))
    assert result.metrics["orders"] == 1
    assert bought(result) == [(5, 100, 10.02)]


# Fees

ROUND_TRIP = script(at_1=lambda s: s.buy("AAA", 200), at_2=lambda s: s.sell("AAA", 200))
TWO_FILLS = tape(quote(0, 9.99, 10.00), quote(1, 9.99, 10.00), quote(2, 10.50, 10.51))


@pytest.mark.parametrize(
    ("fees", "paid"),
    [
        (rules.NoFees(), 0.0),
        (rules.PerShare(0.005), 2.00),  # 2 × 200 × 0.005
        (rules.PerShare(0.001, minimum=1.0), 2.00),  # 0.20 each is raised to 1.00
        (rules.BasisPoints(2.0), 0.82),  # 200 × 10.00 × 2 bp = 0.40, 200 × 10.50 × 2 bp = 0.42
    ],
)
def test_fees_are_taken_from_the_profit(fees: rules.Fees, paid: float) -> None:
    result = backtest(ROUND_TRIP, TWO_FILLS, fees=fees)
    assert result.metrics["fees"] == pytest.approx(paid, abs=1e-12)
    assert result.metrics["profit"] == pytest.approx(100.0 - paid, abs=1e-9)  # 200 × (10.50 − 10.00)


def test_a_maker_can_be_paid_a_rebate() -> None:
    data = tape(quote(0, 10.00, 10.02), quote(1, 9.90, 9.95))
    result = backtest(RESTING_BUY, data, fees=rules.BasisPoints(3.0, maker=-1.0))
    assert result.fills["fee"].tolist() == [pytest.approx(-0.10)]  # 100 × 10.00 × −1 bp


# Limits


def test_orders_beyond_the_limits_are_refused_with_the_reason() -> None:
    refused = []

    def several(strategy: Strategy) -> None:
        refused.append(strategy.buy("AAA", 600).refused)
        refused.append(strategy.buy("AAA", 300).refused)
        refused.append(strategy.buy("AAA", 201).refused)  # with the 300 in flight: 501
        refused.append(strategy.sell("AAA", 500).refused)  # the other way

    data = tape(quote(0, 10.00, 10.02), quote(1, 10.00, 10.02))
    limits = rules.RiskLimits(max_position=500, max_order=550)
    result = backtest(script(at_1=several), data, risk=limits)
    assert refused == [
        "larger than 550 shares",
        "",
        "could take the position beyond 500 shares",
        "",
    ]
    assert result.metrics["refused"] == 2
    assert "beyond 500 shares" in str(result.assumptions)


def test_an_order_that_leads_back_towards_flat_is_never_refused_for_the_position_it_leaves() -> None:
    limits = rules.RiskLimits(max_position=100)
    assert limits.refusal(-50, 450) == ""
    assert limits.refusal(50, 550) != ""
    assert limits.refusal(-700, -200) != ""


# Names


@pytest.mark.parametrize(
    "rule",
    [
        rules.TakerAtTouch(),
        rules.TakerAtPrint(),
        rules.MakerOnCross(),
        rules.NextBarOpen(),
        rules.PerShare(0.002),
        rules.BasisPoints(1.5),
        rules.NoFees(),
        rules.FixedLatency(3),
        rules.NoLatency(),
        rules.RiskLimits(max_order=10),
    ],
    ids=lambda rule: rule.name,
)
def test_every_rule_states_its_assumption_with_name_version_and_numbers(rule: rules.Rule) -> None:
    topic, name, text = rule.assumption
    assert topic
    assert name.startswith(type(rule).__name__)
    assert name.endswith("version 1")
    assert len(text) > 30
    assert "`" not in text
    assert rule.recipe["rule"] == type(rule).__name__
    assert rule.recipe["version"] == 1


def test_a_rule_that_cannot_read_the_data_is_refused() -> None:
    with pytest.raises(UsageError, match=r"MakerOnCross cannot read this data.*NextBarOpen"):
        backtest(MARKET_BUY, tape(bar(0, 1, 1, 1, 1)), fill=rules.MakerOnCross())
    with pytest.raises(UsageError, match="NextBarOpen cannot read this data"):
        backtest(MARKET_BUY, tape(quote(0, 1, 2)), fill=rules.NextBarOpen())
    with pytest.raises(UsageError, match="not a rule for fees"):
        backtest(MARKET_BUY, tape(quote(0, 1, 2)), fees=rules.NoLatency())  # type: ignore[arg-type]


def test_a_rule_of_ones_own_takes_the_place_of_its_kind() -> None:
    class AtMid(rules.TakerRule):
        """Filled at the mid, which nobody should believe."""

        reads = rules.TakerAtTouch.reads

        def on_quote(self, buys: bool, limit: float | None, quote: object) -> rules.Match | None:
            return rules.Match(quote.mid, 10**9, False)  # type: ignore[attr-defined]

    result = backtest(MARKET_BUY, tape(quote(0, 10.00, 10.02), quote(1, 10.00, 10.02)), fill=AtMid())
    assert bought(result) == [(1, 100, 10.01)]
    names = " ".join(each.name for each in result.assumptions)
    assert "AtMid, version 1" in names
    assert "MakerOnCross" in names
    assert "TakerAtTouch" not in names
