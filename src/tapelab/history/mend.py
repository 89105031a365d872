"""Finds what is damaged in the lake and has it again."""

from __future__ import annotations

import contextlib
from calendar import monthrange
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime

from tapelab.errors import NoData, TapelabError
from tapelab.history.fetch import download_flat_file, fetch_data
from tapelab.history.ticks import fetch_quotes, fetch_trades
from tapelab.market import clock, sessions
from tapelab.settings import current
from tapelab.store.lake import Lake
from tapelab.store.lake.inspection import Broken


@dataclass(frozen=True)
class Mended:
    """What a mending found: `damaged` files, those that are whole `again`, and why the others are not."""

    damaged: tuple[Broken, ...]
    again: tuple[Broken, ...]
    left: Mapping[Broken, TapelabError]


def mend_lake() -> Mended:
    """Read every file of the lake, and fetch again what is damaged: day files, and bars and ticks of REST.

    Month files are derived again. What cannot be had now is taken away, so that the next fetch asks for it.
    """
    settings = current()
    lake = Lake(settings)
    damaged = lake.verify()
    left: dict[Broken, TapelabError] = {}
    for broken in damaged:
        lake.discard(broken)
        try:
            _fetch_again(broken, lake)
        except TapelabError as error:
            left[broken] = error
    return Mended(tuple(damaged), tuple(b for b in damaged if b not in left), left)


def _fetch_again(broken: Broken, lake: Lake) -> None:
    if broken.what == "day" and broken.day is not None:
        download_flat_file(broken.product, broken.day)
    elif broken.what == "month" and broken.day is not None:
        lake.compact(broken.product, first=broken.day, last=broken.day.replace(day=28))
    elif broken.what == "rest":
        first, last = _stretch(broken.stretch)
        name, base = broken.symbol, broken.base
        with contextlib.suppress(NoData):
            fetch_data(name, first, last, base, "rest", adjust="none", frame="arrow", fallback=False)
    elif broken.what == "ticks":
        fetch = fetch_trades if broken.base == "trades" else fetch_quotes
        start, end = (_moment(int(ns)) for ns in broken.stretch.split("-"))
        with contextlib.suppress(NoData):
            fetch(broken.symbol, start, end, method="rest", frame="arrow", fallback=False)


def _moment(ns: int) -> datetime:
    """To the nanosecond, which only pandas' datetime carries."""
    from pandas import Timestamp

    return Timestamp(ns, tz="UTC")


def _stretch(text: str) -> tuple[date, date]:
    """A year or a month as its first and last day, but not beyond today."""
    year, month = int(text[:4]), int(text[5:7] or 0)
    first = date(year, month or 1, 1)
    last = date(year, month or 12, monthrange(year, month or 12)[1])
    return first, min(last, clock.today(sessions.NEW_YORK))
