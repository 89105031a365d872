"""Many messages of the stream at once, at compiled speed where that is certain.

The kernel takes a message whole or not at all. What it does not take goes to the plain decoder, at its
place in the order, so that rows and counters are those of the plain decoder by construction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tapelab.massive.wire import compiled
from tapelab.massive.wire.plan import Plan
from tapelab.massive.wire.stream import TABLES, FrameDecoder
from tapelab.massive.wire.workspace import Batch, Framed, Read, Run, Workspace, each

WARM_AFTER = 8 * 2**20  # bytes; the plain decoder takes a third of a second for them
AT_LEAST = 16 * 2**10  # bytes at a time; for fewer, making tables costs more than it saves
AT_MOST = 6 * 2**20  # bytes at a time, more than is read of a journal at once; a message is never cut


class BulkDecoder:
    """What `FrameDecoder` does, for many messages at a time; rows and counters are the same.

    It begins to make the compiled kernel ready when it has seen `WARM_AFTER` bytes, and uses it once it is.
    `plain` holds the counters; `compiled` counts the messages that the kernel took. But for `scan`, not for
    use by several threads at once.
    """

    def __init__(self) -> None:
        self.plain = FrameDecoder()
        self.compiled = 0
        self._bytes = 0
        self._plan = Plan()
        self._free: list[Workspace] = []
        self._done: list[dict[str, pa.Table]] = []

    def feed(self, items: Sequence[Framed | Run]) -> int:
        """Take messages, in the order in which they came; gives how many bytes they are."""
        return self.add(self.scan(items))

    def scan(self, items: Sequence[Framed | Run]) -> Scanned:
        """The longer part of `feed`, which may go on in other threads beside all else; `add` is the rest."""
        size = sum([item.size if isinstance(item, Run) else len(item.payload) for item in items])
        kernel = compiled.kernel(warm=False) if size >= AT_LEAST else None
        if kernel is None:
            return Scanned(items, size, None)
        reads = []
        for batch in _batches(items):
            space = self._workspace(batch.size)
            reads.append(space.read(kernel, batch))
            self._free.append(space)
        return Scanned(items, size, reads)

    def add(self, scanned: Scanned) -> int:
        """Take what was scanned, in the order in which the messages came; gives how many bytes they are."""
        items, size, reads = scanned
        self._bytes += size
        if reads is None:
            compiled.kernel(warm=size >= AT_LEAST and self._bytes >= WARM_AFTER)
            for payload, ts_recv, arrival in each(items):
                self.plain.feed(payload, ts_recv=ts_recv, arrival=arrival)
        else:
            self._settle()
            self._done += map(self._merged, reads)
        return size

    def take(self) -> dict[str, pa.Table]:
        """What has gathered since the last time, as `FrameDecoder.take` gives it."""
        if not self._done:
            return self.plain.take()
        self._settle()
        done, self._done = self._done, []
        if len(done) == 1:
            return done[0]
        return {name: pa.concat_tables([one[name] for one in done]) for name in TABLES.values()}

    def _workspace(self, size: int) -> Workspace:
        with suppress(IndexError):  # another thread may have taken the last
            space = self._free.pop()
            if space.plan is self._plan and space.size >= size:
                return space
        return Workspace(self._plan, max(size, AT_MOST))

    def _settle(self) -> None:
        if any(self.plain.gathered().values()):
            self._done.append(self.plain.take())

    def _merged(self, read: Read) -> dict[str, pa.Table]:
        """What the kernel took and, at its place, what the plain decoder makes of the messages it left."""
        plain, found = self.plain, read.found
        self.compiled += read.messages - len(read.left)
        plain.unknown_fields.update(read.learned)
        if not read.left:
            return found
        places: dict[str, list[int]] = {name: [] for name in found}
        known = len(plain.unknown_fields)
        before = plain.gathered()
        for place, payload, ts_recv, arrival in read.left:
            plain.feed(payload, ts_recv=ts_recv, arrival=arrival)
            now = plain.gathered()
            for name, rows in now.items():
                places[name] += [place] * (rows - before[name])
            before = now
        if len(plain.unknown_fields) > known:
            self._learn()
        merged = {}
        for name, more in plain.take().items():
            table = found[name]
            if len(more):
                order = np.argsort(np.concatenate([read.places[name], places[name]]), kind="stable")
                table = pa.concat_tables([table, more]).take(pa.array(order)).combine_chunks()
            merged[name] = table
        return merged

    def _learn(self) -> None:
        """Fields that the vendor added: counted, passed over, and no reason to be slow from now on."""
        for channel, key in self.plain.unknown_fields:
            self._plan = self._plan.with_key(channel, key)


class Scanned(NamedTuple):
    """Messages, their bytes, and what the kernel made of them: None where it is not ready or not worth it."""

    items: Sequence[Framed | Run]
    size: int
    reads: list[Read] | None


def _batches(items: Sequence[Framed | Run]) -> Iterator[Batch]:
    """The messages in batches of about `AT_MOST` bytes."""
    some: list[Framed | Run] = []
    count = size = 0
    for item in items:
        length = item.size if isinstance(item, Run) else len(item.payload)
        if size + length > AT_MOST and some:
            yield Batch(some, count, size)
            some, count, size = [], 0, 0
        some.append(item)
        count += len(item.begins) if isinstance(item, Run) else 1
        size += length
    if some:
        yield Batch(some, count, size)
