"""What appends to a journal: one `writev` a record, and a flush at most a second behind."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, cast

import msgspec

from tapelab.market import clock
from tapelab.store.files import NO_ROOM, flush_data, make_folder, sync_folder, unwritable
from tapelab.store.journal.frames import NOWHERE, Buffer, Walked
from tapelab.store.journal.record import (
    FILE_HEADER,
    FINAL,
    MAX_PAYLOAD,
    RECORD_HEADER,
    VERSION,
    FileHeader,
    Kind,
    pack_file_header,
    pack_header,
    padding,
)
from tapelab.store.journal.recovery import last_sequence
from tapelab.store.journal.sealing import BLOCK, Place, seal
from tapelab.store.journal.segments import Lock, lock_path, numbers, raw_path

SEGMENT_BYTES = 64 * 2**20
SEGMENT_NS = 5 * clock.MINUTE
SYNC_EVERY = 0.5  # seconds; with the flush itself under the promised second
SEAL_PATIENCE = 1.0  # seconds that the compressing of one block waits for a flood to end
SEAL_NICE = 10  # how far the compressing of finished segments stands back for everything else
RESERVE = 64 * 2**10  # bytes kept aside, so that a full disk still has room for the last record
AHEAD = 16 * 2**20  # bytes of disk asked for at once where records of `MUCH` come
MUCH = 256 * 2**10

_ZEROS = bytes(8)
_KEEP_SIZE = 1  # of fallocate: the file stays as long as it is


class Writer:
    """Appends to the journal in `folder`; one writer at a time, held by a lock.

    On a folder with earlier segments (in order: see `recover`) it goes on behind them, and compresses those
    that are not yet; `after` is the number of their last record, where it is known. `keep`: of the finished
    segments only so many stay, for a stream that nobody records. Raises `Locked`, `Unwritable`.
    """

    def __init__(
        self,
        folder: Path,
        dataset_id: bytes,
        *,
        after: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
        segment_ns: int = SEGMENT_NS,
        keep: int | None = None,
    ) -> None:
        self.folder = make_folder(folder)
        self.dataset_id = dataset_id
        self._segment_bytes, self._segment_ns, self._keep = segment_bytes, segment_ns, keep
        self._file_lock = Lock(lock_path(folder))
        self._reserve = folder / "reserve"
        self._lock = threading.Lock()  # guards what the flushing thread shares
        self._flushing = threading.Lock()
        self._retired: list[_Finished] = []
        self.calm = threading.Event()  # cleared while the socket always has more: compressing waits
        self.calm.set()
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="tapelab-seal", initializer=_stand_back)
        self._failure: OSError | None = None
        self._closing = threading.Event()
        self._ended = False
        self.acknowledged = self.durable = last_sequence(folder) if after is None else after
        self.bytes = self.durable_bytes = 0  # written by this writer, and of these behind a flush
        left = [raw for number in numbers(folder) if (raw := raw_path(folder, number)).exists()]
        self._number = max(numbers(folder), default=0)
        self._fd = -1
        self._path = raw_path(folder, self._number)
        self._places: list[Place] = []
        self._offset = self._begun = self._allocated = 0
        try:
            self._reserve.write_bytes(bytes(RESERVE))
            self._begin_segment()
        except OSError as error:
            self._file_lock.close()
            raise unwritable(folder, error) from error
        for raw in left:
            self._sealer.submit(self._finish, raw, None)
        self._flusher = threading.Thread(target=self._flush, name="tapelab-flush", daemon=True)
        self._flusher.start()

    def append(
        self,
        kind: Kind,
        payload: Buffer,
        *,
        connection: int = 0,
        ts_recv: int,
        monotonic: int,
        first_frame: int = NOWHERE,
        flags: int = 0,
    ) -> int:
        """Write one record with a single `writev`; when it returns, the record is acknowledged.

        Returns its sequence. Raises `Unwritable` when it cannot be written; the journal then ends with the
        record before it and says why.
        """
        if self._failure is not None:
            if not self._ended:  # it was the flush that failed
                self._end_on(self._failure, connection, ts_recv, monotonic)
            raise unwritable(self._path, self._failure) from self._failure
        try:
            return self._write(kind, payload, connection, ts_recv, monotonic, first_frame, flags)
        except OSError as error:
            self._end_on(error, connection, ts_recv, monotonic)
            raise unwritable(self._path, error) from error

    def note(
        self,
        kind: Kind,
        facts: Mapping[str, object],
        *,
        connection: int = 0,
        ts_recv: int,
        monotonic: int,
        flags: int = 0,
    ) -> int:
        """Append a record that is not DATA: its facts as a JSON object."""
        payload = msgspec.json.encode(facts)
        return self.append(
            kind, payload, connection=connection, ts_recv=ts_recv, monotonic=monotonic, flags=flags
        )

    def chunk(
        self, data: memoryview, walked: Walked, *, connection: int, ts_recv: int, monotonic: int
    ) -> int:
        """Append bytes of the stream as they came; begins a new segment where one is due.

        Segments change between messages only, so the chunk may become two records.
        """
        first = walked.first
        if walked.boundary >= 0 and self.is_due(monotonic):
            cut = walked.boundary
            if cut:
                before = first if first < cut else NOWHERE
                self.append(
                    Kind.DATA,
                    data[:cut],
                    connection=connection,
                    ts_recv=ts_recv,
                    monotonic=monotonic,
                    first_frame=before,
                )
                data, first = data[cut:], 0
            self.rotate()
            if not len(data):
                return self.acknowledged
        return self.append(
            Kind.DATA,
            data,
            connection=connection,
            ts_recv=ts_recv,
            monotonic=monotonic,
            first_frame=first,
        )

    def is_due(self, monotonic: int) -> bool:
        """Whether the segment is big or old enough to be finished."""
        return self._offset >= self._segment_bytes or monotonic - self._begun >= self._segment_ns

    def rotate(self) -> None:
        """Finish the segment and begin the next one; the finished one is compressed in the background."""
        try:
            self._begin_segment()
        except OSError as error:
            self._end_on(error, 0, clock.now(), clock.monotonic())
            raise unwritable(self._path, error) from error

    def sync(self) -> None:
        """Wait until all that was appended is durable."""
        self._flush_once()
        if self._failure is not None:
            raise unwritable(self._path, self._failure) from self._failure

    def close(self) -> None:
        """Make everything durable, compress what is left, and let go of the lock."""
        if self._closing.is_set():
            return
        self._closing.set()
        self.calm.set()
        self._flusher.join()
        self._flush_once(last=True)
        self._sealer.shutdown(wait=True)
        self._reserve.unlink(missing_ok=True)
        self._file_lock.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin_segment(self) -> None:
        number, wall, monotonic = self._number + 1, clock.now(), clock.monotonic()
        path = raw_path(self.folder, number)
        header = FileHeader(VERSION, number, self.dataset_id, self.acknowledged + 1, wall, monotonic)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            if os.write(fd, pack_file_header(header)) != FILE_HEADER:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        with self._lock:
            if self._fd >= 0:
                self._retired.append(_Finished(self._fd, self._path, tuple(self._places)))
            self._fd, self._path, self._number = fd, path, number
            self._offset, self._begun = FILE_HEADER, monotonic
            self._allocated = 0
            self._places = [Place(self.acknowledged + 1, wall, 0)]

    def _write(
        self,
        kind: Kind,
        payload: Buffer,
        connection: int,
        ts_recv: int,
        monotonic: int,
        first_frame: int,
        flags: int,
    ) -> int:
        length = len(payload)
        if length > MAX_PAYLOAD:
            raise ValueError(f"a record holds at most {MAX_PAYLOAD} bytes, not {length}")
        sequence = self.acknowledged + 1
        head = pack_header(kind, flags, connection, first_frame, sequence, ts_recv, monotonic, payload)
        pad = padding(length)
        total = RECORD_HEADER + length + pad
        if length >= MUCH and self._offset + total > self._allocated:
            self._allocate()
        written = os.writev(self._fd, [head, payload, _ZEROS[:pad]])
        if written < total:
            _write_rest(self._fd, b"".join((head, payload, _ZEROS[:pad])), written)
        if self._offset == FILE_HEADER:
            self._places = [Place(sequence, ts_recv, 0)]
        elif self._offset - self._places[-1].offset >= BLOCK:
            self._places.append(Place(sequence, ts_recv, self._offset))
        self._offset += total
        self.acknowledged = sequence
        self.bytes += total
        return sequence

    def _allocate(self) -> None:
        """Get blocks in one go, which takes a third off each append; if refused, they come one by one."""
        self._allocated = self._offset + AHEAD
        if _fallocate is not None:
            _fallocate(self._fd, _KEEP_SIZE, self._offset, AHEAD)

    def _end_on(self, error: OSError, connection: int, ts_recv: int, monotonic: int) -> None:
        self._failure, self._ended = error, True
        cause = "disk_full" if error.errno in NO_ROOM else "unwritable"
        payload = msgspec.json.encode({"cause": cause, "message": os.strerror(error.errno or 0)})
        try:
            os.ftruncate(self._fd, self._offset)
            self._reserve.unlink(missing_ok=True)
            self._write(Kind.CLOSED, payload, connection, ts_recv, monotonic, NOWHERE, FINAL)
        except OSError:
            os.ftruncate(self._fd, self._offset)  # not even the reserve helped; what is there stays

    def _flush(self) -> None:
        while not self._closing.wait(SYNC_EVERY):
            self._flush_once()

    def _flush_once(self, *, last: bool = False) -> None:
        with self._flushing:
            with self._lock:
                target, size, fd, retired = self.acknowledged, self.bytes, self._fd, self._retired
                self._retired = []
                if last:
                    retired.append(_Finished(fd, self._path, tuple(self._places)))
            try:
                for finished in retired:
                    os.ftruncate(finished.fd, os.fstat(finished.fd).st_size)  # gives back what is allocated
                    flush_data(finished.fd)
                if retired:
                    sync_folder(self.folder)
                if not last and target > self.durable:
                    flush_data(fd)
                self.durable, self.durable_bytes = target, size
            except OSError as error:
                self._failure = self._failure or error
            for finished in retired:
                os.close(finished.fd)
                self._sealer.submit(self._finish, finished.path, finished.places)

    def _finish(self, path: Path, places: tuple[Place, ...] | None) -> None:
        if self._keep is not None:
            for number in numbers(self.folder)[: -self._keep - 1]:
                raw_path(self.folder, number).unlink(missing_ok=True)
            return
        with suppress(OSError):  # the raw segment counts; no room to compress it loses nothing
            seal(path, places, pause=lambda: self.calm.wait(SEAL_PATIENCE))


class _Finished(NamedTuple):
    fd: int
    path: Path
    places: tuple[Place, ...]


def _system_fallocate() -> Callable[[int, int, int, int], int] | None:
    """Python has only the one that makes the file longer."""
    if sys.platform != "linux":
        return None
    found = ctypes.CDLL(None).fallocate
    found.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    return cast("Callable[[int, int, int, int], int]", found)


_fallocate = _system_fallocate()


def _stand_back() -> None:
    """Compressing can wait; the socket cannot. Only Linux gives a thread a priority of its own."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), SEAL_NICE)


def _write_rest(fd: int, content: bytes, written: int) -> None:
    rest = memoryview(content)[written:]
    while rest:
        rest = rest[os.write(fd, rest) :]
