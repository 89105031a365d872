"""Tables keep what they know on the way to pandas, polars and Arrow, and back."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest

from tapelab.errors import UsageError
from tapelab.market import replay, tables

QUOTES = pa.Table.from_pylist(
    [
        {
            "ts_event": 30,
            "arrival": 1,
            "symbol": "A",
            "bid": 1.0,
            "ask": 1.1,
            "bid_size": 1.0,
            "ask_size": 2.0,
        },
        {
            "ts_event": 10,
            "arrival": 2,
            "symbol": "A",
            "bid": None,
            "ask": 1.2,
            "bid_size": 0.0,
            "ask_size": 5.0,
        },
    ],
    schema=tables.QUOTES,
)
TRADES = pa.Table.from_pylist(
    [
        {"ts_event": 30, "arrival": 0, "symbol": "A", "price": 1.1, "size": 7.0, "conditions": [12, 37]},
        {"ts_event": 31, "arrival": 3, "symbol": "A", "price": 1.0, "size": 0.5, "trf_id": 201},
    ],
    schema=tables.TRADES,
)


def test_pandas_sees_aware_times_and_the_origin():
    frame = tables.to_frame(tables.with_facts(QUOTES, simulated=True, route="rest"))
    assert frame["ts_event"].tolist() == [pd.Timestamp(30, tz="UTC"), pd.Timestamp(10, tz="UTC")]
    assert frame["ts_recv"].isna().all()
    assert frame.attrs["tapelab"] == {"simulated": True, "route": "rest"}


@pytest.mark.parametrize("frame", ["pandas", "polars", "arrow"])
def test_every_frame_comes_back_as_it_was(frame):
    back = tables.conform(tables.from_frame(tables.to_frame(TRADES, frame), tables.TRADES), tables.TRADES)
    assert back.to_pylist() == TRADES.to_pylist()


def test_a_naive_time_in_a_users_table_is_refused():
    naive = pd.DataFrame({"timestamp": pd.to_datetime(["2026-10-02"]), "symbol": ["A"]})
    with pytest.raises(UsageError, match="tz_localize"):
        tables.from_frame(naive, tables.BARS)


def test_a_table_without_symbols_is_refused_by_the_columns_name():
    with pytest.raises(UsageError, match="'symbol'"):
        tables.from_frame(pd.DataFrame({"timestamp": [1]}), tables.BARS)


def test_an_unknown_frame_names_the_known_ones():
    with pytest.raises(UsageError, match="'polars'"):
        tables.to_frame(QUOTES, "excel")


def test_events_come_in_order_of_arrival_across_channels():
    events = list(replay.events(quotes=QUOTES, trades=TRADES))
    assert [event.arrival for event in events] == [0, 1, 2, 3]
    assert events[0].conditions == (12, 37)
    assert events[3].off_exchange
    assert events[2].bid is None
    assert events[2].mid is None
    assert events[1].mid == pytest.approx(1.05)


def test_ticks_that_nobody_received_are_ordered_by_the_exchanges_clock_trades_first():
    quotes, trades = replay.in_order_of_arrival(QUOTES, TRADES)
    events = list(replay.events(quotes=quotes, trades=trades))
    assert [(type(event).__name__, event.ts_event) for event in events] == [
        ("Quote", 10),
        ("Trade", 30),
        ("Quote", 30),
        ("Trade", 31),
    ]
