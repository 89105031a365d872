"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.lab import metrics
from tapelab.lab.curve import SAMPLES, Curve
from tapelab.market.clock import DAY, SECOND
from tapelab.market.symbols import Market


def array(*numbers: float) -> metrics.Floats:
    return np.array(numbers, dtype=np.float64)


def test_profit_and_basis_points_of_cash() -> None:
    assert metrics.profit(array(100_000, 99_000, 100_250)) == 250
    assert metrics.basis_points(250, 100_000) == 25  # 10,000 × 250 / 100,000
    assert metrics.basis_points(250, 0) is None
    assert metrics.profit(array()) == 0


def test_the_largest_drawdown_is_from_a_peak_to_what_follows() -> None:
    # Peaks 110, 120; falls 110 → 95 = 15, 120 → 108 = 12.
    assert metrics.max_drawdown(array(100, 110, 95, 120, 108, 119)) == 15
    assert metrics.max_drawdown(array(100, 90)) == 10  # a loss at once counts
    assert metrics.max_drawdown(array(1, 2, 3)) == 0


def test_hit_rate_and_t_statistic_of_round_trips() -> None:
    nets = array(10, -5, 20, -1)
    assert metrics.hit_rate(nets) == 0.5
    # mean 6; deviations 4, −11, 14, −7; Σ² = 382; s = √(382/3) = 11.2842; t = 6 / (11.2842 / 2) = 1.06343
    assert metrics.t_statistic(nets) == pytest.approx(1.06343, abs=1e-5)
    assert metrics.t_statistic(array(5)) is None
    assert metrics.t_statistic(array(5, 5)) is None
    assert metrics.hit_rate(array()) is None
    assert metrics.hit_rate(array(0, 1)) == 0.5  # no profit is no profit


def test_turnover_spread_and_mark_outs() -> None:
    sizes, prices = array(100, -50), array(10.00, 10.10)
    assert metrics.turnover(sizes, prices) == 1_505  # 1,000 + 505
    # Bought 1 cent above the mid, sold 2 cents above it: 100 × −0.01 + −50 × −0.02 = 0.
    assert metrics.spread_captured(sizes, prices, array(9.99, 10.08)) == pytest.approx(0)
    # Later mid 10.05: 100 × 0.05 − 50 × (10.05 − 10.10) = 5 + 2.5; 10,000 × 7.5 / 1,505 = 49.8339
    assert metrics.mark_out(sizes, prices, array(10.05, 10.05)) == pytest.approx(49.83389, abs=1e-5)
    # Only the first is known: 10,000 × 5 / 1,000.
    assert metrics.mark_out(sizes, prices, array(10.05, np.nan)) == pytest.approx(50)
    assert metrics.mark_out(sizes, prices, array(np.nan, np.nan)) is None
    assert metrics.spread_captured(sizes, prices, array(np.nan, np.nan)) is None


def test_time_in_market_counts_any_position() -> None:
    # 0…100: AAA held from 10 to 40, BBB from 30 to 60, flat from 60 to 90, AAA again to the end.
    stamps = np.array([10, 30, 40, 60, 90])
    symbols = ["AAA", "BBB", "AAA", "BBB", "AAA"]
    assert metrics.time_in_market(symbols, stamps, array(5, -5, 0, 0, 1), 0, 100) == pytest.approx(0.60)
    assert metrics.time_in_market([], np.array([]), array(), 0, 100) == 0
    assert metrics.max_inventory(array(5, -8, 0)) == 8


def test_a_round_trip_goes_from_flat_to_flat() -> None:
    # +100 at 10, +100 at 11, −50 at 12, −150 at 13; fees 1 each.
    trips = metrics.round_trips(
        ["A"] * 4,
        np.array([1, 2, 3, 4]),
        array(100, 100, -50, -150),
        array(10, 11, 12, 13),
        array(1, 1, 1, 1),
    )
    # in 2,100, out 600 + 1,950 = 2,550
    assert trips == [("A", 1, 4, 200, 10.5, 12.75, 450, 4, 446, 4)]


def test_a_fill_that_turns_the_position_closes_one_trip_and_opens_the_next() -> None:
    # +100 at 10; −250 at 11 (fee 5) closes 100 and opens −150; +150 at 10 closes.
    trips = metrics.round_trips(
        ["A"] * 3, np.array([1, 2, 3]), array(100, -250, 150), array(10, 11, 10), array(0, 5, 0)
    )
    first, second = trips
    assert (first.size, first.gross, first.fees, first.net) == (100, 100, 2, 98)
    assert (second.size, second.entry, second.exit, second.gross, second.fees) == (-150, 11, 10, 150, 3)
    assert (second.opened, second.closed, second.fills) == (2, 3, 2)


def test_what_is_still_open_is_no_round_trip() -> None:
    assert metrics.round_trips(["A"], np.array([1]), array(100), array(10), array(0)) == []


def test_fractions_come_back_to_flat() -> None:
    trips = metrics.round_trips(
        ["X"] * 3, np.array([1, 2, 3]), array(0.1, 0.2, -0.3), array(10, 10, 11), array(0, 0, 0)
    )
    assert len(trips) == 1
    assert trips[0].gross == pytest.approx(0.3)


def test_the_average_price_of_what_is_held() -> None:
    assert metrics.average_price(array(100, 100), array(10, 11)) == 10.5
    assert metrics.average_price(array(100, 100, -150), array(10, 11, 99)) == 10.5  # reducing leaves it
    assert metrics.average_price(array(100, -250), array(10, 11)) == 11  # turned: opened at 11
    assert np.isnan(metrics.average_price(array(100, -100), array(10, 11)))


def test_the_first_session_counts_in_daily_returns() -> None:
    # 100 → 90 → 99: −10 %, then +10 %.
    assert metrics.daily_returns(array(90, 99), 100).tolist() == pytest.approx([-0.1, 0.1])


def test_the_sharpe_ratio_needs_twenty_sessions() -> None:
    value, why = metrics.sharpe(np.full(19, 0.01))
    assert value is None
    assert "at least 20 sessions; this is 19 sessions" in why
    # +1 % and −0.5 % in turn, 20 days: mean 0.0025; Σ² = 20 × 0.0075² = 0.001125; s = √(0.001125/19)
    # = 0.0076948; 0.0025 / 0.0076948 = 0.324893; × √252 = 5.15753
    value, why = metrics.sharpe(np.tile([0.01, -0.005], 10))
    assert value == pytest.approx(5.15753, abs=1e-4)
    assert why == ""
    assert metrics.sharpe(np.zeros(30)) == (None, "The equity did not move.")


@given(st.lists(st.integers(-1_000, 1_000), min_size=1, max_size=200), st.integers(1, 3_000))
def test_a_sampled_curve_keeps_the_extremes_the_drawdown_and_its_bound(moves: list[int], scale: int) -> None:
    equity = np.cumsum([100_000, *np.repeat(moves, 30).tolist()]).astype(float)
    curve = Curve(0, equity[0], Market.STOCKS)
    for at, value in enumerate(equity.tolist()):
        ts = at * scale * SECOND
        if ts >= curve.due:
            curve.sample(max(ts - 1, 0), equity[max(at - 1, 0)], ts)
        curve.update(ts, value)
    curve.end((len(equity) - 1) * scale * SECOND, equity[-1])
    points = curve.points()
    kept = np.array([point.equity for point in points])
    assert metrics.max_drawdown(kept) == metrics.max_drawdown(equity)
    assert kept.max() == equity.max()
    assert kept.min() == equity.min()
    assert kept[-1] == equity[-1]
    assert [point.ts for point in points] == sorted(point.ts for point in points)
    assert len(points) <= SAMPLES + len(curve.closes) + 8


def test_every_days_last_value_is_kept() -> None:
    curve = Curve(0, 100.0, Market.CRYPTO)
    for day in range(5):
        curve.sample(day * DAY - 1, 100.0 + day, day * DAY)
    curve.end(5 * DAY - 1, 200.0)
    assert curve.closes == [101.0, 102.0, 103.0, 104.0, 200.0]
