"""The vendor's Python client hears the market on paper: every event, once, in order, on every topic."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import date
from decimal import Decimal
from typing import Any

import papers
import pytest
from clients import Listener, Start, hear, run
from massive.exceptions import AuthError
from papers import DAYS, MILLISECOND, NEW_DAY, PLAIN, SECOND, SYMBOLS, TEST_SYMBOL, Paper, Row
from websockets.exceptions import ConnectionClosedError

pytestmark = pytest.mark.judge

SLOW = 5  # of the tests in which something happens on the way: a symbol's ticks take about ten seconds
Told = dict[str, object]

CHANNELS: dict[str, tuple[str, Callable[[Row], Told]]] = {
    "T": ("trades_v1", papers.trade_over_stream),
    "Q": ("quotes_v1", papers.quote_over_stream),
    "AM": ("minute_aggs_v1", papers.bar_over_stream),
}


def on_paper(paper: Paper, channel: str, symbol: str, day: date) -> list[Told]:
    """What is to be heard of a topic."""
    if channel == "A":
        bars = papers.bars_of_trades(paper.rows("trades_v1", symbol, day), SECOND)
        return [papers.bar_over_stream(bar, "A", SECOND) for bar in bars]
    product, told = CHANNELS[channel]
    return [told(row) for row in paper.rows(product, symbol, day)]


def heard(events: list[Any], channel: str, symbol: str, like: list[Told]) -> list[Told]:
    """What was heard of a topic, as far as paper knows it."""
    mine = [event for event in events if (event.event_type, event.symbol) == (channel, symbol)]
    return [{name: getattr(event, name) for name in like[0]} for event in mine]


def known_at(event: Any) -> int:
    """When an event is known, in ms: a bar at its end."""
    stamp: int = event.end_timestamp if event.event_type in ("A", "AM") else event.timestamp
    return stamp


@pytest.mark.parametrize("day", DAYS)
def test_a_whole_day_is_heard_on_wildcards_as_it_stands_on_paper(
    started: Start, paper: Paper, day: date
) -> None:
    exchange = started(flat_files=paper.folder, day=day)
    topics = {(c, s): on_paper(paper, c, s, day) for c in CHANNELS for s in SYMBOLS}
    topics[("A", PLAIN)] = on_paper(paper, "A", PLAIN, day)
    count = sum(map(len, topics.values()))
    events = hear(exchange, "T.*", "Q.*", "AM.*", f"A.{PLAIN}", count=count)
    assert len(events) == count
    for (channel, symbol), expected in topics.items():
        assert heard(events, channel, symbol, expected) == expected
    assert not any(event.symbol == TEST_SYMBOL for event in events)
    assert [known_at(event) for event in events] == sorted(map(known_at, events))
    for symbol in SYMBOLS:
        exact = [Decimal(e.fractional_volume) for e in events if (e.event_type, e.symbol) == ("AM", symbol)]
        assert exact == [Decimal(row["volume"]) for row in paper.rows("minute_aggs_v1", symbol, day)]


def test_second_bars_are_made_of_their_trades(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder)
    made = papers.bars_of_trades(paper.rows("trades_v1", PLAIN, NEW_DAY), SECOND)
    volume, paid = Decimal(0), Decimal(0)  # of the day so far
    for event, bar in zip(hear(exchange, f"A.{PLAIN}", count=len(made)), made, strict=True):
        assert event.start_timestamp == int(bar["window_start"]) // MILLISECOND
        assert (event.open, event.close) == (float(bar["open"]), float(bar["close"]))
        assert event.vwap == pytest.approx(float(bar["vwap"]), abs=0.00006)
        assert Decimal(event.fractional_volume) == Decimal(bar["volume"])
        volume, paid = volume + Decimal(bar["volume"]), paid + Decimal(bar["volume"]) * Decimal(bar["vwap"])
        assert Decimal(event.fractional_accumulated_volume) == volume
        assert event.accumulated_volume == int(volume)
        assert event.aggregate_vwap == pytest.approx(float(paid / volume), abs=0.00006)
        assert event.official_open_price == float(made[0]["open"])


def test_topics_by_name_are_heard_and_nothing_else(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder)
    wanted = [("T", "BRK.B"), ("Q", "NE.WS.A"), ("AM", "BApA"), ("T", TEST_SYMBOL)]
    expected = {topic: on_paper(paper, *topic, NEW_DAY) for topic in wanted}

    async def listen() -> list[Any]:
        async with Listener(exchange, *map(".".join, wanted), "T.NOBODY", "XX.A") as listener:
            events = await listener.events_heard(sum(map(len, expected.values())))
            assert "subscribed to: T.NOBODY" in listener.statuses
            assert not any("XX" in status for status in listener.statuses)
            return events

    events = run(listen())
    assert len(events) == sum(map(len, expected.values()))
    for (channel, symbol), rows in expected.items():
        assert heard(events, channel, symbol, rows) == rows


def test_what_was_left_is_not_heard_any_more_and_what_was_added_is(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, speed=SLOW)
    trades = on_paper(paper, "T", "MSFT", NEW_DAY)

    async def listen() -> tuple[list[Any], int]:
        async with Listener(exchange, "T.MSFT", "Q.MSFT") as listener:
            await listener.until(lambda me: {"T", "Q"} <= {event.event_type for event in me.events})
            exchange.pause()
            listener.client.unsubscribe("Q.MSFT")
            listener.client.subscribe("Q.BRK.B")
            await listener.confirmed("unsubscribed to: Q.MSFT", "subscribed to: Q.BRK.B")
            left = len(listener.events)
            exchange.speed = 0
            exchange.resume()
            await listener.until(lambda me: sum(e.event_type == "T" for e in me.events) == len(trades))
            return listener.events, left

    events, left = run(listen())
    assert heard(events, "T", "MSFT", trades) == trades
    assert any(event.event_type == "Q" for event in events[:left])
    later = on_paper(paper, "Q", "BRK.B", NEW_DAY)
    assert {event.symbol for event in events[left:] if event.event_type == "Q"} <= {"BRK.B"}
    added = heard(events, "Q", "BRK.B", later)
    assert added == [quote for quote in later if quote in added]
    assert 0 < len(added) < len(later)


def test_a_client_that_was_cut_comes_back_and_hears_the_rest(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, speed=SLOW)
    trades = on_paper(paper, "T", "MSFT", NEW_DAY)

    async def listen() -> tuple[list[Any], list[str]]:
        async with Listener(exchange, "T.MSFT") as listener:
            await listener.events_heard(5)
            exchange.disconnect_clients(clean=False)
            await listener.until(lambda me: me.statuses.count("subscribed to: T.MSFT") == 2)
            exchange.speed = 0
            await listener.until(lambda me: me.events[-1].timestamp == trades[-1]["timestamp"])
            return listener.events, listener.statuses

    events, statuses = run(listen())
    assert statuses.count("subscribed to: T.MSFT") == 2
    got = heard(events, "T", "MSFT", trades)
    begin = next((n for n, trade in enumerate(trades) if got[n : n + 1] != [trade]), len(trades))
    assert begin >= 5
    assert got == trades[:begin] + trades[begin + len(trades) - len(got) :]  # one hole, and no more


def test_a_client_that_is_sent_away_politely_does_not_come_back(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, speed=SLOW)

    async def listen() -> None:
        async with Listener(exchange, "T.MSFT") as listener:
            await listener.events_heard(5)
            exchange.disconnect_clients(clean=True)
            await listener.task

    run(listen())


def test_several_clients_hear_one_clock_and_each_its_own_topics(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, wait_for=4)
    shares: list[list[str]] = [["T.*"], ["Q.*", "AM.A"], ["T.MSFT", "Q.MSFT"], ["T.*"]]

    def expected(topics: list[str]) -> dict[tuple[str, str], list[Told]]:
        named = [topic.split(".", 1) for topic in topics]
        pairs = [(c, s) for c, symbol in named for s in (SYMBOLS if symbol == "*" else (symbol,))]
        return {pair: on_paper(paper, *pair, NEW_DAY) for pair in pairs}

    async def listen() -> list[list[Any]]:
        async with AsyncExitStack() as stack:
            listeners = [await stack.enter_async_context(Listener(exchange, *topics)) for topics in shares]
            for listener, topics in zip(listeners, shares, strict=True):
                await listener.events_heard(sum(map(len, expected(topics).values())))
        return [listener.events for listener in listeners]

    everything = run(listen())
    for events, topics in zip(everything, shares, strict=True):
        told = expected(topics)
        assert len(events) == sum(map(len, told.values()))
        for (channel, symbol), rows in told.items():
            assert heard(events, channel, symbol, rows) == rows
    assert list(map(repr, everything[0])) == list(map(repr, everything[3]))


def test_a_newer_connection_than_the_plan_allows_ends_the_older_one(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, max_connections=1, wait_for=3)

    async def listen() -> list[str]:
        async with Listener(exchange, "T.MSFT", max_reconnects=0) as older:
            await older.confirmed("subscribed to: T.MSFT")
            async with Listener(exchange, "T.MSFT") as newer:
                await newer.confirmed("subscribed to: T.MSFT")
                with pytest.raises(ConnectionClosedError):
                    await older.task
        return older.statuses

    assert run(listen())[-1] == (
        "Maximum number of websocket connections exceeded. You may only use 1 connections at a time."
    )


def test_a_plan_names_no_topic_when_it_refuses_one(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, plan="starter", wait_for=2)

    async def listen() -> list[str]:
        async with Listener(exchange, "T.MSFT", "AM.MSFT") as listener:
            await listener.confirmed("subscribed to: AM.MSFT")
            return listener.statuses

    statuses = run(listen())
    assert statuses[-2:] == ["not authorized", "subscribed to: AM.MSFT"]


def test_a_plan_without_streaming_says_so(started: Start, paper: Paper) -> None:
    exchange = started(flat_files=paper.folder, plan="basic")

    async def listen() -> None:
        async with Listener(exchange, "AM.MSFT") as listener:
            with pytest.raises(AuthError, match="Your plan doesn't include websocket access"):
                await listener.task

    run(listen())
