"""Clients of the exchange's live stream for tests, and what a tape has to say to them."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import date
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tapelab.exchange import Exchange
from tapelab.exchange.stream.dayscript import DayScript
from tapelab.exchange.stream.script import Script
from tapelab.exchange.tape import Tape
from test_exchange_tape import MINUTE

WITHIN = 60.0  # seconds for anything
Event = dict[str, Any]
Start = Callable[..., Exchange]

CONNECTED = [{"ev": "status", "status": "connected", "message": "Connected Successfully"}]
AUTHENTICATED = [{"ev": "status", "status": "auth_success", "message": "authenticated"}]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(WITHIN):
            return await work

    return asyncio.run(bounded())


@asynccontextmanager
async def connected(
    exchange: Exchange, *topics: str, key: str | None = None
) -> AsyncIterator[ClientConnection]:
    """A client that has logged in and, if there are topics, is subscribed."""
    async with websockets.connect(f"{exchange.ws_url}/stocks", max_size=1_000_000, close_timeout=1) as ws:
        assert await said(ws) == CONNECTED
        await ask(ws, "auth", exchange.api_key if key is None else key)
        if key is None:
            assert await said(ws) == AUTHENTICATED
        if topics:
            await ask(ws, "subscribe", ",".join(topics))
            assert [event["message"] for event in await said(ws)] == [f"subscribed to: {t}" for t in topics]
        yield ws


@asynccontextmanager
async def narrow(exchange: Exchange, *topics: str) -> AsyncIterator[ClientConnection]:
    """A subscribed client whose side of the connection holds next to nothing."""
    address = exchange.ws_url.removeprefix("ws://").split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((address[0], int(address[1])))
        sock.setblocking(False)
        url = f"{exchange.ws_url}/stocks"
        async with websockets.connect(url, sock=sock, max_queue=1, close_timeout=1) as ws:
            await said(ws)
            await ask(ws, "auth", exchange.api_key)
            await said(ws)
            await ask(ws, "subscribe", ",".join(topics))
            await said(ws)
            yield ws


async def ask(ws: ClientConnection, action: str, params: str) -> None:
    await ws.send(json.dumps({"action": action, "params": params}))


async def said(ws: ClientConnection) -> list[Event]:
    frame = await ws.recv()
    assert isinstance(frame, str)
    events = json.loads(frame)
    assert isinstance(events, list)
    assert len(frame.encode()) < 1_000_000
    return events


async def heard(ws: ClientConnection, count: int) -> list[Event]:
    events: list[Event] = []
    while len(events) < count:
        events += await said(ws)
    return events


async def everything(ws: ClientConnection) -> list[Event]:
    """All that comes until the connection ends."""
    events: list[Event] = []
    try:
        while True:
            events += await said(ws)
    except ConnectionClosed:
        return events


def told(script: Script, *wanted: str, since: int = 0) -> list[bytes]:
    """Every event of a script, encoded, that somebody hears who is subscribed to this."""
    events: list[bytes] = []
    part = script.part(since)
    place = 0 if part is None else part.place(since)
    while part is not None:
        chunk = part.chunk(place, script.topics.heard(set(wanted)))
        if chunk is None:
            break
        events += chunk.heard(script.topics.heard(set(wanted)), 0, len(chunk))
        part, place = chunk.part, chunk.stop
    return events


def script_of(
    tape: Tape, day: date, *wanted: str, start: int | None = None, until: int | None = None
) -> list[Event]:
    return [json.loads(event) for event in told(DayScript(tape, day, start, until), *wanted)]


def said_on(exchange: Exchange, *wanted: str, minutes: float = 600) -> list[Event]:
    """What the exchange has to say from where its clock stands."""
    start = exchange.position
    return script_of(exchange.tape, exchange.day, *wanted, start=start, until=start + round(minutes * MINUTE))
