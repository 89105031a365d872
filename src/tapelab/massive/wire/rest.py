"""REST answers: pages of bars, trades and quotes, splits and dividends, as the vendor's JSON and back.

Integers never pass through a double, so nanoseconds stay exact. An answer that is not what the protocol
promises raises `MalformedAnswer`; it is never an empty table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import MalformedAnswer, UsageError
from tapelab.market import symbols
from tapelab.market.adjust import Dividend, Split
from tapelab.market.sessions import dates_of
from tapelab.market.symbols import Market
from tapelab.massive.wire import columns
from tapelab.massive.wire.fields import EARLIEST, REST_ORDER, Kind

_GOOD = ("OK", "DELAYED")
_REMEDY = "Try again; if it stays so, the vendor's protocol has changed: report it."


@dataclass(frozen=True)
class Page:
    """One page of an answer: its rows as a table, and the address of the next page, if there is one."""

    table: pa.Table
    next_url: str | None
    count: int
    request_id: str | None


class _Envelope(msgspec.Struct):
    status: str
    request_id: str | int | None = None
    next_url: str | None = None
    ticker: str | None = None
    resultsCount: int | None = None  # noqa: N815
    count: int | None = None
    results: msgspec.Raw = msgspec.Raw(b"")
    error: str | None = None
    message: str | None = None


class _SplitRow(msgspec.Struct):
    execution_date: date
    split_from: float
    split_to: float
    ticker: str


class _DividendRow(msgspec.Struct):
    cash_amount: float
    ex_dividend_date: date
    ticker: str
    currency: str = "USD"


_envelope = msgspec.json.Decoder(_Envelope)
_splits = msgspec.json.Decoder(list[_SplitRow])
_dividends = msgspec.json.Decoder(list[_DividendRow])
_WRITERS = {kind: columns.writing_class(f"{kind}Row", keys) for kind, keys in REST_ORDER.items()}


def decode_page(body: bytes, kind: Kind, *, symbol: str | None = None) -> Page:
    """One page of bars, trades or quotes.

    `symbol`: what was asked for; rows of trades and quotes do not name it. `arrival` is the number of the row
    in this page, in the order of the answer (the vendor's default for ticks is newest first). `ts_recv` is
    null. Raises `MalformedAnswer`, also for a status that is not OK.
    """
    envelope = _open(body, kind)
    named = symbol or envelope.ticker
    market = symbols.parse(named).market if named else Market.STOCKS
    rows = _decode(_decoder(kind, market), envelope, kind)
    table = _bars(rows, named, market) if kind == "bars" else _ticks(rows, kind, symbol, market)
    _check(table, kind, envelope, symbol)
    return Page(table, envelope.next_url, len(rows), _text(envelope.request_id))


def decode_splits(body: bytes) -> list[Split]:
    """The splits of one page, in its order; `next_url` of the same body leads on."""
    rows = _decode(_splits, _open(body, "splits"), "splits")
    for row in rows:
        if row.split_from <= 0 or row.split_to <= 0:
            raise _malformed("splits", f"a split of {row.ticker} from {row.split_from} to {row.split_to}")
    return [Split(row.ticker, row.execution_date, row.split_from, row.split_to) for row in rows]


def decode_dividends(body: bytes) -> list[Dividend]:
    """The dividends of one page, in its order; an answer without a currency means US dollars."""
    rows = _decode(_dividends, _open(body, "dividends"), "dividends")
    return [Dividend(row.ticker, row.ex_dividend_date, row.cash_amount, row.currency) for row in rows]


def next_url(body: bytes) -> str | None:
    """The address of the page after this one; None on the last. It carries no key."""
    return _open(body, "page").next_url


def encode_rows(table: pa.Table, kind: Kind) -> list[bytes]:
    """Each row as one object of `results`, in the vendor's order of keys; what is null is left out.

    A fractional size of a trade is cut beside its exact `decimal_size`; an empty side of a quote has price 0.
    """
    by_key = columns.key_columns(table, kind, "rest")
    if kind == "trades":
        by_key["correction"] = [correction or None for correction in by_key["correction"]]
    ordered = [by_key[key] for key in REST_ORDER[kind]]
    return list(map(msgspec.json.Encoder().encode, map(_WRITERS[kind], *ordered)))


def encode_splits(splits: Iterable[Split]) -> list[bytes]:
    """Each split as one object of `results`."""
    return [
        msgspec.json.encode(
            {
                "execution_date": split.execution_date,
                "split_from": _shortest(split.split_from),
                "split_to": _shortest(split.split_to),
                "ticker": split.symbol,
            }
        )
        for split in splits
    ]


def encode_dividends(dividends: Iterable[Dividend]) -> list[bytes]:
    """Each dividend as one object of `results`."""
    return [
        msgspec.json.encode(
            {
                "cash_amount": _shortest(dividend.cash_amount),
                "currency": dividend.currency,
                "ex_dividend_date": dividend.ex_dividend_date,
                "ticker": dividend.symbol,
            }
        )
        for dividend in dividends
    ]


def envelope(rows: list[bytes] | None = None, **fields: object) -> bytes:
    """The vendor's answer around `rows`: other fields as given, those that are None left out.

    `rows=None` leaves `results` out, as the vendor does when a query for bars finds nothing. `status` is "OK"
    unless given.
    """
    named = {"status": "OK", **fields}
    parts = [b'"%b":%b' % (k.encode(), msgspec.json.encode(v)) for k, v in named.items() if v is not None]
    if rows is not None:
        parts.append(b'"results":[' + b",".join(rows) + b"]")
    return b"{" + b",".join(parts) + b"}"


def _open(body: bytes, what: str) -> _Envelope:
    try:
        envelope = _envelope.decode(body)
    except columns.NOT_JSON as error:
        raise _malformed(what, str(error)) from error
    if envelope.status not in _GOOD:
        said = envelope.error or envelope.message or "nothing more"
        raise _malformed(what, f"status {envelope.status}: {said}")
    return envelope


def _decode(decoder: msgspec.json.Decoder[list[Any]], envelope: _Envelope, what: str) -> list[Any]:
    promised = envelope.resultsCount or envelope.count or 0
    if bytes(envelope.results) in (b"", b"null"):
        if promised:
            raise _malformed(what, f"{promised} rows are announced and none are there")
        return []
    try:
        rows = decoder.decode(envelope.results)
    except columns.NOT_JSON as error:
        raise _malformed(what, str(error)) from error
    if envelope.resultsCount is not None and envelope.resultsCount != len(rows):
        raise _malformed(what, f"{envelope.resultsCount} rows are announced and {len(rows)} are there")
    return rows


@cache
def _decoder(kind: Kind, market: Market) -> msgspec.json.Decoder[list[Any]]:
    return columns.decoder_of_many(columns.reading_class(f"{kind}Row", kind, "rest", market=market))


def _bars(rows: list[Any], symbol: str | None, market: Market) -> pa.Table:
    names = [symbol if row.symbol is None else row.symbol for row in rows]
    if None in names:
        raise _malformed("bars", "no symbol is named")
    stamps = np.array([row.timestamp for row in rows], dtype=np.int64) * 1_000_000
    sessions = pa.array(dates_of(market, stamps))
    return columns.table_of(rows, "bars", "rest", symbol=pa.array(names, pa.string()), session=sessions)


def _ticks(rows: list[Any], kind: Kind, symbol: str | None, market: Market) -> pa.Table:
    if symbol is None:
        raise UsageError(f"Rows of {kind} do not name their symbol.", remedy="Give symbol=.")
    arrival = pa.array(np.arange(len(rows), dtype=np.int64))
    names = pa.repeat(pa.scalar(symbol, pa.string()), len(rows))
    more = {"symbol": names, "arrival": arrival}
    if market in (Market.CRYPTO, Market.FOREX):
        # There is no SIP, so the exchange's own clock is the event's.
        stamps = pa.array([row.ts_participant for row in rows], pa.int64())
        if stamps.null_count:
            raise _malformed(kind, "a row has no time")
        more |= {"ts_event": stamps, "ts_participant": pa.nulls(len(rows), pa.int64())}
    return columns.table_of(rows, kind, "rest", **more)


def _check(table: pa.Table, kind: Kind, envelope: _Envelope, symbol: str | None) -> None:
    if symbol and envelope.ticker and envelope.ticker.replace("-", "") != symbol.replace("-", ""):
        raise _malformed(kind, f"{symbol} was asked for and {envelope.ticker} came")
    for name in ("ts_participant", "ts_trf"):
        if name in table.column_names:
            earliest = pc.min(table.column(name)).as_py()
            if earliest is not None and earliest < EARLIEST:
                raise _malformed(kind, f"{name} has the impossible stamp {earliest}")


def _malformed(what: str, why: str) -> MalformedAnswer:
    return MalformedAnswer(f"The vendor's answer is not a page of {what}: {why}.", remedy=_REMEDY, what=what)


def _text(request_id: str | int | None) -> str | None:
    return None if request_id is None else str(request_id)


def _shortest(value: float) -> float | int:
    return int(value) if value == int(value) else value
