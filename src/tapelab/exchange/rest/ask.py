"""One question over REST: parameters read and checked, its cursor opened, refusals as the vendor has them."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from urllib.parse import parse_qsl, quote, urlencode

from tapelab.exchange.plans import Plan
from tapelab.exchange.tape import Tape
from tapelab.market import clock, sessions
from tapelab.market.clock import MILLISECOND, SECOND
from tapelab.market.symbols import Market
from tapelab.massive.wire.answers import Refusal

EVER = (-(1 << 62), 1 << 62)  # ns; wider than any tape
FAR = 1 << 62
LATEST = 7_258_118_400 * SECOND  # 2200
MAX_ADDRESS = 8_000  # characters of a path and its query
MAX_PARAMETERS = 100
QUOTED = 40  # characters of what was asked that a refusal repeats

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_INSTANT = re.compile(
    r"(?P<seconds>\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:\.(?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d{2}:\d{2})",
    re.ASCII,
)
_WHOLE = re.compile(r"-?\d{1,19}", re.ASCII)
_MILLISECONDS = re.compile(r"\d{1,13}", re.ASCII)
_PLAIN = "/:"  # as they are in a path


class Refused(Exception):
    """The vendor would say no; `text` replaces its usual words."""

    def __init__(self, refusal: Refusal, text: str | None = None) -> None:
        super().__init__(refusal, text)
        self.refusal = refusal
        self.text = text


def malformed(text: str) -> Refused:
    return Refused("bad_request", text)


@dataclass(frozen=True)
class Ask:
    """A request, and what it is asked of: `tape`, at the exchange's time `now` (ns UTC), on `plan`.

    `path` holds the named parts of its route, `query` its parameters and those of its cursor. `base` is the
    host that was called, `route` the path as it was sent.
    """

    path: Mapping[str, str]
    query: Mapping[str, str]
    base: str
    route: str
    request_id: str
    tape: Tape
    now: int
    plan: Plan

    @property
    def ticker(self) -> str:
        return self.path["ticker"]

    @cached_property
    def today(self) -> date:
        """The exchange's date."""
        return clock.date_of(self.now, sessions.NEW_YORK)

    @property
    def reached(self) -> int:
        """The moment that the plan's data have reached, ns UTC."""
        return self.plan.until(self.now)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        text = self.query.get(name)
        if text is None:
            return default
        if not _WHOLE.fullmatch(text) or not low <= int(text) <= high:
            raise malformed(f"'{name}' must be a whole number from {low} to {high}, not '{text[:QUOTED]}'")
        return int(text)

    def choice(self, name: str, default: str, *known: str) -> str:
        text = self.query.get(name, default)
        if text not in known:
            raise malformed(f"'{name}' must be one of {', '.join(known)}, not '{text[:QUOTED]}'")
        return text

    def flag(self, name: str, default: bool) -> bool:
        return self.choice(name, str(default).lower(), "true", "false") == "true"

    def stamps(self, name: str) -> tuple[int, int]:
        """First and last instant (ns, both included) that `name` and its `.gt .gte .lt .lte` leave.

        A date means that whole day of the exchange: `.gt` begins after it, `.lte` ends with it.
        """
        low, high = EVER
        for operator in ("", ".gt", ".gte", ".lt", ".lte"):
            text = self.query.get(name + operator)
            if text is None:
                continue
            first, last = moment(text, name + operator)
            if operator in ("", ".gte"):
                low = max(low, first)
            if operator in ("", ".lte"):
                high = min(high, last)
            if operator == ".gt":
                low = max(low, last + 1)
            if operator == ".lt":
                high = min(high, first - 1)
        return low, high

    def within_plan(self, low: int, high: int) -> None:
        """Refuse a time (ns UTC) that begins before the plan's history, or on a day that it has not yet."""
        early = low > EVER[0] and self.tape.kept_back(dates(low, high)[0])
        if early or (self.plan.whole_days and low >= self.reached):
            raise Refused("timeframe")

    def next_url(self, cursor: Mapping[str, object], route: str | None = None) -> str:
        """Where the next page is: our own host, no key, and a query that is there."""
        return f"{self.base}{quote(route or self.route, safe=_PLAIN)}?cursor={encode_cursor(cursor)}"


def opened(query: Mapping[str, str]) -> dict[str, str]:
    """The parameters of a query; what its cursor carries replaces what is beside it."""
    if len(query) > MAX_PARAMETERS:
        raise malformed(f"there are more than {MAX_PARAMETERS} parameters")
    plain = {name: value for name, value in query.items() if name not in ("cursor", "apiKey")}
    return {**plain, **decode_cursor(query["cursor"])} if "cursor" in query else plain


def encode_cursor(fields: Mapping[str, object]) -> str:
    """Unpadded base64 of a query, as the vendor's."""
    text = urlencode(dict(sorted(fields.items())))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(text: str) -> dict[str, str]:
    try:
        padded = text + "=" * (-len(text) % 4)
        plain = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
        return dict(
            parse_qsl(plain, keep_blank_values=True, strict_parsing=True, max_num_fields=MAX_PARAMETERS)
        )
    except (binascii.Error, ValueError) as cause:
        raise malformed("'cursor' is not one that was given out here") from cause


def moment(text: str, name: str) -> tuple[int, int]:
    """First and last nanosecond of what a date, an RFC 3339 time or a number of ns means."""
    if _DATE.fullmatch(text):
        return whole_day(day_of(text, name))
    if _WHOLE.fullmatch(text) and abs(int(text)) < FAR:
        return int(text), int(text)
    if match := _INSTANT.fullmatch(text):
        try:
            stamp = datetime.fromisoformat(match["seconds"] + match["zone"]).astimezone(UTC)
        except (ValueError, OverflowError) as cause:
            raise malformed(f"'{name}' is not a time: '{text}'") from cause
        seconds = (stamp - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(seconds=1)
        instant = seconds * SECOND + int((match["fraction"] or "").ljust(9, "0"))
        if abs(instant) >= FAR:
            raise malformed(f"'{name}' is out of range: '{text}'")
        return instant, instant
    raise malformed(f"'{name}' must be YYYY-MM-DD or nanoseconds, not '{text[:QUOTED]}'")


def span(text: str, name: str) -> tuple[int, int]:
    """First and last nanosecond of a date, or of a Unix millisecond."""
    if not _MILLISECONDS.fullmatch(text):
        return whole_day(day_of(text, name, "YYYY-MM-DD or milliseconds"))
    first = int(text) * MILLISECOND
    if first >= LATEST:
        raise malformed(f"'{name}' is out of range: '{text}'")
    return first, first + MILLISECOND - 1


def dates(low: int, high: int) -> tuple[date, date]:
    """The exchange's dates that lie between two instants (ns UTC), however far apart they are."""
    first = date.min if low <= 0 else clock.date_of(min(low, LATEST), sessions.NEW_YORK)
    last = date.min if high <= 0 else clock.date_of(min(high, LATEST), sessions.NEW_YORK)
    return first, last


def whole_day(day: date) -> tuple[int, int]:
    """First and last nanosecond of a day of the exchange."""
    return (
        sessions.day_start(Market.STOCKS, day),
        sessions.day_start(Market.STOCKS, day + timedelta(days=1)) - 1,
    )


def day_of(text: str, name: str, form: str = "YYYY-MM-DD") -> date:
    if not _DATE.fullmatch(text):
        raise malformed(f"'{name}' must be {form}, not '{text[:QUOTED]}'")
    try:
        day = date.fromisoformat(text)
    except ValueError as cause:
        raise malformed(f"'{name}' is not a date: '{text}'") from cause
    if not 1970 <= day.year < 2200:
        raise malformed(f"'{name}' is out of range: '{text}'")
    return day


def rfc3339(instant: int) -> str:
    """An instant (ns UTC) to the nanosecond, as the vendor's cursors have it."""
    whole, fraction = divmod(instant, SECOND)
    stamp = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{stamp}{digits}Z"
