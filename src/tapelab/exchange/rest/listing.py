"""Endpoints that list rows: how each filters, sorts and pages them, and what it shows of a row."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from tapelab.exchange.rest.ask import QUOTED, Ask, day_of, malformed
from tapelab.exchange.tape import Row
from tapelab.massive import wire

Order = Literal["asc", "desc"]
Sort = Literal["text", "date", "number"]

MAX_VALUES = 250  # in a comma list

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "": operator.eq,
    ".gt": operator.gt,
    ".gte": operator.ge,
    ".lt": operator.lt,
    ".lte": operator.le,
}


@dataclass(frozen=True)
class Listing:
    """What one endpoint shows and understands. `limit` rows a page unless asked for up to `most`.

    `shows`: the keys of a row; None: all of them. `filters`: by which keys it may be asked, with `.gt .gte
    .lt .lte` and `.any_of`. `dotted`: it sorts by `field.asc,other.desc`, as the newer endpoints do.
    `counted`: it says how many rows a page has.
    """

    filters: Mapping[str, Sort]
    sort: str
    order: Order
    limit: int
    most: int
    shows: tuple[str, ...] | None = None
    dotted: bool = False
    counted: bool = False


@dataclass(frozen=True)
class Page:
    """The rows of one page, and where the next one is; None on the last."""

    rows: Sequence[Row]
    next_url: str | None


def page(ask: Ask, listing: Listing, rows: Iterable[Row]) -> Page:
    """What is asked for of `rows`: filtered, in order, one page of it."""
    limit = ask.integer("limit", listing.limit, 1, listing.most)
    ordered = _ordered(_filtered(rows, ask, listing), _orders(ask, listing))
    first = ask.integer("ap", 0, 0, len(ordered))
    if first + limit >= len(ordered):
        return Page(ordered[first:], None)
    cursor: dict[str, object] = {"as": "", **ask.query, "ap": first + limit, "limit": limit}
    if not listing.dotted:
        cursor = {"sort": listing.sort, "order": listing.order, **cursor}
    return Page(ordered[first : first + limit], ask.next_url(cursor))


def answer(
    ask: Ask,
    listing: Listing,
    rows: Iterable[Row],
    complete: Callable[[Sequence[Row]], Sequence[Row]] = lambda rows: rows,
) -> bytes:
    """One page in the vendor's envelope. `complete` adds to its rows what is dear to find out."""
    found = page(ask, listing, rows)
    return encoded(ask, [shown(row, listing.shows) for row in complete(found.rows)], found, listing.counted)


def encoded(ask: Ask, rows: Sequence[Row], page: Page, counted: bool = False) -> bytes:
    return wire.envelope(
        [msgspec.json.encode(row) for row in rows],
        count=len(rows) if counted else None,
        request_id=ask.request_id,
        next_url=page.next_url,
    )


def shown(row: Row, keys: tuple[str, ...] | None) -> Row:
    """A row as the vendor shows it: known keys only, in its order, what is not known left out."""
    if keys is None:
        return row
    return {key: row[key] for key in keys if row.get(key) is not None}


def _filtered(rows: Iterable[Row], ask: Ask, listing: Listing) -> list[Row]:
    found = list(rows)
    for name, sort in listing.filters.items():
        for suffix, compare in _COMPARE.items():
            if text := ask.query.get(name + suffix):  # an empty one asks for nothing
                bound = _value(text, name, sort)
                found = [row for row in found if _has(row, name, sort) and compare(row[name], bound)]
        if text := ask.query.get(f"{name}.any_of"):
            wanted = {_value(part, name, sort) for part in values(text, f"{name}.any_of")}
            found = [row for row in found if _has(row, name, sort) and row[name] in wanted]
    return found


def values(text: str, name: str) -> list[str]:
    """The parts of a comma list."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MAX_VALUES:
        raise malformed(f"'{name}' has more than {MAX_VALUES} values")
    return parts


def _has(row: Row, name: str, sort: Sort) -> bool:
    return isinstance(row.get(name), (int, float) if sort == "number" else str)


def _value(text: str, name: str, sort: Sort) -> str | float:
    if sort == "date":
        return day_of(text, name).isoformat()
    if sort == "text":
        return text
    try:
        number = float(text)
    except ValueError as cause:
        raise malformed(f"'{name}' must be a number, not '{text[:QUOTED]}'") from cause
    if not math.isfinite(number):
        raise malformed(f"'{name}' must be a number, not '{text[:QUOTED]}'")
    return number


def _orders(ask: Ask, listing: Listing) -> list[tuple[str, bool]]:
    """By which keys, the first one first, and whether each runs down."""
    known = (listing.sort, *listing.filters)
    if not listing.dotted:
        by = ask.choice("sort", listing.sort, *known)
        return [(by, ask.choice("order", listing.order, "asc", "desc") == "desc")]
    orders = []
    for part in ask.query.get("sort", f"{listing.sort}.{listing.order}").split(","):
        name, _, way = part.strip().partition(".")
        if name not in known or way not in ("", "asc", "desc"):
            raise malformed(f"'sort' must be such as {listing.sort}.desc, not '{part[:QUOTED]}'")
        orders.append((name, (way or listing.order) == "desc"))
    return orders[: len(known)]


def _ordered(rows: list[Row], orders: list[tuple[str, bool]]) -> list[Row]:
    """In order; rows of one value by ticker, rows without it last."""
    for name, down in reversed([*orders, ("ticker", orders[-1][1])]):
        with_it = [row for row in rows if row.get(name) is not None]
        without = [row for row in rows if row.get(name) is None]
        rows = sorted(with_it, key=lambda row: _key(row[name]), reverse=down) + without
    return rows


def _key(value: object) -> tuple[int, float | str]:
    return (0, value) if isinstance(value, int | float) else (1, str(value))
