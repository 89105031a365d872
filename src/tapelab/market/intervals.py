"""Bar intervals: how users spell them, how long they are, which base bars they are built from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tapelab.errors import UnknownInterval, UnknownName
from tapelab.market.clock import DAY, HOUR, MINUTE, SECOND

Base = Literal["1s", "1m", "1d"]


@dataclass(frozen=True)
class Interval:
    """`ns` is the length; None where it is not fixed (a month). `base`: the bars it is built from."""

    text: str
    ns: int | None
    base: Base

    @property
    def intraday(self) -> bool:
        return self.ns is not None and self.ns < DAY

    @classmethod
    def parse(cls, text: str | Interval) -> Interval:
        """`1s 1m 5m 15m 30m 1h 4h 1d 1w 1mo` and pandas' spellings; `UnknownInterval` names the nearest."""
        if isinstance(text, Interval):
            return text
        found = _SPELLINGS.get(text) or _SPELLINGS.get(str(text).lower().replace(" ", ""))
        if found is None:
            near = UnknownName.among("interval", str(text), [i.text for i in INTERVALS])
            raise UnknownInterval(near.message, remedy=f"{near.remedy} Known: {_KNOWN}.", interval=text)
        return found

    @classmethod
    def any(cls, text: str | Interval) -> Interval:
        """The same, and of seconds, minutes and hours any number that divides a day: `10s`, `3m`, `2h`.

        For what is built from ticks; the vendor's own bars come as `parse` knows them.
        """
        match = None if isinstance(text, Interval) else _COUNTED.fullmatch(str(text).lower().replace(" ", ""))
        if isinstance(text, Interval) or match is None:
            return cls.parse(text)
        unit = next((unit for unit in "smh" if match[2] in _UNITS[unit]), None)
        length = int(match[1]) * _LENGTHS[unit] if unit else 0
        if unit is None or length == 0 or length >= DAY or DAY % length:
            return cls.parse(text)
        shortest = next(u for u in "hms" if length % _LENGTHS[u] == 0)
        found = f"{length // _LENGTHS[shortest]}{shortest}"
        return _SPELLINGS.get(found) or cls(found, length, "1m" if length % MINUTE == 0 else "1s")

    def __str__(self) -> str:
        return self.text


INTERVALS = (
    Interval("1s", SECOND, "1s"),
    Interval("1m", MINUTE, "1m"),
    Interval("5m", 5 * MINUTE, "1m"),
    Interval("15m", 15 * MINUTE, "1m"),
    Interval("30m", 30 * MINUTE, "1m"),
    Interval("1h", HOUR, "1m"),
    Interval("4h", 4 * HOUR, "1m"),
    Interval("1d", DAY, "1d"),
    Interval("1w", 7 * DAY, "1d"),
    Interval("1mo", None, "1d"),
)

_COUNTED = re.compile(r"(\d{1,5})([a-z]+)")
_LENGTHS = {"s": SECOND, "m": MINUTE, "h": HOUR}
_KNOWN = " ".join(i.text for i in INTERVALS)
_UNITS = {
    "s": ("s", "sec", "second"),
    "m": ("m", "min", "minute", "t"),
    "h": ("h", "hour"),
    "d": ("d", "day"),
    "w": ("w", "week"),
    "mo": ("mo", "month"),
}
_SPELLINGS = {
    f"{interval.text.rstrip('smhdwo')}{spelling}": interval
    for interval in INTERVALS
    for spelling in _UNITS[interval.text.lstrip("0123456789")]
}
_SPELLINGS |= {"s": INTERVALS[0], "min": INTERVALS[1], "h": INTERVALS[5], "D": INTERVALS[7]}
_SPELLINGS |= {"d": INTERVALS[7], "W": INTERVALS[8], "ME": INTERVALS[9], "MS": INTERVALS[9]}
