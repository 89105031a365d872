"""Reference data beside a tape: `reference/NAME.json`, each an array of rows as the vendor's REST has them.

| file | a row is that of |
|---|---|
| `splits.json` | `/v3/reference/splits` or `/stocks/v1/splits` |
| `dividends.json` | `/v3/reference/dividends` or `/stocks/v1/dividends` |
| `tickers.json` | `/v3/reference/tickers`, with any of the details; by a `cusip` it is found, not shown |
| `ticker_events.json` | `results` of `/vX/reference/tickers/{id}/events` |
| `official.json` | `/v1/open-close`: `symbol`, `from`, the official `open` and `close`, and more |

(`luld.json` holds rows of the stream's `LULD`; `tape.py` reads it.)

A file that is not there means that the tape does not know; an empty array, that there are none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Literal

import msgspec

from tapelab.errors import Damaged
from tapelab.exchange.ask import Refused
from tapelab.exchange.tape import FlatFileTape, Row, Tape
from tapelab.market.adjust import Split
from tapelab.massive import wire

Name = Literal["splits", "dividends", "tickers", "ticker_events", "official"]

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


_FORMS: dict[Name, type[msgspec.Struct]] = {
    "splits": _Split,
    "dividends": _Dividend,
    "tickers": _Ticker,
    "ticker_events": _Events,
    "official": _Official,
}


def rows(tape: Tape, name: Name) -> Sequence[Row] | None:
    """What the tape knows of this; None if it does not know. Raises `Damaged` for what is not such rows."""
    if not isinstance(tape, FlatFileTape):
        made = {"splits": tape.splits, "dividends": tape.dividends}.get(name)
        return made() if made else None
    found = _file(tape, name)
    return None if found is None else _read(name, *found)


def known(tape: Tape, name: Name) -> Sequence[Row]:
    """What the tape knows of this; refused in the vendor's form, saying what is missing, if it does not."""
    found = rows(tape, name)
    if found is None:
        raise missing(tape, name)
    return found


def missing(tape: Tape, name: Name) -> Refused:
    file = f"reference/{name}.json"
    where = f"{file} in its folder" if isinstance(tape, FlatFileTape) else f"{file} in a folder of flat files"
    text = f"This tape ({tape.identity}) has no {name.replace('_', ' ')}: {where} would hold them."
    return Refused("no_ticker", text)


def splits(tape: Tape) -> Sequence[Split] | None:
    """The tape's splits; None if it does not know them."""
    if isinstance(tape, FlatFileTape):
        found = _file(tape, "splits")
        return None if found is None else _file_splits(*found)
    made = tape.splits()
    return None if made is None else _splits(made)


def official(tape: Tape, day: date) -> Mapping[str, Row]:
    """The official prices of a day by symbol, as far as the tape knows them."""
    found = _file(tape, "official") if isinstance(tape, FlatFileTape) else None
    return {} if found is None else _by_day(*found).get(day.isoformat(), {})


def _file(tape: FlatFileTape, name: Name) -> tuple[Path, int, int] | None:
    """Where it lies, and what changes when it does."""
    path = tape.folder / "reference" / f"{name}.json"
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
def _file_splits(path: Path, modified: int, size: int) -> Sequence[Split]:
    return _splits(_read("splits", path, modified, size))


def _splits(rows: Sequence[Row]) -> Sequence[Split]:
    return wire.decode_splits(wire.envelope([msgspec.json.encode(row) for row in rows]))
