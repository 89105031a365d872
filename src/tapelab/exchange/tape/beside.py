"""Reference data beside a tape: `reference/NAME.json`, each an array of rows as the vendor's REST has them.

| file | a row is that of |
|---|---|
| `splits.json` | `/v3/reference/splits` or `/stocks/v1/splits` |
| `dividends.json` | `/v3/reference/dividends` or `/stocks/v1/dividends` |
| `tickers.json` | `/v3/reference/tickers`, with any of the details; by a `cusip` it is found, not shown |
| `ticker_events.json` | `results` of `/vX/reference/tickers/{id}/events` |
| `official.json` | `/v1/open-close`: `symbol`, `from`, the official `open` and `close`, and more |
| `luld.json` | the stream's `LULD`: `T`, `h`, `l`, `t` in nanoseconds, and more |

A file that is not there means that the tape does not know; an empty array, that there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Literal, cast

import msgspec

from tapelab.errors import Damaged
from tapelab.market import sessions
from tapelab.market.adjust import Split
from tapelab.market.symbols import Market
from tapelab.massive import wire

Name = Literal["splits", "dividends", "tickers", "ticker_events", "official", "luld"]
Row = Mapping[str, object]  # in the vendor's own form

FILES_KEPT = 16  # read files that are kept in memory
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class _Split(msgspec.Struct):
    ticker: str
    execution_date: date
    split_from: _Positive
    split_to: _Positive


class _Dividend(msgspec.Struct):
    ticker: str
    ex_dividend_date: date
    cash_amount: float


class _Ticker(msgspec.Struct):
    ticker: str
    active: bool = True
    list_date: date | None = None
    delisted_utc: str | None = None


class _Change(msgspec.Struct):
    ticker: str


class _Event(msgspec.Struct):
    type: str
    date: date
    ticker_change: _Change


class _Events(msgspec.Struct):
    events: list[_Event]


class _Official(msgspec.Struct, rename={"from_": "from"}):
    symbol: str
    from_: date
    open: _Positive
    close: _Positive
    preMarket: _Positive | None = None  # noqa: N815
    afterHours: _Positive | None = None  # noqa: N815


class _Band(msgspec.Struct):
    T: str
    h: float
    l: float  # noqa: E741
    t: int


_FORMS: dict[Name, type[msgspec.Struct]] = {
    "splits": _Split,
    "dividends": _Dividend,
    "tickers": _Ticker,
    "ticker_events": _Events,
    "official": _Official,
    "luld": _Band,
}


def rows(folder: Path, name: Name) -> Sequence[Row] | None:
    """The rows of one of these files; None if there is none. Raises `Damaged` for what is not such rows."""
    found = _file(folder, name)
    return None if found is None else _read(name, *found)


def splits(folder: Path) -> Sequence[Split] | None:
    """The splits beside a tape in our own form; None if they are not known."""
    found = _file(folder, "splits")
    return None if found is None else _splits(*found)


def as_splits(rows: Sequence[Row]) -> Sequence[Split]:
    """Rows of splits in our own form."""
    return wire.decode_splits(wire.envelope([msgspec.json.encode(row) for row in rows]))


def official(folder: Path, day: date) -> Mapping[str, Row]:
    """The official prices of a day by symbol, as far as they are known."""
    found = _file(folder, "official")
    return {} if found is None else _by_day(*found).get(day.isoformat(), {})


def bands(folder: Path, day: date) -> Sequence[Row]:
    """Limit-up limit-down bands of a day, in order of their `t`."""
    first, last = (sessions.day_start(Market.STOCKS, day + timedelta(days=n)) for n in (0, 1))
    found = [row for row in rows(folder, "luld") or () if first <= cast("int", row["t"]) < last]
    return sorted(found, key=lambda row: cast("int", row["t"]))


def _file(folder: Path, name: Name) -> tuple[Path, int, int] | None:
    """Where it lies, and what changes when it does."""
    path = folder / "reference" / f"{name}.json"
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return path, stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=FILES_KEPT)
def _read(name: Name, path: Path, modified: int, size: int) -> Sequence[Row]:
    try:
        body = path.read_bytes()
        msgspec.json.Decoder(GenericAlias(list, (_FORMS[name],))).decode(body)
        return msgspec.json.decode(body, type=list[dict[str, object]])
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Damaged(
            f"{path} is not an array of the vendor's rows: {cause}.", remedy="Mend or remove it."
        ) from cause


@lru_cache(maxsize=FILES_KEPT)
def _by_day(path: Path, modified: int, size: int) -> Mapping[str, Mapping[str, Row]]:
    found: dict[str, dict[str, Row]] = {}
    for row in _read("official", path, modified, size):
        found.setdefault(str(row["from"]), {})[str(row["symbol"])] = row
    return found


@lru_cache(maxsize=FILES_KEPT)
def _splits(path: Path, modified: int, size: int) -> Sequence[Split]:
    return as_splits(_read("splits", path, modified, size))
