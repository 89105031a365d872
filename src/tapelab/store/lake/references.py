"""The market's lists of splits and dividends since some day, beside those of single symbols in the lake.

    lake/reference/splits/market.json    one answer for many symbols

Files of symbols are in capitals there, so no symbol is called `market`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from tapelab.market.adjust import Dividend, Split
from tapelab.settings import Settings
from tapelab.store import files
from tapelab.store.lake import Dividends, Lake, Splits, sheets


class MarketList(msgspec.Struct, frozen=True):
    """Every split, or every dividend, of the market on `since` or later, as known at `known_at` (ns UTC)."""

    since: date
    known_at: int
    splits: tuple[Split, ...] | None = None
    dividends: tuple[Dividend, ...] | None = None


class LakeWithLists(Lake):
    """The lake, where a list of the market answers for each symbol that was not asked for later.

    `first`: the first day of the bars that are looked at; a list that begins after it does not count.
    """

    def __init__(self, settings: Settings, first: date) -> None:
        super().__init__(settings)
        self._first = first

    def splits(self, symbol: str) -> Splits | None:
        own, listed = super().splits(symbol), self._listed("splits")
        if listed is None or (own is not None and own.known_at >= listed.known_at):
            return own
        return Splits(listed.known_at, tuple(listed.splits.get(symbol, ())))

    def dividends(self, symbol: str) -> Dividends | None:
        own, listed = super().dividends(symbol), self._listed("dividends")
        if listed is None or (own is not None and own.known_at >= listed.known_at):
            return own
        return Dividends(listed.known_at, tuple(listed.dividends.get(symbol, ())))

    def keep_list(self, known: MarketList) -> None:
        """Keep a list, whole or not at all; what was held of its kind is replaced."""
        path = self._list_path("dividends" if known.splits is None else "splits")
        files.make_folder(path.parent)
        files.write_bytes(path, msgspec.json.encode(known), replace=True)

    def _listed(self, kind: str) -> _BySymbol | None:
        path = self._list_path(kind)
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        listed = _read(path, found.st_mtime_ns, found.st_size)
        return listed if listed.since <= self._first else None

    def _list_path(self, kind: str) -> Path:
        return self.folder / "reference" / kind / "market.json"


class _BySymbol(NamedTuple):
    since: date
    known_at: int
    splits: Mapping[str, Sequence[Split]]
    dividends: Mapping[str, Sequence[Dividend]]


@lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> _BySymbol:
    found = sheets.decoded(path.read_bytes(), MarketList, path)
    splits: dict[str, list[Split]] = {}
    for split in found.splits or ():
        splits.setdefault(split.symbol, []).append(split)
    dividends: dict[str, list[Dividend]] = {}
    for dividend in found.dividends or ():
        dividends.setdefault(dividend.symbol, []).append(dividend)
    return _BySymbol(found.since, found.known_at, splits, dividends)
