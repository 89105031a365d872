"""What a plan is: the route of each symbol on each session, what that takes, and how it prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any, Literal

from tapelab.budget import GIGABYTE, Left
from tapelab.history.request import Asked, Request
from tapelab.massive.flatfiles import Listed

Route = Literal["cache", "rest", "flat_file"]
NAMES: dict[Route, str] = {"cache": "the cache", "rest": "REST API", "flat_file": "Flat Files"}

PAGE_ROWS = 50_000  # of ticks, or of the base bars that the vendor reads for a page of bars
NAMED = 5  # symbols that a printed plan names

# What a thing costs beside the bytes that come, for comparing plans: about a round trip's worth of them.
ROUND_TRIP = 1_000_000
ROW_BYTES = 100  # of a row in the vendor's JSON, about


@dataclass(frozen=True)
class RestCall:
    """One question to REST: a symbol's rows from `first` to `last`, in about `pages` requests."""

    symbol: str
    first: date
    last: date
    rows: int

    @property
    def pages(self) -> int:
        return max(-(-self.rows // PAGE_ROWS), 1)


@dataclass(frozen=True)
class ReferenceCall:
    """One question about what belongs to bars: `splits AAPL`, or `splits *` for all since the range began."""

    question: str
    pages: int = 1


@dataclass(frozen=True)
class FetchPlan:
    """What a fetch does: route and reason, requests, files, bytes, what the cache holds, what is left.

    `routes` names the route of each symbol on each session. `requests` is the most that bars can need, and a
    guess for ticks. `cheapest` is the plan that takes the smaller share of what is left of your budgets,
    where it is another. `str()` is a short table.
    """

    request: Asked
    route: Route
    reason: str
    routes: Mapping[tuple[str, date], Route]
    calls: tuple[RestCall, ...]
    downloads: tuple[Listed, ...]
    references: tuple[ReferenceCall, ...]
    left: Left
    notes: tuple[str, ...] = ()
    cheapest: FetchPlan | None = field(default=None, repr=False)

    @property
    def requests(self) -> int:
        """REST requests."""
        return sum(call.pages for call in self.calls) + sum(call.pages for call in self.references)

    @property
    def files(self) -> int:
        return len(self.downloads)

    @property
    def bytes(self) -> int:
        return sum(listed.size for listed in self.downloads)

    @property
    def cached(self) -> int:
        """How many of the symbols' sessions the cache holds."""
        return sum(route == "cache" for route in self.routes.values())

    @property
    def amount(self) -> str:
        """What it takes: `12 REST calls`, `65 files of 1.76 GB`."""
        calls = counted(self.requests, "REST call") if self.requests or not self.files else ""
        files = f"{counted(self.files, 'file')} of {sized(self.bytes)}" if self.files else ""
        return " and ".join(filter(None, (calls, files)))

    @property
    def minutes(self) -> int:
        """How long the budget of calls a minute makes it last, if that is a minute or more."""
        left = self.left
        if left.calls_a_minute is None or left.rest_minute is None:
            return 0
        return max(-(-(self.requests - left.rest_minute) // left.calls_a_minute), 0)

    @property
    def lines(self) -> tuple[str, ...]:
        """What is reported: the reason first."""
        if not self.minutes:
            return (self.reason, *self.notes)
        pace = f"{counted(self.requests, 'REST call')} at {self.left.calls_a_minute} a minute"
        return (self.reason, *self.notes, f"{pace} take about {counted(self.minutes, 'minute')}")

    @property
    def what(self) -> str:
        """`1m bars`, `trades`"""
        request = self.request
        return f"{request.interval} bars" if isinstance(request, Request) else request.base

    @property
    def broken_budget(self) -> str:
        """Which budget it would break: what is needed and what is left. Empty if none."""
        left = self.left
        if left.rest_day is not None and self.requests > left.rest_day:
            return f"{counted(self.requests, 'REST call')} needed, {left.rest_day} left today"
        if left.bytes_month is not None and self.bytes > left.bytes_month:
            return f"{sized(self.bytes)} of flat files needed, {sized(left.bytes_month)} left this month"
        return ""

    @property
    def cost(self) -> tuple[float, int]:
        """The share it takes of what is left of the budgets, then what has to come, in bytes."""
        left = self.left
        calls = self.requests / max(left.rest_day, 0.5) if left.rest_day is not None else 0.0
        share = self.bytes / max(left.bytes_month, 0.5) if left.bytes_month is not None else 0.0
        rows = sum(call.rows for call in self.calls)
        return (calls + share, (self.requests + self.files) * ROUND_TRIP + rows * ROW_BYTES + self.bytes)

    def as_dict(self) -> dict[str, Any]:
        """The same facts as plain values, for JSON."""
        return {
            "route": self.route,
            "reason": self.reason,
            "notes": list(self.notes),
            "symbols": list(self.request.names),
            "sessions": sorted({day.isoformat() for _, day in self.routes}),
            "interval": self.request.interval.text
            if isinstance(self.request, Request)
            else self.request.base,
            "routes": dict(sorted(Counter(self.routes.values()).items())),
            "requests": self.requests,
            "files": self.files,
            "bytes": self.bytes,
            "cached": self.cached,
            "left": asdict(self.left),
            "cheapest": self.cheapest.as_dict() if self.cheapest else None,
        }

    def __str__(self) -> str:
        request, left = self.request, self.left
        days = sorted({day for _, day in self.routes})
        of_day = "no limit" if left.rest_day is None else f"{left.rest_day} left today"
        of_month = "no limit" if left.bytes_month is None else f"{sized(left.bytes_month)} left this month"
        cheapest = self.cheapest.reason if self.cheapest else "this one"
        named = ", ".join(request.names[:NAMED]) + (" …" if len(request.names) > NAMED else "")
        rows = [
            ("symbols", f"{len(request.names)} ({named})"),
            ("sessions", f"{len(days)} ({days[0]} to {days[-1]}) of {self.what}"),
            ("cached", f"{self.cached} of {len(self.routes)}"),
            ("requests", f"{self._likely if self.calls else ''}{self.requests} ({of_day})"),
            ("files", f"{self.files}, {sized(self.bytes)} ({of_month})"),
            ("cheapest", cheapest),
        ]
        return "\n".join([*self.lines, *(f"  {name:<9} {value}" for name, value in rows)])

    @property
    def _likely(self) -> str:
        return "at most " if isinstance(self.request, Request) else "about "


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def sized(count: int) -> str:
    if count >= GIGABYTE:
        return f"{count / GIGABYTE:.3g} GB"
    return f"{count / 1e6:.3g} MB" if count >= 1_000_000 else f"{count / 1e3:.3g} kB" if count else "0 bytes"
