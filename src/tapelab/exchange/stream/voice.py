"""The script as it is said to those who are equally far behind the exchange's clock."""

from __future__ import annotations

import asyncio

import numpy as np

from tapelab.exchange.stream.script import Chunk, Mask, Part, Script

MAX_STEP = 1_000  # events by which an unpaced clock moves on


class Voice:
    """Where a reading of the script stands. It is `delay` ns behind the exchange's clock.

    `prepare` has the next events encoded, in a thread and ahead of time; `due` gives those whose time has
    come. While nobody listens it `rest`s, and then goes on from where the clock stands.
    """

    def __init__(self, script: Script, delay: int) -> None:
        self.delay = delay
        self.over = False  # there is nothing more to say
        self.chunk: Chunk | None = None
        self._script = script
        self._part: Part | None = None  # where it begins, as long as there is no chunk
        self._cursor = 0  # in the chunk
        self._said = -1  # all until then has been said, or is missed; by the script's stamps
        self._resting = True
        self._ahead: asyncio.Task[Chunk | None] | None = None

    @property
    def next_due(self) -> int | None:
        """When, on the exchange's clock, there is something to do; None if not before something changes."""
        chunk = self.chunk
        if chunk is None:
            return None
        at = int(chunk.at[self._cursor]) if self._cursor < len(chunk) else chunk.last
        return at + self.delay

    @property
    def horizon(self) -> int | None:
        """How far an unpaced clock may go in one step."""
        chunk = self.chunk
        if chunk is None or self._cursor == len(chunk):
            return self.next_due
        return int(chunk.at[min(self._cursor + MAX_STEP, len(chunk)) - 1]) + self.delay

    def begin(self, at: int) -> None:
        """Miss nothing from the moment `at` of the exchange's clock on."""
        self._said, self._resting = at - self.delay, False

    async def rest(self) -> None:
        """Nobody listens. If those who did have heard the last of it, it is over."""
        self._resting = True
        if self._ahead is not None and self.chunk is not None and self._cursor == len(self.chunk):
            self.over = self.over or await self._ahead is None

    async def prepare(self, wanted: Mask, now: int, most: int) -> None:
        """Have the next events encoded, with all that is wanted among them, at `most` so many at a time."""
        if self._resting:
            self._said = max(self._said, now - self.delay)
        while not self.over:
            ended = self._script.ended  # looked at before reading: nothing is missed
            if self._resting or self.chunk is None or not self.chunk.covers(wanted):
                found = await asyncio.to_thread(self._again, wanted, most)
                self._resting = False
            elif self._cursor == len(self.chunk) and now - self.delay >= self.chunk.last:
                found = await (self._ahead or asyncio.to_thread(_behind, self.chunk, wanted, most))
            else:
                return
            self._ahead = None
            if found is None:
                self.over = ended
                return
            self.chunk, self._cursor, self._part = found, 0, None
            if not self._script.grows:
                self._ahead = asyncio.create_task(asyncio.to_thread(_behind, found, wanted, most))
                self._ahead.add_done_callback(_noted)

    def due(self, now: int) -> tuple[Chunk, int, int] | None:
        """What is to be said by now: a chunk and the places in it; each event is given once."""
        self._said = max(self._said, now - self.delay)
        if self.chunk is None:
            return None
        first = self._cursor
        self._cursor = max(first, int(np.searchsorted(self.chunk.at, now - self.delay, side="right")))
        return (self.chunk, first, self._cursor) if self._cursor > first else None

    def _again(self, wanted: Mask, most: int) -> Chunk | None:
        """Go on from the first event that was not said yet, for others than before."""
        part, place = self._here()
        self._part = part
        while part is not None and part.place(self._said) == len(part):
            later = part.following()
            if later is None:
                break
            part, place = later, 0
        return None if part is None else part.chunk(max(place, part.place(self._said)), wanted, most)

    def _here(self) -> tuple[Part | None, int]:
        chunk = self.chunk
        if chunk is None:
            return (self._script.part(self._said) if self._part is None else self._part), 0
        if self._cursor == 0:
            return chunk.part, chunk.first
        return chunk.part, int(chunk.places[self._cursor - 1]) + 1


def _behind(chunk: Chunk, wanted: Mask, most: int) -> Chunk | None:
    return chunk.part.chunk(chunk.stop, wanted, most)


def _noted(ahead: asyncio.Task[Chunk | None]) -> None:
    """What went wrong ahead of time is told to who asks for it, if anybody does."""
    if not ahead.cancelled():
        ahead.exception()
