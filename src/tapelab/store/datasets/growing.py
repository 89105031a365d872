"""A dataset that is still being recorded: it follows its journal and lays down segments as it goes.

Whatever is not in a segment yet is in the journal, so that a kill at any moment loses nothing. `finish`
makes the first version of it; so does `finish_killed` for a recording whose recorder died.
"""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import Locked, UsageError
from tapelab.market import clock, tables
from tapelab.store import files, journal
from tapelab.store.datasets import manifest, parts
from tapelab.store.datasets.columns import KINDS, Decoder, Position
from tapelab.store.datasets.manifest import Decoded, Heard, Journaled, Lost, Manifest
from tapelab.store.journal import Kind, Message, Note
from tapelab.store.journal.reading import ARRIVAL_BITS
from tapelab.store.journal.runs import Run, expand
from tapelab.store.journal.segments import Lock, is_held, lock_path, numbers, read_header

JOURNAL = "journal"
FLUSH_ROWS = 500_000
FLUSH_EVERY = 5 * clock.MINUTE
GATHER_BYTES = 4 * 2**20  # of messages turned into tables at a time
MAX_NAMES = 1000
NEWEST = 4  # batches of rows that are looked at as the newest

_LOCK = "lock"


def create(
    parent: Path,
    name: str,
    *,
    provenance: Mapping[str, object],
    following: Path | None = None,
    topics: Sequence[str] = (),
    gaps: tuple[Lost, ...] = (),
) -> Growing:
    """Begin a recording in `parent/name` (or `name-2`, … where that is taken).

    `following`: the journal of a running recording to read from, from here on, instead of one's own, which
    hears these `topics`. `gaps`: what is known to be lost already.
    """
    files.make_folder(parent)
    for n in range(1, MAX_NAMES):
        folder = parent / (name if n == 1 else f"{name}-{n}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise files.unwritable(folder, error) from error
        now = clock.now()
        begun = Manifest(
            id=uuid.uuid4().hex,
            version=0,
            clock="received",
            created=now,
            begun=now,
            provenance=dict(provenance),
            journals=() if following else (Journaled(JOURNAL),),
            heard=(Heard(tuple(topics), now),) if following else (),
            gaps=gaps,
            decoded=Decoded(journal.last_sequence(following) if following else -1),
            following=str(following or ""),
        )
        growing = Growing(folder, begun)
        manifest.save(folder, begun)
        return growing
    raise UsageError(f"There are {MAX_NAMES} recordings named {name!r}.", remedy="Choose another name.")


def lock_of(folder: Path) -> Path:
    """What the recorder of a dataset holds."""
    return folder / _LOCK


def journal_of(folder: Path, begun: Manifest) -> Path:
    """What a recording under way reads: its own journal, or that of the recording that it follows."""
    return Path(begun.following) if begun.following else folder / JOURNAL


def cut_short(folder: Path) -> Growing | None:
    """A recording whose recorder died, to go on with; None where it is finished or has no journal.

    Raises `Locked` while somebody records into it.
    """
    begun = manifest.load(folder)
    if begun.version > 0 or not begun.journals:
        return None
    held = Lock(lock_of(folder))
    if is_held(lock_path(folder / JOURNAL)):  # its receiver has not noticed yet
        held.close()
        raise Locked(f"{folder.name} is still written.", remedy="Wait until it has ended, or stop it.")
    return Growing(folder, manifest.load(folder), held=held)


def finish_killed(folder: Path) -> Manifest:
    """The newest manifest of a dataset; a recording whose recorder died is put in order and finished first.

    One that is still recorded, by this or another process, is left as it is.
    """
    begun = manifest.load(folder)
    if begun.version > 0:
        return begun
    try:
        held = Lock(lock_of(folder))
    except Locked:
        return begun
    with held:
        begun = manifest.load(folder)
        if begun.version > 0 or is_held(lock_path(folder / JOURNAL)):
            return begun
        if begun.journals:
            journal.recover(folder / JOURNAL)
        growing = Growing(folder, begun, held=held)
        if begun.following:
            growing.catch_up()
            if not growing.journal.is_dir():  # it was moved or removed since
                growing._lose({"start": begun.ended or begun.begun, "end": clock.now(), "cause": "killed"})
        return growing.finish()


def peek(folder: Path, begun: Manifest) -> Manifest:
    """The manifest of a recording under way, with what is known beyond its segments; nothing is written."""
    growing = Growing(folder, begun, writes=False)
    growing.catch_up()
    growing.gather()
    growing.close()
    return msgspec.structs.replace(growing.manifest, counts=growing.counts())


class Growing:
    """A recording under way, held by a lock. `step` takes in what the journal has gained.

    `step` belongs to one thread; everything else may be asked from any. Raises `Locked` where another
    process records into it.
    """

    def __init__(
        self,
        folder: Path,
        begun: Manifest,
        *,
        held: Lock | None = None,
        writes: bool = True,
    ) -> None:
        self.folder = folder
        self.manifest = begun
        self.journal = journal_of(folder, begun)
        self.newest: int | None = None  # ts_event of the newest event, ns UTC
        self.lag: int | None = None  # how far behind it our clock was, ns
        self.ending: dict[str, object] | None = None  # what the last record of the journal says
        self._held = held or (Lock(lock_of(folder)) if writes else None)
        self._writes = writes
        self._guard = threading.RLock()
        self._pending: dict[str, list[pa.Table]] = {kind: [] for kind in KINDS}
        self._pending_rows = 0
        self._flushed_at = clock.monotonic()
        self._only: pa.Array | None = None
        self._came = bool(begun.symbols)
        self._counted = dict(begun.counts)
        done = begun.decoded
        position = Position(done.resume, done.arrival, done.note, done.shift)
        self._shift = done.shift
        self._unheard: int | None = None  # since when there is no leader any more, ns UTC
        self._decoder = Decoder(self.journal, position)
        self._arrival = position.arrival + position.shift
        self._connections = 0

    @property
    def topics(self) -> tuple[str, ...]:
        """What is subscribed just now."""
        heard = self.manifest.heard
        return heard[-1].topics if heard and not heard[-1].end else ()

    @property
    def silent(self) -> bool:
        """Whether nothing has come but what the vendor says at the door."""
        counts = self.counts()
        return not (self._came or counts["unknown"] or counts["malformed"])

    def keep_only(self, symbols: Iterable[str]) -> None:
        """Lay down rows of these symbols only; the journal keeps everything."""
        self._only = pa.array(sorted(symbols), pa.string())
        heard = (msgspec.structs.replace(h, topics=self._kept(h.topics)) for h in self.manifest.heard)
        self._change(heard=tuple(heard))

    def step(self) -> list[Message | Note]:
        """Take in a bounded amount of what is new; gives the messages and notes."""
        return expand(self._step())

    def _step(self) -> list[Run | Message | Note]:
        with self._guard:
            items = self._decoder.read()
            for item in items:
                if isinstance(item, Note):
                    self._note(item)
                else:
                    self._arrival = item.last + self._shift
                if self._unheard is not None and (not isinstance(item, Note) or item.kind is Kind.SUBS):
                    self._heard_again(item.ts_recv)
            if items and items[-1].ts_recv > self.manifest.ended:
                self._change(ended=items[-1].ts_recv)
            if self._decoder.gathered >= GATHER_BYTES:
                self.gather()
            return items

    def catch_up(self) -> None:
        """Take in all that is there now."""
        until = clock.now()  # it may grow faster than it is read
        while (items := self._step()) and items[-1].ts_recv < until:
            pass

    def go_on(self, leader: Path | None) -> None:
        """The recording that was followed has ended: read on from the journal of another, or from one's own.

        What is missed until then is a gap `leader_ended`.
        """
        with self._guard:
            self._drain()
            self.gather()
            shift = self._shift = ((self._arrival >> ARRIVAL_BITS) + 1) << ARRIVAL_BITS
            since = self.manifest.ended if self._unheard is None else self._unheard
            moved = self.ending is not None and self.ending.get("cause") == "moved"
            self._unheard, self.ending = None if moved else since, None
            self._counted, self._connections = self.counts(), 0
            self._decoder.close()
            self.journal = leader or self.folder / JOURNAL
            self._decoder = Decoder(self.journal, Position(_behind(leader, since), shift=shift))
            self._change(
                following=str(leader or ""),
                journals=() if leader else (Journaled(JOURNAL, shift=shift),),
                heard=self._heard(self.manifest.ended),
            )
            self._flush()

    def _heard_again(self, now: int) -> None:
        self._lose({"start": self._unheard, "end": now, "cause": "leader_ended"})
        self._unheard = None
        self._flush()  # no journal says so

    def gather(self) -> None:
        """Turn what was decoded into rows, and lay them down where enough have come together."""
        with self._guard:
            for kind, table in self._decoder.take().items():
                self._came = self._came or len(table) > 0
                if self._only is not None:
                    table = table.filter(pc.is_in(table.column("symbol"), self._only))
                if len(table):
                    self._pending[kind].append(table)
                    self._pending_rows += len(table)
                    self._change(symbols=parts.merge([self.manifest.symbols, parts.count(kind, table)]))
                    self._look_at(kind, table)
            old = clock.monotonic() - self._flushed_at >= FLUSH_EVERY
            if self._writes and (self._pending_rows >= FLUSH_ROWS or (old and self._pending_rows)):
                self._flush()

    def table(self, kind: str) -> pa.Table:
        """All rows of a kind so far, in order of arrival."""
        with self._guard:
            self.gather()
            laid, pending = self.manifest.segments, list(self._pending[kind])
        read = [parts.read_segment(self.folder, segment) for segment in laid if segment.kind == kind]
        return tables.concat([*read, *pending], tables.SCHEMAS[kind])

    def newest_rows(self, kind: str) -> pa.Table:
        """Some rows of a kind that came last; none right after they were laid down."""
        with self._guard:
            return tables.concat(self._pending[kind][-NEWEST:], tables.SCHEMAS[kind])

    def counts(self) -> dict[str, int]:
        """Since the recording began: frames, bytes, connections; what was unknown, malformed and dropped."""
        decoder = self._decoder
        now = {
            "frames": decoder.frames,
            "bytes": decoder.bytes + decoder.gathered,
            "connections": self._connections,
            "unknown": decoder.unknown,
            "unknown_fields": decoder.unknown_fields,
            "malformed": decoder.malformed,
            "dropped": decoder.dropped,
        }
        return {name: self._counted.get(name, 0) + value for name, value in now.items()}

    def give_up(self) -> None:
        """Leave nothing of a recording that never began, unless something came all the same."""
        self.catch_up()
        self.gather()
        if self.silent:
            shutil.rmtree(self.folder)
            self.close()
        else:
            self.finish()

    def finish(self) -> Manifest:
        """The journal has ended: lay down the rest, write version 1, and let go."""
        with self._guard:
            if self.manifest.journals:
                self._drain()
                if self.ending is None:
                    journal.recover(self.journal)
                    self._drain()
            self.gather()
            if self._pending_rows:
                self._flush()
            if self._unheard is not None:
                self._heard_again(clock.now())
            last = self._decoder.position.note
            journals = tuple(Journaled(j.folder, last, j.shift) for j in self.manifest.journals)
            heard = self._heard(self.manifest.ended)
            self._change(version=1, following="", journals=journals, heard=heard, counts=self.counts())
            self._change(change="recorded", changed=clock.now())
            manifest.save(self.folder, self.manifest)
            manifest.path_of(self.folder, 0).unlink(missing_ok=True)
            self.close()
            return self.manifest

    def close(self) -> None:
        """Let go of the dataset as it is."""
        self._decoder.close()
        if self._held is not None:
            self._held.close()

    def _drain(self) -> None:
        while self._step():
            pass

    def _flush(self) -> None:
        part = max((segment.part for segment in self.manifest.segments), default=0) + 1
        position = self._decoder.position
        laid = tuple(
            parts.write_segment(self.folder, part, kind, pa.concat_tables(pending))
            for kind, pending in self._pending.items()
            if pending
        )
        self._change(
            segments=self.manifest.segments + laid,
            decoded=Decoded(position.resume, position.arrival, position.note, self._shift),
            counts=self.counts(),
        )
        manifest.save(self.folder, self.manifest)
        self._pending = {kind: [] for kind in KINDS}
        self._pending_rows, self._flushed_at = 0, clock.monotonic()

    def _change(self, **changes: object) -> None:
        self.manifest = msgspec.structs.replace(self.manifest, **changes)

    def _look_at(self, kind: str, table: pa.Table) -> None:
        if kind == "bars":
            self._change(provenance={**self.manifest.provenance, "interval": "1m"})
            return
        last = table.slice(len(table) - 1)
        event, received = last.column("ts_event")[0].as_py(), last.column("ts_recv")[0].as_py()
        if self.newest is None or event >= self.newest:
            self.newest, self.lag = event, received - event

    def _note(self, note: Note) -> None:
        facts = note.facts
        if note.kind is Kind.OPEN:
            self._connections += 1
            self.ending = None
            tape = str(facts.get("tape", ""))
            known = {"url": facts.get("url", ""), "tape": tape, "simulated": tape.startswith("simulated")}
            self._change(provenance={**self.manifest.provenance, **known})
        elif note.kind is Kind.SUBS:
            topics = self._kept(str(topic) for topic in _list(facts.get("topics")))
            if topics != self.topics:
                self._change(heard=(*self._heard(note.ts_recv), Heard(topics, note.ts_recv)))
            missing = _list(facts.get("unconfirmed"))
            if missing:
                self._change(provenance={**self.manifest.provenance, "unconfirmed": missing})
        elif note.kind is Kind.CLOSED:
            self._change(heard=self._heard(note.ts_recv))
            if note.final:
                self.ending = facts
        elif note.kind is Kind.GAP:
            self._lose(facts)

    def _kept(self, topics: Iterable[str]) -> tuple[str, ...]:
        """What of these topics is laid down: nobody misses the others."""
        if self._only is None:
            return tuple(topics)
        names, found = self._only.to_pylist(), list[str]()
        for channel, _, symbol in (topic.partition(".") for topic in topics):
            found += [f"{channel}.{name}" for name in names if symbol in (name, "*")]
        return tuple(dict.fromkeys(found))

    def _heard(self, end: int) -> tuple[Heard, ...]:
        """The stretches heard so far, the open one ended."""
        return tuple(msgspec.structs.replace(h, end=end) if not h.end else h for h in self.manifest.heard)

    def _lose(self, facts: Mapping[str, object]) -> None:
        start, end, cause = int(str(facts["start"])), int(str(facts["end"])), str(facts["cause"])
        known = {(gap.start, gap.end, gap.cause) for gap in self.manifest.gaps}
        if (start, end, cause) not in known:  # damage is found again on every reading
            channels = tuple(str(c) for c in _list(self.manifest.provenance.get("channels")))
            gap = Lost(start, end, cause, channels)
            self._change(gaps=(*self.manifest.gaps, gap))


def _list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


def _behind(leader: Path | None, since: int) -> int:
    """Up to which record a journal that is followed from now on is passed over: one that is older, whole."""
    if leader is None or not (present := numbers(leader)):
        return -1
    header = read_header(leader, present[0])
    return journal.last_sequence(leader) if header is not None and header.wall < since else -1
