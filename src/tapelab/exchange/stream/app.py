"""The WebSocket for stocks: the vendor's handshake, subscriptions and refusals, around a script and a clock.

What is said while a client is away is lost to it, as at the vendor.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence

import msgspec
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from tapelab.exchange.faults import NO_FAULTS, Faults
from tapelab.exchange.plans import Account
from tapelab.exchange.stream.client import CLOSE_WITHIN, LAST_WORDS, WENT_AWAY, Client
from tapelab.exchange.stream.script import Script
from tapelab.exchange.stream.speaker import Speaker
from tapelab.exchange.stream.tapeclock import TapeClock
from tapelab.exchange.tape import TAPE_HEADER
from tapelab.massive.wire.columns import NOT_JSON

MARKET_PATH = "/stocks"

MAX_MESSAGE = 1 << 20  # bytes from a client
MAX_TOPICS = 100_000  # of one client; all US stocks on all channels are fewer
LONGEST_TOPIC = 64  # characters
WRITE_BUFFER = 1 << 20
AUTH_DEADLINE = 30.0  # seconds
SLOW_WORDS = 5.0  # seconds in which a client that was too slow may still take the reason
PING_EVERY = 20.0

POLICY, BROKEN = 1008, 1011

# What exists at the vendor for stocks. No tape holds NOI: accepted, and silent.
CHANNELS = frozenset({"T", "Q", "A", "AM", "LULD", "NOI", "FMV", "LV"})

_NO_ROUTE = "404 page not found\n"
_log = logging.getLogger(__name__)


class _Order(msgspec.Struct):
    action: str
    params: str = ""


_order = msgspec.json.Decoder(_Order)


class Stream:
    """The streaming side of the exchange; lives in one asyncio loop.

    `load` makes the script, in a thread, when the first client comes. The clock starts with the `wait_for`-th
    subscribed client; 0: at once. `finished` is set when all has been said and taken.
    """

    def __init__(
        self,
        identity: str,
        accounts: Sequence[Account],
        load: Callable[[], Script],
        clock: TapeClock,
        *,
        wait_for: int = 1,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.finished = threading.Event()
        self.clock = clock
        self._identity = identity
        self._accounts = accounts
        self._load = load
        self._wait_for = wait_for
        self._faults = faults
        self._numbers = itertools.count(1)
        self._clients: list[Client] = []
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._speaking: asyncio.Task[None] | None = None
        self._speaker: Speaker | None = None
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
            self._speaking = asyncio.create_task(self._speak())

    async def close(self) -> None:
        """End every connection and the clock, within a few seconds."""
        if self._speaking is not None:
            self._speaking.cancel()
            await asyncio.gather(self._speaking, return_exceptions=True)
        for client in self._clients:
            client.mute()
        await asyncio.gather(*(client.end(WENT_AWAY, "") for client in self._clients))
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    def change(
        self, *, speed: float | None = None, paused: bool | None = None, to: int | None = None
    ) -> None:
        """Another pace, from where the clock stands, or from the moment `to`."""
        self.clock.change(speed=speed, paused=paused)
        if to is not None:
            self.clock.jump(to)
            self.finished.clear()
            if self._speaker is not None:
                self._speaker.begin()
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
        if self._speaking is None:
            self._speaking = asyncio.create_task(self._speak())
        client = Client(connection, self._faults.stream(next(self._numbers)))
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
        except NOT_JSON:
            client.status(("error", "invalid message"))
            return
        if order.action == "auth":
            await self._authenticate(client, order.params)
        elif order.action not in ("subscribe", "unsubscribe"):
            client.status(("error", "unknown action"))
        elif client.account is None:
            client.status(("auth_required", "authentication required"))
        else:
            subscribe = self._subscribe if order.action == "subscribe" else self._unsubscribe
            subscribe(client, client.account, [topic.strip() for topic in order.params.split(",")])

    async def _authenticate(self, client: Client, key: str) -> None:
        account = None
        for known in self._accounts:
            if hmac.compare_digest(key.encode(), known.api_key.encode()):
                account = known
        refusal = None
        if account is None:
            refusal = "authentication failed"
        elif not account.plan.channels:
            refusal = (
                "Your plan doesn't include websocket access. Visit https://massive.com/pricing to upgrade."
            )
        if refusal is not None:
            client.status(("auth_failed", refusal))
            await client.below(0, LAST_WORDS)
            client.cut()
            return
        assert account is not None
        client.account = account
        client.status(("auth_success", "authenticated"))
        limit = account.connections
        others = [other for other in self._clients if other.account is account and other is not client]
        if limit is not None and len(others) >= limit:
            message = (
                "Maximum number of websocket connections exceeded. "
                f"You may only use {limit} connections at a time."
            )
            for older in others[: len(others) - limit + 1]:
                self._dismiss(older, "max_connections", message)

    def _subscribe(self, client: Client, account: Account, topics: list[str]) -> None:
        """Refusals come first and name no topic; what is unknown or known already gets no answer."""
        refused = []
        confirmed = []
        for topic in topics:
            channel, dot, symbol = topic.partition(".")
            if channel not in CHANNELS or not (dot and symbol) or topic in client.wanted:
                continue
            if channel not in account.plan.channels:
                refused.append(("error", "not authorized"))
            elif len(client.wanted) >= MAX_TOPICS:
                refused.append(("error", "too many subscriptions"))
            elif len(topic) <= LONGEST_TOPIC:
                client.wanted.add(topic)
                confirmed.append(("success", f"subscribed to: {topic}"))
        self._answer(client, refused + confirmed)

    def _unsubscribe(self, client: Client, account: Account, topics: list[str]) -> None:
        gone = [topic for topic in dict.fromkeys(topics) if topic in client.wanted]
        client.wanted.difference_update(gone)
        self._answer(client, [("success", f"unsubscribed to: {topic}") for topic in gone])

    def _answer(self, client: Client, statuses: list[tuple[str, str]]) -> None:
        if statuses:
            client.status(*statuses)
            client.hears = None
            self._changed.set()

    def _too_late(self, client: Client) -> None:
        if client.account is None:
            self._dismiss(client, "auth_timeout", "authentication timed out")

    def _too_slow(self, client: Client) -> None:
        self._dismiss(client, "slow_consumer", "slow consumer", SLOW_WORDS)

    def _dismiss(self, client: Client, status: str, message: str, patience: float = LAST_WORDS) -> None:
        """Say why, in the vendor's words, and close."""
        client.mute()
        client.status((status, message))
        self._later(client.end(POLICY, status, patience))

    def _later(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _speak(self) -> None:
        """Say the script, once enough clients listen."""
        script = None
        try:
            script = await _loaded(self._load)
            while sum(bool(client.wanted) for client in self._clients) < self._wait_for:
                await self._changed.wait()
                self._changed.clear()
            longest = max(account.plan.delay for account in self._accounts)
            self.clock.start(script.start, script.end + longest)
            self._speaker = Speaker(
                script, self.clock, self._clients, self._changed, self._too_slow, self.finished.set
            )
            await self._speaker.run()
        except Exception:
            _log.exception("The stream broke off.")
            for client in list(self._clients):
                self._later(client.end(BROKEN, "internal error"))
        finally:
            if script is not None:
                script.close()


async def _loaded(load: Callable[[], Script]) -> Script:
    """The script, made in a thread that nobody has to wait for: a large day takes minutes."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Script] = loop.create_future()

    def tell(script: Script | None, error: Exception | None) -> None:
        if made.done():
            if script is not None:
                script.close()
        elif error is not None:
            made.set_exception(error)
        elif script is not None:
            made.set_result(script)

    def work() -> None:
        script, error = None, None
        try:
            script = load()
        except Exception as caught:  # told to who waits for it
            error = caught
        try:
            loop.call_soon_threadsafe(tell, script, error)
        except RuntimeError:  # the exchange was closed meanwhile
            if script is not None:
                script.close()

    threading.Thread(target=work, name="tapelab-script", daemon=True).start()
    return await made


def _check_path(connection: ServerConnection, request: Request) -> Response | None:
    known = request.path.partition("?")[0].rstrip("/") == MARKET_PATH
    return None if known else connection.respond(404, _NO_ROUTE)
