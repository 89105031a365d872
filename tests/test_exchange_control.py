"""The exchange's clock is turned from Python and over HTTP, and every client and door sees the same one."""

from __future__ import annotations

import asyncio
import json
from datetime import time
from typing import Any

import httpx
import pytest

from exchange_clients import WITHIN, Event, Start, connected, heard, run, said, script_of
from tapelab.errors import BadRange, UsageError
from tapelab.exchange import Exchange, control
from tapelab.market import sessions
from tapelab.market.symbols import Market
from test_exchange_tape import MINUTE

pytest_plugins = "exchange_fixtures"

TICKS = ("T.*", "Q.*")


def opening(exchange: Exchange) -> int:
    session = sessions.session(Market.STOCKS, exchange.day)
    assert session is not None
    return session.open


def turn(exchange: Exchange, key: str | None = None, **change: Any) -> httpx.Response:
    key = exchange.api_key if key is None else key
    return httpx.post(f"{exchange.rest_url}{control.PATH}", params={"apiKey": key}, json=change)


def stamps(events: list[Event]) -> list[int]:
    return [event["t"] * 10**6 for event in events]


def test_a_jump_ahead_leaves_out_what_lies_between_for_every_client(started: Start) -> None:
    exchange = started(simulate=True, speed=1, start="09:30", until="09:50", wait_for=2)
    there = opening(exchange) + 15 * MINUTE
    expected = script_of(exchange.tape, exchange.day, *TICKS, start=there, until=there + 5 * MINUTE)

    async def talk() -> None:
        async with connected(exchange, *TICKS) as one, connected(exchange, *TICKS) as other:
            before = [await said(one), await said(other)]
            exchange.pause()
            exchange.jump("09:45")
            assert exchange.position == there
            exchange.speed = 0
            exchange.resume()
            for ws, already in zip((one, other), before, strict=True):
                found = already
                while found[-1] != expected[-1]:
                    found += await said(ws)
                assert found[-len(expected) :] == expected
                assert max(stamps(found[: -len(expected)])) < there - 10 * MINUTE

    run(talk())
    assert exchange.finished.wait(WITHIN)


def test_a_jump_back_says_it_again_even_after_the_end(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="09:31")
    start = opening(exchange)
    whole = script_of(exchange.tape, exchange.day, *TICKS, start=start, until=start + MINUTE)
    half = [event for event in whole if event["t"] * 10**6 >= start + MINUTE // 2]

    async def talk() -> None:
        async with connected(exchange, *TICKS) as ws:
            assert await heard(ws, len(whole)) == whole
            assert await asyncio.to_thread(exchange.finished.wait, WITHIN)
            exchange.jump("09:30:30")
            assert await heard(ws, len(half)) == half
            assert await asyncio.to_thread(exchange.finished.wait, WITHIN)

    run(talk())
    exchange.jump(start)
    assert not exchange.finished.is_set()
    assert exchange.position == start


def test_a_clock_that_was_set_before_it_is_started_starts_there(started: Start) -> None:
    exchange = started(simulate=True, speed=3000)
    assert not exchange.told
    exchange.jump("15:00")
    assert exchange.told
    three = exchange.position
    expected = script_of(exchange.tape, exchange.day, "T.*", start=three, until=three + 10 * MINUTE)

    async def talk() -> None:
        async with connected(exchange, "T.*") as ws:
            found = await heard(ws, len(expected))
            assert found[: len(expected)] == expected

    run(talk())


def test_a_paused_clock_can_be_set_and_stands(started: Start) -> None:
    exchange = started(simulate=True, speed=60, start="09:30")
    exchange.pause()

    async def talk() -> None:
        async with connected(exchange, "Q.*") as ws:
            for moment in ("10:00", "09:40", "15:59:59"):
                exchange.jump(moment)
                await (await ws.ping())
                assert exchange.position == sessions.instant(
                    exchange.day, time.fromisoformat(moment), sessions.NEW_YORK
                )
            exchange.resume()
            assert min(stamps(await said(ws))) >= opening(exchange) + 389 * MINUTE

    run(talk())


def test_a_clock_beyond_the_end_is_at_the_end(started: Start) -> None:
    exchange = started(simulate=True, speed=60, start="09:30", until="09:40")

    async def talk() -> None:
        async with connected(exchange, "Q.*") as ws:
            await said(ws)
            exchange.jump("18:00")
            assert exchange.position <= opening(exchange) + 10 * MINUTE
            assert await asyncio.to_thread(exchange.finished.wait, WITHIN)

    run(talk())


@pytest.mark.parametrize("moment", [0, "26:00", "noon", "2026-10-09", 1 << 62])
def test_a_moment_of_another_day_is_refused(started: Start, moment: int | str) -> None:
    exchange = started(simulate=True)
    before = exchange.position
    with pytest.raises(BadRange) as caught:
        exchange.jump(moment)
    assert caught.value.remedy
    assert turn(exchange, at=moment).status_code == 400
    assert exchange.position == before
    with pytest.raises(UsageError, match="speed"):
        exchange.speed = -1


def test_the_clock_over_http_is_the_one_of_python_and_rest(started: Start) -> None:
    exchange = started(simulate=True, speed=60, start="09:30")
    url = f"{exchange.rest_url}{control.PATH}"
    key = {"Authorization": f"Bearer {exchange.api_key}"}
    state = httpx.get(url, headers=key).json()
    assert state == {
        "at": opening(exchange),
        "time": "2026-10-09T09:30:00-04:00",
        "day": "2026-10-09",
        "speed": 60.0,
        "paused": False,
        "started": False,
        "finished": False,
    }
    turned = turn(exchange, paused=True, at="10:15", speed=2.5)
    assert (turned.status_code, turned.json()) == (
        200,
        state
        | {
            "at": opening(exchange) + 45 * MINUTE,
            "time": "2026-10-09T10:15:00-04:00",
            "speed": 2.5,
            "paused": True,
        },
    )
    assert (exchange.position, exchange.speed) == (opening(exchange) + 45 * MINUTE, 2.5)
    status = httpx.get(f"{exchange.rest_url}/v1/marketstatus/now", headers=key).json()
    assert status["serverTime"] == "2026-10-09T10:15:00-04:00"
    assert status["market"] == "open"

    async def talk() -> list[Event]:
        async with connected(exchange, "Q.*") as ws:
            assert not turn(exchange, paused=False).json()["paused"]
            return await said(ws)

    assert min(stamps(run(talk()))) >= opening(exchange) + 45 * MINUTE
    assert httpx.get(url, headers=key).json()["started"]


BAD_CHANGES = [
    b"",
    b"[]",
    b"null",
    b'{"speed":"fast"}',
    b'{"speed":-1}',
    b'{"speed":1e999}',
    b'{"sped":1}',
    b'{"paused":1}',
    b'{"at":1.5}',
    b'{"at":"2026-10-10"}',
    b'{"at":"\xff"}',
    b"[" * 4000,
    b'{"a":' * 800,
    b" " * 100_000,
]


@pytest.mark.parametrize("body", BAD_CHANGES, ids=range(len(BAD_CHANGES)))
def test_a_change_that_is_none_is_refused_in_the_vendors_form(started: Start, body: bytes) -> None:
    exchange = started(simulate=True)
    url = f"{exchange.rest_url}{control.PATH}?apiKey={exchange.api_key}"
    before = httpx.get(url).json()
    answer = httpx.post(url, content=body)
    assert answer.status_code == 400
    assert answer.json()["status"] == "ERROR"
    assert answer.json()["error"]
    assert httpx.get(url).json() == before


def test_who_has_no_key_does_not_turn_the_clock(started: Start) -> None:
    exchange = started(simulate=True)
    url = f"{exchange.rest_url}{control.PATH}"
    for answer in (httpx.get(url), httpx.post(url, json={"speed": 2}), turn(exchange, key="wrong", speed=2)):
        assert answer.status_code == 401
        assert json.loads(answer.text)["status"] == "ERROR"
    assert exchange.speed == 0
    assert httpx.put(f"{url}?apiKey={exchange.api_key}").status_code == 404
