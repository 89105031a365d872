"""The vendor's daily files: CSV in, tables out, and back to the byte."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from isal import igzip, igzip_lib
from pyarrow import csv

from tapelab.errors import Damaged, MalformedAnswer, UsageError
from tapelab.market.sessions import dates_of, day_start
from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive.wire import columns
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

BLOCK = 4 << 20  # bytes of CSV that become one table of `iter_flat_file`
ROWS_WRITTEN = 1 << 18  # rows that are made into text at a time
MAX_QUOTED = 200  # characters of what is broken in a message

_GZIP = b"\x1f\x8b"
_CODES = r"^([0-9]{1,4}(,[0-9]{1,4})*)?$"
_TICKER = "^[!-~]+$"
_ROW = re.compile(r"Row #(\d+): ")


def read_flat_file(source: Path | bytes, product: str, *, day: date) -> pa.Table:
    """One daily file as a table in our schema, in the order of its rows.

    `source`: a path or the bytes of a file, gzip or plain. `day`: the exchange's date that it is for. Columns
    are found by their header; both number styles are read. `arrival` is the row's number, `ts_recv` null,
    `session` the day. Raises `Damaged` for a file that is cut or corrupt, `MalformedAnswer` (naming file and
    row, the header being row 1) for contents that the product cannot have, such as stamps of another day.
    """
    tables = list(iter_flat_file(source, product, day=day))
    return pa.concat_tables(tables) if tables else SCHEMAS[product_named(product).kind].empty_table()


def iter_flat_file(source: Path | bytes, product: str, *, day: date) -> Iterator[pa.Table]:
    """The same in blocks, for files that do not fit in memory: a few MiB of CSV become one table.

    What is wrong may only show at the end: keep nothing of a file that raised.
    """
    return _File(source, product_named(product), day).tables()


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


class _File:
    """A daily file being read: what it claims to be, and how to say where it is wrong."""

    def __init__(self, source: Path | bytes, product: Product, day: date) -> None:
        self.source = source
        self.product = product
        self.day = day
        self.name = source.name if isinstance(source, Path) else f"{product.name} of {day}"
        self.fields = {field.csv: field for field in FIELDS[product.kind] if field.csv is not None}
        self.first = day_start(Market.STOCKS, day)
        self.last = day_start(Market.STOCKS, day + timedelta(days=1)) - 1

    def tables(self) -> Iterator[pa.Table]:
        try:
            self.check_header()
            rows = 0
            for batch in self.batches():
                yield self.table(batch, rows)
                rows += len(batch)
        except (EOFError, igzip.BadGzipFile, igzip_lib.IsalError) as error:  # type: ignore[misc]
            raise Damaged(
                f"{self.name} is cut or corrupt: {str(error).rstrip('.')}.",
                remedy="Delete it and download it again.",
                file=self.name,
            ) from error

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        with io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb") as raw:
            packed = raw.read(len(_GZIP)) == _GZIP
            raw.seek(0)
            if not packed:
                yield raw
                return
            with igzip.open(raw, "rb") as unpacked:  # type: ignore[no-untyped-call]
                yield unpacked

    def check_header(self) -> None:
        with self.open() as stream:
            header = stream.readline().decode("utf-8", "replace").strip()
        names = Counter(header.split(","))
        missing = [name for name in self.product.header if names[name] == 0]
        if missing:
            self.malformed(1, f"the header lacks {missing[0]!r}")
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            self.malformed(1, f"the header has {twice[0]!r} twice")

    def batches(self) -> Iterator[pa.RecordBatch]:
        with self.open() as stream:
            try:
                yield from self.reader(stream, use_threads=True)
            except pa.ArrowInvalid as error:
                self.explain(error)

    def reader(self, stream: BinaryIO, *, use_threads: bool) -> Iterator[pa.RecordBatch]:
        types = {name: self.type(field) for name, field in self.fields.items()}
        return iter(
            csv.open_csv(
                stream,
                read_options=csv.ReadOptions(block_size=BLOCK, use_threads=use_threads),
                convert_options=csv.ConvertOptions(
                    column_types=types,
                    include_columns=list(types),
                    null_values=[""],
                    strings_can_be_null=False,  # NA and NULL are tickers
                ),
            )
        )

    def type(self, field: Field) -> pa.DataType:
        """What a column is read as; text and codes repeat, so each is read once and then pointed to."""
        if field.sort in ("text", "codes") and field.column != "id":
            return pa.dictionary(pa.int32(), pa.string())
        return SCHEMAS[self.product.kind].field(field.column).type

    def table(self, batch: pa.RecordBatch, rows_before: int) -> pa.Table:
        out: dict[str, pa.Array] = {}
        for name, field in self.fields.items():
            column = batch.column(name)
            self.check(column, field, rows_before)
            out[field.column] = _normal(column, field)
        schema = SCHEMAS[self.product.kind]
        if self.product.kind == "bars":
            out["session"] = pa.repeat(pa.scalar(self.day, pa.date32()), len(batch))
        else:
            out["arrival"] = pa.array(np.arange(rows_before, rows_before + len(batch), dtype=np.int64))
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
            bad.append(("is negative", pc.less(column, 0)))
        elif field.sort in ("count", "code"):
            bad.append(("is negative", pc.less(column, 0)))
        for why, rows in bad:
            if pc.any(rows).as_py():
                index = pc.index(pc.fill_null(rows, False), True).as_py()
                self.malformed(rows_before + index + 2, f"{field.csv} {column[index].as_py()!r} {why}")

    def explain(self, error: pa.ArrowInvalid) -> NoReturn:
        """Say the row, which takes another reading in one thread."""
        message = str(error)
        with self.open() as stream:
            try:
                for _ in self.reader(stream, use_threads=False):
                    pass
            except pa.ArrowInvalid as again:
                message = str(again)
        row = _ROW.search(message)
        why = " ".join(_ROW.sub("", message).split())[:MAX_QUOTED]
        self.malformed(int(row[1]) if row else None, why, error)

    def malformed(self, row: int | None, why: str, cause: Exception | None = None) -> NoReturn:
        self.prove_whole()
        where = f"{self.name}, row {row}" if row else self.name
        raise MalformedAnswer(
            f"{where}: {why}.",
            remedy="The vendor replaces bad files: download it again later, or use REST for that day.",
            file=self.name,
            row=row,
        ) from cause

    def prove_whole(self) -> None:
        """Nonsense in a corrupt archive is not the vendor's: the checksum at its end tells."""
        with self.open() as stream:
            while stream.read(BLOCK):
                pass


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
