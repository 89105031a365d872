"""One connection of the stream: what it is subscribed to, and what waits to be sent to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from tapelab.exchange.faults.stream import Act, Cut, Send, Stall, StreamFaults
from tapelab.exchange.plans import Account
from tapelab.exchange.stream.script import Mask
from tapelab.massive import wire

MAX_FRAME = 1_000_000  # bytes; Go's client reads no more
MAX_EVENTS = 1_000  # in one frame
STUCK_AFTER = 30.0  # seconds in which a client has to take something
LAST_WORDS = 1.0  # seconds to get a final status out
CLOSE_WITHIN = 1.0  # seconds for the closing handshake

WENT_AWAY = 1001


class Client:
    """A connection with its queue. `hears` is None while the topics have to be worked out anew.

    `account` is whose key it has logged in with; None before.
    """

    def __init__(self, connection: ServerConnection, faults: StreamFaults) -> None:
        self.connection = connection
        self.account: Account | None = None
        self.wanted: set[str] = set()
        self.hears: Mask | None = None
        self.alike = b""  # the same for clients that hear the same
        self.backlog = 0  # bytes that wait
        self._faults = faults
        self._sent = 0
        self._stalled = False  # by a fault, so it is not the client that is slow
        self._moved = asyncio.Event()
        self._frames: deque[tuple[bytes, bool]] = deque()  # and whether it is data
        self._waiting = asyncio.Event()

    def say(self, frames: Iterable[bytes], *, data: bool = True) -> None:
        """Send these, after what waits already."""
        for frame in frames:
            self._frames.append((frame, data))
            self.backlog += len(frame)
        self._waiting.set()

    def status(self, *statuses: tuple[str, str]) -> None:
        """Send status events (`status`, `message`) as one message."""
        self.say(framed([wire.status_event(*status) for status in statuses]), data=False)

    def over(self) -> None:
        """Nothing more is said: what a fault has held back is due."""
        for act in self._faults.rest():
            if isinstance(act, Send):
                self.say([act.frame], data=False)

    def mute(self) -> None:
        """Drop what waits, and let nothing more come but last words."""
        self.account = None
        self.wanted.clear()
        self.hears = None
        self._frames.clear()
        self.backlog = 0
        self._moved.set()

    async def write(self) -> None:
        """Send what waits, in order, until the connection ends."""
        with suppress(ConnectionClosed):
            while True:
                while self._frames:
                    frame, data = self._frames.popleft()
                    for act in self._faults.through(frame) if data else (Send(frame),):
                        await self._do(act)
                    self.backlog = max(0, self.backlog - len(frame))
                    self._sent += 1
                    self._moved.set()
                self._waiting.clear()
                await self._waiting.wait()

    async def _do(self, act: Act) -> None:
        match act:
            case Send(frame):
                await self.connection.send(frame, text=True)
            case Stall(seconds):
                self._stalled = True
                await asyncio.sleep(seconds)
                self._stalled = False
            case Cut(clean=True):
                self.mute()
                await self.end(WENT_AWAY, "")
            case Cut():
                self.mute()
                self.cut()

    async def below(self, limit: int, patience: float | None = None) -> bool:
        """Wait until no more than `limit` bytes wait; False if the client takes nothing for `patience` s."""
        patience = STUCK_AFTER if patience is None else patience
        while self.backlog > limit:
            before = self._sent
            self._moved.clear()
            try:
                async with asyncio.timeout(patience):
                    await self._moved.wait()
            except TimeoutError:
                if self._sent == before and not self._stalled:
                    return False
        return True

    async def end(self, code: int, reason: str, patience: float = LAST_WORDS) -> None:
        """Let what waits go out, then close; a client that does not take it is cut."""
        await self.below(0, patience)
        try:
            async with asyncio.timeout(patience + CLOSE_WITHIN):
                await self.connection.close(code, reason)
        except TimeoutError:
            self.cut()

    def cut(self) -> None:
        """End the TCP connection without a close frame."""
        self.connection.transport.abort()


def framed(events: Sequence[bytes]) -> Iterator[bytes]:
    """Events as messages that every client can read."""
    for first in range(0, len(events), MAX_EVENTS):
        yield from _bounded(events[first : first + MAX_EVENTS])


def _bounded(events: Sequence[bytes]) -> Iterator[bytes]:
    frame = wire.frame(events)
    if len(frame) < MAX_FRAME or len(events) == 1:
        yield frame
        return
    half = len(events) // 2
    yield from _bounded(events[:half])
    yield from _bounded(events[half:])
