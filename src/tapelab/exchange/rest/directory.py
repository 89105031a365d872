"""What is known of the market itself: its exchanges, its conditions, kinds of tickers, when it is open."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from datetime import date, timedelta
from functools import lru_cache

import msgspec

from tapelab.exchange.rest import listing
from tapelab.exchange.rest.ask import Ask, Refused
from tapelab.exchange.rest.listing import Listing
from tapelab.exchange.tape import Row
from tapelab.market import clock, sessions
from tapelab.market.conditions import CONDITIONS, Condition, Moves
from tapelab.market.symbols import Market
from tapelab.massive import wire

ASSET_CLASSES = ("stocks", "options", "crypto", "fx", "futures")
AHEAD = timedelta(days=365)  # how far the vendor announces holidays
_VENUES = ("NYSE", "NASDAQ", "OTC")

# What the vendor calls them, where the calendar has another name.
_HOLIDAYS = {
    "Juneteenth National Independence Day": "Juneteenth",
    "July 4th": "Independence Day",
    "Mondays, Tuesdays, and Thursdays Before Independence Day": "Independence Day",
    "Wednesdays Before Independence Day including and after 2013": "Independence Day",
    "Black Friday": "Thanksgiving",
    "Christmas Eve": "Christmas",
}

_EXCHANGE = ("id", "type", "name", "acronym", "mic", "operating_mic", "participant_id", "url")
_EXCHANGES = (
    (1, "exchange", "NYSE American, LLC", "AMEX", "XASE", "XNYS", "A", "https://www.nyse.com/markets/nyse-american"),
    (2, "exchange", "Nasdaq OMX BX, Inc.", None, "XBOS", "XNAS", "B",
     "https://www.nasdaq.com/solutions/nasdaq-bx-stock-market"),
    (3, "exchange", "NYSE National, Inc.", "NSX", "XCIS", "XNYS", "C", "https://www.nyse.com/markets/nyse-national"),
    (4, "TRF", "FINRA NYSE TRF", None, "FINY", "XNYS", "D", "https://www.finra.org"),
    (4, "TRF", "FINRA Nasdaq TRF Carteret", None, "FINN", "FINR", "D", "https://www.finra.org"),
    (4, "TRF", "FINRA Nasdaq TRF Chicago", None, "FINC", "FINR", "D", "https://www.finra.org"),
    (4, "TRF", "FINRA Alternative Display Facility", None, "XADF", "FINR", "D", "https://www.finra.org"),
    (5, "SIP", "Unlisted Trading Privileges", None, None, "XNAS", "E", "https://www.utpplan.com"),
    (6, "TRF", "International Securities Exchange, LLC - Stocks", None, "XISE", "XNAS", "I",
     "https://nasdaq.com/solutions/nasdaq-ise"),
    (7, "exchange", "Cboe EDGA", None, "EDGA", "XCBO", "J", "https://www.cboe.com/us/equities"),
    (8, "exchange", "Cboe EDGX", None, "EDGX", "XCBO", "K", "https://www.cboe.com/us/equities"),
    (9, "exchange", "NYSE Chicago, Inc.", None, "XCHI", "XNYS", "M", "https://www.nyse.com/markets/nyse-chicago"),
    (10, "exchange", "New York Stock Exchange", None, "XNYS", "XNYS", "N", "https://www.nyse.com"),
    (11, "exchange", "NYSE Arca, Inc.", None, "ARCX", "XNYS", "P", "https://www.nyse.com/markets/nyse-arca"),
    (12, "exchange", "Nasdaq", None, "XNAS", "XNAS", "T", "https://www.nasdaq.com"),
    (13, "SIP", "Consolidated Tape Association", None, None, "XNYS", "S", "https://www.nyse.com/data/cta"),
    (14, "exchange", "Long-Term Stock Exchange", None, "LTSE", "LTSE", "L", "https://www.ltse.com"),
    (15, "exchange", "Investors Exchange", None, "IEXG", "IEXG", "V", "https://www.iextrading.com"),
    (16, "TRF", "Cboe Stock Exchange", None, "CBSX", "XCBO", "W", "https://www.cboe.com"),
    (17, "exchange", "Nasdaq Philadelphia Exchange LLC", None, "XPHL", "XNAS", "X",
     "https://www.nasdaq.com/solutions/nasdaq-phlx"),
    (18, "exchange", "Cboe BYX", None, "BATY", "XCBO", "Y", "https://www.cboe.com/us/equities"),
    (19, "exchange", "Cboe BZX", None, "BATS", "XCBO", "Z", "https://www.cboe.com/us/equities"),
    (20, "exchange", "MIAX Pearl", None, "EPRL", "MIHI", "H", "https://www.miaxoptions.com/alerts/pearl-equities"),
    (21, "exchange", "Members Exchange", None, "MEMX", "MEMX", "U", "https://www.memx.com"),
)  # fmt: skip

# Those that the vendor's captured answer describes; it has a few more codes.
_TYPES = {
    "CS": "Common Stock",
    "PFD": "Preferred Stock",
    "WARRANT": "Warrant",
    "RIGHT": "Rights",
    "BOND": "Corporate Bond",
    "ETF": "Exchange Traded Fund",
    "ETN": "Exchange Traded Note",
    "SP": "Structured Product",
    "ADRC": "American Depository Receipt Common",
    "ADRW": "American Depository Receipt Warrants",
    "ADRR": "American Depository Receipt Rights",
    "FUND": "Fund",
    "BASKET": "Basket",
    "UNIT": "Unit",
    "LT": "Liquidating Trust",
}


_CONDITIONS = Listing(
    filters={"id": "number", "type": "text", "name": "text"},
    sort="id",
    order="asc",
    limit=10,
    most=1000,
    counted=True,
)


def exchanges(ask: Ask) -> bytes:
    """`/v3/reference/exchanges`: the US stock exchanges, on one page."""
    _of_stocks(ask)
    here = {"asset_class": "stocks", "locale": "us"}
    named = [dict(zip(_EXCHANGE, values, strict=True)) for values in _EXCHANGES]
    return _all_of_us(ask, [{k: v for k, v in {**row, **here}.items() if v is not None} for row in named])


def ticker_types(ask: Ask) -> bytes:
    """`/v3/reference/tickers/types`, on one page."""
    _of_stocks(ask)
    here = {"asset_class": "stocks", "locale": "us"}
    return _all_of_us(ask, [{"code": code, "description": text, **here} for code, text in _TYPES.items()])


def conditions(ask: Ask) -> bytes:
    """`/v3/reference/conditions`: those of trades. Those of quotes and other markets are not known here."""
    _of_stocks(ask)
    if ask.choice("data_type", "trade", "trade", "bbo", "nbbo") != "trade":
        raise Refused("no_ticker", "The conditions of quotes are not known here; those of trades are.")
    sip = ask.choice("sip", "", "", "CTA", "UTP", "OPRA")
    return listing.answer(
        ask, _CONDITIONS, [_condition(c) for c in CONDITIONS if not sip or sip in _letters(c)]
    )


def status_now(ask: Ask) -> bytes:
    """`/v1/marketstatus/now`, by the exchange's own clock. Other markets than stocks are left out."""
    phase = phase_at(ask.now)
    market = {"early_trading": "extended-hours", "late_trading": "extended-hours"}.get(phase, phase)
    return msgspec.json.encode(
        {
            "market": market,
            "earlyHours": phase == "early_trading",
            "afterHours": phase == "late_trading",
            "serverTime": clock.iso(ask.now, sessions.NEW_YORK),
            "exchanges": {venue.lower(): market for venue in _VENUES},
        }
    )


def status_upcoming(ask: Ask) -> bytes:
    """`/v1/marketstatus/upcoming`: the holidays and early closes of the next year, one row for each venue."""
    rows = []
    for day, name, early in _holidays(ask.today, ask.today + AHEAD):
        row: dict[str, object] = {"date": day.isoformat(), "name": name, "status": "closed"}
        if early is not None:
            utc = {"open": clock.iso(early.open), "close": clock.iso(early.close)}
            row |= {"status": "early-close"} | {k: v.replace("+00:00", ".000Z") for k, v in utc.items()}
        rows += [{"exchange": venue, **row} for venue in _VENUES]
    return msgspec.json.encode(rows)


def phase_at(now: int) -> str:
    """`open`, `early_trading`, `late_trading` or `closed`, at an instant (ns UTC)."""
    today = sessions.session(Market.STOCKS, clock.date_of(now, sessions.NEW_YORK))
    if today is None or not today.start <= now < today.end:
        return "closed"
    if now < today.open:
        return "early_trading"
    return "open" if now < today.close else "late_trading"


def _of_stocks(ask: Ask) -> None:
    """Refuse a question about another market."""
    asset_class = ask.choice("asset_class", "stocks", *ASSET_CLASSES)
    if asset_class != "stocks":
        raise Refused("no_ticker", f"This exchange speaks for stocks; it knows nothing of {asset_class}.")


def _all_of_us(ask: Ask, rows: Iterable[Row]) -> bytes:
    found = [] if ask.choice("locale", "us", "us", "global") == "global" else list(rows)
    return wire.envelope(
        [msgspec.json.encode(row) for row in found], request_id=ask.request_id, count=len(found)
    )


def _condition(condition: Condition) -> dict[str, object]:
    row: dict[str, object] = {
        "id": condition.id,
        "type": condition.kind,
        "name": condition.name,
        "asset_class": "stocks",
        "sip_mapping": _letters(condition) or None,
        "update_rules": {
            "consolidated": _moves(condition.consolidated),
            "market_center": _moves(condition.market_center),
        },
        "data_types": ["trade"],
        "legacy": condition.legacy or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _letters(condition: Condition) -> dict[str, str]:
    letters = {"CTA": condition.cta, "UTP": condition.utp}
    return {sip: letter for sip, letter in letters.items() if letter is not None}


def _moves(moves: Moves) -> Row:
    return {f"updates_{name}": allowed for name, allowed in moves._asdict().items()}


@lru_cache(maxsize=8)
def _holidays(first: date, last: date) -> tuple[tuple[date, str, sessions.Session | None], ...]:
    import exchange_calendars

    with warnings.catch_warnings():
        # exchange_calendars does what newer versions of pandas will refuse.
        warnings.simplefilter("ignore")
        calendar = exchange_calendars.get_calendar("XNYS")
        sources = [calendar.regular_holidays, *(days for _, days in calendar.special_closes)]
        found = [days.holidays(first.isoformat(), last.isoformat(), return_name=True) for days in sources]
    names = {stamp.date(): str(name) for days in reversed(found) for stamp, name in days.items()}
    closed = [(s.date(), None) for s in found[0].index if sessions.session(Market.STOCKS, s.date()) is None]
    early = [(s.date, s) for s in sessions.between(Market.STOCKS, first, last) if s.early_close]
    told = [(day, names.get(day, "Early close"), session) for day, session in [*closed, *early]]
    return tuple(sorted(((d, _HOLIDAYS.get(name, name), s) for d, name, s in told), key=lambda row: row[0]))
