"""What was read or built once and is kept, up to a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa

Kept = TypeVar("Kept")


class Cache:
    """Things made once and kept until they take too much room; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._things: OrderedDict[Hashable, tuple[object, int]] = OrderedDict()
        self._lock = threading.RLock()

    def kept(self, key: Hashable, make: Callable[[], Kept], size: Callable[[Kept], int]) -> Kept:
        with self._lock:
            if key in self._things:
                self._things.move_to_end(key)
                return cast("Kept", self._things[key][0])
            made = make()
            self._things[key] = (made, size(made))
            self._size += self._things[key][1]
            while self._size > self._limit and len(self._things) > 1:
                _, (_, freed) = self._things.popitem(last=False)
                self._size -= freed
            return made

    def table(self, key: Hashable, make: Callable[[], pa.Table]) -> pa.Table:
        return self.kept(key, make, lambda table: int(table.nbytes))

    def of_symbol(self, key: Hashable, symbol: str, make: Callable[[], pa.Table]) -> pa.Table:
        with self._lock:
            table = self.table(key, make)
            places = self.kept(("places", key), lambda: _places(table), lambda found: 100 * len(found))
        first, length = places.get(symbol, (0, 0))
        return table.slice(first, length)


def _places(table: pa.Table) -> dict[str, tuple[int, int]]:
    """Where each symbol's rows begin in a table sorted by symbol, and how many they are."""
    counts = table.column("symbol").value_counts()
    lengths = counts.field("counts").to_pylist()
    begins = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return dict(zip(counts.field("values").to_pylist(), zip(begins, lengths, strict=False), strict=False))
