"""A journal whose writer was killed, put in order."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tapelab.store.files import sync_folder, unwritable
from tapelab.store.journal.frames import ABNORMAL
from tapelab.store.journal.record import (
    FILE_HEADER,
    FINAL,
    VERSION,
    FileHeader,
    Kind,
    Record,
    encode,
    pack_file_header,
    parse_file_header,
    walk,
)
from tapelab.store.journal.sealing import open_sealed, seal, sealed_name
from tapelab.store.journal.segments import Lock, RecordReader, lock_path, numbers, raw_path, read_header


@dataclass(frozen=True)
class Recovery:
    """What `recover` found: the last record that counts, what was cut off behind it, what is damaged.

    `ends_at`: the number of the very last record, which `recover` may have added; -1 where there is none.
    """

    last: Record | None
    ends_at: int
    cut_bytes: int
    damaged: int
    was_complete: bool


def recover(folder: Path, *, compress: bool = True) -> Recovery:
    """Put a journal in order whose writer was killed; on one in order it changes nothing.

    A torn tail is cut off, half-made files are removed, and the journal ends with CLOSED `killed`, so that
    it can be read, compressed and gone on with. Damage in the middle of the last segment is kept, read
    around, and noted as a gap `corrupt`. Without `compress` that is left to the next writer, for which
    nobody waits.
    Raises `Locked` while the writer lives, `Unwritable` where there is no room even for that.
    """
    with Lock(lock_path(folder)):
        try:
            found = _put_in_order(folder)
        except OSError as error:
            raise unwritable(folder, error) from error
        for raw in _raw_segments(folder) if compress else ():
            with suppress(OSError):  # it counts as it is
                seal(raw)
    return found


def _put_in_order(folder: Path) -> Recovery:
    (folder / "reserve").unlink(missing_ok=True)  # there may be no other room left
    for half in folder.glob("*.part"):
        half.unlink()
    for raw in _raw_segments(folder):
        sealed = sealed_name(raw)
        if sealed.exists():
            (raw if open_sealed(sealed) else sealed).unlink()
    cut, damaged, last, gaps = 0, 0, None, list[bytes]()
    for number in numbers(folder)[-1:]:
        read_header(folder, number)  # a newer tapelab's is left alone
        if (newest := raw_path(folder, number)).exists():
            cut, damaged, last, gaps = _mend(newest)
    if last is None:
        last = _last_of(folder)
    complete = last is not None and bool(last.flags & FINAL)
    if last is not None and not complete and not _is_killed(last):
        ends_at = _close_killed(folder, last, gaps)
    else:
        ends_at = last.sequence if last is not None else -1
    return Recovery(last, ends_at, cut, damaged, complete)


def _raw_segments(folder: Path) -> list[Path]:
    return [raw for number in numbers(folder) if (raw := raw_path(folder, number)).exists()]


def _is_killed(record: Record) -> bool:
    return record.kind is Kind.CLOSED and b'"killed"' in record.payload


def last_sequence(folder: Path) -> int:
    """The number of the last record that is there, -1 where there is none."""
    last = _last_of(folder)
    return last.sequence if last else -1


def _last_of(folder: Path) -> Record | None:
    for number in reversed(numbers(folder)):
        header = read_header(folder, number)
        reader = RecordReader(folder, after=header.first_sequence - 1 if header else -1)
        last: Record | None = None
        while batch := reader.read():
            last = next((item for item in reversed(batch) if isinstance(item, Record)), last)
        if last is not None:
            return last
    return None


def _close_killed(folder: Path, last: Record, gaps: list[bytes]) -> int:
    notes = [(Kind.GAP, gap) for gap in gaps]
    notes.append((Kind.CLOSED, msgspec.json.encode({"cause": "killed", "code": ABNORMAL})))
    content = b"".join(
        encode(kind, payload, sequence=last.sequence + 1 + n, like=last)
        for n, (kind, payload) in enumerate(notes)
    )
    number = max(numbers(folder))
    if not raw_path(folder, number).exists():
        old = read_header(folder, number)
        number += 1
        identity = old.dataset_id if old else bytes(16)
        header = FileHeader(VERSION, number, identity, last.sequence + 1, last.ts_recv, last.monotonic)
        content = pack_file_header(header) + content
    with raw_path(folder, number).open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return last.sequence + len(notes)


def _mend(raw: Path) -> tuple[int, int, Record | None, list[bytes]]:
    """Cut what is behind the last valid record of a raw segment.

    Gives how many bytes that was, how many stretches before it are damaged, the last record, and the gaps to
    note: damage before the first record is not among them, since it is dated by the segment before.
    """
    data = raw.read_bytes()
    header = parse_file_header(data)
    end, at = FILE_HEADER if header else 0, FILE_HEADER
    damaged, last, gaps = 0, None, list[bytes]()
    for part in walk(data, FILE_HEADER, header.first_sequence if header else None):
        if part.records and part.start > at:
            damaged += 1
            if last is not None:
                facts = {"start": last.ts_recv, "end": part.records[0].ts_recv, "cause": "corrupt"}
                gaps.append(msgspec.json.encode(facts))
        if part.records:
            last, end = part.records[-1], part.at
        at = part.at
    if end:
        os.truncate(raw, end)
    else:
        raw.unlink()
    return max(len(data) - end, 0), damaged, last, gaps
