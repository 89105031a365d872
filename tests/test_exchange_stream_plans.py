"""Clients of different plans on one exchange: each gets what its plan includes, as soon as it includes it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from exchange_clients import WITHIN, Event, Start, ask, connected, heard, run, said, script_of
from tapelab.errors import UnknownName, UsageError
from tapelab.exchange import Exchange, serve
from tapelab.exchange.plans import DELAY, PLANS
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, TRADES
from tapelab.market import clock, sessions
from tapelab.market.clock import HOUR
from tapelab.market.symbols import Market
from tapelab.massive import wire
from test_exchange_tape import DAY, MINUTE, _write, folder_of

pytest_plugins = "exchange_fixtures"

STARTER, DEVELOPER, ADVANCED, BASIC = "key-of-starter", "key-of-developer", "key-of-advanced", "key-of-basic"
KEYS = {STARTER: "starter", DEVELOPER: "developer", ADVANCED: "advanced", BASIC: "basic"}
MS = 10**6


def get(exchange: Exchange, key: str, path: str, **query: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(exchange.rest_url + path, headers=headers, params=query)  # type: ignore[arg-type]


def client_of(exchange: Exchange, key_id: str, secret: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=exchange.s3_endpoint,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}),
    )


async def logged_in(ws: ClientConnection, key: str, *topics: str) -> list[Event]:
    """What a key is told when it subscribes."""
    assert [event["status"] for event in await said(ws)] == ["auth_success"]
    await ask(ws, "subscribe", ",".join(topics))
    return await said(ws)


def test_clients_of_two_plans_hear_what_their_plan_includes_when_it_does(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="10:30", keys=KEYS, wait_for=2)
    start = exchange.position
    minutes = script_of(exchange.tape, exchange.day, "AM.*", start=start, until=start + HOUR)
    trades = script_of(exchange.tape, exchange.day, "T.*", start=start, until=start + HOUR)

    async def delayed(ws: ClientConnection) -> list[Event]:
        found = []
        while len(found) < len(minutes):
            for event in await said(ws):
                assert exchange.position >= event["e"] * MS + DELAY
                found.append(event)
        return found

    async def talk() -> None:
        async with connected(exchange, key=STARTER) as slow, connected(exchange, key=ADVANCED) as fast:
            told = await logged_in(slow, STARTER, "T.*", "AM.*", "LULD.*")
            assert [event["message"] for event in told] == [
                "not authorized",
                "not authorized",
                "subscribed to: AM.*",
            ]
            await logged_in(fast, ADVANCED, "T.*")
            both = await asyncio.gather(delayed(slow), heard(fast, len(trades)))
        assert both == [minutes, trades]

    run(talk())
    assert exchange.finished.wait(WITHIN)


def test_paced_the_delayed_client_is_fifteen_minutes_behind_the_same_clock(started: Start) -> None:
    exchange = started(simulate=True, start="09:30", until="10:30", speed=600, keys=KEYS, wait_for=2)
    start = exchange.position
    trades = script_of(exchange.tape, exchange.day, "T.*", start=start, until=start + 30 * MINUTE)

    async def listen(ws: ClientConnection, behind: int) -> list[Event]:
        found: list[Event] = []
        while len(found) < len(trades):
            events = await said(ws)
            assert max(event["t"] for event in events) * MS <= exchange.position - behind
            found += events
        return found[: len(trades)]

    async def talk() -> None:
        async with connected(exchange, key=DEVELOPER) as slow, connected(exchange, key=ADVANCED) as fast:
            await logged_in(slow, DEVELOPER, "T.*")
            await logged_in(fast, ADVANCED, "T.*")
            assert await asyncio.gather(listen(slow, DELAY), listen(fast, 0)) == [trades, trades]

    run(talk())


def test_each_key_has_its_own_connections_and_only_the_older_of_the_same_key_is_closed(
    started: Start,
) -> None:
    exchange = started(simulate=True, keys=KEYS, wait_for=9)

    async def talk() -> None:
        async with (
            connected(exchange, key=STARTER) as older,
            connected(exchange, key=ADVANCED) as other,
            connected(exchange, "T.*"),
            connected(exchange, "T.*") as own,
        ):
            await logged_in(older, STARTER, "AM.*")
            await logged_in(other, ADVANCED, "T.*")
            async with connected(exchange, key=STARTER) as newer:
                assert [event["status"] for event in await said(newer)] == ["auth_success"]
                assert [event["status"] for event in await said(older)] == ["max_connections"]
                with pytest.raises(ConnectionClosed):
                    await older.recv()
                for ws in (other, own, newer):
                    await (await ws.ping())

    run(talk())


def test_over_rest_a_plan_sees_no_further_than_the_clock(started: Start) -> None:
    exchange = started(simulate=True, keys=KEYS)
    day = exchange.day
    path = f"/v2/aggs/ticker/ZVZZT/range/1/minute/{day}/{day}"

    def last_bar(key: str) -> int:
        return max((row["t"] for row in get(exchange, key, path).json().get("results", [])), default=0) * MS

    whole = last_bar(exchange.api_key)
    assert [last_bar(key) for key in KEYS] == [whole] * 4  # all is history until the clock is set
    exchange.jump("10:00")
    ten = exchange.position
    assert last_bar(exchange.api_key) == whole
    assert last_bar(ADVANCED) == ten - MINUTE
    assert last_bar(STARTER) == ten - DELAY - MINUTE
    assert last_bar(BASIC) == 0
    newest = get(exchange, DEVELOPER, "/v3/trades/ZVZZT", limit=1).json()["results"][0]["sip_timestamp"]
    assert ten - DELAY - MINUTE < newest <= ten - DELAY
    exchange.jump("20:00")
    assert last_bar(BASIC) == last_bar(ADVANCED) == whole


def test_a_plan_finds_a_file_on_the_morning_after_its_day(started: Start) -> None:
    exchange = started(simulate=True, plan="advanced")
    *_, before, yesterday, today = exchange.tape.days(MINUTE_BARS)
    s3 = client_of(exchange, exchange.s3_access_key_id, exchange.s3_secret_access_key)

    def newest() -> str:
        listed = s3.list_objects_v2(Bucket="flatfiles", Prefix=MINUTE_BARS)["Contents"]
        return max(str(entry["Key"]) for entry in listed)

    assert newest() == wire.file_key(MINUTE_BARS, today)
    for moment, published in (("10:59:59", before), ("11:00", yesterday)):
        exchange.jump(moment)
        assert newest() == wire.file_key(MINUTE_BARS, published)
        s3.head_object(Bucket="flatfiles", Key=wire.file_key(MINUTE_BARS, published))
        with pytest.raises(s3.exceptions.ClientError, match="404"):
            s3.head_object(Bucket="flatfiles", Key=wire.file_key(MINUTE_BARS, published + timedelta(days=1)))
    s3.close()


def test_each_key_has_files_of_its_own_plan(started: Start, tmp_path: Path) -> None:
    exchange = started(simulate=True, keys=KEYS)

    def answers(key: str) -> list[int]:
        key_id, secret = exchange.settings(tmp_path, key=key).need_s3()
        s3 = client_of(exchange, key_id, secret)
        found = []
        for product in (DAY_BARS, TRADES):
            try:
                answer = s3.head_object(Bucket="flatfiles", Key=wire.file_key(product, exchange.day))
            except s3.exceptions.ClientError as error:
                answer = error.response
            found.append(int(answer["ResponseMetadata"]["HTTPStatusCode"]))
        s3.close()
        return found

    assert {key: answers(key) for key in (exchange.api_key, *KEYS)} == {
        exchange.api_key: [200, 200],
        STARTER: [200, 403],
        DEVELOPER: [200, 200],
        ADVANCED: [200, 200],
        BASIC: [403, 403],
    }
    with pytest.raises(UsageError, match="does not know"):
        exchange.settings(tmp_path, key="somebody's")


@pytest.fixture
def years(tmp_path: Path) -> Iterator[Exchange]:
    """A folder with day bars of many years."""
    folder = folder_of(tmp_path)
    for day in (date(2013, 4, 5), date(2014, 4, 7), date(2019, 4, 5), date(2022, 4, 5)):
        midnight = sessions.day_start(Market.STOCKS, day)
        header = ",".join(wire.PRODUCTS[DAY_BARS].header)
        _write(folder, DAY_BARS, day, f"{header}\nAAPL,1000,1,2,2,1,{midnight},10\n")
    with serve(flat_files=folder, speed=0, keys=KEYS) as exchange:
        yield exchange


def test_history_begins_where_the_plans_does(years: Exchange) -> None:
    def first(key: str) -> date:
        rows = get(years, key, f"/v2/aggs/ticker/AAPL/range/1/day/2024-03-01/{DAY}").json()["results"]
        assert len(rows) == 3
        tape = years.tape.days(DAY_BARS)
        seen = [
            day
            for day in tape
            if get(years, key, f"/v2/aggs/ticker/AAPL/range/1/day/{day}/{day}").json().get("resultsCount")
        ]
        return seen[0]

    assert first(years.api_key) == first(ADVANCED) == date(2013, 4, 5)
    assert first(DEVELOPER) == date(2014, 4, 7)
    assert first(STARTER) == date(2019, 4, 5)


def test_windows_roll_by_the_exchanges_date() -> None:
    now = sessions.instant(date(2024, 2, 29), time(12), sessions.NEW_YORK)
    assert PLANS["basic"].first_day(now) == date(2022, 2, 28)
    assert PLANS["starter"].first_day(now + 24 * HOUR) == date(2019, 3, 1)
    assert PLANS["advanced"].first_day(now) is None
    assert PLANS["basic"].until(now) == sessions.day_start(Market.STOCKS, date(2024, 2, 29))
    evening = now + 8 * HOUR
    assert PLANS["basic"].until(evening) == evening
    assert PLANS["starter"].until(now) == now - 15 * 60 * clock.SECOND


@pytest.mark.parametrize("key", ["", "short", "späte-schlüssel", "new\nline-key"])
def test_a_key_that_nobody_could_send_is_refused(key: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve(simulate=True, keys={key: "basic"})
    assert caught.value.remedy
    with pytest.raises(UnknownName, match="'stater'"):
        serve(simulate=True, keys={"a-good-key": "stater"})
