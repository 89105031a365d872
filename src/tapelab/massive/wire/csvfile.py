"""A daily file as text: unpacked as it streams, read in blocks by its header, named where it is wrong."""

from __future__ import annotations

import io
import re
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import BinaryIO, NoReturn

import pyarrow as pa
import pyarrow.compute as pc
from isal import igzip, igzip_lib
from pyarrow import csv

from tapelab.errors import Damaged, MalformedAnswer
from tapelab.massive.wire.lines import BEHIND, Lines

BLOCK = 4 << 20  # bytes of CSV that become one table
READERS = 2  # blocks that are read at a time
MAX_QUOTED = 200  # characters of what is broken in a message

_GZIP = b"\x1f\x8b"
_ROW = re.compile(r"Row #(\d+): ")


class Notes:
    """What was strange in a file and what was done about it; each kind of strangeness once, with its rows."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def add(self, what: str, rows: int) -> None:
        self._rows[what] += rows

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(f"{rows} rows: {what}" for what, rows in self._rows.items())


class CsvFile:
    """A daily file being read: what it claims to be, and how to say where it is wrong."""

    def __init__(self, source: Path | bytes, product: str, header: Sequence[str], day: date) -> None:
        self.source = source
        self.header = header
        self.day = day
        self.name = source.name if isinstance(source, Path) else f"{product} of {day}"
        self.found: list[str] = []  # the header of this very file

    def types(self) -> Mapping[str, pa.DataType]:
        """The columns that are read, and what each is read as; `found` is known by then."""
        raise NotImplementedError

    def table(self, batch: pa.RecordBatch, rows_before: int) -> pa.Table:
        raise NotImplementedError

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
            self.found = stream.readline().decode("utf-8", "replace").strip().split(",")
        names = Counter(self.found)
        missing = [name for name in self.header if names[name] == 0]
        if missing:
            self.malformed(1, f"the header lacks {missing[0]!r}")
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            self.malformed(1, f"the header has {twice[0]!r} twice")

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Blocks of whole lines; what is not plain is read in threads while the next block is unpacked."""
        convert, lines = self.conversion(), Lines.of(self.found, self.types())
        with self.open() as stream, ThreadPoolExecutor(READERS) as pool:
            stream.readline()
            ahead: deque[Future[pa.Table]] = deque()
            try:
                for block in _blocks(stream):
                    # At once: a thread more would take more time from who writes the rows than it saves here.
                    plain = lines.read(block) if lines is not None else None
                    if plain is None:
                        ahead.append(pool.submit(self.parsed, block, convert))
                    while ahead and (plain is not None or len(ahead) > READERS or ahead[0].done()):
                        yield from ahead.popleft().result().to_batches()
                    if plain is not None:
                        yield plain
                while ahead:
                    yield from ahead.popleft().result().to_batches()
            except pa.ArrowInvalid as error:
                self.explain(error)
            finally:
                for waiting in ahead:
                    waiting.cancel()

    def parsed(self, block: bytes, convert: csv.ConvertOptions) -> pa.Table:
        text = pa.py_buffer(block).slice(0, len(block) - len(BEHIND))
        options = csv.ReadOptions(block_size=len(block), use_threads=False, column_names=self.found)
        return csv.read_csv(pa.BufferReader(text), read_options=options, convert_options=convert)

    def conversion(self) -> csv.ConvertOptions:
        types = self.types()
        return csv.ConvertOptions(
            column_types=types,
            include_columns=list(types),
            null_values=[""],
            strings_can_be_null=False,  # NA and NULL are tickers
        )

    def explain(self, error: pa.ArrowInvalid) -> NoReturn:
        """Say the row, which takes another reading in one thread."""
        message = str(error)
        with self.open() as stream:
            try:
                options = csv.ReadOptions(block_size=BLOCK, use_threads=False)
                for _ in csv.open_csv(stream, read_options=options, convert_options=self.conversion()):
                    pass
            except pa.ArrowInvalid as again:
                message = str(again)
        row = _ROW.search(message)
        why = " ".join(_ROW.sub("", message).split())[:MAX_QUOTED]
        self.malformed(int(row[1]) if row else None, why, error)

    def refuse(self, name: str, column: pa.Array, why: str, rows: pa.Array, rows_before: int) -> None:
        """Raise if any of `rows` (true where it is bad), naming the first."""
        if pc.any(rows).as_py():
            index = pc.index(pc.fill_null(rows, False), True).as_py()
            self.malformed(rows_before + index + 2, f"{name} {column[index].as_py()!r} {why}")

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


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The text that is left in pieces of whole lines and `BEHIND`; an empty line at the end is no row."""
    begun = b""
    while more := stream.read(BLOCK):
        cut = more.rfind(b"\n") + 1
        if cut:
            yield b"".join((begun, memoryview(more)[:cut], BEHIND))
            begun = more[cut:]
        else:
            begun += more
    if begun and not begun.isspace():
        yield begun + BEHIND
