"""Bad input on the live stream is refused in the vendor's form, and the exchange is healthy afterwards."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection

from exchange_clients import Event, Start, ask, connected, everything, heard, run, said
from tapelab.exchange import Exchange
from tapelab.exchange.stream import app as stream

pytest_plugins = "exchange_fixtures"


@pytest.fixture
def exchange(started: Start) -> Iterator[Exchange]:
    """Its clock stands; afterwards a well-behaved client is served by every door."""
    exchange = started(simulate=True, start="09:30", until="09:30:10")
    exchange.pause()
    yield exchange

    async def healthy() -> None:
        async with connected(exchange, "Q.*") as ws:
            exchange.resume()
            assert (await said(ws))[0]["ev"] == "Q"

    run(healthy())
    status = f"{exchange.rest_url}/v1/marketstatus/now"
    assert httpx.get(status, params={"apiKey": exchange.api_key}).status_code == 200
    assert httpx.get(exchange.s3_endpoint).status_code == 403


GARBAGE = [
    "",
    "not json",
    "[]",
    "{}",
    "null",
    '{"action":"auth"',
    '{"action":5}',
    '{"action":"subscribe","params":["T.*"]}',
    '{"action":"subscribe","params":{"T":"*"}}',
    '{"action":"dance"}',
    '{"action":"auth","params":"\\ud800"}',
    '{"action":"subscribe","params":"T.\\udfff"}',
    "😀",
    "x" * 1_000_000,
    b"\x00\xff binary",
    "[" * 100_000,
    '{"a":' * 100_000,
]


@pytest.mark.parametrize("message", GARBAGE, ids=range(len(GARBAGE)))
def test_what_is_no_order_is_answered_with_an_error(exchange: Exchange, message: str | bytes) -> None:
    async def talk() -> None:
        async with connected(exchange) as ws:
            await ws.send(message)
            assert [event["status"] for event in await said(ws)] == ["error"]
            await ask(ws, "subscribe", "Q.*")
            assert [event["status"] for event in await said(ws)] == ["success"]

    run(talk())


def test_a_message_beyond_all_bounds_ends_only_its_own_connection(exchange: Exchange) -> None:
    async def talk() -> None:
        async with connected(exchange) as ws, connected(exchange, "T.*") as other:
            await ws.send("x" * 3_000_000)
            assert await everything(ws) == []
            assert ws.close_code == 1009
            await (await other.ping())

    run(talk())


def test_subscriptions_by_the_hundred_thousand_are_confirmed_and_beyond_that_refused(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = [f"T.S{n}" for n in range(stream.MAX_TOPICS)]

    async def answers(ws: ClientConnection, asked: list[str]) -> list[Event]:
        await ask(ws, "subscribe", ",".join(asked))
        return await heard(ws, len(asked))

    async def talk() -> None:
        async with connected(exchange) as ws:
            confirmed = await answers(ws, topics)
            assert [event["message"] for event in confirmed] == [f"subscribed to: {t}" for t in topics]
            for _ in range(3):
                refused = await answers(ws, [f"Q.S{n}" for n in range(100_000)])
                assert {(e["status"], e["message"]) for e in refused} == {("error", "too many subscriptions")}
            await ask(ws, "unsubscribe", "T.S0,T.S1")
            assert len(await said(ws)) == 2
            assert [event["status"] for event in await answers(ws, ["Q.S1", "Q.S2", "Q.S3"])] == [
                "error",
                "success",
                "success",
            ]

    run(talk())


def test_a_topic_longer_than_any_symbol_is_no_topic(exchange: Exchange) -> None:
    async def talk() -> None:
        async with connected(exchange) as ws:
            await ask(ws, "subscribe", f"T.{'A' * 900_000},T.AAPL")
            assert [event["message"] for event in await said(ws)] == ["subscribed to: T.AAPL"]

    run(talk())


RAW = [
    b"",
    b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"POST /stocks HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello",
    b"GET /stocks HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    b"GET /stocks HTTP/1.1\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
]


@pytest.mark.parametrize("opening", RAW, ids=range(len(RAW)))
def test_what_is_no_handshake_is_let_go(exchange: Exchange, opening: bytes) -> None:
    address = exchange.ws_url.removeprefix("ws://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=30) as sock:
        try:
            sock.sendall(opening)
            sock.shutdown(socket.SHUT_WR)
            answer = sock.recv(65_536)
        except ConnectionError:
            return
    assert not answer.startswith(b"HTTP/1.1 101")


def test_clients_that_vanish_in_the_middle_leave_nothing(exchange: Exchange) -> None:
    async def talk() -> None:
        for n in range(20):
            async with connected(exchange, "T.*", "Q.*") as ws:
                if n % 2:
                    await ws.send(json.dumps({"action": "subscribe", "params": "AM.*"}))
                ws.transport.abort()
        while exchange._stream._clients:
            await asyncio.sleep(0.01)

    run(talk())
