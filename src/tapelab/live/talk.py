"""What the recorder and its receiver process say to each other, a JSON object or four numbers a line."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from tapelab import errors
from tapelab.errors import RecordingError, TapelabError
from tapelab.store.journal import SEGMENT_BYTES


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """The first line to the receiver. The key travels here, and nowhere that others can look."""

    ws_url: str
    market: str
    key: str
    topics: list[str]
    journal: str
    dataset_id: str
    lock: str
    keep: int | None = None
    segment_bytes: int = SEGMENT_BYTES
    insist: bool = False  # it is recorded already: try for ever, the first time too

    def __repr__(self) -> str:
        return f"Config({self.ws_url!r}, {self.market!r}, {self.topics!r})"


class Command(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A further line to the receiver: more or fewer topics, or another journal to go on in."""

    subscribe: list[str] = []
    unsubscribe: list[str] = []
    journal: str = ""
    dataset_id: str = ""
    keep: int | None = None


class Holder(msgspec.Struct):
    """What lies in the lock of a feed: who holds it, for which topics, and where it journals."""

    pid: int
    journal: str
    topics: list[str]


class Figures(NamedTuple):
    """A line from the receiver after each append: record numbers, and bytes written since it began.

    What is acknowledged survives a kill, what is durable a power cut.
    """

    acknowledged: int = -1
    durable: int = -1
    acknowledged_bytes: int = 0
    durable_bytes: int = 0


class Ending(msgspec.Struct):
    """The last line from the receiver. `kind` is a class of `tapelab.errors`, empty if all is well."""

    kind: str = ""
    message: str = ""
    remedy: str = ""
    facts: dict[str, object] = {}

    @classmethod
    def of(cls, error: TapelabError | None) -> Ending:
        if error is None:
            return cls()
        plain: dict[str, object] = {
            name: fact for name, fact in error.facts.items() if isinstance(fact, str | int | list)
        }
        kind = next(c.__name__ for c in type(error).__mro__ if hasattr(errors, c.__name__))
        return cls(kind, error.message, error.remedy, plain)

    def error(self) -> TapelabError | None:
        if not self.kind:
            return None
        kind = getattr(errors, self.kind, RecordingError)
        error = kind(self.message, remedy=self.remedy, **self.facts)
        assert isinstance(error, TapelabError)
        return error
