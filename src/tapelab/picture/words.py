"""Numbers and times as people read them, and what each metric means in one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from math import ceil, log10
from typing import Literal
from zoneinfo import ZoneInfo

from tapelab.market.clock import DAY, HOUR, MILLISECOND, MINUTE, SECOND

TICKS_ON_AN_AXIS = 5
MINUS, NOTHING = "−", "–"  # a true minus sign; an en dash for what is not known

Unit = Literal["money", "gain", "bp", "percent", "ratio", "count", "shares"]


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics. `unit` says how it is written; signed ones are coloured."""

    key: str
    label: str
    unit: Unit
    meaning: str

    @property
    def signed(self) -> bool:
        return self.unit in ("gain", "bp")


METRICS: dict[str, tuple[Metric, ...]] = {
    "Result": (
        Metric("profit", "Profit", "gain", "after fees, open positions at their mark"),
        Metric("profit_bp", "Profit on cash", "bp", "in basis points of the starting cash"),
        Metric("max_drawdown", "Largest drawdown", "money", "fall from a peak of equity"),
        Metric("fees", "Fees", "money", "paid in all; already taken off"),
        Metric("sharpe", "Sharpe ratio", "ratio", "annualised, from daily returns"),
    ),
    "Round trips": (
        Metric("round_trips", "Round trips", "count", "from flat to flat"),
        Metric("hit_rate", "With a profit", "percent", "share of round trips, after fees"),
        Metric("average_trip", "Average", "gain", "of a round trip, after fees"),
        Metric("t_statistic", "t-statistic", "ratio", "beyond ±2 luck is an unlikely explanation"),
    ),
    "Execution": (
        Metric("fills", "Fills", "count", "executions, whole or partial"),
        Metric("maker_share", "As maker", "percent", "share of fills by resting orders"),
        Metric("turnover", "Turnover", "money", "money that changed hands"),
        Metric("spread_captured", "Spread captured", "gain", "price against mid; below zero it was paid"),
        Metric("mark_out_1s", "Mark-out 1 s", "bp", "where the mid went after the fills"),
        Metric("mark_out_5s", "Mark-out 5 s", "bp", "in basis points of their value"),
        Metric("mark_out_30s", "Mark-out 30 s", "bp", "above zero is in your favour"),
    ),
    "Exposure": (
        Metric("time_in_market", "Time in market", "percent", "with any position"),
        Metric("max_inventory", "Largest position", "shares", "in one symbol, long or short"),
        Metric("orders", "Orders", "count", "sent"),
        Metric("cancelled", "Cancelled", "count", "taken back by the strategy"),
        Metric("refused", "Refused", "count", "by the risk limits"),
        Metric("unfilled", "Unfilled", "count", "still working at the end"),
    ),
}


def written(value: float | int | None, unit: Unit, currency: str = "") -> str:
    """A number in its unit: `+$1,204.50`, `−3.1 bp`, `62 %`, `1.84`; an en dash for None."""
    if value is None:
        return NOTHING
    sign = (
        MINUS if value < 0 and round(value, 2) != 0 else "+" if unit in ("gain", "bp") and value > 0 else ""
    )
    size = abs(value)
    if unit in ("money", "gain"):
        return f"{sign}{currency}{size:,.2f}" if size < 1e7 else f"{sign}{currency}{size:,.0f}"
    if unit == "bp":
        return f"{sign}{size:,.1f} bp" if size < 1_000 else f"{sign}{size:,.0f} bp"
    if unit == "percent":
        return f"{sign}{size:.0%}".replace("%", " %") if size >= 0.01 or size == 0 else "< 1 %"
    if unit == "ratio":
        return f"{sign}{size:.2f}"
    return f"{sign}{plain(size)}"


def plain(number: float) -> str:
    """A count or a number of shares, without needless digits."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.6f}".rstrip("0")


def setting(value: object) -> str:
    """A parameter as one would type it: `100`, `0.0001`, `IBM`, `no`, `quotes, trades`."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(setting, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def digits(low: float, high: float) -> int:
    """How many decimals tell prices between `low` and `high` apart on an axis: at least cents."""
    step = (high - low) / TICKS_ON_AN_AXIS
    return max(2, ceil(-log10(step))) if step > 0 else 2


def price(value: float | None) -> str:
    """At least cents, and whatever digits a price has beyond them."""
    if value is None:
        return NOTHING
    text = f"{value:,.4f}"
    return text[:-2] if text.endswith("00") else text.rstrip("0")


def moment(instant: int, zone: str, *, date: bool = True, fraction: bool = False) -> str:
    """`9 Oct 2013, 09:30:00` on the exchange's clock."""
    local = datetime.fromtimestamp(instant // SECOND, ZoneInfo(zone))
    text = f"{local:%H:%M:%S}"
    if fraction:
        text += f".{instant % SECOND // MILLISECOND:03d}"
    return f"{local.day} {local:%b %Y}, {text}" if date else text


def span(start: int, end: int, zone: str) -> str:
    """`Wed 9 Oct 2013, 09:30 to 16:00` or, over days, `7 Oct 2013 to 11 Oct 2013`."""
    one, other = (datetime.fromtimestamp(each // SECOND, ZoneInfo(zone)) for each in (start, end))
    if one.date() == other.date():
        form = "%H:%M:%S" if end - start < HOUR else "%H:%M"
        return f"{one:%a} {one.day} {one:%b %Y}, {one.strftime(form)} to {other.strftime(form)}"
    return f"{one.day} {one:%b %Y} to {other.day} {other:%b %Y}"


def duration(ns: int) -> str:
    """`850 ms`, `12.4 s`, `3 min 05 s`, `2 h 10 min`, `3 d 04 h`."""
    if ns < SECOND:
        return f"{ns / MILLISECOND:.0f} ms"
    if ns < MINUTE:
        return f"{ns / SECOND:.1f} s"
    if ns < HOUR:
        return f"{ns // MINUTE} min {ns % MINUTE // SECOND:02d} s"
    if ns < DAY:
        return f"{ns // HOUR} h {ns % HOUR // MINUTE:02d} min"
    return f"{ns // DAY} d {ns % DAY // HOUR:02d} h"


def listed(names: list[str]) -> str:
    """`A`, `A and B`, `A, B and C`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def city(zone: str) -> str:
    """`New York` of `America/New_York`."""
    return zone.rsplit("/", 1)[-1].replace("_", " ")
