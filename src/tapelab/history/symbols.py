"""Who traded on a day, as known then: from the day's own file, which knows nothing of what came later."""

from __future__ import annotations

from datetime import date, datetime

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import UnknownName, UsageError
from tapelab.history.fetch import download_flat_file
from tapelab.market import ranges
from tapelab.market.symbols import TEST_CURRENCIES, Market, is_test
from tapelab.massive.wire.catalogue import CATALOGUE
from tapelab.settings import current
from tapelab.store.lake import Lake


def list_symbols(day: date | str, *, market: str = "stocks", top: int | None = None) -> list[str]:
    """Every symbol that traded on a day, from the day bars of its flat file, sorted by name.

    `top=N`: the N with the largest dollar volume, largest first; dollar volume is close × volume of the day
    bar, unadjusted. Test symbols are left out, unless the whole market is simulated. A file that is in the
    lake is used as it is; otherwise it is downloaded. Raises `UsageError` for what makes no sense, `NoData`
    for a day without a session, `NotFound` for one that has no file (yet), and what `download_flat_file`
    raises.
    """
    asked = _market(market)
    if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
        raise UsageError(f"top={top!r} is not a number of symbols.", remedy="Use 1 or more, or leave it out.")
    if top is not None and asked is Market.INDICES:
        raise UsageError("Indices have no volume.", remedy="Leave top out.")
    on = day.date() if isinstance(day, datetime) else day
    session = ranges.resolve(on, on, asked).first
    daily = [kind.name for kind in CATALOGUE.values() if kind.market is asked and kind.daily]
    # The vendor's files have had a symbol's day bar twice; it counts once.
    worth: dict[str, float] = {}
    for product in daily:
        for symbol, dollars in _traded(product, session):
            worth[symbol] = max(dollars, worth.get(symbol, 0.0))
    if top is None:
        return sorted(worth)
    return sorted(worth, key=lambda symbol: (-worth[symbol], symbol))[:top]


def _market(name: str) -> Market:
    try:
        return Market(name)
    except ValueError as cause:
        raise UnknownName.among("market", str(name), list(Market)) from cause


def _traded(product: str, day: date) -> list[tuple[str, float]]:
    """Each row's symbol and dollar volume."""
    lake = Lake(current())
    if lake.day_file(product, day) is None:
        download_flat_file(product, day)
    file, table = lake.day_file(product, day), lake.rows(product, day)
    simulated = file is not None and file.tape.startswith("simulated")
    symbols = table["symbol" if "symbol" in table.column_names else "ticker"].to_pylist()
    dollars = [0.0] * len(table)
    if "volume" in table.column_names:
        close, volume = (pc.cast(table[name], pa.float64()) for name in ("close", "volume"))
        dollars = pc.fill_null(pc.multiply(close, volume), 0.0).to_pylist()
    rows = zip(symbols, dollars, strict=True)
    return [(symbol, of) for symbol, of in rows if simulated or not _for_tests(symbol)]


def _for_tests(symbol: str) -> bool:
    return is_test(symbol) or bool(set(symbol[2:].split("-")) & TEST_CURRENCIES)
