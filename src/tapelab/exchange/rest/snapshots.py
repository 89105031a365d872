"""Snapshots of both generations, and the last trade and quote, as the vendor shapes them.

What the tape or the plan does not hold (`said.py`) is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10

import msgspec

from tapelab.exchange.rest import listing
from tapelab.exchange.rest.ask import Ask, Refused
from tapelab.exchange.rest.daily import DECIMALS, shortest
from tapelab.exchange.rest.directory import phase_at
from tapelab.exchange.rest.listing import Listing
from tapelab.exchange.rest.said import Record, Said, heard, latest, said
from tapelab.exchange.tape import QUOTES, TRADES
from tapelab.market.clock import MILLISECOND
from tapelab.massive.wire.columns import plain

Body = dict[str, object]

MOVERS = 20
MOVERS_VOLUME = 10_000  # shares of a day, without which a symbol is no gainer and no loser
CHANGE_DIGITS = 3  # of a change: as many decimals, and as many digits if it is small

_UNIVERSAL = Listing({"ticker": "text"}, "ticker", "asc", 10, 250)
_TYPES = ("stocks", "options", "crypto", "fx", "indices")

# Our columns by the vendor's keys, in its order.
_LAST_TRADE = {
    "c": "conditions", "e": "correction", "i": "id", "p": "price", "s": "size", "ds": "exact",
    "x": "exchange", "r": "trf_id", "z": "tape", "T": "symbol", "t": "ts_event", "y": "ts_participant",
    "f": "ts_trf", "q": "sequence",
}  # fmt: skip
_LAST_QUOTE = {
    "c": "conditions", "i": "indicators", "p": "bid", "s": "bid_size", "x": "bid_exchange", "P": "ask",
    "S": "ask_size", "X": "ask_exchange", "z": "tape", "T": "symbol", "t": "ts_event", "y": "ts_participant",
    "f": "ts_trf", "q": "sequence",
}  # fmt: skip
_TRADE = {"i": "id", "p": "price", "s": "size", "ds": "exact", "t": "ts_event", "x": "exchange"}
_QUOTE = {"P": "ask", "S": "ask_size", "p": "bid", "s": "bid_size", "t": "ts_event"}
_BAR = {"c": "close", "h": "high", "l": "low", "o": "open", "v": "volume", "vw": "vwap", "dv": "exact"}
_ITEM_TRADE = {
    "conditions": "conditions", "exchange": "exchange", "id": "id", "last_updated": "ts_event",
    "price": "price", "size": "size", "decimal_size": "exact",
}  # fmt: skip
_ITEM_QUOTE = {
    "ask": "ask", "ask_exchange": "ask_exchange", "ask_size": "ask_size", "bid": "bid",
    "bid_exchange": "bid_exchange", "bid_size": "bid_size", "last_updated": "ts_event",
}  # fmt: skip
_ITEM_BAR = {name: name for name in ("close", "high", "low", "open", "volume", "vwap")} | {
    "decimal_volume": "exact"
}


def last_trade(ask: Ask) -> bytes:
    """`/v2/last/trade/{ticker}`: the last print."""
    return _answer(ask, results=_trade(latest(ask, TRADES), _LAST_TRADE))


def last_quote(ask: Ask) -> bytes:
    """`/v2/last/nbbo/{ticker}`: the last best bid and offer."""
    return _answer(ask, results=_quote(latest(ask, QUOTES), _LAST_QUOTE))


def single(ask: Ask) -> bytes:
    """`/v2/snapshot/…/tickers/{ticker}`: one symbol's day so far."""
    for one in said(ask, [ask.ticker]):
        return _answer(ask, ticker=_ticker(one))
    raise Refused("no_ticker")


def many(ask: Ask) -> bytes:
    """`/v2/snapshot/…/tickers`: the day so far of those asked for, or of everybody."""
    ask.flag("include_otc", False)
    asked = {name for name in ask.query.get("tickers", "").split(",") if name}
    found = [_ticker(one) for one in said(ask, sorted(asked) or None)]
    return _answer(ask, count=len(found), tickers=found)


def gainers(ask: Ask) -> bytes:
    """`/v2/snapshot/…/gainers`: the 20 that gained most since the close before, in percent."""
    return _movers(ask, 1)


def losers(ask: Ask) -> bytes:
    """`/v2/snapshot/…/losers`: the 20 that lost most since the close before, in percent."""
    return _movers(ask, -1)


def universal(ask: Ask) -> bytes:
    """`/v3/snapshot`: an item for each stock asked for, or for everybody; what is not found says so."""
    kind = ask.choice("type", "stocks", *_TYPES)
    if kind != "stocks":
        raise Refused("no_ticker", f"This exchange speaks for stocks; it knows nothing of {kind}.")
    asked = listing.values(ask.query.get("ticker.any_of", ""), "ticker.any_of")
    asked = sorted({name for name in [*asked, ask.query.get("ticker", "")] if name})
    page = listing.page(ask, _UNIVERSAL, [{"ticker": name} for name in asked or heard(ask)])
    symbols = [str(row["ticker"]) for row in page.rows]
    found = {one.symbol: one for one in said(ask, symbols)}
    names = {row["ticker"]: row.get("name") for row in ask.tape.reference("tickers") or ()}
    phase, timeframe = phase_at(ask.now), "DELAYED" if ask.plan.delay else "REAL-TIME"

    def item(symbol: str) -> Body:
        if symbol not in found:
            return {"error": "NOT_FOUND", "message": "Ticker not found.", "ticker": symbol}
        return _item(found[symbol], phase, timeframe, names.get(symbol))

    return listing.encoded(ask, [item(symbol) for symbol in symbols], page)


def _movers(ask: Ask, sign: int) -> bytes:
    ask.flag("include_otc", False)
    traded = [one for one in said(ask, None) if one.day and one.day["volume"] >= MOVERS_VOLUME]
    moved = [(sign * change[1], one) for one in traded if (change := _todays_change(one)) is not None]
    ordered = sorted((move for move in moved if move[0] > 0), key=lambda move: -move[0])
    found = [_ticker(one) for _, one in ordered[:MOVERS]]
    return _answer(ask, count=len(found), tickers=found)


def _ticker(one: Said) -> Body:
    minute = _bar(one.minute, {**_BAR, "n": "transactions"})
    if one.minute is not None and minute is not None:
        minute |= {"av": shortest(one.accumulated), "dav": plain(one.accumulated)}
        minute["t"] = one.minute["timestamp"] // MILLISECOND
    trade = _trade(one.trade, _TRADE)
    if one.trade is not None and trade is not None:
        trade["c"] = one.trade["conditions"]  # here alone the vendor says null for none
    change, percent = _todays_change(one) or (None, None)
    return _known(
        day=_bar(one.day, _BAR),
        lastQuote=_quote(one.quote, _QUOTE),
        lastTrade=trade,
        min=minute,
        prevDay=_bar(one.previous, _BAR),
        ticker=one.symbol,
        todaysChange=change,
        todaysChangePerc=percent,
        updated=one.updated,
    )


def _item(one: Said, phase: str, timeframe: str, name: object) -> Body:
    updated = _known(last_updated=one.updated)
    minute = _bar(one.minute, {**_ITEM_BAR, "transactions": "transactions"})
    quote, trade = _quote(one.quote, _ITEM_QUOTE), _trade(one.trade, _ITEM_TRADE)
    return _known(
        last_minute=minute and {**minute, **updated},
        last_quote=quote and {**quote, "timeframe": timeframe},
        last_trade=trade and {**trade, "timeframe": timeframe},
        market_status=phase,
        name=name,
        session={**_session(one, phase), **updated},
        ticker=one.symbol,
        type="stocks",
    )


def _session(one: Said, phase: str) -> Body:
    """The day in parts: each against the close before, the late part against the day's own close."""
    before = one.previous["close"] if one.previous else None
    close = one.day["close"] if one.day else None
    parts = {
        "": (one.price, before),
        "early_trading_": (one.early, before),
        "regular_trading_": (one.price if phase == "open" else close, before),
        "late_trading_": (one.late, close),
    }
    body = _bar(one.day, _ITEM_BAR) or {}
    for part, (price, base) in parts.items():
        if (change := _change(price, base)) is not None:
            body |= {f"{part}change": change[0], f"{part}change_percent": change[1]}
    more = {"previous_close": before, "price": one.price}
    return body | {key: shortest(value) for key, value in more.items() if value is not None}


def _todays_change(one: Said) -> tuple[float, float] | None:
    return _change(one.price, one.previous["close"] if one.previous else None)


def _change(price: float | None, base: float | None) -> tuple[float, float] | None:
    """How far a price is from another, and that in percent, as the vendor rounds them."""
    if price is None or not base:
        return None
    return _brief(price - base), _brief(100 * (price - base) / base)


def _brief(value: float) -> float:
    small = CHANGE_DIGITS - 1 - floor(log10(abs(value))) if value else 0
    return shortest(round(value, min(max(CHANGE_DIGITS, small), DECIMALS)))


def _trade(row: Record | None, keys: Mapping[str, str]) -> Body | None:
    """A print by these keys: its size whole, and the exact one beside it where it is not."""
    if row is None:
        return None
    whole = int(row["size"])
    exact = plain(row["size"]) if whole != row["size"] else None
    return _keyed({**row, "size": whole, "exact": exact, "correction": row["correction"] or None}, keys)


def _quote(row: Record | None, keys: Mapping[str, str]) -> Body | None:
    """A quote by these keys; the price of an empty side is 0."""
    return None if row is None else _keyed({**row, "bid": row["bid"] or 0.0, "ask": row["ask"] or 0.0}, keys)


def _bar(row: Record | None, keys: Mapping[str, str]) -> Body | None:
    return None if row is None else _keyed({**row, "exact": plain(row["volume"])}, keys)


def _keyed(row: Record, keys: Mapping[str, str]) -> Body:
    """A row by the vendor's keys, what is not known left out."""
    found = {key: row[column] for key, column in keys.items()}
    return {
        key: shortest(value) if isinstance(value, float) else value
        for key, value in found.items()
        if value is not None and value != []
    }


def _known(**fields: object) -> Body:
    return {key: value for key, value in fields.items() if value is not None}


def _answer(ask: Ask, **fields: object) -> bytes:
    return msgspec.json.encode({**fields, "status": "OK", "request_id": ask.request_id})
