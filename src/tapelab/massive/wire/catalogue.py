"""Every product of daily files that the vendor lists, in all markets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Literal

from tapelab.errors import UnknownName
from tapelab.market.symbols import Market
from tapelab.massive.wire.fields import PRODUCTS, Kind, Product

_BARS = "ticker volume open close high low window_start transactions"
_FUTURES = {
    "session_aggs_v1": "ticker session_end_date window_start open high low close volume dollar_volume "
    "transactions settlement_price",
    "minute_aggs_v1": "ticker exchange session_end_date window_start open high low close volume "
    "dollar_volume transactions",
    "trades_v1": "ticker timestamp sequence_number report_sequence price size correction exchange "
    "session_end_date",
    "quotes_v1": "ticker timestamp sequence_number report_sequence ask_timestamp ask_price ask_size "
    "bid_timestamp bid_price bid_size exchange session_end_date",
}
_OPTIONS = {
    "day_aggs_v1": _BARS,
    "minute_aggs_v1": _BARS,
    "trades_v1": "ticker conditions correction exchange price sip_timestamp size",
    "quotes_v1": "ticker ask_exchange ask_price ask_size bid_exchange bid_price bid_size sequence_number "
    "sip_timestamp",
}
_INDICES = {
    "day_aggs_v1": "ticker open close high low window_start",
    "minute_aggs_v1": "ticker open close high low window_start",
    "values_v1": "ticker value timestamp",
}
_FOREX = {
    "day_aggs_v1": _BARS,
    "minute_aggs_v1": _BARS,
    "quotes_v1": "ticker ask_exchange ask_price bid_exchange bid_price participant_timestamp",
}
_CRYPTO = {
    "day_aggs_v1": _BARS,
    "minute_aggs_v1": _BARS,
    "trades_v1": "ticker conditions exchange id participant_timestamp price size",
}
_OTHERS: tuple[tuple[str, Market, date, Mapping[str, str]], ...] = (
    ("us_options_opra", Market.OPTIONS, date(2014, 1, 1), _OPTIONS),
    ("us_indices", Market.INDICES, date(2023, 1, 1), _INDICES),
    ("global_forex", Market.FOREX, date(2009, 1, 1), _FOREX),
    ("global_crypto", Market.CRYPTO, date(2010, 1, 1), _CRYPTO),
    ("us_futures_cme", Market.FUTURES, date(2017, 4, 3), _FUTURES),
    ("us_futures_cbot", Market.FUTURES, date(2017, 4, 3), _FUTURES),
    ("us_futures_comex", Market.FUTURES, date(2017, 4, 3), _FUTURES),
    ("us_futures_nymex", Market.FUTURES, date(2017, 4, 3), _FUTURES),
)
# What the vendor keeps for a shorter time than the rest of its market.
_LATER: Mapping[str, date] = {"us_options_opra/quotes_v1": date(2022, 3, 7)}
_READ_AS: Mapping[str, tuple[Kind, Literal["1m", "1d"] | None]] = {
    "minute_aggs_v1": ("bars", "1m"),
    "day_aggs_v1": ("bars", "1d"),
    "trades_v1": ("trades", None),
    "quotes_v1": ("quotes", None),
}
_KEY = re.compile(r"(?P<product>\w+/\w+)/\d{4}/\d{2}/(?P<day>\d{4}-\d{2}-\d{2})\.csv\.gz")


@dataclass(frozen=True, slots=True)
class FileKind:
    """One kind of daily files of any market. `product`: how to read it into our schema, where we have one."""

    name: str
    market: Market
    header: tuple[str, ...]
    since: date
    product: Product | None = None

    @property
    def daily(self) -> bool:
        """A row is a bar of a whole day."""
        return self.name.endswith(("/day_aggs_v1", "/session_aggs_v1"))

    @property
    def bars(self) -> bool:
        return "_aggs_" in self.name


def _kinds() -> Iterator[FileKind]:
    for ours in PRODUCTS.values():
        yield FileKind(ours.name, ours.market, ours.header, ours.since, ours)
    for prefix, market, earliest, headers in _OTHERS:
        for short, text in headers.items():
            name, header, product = f"{prefix}/{short}", tuple(text.split()), None
            since = _LATER.get(name, earliest)
            if short in _READ_AS and market is not Market.FUTURES:
                product = Product(name, *_READ_AS[short], header, since, market)
            yield FileKind(name, market, header, since, product)


CATALOGUE: Mapping[str, FileKind] = {kind.name: kind for kind in _kinds()}


def product_of(market: Market, base: str) -> Product | None:
    """The daily files of a market's `1m`, `1d`, `trades` or `quotes`; None where the vendor has none."""
    products = (kind.product for kind in CATALOGUE.values() if kind.market is market)
    return next((p for p in products if p and base in (p.interval, p.kind)), None)


def kind_named(name: str) -> FileKind:
    """The kind of daily files of that name; `UnknownName` suggests the nearest."""
    if name not in CATALOGUE:
        raise UnknownName.among("product", name, CATALOGUE)
    return CATALOGUE[name]


def key_of(product: str, day: date) -> str:
    """Where the vendor keeps a product's file of a day, below the bucket."""
    return f"{kind_named(product).name}/{day:%Y}/{day:%m}/{day.isoformat()}.csv.gz"


def read_key(key: str | PurePosixPath) -> tuple[str, date] | None:
    """The product and day of a file's key, in any market; None if it is the key of nothing known."""
    match = _KEY.fullmatch(str(key))
    if match is None or match["product"] not in CATALOGUE:
        return None
    try:
        day = date.fromisoformat(match["day"])
    except ValueError:
        return None
    return (match["product"], day) if key_of(match["product"], day) == str(key) else None
