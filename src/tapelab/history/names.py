"""What a symbol without a row may have meant: names that look like it, of those that are known to exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from datetime import date
from difflib import get_close_matches

from tapelab.errors import BudgetExceeded, SettingError, SourceError
from tapelab.history.routes import Routes
from tapelab.market.symbols import Market
from tapelab.massive.wire.catalogue import read_key
from tapelab.store.lake import Lake

NEAREST = 3  # names suggested for one that is not known


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Known names that differ only in case, else those that look like it."""
    others = [other for other in known if other != name]
    same = [other for other in others if other.casefold() == name.casefold()]
    return same or get_close_matches(name, others, n=NEAREST)


def in_lake(lake: Lake, product: str | None, days: Sequence[date]) -> list[str]:
    """Every symbol of the latest of these days whose file is here."""
    here = [day for day in days if product is not None and lake.day_file(product, day)]
    return lake.names(product, here[-1]) if product is not None and here else []


def of_any_day(lake: Lake, product: str | None) -> list[str]:
    """Every symbol of the latest day whose file is here."""
    if product is None:
        return []
    paths = (lake.folder / product).glob("[0-9]*/[0-9]*/*.parquet")
    keys = [path.relative_to(lake.folder).with_suffix(".csv.gz").as_posix() for path in paths]
    here = sorted(day for name, day in filter(None, map(read_key, keys)) if name == product)
    return lake.names(product, here[-1]) if here else []


def asked(routes: Routes, market: Market, name: str) -> list[str]:
    """Stocks that begin as `name` does, by one question to REST where it is open and the budget has room."""
    left = routes.budget.left()
    if market is not Market.STOCKS or left.rest_day == 0 or left.rest_minute == 0:
        return []
    with contextlib.suppress(SourceError, BudgetExceeded, SettingError):
        return routes.rest.symbols_like(name)
    return []
