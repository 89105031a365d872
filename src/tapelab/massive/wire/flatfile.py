"""The vendor's daily files: CSV in, tables out, and back to the byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import UsageError
from tapelab.market.sessions import dates_of, day_start
from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive.wire import columns
from tapelab.massive.wire.csvfile import CsvFile, Notes
from tapelab.massive.wire.fields import (
    DECIMAL_SINCE,
    EARLIEST,
    FIELDS,
    LATEST,
    Field,
    Product,
    Style,
    product_named,
)

ROWS_WRITTEN = 1 << 18  # rows that are made into text at a time

_CODES = r"^([0-9]{1,4}(,[0-9]{1,4})*)?$"
_TICKER = "^[!-~]+$"


def read_flat_file(source: Path | bytes, product: str, *, day: date) -> pa.Table:
    """One daily file as a table in our schema, in the order of its rows.

    `source`: a path or the bytes of a file, gzip or plain. `day`: the exchange's date that it is for. Columns
    are found by their header; both number styles are read. `arrival` is the row's number, `ts_recv` null,
    `session` the day. Raises `Damaged` for a file that is cut or corrupt, `MalformedAnswer` (naming file and
    row, the header being row 1) for contents that the product cannot have, such as stamps of another day.
    """
    tables = list(iter_flat_file(source, product, day=day))
    return pa.concat_tables(tables) if tables else SCHEMAS[product_named(product).kind].empty_table()


def iter_flat_file(
    source: Path | bytes, product: str | Product, *, day: date, notes: Notes | None = None
) -> Iterator[pa.Table]:
    """The same in blocks, for files that do not fit in memory: a few MiB of CSV become one table.

    With `notes`, day bars are stamped with the first instant of their day, whatever the file says, and what
    was changed is noted. What is wrong may only show at the end: keep nothing of a file that raised.
    """
    known = product_named(product) if isinstance(product, str) else product
    return _File(source, known, day, notes).tables()


def write_flat_file(table: pa.Table, product: str, *, style: Style | None = None) -> bytes:
    """A table as the text of a daily file, byte for byte as the vendor writes it.

    `style`: `"whole"` (sizes without decimals, prices in their shortest form) or `"decimal"` (six decimals);
    None takes the vendor's style of the rows' date. Files of quotes have the old style in every year.
    """
    known = product_named(product)
    if style not in (None, "whole", "decimal"):
        raise UsageError(f"There is no number style {style!r}.", remedy="Use 'whole' or 'decimal'.")
    chosen = style or _style_of(table, known)
    decimal = chosen == "decimal" and known.kind != "quotes"
    by_header = {field.csv: field for field in FIELDS[known.kind]}
    fields = [by_header[name] for name in known.header]
    parts = [(",".join(known.header) + "\n").encode()]
    for batch in table.to_batches(ROWS_WRITTEN):
        texts = [_written(batch.column(field.column), field, decimal) for field in fields]
        lines = pc.binary_join_element_wise(pc.binary_join_element_wise(*texts, ","), "", "\n")
        parts.append(_text(lines))
    return b"".join(parts)


class _File(CsvFile):
    """A daily file of one of our products."""

    def __init__(self, source: Path | bytes, product: Product, day: date, notes: Notes | None) -> None:
        super().__init__(source, product.name, product.header, day)
        self.product = product
        self.notes = notes
        self.fields = _fields_of(product)
        self.first = day_start(product.market, day)
        self.last = day_start(product.market, day + timedelta(days=1)) - 1

    def types(self) -> dict[str, pa.DataType]:
        return {name: self.type(field) for name, field in self.fields.items()}

    def type(self, field: Field) -> pa.DataType:
        """What a column is read as; text and codes repeat, so each is read once and then pointed to."""
        if field.sort in ("text", "codes") and field.column != "id":
            return pa.dictionary(pa.int32(), pa.string())
        return SCHEMAS[self.product.kind].field(field.column).type

    def table(self, batch: pa.RecordBatch, rows_before: int) -> pa.Table:
        out: dict[str, pa.Array] = {}
        for name, field in self.fields.items():
            column = batch.column(name)
            if field.column == "timestamp":
                column = self.stamped(column)
            self.check(column, field, rows_before)
            out[field.column] = _normal(column, field)
        schema = SCHEMAS[self.product.kind]
        if self.product.kind == "bars":
            out["session"] = pa.repeat(pa.scalar(self.day, pa.date32()), len(batch))
        else:
            out["arrival"] = pa.array(np.arange(rows_before, rows_before + len(batch), dtype=np.int64))
        if self.product.kind == "trades" and "correction" not in out:
            out["correction"] = pa.repeat(pa.scalar(0, pa.int8()), len(batch))
        return conform(pa.table(out), schema)

    def check(self, column: pa.Array, field: Field, rows_before: int) -> None:
        """Refuse what the product cannot hold, naming the first row that has it."""
        bad: list[tuple[str, pa.Array]] = []
        if field.required and column.null_count:
            bad.append(("is missing", column.is_null()))
        if pa.types.is_dictionary(column.type):
            known = column.dictionary
            good = pc.match_substring_regex(known, _CODES if field.sort == "codes" else _TICKER)
            bad.append(("is not valid", pc.invert(good).take(column.indices)))
        elif field.sort == "instant" and field.required:
            off = pc.or_(pc.less(column, self.first), pc.greater(column, self.last))
            bad.append((f"is not on {self.day}", off))
        elif field.sort == "instant":
            off = pc.or_(pc.less(column, EARLIEST), pc.greater(column, LATEST))
            bad.append(("is no time", pc.and_(off, pc.not_equal(column, 0))))
        elif field.sort in ("price", "size"):
            bad.append(("is not a number", pc.invert(pc.is_finite(column))))
            if self.product.market is not Market.INDICES:
                bad.append(("is negative", pc.less(column, 0)))
        elif field.sort in ("count", "code"):
            bad.append(("is negative", pc.less(column, 0)))
        for why, rows in bad:
            self.refuse(str(field.csv), column, why, rows, rows_before)

    def stamped(self, column: pa.Array) -> pa.Array:
        """A day bar's stamp as the vendor's REST has it; the file's date says which day it is."""
        if self.notes is None or self.product.interval != "1d":
            return column
        return day_stamps(column, self.first, self.last, self.notes)


def _fields_of(product: Product) -> dict[str, Field]:
    """What each column of a file is. Crypto and forex have no SIP: their clock is the exchange's own."""
    fields = [field for field in FIELDS[product.kind] if field.csv in product.header]
    if product.kind != "bars" and "sip_timestamp" not in product.header:
        clock = next(field for field in FIELDS[product.kind] if field.column == "ts_event")
        fields = [replace(clock, csv="participant_timestamp"), *fields]
        fields = [field for field in fields if field.column != "ts_participant"]
    return {str(field.csv): field for field in fields}


def day_stamps(column: pa.Array, first: int, last: int, notes: Notes) -> pa.Array:
    """Stamps of day bars as the first instant of the file's day (`first` to `last`), with a note.

    Files have stamped them at midnight, at the close, and on bad days with a time before 1970.
    """
    lost = pc.less(column, EARLIEST)
    late = pc.and_(pc.greater(column, first), pc.less_equal(column, last))
    for rows, what in (
        (lost, f"window_start {pc.min(column).as_py()} is no time; the file's date was taken"),
        (late, "stamped later than the day's first instant, which was taken"),
    ):
        if count := pc.sum(rows).as_py():
            notes.add(what, count)
    return pc.if_else(pc.or_(lost, late), first, column)


def _normal(column: pa.Array, field: Field) -> pa.Array:
    if field.sort == "codes":
        return columns.split_codes(column)
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if field.sort == "text":
        return pc.if_else(pc.equal(column, ""), None, column)
    if field.zero_is_null:
        return pc.if_else(pc.equal(column, pa.scalar(0, column.type)), None, column)
    return pc.fill_null(column, 0) if field.column == "correction" else column


def _style_of(table: pa.Table, product: Product) -> Style:
    stamps = table.column("timestamp" if product.kind == "bars" else "ts_event")
    if len(stamps) == 0:
        return "whole"
    day = dates_of(Market.STOCKS, np.array([pc.max(stamps).as_py()], dtype=np.int64))[0]
    return "decimal" if day >= np.datetime64(DECIMAL_SINCE) else "whole"


def _written(column: pa.Array, field: Field, decimal: bool) -> pa.Array:
    if field.sort == "codes":
        return _quoted(columns.joined_codes(column))
    if field.sort == "text":
        return _quoted(pc.fill_null(column, ""))
    if field.sort == "price":
        return _formatted(column, _six if decimal else columns.plain, field.blank)
    if field.sort == "size":
        return _formatted(column, _six if decimal else _whole, field.blank)
    return pc.fill_null(column.cast(pa.string()), field.blank)


def _formatted(column: pa.Array, write: Callable[[float], str], blank: str) -> pa.Array:
    """Each different number is written once: prices and sizes repeat."""
    encoded = column.dictionary_encode()
    texts = pa.array([write(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return pc.fill_null(texts.take(encoded.indices), blank)


def _six(value: float) -> str:
    return f"{value:.6f}"


def _whole(value: float) -> str:
    return str(int(value)) if value.is_integer() else columns.plain(value)


def _quoted(texts: pa.Array) -> pa.Array:
    doubled = pc.replace_substring(texts, '"', '""')
    quoted = pc.binary_join_element_wise('"', doubled, '"', "")
    return pc.if_else(pc.match_substring_regex(texts, '[,"\n\r]'), quoted, texts)


def _text(lines: pa.Array) -> bytes:
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, dtype=np.int32)
    return bytes(memoryview(data)[ends[lines.offset] : ends[lines.offset + len(lines)]])
