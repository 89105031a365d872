"""Symbols of the six markets, and how each of the vendor's protocols spells them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tapelab.errors import UnknownSymbol, UsageError


class Market(StrEnum):
    """The vendor's markets; one live connection carries one of them."""

    STOCKS = "stocks"
    OPTIONS = "options"
    CRYPTO = "crypto"
    FOREX = "forex"
    INDICES = "indices"
    FUTURES = "futures"


# Exchanges send these through their real systems to test them. No one owns them.
TEST_SYMBOLS = frozenset({"ZVZZT", "ZWZZT", "ZXZZT", "ZJZZT", "ZZZTA", "NTEST", "ATEST", "CTEST", "MTEST"})
TEST_CURRENCIES = frozenset({"XTS", "XXX"})  # ISO 4217: reserved for testing; no currency

_STOCK = re.compile(r"[A-Z][A-Za-z0-9]*(?:[./-][A-Za-z]+)*")
_OPTION = re.compile(r"O:[A-Z][A-Z0-9.]*\d{6}[CP]\d{8}")
_INDEX = re.compile(r"I:[A-Za-z0-9.:_-]+")
_PAIR = re.compile(r"(?P<base>[A-Z0-9]{2,12})[-/](?P<quote>[A-Z]{3,5})|(?P<both>[A-Z0-9]{6,15})")
_FUTURE = re.compile(r"[A-Z0-9]{1,4}[FGHJKMNQUVXZ]\d{1,2}")

# Currencies that pairs without a separator end with, longest first.
_QUOTES = ("USDT", "USDC", "USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "BTC", "ETH", "XTS", "XXX")


@dataclass(frozen=True)
class Symbol:
    """One instrument of one market. `text` is how tables name it."""

    market: Market
    text: str
    base: str = ""
    quote: str = ""

    @property
    def rest_v2(self) -> str:
        """As bars, snapshots and reference endpoints spell it: `X:BTCUSD`."""
        prefix = _PREFIX.get(self.market, "")
        return f"{prefix}{self.base}{self.quote}" if self.quote else self.text

    @property
    def rest_v3(self) -> str:
        """As the trades and quotes endpoints spell it: `X:BTC-USD`."""
        prefix = _PREFIX.get(self.market, "")
        return f"{prefix}{self.base}-{self.quote}" if self.quote else self.text

    @property
    def websocket(self) -> str:
        """As the stream spells it: `BTC-USD`, `EUR/USD`."""
        if not self.quote:
            return self.text
        return f"{self.base}{'/' if self.market is Market.FOREX else '-'}{self.quote}"

    @property
    def flat_file(self) -> str:
        """As the daily files spell it: `X:BTC-USD`."""
        return self.rest_v3

    def __str__(self) -> str:
        return self.text


_PREFIX = {Market.CRYPTO: "X:", Market.FOREX: "C:"}


def parse(text: str | Symbol, market: Market | None = None) -> Symbol:
    """The symbol that a user, a file or the stream means. Case matters: `BApA` is not `BAPA`.

    Without `market`, the vendor's prefixes decide (`O:` options, `X:` crypto, `C:` forex, `I:` indices) and
    everything else is a stock; futures need `market`. Raises `UnknownSymbol` with what is wrong.
    """
    if isinstance(text, Symbol):
        return text
    if not isinstance(text, str) or not text:
        raise UsageError(f"{text!r} is not a symbol.", remedy="Give text such as 'AAPL'.")
    if market is None:
        market = {"O:": Market.OPTIONS, "X:": Market.CRYPTO, "C:": Market.FOREX, "I:": Market.INDICES}.get(
            text[:2], Market.STOCKS
        )
    if market in _PREFIX:
        return _pair(text, market)
    pattern = {
        Market.STOCKS: _STOCK,
        Market.OPTIONS: _OPTION,
        Market.INDICES: _INDEX,
        Market.FUTURES: _FUTURE,
    }
    if pattern[market].fullmatch(text):
        return Symbol(market, text)
    if market is Market.STOCKS and _STOCK.fullmatch(text.upper()):
        raise UnknownSymbol(
            f"{text!r} is not spelt like a stock.", remedy=f"Did you mean {text.upper()!r}?", symbol=text
        )
    raise UnknownSymbol(
        f"{text!r} is not spelt like a symbol of {market}.", remedy=_EXAMPLES[market], symbol=text
    )


_EXAMPLES = {
    Market.STOCKS: "Stocks look like AAPL, BRK.B or KIMpL.",
    Market.OPTIONS: "Options look like O:AAPL251219C00150000.",
    Market.CRYPTO: "Crypto looks like X:BTC-USD.",
    Market.FOREX: "Forex looks like C:EUR-USD.",
    Market.INDICES: "Indices look like I:SPX.",
    Market.FUTURES: "Futures look like ESZ4.",
}


def _pair(text: str, market: Market) -> Symbol:
    prefix = _PREFIX[market]
    match = _PAIR.fullmatch(text.removeprefix(prefix))
    if match is None:
        raise UnknownSymbol(f"{text!r} is not a pair.", remedy=_EXAMPLES[market], symbol=text)
    base, quote = match["base"], match["quote"]
    if both := match["both"]:
        quote = both[-3:] if market is Market.FOREX else next((q for q in _QUOTES if both.endswith(q)), "")
        base = both.removesuffix(quote)
        if not base or not quote:
            raise UnknownSymbol(
                f"It is not clear where {text!r} splits.", remedy=_EXAMPLES[market], symbol=text
            )
    return Symbol(market, f"{prefix}{base}-{quote}", base, quote)


def parse_all(symbols: str | Symbol | Iterable[str | Symbol]) -> list[Symbol]:
    """Several symbols of one market, in the order given, none twice."""
    if not isinstance(symbols, Iterable):
        return [parse(symbols)]
    given = [symbols] if isinstance(symbols, str) else list(symbols)
    if not given:
        raise UsageError("No symbol was given.", remedy="Name at least one, such as 'AAPL'.")
    parsed = list(dict.fromkeys(parse(symbol) for symbol in given))
    markets = sorted({symbol.market for symbol in parsed})
    if len(markets) > 1:
        raise UsageError(
            f"The symbols belong to different markets ({', '.join(markets)}).",
            remedy="Ask for one at a time.",
        )
    return parsed


def looks_like_a_future(symbol: Symbol) -> bool:
    """Whether what was read as a stock is spelt as futures are: `ESZ4`."""
    return symbol.market is Market.STOCKS and _FUTURE.fullmatch(symbol.text) is not None


def is_test(symbol: str | Symbol) -> bool:
    """Whether a symbol exists only to test systems: left out of wildcards, never when it is named."""
    parsed = symbol if isinstance(symbol, Symbol) else None
    text = str(symbol)
    if parsed is not None and parsed.quote:
        return bool({parsed.base, parsed.quote} & TEST_CURRENCIES)
    return text in TEST_SYMBOLS or text.split(".")[0] in TEST_SYMBOLS
