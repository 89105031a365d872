"""Reads every file of a lake and names those that are not what was written."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

import msgspec

from tapelab.errors import Damaged
from tapelab.massive.wire.catalogue import read_key
from tapelab.store.lake import sheets

What = Literal["day", "month", "rest", "ticks", "reference", "unknown"]

_MONTH = re.compile(r"(?P<product>\w+/\w+)/\d{4}/(?P<month>\d{4}-\d{2})\.parquet")
_REST = re.compile(r"rest/(?P<base>\w+)/(?P<symbol>[^/]+)/(?P<stretch>\d{4}(-\d{2})?)\.parquet")

_TICKS = re.compile(r"ticks/(?P<kind>\w+)/(?P<symbol>[^/]+)/[\d-]{10}/(?P<stretch>\d+-\d+)\.parquet")


class _About(msgspec.Struct):
    rows: int | None = None


class _Day(msgspec.Struct):
    final: bool


class _Provisional(msgspec.Struct):
    days: dict[date, _Day] = {}


@dataclass(frozen=True)
class Broken:
    """A damaged file of the lake and what it held, so that it can be had again.

    A `day` is a flat file (`product`, `day`); a `month` is derived from its days; `rest` holds one symbol's
    bars (`symbol`, `base`, `stretch`: a month, or a year of day bars), `ticks` one symbol's trades or quotes
    (`base`) from the first to before the second number of `stretch`, ns UTC.
    """

    path: Path
    what: What
    product: str = ""
    day: date | None = None
    symbol: str = ""
    base: str = ""
    stretch: str = ""

    def __str__(self) -> str:
        return f"{self.path} is not what was written"


def broken_files(folder: Path) -> Iterator[Broken]:
    """Every damaged file below a lake's folder; reads all of them, a row group at a time."""
    for path in sorted(folder.rglob("*.parquet")):
        if not path.name.startswith(".") and not _good(path):
            yield _named(folder, path)
    for path in sorted((folder / "reference").rglob("*.json")):
        try:
            msgspec.json.decode(path.read_bytes())
        except msgspec.DecodeError:
            yield Broken(path, "reference")


def products(folder: Path) -> dict[str, list[date]]:
    """The products of which there are day files below a lake's folder, and of which days, oldest first."""
    found: dict[str, list[date]] = {}
    for path in sorted(folder.glob("*/*/[0-9]*/[0-9]*/????-??-??.parquet")):
        if parsed := read_key(path.relative_to(folder).with_suffix(".csv.gz").as_posix()):
            found.setdefault(parsed[0], []).append(parsed[1])
    return found


def provisional(folder: Path) -> dict[tuple[str, str], list[date]]:
    """What REST gave before a day was final: its days, by symbol and base. Damaged files are passed over."""
    found: dict[tuple[str, str], list[date]] = {}
    for path in sorted(folder.glob("rest/*/*/*.parquet")):
        match = _REST.fullmatch(path.relative_to(folder).as_posix())
        if match is None:
            continue
        with contextlib.suppress(Damaged):
            footer = sheets.footer(path)
            days = sheets.decoded(footer.about, _Provisional, path).days if footer else {}
            open_ = [day for day, known in days.items() if not known.final]
            if open_:
                found.setdefault((unquote(match["symbol"]), match["base"]), []).extend(open_)
    return found


def _good(path: Path) -> bool:
    try:
        found = sheets.footer(path)
        if found is None:
            return True  # taken away meanwhile
        rows = sheets.decoded(found.about, _About, path).rows
        return sheets.check(path) == (found.metadata.num_rows if rows is None else rows)
    except Damaged:
        return False
    except FileNotFoundError:
        return True


def _named(folder: Path, path: Path) -> Broken:
    name = path.relative_to(folder).as_posix()
    if parsed := read_key(name.replace(".parquet", ".csv.gz")):
        return Broken(path, "day", parsed[0], parsed[1])
    if match := _MONTH.fullmatch(name):
        return Broken(path, "month", match["product"], date.fromisoformat(f"{match['month']}-01"))
    if match := _REST.fullmatch(name):
        symbol = unquote(match["symbol"])
        return Broken(path, "rest", symbol=symbol, base=match["base"], stretch=match["stretch"])
    if match := _TICKS.fullmatch(name):
        symbol = unquote(match["symbol"])
        return Broken(path, "ticks", symbol=symbol, base=match["kind"], stretch=match["stretch"])
    return Broken(path, "unknown")
