"""The WebSocket for stocks: the vendor's handshake, subscriptions, refusals, and one day spoken on one clock.

All clients hear the same clock. Paced, a client that cannot follow is cut as a slow consumer; unpaced, the
slowest client sets the pace. What is said while a client is away is lost to it, as at the vendor.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress

import msgspec
import numpy as np
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tapelab.exchange.client import CLOSE_WITHIN, LAST_WORDS, MAX_EVENTS, Client, framed
from tapelab.exchange.plans import Plan
from tapelab.exchange.rest import TAPE_HEADER
from tapelab.exchange.script import Chunk, Mask, Script
from tapelab.market import clock
from tapelab.market.clock import SECOND

MARKET_PATH = "/stocks"

MAX_MESSAGE = 1 << 20  # bytes from a client
MAX_BACKLOG = 16 << 20  # bytes waiting for a client: paced, more than this cuts it
HIGH_WATER = 2 << 20  # unpaced, the clock waits above this
WRITE_BUFFER = 1 << 20
AUTH_DEADLINE = 30.0  # seconds
PING_EVERY = 20.0
COALESCE = 0.001  # seconds; what is due within this goes into the same message

WENT_AWAY, POLICY, BROKEN = 1001, 1008, 1011

# What exists at the vendor for stocks. No tape holds LULD and NOI yet: accepted, and silent.
CHANNELS = frozenset({"T", "Q", "A", "AM", "LULD", "NOI", "FMV", "LV"})

_NO_ROUTE = "404 page not found\n"
_log = logging.getLogger(__name__)


class _Order(msgspec.Struct):
    action: str
    params: str = ""


_order = msgspec.json.Decoder(_Order)


class TapeClock:
    """The exchange's clock, ns UTC: it stands until it is started, and never passes the end of what is said.

    At speed 1 it runs in real time, at N so many times faster. At 0 it is unpaced: what is said moves it.
    """

    def __init__(self, start: int, speed: float) -> None:
        self.speed = speed
        self.paused = False
        self._at = start
        self._end = start
        self._since = -1  # on our own clock; -1 before the start

    @property
    def running(self) -> bool:
        return self._since >= 0 and not self.paused

    def now(self) -> int:
        if not self.running or self.speed == 0:
            return self._at
        return min(self._end, self._at + round((clock.monotonic() - self._since) * self.speed))

    def start(self, at: int, end: int) -> None:
        self._at, self._end = at, end
        self._since = clock.monotonic()

    def said(self, at: int) -> None:
        if self.speed == 0:
            self._at = max(self._at, at)

    def change(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        """Another pace, from where the clock stands."""
        self._at = self.now()
        self.speed = self.speed if speed is None else speed
        self.paused = self.paused if paused is None else paused
        if self._since >= 0:
            self._since = clock.monotonic()


class Stream:
    """The streaming side of the exchange; lives in one asyncio loop.

    `load` makes the script, in a thread, when the first client comes. The clock starts with the `wait_for`-th
    subscribed client. `max_connections` None: no limit. `finished` is set when all has been said and taken.
    """

    def __init__(
        self,
        identity: str,
        key: str,
        plan: Plan,
        load: Callable[[], Script],
        tape_clock: TapeClock,
        *,
        wait_for: int = 1,
        max_connections: int | None = None,
    ) -> None:
        self.finished = threading.Event()
        self.clock = tape_clock
        self._identity = identity
        self._key = key
        self._plan = plan
        self._load = load
        self._wait_for = wait_for
        self._max_connections = max_connections
        self._clients: list[Client] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._speaker: asyncio.Task[None] | None = None
        self._server: Server | None = None

    async def open(self, listening: socket.socket) -> None:
        """Begin to accept connections."""
        self._server = await serve(
            self._serve,
            sock=listening,
            compression=None,
            process_request=_check_path,
            process_response=self._announce,
            server_header=None,
            ping_interval=PING_EVERY,
            ping_timeout=None,  # a client that cannot follow is judged by its backlog
            close_timeout=CLOSE_WITHIN,
            max_size=MAX_MESSAGE,
            write_limit=WRITE_BUFFER,
        )
        if self._wait_for == 0:
            self._speaker = asyncio.create_task(self._speak())

    async def close(self) -> None:
        """End every connection and the clock, within a few seconds."""
        if self._speaker is not None:
            self._speaker.cancel()
            await asyncio.gather(self._speaker, return_exceptions=True)
        for client in self._clients:
            client.mute()
        await asyncio.gather(*(client.end(WENT_AWAY, "") for client in self._clients))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def change(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        """Another pace, from where the clock stands."""
        self.clock.change(speed=speed, paused=paused)
        self._changed.set()

    async def disconnect(self, clean: bool) -> int:
        """End every connection, with a close frame or without; how many there were. What waits is lost."""
        clients = list(self._clients)
        for client in clients:
            client.mute()
            if not clean:
                client.cut()
        if clean:
            await asyncio.gather(*(client.end(WENT_AWAY, "") for client in clients))
        return len(clients)

    def _announce(self, connection: ServerConnection, request: Request, response: Response) -> None:
        response.headers[TAPE_HEADER] = self._identity

    async def _serve(self, connection: ServerConnection) -> None:
        if self._speaker is None:
            self._speaker = asyncio.create_task(self._speak())
        client = Client(connection)
        writer = asyncio.create_task(client.write())
        deadline = asyncio.get_running_loop().call_later(AUTH_DEADLINE, self._too_late, client)
        self._clients.append(client)
        client.status(("connected", "Connected Successfully"))
        try:
            async for message in connection:
                await self._obey(client, message)
        except ConnectionClosed:
            pass
        finally:
            deadline.cancel()
            self._clients.remove(client)
            client.mute()
            self._changed.set()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    async def _obey(self, client: Client, message: str | bytes) -> None:
        try:
            order = _order.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            client.status(("error", "invalid message"))
            return
        if order.action == "auth":
            await self._authenticate(client, order.params)
        elif order.action not in ("subscribe", "unsubscribe"):
            client.status(("error", "unknown action"))
        elif not client.authenticated:
            client.status(("auth_required", "authentication required"))
        else:
            subscribe = self._subscribe if order.action == "subscribe" else self._unsubscribe
            subscribe(client, [topic.strip() for topic in order.params.split(",")])

    async def _authenticate(self, client: Client, key: str) -> None:
        refusal = None
        if not hmac.compare_digest(key.encode(), self._key.encode()):
            refusal = "authentication failed"
        elif not self._plan.channels:
            refusal = (
                "Your plan doesn't include websocket access. Visit https://massive.com/pricing to upgrade."
            )
        if refusal is not None:
            client.status(("auth_failed", refusal))
            await client.below(0, LAST_WORDS)
            client.cut()
            return
        client.authenticated = True
        client.status(("auth_success", "authenticated"))
        limit = self._max_connections
        others = [other for other in self._clients if other.authenticated and other is not client]
        if limit is not None and len(others) >= limit:
            message = (
                "Maximum number of websocket connections exceeded. "
                f"You may only use {limit} connections at a time."
            )
            for older in others[: len(others) - limit + 1]:
                self._dismiss(older, "max_connections", message)

    def _subscribe(self, client: Client, topics: list[str]) -> None:
        """Refusals come first and name no topic; what is unknown or known already gets no answer."""
        refused = []
        confirmed = []
        for topic in topics:
            channel, dot, symbol = topic.partition(".")
            if channel not in CHANNELS or not (dot and symbol) or topic in client.wanted:
                continue
            if channel not in self._plan.channels:
                refused.append(("error", "not authorized"))
                continue
            client.wanted.add(topic)
            confirmed.append(("success", f"subscribed to: {topic}"))
        self._answer(client, refused + confirmed)

    def _unsubscribe(self, client: Client, topics: list[str]) -> None:
        gone = [topic for topic in dict.fromkeys(topics) if topic in client.wanted]
        client.wanted.difference_update(gone)
        self._answer(client, [("success", f"unsubscribed to: {topic}") for topic in gone])

    def _answer(self, client: Client, statuses: list[tuple[str, str]]) -> None:
        if statuses:
            client.status(*statuses)
            client.topics = None
            self._changed.set()

    def _too_late(self, client: Client) -> None:
        if not client.authenticated:
            self._dismiss(client, "auth_timeout", "authentication timed out")

    def _dismiss(self, client: Client, status: str, message: str) -> None:
        """Say why, in the vendor's words, and close."""
        client.mute()
        client.status((status, message))
        self._later(client.end(POLICY, status))

    def _later(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _speak(self) -> None:
        """Say the day, once enough clients listen."""
        try:
            script = await asyncio.to_thread(self._load)
            while sum(bool(client.wanted) for client in self._clients) < self._wait_for:
                await self._change()
            self.clock.start(script.start, script.end)
            await self._say_all(script)
            for client in list(self._clients):
                await client.below(0)
            self.finished.set()
        except Exception:
            _log.exception("The stream broke off.")
            for client in list(self._clients):
                self._later(client.end(BROKEN, "internal error"))

    async def _say_all(self, script: Script) -> None:
        place = 0
        ahead: asyncio.Task[Chunk] | None = None
        while place < len(script):
            wanted = self._wanted(script)
            chunk = await (ahead or asyncio.to_thread(script.chunk, place, wanted))
            # The next one is encoded while this one is said.
            ahead = asyncio.create_task(asyncio.to_thread(script.chunk, chunk.stop, wanted))
            place = -1
            try:
                place = await self._say(script, chunk)
            finally:
                if place != chunk.stop or place == len(script):
                    ahead.cancel()
                    ahead = None

    async def _say(self, script: Script, chunk: Chunk) -> int:
        """Say a chunk as its time comes; the place where the script goes on."""
        cursor = 0
        while True:
            unpaced = self.clock.speed == 0
            if unpaced:
                await self._room()
            wanted = self._wanted(script)
            covered = chunk.covers(wanted)
            now = self.clock.now()
            idle = unpaced and not (covered and any(client.wanted for client in self._clients))
            if idle or not self.clock.running:
                stop = cursor
            elif unpaced:
                stop = min(cursor + MAX_EVENTS, len(chunk.at))
            else:
                stop = int(np.searchsorted(chunk.at, now, side="right"))
            if stop > cursor:
                self._send(chunk, cursor, stop)
                self.clock.said(int(chunk.at[stop - 1]))
                cursor = stop
            if not covered:
                # Somebody subscribed to what is not in this chunk: go on from here with another.
                place = chunk.first if cursor == 0 else int(chunk.places[cursor - 1]) + 1
                return place if unpaced else max(place, int(np.searchsorted(script.at, now, side="right")))
            if idle or not self.clock.running:
                await self._change()
                continue
            over = cursor == len(chunk.at)
            if over and (unpaced or now >= script.at[chunk.stop - 1]):
                return chunk.stop
            if not unpaced:
                due = int(script.at[chunk.stop - 1] if over else chunk.at[cursor])
                await self._change(max(COALESCE, (due - now) / SECOND / self.clock.speed))

    def _send(self, chunk: Chunk, first: int, stop: int) -> None:
        """Give every client what it hears of these events; clients that hear the same share the messages."""
        made: dict[bytes, list[bytes]] = {}
        for client in list(self._clients):
            if client.topics is None or not client.wanted:
                continue
            heard = client.topics.tobytes()
            if heard not in made:
                made[heard] = list(framed(chunk.heard(client.topics, first, stop)))
            client.say(made[heard])
            if self.clock.speed and client.backlog > MAX_BACKLOG:
                self._dismiss(client, "slow_consumer", "slow consumer")

    def _wanted(self, script: Script) -> Mask:
        """The topics that anybody hears."""
        for client in self._clients:
            if client.topics is None:
                client.topics = script.topics(client.wanted)
        heard = [client.topics for client in self._clients if client.topics is not None]
        return np.logical_or.reduce(heard) if heard else script.topics(set())

    async def _room(self) -> None:
        """Wait until every client has room; one that takes nothing for too long is cut."""
        for client in list(self._clients):
            if client.wanted and not await client.below(HIGH_WATER):
                self._dismiss(client, "slow_consumer", "slow consumer")

    async def _change(self, seconds: float | None = None) -> None:
        """Wait until a client or a control changes something, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()


def _check_path(connection: ServerConnection, request: Request) -> Response | None:
    known = request.path.partition("?")[0].rstrip("/") == MARKET_PATH
    return None if known else connection.respond(404, _NO_ROUTE)
