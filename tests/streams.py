"""A small live stream for the tests: a real `websockets` server that speaks the vendor's handshake."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from tapelab.settings import Settings

KEY = "throw-away-key-of-a-test"
WAIT = 60.0  # seconds; no test waits longer for anything, on however busy a machine


def status(name: str, message: str) -> dict[str, str]:
    return {"ev": "status", "status": name, "message": message}


def quote(n: int, symbol: str = "AAPL", *, start: int = 1_700_000_000_000) -> dict[str, Any]:
    """The n-th quote of a made-up tape: a millisecond later, its sequence is its number."""
    return {
        "ev": "Q", "sym": symbol, "bx": 4, "bp": 100 + n % 50 / 100, "bs": 1 + n % 7, "ax": 7,
        "ap": round(100.02 + n % 50 / 100, 2), "as": 2, "c": 0, "t": start + n, "q": n, "z": 3,
    }  # fmt: skip


def trade(n: int, symbol: str = "AAPL", *, start: int = 1_700_000_000_000) -> dict[str, Any]:
    return {
        "ev": "T", "sym": symbol, "x": 4, "i": str(n), "z": 3, "p": 100.01 + n % 50 / 100, "s": 10 + n % 5,
        "c": [0], "t": start + n, "q": n,
    }  # fmt: skip


def message(*events: dict[str, Any]) -> bytes:
    return json.dumps(events, separators=(",", ":")).encode()


def both(n: int) -> bytes:
    """A message of a quote and a trade."""
    return message(quote(n), trade(n))


class Vendor:
    """The server, in a thread of its own. `told`: every message for subscribers, in order."""

    def __init__(
        self,
        *,
        key: str = KEY,
        refused: Iterable[str] = (),
        streams: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.key, self.refused, self.streams, self.tls = key, set(refused), streams, tls
        self.told: list[bytes] = []
        self.pongs: list[bytes] = []
        self.heard: list[dict[str, str]] = []
        self.connections = 0
        self.one_only = False
        self.tape = "simulated seed=1"
        self.url = ""
        self._subscribed: dict[ServerConnection, set[str]] = {}
        self._loop = asyncio.new_event_loop()
        self._server: Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Vendor:
        self._thread.start()
        self.port = self._run(self._begin(0))
        self.url = f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        self.away()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT)
        self._loop.close()

    def away(self) -> None:
        """Nobody listens any more."""
        if self._server is not None:
            self._run(self._end())

    def back(self) -> None:
        self._run(self._begin(self.port))

    def tell(self, *messages: bytes) -> None:
        """Send messages to every subscriber; returns when they are handed to the network."""
        self._run(self._tell(messages))

    def tell_raw(self, raw: bytes) -> None:
        """Bytes straight to the socket, whatever they are."""
        for connection in list(self._subscribed):
            self._loop.call_soon_threadsafe(connection.transport.write, raw)

    def cut(self) -> None:
        """Every connection breaks without a close frame."""
        self._run(self._cut())

    def cut_oldest(self) -> None:
        """The connection that has been subscribed for longest breaks; others go on."""
        self._run(self._cut(1))

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Every connection is closed in order."""
        self._run(self._close(code, reason))

    def await_subscribers(self, count: int = 1) -> None:
        until(lambda: len(self._subscribed) >= count)

    @property
    def subscribed(self) -> set[str]:
        return set().union(*self._subscribed.values()) if self._subscribed else set()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT)

    async def _begin(self, port: int) -> int:
        def announce(connection: ServerConnection, request: Any, response: Any) -> None:
            response.headers["X-Tapelab-Tape"] = self.tape

        self._server = await serve(
            self._talk,
            "127.0.0.1",
            port,
            compression=None,
            process_response=announce,
            ping_interval=None,
            ssl=self.tls,
        )
        return int(next(iter(self._server.sockets)).getsockname()[1])

    async def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await self._cut()
            server.close()
            await server.wait_closed()

    async def _talk(self, ws: ServerConnection) -> None:
        self.connections += 1
        try:
            await self._conversation(ws)
        except ConnectionClosed:
            pass
        finally:
            self._subscribed.pop(ws, None)

    async def _conversation(self, ws: ServerConnection) -> None:
        await ws.send(message(status("connected", "Connected Successfully")).decode())
        async for text in ws:
            said = json.loads(text)
            self.heard.append(said)
            if said["action"] == "auth":
                if not await self._login(ws, said["params"]):
                    return
            else:
                await self._topics(ws, said["action"], said["params"].split(","))

    async def _login(self, ws: ServerConnection, key: str) -> bool:
        if key != self.key or not self.streams:
            text = "authentication failed" if self.streams else (
                "Your plan doesn't include websocket access. Visit https://massive.com/pricing to upgrade."
            )  # fmt: skip
            await ws.send(message(status("auth_failed", text)).decode())
            ws.transport.abort() if self.streams else await ws.close()
            return False
        if self.one_only:
            for older in list(self._subscribed):
                text = "Maximum number of websocket connections exceeded."
                await older.send(message(status("max_connections", text)).decode())
                await older.close(1008, "max_connections")
        await ws.send(message(status("auth_success", "authenticated")).decode())
        return True

    async def _topics(self, ws: ServerConnection, action: str, topics: list[str]) -> None:
        mine = self._subscribed.get(ws, set())
        allowed = [topic for topic in topics if topic.split(".")[0] not in self.refused]
        answers = [status("error", "not authorized")] * (len(topics) - len(allowed))
        if action == "subscribe":
            answers += [status("success", f"subscribed to: {topic}") for topic in allowed]
            mine |= set(allowed)
        else:
            answers += [status("success", f"unsubscribed to: {topic}") for topic in allowed]
            mine -= set(allowed)
        self._subscribed[ws] = mine
        await ws.send(message(*answers).decode())

    async def _tell(self, messages: Iterable[bytes]) -> None:
        for payload in messages:
            if self._subscribed:
                self.told.append(payload)
            for ws in list(self._subscribed):
                with suppress(ConnectionClosed):
                    await ws.send(payload.decode())

    async def _cut(self, most: int | None = None) -> None:
        for ws in list(self._subscribed)[:most]:
            ws.transport.abort()
            self._subscribed.pop(ws, None)

    async def _close(self, code: int, reason: str) -> None:
        for ws in list(self._subscribed):
            self._subscribed.pop(ws, None)
            await ws.close(code, reason)


class Flood:
    """A vendor that sends one block of frames over and over, as fast as it is taken.

    `patience`: a client that takes nothing for so many seconds is cut, with what still waits for it lost.
    `pause`: seconds between pieces of 64 KiB.
    """

    def __init__(self, block: bytes, *, patience: float = WAIT, pause: float = 0) -> None:
        self.block, self.patience, self.pause = block, patience, pause
        self.connections = 0
        self.cut = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._server.getsockname()[1]}"
        self._over = False

    def __enter__(self) -> Flood:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(self.patience)
        linger = struct.pack("ii", 1, 0)  # closing forgets what was not taken, as an abrupt end does
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with client, suppress(ConnectionError, TimeoutError, EOFError):
            greet(client)
            self.connections += 1
            view = memoryview(self.block)
            for at in itertools.cycle(range(0, len(view), 2**16)):
                if self._over:
                    return
                if self.pause:
                    time.sleep(self.pause)
                piece = view[at : at + 2**16]
                while piece:
                    try:
                        piece = piece[client.send(piece) :]
                    except TimeoutError:
                        self.cut += 1
                        return


def greet(client: socket.socket) -> None:
    """The vendor's side of the handshake, the login and the topics, on a plain socket."""
    protocol = ServerProtocol()

    def say(*events: dict[str, Any]) -> None:
        if events:
            protocol.send_text(message(*events))
        for data in protocol.data_to_send():
            client.sendall(data)

    while True:
        heard = client.recv(65536)
        if not heard:
            raise EOFError
        protocol.receive_data(heard)
        for event in protocol.events_received():
            if protocol.state is not OPEN:
                protocol.send_response(protocol.accept(event))
                say(status("connected", "Connected Successfully"))
                continue
            asked = json.loads(event.data)
            if asked["action"] == "auth":
                say(status("auth_success", "authenticated"))
            else:
                say(*(status("success", f"subscribed to: {topic}") for topic in asked["params"].split(",")))
                return


def settings_for(vendor: Vendor, home: Path, key: str = KEY) -> Settings:
    """Settings that know this vendor and nothing else."""
    return Settings.load(
        api_key=key,
        ws_url=vendor.url,
        rest_url="http://127.0.0.1:1",
        s3_endpoint="http://127.0.0.1:2",
        home=home,
    )


@contextmanager
def firehose(vendor: Vendor, make: Callable[[int], bytes]) -> Iterator[threading.Event]:
    """Tell messages one after the other, as fast as they are taken, until the block ends."""
    stop = threading.Event()

    def pour() -> None:
        n = 0
        while not stop.is_set():
            vendor.tell(*(make(n + k) for k in range(20)))
            n += 20

    thread = threading.Thread(target=pour, daemon=True)
    thread.start()
    try:
        yield stop
    finally:
        stop.set()
        thread.join(WAIT)


def until(condition: Callable[[], object]) -> None:
    """Wait, a bounded time, until something is so."""
    end = time.monotonic() + WAIT
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come in time")
        time.sleep(0.01)
