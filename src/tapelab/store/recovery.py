"""A journal whose writer was killed, put in order."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tapelab.store.files import sync_folder
from tapelab.store.frames import ABNORMAL
from tapelab.store.records import (
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
from tapelab.store.sealing import open_sealed, seal, sealed_name
from tapelab.store.segments import Hole, Lock, RecordReader, lock_path, numbers, raw_path, read_header


@dataclass(frozen=True)
class Recovery:
    """What `recover` found: the last record that counts, what was cut off behind it, what is damaged."""

    last: Record | None
    cut_bytes: int
    damaged: int
    was_complete: bool


def recover(folder: Path) -> Recovery:
    """Put a journal in order whose writer was killed; on one in order it changes nothing.

    A torn tail is cut off, half-made files are removed, and the journal ends with CLOSED `killed`, so that
    it can be read, sealed and gone on with. Damage in the middle of the last segment is kept, read around,
    and noted as a gap `corrupt`. Raises `Locked` while the writer lives.
    """
    with Lock(lock_path(folder)):
        for half in folder.glob("*.part"):
            half.unlink()
        for raw in _raw_segments(folder):
            sealed = sealed_name(raw)
            if sealed.exists():
                (raw if open_sealed(sealed) else sealed).unlink()
        cut = sum(_cut_tail(raw) for raw in _raw_segments(folder)[-1:])
        last, gaps = survey(folder)
        complete = last is not None and bool(last.flags & FINAL)
        if last is not None and not complete and not _is_killed(last):
            _close_killed(folder, last, gaps)
        for raw in _raw_segments(folder):
            seal(raw)
        (folder / "reserve").unlink(missing_ok=True)
    return Recovery(last, cut, len(gaps), complete)


def _raw_segments(folder: Path) -> list[Path]:
    return [raw for number in numbers(folder) if (raw := raw_path(folder, number)).exists()]


def _is_killed(record: Record) -> bool:
    return record.kind is Kind.CLOSED and b'"killed"' in record.payload


def survey(folder: Path) -> tuple[Record | None, list[bytes]]:
    """The last record of a journal, and the gaps that damage left in its last segment."""
    last: Record | None = None
    gaps: list[bytes] = []
    for number in reversed(numbers(folder)):
        header = read_header(folder, number)
        reader = RecordReader(folder, after=header.first_sequence - 1 if header else -1)
        hole: Hole | None = None
        while batch := reader.read():
            for item in batch:
                if isinstance(item, Hole):
                    hole = hole or item
                    continue
                if hole is not None:
                    start = hole.after.ts_recv if hole.after else item.ts_recv
                    facts = {"start": start, "end": item.ts_recv, "cause": "corrupt"}
                    gaps.append(msgspec.json.encode(facts))
                    hole = None
                last = item
        if last is not None:
            break
    return last, gaps


def last_sequence(folder: Path) -> int:
    """The number of the last record that is there, -1 where there is none."""
    last, _ = survey(folder)
    return last.sequence if last else -1


def _close_killed(folder: Path, last: Record, gaps: list[bytes]) -> None:
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


def _cut_tail(raw: Path) -> int:
    """Cut what is behind the last valid record of a raw segment; returns how many bytes that was."""
    data = raw.read_bytes()
    header = parse_file_header(data)
    end = FILE_HEADER if header else 0
    for part in walk(data, FILE_HEADER, header.first_sequence if header else None):
        if part.records:
            end = part.at
    if end:
        os.truncate(raw, end)
    else:
        raw.unlink()
    return max(len(data) - end, 0)
