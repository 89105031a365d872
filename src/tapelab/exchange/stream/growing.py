"""The script of a recording that still grows: one paid connection, any number of programs.

It is what the recording receives, event by event as it comes, bytes unchanged, from the moment it was opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tapelab.exchange.stream.script import Ints, Part, Script, Topics
from tapelab.exchange.tape.growing import GrowingTape
from tapelab.market.clock import MILLISECOND
from tapelab.massive.wire.columns import NOT_JSON
from tapelab.store.journal import Follower, Message, last_sequence

FOREVER = 1 << 62
_IN_NANOSECONDS = frozenset({"LULD", "NOI"})  # the other channels stamp in milliseconds


class GrowingScript(Script):
    """What a recording receives from now on; `ended` once it has."""

    grows = True

    def __init__(self, tape: GrowingTape) -> None:
        self.topics = Topics(tests_too=tape.simulated)
        self.start = tape.newest
        self.end = FOREVER
        self.ended = False
        self._journal = tape.journal
        self._live = last_sequence(tape.journal)

    def part(self, since: int) -> Part | None:
        """What arrives; or, for who is behind, what arrived earlier, from the beginning of the journal."""
        reading = _Reading(self, self._journal, self._live if since >= self.start else -1, self.start)
        return Part(np.empty(0, np.int64), np.empty(0, np.int32), lambda places: [], reading.following)


class _Head(msgspec.Struct):
    """What tells whose event it is and when; bars are stamped with their end."""

    ev: str
    sym: str = ""
    T: str = ""
    t: int | float = 0
    e: int | float = 0

    @property
    def at(self) -> int:
        return round((self.t or self.e) * (1 if self.ev in _IN_NANOSECONDS else MILLISECOND))


_head = msgspec.json.Decoder(_Head)
_events = msgspec.json.Decoder(list[msgspec.Raw])


class _Reading:
    """One reading of a journal, from behind the record `after`."""

    def __init__(self, script: GrowingScript, journal: Path, after: int, at: int) -> None:
        self._script = script
        self._follower = Follower(journal, after=after)
        self._at = at if after >= 0 else 0

    def following(self) -> Part | None:
        """The events that have come since; None if there are none yet."""
        while True:
            live = self._follower.is_live()  # looked at before reading: nothing is missed
            items = self._follower.read()
            if not items:
                self._script.ended = self._script.ended or not live or self._follower.final
                return None
            found = [pair for item in items if isinstance(item, Message) for pair in _told(item.payload)]
            if found:
                return self._part(found)

    def _part(self, found: list[tuple[_Head, bytes]]) -> Part:
        stamps = np.array([self._at, *(head.at for head, _ in found)], dtype=np.int64)
        at = np.maximum.accumulate(stamps)[1:]
        self._at = int(at[-1])
        number = self._script.topics.number
        topics = np.array([number(head.ev, head.sym or head.T) for head, _ in found], dtype=np.int32)

        def encoded(places: Ints) -> list[bytes]:
            return [found[n][1] for n in places.tolist()]

        return Part(at, topics, encoded, self.following)


def _told(message: bytes) -> Iterator[tuple[_Head, bytes]]:
    """The events of a message; what is malformed stays in the recording."""
    try:
        events = _events.decode(message)
    except NOT_JSON:
        return
    for event in events:
        try:
            head = _head.decode(event)
        except NOT_JSON:
            continue
        if head.ev != "status":
            yield head, bytes(event)
