"""The vendor's own clients, pointed at an exchange, and what their callers need to wait without sleeping."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from massive import RESTClient, WebSocketClient

from tapelab.exchange import Exchange

Start = Callable[..., Exchange]
Client = Callable[..., RESTClient]

WITHIN = 60.0  # seconds for anything


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, or fail."""

    async def bounded() -> Any:
        async with asyncio.timeout(WITHIN):
            return await work

    return asyncio.run(bounded())


class Listener:
    """The vendor's stream client at an exchange: what it handed over, and each status that it read.

    Use it in an `async with` block, at whose end it leaves as a polite client does. The client shows no
    statuses to its callers, but it takes a JSON module of one's choice: this one listens.
    """

    def __init__(self, exchange: Exchange, *topics: str, **options: Any) -> None:
        self.events: list[Any] = []
        self.statuses: list[str] = []
        self._moved = asyncio.Event()
        self.client = WebSocketClient(
            exchange.api_key,
            feed=exchange.ws_url.removeprefix("ws://"),
            market="stocks",
            secure=False,
            subscriptions=list(topics),
            custom_json=self,
            **options,
        )
        self.task = asyncio.create_task(self.client.connect(self._take))

    async def __aenter__(self) -> Listener:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.client.websocket is not None:
            await self.client.websocket.close()
            await self.client.websocket.wait_closed()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, enough: Callable[[Listener], bool]) -> None:
        """Wait until what was heard is enough, or the client is done."""
        while not enough(self) and not self.task.done():
            self._moved.clear()
            waiting = asyncio.create_task(self._moved.wait())
            await asyncio.wait([waiting, self.task], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        if self.task.done():
            await self.task
        assert enough(self), (len(self.events), self.statuses)

    async def events_heard(self, count: int) -> list[Any]:
        """Wait for so many events."""
        await self.until(lambda me: len(me.events) >= count)
        return self.events

    async def confirmed(self, *messages: str) -> None:
        """Wait until the exchange has said all of these."""
        await self.until(lambda me: set(messages) <= set(me.statuses))

    async def _take(self, messages: Sequence[Any]) -> None:
        self.events.extend(messages)
        self._moved.set()

    def loads(self, text: str) -> Any:
        """What the client calls to read a message."""
        said = json.loads(text)
        statuses = [event["message"] for event in said if event["ev"] == "status"]
        if statuses:
            self.statuses += statuses
            self._moved.set()
        return said

    def dumps(self, order: object) -> str:
        """What the client calls to write one."""
        return json.dumps(order)


def hear(exchange: Exchange, *topics: str, count: int) -> list[Any]:
    """So many events of some topics, as the vendor's client hands them over."""

    async def listen() -> list[Any]:
        async with Listener(exchange, *topics) as listener:
            return await listener.events_heard(count)

    events: list[Any] = run(listen())
    return events
