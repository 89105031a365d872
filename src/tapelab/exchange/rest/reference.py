"""Reference data over REST: splits and dividends of both generations, tickers, their details and events.

Only what lies beside the tape (`tape/beside.py`), and what follows from it. Where there is none, the answer
is an error that says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from itertools import groupby
from math import prod
from typing import cast

import msgspec
import pyarrow.compute as pc

from tapelab.exchange.rest import daily, listing
from tapelab.exchange.rest.ask import QUOTED, Ask, Refused, day_of, malformed
from tapelab.exchange.rest.listing import Listing
from tapelab.exchange.tape import PRODUCTS, QUOTES, FlatFileTape, Name, Row, Tape

FACTOR_DECIMALS = 6

_SPLIT = ("execution_date", "id", "split_from", "split_to", "ticker")
_DIVIDEND = (
    "cash_amount", "currency", "declaration_date", "dividend_type", "ex_dividend_date", "frequency", "id",
    "pay_date", "record_date", "ticker",
)  # fmt: skip
_TICKER = (
    "ticker", "name", "market", "locale", "primary_exchange", "type", "active", "currency_name",
    "currency_symbol", "base_currency_name", "base_currency_symbol", "cik", "composite_figi",
    "share_class_figi", "last_updated_utc", "delisted_utc",
)  # fmt: skip
_DETAILS = (
    "ticker", "name", "market", "locale", "primary_exchange", "type", "active", "currency_name",
    "currency_symbol", "base_currency_name", "base_currency_symbol", "cik", "composite_figi",
    "share_class_figi", "market_cap", "phone_number", "address", "description", "sic_code",
    "sic_description", "ticker_root", "ticker_suffix", "homepage_url", "total_employees", "list_date",
    "delisted_utc", "branding", "share_class_shares_outstanding", "weighted_shares_outstanding", "round_lot",
)  # fmt: skip
_EVENTS = ("name", "composite_figi", "cik", "events")

_OLD_SPLITS = Listing(
    {"ticker": "text", "execution_date": "date"}, "execution_date", "desc", 10, 1000, shows=_SPLIT
)
_NEW_SPLITS = Listing(
    {"ticker": "text", "execution_date": "date", "adjustment_type": "text"},
    "execution_date", "desc", 100, 5000,
    shows=("adjustment_type", "execution_date", "historical_adjustment_factor", *_SPLIT[1:]),
    dotted=True,
)  # fmt: skip
_OLD_DIVIDENDS = Listing(
    {
        "ticker": "text", "ex_dividend_date": "date", "record_date": "date", "declaration_date": "date",
        "pay_date": "date", "frequency": "number", "cash_amount": "number", "dividend_type": "text",
    },
    "ex_dividend_date", "desc", 10, 1000,
    shows=_DIVIDEND,
)  # fmt: skip
_NEW_DIVIDENDS = Listing(
    {"ticker": "text", "ex_dividend_date": "date", "frequency": "number", "distribution_type": "text"},
    "ticker", "asc", 100, 5000,
    shows=(
        "cash_amount", "currency", "declaration_date", "distribution_type", "ex_dividend_date", "frequency",
        "historical_adjustment_factor", "id", "pay_date", "record_date", "split_adjusted_cash_amount",
        "ticker",
    ),
    dotted=True,
)  # fmt: skip
_TICKERS = Listing(
    {"ticker": "text", "type": "text", "market": "text", "name": "text", "primary_exchange": "text"},
    "ticker", "asc", 100, 1000,
    shows=_TICKER,
    counted=True,
)  # fmt: skip

# The two generations name kinds of dividends differently; those that mean the same:
_DISTRIBUTIONS = {"CD": "recurring", "SC": "special"}
_MARKETS = ("stocks", "crypto", "fx", "otc", "indices")
# What a ticker may also be found by, and the field that it means. The vendor's client drops leading zeros.
_FOUND_BY = {"exchange": "primary_exchange", "cusip": "cusip", "cik": "cik"}


def splits(ask: Ask) -> bytes:
    """`/v3/reference/splits`, newest first."""
    rows = _known(ask.tape, "splits")
    if "reverse_split" in ask.query:
        wanted = ask.flag("reverse_split", False)
        rows = [row for row in rows if _is_reverse(row) == wanted]
    return listing.answer(ask, _OLD_SPLITS, rows)


def stock_splits(ask: Ask) -> bytes:
    """`/stocks/v1/splits`: with the factor by which prices before a split are multiplied, newest first.

    A row of the older endpoint does not tell a stock dividend from a split, so it counts as one.
    """
    rows = _known(ask.tape, "splits")
    factors = split_factors(rows)

    def complete(row: Row) -> Row:
        factor = round(factors[_text(row, "ticker")][_text(row, "execution_date")], FACTOR_DECIMALS)
        kind = "reverse_split" if _is_reverse(row) else "forward_split"
        return {"adjustment_type": kind, "historical_adjustment_factor": factor, **row}

    return listing.answer(ask, _NEW_SPLITS, map(complete, rows))


def dividends(ask: Ask) -> bytes:
    """`/v3/reference/dividends`, newest first."""
    older = {new: old for old, new in _DISTRIBUTIONS.items()}
    rows = _known(ask.tape, "dividends")
    named = [_also(row, "dividend_type", older.get(_text(row, "distribution_type"))) for row in rows]
    return listing.answer(ask, _OLD_DIVIDENDS, named)


def stock_dividends(ask: Ask) -> bytes:
    """`/stocks/v1/dividends`: with the factor by which prices before a dividend are multiplied, by ticker.

    A factor is known where the tape has the close before this and every later dividend of the ticker; the
    cash in shares of today, where it has splits. What a row says itself stands.
    """
    rows = _known(ask.tape, "dividends")
    named = [_also(row, "distribution_type", _DISTRIBUTIONS.get(_text(row, "dividend_type"))) for row in rows]
    return listing.answer(ask, _NEW_DIVIDENDS, named, partial(_with_factors, ask.tape, rows))


def split_factors(rows: Iterable[Row]) -> dict[str, dict[str, float]]:
    """For each ticker and execution date what prices before it are multiplied by: this and all later splits.

    Dates run down.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for (ticker, day), same in _by_date(rows, "execution_date"):
        factor = prod(_number(row, "split_from") / _number(row, "split_to") for row in same)
        found[ticker][day] = factor * next(reversed(found[ticker].values()), 1.0)
    return found


def dividend_factors(tape: Tape, ticker: str, rows: Iterable[Row]) -> dict[str, float]:
    """The same for one ticker's dividends: each leaves 1 − cash / the raw close before of the price.

    From the newest date down, as far as the tape knows the closes.
    """
    found: dict[str, float] = {}
    factor = 1.0
    for (_, day), same in _by_date(rows, "ex_dividend_date"):
        close = _close_before(tape, ticker, date.fromisoformat(day))
        if close is None:
            break
        factor *= 1 - sum(_number(row, "cash_amount") for row in same) / close
        found[day] = factor
    return found


def tickers(ask: Ask) -> bytes:
    """`/v3/reference/tickers`. Without `reference/tickers.json`: the symbols of the tape's latest day."""
    market = ask.choice("market", "", "", *_MARKETS)
    active = ask.flag("active", True)
    day = day_of(ask.query["date"], "date") if "date" in ask.query else None
    rows = ask.tape.reference("tickers")
    if rows is None:
        # Of a symbol that trades, this much is known.
        unknowable = [name for name in ("type", "date", *_FOUND_BY) if name in ask.query]
        if unknowable or not active or market not in ("", "stocks"):
            raise _missing(ask.tape, "tickers")
        same = {"market": "stocks", "locale": "us", "active": True, "currency_name": "usd"}
        rows = [{"ticker": symbol, **same} for symbol in _symbols(ask.tape)]
    search = ask.query.get("search", "").lower()
    found = [row for row in _at(rows, day) if row.get("active", True) is active]
    found = [row for row in found if search in f"{row['ticker']}\n{row.get('name', '')}".lower()]
    for name, key in _FOUND_BY.items():
        if name in ask.query:
            wanted = ask.query[name].lstrip("0")
            found = [row for row in found if _text(row, key).lstrip("0") == wanted]
    return listing.answer(ask, _TICKERS, found)


def ticker_details(ask: Ask) -> bytes:
    """`/v3/reference/tickers/{ticker}`: all that is known of a ticker, today or at a date."""
    day = day_of(ask.query["date"], "date") if "date" in ask.query else None
    for row in _at(_known(ask.tape, "tickers"), day):
        if row["ticker"] == ask.ticker and row.get("active", True):
            return _one(ask, listing.shown(row, _DETAILS))
    raise Refused("no_ticker")


def ticker_events(ask: Ask) -> bytes:
    """`/vX/reference/tickers/{id}/events`: the tickers of who has this ticker, CUSIP or FIGI today."""
    for kind in filter(None, ask.query.get("types", "").split(",")):
        if kind != "ticker_change":
            raise malformed(f"'types' must be ticker_change, not '{kind[:QUOTED]}'")
    wanted = ask.path["id"]
    for row in _known(ask.tape, "ticker_events"):
        events = sorted(cast("list[Row]", row["events"]), key=lambda event: str(event["date"]), reverse=True)
        today = [cast("Row", event["ticker_change"])["ticker"] for event in events[:1]]
        if wanted in (*today, row.get("cusip"), row.get("composite_figi")):
            return _one(ask, listing.shown({**row, "events": events}, _EVENTS))
    raise Refused("no_ticker")


def _known(tape: Tape, name: Name) -> Sequence[Row]:
    """What the tape knows of this; refused in the vendor's form, saying what is missing, if it does not."""
    found = tape.reference(name)
    if found is None:
        raise _missing(tape, name)
    return found


def _missing(tape: Tape, name: Name) -> Refused:
    file = f"reference/{name}.json"
    where = f"{file} in its folder" if isinstance(tape, FlatFileTape) else f"{file} in a folder of flat files"
    text = f"This tape ({tape.identity}) has no {name.replace('_', ' ')}: {where} would hold them."
    return Refused("no_ticker", text)


def _with_factors(tape: Tape, rows: Sequence[Row], page: Sequence[Row]) -> list[Row]:
    """A page of all dividends `rows`, with what can be computed of them."""
    splits = tape.reference("splits")
    factors = {
        ticker: dividend_factors(tape, ticker, [row for row in rows if row["ticker"] == ticker])
        for ticker in {_text(row, "ticker") for row in page}
    }
    by_split = split_factors(splits or ())
    found: list[Row] = []
    for row in page:
        ticker, day = _text(row, "ticker"), _text(row, "ex_dividend_date")
        more: dict[str, object] = {}
        if day in factors[ticker]:
            more["historical_adjustment_factor"] = round(factors[ticker][day], FACTOR_DECIMALS)
        if splits is not None:
            cash = _number(row, "cash_amount") * _first_after(by_split.get(ticker, {}), day)
            more["split_adjusted_cash_amount"] = round(cash, FACTOR_DECIMALS)
        found.append({**more, **row})
    return found


def _symbols(tape: Tape) -> list[str]:
    """Every symbol of the tape's latest day; of its quotes, which are many, only if there is nothing else."""
    latest = max((day for product in PRODUCTS for day in tape.days(product)[-1:]), default=None)
    if latest is None:
        return []
    held = [product for product in PRODUCTS if latest in tape.days(product)]
    told = [product for product in held if product != QUOTES] or held
    names = [pc.unique(tape.table(product, latest).column("symbol")).to_pylist() for product in told]
    return sorted(set().union(*names))


def _at(rows: Iterable[Row], day: date | None) -> Iterable[Row]:
    """The tickers that were there on a day, active or not; without a day, as they are."""
    if day is None:
        return rows
    text = day.isoformat()
    there = [row for row in rows if str(row.get("list_date") or text) <= text]
    return [
        {**row, "active": text < str(row["delisted_utc"])} if row.get("delisted_utc") else row
        for row in there
    ]


def _one(ask: Ask, row: Row) -> bytes:
    return msgspec.json.encode({"results": row, "status": "OK", "request_id": ask.request_id})


def _close_before(tape: Tape, ticker: str, day: date) -> float | None:
    """The raw close of the last session in which it traded; None if the tape does not hold all until then."""
    known = set(tape.bar_days("1d"))
    while (before := daily.session_before(day)) in known:
        assert before is not None
        if closes := daily.bars(tape, "1d", before, ticker).column("close").to_pylist():
            return float(closes[0])
        day = before
    return None


def _first_after(factors: Mapping[str, float], day: str) -> float:
    """The factor of the first event after a day; 1 after the last."""
    return next((factors[other] for other in reversed(list(factors)) if other > day), 1.0)


def _by_date(rows: Iterable[Row], key: str) -> Iterable[tuple[tuple[str, str], list[Row]]]:
    """Rows by ticker and date, dates running down."""
    ordered = sorted(rows, key=lambda row: _text(row, key), reverse=True)
    ordered.sort(key=lambda row: _text(row, "ticker"))
    for (ticker, day), same in groupby(ordered, key=lambda row: (_text(row, "ticker"), _text(row, key))):
        yield (ticker, day), list(same)


def _also(row: Row, key: str, value: str | None) -> Row:
    return row if value is None else {key: value, **row}


def _is_reverse(row: Row) -> bool:
    return _number(row, "split_from") > _number(row, "split_to")


def _number(row: Row, name: str) -> float:
    return float(cast("float", row[name]))


def _text(row: Row, name: str) -> str:
    return str(row.get(name, ""))
