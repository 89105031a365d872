"""Who speaks the script: to every client what it hears, when it is due on the exchange's clock.

Paced, a client that cannot follow is cut as a slow consumer; unpaced, the slowest client sets the pace. A
script that still grows is spoken as it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from tapelab.exchange.stream.client import Client, framed
from tapelab.exchange.stream.script import CHUNK, Mask, Script
from tapelab.exchange.stream.tapeclock import UNPACED, TapeClock
from tapelab.exchange.stream.voice import Voice

MAX_BACKLOG = 16 << 20  # bytes waiting for a client: paced, more than this cuts it
HIGH_WATER = 2 << 20  # unpaced, the clock waits above this
COALESCE = 0.001  # seconds; what is due within this goes into the same message
LOOK_AGAIN = 0.01  # seconds until a script that grows is looked at again
PACED_CHUNK = 2_048  # events encoded at a time where a pause would make others late

REAL_TIME = 0  # ns behind the exchange's clock


class Speaker:
    """Says a script to `clients`. `changed` is set whenever one of them, or the clock, has changed.

    `too_slow` cuts a client; `finished` is called each time that all was said and taken.
    """

    def __init__(
        self,
        script: Script,
        clock: TapeClock,
        clients: Sequence[Client],
        changed: asyncio.Event,
        too_slow: Callable[[Client], None],
        finished: Callable[[], None],
    ) -> None:
        self._script = script
        self._clock = clock
        self._clients = clients
        self._changed = changed
        self._too_slow = too_slow
        self._finished = finished
        self._voices: dict[int, Voice] = {}
        self._ending: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        """The clock was started or set: speak from there."""
        self._voices = {}
        self._wanted()
        for voice in self._voices.values():
            voice.begin(self._clock.begun)
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    async def run(self) -> None:
        """Speak, until cancelled."""
        while True:
            seconds = await self._step()
            if seconds == 0:
                await asyncio.sleep(0)
            else:
                await self._change(seconds)

    async def _step(self) -> float | None:
        """Say what is due; gives the seconds until there is more to do, None if not before a change."""
        if not self._clock.running:
            return None
        if self._patient:
            await self._room()
        wanted, voices = self._wanted(), self._voices
        for delay, voice in list(voices.items()):
            if delay in wanted:
                most = CHUNK if self._patient else PACED_CHUNK
                await voice.prepare(wanted[delay], self._clock.now(), most)
            else:
                await voice.rest()
        wanted = self._wanted()  # somebody may have come, gone or jumped meanwhile
        if self._voices is not voices:
            return 0
        speaking = [voice for delay, voice in voices.items() if delay in wanted and not voice.over]
        self._move(speaking)
        now = self._clock.now()
        said = [self._send(voice, now) for voice in speaking]
        told = bool(voices) and all(voice.over for voice in voices.values())
        if not speaking and (wanted or (told if self._patient else now >= self._script.end)):
            self._end()
            return None
        if self._script.grows:
            return 0 if any(said) else LOOK_AGAIN
        if self._patient:
            return 0 if speaking else None
        due = min((voice.next_due or now for voice in speaking), default=self._script.end)
        return max(COALESCE, self._clock.seconds_to(due))

    @property
    def _patient(self) -> bool:
        """Whether the clients set the pace."""
        return self._clock.speed == UNPACED and not self._script.grows

    def _wanted(self) -> dict[int, Mask]:
        """What anybody hears, by how far they are behind; each of these has a voice."""
        topics = self._script.topics
        heard: dict[int, dict[bytes, Mask]] = {}
        if self._script.grows:
            heard[REAL_TIME] = {b"": np.zeros(len(topics), dtype=np.bool_)}
        for client in self._clients:
            if client.account is None or not client.wanted:
                continue
            if client.hears is None or len(client.hears) < len(topics):
                client.hears = topics.heard(client.wanted)
                client.alike = client.hears.tobytes()
            heard.setdefault(client.account.plan.delay, {})[client.alike] = client.hears
        wanted = {delay: np.logical_or.reduce(list(masks.values())) for delay, masks in heard.items()}
        for delay in wanted.keys() - self._voices.keys():
            self._voices[delay] = Voice(self._script, delay)
        return wanted

    def _move(self, speaking: list[Voice]) -> None:
        """Move an unpaced clock on: as far as every voice can follow in a step, or with what has arrived."""
        if self._script.grows:
            speaking = [voice for voice in speaking if voice.delay == REAL_TIME] or speaking
        ahead = [at for voice in speaking if (at := voice.horizon) is not None]
        if ahead:
            self._clock.said(min(ahead))

    def _send(self, voice: Voice, now: int) -> bool:
        """Give every client what it hears of what is due; those that hear the same share the messages."""
        due = voice.due(now)
        if due is None:
            return False
        chunk, first, stop = due
        made: dict[bytes, list[bytes]] = {}
        for client in list(self._clients):
            if client.account is None or client.hears is None or client.account.plan.delay != voice.delay:
                continue
            if client.alike not in made:
                made[client.alike] = list(framed(chunk.heard(client.hears, first, stop)))
            client.say(made[client.alike])
            if not self._patient and client.backlog > MAX_BACKLOG:
                self._too_slow(client)
        return True

    async def _room(self) -> None:
        """Wait until every client has room; one that takes nothing for too long is cut."""
        for client in list(self._clients):
            if client.wanted and not await client.below(HIGH_WATER):
                self._too_slow(client)

    def _end(self) -> None:
        """All was said: wait, beside, until it is taken."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._taken())

    async def _taken(self) -> None:
        for client in list(self._clients):
            await client.below(0)
            client.over()
            await client.below(0)
        self._finished()

    async def _change(self, seconds: float | None) -> None:
        """Wait until a client or the clock changes, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()
