"""The bytes of a journal: file header, record header, checksums. Pure; nothing is opened here.

A segment is a 64-byte file header and records, each aligned to 8 bytes, little endian:

    file header    magic 8 · version u2 · (0) u2 · number u4 · dataset id 16 · first sequence i8 ·
                   wall clock ns i8 · monotonic ns i8 · checksum of the 56 bytes before u4 · (0) u4
    record header  magic 4 · kind u1 · flags u1 · connection u2 · length u4 · first frame u4 ·
                   sequence i8 · ts_recv ns i8 · monotonic ns i8 · checksum of the payload u4 ·
                   checksum of the 44 bytes before u4
    payload        `length` bytes, then zeros up to the next multiple of 8

The payload of DATA is the bytes as they came from the socket; `first frame` is the offset in it of the
first frame header that begins there, 2^32 - 1 if none does. That of every other kind is a JSON object.
Flag 1 marks the last record of a complete journal. Unknown kinds and flags are passed over by readers.
The checksum of a file header is CRC-32 as in zlib, that of records the lower half of XXH3 (64 bits), which
takes a quarter of the time. Journals of version 1 had CRC-32 in both; their records begin with a magic of
their own.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from isal.isal_zlib import crc32
from xxhash import xxh3_64_intdigest

from tapelab.store.journal.frames import NOWHERE, Buffer

VERSION = 2
MAX_PAYLOAD = 16 * 2**20

_FILE = struct.Struct("<8sHHI16sqqq")
_RECORD = struct.Struct("<4sBBHIIqqqI")
_CHECK = struct.Struct("<I")
_RECORD_WITH_CHECK = struct.Struct("<4sBBHIIqqqII")
_FILE_MAGIC = b"\x89TLJ\r\n\x1a\n"
_MAGIC, _MAGIC_1 = b"tLj\x82", b"tLj\x81"
_EITHER_MAGIC = re.compile(_MAGIC[:3])

FILE_HEADER = 64
RECORD_HEADER = _RECORD_WITH_CHECK.size
assert RECORD_HEADER == 48

FINAL = 0x01  # flag: nothing follows, the journal is complete


class Kind(IntEnum):
    """What a record holds."""

    DATA = 1  # bytes as they came
    SENT = 2  # what we said; never the key
    OPEN = 3  # a connection: url, market, what the server says of itself
    SUBS = 4  # topics confirmed and refused
    CLOSED = 5  # the end of a connection: cause and code
    GAP = 6  # a stretch that was lost: start, end, cause
    CLOCK = 7  # the wall clock beside ours


class FileHeader(NamedTuple):
    """The first bytes of a segment."""

    version: int
    number: int
    dataset_id: bytes
    first_sequence: int
    wall: int
    monotonic: int


class Record(NamedTuple):
    """One record, its payload `data[begin:end]`: what was read at once is not copied for each record.

    `first` is the offset of the first frame header that begins in a DATA payload. A kind that a later
    version added is a plain number here and passed over by readers.
    """

    kind: Kind | int
    flags: int
    connection: int
    first: int
    sequence: int
    ts_recv: int
    monotonic: int
    data: Buffer
    begin: int
    end: int

    @property
    def payload(self) -> bytes:
        return bytes(self.data[self.begin : self.end])


class Scan(NamedTuple):
    """Records found from `start` on, where the scan stopped, and whether at something broken."""

    start: int
    records: list[Record]
    at: int
    damaged: bool


_KINDS = {int(kind): kind for kind in Kind}


def _checksum(data: Buffer) -> int:
    return xxh3_64_intdigest(data) & 0xFFFF_FFFF


_CHECKSUMS: dict[bytes, Callable[[Buffer], int]] = {_MAGIC: _checksum, _MAGIC_1: crc32}


def pack_file_header(header: FileHeader) -> bytes:
    body = _FILE.pack(_FILE_MAGIC, header.version, 0, header.number, header.dataset_id, *header[3:])
    return (body + _CHECK.pack(crc32(body))).ljust(FILE_HEADER, b"\0")


def parse_file_header(data: Buffer) -> FileHeader | None:
    """None where the bytes are no whole and valid header."""
    size = _FILE.size
    if len(data) < FILE_HEADER or _CHECK.unpack_from(data, size)[0] != crc32(data[:size]):
        return None
    magic, version, _, number, dataset_id, first, wall, monotonic = _FILE.unpack_from(data)
    return FileHeader(version, number, dataset_id, first, wall, monotonic) if magic == _FILE_MAGIC else None


def pack_header(
    kind: Kind,
    flags: int,
    connection: int,
    first: int,
    sequence: int,
    ts_recv: int,
    monotonic: int,
    payload: Buffer,
) -> bytes:
    length, check = len(payload), _checksum(payload)
    head = _RECORD.pack(
        _MAGIC, kind, flags, connection & 0xFFFF, length, first, sequence, ts_recv, monotonic, check
    )
    return head + _CHECK.pack(_checksum(head))


def padding(length: int) -> int:
    """How many zeros follow a payload of `length` bytes."""
    return -length & 7


def scan(data: Buffer, at: int, expected: int | None, *, limit: int = 2**62) -> Scan:
    """Whole records of `data` from offset `at`, the first with sequence `expected` (None: any).

    Stops once the records span `limit` bytes, at a record that is not whole yet, or at a broken one.
    """
    start, records = at, list[Record]()
    end, enough, view, unpack = len(data), at + limit, memoryview(data), _RECORD_WITH_CHECK.unpack_from
    while end - at >= RECORD_HEADER and at < enough:
        magic, kind, flags, connection, length, first, sequence, ts_recv, monotonic, check, head = unpack(
            data, at
        )
        body = at + RECORD_HEADER
        of = _CHECKSUMS.get(magic)
        if of is None or of(view[at : body - 4]) != head or expected not in (sequence, None):
            return Scan(start, records, at, True)
        stop = body + length
        if stop > end:
            break
        if of(view[body:stop]) != check:
            return Scan(start, records, at, True)
        kind = _KINDS.get(kind, kind)
        records.append(Record(kind, flags, connection, first, sequence, ts_recv, monotonic, data, body, stop))
        expected = sequence + 1
        at = stop + (-length & 7)
    return Scan(start, records, at, False)


def walk(
    data: Buffer, at: int, expected: int | None, *, floor: int = 0, limit: int = 2**62
) -> Iterator[Scan]:
    """Scans of `data` one behind the other, each of about `limit` bytes, around what is broken.

    Where one starts behind the end of the one before, what lies between is damaged. Behind damage only a
    record with a sequence of at least `floor` counts.
    """
    while at < len(data):
        part = scan(data, at, expected, limit=limit)
        yield part
        if part.records:
            floor = expected = part.records[-1].sequence + 1
            at = part.at
        if part.damaged:
            at, expected = _find(data, part.at, floor), None
        elif not part.records:
            return


def _find(data: Buffer, broken: int, floor: int) -> int:
    """Where the next whole and valid record begins behind `broken`; the end of `data` if nowhere."""
    for match in _EITHER_MAGIC.finditer(data, broken + 1):
        if (place := match.start()) % 8 == 0:
            found = scan(data, place, None, limit=1).records
            if found and found[0].sequence >= floor:
                return place
    return len(data)


def encode(kind: Kind, payload: bytes, *, sequence: int, like: Record, flags: int = 0) -> bytes:
    """The bytes of a record that is not DATA, with the connection and times of `like`."""
    times = (like.ts_recv, like.monotonic)
    head = pack_header(kind, flags, like.connection, NOWHERE, sequence, *times, payload)
    return head + payload + bytes(padding(len(payload)))


__all__ = [
    "FILE_HEADER",
    "FINAL",
    "MAX_PAYLOAD",
    "NOWHERE",
    "RECORD_HEADER",
    "VERSION",
    "FileHeader",
    "Kind",
    "Record",
    "Scan",
    "encode",
    "pack_file_header",
    "pack_header",
    "padding",
    "parse_file_header",
    "scan",
    "walk",
]
