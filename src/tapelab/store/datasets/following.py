"""What a recording under way holds beyond its segments, and what it gains until it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import StoreError
from tapelab.market import clock
from tapelab.store.datasets import manifest, parts
from tapelab.store.datasets.columns import Decoder, Position
from tapelab.store.datasets.growing import journal_of, lock_of
from tapelab.store.datasets.manifest import Manifest
from tapelab.store.datasets.overlay import tick_parts
from tapelab.store.journal.segments import is_held

LOOK_EVERY = 0.02  # seconds between two looks at a recording that grows

Batch = dict[str, pa.Table]


def so_far(folder: Path, known: Manifest) -> Iterator[Batch]:
    """What is there at this moment, a bounded amount at a time."""
    until = clock.now()
    with closing(_decoder(folder, known)) as decoder:
        while items := decoder.read():
            yield decoder.take()
            if items[-1].ts_recv > until:
                return  # it grows faster than it is read


def to_come(folder: Path, known: Manifest, stop: threading.Event) -> Iterator[Batch]:
    """What is there, and what is added until the recording ends or `stop` is set.

    It goes on where the recording does: in its journal after its receiver was killed, in another journal when
    the recording that it followed has ended, and under the name that it was saved by.
    """
    given = known.last_arrival
    decoder = _decoder(folder, known)
    try:
        while True:
            # Looked at before reading. A receiver outlives its recorder for a moment, a leader its followers.
            alive = decoder.is_live() and (not known.following or is_held(lock_of(folder)))
            if decoder.read():
                batch = decoder.take()
                given = max(given, _last(batch))
                yield batch
                continue
            if stop.is_set() or (decoder.final and not known.following):
                return
            if alive and not decoder.final:
                stop.wait(LOOK_EVERY)
                continue
            try:
                folder = found_again(folder, known)
            except StoreError:
                if given < 0:
                    return  # nothing came, so nothing was kept
                raise
            now = manifest.load(folder)
            if now.version or now.decoded.shift != known.decoded.shift:
                yield from _behind(folder, now, given)
                if now.version:
                    return
                decoder.close()
                known, given, decoder = now, max(given, now.last_arrival), _decoder(folder, now)
            elif is_held(lock_of(folder)):
                stop.wait(LOOK_EVERY)
            else:
                return
    finally:
        decoder.close()


def found_again(folder: Path, known: Manifest) -> Path:
    """Where a recording lies that may have been saved under another name since."""
    if folder.exists():
        return folder
    for path in folder.parent.iterdir():
        if manifest.versions(path) and manifest.load(path).id == known.id:
            return path
    raise StoreError(
        f"{folder.name} was removed while it was followed.",
        remedy="Save or append it when those that follow it have ended.",
    )


def _decoder(folder: Path, known: Manifest) -> Decoder:
    done = known.decoded
    return Decoder(journal_of(folder, known), Position(done.resume, done.arrival, done.note, done.shift))


def _behind(folder: Path, known: Manifest, given: int) -> Iterator[Batch]:
    """The rows of the segments that arrived after the number `given`."""
    for part in tick_parts(known.segments):
        if max(segment.last + segment.shift for segment in part.values()) > given:
            read = {kind: parts.read_segment(folder, segment) for kind, segment in part.items()}
            yield {kind: table.filter(pc.greater(table["arrival"], given)) for kind, table in read.items()}


def _last(batch: Batch) -> int:
    """The arrival number of the last row."""
    ticks = (batch[kind].column("arrival") for kind in ("quotes", "trades"))
    return max((column[-1].as_py() for column in ticks if len(column)), default=-1)
