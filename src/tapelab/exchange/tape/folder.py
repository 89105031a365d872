"""A tape of the vendor's own daily files: a folder in its layout."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa

from tapelab.errors import ServeError
from tapelab.exchange.tape import beside, sorting
from tapelab.exchange.tape.base import Tape, header_safe
from tapelab.exchange.tape.beside import Row
from tapelab.exchange.tape.products import PRODUCTS, QUOTES, TRADES
from tapelab.exchange.tape.sorting import SortedDay
from tapelab.market import clock
from tapelab.market.adjust import Split
from tapelab.market.clock import SECOND
from tapelab.massive import wire
from tapelab.store.datasets import export

LARGE = 64 << 20  # bytes of a day's packed ticks; beyond this they are sorted on the disk
LOOK_AGAIN = SECOND  # after this a folder is looked through anew

_log = logging.getLogger(__name__)


class FlatFileTape(Tape):
    """A folder in the vendor's layout, served byte for byte.

    A folder `reference` may lie in it (`beside.py`). One that was exported from a simulated market stays
    simulated. Raises `ServeError` if it holds no file of a known product.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder.resolve()
        self._seen: dict[str, tuple[int, list[date]]] = {}
        held = [(product, day) for product in PRODUCTS for day in self.days(product)]
        if not held:
            raise ServeError(
                f"There are no flat files in {folder}.",
                remedy="It should hold files such as us_stocks_sip/trades_v1/2026/10/2026-10-02.csv.gz.",
            )
        told_apart = "\n".join(f"{p} {d} {self._path(p, d).stat().st_size}" for p, d in held)
        digest = hashlib.sha256(told_apart.encode()).hexdigest()[:8]
        made_up = "simulated " if export.is_simulated(self.folder) else ""
        self.identity = f"{made_up}flat-files {header_safe(self.folder.name)} {digest}"

    def _days(self, product: str) -> list[date]:
        now = clock.monotonic()
        seen, days = self._seen.get(product, (0, []))
        if product not in self._seen or now - seen > LOOK_AGAIN:
            found = (self.folder / product).glob("[0-9]*/[0-9]*/*.csv.gz")
            keys = (wire.parse_key(path.relative_to(self.folder).as_posix()) for path in found)
            days = sorted(key[1] for key in keys if key is not None)
            self._seen[product] = (now, days)
        return days

    def raw(self, product: str, day: date) -> Path:
        return self._path(product, day)

    def version(self, product: str, day: date) -> Hashable:
        try:
            stat = self._path(product, day).stat()
        except FileNotFoundError:
            return None
        return stat.st_mtime_ns, stat.st_size

    def modified(self, product: str, day: date) -> int:
        return self._path(product, day).stat().st_mtime_ns

    def reference(self, name: beside.Name) -> Sequence[Row] | None:
        return beside.rows(self.folder, name)

    def splits(self) -> Sequence[Split] | None:
        return beside.splits(self.folder)

    def official(self, day: date) -> Mapping[str, Row]:
        return beside.official(self.folder, day)

    def bands(self, day: date) -> Sequence[Row]:
        return beside.bands(self.folder, day)

    def sorted_ticks(self, day: date) -> SortedDay | None:
        paths = {p: self._path(p, day) if day in self.days(p) else None for p in (QUOTES, TRADES)}
        if sum(path.stat().st_size for path in paths.values() if path is not None) < LARGE:
            return None
        _log.info("The ticks of %s are sorted on the disk; this takes a while.", day)
        return sorting.sort_day(quotes=paths[QUOTES], trades=paths[TRADES], day=day, memory=sorting.MEMORY)

    def _path(self, product: str, day: date) -> Path:
        return self.folder / wire.file_key(product, day)

    def _read(self, product: str, day: date) -> pa.Table:
        return _sorted(wire.read_flat_file(self._path(product, day), product, day=day))


def _sorted(table: pa.Table) -> pa.Table:
    stamp = "timestamp" if "timestamp" in table.column_names else "ts_event"
    names = table.column("symbol").combine_chunks().dictionary_encode()
    known = names.dictionary.to_pylist()
    onward = np.diff(names.indices.to_numpy())
    later = np.diff(table.column(stamp).to_numpy()) >= 0
    # The vendor promises no order, but its files are in this one; looking costs less than sorting.
    if known == sorted(known) and np.all((onward > 0) | ((onward == 0) & later)):
        return table
    return table.sort_by([("symbol", "ascending"), (stamp, "ascending")])
