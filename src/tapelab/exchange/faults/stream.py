"""What can go wrong with the live stream: one small dataclass a fault, each changing what one event becomes.

Rules count events, not messages, so that a script does the same however the events are put into messages.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from tapelab.exchange.faults.http import MAX_SECONDS
from tapelab.massive import wire

MAX_EVENTS = 1_000  # in one message
MAX_COPIES = 1_000
LONGEST_GARBAGE = 200  # characters


@dataclass(frozen=True)
class Send:
    """Send this as one message."""

    frame: bytes


@dataclass(frozen=True)
class Stall:
    """Nothing comes for some `seconds`; what was to come waits."""

    seconds: Annotated[float, Meta(gt=0, le=MAX_SECONDS)]

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [self, event]


@dataclass(frozen=True)
class Cut:
    """The connection ends before the event: `clean` with a close frame, otherwise TCP just breaks."""

    clean: bool = False

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [self]


Act = Send | Stall | Cut


@dataclass(frozen=True)
class Late:
    """An event that `by` later ones of its topic overtake."""

    event: bytes
    by: int


Piece = bytes | Act | Late  # bytes: an event, to be sent with its neighbours


class StreamFault(Protocol):
    """Something wrong with the stream at one event."""

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        """What comes in place of the event."""
        ...


@dataclass(frozen=True)
class Duplicate:
    """The event comes again, so many `copies` more."""

    copies: Annotated[int, Meta(ge=1, le=MAX_COPIES)] = 1

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [event] * (1 + self.copies)


@dataclass(frozen=True)
class Reorder:
    """The event is late: the next `by` events of its topic come first."""

    by: Annotated[int, Meta(ge=1, le=MAX_COPIES)] = 1

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [Late(event, self.by)]


@dataclass(frozen=True)
class Garbage:
    """Before the event comes a message that is none: no JSON (`text`), or JSON that breaks off (`half`)."""

    how: Literal["text", "half"] = "text"

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        if self.how == "half":
            return [Send(b"[" + event[: dice.randrange(1, len(event))]), event]
        length = dice.randint(1, LONGEST_GARBAGE)
        return [Send(("<" + "".join(dice.choices(string.printable, k=length))).encode()), event]


@dataclass(frozen=True)
class Unknown:
    """In the event's message comes one of a kind that nobody knows; `event` says which."""

    event: dict[str, Any] = field(default_factory=lambda: {"ev": "ZZ", "sym": "ZVZZT", "new": [1, {"a": 2}]})

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [msgspec.json.encode(self.event), event]


@dataclass(frozen=True)
class Status:
    """Before the event comes a status message, such as `force_disconnect`."""

    status: str
    message: str = ""

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [_status(self.status, self.message), event]


@dataclass(frozen=True)
class SlowClient:
    """The vendor finds the client too slow, whether it is or not: it says so and closes."""

    def instead(self, event: bytes, dice: Random) -> list[Piece]:
        return [_status("slow_consumer", "slow consumer"), Cut(clean=True)]


class _Head(msgspec.Struct):
    """What tells a topic: most channels name their symbol `sym`, LULD and NOI `T`."""

    ev: str = ""
    sym: str = ""
    T: str = ""

    @property
    def topic(self) -> str:
        return f"{self.ev}.{self.sym or self.T}"


_heads = msgspec.json.Decoder(list[_Head])
_events = msgspec.json.Decoder(list[msgspec.Raw])

Struck = Callable[[str], Sequence[tuple[StreamFault, Random]]]


class StreamFaults:
    """What becomes of the messages of one connection. `strike` names the faults of the next event of a topic.

    `through` is given every data message in order; `rest` what is still late when the tape is over.
    """

    def __init__(self, strike: Struck | None) -> None:
        self._strike = strike
        self._late: dict[str, list[Late]] = {}

    def through(self, frame: bytes) -> list[Act]:
        """What to do in place of sending this message, in order. After a `Cut` there is nothing more."""
        if self._strike is None:
            return [Send(frame)]
        events = [bytes(event) for event in _events.decode(frame)]
        pieces: list[Piece] = []
        for event, head in zip(events, _heads.decode(frame), strict=True):
            for piece in self._instead(event, head.topic):
                pieces.append(piece)
                if isinstance(piece, Cut):
                    return _acts(pieces)
        return [Send(frame)] if pieces == events else _acts(pieces)

    def rest(self) -> list[Act]:
        """What was held back and nothing has overtaken; to be sent when the tape is over."""
        late = [late.event for of_topic in self._late.values() for late in of_topic]
        self._late.clear()
        return _acts(late)

    def _instead(self, event: bytes, topic: str) -> Iterable[Piece]:
        assert self._strike is not None
        pieces: list[Piece] = [event]
        for fault, dice in self._strike(topic):
            if event in pieces:
                at = pieces.index(event)
                pieces[at : at + 1] = fault.instead(event, dice)
        yield from (piece for piece in pieces if not isinstance(piece, Late))
        if event in pieces and topic in self._late:
            yield from self._overtaken(topic)
        late = [piece for piece in pieces if isinstance(piece, Late)]
        if late:
            self._late.setdefault(topic, []).extend(late)

    def _overtaken(self, topic: str) -> Iterable[bytes]:
        """The late events of a topic whose time has come, now that one more has passed."""
        waiting = [Late(late.event, late.by - 1) for late in self._late.pop(topic)]
        if still := [late for late in waiting if late.by]:
            self._late[topic] = still
        return [late.event for late in waiting if not late.by]


def _acts(pieces: Iterable[Piece]) -> list[Act]:
    """Neighbouring events as one message, the rest as it is."""
    acts: list[Act] = []
    run: list[bytes] = []
    for piece in pieces:
        if run and (not isinstance(piece, bytes) or len(run) == MAX_EVENTS):
            acts.append(Send(wire.frame(run)))
            run = []
        if isinstance(piece, bytes):
            run.append(piece)
        elif not isinstance(piece, Late):
            acts.append(piece)
    return [*acts, Send(wire.frame(run))] if run else acts


def _status(status: str, message: str) -> Send:
    return Send(wire.frame([wire.status_event(status, message)]))
