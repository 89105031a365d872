"""Every error that tapelab raises on purpose: one tree, each with what is wrong and what to do next.

TapelabError
├── UsageError                  asked in a way that has no answer (also a ValueError); exit status 2
│   ├── UnknownSymbol
│   ├── UnknownInterval
│   ├── UnknownName             a strategy, connector, parameter, product … with the nearest known one
│   └── BadRange                end before start, a future date, no session inside
├── SettingError                a setting is missing or has no sense; exit status 2
├── MissingExtra                an optional part is not installed (also an ImportError)
├── SourceError                 the vendor, or the way to it, said no
│   ├── Unreachable
│   ├── NotAuthorized           the key is missing, wrong or refused
│   ├── NotInPlan               the key is good, the plan lacks the data or its dates
│   ├── NotFound
│   ├── RateLimited
│   ├── ServerTrouble           5xx
│   └── MalformedAnswer         an answer that is not what the protocol promises
├── BudgetExceeded              the user's own quota would break
├── NoData                      a good question with an empty answer
├── StoreError                  data at rest
│   ├── DatasetNotFound
│   ├── Damaged                 a file is not what was written
│   ├── Locked                  another process holds it
│   └── Unwritable              no permission, no room
├── RecordingError              a recording cannot start, go on or end
├── StrategyError               a strategy broke, or asked for what it may not have
└── ServeError                  the stand-in exchange cannot start
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TapelabError(Exception):
    """Something went wrong, with the facts and the next step.

    `message` says what is wrong, `remedy` what to do about it, `facts` holds the particulars
    by name. `str()` gives message and remedy as one line.
    """

    def __init__(self, message: str, *, remedy: str = "", **facts: object) -> None:
        self.message = message
        self.remedy = remedy
        self.facts = facts
        super().__init__(message)

    def __str__(self) -> str:
        if not self.remedy:
            return self.message
        stop = "" if self.message.endswith((".", "!", "?", "…")) else "."
        return f"{self.message}{stop} {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.remedy, self.facts))


def _rebuild(kind: type[TapelabError], message: str, remedy: str, facts: dict[str, object]) -> TapelabError:
    return kind(message, remedy=remedy, **facts)


class UsageError(TapelabError, ValueError):
    """The question has no sensible answer; ask it differently."""


class UnknownSymbol(UsageError):
    """No such symbol is known for those days."""


class UnknownInterval(UsageError):
    """No such bar interval."""


class UnknownName(UsageError):
    """No such strategy, connector, parameter or product; the nearest known name is suggested."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownName:
        known = sorted(known)
        near = get_close_matches(name, known, n=1, cutoff=0.5)
        remedy = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none yet'}."
        return cls(f"There is no {kind} {name!r}.", remedy=remedy, name=name, known=known)


class BadRange(UsageError):
    """The range of time holds nothing: it ends before it starts, lies ahead, or misses every session."""


class SettingError(TapelabError):
    """A setting is missing or makes no sense."""


class MissingExtra(TapelabError, ImportError):
    """An optional part of tapelab is not installed."""


class SourceError(TapelabError):
    """The vendor, or the way to it, did not give what was asked for."""


class Unreachable(SourceError):
    """No connection could be made, or it broke."""


class NotAuthorized(SourceError):
    """The key is missing, wrong or refused."""


class NotInPlan(SourceError):
    """The key is good, but its plan lacks this data or these dates."""


class NotFound(SourceError):
    """The vendor has no such thing."""


class RateLimited(SourceError):
    """The vendor asked to slow down, longer than we were willing to wait."""


class ServerTrouble(SourceError):
    """The vendor's server failed (5xx)."""


class MalformedAnswer(SourceError):
    """The answer is not what the vendor's protocol promises, so none of it is used."""


class BudgetExceeded(TapelabError):
    """This would break one of your own budgets; nothing was sent."""


class NoData(TapelabError):
    """A good question whose answer is empty."""


class StoreError(TapelabError):
    """Something is wrong with data at rest."""


class DatasetNotFound(StoreError):
    """No dataset of that name or path."""


class Damaged(StoreError):
    """A stored file is not what was written."""


class Locked(StoreError):
    """Another process is using this."""


class Unwritable(StoreError):
    """The place cannot be written: no permission or no room."""


class RecordingError(TapelabError):
    """A recording could not start, go on or end."""


class StrategyError(TapelabError):
    """A strategy broke, or asked for what it may not have."""


class ServeError(TapelabError):
    """The stand-in exchange could not start."""
