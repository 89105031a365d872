"""Plain lines of a daily file into columns at compiled speed; whatever is not plain is pyarrow's to read.

Bars are a name and numbers, a million times a day; both ways of reading them give the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from tapelab.massive.wire import compiled
from tapelab.massive.wire.plan import LOOK_AHEAD, REAL, TEXT, WHOLE, address

WARM_AFTER = 2**30  # bytes of plain lines in this process; loading the kernel costs what it saves on them
NAME = pa.dictionary(pa.int32(), pa.string())
BEHIND = bytes(LOOK_AHEAD)  # what stands behind the lines of a block

_KINDS = {NAME: TEXT, pa.int64(): WHOLE, pa.float64(): REAL}

_seen = 0  # bytes; that threads may miscount them does no harm


class Lines:
    """How lines are read: their columns in their order, one of which is a name and all others numbers."""

    def __init__(self, columns: Mapping[str, pa.DataType]) -> None:
        self._columns = columns
        kinds = [_KINDS[type_] for type_ in columns.values()]
        slots = [kinds[:n].count(kind) for n, kind in enumerate(kinds)]
        self._fields = np.array([kinds, slots]).T.copy()
        self._ints, self._reals = kinds.count(WHOLE), kinds.count(REAL)

    @classmethod
    def of(cls, header: Sequence[str], types: Mapping[str, pa.DataType]) -> Lines | None:
        """None where lines hold anything else, or more than is read."""
        kinds = [_KINDS.get(types.get(name)) for name in header]
        if None in kinds or kinds.count(TEXT) != 1:
            return None
        return cls({name: types[name] for name in header})

    def read(self, block: bytes) -> pa.RecordBatch | None:
        """The columns of lines and `BEHIND`; None if the kernel is not ready or a line is not plain."""
        global _seen
        _seen += len(block)
        kernel = compiled.kernel(warm=_seen >= WARM_AFTER)
        if kernel is None:
            return None
        rows = block.count(b"\n")
        most = rows + 1  # the last line may have no end
        ints, reals = np.empty((self._ints, most), np.int64), np.empty((self._reals, most))
        runs, ends = np.empty(most, np.int32), np.zeros(most + 1, np.int32)
        names = np.empty(len(block), np.uint8)
        begin = address(block)
        stop = begin + len(block) - LOOK_AHEAD
        count = kernel.lines(begin, stop, self._fields, ints, reals, runs, ends, names)
        if count < 0:
            return None
        offsets, content = pa.py_buffer(ends[: count + 1]), pa.py_buffer(names[: ends[count]])
        said = pa.StringArray.from_buffers(count, offsets, content).dictionary_encode()
        which = said.indices.take(pa.array(runs[:rows]))
        arrays = {
            TEXT: [pa.DictionaryArray.from_arrays(which, said.dictionary)],
            WHOLE: [pa.array(column) for column in ints[:, :rows]],
            REAL: [pa.array(column) for column in reals[:, :rows]],
        }
        columns = [arrays[kind][slot] for kind, slot in self._fields.tolist()]
        return pa.RecordBatch.from_arrays(columns, names=list(self._columns))
