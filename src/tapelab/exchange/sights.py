"""What a plan shows of a tape: its history, and no more than the exchange's clock has reached.

Before the clock is started, or set, all that the tape holds is history.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Protocol

from tapelab.exchange.plans import Plan
from tapelab.exchange.tape import PUBLISHED
from tapelab.market import sessions
from tapelab.market.symbols import Market

ALWAYS = 1 << 62


class Time(Protocol):
    """The exchange's time."""

    @property
    def now(self) -> int: ...

    @property
    def told(self) -> bool:
        """Whether its clock was ever started or set."""
        ...


@dataclass(frozen=True)
class OverRest:
    """What is answered: nothing from before the plan's history, nothing that has not happened yet."""

    plan: Plan
    time: Time

    def days(self, product: str, days: list[date]) -> list[date]:
        until = self.until()
        return [
            day for day in days if not self.kept_back(day) and sessions.day_start(Market.STOCKS, day) <= until
        ]

    def until(self) -> int:
        return self.plan.until(self.time.now) if self.time.told else ALWAYS

    def kept_back(self, day: date) -> bool:
        first = self.plan.first_day(self.time.now)
        return first is not None and day < first


@dataclass(frozen=True)
class InFiles(OverRest):
    """The files that are listed: those that were published, at eleven on the morning after their day."""

    def days(self, product: str, days: list[date]) -> list[date]:
        return [day for day in days if not self.time.told or _published(day) <= self.time.now]

    def until(self) -> int:
        return ALWAYS


def _published(day: date) -> int:
    return sessions.instant(day + timedelta(days=1), PUBLISHED, sessions.NEW_YORK)
