"""A market on paper: daily files as the vendor writes them, made with nothing of tapelab.

What a client has to be told follows from their text alone, so that no mistake of ours can judge itself.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

Row = dict[str, str]

MILLISECOND, SECOND, MINUTE = 10**6, 10**9, 60 * 10**9
OLD_DAY = date(2026, 2, 20)  # a Friday; the last day of whole sizes and shortest prices
NEW_DAY = date(2026, 10, 2)  # a Friday; six decimals
DAYS = (OLD_DAY, NEW_DAY)
DAY_BEFORE = date(2026, 10, 1)  # of which there are day bars only
SYMBOLS = ("A", "BApA", "BRK.B", "MSFT", "NE.WS.A")
PLAIN = "MSFT"  # its trades carry no condition and no correction, so that each of them moves every bar
TEST_SYMBOL = "ZVZZT"

HEADERS = {
    "trades_v1": "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp",
    "quotes_v1": "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,"
    "indicators,participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp",
    "minute_aggs_v1": "ticker,volume,open,close,high,low,window_start,transactions",
    "day_aggs_v1": "ticker,volume,open,close,high,low,window_start,transactions",
}
SEED = 20261002
TICKS_OF_A_SYMBOL = 90
MINUTES_OF_A_SYMBOL = 70


@dataclass(frozen=True)
class Paper:
    """Files in the vendor's layout below `folder`, and their rows as they were written."""

    folder: Path
    files: dict[str, list[Row]] = field(default_factory=dict)

    def rows(self, product: str, symbol: str | None = None, *days: date) -> list[Row]:
        """The rows of a product's files (of all days unless some are named), in the order of the files."""
        keys = [key(product, day) for day in days] or sorted(name for name in self.files if product in name)
        return [row for name in keys for row in self.files.get(name, []) if symbol in (None, row["ticker"])]

    def write(self, product: str, day: date, rows: list[Row]) -> None:
        """Put one daily file into the folder."""
        text = io.StringIO()
        writer = csv.DictWriter(text, HEADERS[product].split(","), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        path = self.folder / key(product, day)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))
        self.files[key(product, day)] = rows


def key(product: str, day: date) -> str:
    """Where the vendor keeps a product's file of a day."""
    return f"us_stocks_sip/{product}/{day:%Y}/{day:%m}/{day}.csv.gz"


def read(body: bytes, first: int = 0, last: int = 1 << 62) -> list[Row]:
    """The rows of a csv.gz file from one instant (ns) to before another."""
    lines = csv.reader(io.StringIO(gzip.decompress(body).decode()))
    names = next(lines)
    stamp = names.index("window_start" if "window_start" in names else "sip_timestamp")
    return [dict(zip(names, line, strict=True)) for line in lines if first <= int(line[stamp]) < last]


def instant(day: date, hour: int, minute: int = 0) -> int:
    """A time of New York as ns UTC."""
    stamp = datetime.combine(day, time(hour, minute), ZoneInfo("America/New_York"))
    return int(stamp.timestamp()) * SECOND


def make(folder: Path, *, well_known: bool = False) -> Paper:
    """Two days of five symbols and a test symbol, with all that is awkward in the vendor's files.

    Beside them lies one split; `well_known`: reference data of every kind.
    """
    paper = Paper(folder)
    chance = random.Random(SEED)
    for day in DAYS:
        for product, rows_of in (
            ("trades_v1", _trades),
            ("quotes_v1", _quotes),
            ("minute_aggs_v1", _minutes),
            ("day_aggs_v1", _days),
        ):
            symbols = (*SYMBOLS, TEST_SYMBOL) if product != "day_aggs_v1" else SYMBOLS
            paper.write(product, day, [row for symbol in symbols for row in rows_of(chance, symbol, day)])
    before = [row for symbol in SYMBOLS for row in _days(chance, symbol, DAY_BEFORE)]
    paper.write("day_aggs_v1", DAY_BEFORE, sorted([*before, ETHA_ROW], key=lambda row: row["ticker"]))
    (folder / "reference").mkdir()
    for name, rows in (REFERENCE if well_known else {"splits": SPLITS}).items():
        (folder / f"reference/{name}.json").write_text(json.dumps(rows))
    return paper


# The vendor's worked example of adjustment: a reverse split of 1 for 3, told by file and by REST.
SPLITS: list[dict[str, object]] = [
    {"ticker": "ETHA", "execution_date": "2026-10-06", "split_from": 3, "split_to": 1, "id": "E0"}
]
ETHA_ROW = {
    "ticker": "ETHA",
    "volume": "45879.000000",
    "open": "20.340000",
    "close": "20.340000",
    "high": "20.340000",
    "low": "20.340000",
    "window_start": str(instant(DAY_BEFORE, 0)),
    "transactions": "9",
}
ETHA_ADJUSTED = (61.02, 15_293)

REFERENCE: dict[str, list[dict[str, object]]] = {
    "splits": SPLITS,
    "dividends": [
        {"ticker": PLAIN, "ex_dividend_date": f"{NEW_DAY}", "cash_amount": 0.24, "currency": "USD"}
    ],
    "tickers": [{"ticker": symbol, "name": f"{symbol} Inc.", "market": "stocks"} for symbol in SYMBOLS],
    "ticker_events": [
        {"events": [{"type": "ticker_change", "date": "1986-03-13", "ticker_change": {"ticker": PLAIN}}]}
    ],
    "official": [{"symbol": PLAIN, "from": "2026-10-02", "open": 9.5, "close": 9.75}],
}


def _stamps(chance: random.Random, day: date) -> Iterator[int]:
    """Odd nanoseconds from 09:30 on; every third stands twice or more, some three seconds later."""
    at = instant(day, 9, 30) + chance.randrange(1, SECOND)
    for _ in range(TICKS_OF_A_SYMBOL):
        yield at
        at += chance.choice((0, 0, 1, 7, 999_999, 1_000_003, 345_678_901, 3 * SECOND + 1))


def _trades(chance: random.Random, symbol: str, day: date) -> Iterator[Row]:
    for number, at in enumerate(_stamps(chance, day), 1):
        plain = symbol == PLAIN
        off_exchange = not plain and chance.random() < 0.3
        size = Decimal(chance.choice((1, 3, 100, 100, 2_000, 123_456)))
        if day > OLD_DAY and chance.random() < 0.3:
            size = Decimal(chance.choice(("0.001500", "0.000001", "12.250000", "3.000015")))
        price = Decimal(chance.randrange(50_000, 150_000)) / 10_000
        absent = chance.choice(("0", "")) if day == OLD_DAY else "0"
        yield {
            "ticker": symbol,
            "conditions": "" if plain else chance.choice(("", "12", "37", "12,37", "14,12,37,41", "10,2,41")),
            "correction": absent if plain or chance.random() < 0.9 else "1",
            "exchange": "4" if off_exchange else str(chance.choice((1, 8, 11, 12, 19, 62))),
            "id": str(chance.choice((number, 52983525159748 + number, 71675222901845 + number))),
            "participant_timestamp": str(at - chance.randrange(1, 10**9)),
            "price": _number(price, day),
            "sequence_number": str(number * 7),
            "sip_timestamp": str(at),
            "size": _number(size, day),
            "tape": str(chance.randrange(1, 4)),
            "trf_id": str(chance.choice((201, 202, 203))) if off_exchange else absent,
            "trf_timestamp": str(at - chance.randrange(1, 10**8)) if off_exchange else absent,
        }


def _quotes(chance: random.Random, symbol: str, day: date) -> Iterator[Row]:
    for number, at in enumerate(_stamps(chance, day), 1):
        bid = Decimal(chance.randrange(50_000, 150_000)) / 10_000
        one_sided = chance.random()
        sides = {
            "ask_exchange": str(chance.choice((8, 11, 12, 19))),
            "ask_price": _shortest(bid + Decimal("0.01")),
            "ask_size": str(chance.choice((1, 100, 300))),
            "bid_exchange": str(chance.choice((8, 11, 12, 19))),
            "bid_price": _shortest(bid),
            "bid_size": str(chance.choice((2, 200, 1_600))),
        }
        if one_sided < 0.1:
            sides |= {"ask_price": "0.0", "ask_size": "0", "ask_exchange": chance.choice(("0", "12"))}
        if 0.05 < one_sided < 0.15:
            sides |= {"bid_price": "0.0", "bid_size": "0", "bid_exchange": chance.choice(("0", "12"))}
        yield {
            "ticker": symbol,
            **sides,
            "conditions": chance.choice(("", "1", "1,81", "0")),
            "indicators": chance.choice(("", "", "604", "604,901")),
            "participant_timestamp": str(at - chance.randrange(1, 10**9)),
            "sequence_number": str(number * 11),
            "sip_timestamp": str(at),
            "tape": str(chance.randrange(1, 4)),
            "trf_timestamp": "0",
        }


def _minutes(chance: random.Random, symbol: str, day: date) -> Iterator[Row]:
    at = instant(day, 9, 30)
    for _ in range(MINUTES_OF_A_SYMBOL):
        yield _bar(chance, symbol, day, at)
        at += MINUTE * chance.choice((1, 1, 1, 2, 5))  # a minute without a trade has no row


def _days(chance: random.Random, symbol: str, day: date) -> Iterator[Row]:
    yield _bar(chance, symbol, day, instant(day, 0))


def _bar(chance: random.Random, symbol: str, day: date, at: int) -> Row:
    low = Decimal(chance.randrange(50_000, 150_000)) / 10_000
    high = low + Decimal(chance.randrange(0, 5_000)) / 10_000
    inside = [low + (high - low) * chance.randrange(0, 5) / 4 for _ in range(2)]
    volume = Decimal(chance.randrange(1, 2_000_000))
    if day > OLD_DAY:
        volume += Decimal(chance.randrange(0, 10**6)) / 10**6
    return {
        "ticker": symbol,
        "volume": _number(volume, day),
        "open": _number(inside[0], day),
        "close": _number(inside[1], day),
        "high": _number(high, day),
        "low": _number(low, day),
        "window_start": str(at),
        "transactions": str(chance.randrange(1, 9_000)),
    }


def _number(value: Decimal, day: date) -> str:
    return f"{value:.6f}" if day > OLD_DAY else _shortest(value)


def _shortest(value: Decimal) -> str:
    return format(value.normalize(), "f")


# What the vendor's REST client must hand over for a row, by the names of its own models.


def trade_over_rest(row: Row) -> dict[str, object]:
    """A row of trades as the vendor's REST client names it."""
    return {
        "sip_timestamp": int(row["sip_timestamp"]),
        "participant_timestamp": int(row["participant_timestamp"]),
        "trf_timestamp": unless_zero(row["trf_timestamp"]),
        "trf_id": unless_zero(row["trf_id"]),
        "price": float(row["price"]),
        "size": int(Decimal(row["size"])),
        "decimal_size": _fraction(row["size"]),
        "exchange": int(row["exchange"]),
        "id": row["id"],
        "conditions": codes(row["conditions"]),
        "correction": unless_zero(row["correction"]),
        "sequence_number": int(row["sequence_number"]),
        "tape": int(row["tape"]),
    }


def quote_over_rest(row: Row) -> dict[str, object]:
    """A row of quotes as the vendor's REST client names it."""
    return {
        "sip_timestamp": int(row["sip_timestamp"]),
        "participant_timestamp": int(row["participant_timestamp"]),
        "trf_timestamp": None,
        **{f"{side}_{what}": float(row[f"{side}_{what}"]) for side in SIDES for what in ("price", "size")},
        **{f"{side}_exchange": int(row[f"{side}_exchange"]) for side in SIDES},
        "conditions": codes(row["conditions"]),
        "indicators": codes(row["indicators"]),
        "sequence_number": int(row["sequence_number"]),
        "tape": int(row["tape"]),
    }


def bar_over_rest(row: Row) -> dict[str, object]:
    """A row of bars as the vendor's REST client names it; a file holds no `vwap`."""
    return {
        "timestamp": int(row["window_start"]) // MILLISECOND,
        **{name: float(row[name]) for name in ("open", "high", "low", "close", "volume")},
        "transactions": int(row["transactions"]),
    }


# The same for its stream client.


def trade_over_stream(row: Row) -> dict[str, object]:
    """A row of trades as the vendor's stream client names it: whole shares, whole milliseconds."""
    trf = unless_zero(row["trf_timestamp"])
    return {
        "event_type": "T",
        "symbol": row["ticker"],
        "exchange": int(row["exchange"]),
        "id": row["id"],
        "tape": int(row["tape"]),
        "price": float(row["price"]),
        "size": int(Decimal(row["size"])),
        "fractional_shares": _fraction(row["size"]),
        "conditions": codes(row["conditions"]),
        "timestamp": int(row["sip_timestamp"]) // MILLISECOND,
        "sequence_number": int(row["sequence_number"]),
        "trf_id": unless_zero(row["trf_id"]),
        "trf_timestamp": None if trf is None else trf // MILLISECOND,
    }


def quote_over_stream(row: Row) -> dict[str, object]:
    """A row of quotes as the vendor's stream client names it: one condition, whole milliseconds."""
    listed = codes(row["conditions"])
    return {
        "event_type": "Q",
        "symbol": row["ticker"],
        **{f"{side}_exchange_id": int(row[f"{side}_exchange"]) for side in SIDES},
        **{f"{side}_price": float(row[f"{side}_price"]) for side in SIDES},
        **{f"{side}_size": int(row[f"{side}_size"]) for side in SIDES},
        "condition": listed[0] if listed else None,
        "indicators": codes(row["indicators"]),
        "timestamp": int(row["sip_timestamp"]) // MILLISECOND,
        "tape": int(row["tape"]),
        "sequence_number": int(row["sequence_number"]),
    }


def bar_over_stream(row: Row, event_type: str = "AM", length: int = MINUTE) -> dict[str, object]:
    """A row of bars as the vendor's stream client names it."""
    start = int(row["window_start"]) // MILLISECOND
    return {
        "event_type": event_type,
        "symbol": row["ticker"],
        "volume": int(Decimal(row["volume"])),
        **{name: float(row[name]) for name in ("open", "high", "low", "close")},
        "average_size": int(Decimal(row["volume"]) / int(row["transactions"])),
        "start_timestamp": start,
        "end_timestamp": start + length // MILLISECOND,
    }


SIDES = ("bid", "ask")


def folded(rows: list[Row], start_of: Callable[[int], int]) -> list[dict[str, object]]:
    """One symbol's base bars as longer ones, each from the window that `start_of` names."""
    windows: dict[int, list[Row]] = {}
    for row in rows:
        windows.setdefault(start_of(int(row["window_start"])), []).append(row)
    return [
        {
            "timestamp": start // MILLISECOND,
            "open": float(parts[0]["open"]),
            "high": max(float(part["high"]) for part in parts),
            "low": min(float(part["low"]) for part in parts),
            "close": float(parts[-1]["close"]),
            "volume": float(sum(Decimal(part["volume"]) for part in parts)),
            "transactions": sum(int(part["transactions"]) for part in parts),
        }
        for start, parts in windows.items()
    ]


def bars_of_trades(rows: list[Row], length: int) -> list[Row]:
    """Bars of trades of which each moves everything, in the columns of a file, with `vwap` beside them."""
    windows: dict[int, list[Row]] = {}
    for row in rows:
        windows.setdefault(int(row["sip_timestamp"]) // length * length, []).append(row)
    out = []
    for start, parts in windows.items():
        prices = [Decimal(part["price"]) for part in parts]
        sizes = [Decimal(part["size"]) for part in parts]
        numbers = {
            "volume": sum(sizes),
            "open": prices[0],
            "close": prices[-1],
            "high": max(prices),
            "low": min(prices),
            "vwap": sum(p * s for p, s in zip(prices, sizes, strict=True)) / sum(sizes),
        }
        texts = {name: str(value) for name, value in numbers.items()}
        named = {"ticker": parts[0]["ticker"], "window_start": str(start), "transactions": str(len(parts))}
        out.append({**named, **texts})
    return out


def codes(text: str) -> list[int] | None:
    """Conditions or indicators as numbers."""
    return [int(code) for code in text.split(",")] if text else None


def unless_zero(text: str) -> int | None:
    """A number, where 0 and nothing mean that there is none."""
    return int(text or 0) or None


def _fraction(size: str) -> str | None:
    """A size that is no whole number of shares as exact text, without needless zeros."""
    value = Decimal(size)
    return None if value == int(value) else _shortest(value)
