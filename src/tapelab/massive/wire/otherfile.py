"""Daily files that have no schema of ours: the vendor's columns, each with an exact type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.tables import SCHEMAS
from tapelab.massive.wire.catalogue import kind_named
from tapelab.massive.wire.csvfile import CsvFile, Notes
from tapelab.massive.wire.fields import EARLIEST, LATEST
from tapelab.massive.wire.flatfile import iter_flat_file

INSTANT = pa.timestamp("ns", tz="UTC")

_TIMES = re.compile(r"(\w+_)?timestamp|window_start")
_WHOLE = re.compile(r"transactions|(\w+_)?sequence(_number)?|(\w+_)?exchange|correction")
_DECIMAL = re.compile(r"open|high|low|close|value|(\w+_)?(price|size|volume)")


def flat_file(source: Path, product: str, *, day: date, notes: Notes) -> tuple[pa.Schema, Iterator[pa.Table]]:
    """A daily file of any market: its schema, and its rows in blocks, in the order of the file.

    Bars, trades and quotes of all markets but futures come in our schema (`iter_flat_file`). Others keep the
    vendor's names: times are UTC with nanoseconds, prices and sizes float64, counts and codes int64,
    `session_end_date` a date, everything else (also a column that nobody knows yet) text; an empty field is
    null. Raises `Damaged` and `MalformedAnswer`.
    """
    kind = kind_named(product)
    if kind.product is not None:
        return SCHEMAS[kind.product.kind], iter_flat_file(source, kind.product, day=day, notes=notes)
    file = _OtherFile(source, kind.name, kind.header, day)
    tables = file.tables()
    first = list(islice(tables, 1))
    return _schema(file.found), chain(first, tables)


class _OtherFile(CsvFile):
    def types(self) -> dict[str, pa.DataType]:
        return {name: _read(name) for name in self.found}

    def table(self, batch: pa.RecordBatch, rows_before: int) -> pa.Table:
        columns = {name: self.column(batch.column(name), name, rows_before) for name in self.found}
        return pa.table(columns, schema=_schema(self.found))

    def column(self, column: pa.Array, name: str, rows_before: int) -> pa.Array:
        def refuse(why: str, rows: pa.Array) -> None:
            self.refuse(name, column, why, rows, rows_before)

        if name == "ticker":
            column = column.dictionary_decode()
            refuse("is missing", pc.equal(column, ""))
        elif _TIMES.fullmatch(name):
            off = pc.or_(pc.less(column, EARLIEST), pc.greater(column, LATEST))
            refuse("is no time", pc.and_(off, pc.not_equal(column, 0)))
        elif _DECIMAL.fullmatch(name):
            refuse("is not a number", pc.invert(pc.is_finite(column)))
        elif pa.types.is_string(column.type):
            column = pc.if_else(pc.equal(column, ""), None, column)
        return column.cast(_stored(name))


def _schema(header: list[str]) -> pa.Schema:
    return pa.schema([(name, _stored(name)) for name in header])


def _read(name: str) -> pa.DataType:
    if name == "ticker":
        return pa.dictionary(pa.int32(), pa.string())
    return pa.int64() if _TIMES.fullmatch(name) else _stored(name)


def _stored(name: str) -> pa.DataType:
    if _TIMES.fullmatch(name):
        return INSTANT
    if _WHOLE.fullmatch(name):
        return pa.int64()
    if _DECIMAL.fullmatch(name):
        return pa.float64()
    return pa.date32() if name == "session_end_date" else pa.string()
