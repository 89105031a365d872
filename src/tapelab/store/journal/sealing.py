"""A finished segment of a journal, compressed: `000001.tlj` becomes `000001.tlj.zst`.

The segment is cut at record boundaries into blocks of about 1 MiB, each a zstd frame with a checksum. A
skippable frame at the end holds the index, so that `zstd -d` gives the segment back byte for byte:

    block…  · zstd skippable frame { entry… · segment size u8 · entries u4 · checksum u4 · magic 8 }
    entry   first sequence i8 · first ts_recv ns i8 · offset in the segment u8 · offset in this file u8
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import zstandard
from isal.isal_zlib import crc32

from tapelab.errors import Damaged
from tapelab.store.files import sync_folder
from tapelab.store.journal.record import FILE_HEADER, parse_file_header, scan, walk

BLOCK = 2**20
LEVEL = 1
SEALED = ".zst"

_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A5E
_ENTRY = struct.Struct("<qqQQ")
_TRAILER = struct.Struct("<QII8s")
_MAGIC = b"TLJINDEX"


class Place(NamedTuple):
    """A record boundary inside a raw segment at which a block may begin."""

    sequence: int
    ts_recv: int
    offset: int


@dataclass(frozen=True)
class Sealed:
    """A sealed segment as its index describes it. Not `whole`: what lies behind the last place is lost."""

    path: Path
    places: tuple[Place, ...]
    packed: tuple[int, ...]  # where each block begins in the file, and where the last one ends
    size: int  # of the raw segment
    whole: bool = True

    def block(self, index: int) -> bytes:
        """The raw bytes of one block; `Damaged` when they are not what was written."""
        start, stop = self.packed[index], self.packed[index + 1]
        following = self.places[index + 1].offset if index + 1 < len(self.places) else self.size
        length = following - self.places[index].offset
        with self.path.open("rb") as file:
            file.seek(start)
            packed = file.read(stop - start)
        try:
            if zstandard.frame_content_size(packed) != length:  # it might ask for all the memory there is
                raise _damaged(self.path, index)
            return zstandard.ZstdDecompressor().decompress(packed)
        except zstandard.ZstdError as error:
            raise _damaged(self.path, index) from error


def sealed_name(raw: Path) -> Path:
    return raw.with_name(raw.name + SEALED)


def seal(
    raw: Path, places: Iterable[Place] | None = None, *, pause: Callable[[], object] | None = None
) -> Path:
    """Compress a finished raw segment and remove it. Without `places` the segment is walked for them.

    `pause` is called before each block. Where compressing fails (OSError) the raw segment stays, and counts.
    """
    target = sealed_name(raw)
    beside = raw.with_name(raw.name + ".part")
    found = tuple(places) if places is not None else walk_places(raw)
    size = raw.stat().st_size
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    entries = []
    try:
        with raw.open("rb") as source, beside.open("wb") as sink:
            for index, place in enumerate(found):
                if pause is not None:
                    pause()
                stop = found[index + 1].offset if index + 1 < len(found) else size
                entries.append(_ENTRY.pack(*place, sink.tell()))
                sink.write(compressor.compress(source.read(stop - place.offset)))
            sink.write(_index(entries, size))
            sink.flush()
            os.fsync(sink.fileno())
        beside.replace(target)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
    raw.unlink()
    return target


def open_sealed(path: Path) -> Sealed | None:
    """The index of a sealed segment, or None where there is none that is valid."""
    try:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            if length < _SKIPPABLE.size + _TRAILER.size:
                return None
            file.seek(length - _TRAILER.size)
            size, count, check, magic = _TRAILER.unpack(file.read(_TRAILER.size))
            blocks_end = length - _TRAILER.size - count * _ENTRY.size - _SKIPPABLE.size
            if magic != _MAGIC or blocks_end < 0:
                return None
            file.seek(blocks_end + _SKIPPABLE.size)
            table = file.read(count * _ENTRY.size)
    except FileNotFoundError:
        return None
    if crc32(table, crc32(struct.pack("<QI", size, count))) != check:
        return None
    entries = list(_ENTRY.iter_unpack(table))
    places = tuple(Place(*entry[:3]) for entry in entries)
    return Sealed(path, places, (*(entry[3] for entry in entries), blocks_end), size)


def salvage(path: Path) -> Sealed:
    """A sealed segment whose index is damaged, as far as its blocks can be read one behind the other."""
    content = memoryview(path.read_bytes())
    places, packed, size = list[Place](), [0], 0
    while bytes(content[packed[-1] : packed[-1] + 4]) == zstandard.FRAME_HEADER:
        unpacker = zstandard.ZstdDecompressor().decompressobj()
        try:
            raw = unpacker.decompress(content[packed[-1] :])
        except zstandard.ZstdError:
            break
        found = scan(raw, 0 if places else FILE_HEADER, None, limit=1).records
        if not unpacker.eof or not found:
            break
        places.append(Place(found[0].sequence, found[0].ts_recv, size))
        packed.append(len(content) - len(unpacker.unused_data))
        size += len(raw)
    whole = bytes(content[packed[-1] : packed[-1] + 4]) == _SKIPPABLE_MAGIC.to_bytes(4, "little")
    return Sealed(path, tuple(places), tuple(packed), size, whole and bool(places))


def walk_places(raw: Path) -> tuple[Place, ...]:
    """Where the blocks of a raw segment begin, found by reading it."""
    data = raw.read_bytes()
    header = parse_file_header(data)
    places: list[Place] = []
    for part in walk(data, FILE_HEADER, header.first_sequence if header else None, limit=BLOCK):
        if part.records:
            first = part.records[0]
            places.append(Place(first.sequence, first.ts_recv, part.start if places else 0))
    return tuple(places) or (Place(0, 0, 0),)


def _index(entries: list[bytes], size: int) -> bytes:
    table = b"".join(entries)
    check = crc32(table, crc32(struct.pack("<QI", size, len(entries))))
    trailer = _TRAILER.pack(size, len(entries), check, _MAGIC)
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, len(table) + len(trailer)) + table + trailer


def _damaged(path: Path, block: int) -> Damaged:
    return Damaged(
        f"Block {block} of {path.name} is not what was written.",
        remedy="Restore the file from a backup; the rest of the recording can be read.",
        path=str(path),
        block=block,
    )
