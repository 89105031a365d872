"""What the stream says, in which order and when: runs of events, encoded by the chunk.

Ticks come in order of arrival; each is said when the exchange's clock stood at the latest stamp until then. A
bar is said at its end, before anything that happened from then on.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from tapelab.market import symbols

Ints = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]
Encode = Callable[[Ints], list[bytes]]
Run = tuple[Ints, Numbers, Encode]  # of a part: when each event is said, its topic, how to encode it

CHUNK = 16_384  # events encoded at a time


class Topics:
    """Every topic of a script, such as `T.AAPL`, by number. More may come while a script grows.

    Test symbols are left out of wildcards, unless the market is made of them.
    """

    def __init__(self, *, tests_too: bool) -> None:
        self._tests_too = tests_too
        self._numbers: dict[str, int] = {}
        self._in_wildcard: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, channel: str, symbol: str) -> int:
        """The number of a topic, a new one if it has none."""
        name = f"{channel}.{symbol}"
        known = self._numbers.get(name)
        if known is not None:
            return known
        number = self._numbers[name] = len(self._numbers)
        if self._tests_too or not symbols.is_test(symbol):
            self._in_wildcard.setdefault(channel, []).append(number)
        return number

    def heard(self, wanted: set[str]) -> Mask:
        """Which topics a client hears that subscribed to `wanted`, such as `T.AAPL` or `Q.*`."""
        heard = np.zeros(len(self), dtype=np.bool_)
        for name in wanted:
            if name.endswith(".*"):
                heard[self._in_wildcard.get(name[:-2], [])] = True
            elif (number := self._numbers.get(name)) is not None:
                heard[number] = True
        return heard


class Part:
    """A run of events in memory: when each is said (ns UTC, never falling), its topic, how to encode it.

    `behind` makes the part that comes after it; it is asked again as long as it gives None.
    """

    def __init__(
        self, at: Ints, topics: Numbers, encoded: Encode, behind: Callable[[], Part | None] = lambda: None
    ) -> None:
        self.at = at
        self.topics = topics
        self._encoded = encoded
        self._behind = behind
        self._following: Part | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.at)

    def place(self, instant: int) -> int:
        """The first event that is said at `instant` or later."""
        return int(np.searchsorted(self.at, instant, side="left"))

    def following(self) -> Part | None:
        """The part behind this one, the same whoever asks."""
        with self._lock:
            if self._following is None:
                self._following = self._behind()
            return self._following

    def chunk(self, first: int, wanted: Mask, most: int = CHUNK) -> Chunk | None:
        """The next events from place `first` on, here or in a later part, those of wanted topics encoded.

        None where there is nothing more, or nothing more yet.
        """
        part = self
        while first >= len(part):
            following = part.following()
            if following is None:
                return None
            part, first = following, 0
        stop = min(first + most, len(part))
        topics = part.topics[first:stop]
        unknown = int(topics.max()) + 1 - len(wanted)
        if unknown > 0:  # a topic nobody could ask for by a wildcard yet
            wanted = np.append(wanted, np.ones(unknown, dtype=np.bool_))
        places = np.flatnonzero(wanted[topics]) + first
        return Chunk(
            part, first, stop, places, part.at[places], part.topics[places], part._encoded(places), wanted
        )


@dataclass(frozen=True)
class Chunk:
    """Encoded events of a part: their places there, when each is said (ns UTC), its topic and bytes.

    The events from place `first` to before `stop` were looked at; those on `wanted` topics are in it.
    """

    part: Part
    first: int
    stop: int
    places: Ints
    at: Ints
    topics: Numbers
    payloads: list[bytes]
    wanted: Mask

    def __len__(self) -> int:
        return len(self.at)

    @cached_property
    def last(self) -> int:
        """When the last event that was looked at is said."""
        return int(self.part.at[self.stop - 1])

    def covers(self, wanted: Mask) -> bool:
        """Whether nothing that is wanted was left out when this was encoded."""
        known = min(len(wanted), len(self.wanted))
        return not bool(np.any(wanted[:known] & ~self.wanted[:known]))

    def heard(self, topics: Mask, first: int, stop: int) -> list[bytes]:
        """The events of some topics between two places of this chunk."""
        known = min(len(topics), len(self.wanted))
        if known == len(self.wanted) and bool(np.all(topics[:known][self.wanted])):
            return self.payloads[first:stop]
        return [self.payloads[n] for n in (np.flatnonzero(topics[self.topics[first:stop]]) + first).tolist()]


class Script(ABC):
    """Everything that is said, from the moment `start` to the moment `end` (ns UTC), in order."""

    topics: Topics
    start: int
    end: int
    grows = False  # what is said has not all happened yet; `ended` tells when it has
    ended = True

    @abstractmethod
    def part(self, since: int) -> Part | None:
        """The part with the first event that is said at `since` or later; None: there is nothing."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Let go of what it reads from."""
