"""One clock for all clients: paced, unpaced, and what becomes of a client that cannot follow."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from websockets.asyncio.client import ClientConnection

from exchange_clients import (
    WITHIN,
    Event,
    Start,
    connected,
    everything,
    heard,
    narrow,
    run,
    said,
    said_on,
    script_of,
)
from tapelab.exchange import Exchange
from tapelab.exchange.stream import app as stream
from tapelab.exchange.stream import client, speaker
from tapelab.exchange.tape import QUOTES, TRADES
from tapelab.market import replay
from tapelab.massive import wire
from test_exchange_tape import MINUTE

pytest_plugins = "exchange_fixtures"

REAL_DAY = date(2013, 10, 9)


def test_the_clock_waits_for_the_last_of_those_it_was_told_to_wait_for(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:30:20", wait_for=2)
    expected = said_on(exchange, "Q.*", minutes=1 / 3)

    async def talk() -> None:
        async with connected(exchange, "Q.*") as first:
            await (await first.ping())
            assert exchange.position % MINUTE == 0
            async with connected(exchange, "Q.*") as second:
                both = await asyncio.gather(heard(first, len(expected)), heard(second, len(expected)))
        assert both == [expected, expected]

    run(talk())


def test_clients_hear_only_what_they_asked_for_from_then_on(started: Start) -> None:
    exchange = started(simulate=True, speed=1, start="09:30", until="09:32")
    bounds = {"start": exchange.position, "until": exchange.position + 2 * MINUTE}

    async def talk() -> None:
        async with connected(exchange, "T.ZVZZT") as one:
            first = await said(one)
            exchange.pause()
            async with connected(exchange, "Q.ZVZZT") as other:
                exchange.speed = 0
                exchange.resume()
                expected = script_of(exchange.tape, exchange.day, "T.ZVZZT", **bounds)
                assert first + await heard(one, len(expected) - len(first)) == expected
                assert exchange.finished.wait(WITHIN)
                quotes = script_of(exchange.tape, exchange.day, "Q.ZVZZT", **bounds)
                since = await heard(other, 1)
                missed = quotes.index(since[0])
                assert since + await heard(other, len(quotes) - missed - len(since)) == quotes[missed:]

    run(talk())


def test_the_clock_can_be_paused_and_hurried(started: Start) -> None:
    exchange = started(simulate=True, speed=30, start="09:30", until="10:00")
    expected = said_on(exchange, "Q.*", minutes=30)

    async def talk() -> None:
        async with connected(exchange, "Q.*") as ws:
            found = await said(ws)
            exchange.pause()
            stopped = exchange.position
            await (await ws.ping())
            assert exchange.position == stopped
            exchange.speed = 3000
            exchange.resume()
            while exchange.position < stopped + 10 * MINUTE:
                found += await said(ws)
            assert exchange.speed == 3000
            exchange.speed = 0
            assert found + await heard(ws, len(expected) - len(found)) == expected

    run(talk())


def test_nothing_is_said_before_its_time(started: Start) -> None:
    exchange = started(simulate=True, speed=20, start="09:30", until="09:31")

    async def talk() -> None:
        count = len(said_on(exchange, "T.*", "Q.*", "AM.*", minutes=1))
        async with connected(exchange, "T.*", "Q.*", "AM.*") as ws:
            while count:
                events = await said(ws)
                now = exchange.position
                assert all(event.get("t", event.get("e")) * 10**6 <= now for event in events)
                count -= len(events)

    run(talk())


def test_unpaced_the_slowest_client_sets_the_pace(tight: Start) -> None:
    exchange = tight(simulate=True, start="09:30", until="10:00", wait_for=2)
    expected = said_on(exchange, "T.*", "Q.*", minutes=30)

    async def talk() -> None:
        async with narrow(exchange, "T.*", "Q.*") as idle, connected(exchange, "T.*", "Q.*") as busy:
            first = await heard(busy, 500)
            rest = asyncio.create_task(heard(busy, len(expected) - len(first)))
            await (await busy.ping())
            assert not exchange.finished.is_set()
            assert await heard(idle, len(expected)) == expected
            assert first + await rest == expected

    run(talk())
    assert exchange.finished.wait(WITHIN)


def test_paced_a_client_that_cannot_follow_is_cut_and_the_others_lose_nothing(tight: Start) -> None:
    exchange = tight(simulate=True, speed=600, start="09:30", until="10:00", wait_for=2)
    expected = said_on(exchange, "T.*", "Q.*", minutes=30)

    async def talk() -> None:
        async with narrow(exchange, "T.*", "Q.*") as stuck, connected(exchange, "T.*", "Q.*") as good:
            assert await heard(good, len(expected)) == expected
            ticks = [event for event in await everything(stuck) if event["ev"] != "status"]
            assert ticks == expected[: len(ticks)]
            assert len(ticks) < len(expected)

    run(talk())


def test_cut_connections_come_back_and_hear_the_rest_once(tight: Start) -> None:
    exchange = tight(simulate=True, start="09:30", until="10:00")
    expected = said_on(exchange, "T.*", "Q.*", minutes=30)

    async def talk() -> list[Event]:
        found: list[Event] = []
        for n in range(6):
            async with narrow(exchange, "T.*", "Q.*") as ws:
                found += await heard(ws, 500)
                cut = asyncio.create_task(asyncio.to_thread(exchange.disconnect_clients, clean=n % 2 == 0))
                # What was on its way before the cut still comes.
                found += await everything(ws)
                assert await cut == 1
                assert ws.close_code == (1001 if n % 2 == 0 else 1006)
        async with connected(exchange, "T.*", "Q.*") as ws:
            while found[-1] != expected[-1]:
                found += await said(ws)
        return found

    found = run(talk())
    places = {json.dumps(event): n for n, event in enumerate(expected)}
    order = [places[json.dumps(event)] for event in found]
    assert np.all(np.diff(order) > 0)
    assert 0.5 * len(expected) < len(found) < len(expected)


async def collected(ws: ClientConnection, count: int) -> dict[str, pa.Table]:
    """What a client receives, as tables with the number of each event."""
    decoder = wire.FrameDecoder()
    heard = 0
    while heard < count:
        frame = await ws.recv()
        assert isinstance(frame, str)
        payload = frame.encode()
        decoder.feed(payload, ts_recv=0, arrival=heard)
        heard += payload.count(b'{"ev":')
    assert (heard, decoder.malformed, decoder.unknown.total()) == (count, 0, 0)
    return decoder.take()


async def hear_the_tape(exchange: Exchange, folder: Path, start: int, until: int) -> None:
    """What a client receives is the tape's quotes and trades, in order, none twice."""
    read = {
        kind: wire.read_flat_file(folder / wire.file_key(product, REAL_DAY), product, day=REAL_DAY)
        for kind, product in (("quotes", QUOTES), ("trades", TRADES))
    }
    tape = dict(zip(read, replay.in_order_of_arrival(read["quotes"], read["trades"]), strict=True))
    for kind, table in tape.items():
        stamps = table.column("ts_event").to_numpy()
        tape[kind] = table.filter(pa.array((stamps >= start) & (stamps < until)))
    async with connected(exchange, "T.*", "Q.*") as ws:
        found = await collected(ws, sum(map(len, tape.values())))
    places = np.concatenate([tape["quotes"].column("arrival"), tape["trades"].column("arrival")])
    numbers = np.concatenate([found["quotes"].column("arrival"), found["trades"].column("arrival")])
    assert np.array_equal(np.argsort(places), np.argsort(numbers))
    for kind, channel in (("quotes", "Q"), ("trades", "T")):
        expected = wire.as_streamed(tape[kind], channel)
        for name in set(expected.column_names) - {"arrival", "ts_recv"}:
            assert found[kind].column(name) == expected.column(name), (kind, name)


@pytest.mark.parametrize(
    ("files", "speed", "seconds"),
    [
        ("real_minutes", 0, 300),
        ("real_minutes", 60, 60),
        ("real_minutes", 1, 2),
        pytest.param("real_day", 0, 86_400, marks=pytest.mark.slow, id="whole day unpaced"),
        pytest.param("real_day", 60, 1_800, marks=pytest.mark.slow, id="half an hour at speed 60"),
        pytest.param("real_day", 1, 60, marks=pytest.mark.slow, id="a minute at speed 1"),
    ],
)
def test_what_a_client_hears_of_the_real_day_is_the_tape(
    started: Start, request: pytest.FixtureRequest, files: str, speed: float, seconds: int
) -> None:
    folder: Path = request.getfixturevalue(files)
    midnight, ten = 1_381_291_200 * 10**9, 1_381_327_200 * 10**9
    start = midnight if seconds == 86_400 else ten
    until = start + seconds * 10**9
    exchange = started(flat_files=folder, day=REAL_DAY, start=start, until=until, speed=speed)

    async def bounded() -> None:
        async with asyncio.timeout(280):
            await hear_the_tape(exchange, folder, start, until)

    asyncio.run(bounded())
    assert exchange.finished.wait(WITHIN)


def test_of_ten_clients_a_stuck_one_is_cut_in_the_vendors_words_and_nine_lose_nothing(
    tight: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaker, "MAX_BACKLOG", 1_000_000)
    monkeypatch.setattr(stream, "SLOW_WORDS", WITHIN)
    exchange = tight(simulate=True, plan=None, speed=200, start="09:30", until="09:45", wait_for=10)
    expected = said_on(exchange, "T.*", "Q.*", minutes=15)

    async def talk() -> None:
        async with AsyncExitStack() as clients:
            nine = [await clients.enter_async_context(connected(exchange, "T.*", "Q.*")) for _ in range(9)]
            stuck = await clients.enter_async_context(narrow(exchange, "T.*", "Q.*"))
            for found in await asyncio.gather(*(heard(ws, len(expected)) for ws in nine)):
                assert found == expected
            *ticks, last = await everything(stuck)
            assert (last["ev"], last["status"]) == ("status", "slow_consumer")
            assert stuck.close_code == 1008
            assert 0 < len(ticks) < len(expected)
            assert ticks == expected[: len(ticks)]

    run(talk())
    assert exchange.finished.wait(WITHIN)


def test_unpaced_a_client_that_takes_nothing_at_all_does_not_stop_the_others_for_ever(
    tight: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "STUCK_AFTER", 2.0)
    exchange = tight(simulate=True, start="09:30", until="10:00", wait_for=2)
    expected = said_on(exchange, "T.*", "Q.*", minutes=30)

    async def talk() -> None:
        async with narrow(exchange, "T.*", "Q.*"), connected(exchange, "T.*", "Q.*") as ws:
            assert await heard(ws, len(expected)) == expected

    run(talk())
