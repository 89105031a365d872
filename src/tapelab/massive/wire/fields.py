"""The one table of fields: each column of ours beside its name and unit in each of the vendor's protocols.

Everything in `wire` is driven by `FIELDS`; no other room knows the vendor's keys or units.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import PurePosixPath
from typing import Literal

from tapelab.errors import UnknownName
from tapelab.market.clock import MILLISECOND, MINUTE, SECOND
from tapelab.market.symbols import Market

Kind = Literal["bars", "quotes", "trades"]
Channel = Literal["T", "Q", "A", "AM"]
Style = Literal["whole", "decimal"]
Sort = Literal["text", "instant", "price", "size", "count", "code", "codes"]

# A stamp outside these years has lost digits or has another unit; the vendor's history begins in 2003.
EARLIEST = 631_152_000 * SECOND  # 1990
LATEST = 4_102_444_800 * SECOND  # 2100


@dataclass(frozen=True, slots=True)
class Field:
    """One column of ours and what each protocol calls it; None where a protocol does not carry it.

    `rest_unit` and `stream_unit` are the nanoseconds in one unit of an instant (files hold ns).
    `rest_exact` and `stream_exact` name the key that holds the exact decimal as text when the plain one is
    cut to a whole number. `zero_is_null`: the vendor writes 0 for "none". `blank` is how a file writes none.
    """

    column: str
    sort: Sort
    csv: str | None = None
    rest: str | None = None
    stream: str | None = None
    required: bool = False
    rest_unit: int = 1
    stream_unit: int = MILLISECOND
    rest_exact: str | None = None
    stream_exact: str | None = None
    zero_is_null: bool = False
    blank: str = ""


FIELDS: Mapping[Kind, tuple[Field, ...]] = {
    "bars": (
        Field("timestamp", "instant", "window_start", "t", "s", required=True, rest_unit=MILLISECOND),
        Field("symbol", "text", "ticker", "T", "sym", required=True),
        Field("open", "price", "open", "o", "o", required=True),
        Field("high", "price", "high", "h", "h", required=True),
        Field("low", "price", "low", "l", "l", required=True),
        Field("close", "price", "close", "c", "c", required=True),
        Field("volume", "size", "volume", "v", "v", required=True, stream_exact="dv"),
        Field("vwap", "price", None, "vw", "vw"),
        Field("transactions", "count", "transactions", "n", None),
    ),
    "quotes": (
        Field("ts_event", "instant", "sip_timestamp", "sip_timestamp", "t", required=True),
        Field("symbol", "text", "ticker", None, "sym", required=True),
        Field("bid", "price", "bid_price", "bid_price", "bp", zero_is_null=True, blank="0.0"),
        Field("ask", "price", "ask_price", "ask_price", "ap", zero_is_null=True, blank="0.0"),
        Field("bid_size", "size", "bid_size", "bid_size", "bs", blank="0"),
        Field("ask_size", "size", "ask_size", "ask_size", "as", blank="0"),
        Field("bid_exchange", "code", "bid_exchange", "bid_exchange", "bx", blank="0"),
        Field("ask_exchange", "code", "ask_exchange", "ask_exchange", "ax", blank="0"),
        Field("sequence", "count", "sequence_number", "sequence_number", "q"),
        Field("conditions", "codes", "conditions", "conditions", "c"),
        Field("indicators", "codes", "indicators", "indicators", "i"),
        Field("tape", "code", "tape", "tape", "z"),
        Field(
            "ts_participant",
            "instant",
            "participant_timestamp",
            "participant_timestamp",
            zero_is_null=True,
            blank="0",
        ),
        Field("ts_trf", "instant", "trf_timestamp", "trf_timestamp", zero_is_null=True, blank="0"),
    ),
    "trades": (
        Field("ts_event", "instant", "sip_timestamp", "sip_timestamp", "t", required=True),
        Field("symbol", "text", "ticker", None, "sym", required=True),
        Field("price", "price", "price", "price", "p", required=True),
        Field(
            "size", "size", "size", "size", "s", required=True, rest_exact="decimal_size", stream_exact="ds"
        ),
        Field("exchange", "code", "exchange", "exchange", "x", blank="0"),
        Field("conditions", "codes", "conditions", "conditions", "c"),
        Field("sequence", "count", "sequence_number", "sequence_number", "q"),
        Field("id", "text", "id", "id", "i"),
        Field("tape", "code", "tape", "tape", "z"),
        Field("correction", "code", "correction", "correction", blank="0"),
        Field(
            "ts_participant",
            "instant",
            "participant_timestamp",
            "participant_timestamp",
            "pt",
            zero_is_null=True,
            blank="0",
        ),
        Field("trf_id", "code", "trf_id", "trf_id", "trfi", zero_is_null=True, blank="0"),
        Field("ts_trf", "instant", "trf_timestamp", "trf_timestamp", "trft", zero_is_null=True, blank="0"),
    ),
}

CHANNELS: Mapping[Channel, Kind] = {"T": "trades", "Q": "quotes", "A": "bars", "AM": "bars"}
BAR_LENGTH: Mapping[Channel, int] = {"A": SECOND, "AM": MINUTE}

# The order in which the vendor writes its keys.
REST_ORDER: Mapping[Kind, tuple[str, ...]] = {
    "bars": ("v", "vw", "o", "c", "h", "l", "t", "n"),
    "quotes": tuple(sorted(f.rest for f in FIELDS["quotes"] if f.rest)),
    "trades": tuple(
        sorted(key for f in FIELDS["trades"] for key in (f.rest, f.rest_exact) if key is not None)
    ),
}
STREAM_ORDER: Mapping[Channel, tuple[str, ...]] = {
    "T": ("sym", "x", "i", "z", "p", "s", "ds", "c", "t", "pt", "q", "trfi", "trft"),
    "Q": ("sym", "bx", "bp", "bs", "ax", "ap", "as", "c", "i", "t", "q", "z"),
    "A": ("sym", "v", "dv", "av", "dav", "op", "vw", "o", "c", "h", "l", "a", "z", "s", "e"),
    "AM": ("sym", "v", "dv", "av", "dav", "op", "vw", "o", "c", "h", "l", "a", "z", "s", "e"),
}

# What the stream carries beside that and no table holds: figures of the whole day, the average size, the end.
_OF_A_BAR = ("av", "dav", "op", "a", "z", "e", "otc")
NOT_KEPT: Mapping[Channel, tuple[str, ...]] = {"T": (), "Q": (), "A": _OF_A_BAR, "AM": _OF_A_BAR}


@dataclass(frozen=True, slots=True)
class Product:
    """A kind of daily files that we have a schema for. `header` is its first line; `since` its first day."""

    name: str
    kind: Kind
    interval: Literal["1m", "1d"] | None
    header: tuple[str, ...]
    since: date
    market: Market = Market.STOCKS


_BARS_HEADER = ("ticker", "volume", "open", "close", "high", "low", "window_start", "transactions")
_TRADES_HEADER = (
    "ticker", "conditions", "correction", "exchange", "id", "participant_timestamp", "price",
    "sequence_number", "sip_timestamp", "size", "tape", "trf_id", "trf_timestamp",
)  # fmt: skip
_QUOTES_HEADER = (
    "ticker", "ask_exchange", "ask_price", "ask_size", "bid_exchange", "bid_price", "bid_size", "conditions",
    "indicators", "participant_timestamp", "sequence_number", "sip_timestamp", "tape", "trf_timestamp",
)  # fmt: skip
_SINCE = date(2003, 9, 10)

PRODUCTS: Mapping[str, Product] = {
    product.name: product
    for product in (
        Product("us_stocks_sip/day_aggs_v1", "bars", "1d", _BARS_HEADER, _SINCE),
        Product("us_stocks_sip/minute_aggs_v1", "bars", "1m", _BARS_HEADER, _SINCE),
        Product("us_stocks_sip/trades_v1", "trades", None, _TRADES_HEADER, _SINCE),
        Product("us_stocks_sip/quotes_v1", "quotes", None, _QUOTES_HEADER, _SINCE),
    )
}

# From this day on, files hold volumes, sizes and prices with six decimals; quotes kept their old form.
DECIMAL_SINCE = date(2026, 2, 23)

_KEY = re.compile(r"(?P<product>\w+/\w+)/\d{4}/\d{2}/(?P<day>\d{4}-\d{2}-\d{2})\.csv\.gz")


def product_named(name: str) -> Product:
    """The product of that name; `UnknownName` suggests the nearest."""
    if name not in PRODUCTS:
        raise UnknownName.among("product", name, PRODUCTS)
    return PRODUCTS[name]


def file_key(product: str, day: date) -> str:
    """Where the vendor keeps a product's file of a day, below the bucket."""
    return f"{product_named(product).name}/{day:%Y}/{day:%m}/{day.isoformat()}.csv.gz"


def parse_key(key: str | PurePosixPath) -> tuple[str, date] | None:
    """The product and day of a file's key; None if it is not the key of a product known here."""
    match = _KEY.fullmatch(str(key))
    if match is None or match["product"] not in PRODUCTS:
        return None
    try:
        day = date.fromisoformat(match["day"])
    except ValueError:
        return None
    return (match["product"], day) if file_key(match["product"], day) == str(key) else None
