"""The vendor's plans for stocks as far as the exchange enforces them: what may be asked, how often.

Off unless asked for. Source: the vendor's price list as quoted in 2026; `massive-api.md` 4 has the details.
"""

from __future__ import annotations

from dataclasses import dataclass

from tapelab.errors import UnknownName
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, PRODUCTS, TRADES


@dataclass(frozen=True)
class Plan:
    """What a key is entitled to. None: no limit."""

    name: str
    calls_per_minute: int | None
    rest: frozenset[str]  # of `aggregates`, `trades`, `quotes`; reference data is in every plan
    channels: frozenset[str]
    products: frozenset[str]
    connections: int | None


EVERYTHING = Plan(
    "none",
    None,
    frozenset({"aggregates", "trades", "quotes"}),
    frozenset({"T", "Q", "A", "AM", "LULD", "NOI"}),
    frozenset(PRODUCTS),
    None,
)

PLANS = {
    plan.name: plan
    for plan in (
        Plan("basic", 5, frozenset({"aggregates"}), frozenset(), frozenset(), 1),
        Plan(
            "starter",
            None,
            frozenset({"aggregates"}),
            frozenset({"A", "AM"}),
            frozenset({DAY_BARS, MINUTE_BARS}),
            1,
        ),
        Plan(
            "developer",
            None,
            frozenset({"aggregates", "trades"}),
            frozenset({"A", "AM", "T"}),
            frozenset({DAY_BARS, MINUTE_BARS, TRADES}),
            1,
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
