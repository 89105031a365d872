"""The segments of a journal folder as one run of records, whether raw, sealed, damaged or still growing."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tapelab.errors import Damaged, Locked, StoreError
from tapelab.market import clock
from tapelab.store.files import make_folder, unwritable
from tapelab.store.journal.frames import Buffer
from tapelab.store.journal.record import (
    FILE_HEADER,
    VERSION,
    FileHeader,
    Record,
    parse_file_header,
    walk,
)
from tapelab.store.journal.sealing import SEALED, Sealed, open_sealed, salvage, sealed_name

RAW = ".tlj"
ATTEMPTS, BETWEEN_ATTEMPTS = 3, 0.02  # `is_held` holds a lock for a moment; seconds between attempts
READ = 5 * 2**20  # bytes taken from a raw segment at a time: two of the largest chunks of the receiver


@dataclass(frozen=True)
class Hole:
    """Bytes of a journal that are not what was written; `since`: when the last record before them came."""

    path: Path
    offset: int
    since: int | None


class Lock:
    """The one writer of a journal. Held until closed, and let go by the system when its process dies."""

    def __init__(self, path: Path) -> None:
        make_folder(path.parent)
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unwritable(path, error) from error
        for attempt in range(ATTEMPTS):
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError as error:
                if attempt < ATTEMPTS - 1:
                    clock.sleep(BETWEEN_ATTEMPTS)
                    continue
                os.close(self.fd)
                raise Locked(
                    f"Another process is writing {path.parent.name}.",
                    remedy="Wait until it has ended, or stop it.",
                    path=str(path),
                ) from error

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def lock_path(folder: Path) -> Path:
    return folder / "lock"


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def numbers(folder: Path) -> list[int]:
    """The numbers of the segments that are there, in order."""
    if not folder.is_dir():
        return []
    names = {entry.name.removesuffix(SEALED) for entry in folder.iterdir()}
    stems = (name.removesuffix(RAW) for name in names if name.endswith(RAW))
    return sorted(int(stem) for stem in stems if stem.isdigit())


def raw_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{RAW}"


def read_header(folder: Path, number: int) -> FileHeader | None:
    """The header of a segment; `StoreError` when a newer tapelab wrote it."""
    raw = raw_path(folder, number)
    sealed = open_sealed(sealed_name(raw))
    try:
        if sealed is not None:
            start = sealed.block(0)[:FILE_HEADER]
        else:
            with raw.open("rb") as file:
                start = file.read(FILE_HEADER)
    except (Damaged, FileNotFoundError):
        return None
    return _header(start, raw)


def _header(data: Buffer, path: Path) -> FileHeader | None:
    header = parse_file_header(data)
    if header is not None and header.version > VERSION:
        raise StoreError(
            f"{path.name} was written by a newer tapelab (journal version {header.version}).",
            remedy="Update tapelab to read it.",
            path=str(path),
        )
    return header


class RecordReader:
    """Reads the records of a journal in order; call `read` again for what has been added since.

    `after`: records up to this sequence are passed over. `at_end`: the last read has taken what there was.
    """

    def __init__(self, folder: Path, *, after: int = -1) -> None:
        self.folder = folder
        self.at_end = False
        self._after = after
        self._number = 0
        self._raw: int | None = None  # descriptor of the raw segment that is read
        self._offset = 0
        self._sealed: Sealed | None = None
        self._block = 0
        self._expected: int | None = 0 if after < 0 else None  # a journal begins with record 0
        self._floor = 0  # a record behind damage has at least this sequence
        self._since: int | None = None

    def read(self) -> list[Record | Hole]:
        """The next records, a bounded number; empty when there is nothing new."""
        while True:
            if self._raw is not None:
                # Mostly what is new lies behind what was read last: no need to look for more segments.
                found, self.at_end = self._from_raw(finished=False)
                if kept := self._new(found):
                    return kept
            # Looked up before reading: whoever began the next segment had finished this one.
            following = self._following()
            if self._raw is None and self._sealed is None:
                if following is None:
                    return []
                self._open(following)
                continue
            if self._sealed is not None:
                found, exhausted = self._from_sealed(self._sealed)
            else:
                found, exhausted = self._from_raw(finished=following is not None)
            if exhausted and following is not None:
                self.close()
            self.at_end = exhausted and following is None
            kept = self._new(found)
            if kept or (exhausted and following is None):
                return kept

    def _new(self, found: list[Record | Hole]) -> list[Record | Hole]:
        return [item for item in found if isinstance(item, Hole) or item.sequence > self._after]

    def close(self) -> None:
        if self._raw is not None:
            os.close(self._raw)
        self._raw = self._sealed = None

    def __del__(self) -> None:
        self.close()

    def _following(self) -> int | None:
        present = [number for number in numbers(self.folder) if number > self._number]
        if self._number or self._after < 0 or len(present) < 2:
            return present[0] if present else None
        for number in reversed(present[1:]):
            header = read_header(self.folder, number)
            if header is not None and header.first_sequence <= self._after + 1:
                return number
        return present[0]

    def _open(self, number: int) -> None:
        raw = raw_path(self.folder, number)
        self._sealed = open_sealed(sealed_name(raw))
        if self._sealed is None:
            try:
                self._raw = os.open(raw, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if not sealed_name(raw).exists():
                    return  # removed between two looks; the next look will tell
                # Sealed a moment ago, or sealed and its index is damaged since.
                self._sealed = open_sealed(sealed_name(raw)) or salvage(sealed_name(raw))
        if self._sealed is not None:
            passed = [p for p in self._sealed.places if p.sequence <= self._after + 1]
            self._block = max(len(passed) - 1, 0)
        self._number, self._offset = number, 0

    def _from_sealed(self, sealed: Sealed) -> tuple[list[Record | Hole], bool]:
        blocks = len(sealed.places) + (not sealed.whole)
        if self._block == blocks:
            return [], True
        if self._block == len(sealed.places):
            found: list[Record | Hole] = [self._hole(sealed.size)]
        else:
            offset = sealed.places[self._block].offset
            try:
                data = sealed.block(self._block)
                found, used = self._walk(data, offset)
            except Damaged:
                data, found, used = b"", [], -1
            if used < len(data):
                found.append(self._hole(offset + max(used, 0)))
        self._block += 1
        return found, self._block == blocks

    def _from_raw(self, *, finished: bool) -> tuple[list[Record | Hole], bool]:
        import numpy as np  # the receiver, which only writes, does without

        assert self._raw is not None
        window = READ
        while True:
            there = max(os.fstat(self._raw).st_size - self._offset, 0)
            buffer = np.empty(min(window, there), np.uint8).data  # if large, of large pages, and not zeroed
            data = buffer[: os.preadv(self._raw, [buffer], self._offset)]
            found, used = self._walk(data, self._offset)
            at_end = len(data) < window
            if found or at_end:
                break
            window *= 2
        if at_end and finished and used < len(data):
            found.append(self._hole(self._offset + used))
        self._offset += used
        return found, at_end

    def _walk(self, data: Buffer, offset: int) -> tuple[list[Record | Hole], int]:
        """Records and holes of `data`, which lies at `offset` of its segment; and how much was used."""
        found: list[Record | Hole] = []
        at = 0
        if offset == 0:
            if len(data) < FILE_HEADER:
                return found, 0
            header = _header(data, raw_path(self.folder, self._number))
            if header is not None and self._expected is not None and header.first_sequence > self._expected:
                found.append(self._hole(0))  # a whole segment is missing
            if header is None or self._expected is None:
                self._expected = header.first_sequence if header else None
            at = FILE_HEADER
        for part in walk(data, at, self._expected, floor=self._floor):
            if part.start > at:
                found.append(self._hole(offset + at))
            if part.records:
                found += part.records
                last = part.records[-1]
                self._expected = self._floor = last.sequence + 1
                self._since = last.ts_recv
            at = part.at
        return found, at

    def _hole(self, offset: int) -> Hole:
        self._expected = None
        return Hole(raw_path(self.folder, self._number), offset, self._since)
