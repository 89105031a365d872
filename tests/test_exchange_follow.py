"""A recording that still grows is served as it comes: one connection to its source, many programs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from exchange_clients import WITHIN, Event, Start, connected, everything, heard, run, said_on, script_of
from streams import until
from tapelab.errors import ServeError, UsageError
from tapelab.exchange import Exchange, serve
from tapelab.exchange.plans import DELAY
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.store.datasets.dataset import Dataset, open_dataset
from test_exchange_stream_plans import DEVELOPER, KEYS, logged_in
from test_exchange_tape import MINUTE

pytest_plugins = "exchange_fixtures"

TICKS = ("T.*", "Q.*")


@contextmanager
def followed(
    source: Exchange, home: Path, **options: Any
) -> Iterator[tuple[Exchange, WebSocketDataRecorder, Dataset]]:
    """An exchange that follows a recording of another one, whose clock still stands."""
    source.pause()
    with (
        source.use(home),
        WebSocketDataRecorder(source.tape.symbols()) as recorder,
        serve(dataset=open_dataset(recorder.stats.dataset), follow=True, **options) as exchange,
    ):
        yield exchange, recorder, open_dataset(recorder.stats.dataset)


def test_any_number_of_programs_hear_what_one_recording_receives(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True, start="09:30", until="09:40")
    expected = said_on(source, *TICKS, minutes=10)
    symbol = [event for event in expected if event["sym"] == "ZXZZT"]

    async def talk(exchange: Exchange, recorder: WebSocketDataRecorder) -> None:
        async with AsyncExitStack() as clients:
            all_ = [await clients.enter_async_context(connected(exchange, *TICKS)) for _ in range(3)]
            one = await clients.enter_async_context(connected(exchange, "T.ZXZZT", "Q.ZXZZT"))
            source.resume()
            found = await asyncio.gather(*(heard(ws, len(expected)) for ws in all_), heard(one, len(symbol)))
            assert found == [expected] * 3 + [symbol]
            assert not exchange.finished.is_set()
            assert len(source._stream._clients) == 1
            await asyncio.to_thread(recorder.stop)
            assert await asyncio.to_thread(exchange.finished.wait, WITHIN)
            await asyncio.to_thread(exchange.close)
            assert await everything(one) == []

    with followed(source, tmp_path) as (exchange, recorder, dataset):
        assert exchange.tape.identity == f"simulated dataset {dataset.name}"
        run(talk(exchange, recorder))


def test_who_comes_later_hears_what_comes_later(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True, speed=1, start="09:30", until="09:50")
    start = source.position
    rest = script_of(source.tape, source.day, *TICKS, start=start + 10 * MINUTE, until=start + 20 * MINUTE)

    async def talk(exchange: Exchange, recorder: WebSocketDataRecorder) -> None:
        source.resume()
        await asyncio.to_thread(until, lambda: recorder.stats.events > 20)
        source.pause()
        source.jump("09:40")
        await asyncio.to_thread(until, lambda: exchange.position >= start)
        async with connected(exchange, *TICKS) as ws:
            source.speed = 0
            source.resume()
            found: list[Event] = []
            while not found or found[-1] != rest[-1]:
                found += await heard(ws, 1)
        # What was still on its way when the clock jumped may come first.
        assert found[-len(rest) :] == rest
        assert len(found) - len(rest) < 200

    with followed(source, tmp_path) as (exchange, recorder, _):
        run(talk(exchange, recorder))


def test_history_is_what_is_there_when_somebody_asks(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True, start="09:30", until="09:40")
    trades = said_on(source, "T.ZVZZT", minutes=10)

    def asked(exchange: Exchange, path: str) -> dict[str, Any]:
        answer = httpx.get(exchange.rest_url + path, params={"apiKey": exchange.api_key, "limit": 50_000})
        found: dict[str, Any] = answer.json()
        return found

    with followed(source, tmp_path) as (exchange, recorder, _):
        assert asked(exchange, "/v3/trades/ZVZZT").get("results", []) == []
        assert exchange.position > source.position  # nothing has happened yet: it is now
        source.resume()
        assert source.finished.wait(WITHIN)
        until(lambda: recorder.stats.trades > 0)
        until(lambda: len(asked(exchange, "/v3/trades/ZVZZT").get("results", [])) == len(trades))
        day = source.day
        bars = asked(exchange, f"/v2/aggs/ticker/ZVZZT/range/1/minute/{day}/{day}")["results"]
        assert sum(bar["n"] for bar in bars) <= len(trades)
        assert len(bars) == 10
        # Unpaced, the source stands at the last bar, the recording at the last tick.
        assert 0 <= source.position - exchange.position < MINUTE


def test_a_client_of_a_delayed_plan_is_behind_the_recording(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True, start="09:30", until="10:10")
    trades = said_on(source, "T.*", minutes=40)

    async def talk(exchange: Exchange, recorder: WebSocketDataRecorder) -> None:
        async with connected(exchange, key=DEVELOPER) as ws:
            await logged_in(ws, DEVELOPER, "T.*")
            source.resume()
            found: list[Event] = []
            ending = None
            while len(found) < len(trades):
                events = await heard(ws, 1)
                assert max(event["t"] for event in events) * 10**6 <= exchange.position - DELAY
                found += events
                if ending is None and found[-1]["t"] >= trades[-1]["t"] - 16 * 60_000:
                    # The last quarter of an hour comes once the recording has ended.
                    ending = asyncio.create_task(asyncio.to_thread(recorder.stop))
            assert found == trades
            assert ending is not None
            await ending

    with followed(source, tmp_path, keys=KEYS) as (exchange, recorder, _):
        run(talk(exchange, recorder))


def test_a_recording_that_was_cut_goes_on(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True, speed=1, start="09:30")

    async def talk(exchange: Exchange, recorder: WebSocketDataRecorder) -> None:
        async with connected(exchange, *TICKS) as ws:
            source.resume()
            await heard(ws, 5)
            await asyncio.to_thread(source.disconnect_clients, clean=False)
            await asyncio.to_thread(until, lambda: recorder.stats.reconnects == 1)
            before = recorder.stats.events
            await asyncio.to_thread(until, lambda: recorder.stats.events > before + 20)
            assert (await heard(ws, 20))[0]["ev"] in "TQ"
            assert not exchange.finished.is_set()

    with followed(source, tmp_path) as (exchange, recorder, _):
        run(talk(exchange, recorder))


def test_its_pace_is_the_recordings(started: Start, tmp_path: Path) -> None:
    source = started(simulate=True)
    with followed(source, tmp_path) as (exchange, _, dataset):
        for turn in (exchange.pause, exchange.resume, lambda: exchange.jump("10:00")):
            with pytest.raises(UsageError, match="own pace"):
                turn()
        with pytest.raises(UsageError, match="own day and pace"):
            serve(dataset=dataset, follow=True, speed=2)
    with pytest.raises(ServeError, match="Nobody records") as caught:
        serve(dataset=dataset, follow=True)
    assert caught.value.remedy
    with pytest.raises(UsageError, match="Only a recording"):
        serve(simulate=True, follow=True)
