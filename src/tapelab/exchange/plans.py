"""The vendor's plans for stocks as far as the exchange enforces them: what may be asked, how soon, how often.

Off unless asked for. Source: the vendor's price list as quoted in 2026; `massive-api.md` 2.8 and 4.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import date

from tapelab.errors import UnknownName
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, PRODUCTS, TRADES
from tapelab.market import clock, sessions
from tapelab.market.clock import MINUTE
from tapelab.market.symbols import Market

DELAY = 15 * MINUTE  # of a plan that is not in real time


@dataclass(frozen=True)
class Plan:
    """What a key is entitled to. None: no limit.

    `delay`: how far its data are behind the exchange's clock (ns); `whole_days`: it has no data of a day that
    is not over. `years`: how far back its history reaches. `by_the_clock`: what the exchange's clock has not
    reached yet is not there, neither data nor files.
    """

    name: str
    calls_per_minute: int | None
    rest: frozenset[str]  # of `aggregates`, `trades`, `quotes`; reference data is in every plan
    channels: frozenset[str]
    products: frozenset[str]
    connections: int | None
    delay: int = 0
    whole_days: bool = False
    years: int | None = None
    by_the_clock: bool = True

    def first_day(self, now: int) -> date | None:
        """The day on which its history begins; None: it has all."""
        today = clock.date_of(now, sessions.NEW_YORK)
        return None if self.years is None else _years_before(today, self.years)

    def until(self, now: int) -> int:
        """The moment that its data have reached, ns UTC."""
        if not self.whole_days:
            return now - self.delay
        today = clock.date_of(now, sessions.NEW_YORK)
        session = sessions.session(Market.STOCKS, today)
        over = session is None or now >= session.end
        return now if over else sessions.day_start(Market.STOCKS, today)


EVERYTHING = Plan(
    "none",
    None,
    frozenset({"aggregates", "trades", "quotes"}),
    frozenset({"T", "Q", "A", "AM", "LULD", "NOI"}),
    frozenset(PRODUCTS),
    None,
    by_the_clock=False,
)

PLANS = {
    plan.name: plan
    for plan in (
        Plan("basic", 5, frozenset({"aggregates"}), frozenset(), frozenset(), 1, whole_days=True, years=2),
        Plan(
            "starter",
            None,
            frozenset({"aggregates"}),
            frozenset({"A", "AM"}),
            frozenset({DAY_BARS, MINUTE_BARS}),
            1,
            delay=DELAY,
            years=5,
        ),
        Plan(
            "developer",
            None,
            frozenset({"aggregates", "trades"}),
            frozenset({"A", "AM", "T"}),
            frozenset({DAY_BARS, MINUTE_BARS, TRADES}),
            1,
            delay=DELAY,
            years=10,
        ),
        Plan("advanced", None, EVERYTHING.rest, EVERYTHING.channels, frozenset(PRODUCTS), 1),
    )
}


def plan_named(name: str | None) -> Plan:
    """The plan of that name; None stands for no limits at all."""
    if name is None:
        return EVERYTHING
    if name not in PLANS:
        raise UnknownName.among("plan", name, PLANS)
    return PLANS[name]


@dataclass(frozen=True)
class Account:
    """Somebody who may ask: a key for REST and the stream, one for the files, and a plan.

    `connections`: how many to the stream at a time (None: any number).
    """

    plan: Plan
    connections: int | None
    api_key: str = field(repr=False)
    s3_access_key_id: str = field(repr=False)
    s3_secret_access_key: str = field(repr=False)

    @classmethod
    def of(
        cls, text: str, plan: Plan, *, api_key: str | None = None, connections: int | None = None
    ) -> Account:
        """An account whose credentials follow from `text`: the same text, the same credentials."""
        digest = hashlib.sha256(f"tapelab {text}".encode()).hexdigest()
        return cls(
            plan,
            plan.connections if connections is None else connections,
            f"demo-{digest[:24]}" if api_key is None else api_key,
            f"demo-{digest[24:40]}",
            f"demo-{digest[40:]}",
        )


def _years_before(day: date, years: int) -> date:
    return day.replace(year=day.year - years, day=min(day.day, 28) if day.month == 2 else day.day)
