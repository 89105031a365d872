"""A running live stream, seen from this program: its receiver process, and the thread that follows it.

The thread reads what the receiver journals and hands it on: to the dataset that grows from it, where one
is recorded, and to whoever listens (`taps`). It never holds the receiver up.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tapelab.errors import Locked, RecordingError, TapelabError
from tapelab.live.process import Process
from tapelab.live.talk import Command, Config, Ending, Figures
from tapelab.market import clock
from tapelab.settings import Settings
from tapelab.store.datasets.growing import JOURNAL, Growing, lock_of
from tapelab.store.journal import SEGMENT_BYTES, Follower, Kind, Message, Note, last_sequence
from tapelab.store.journal.segments import is_held, lock_path

TICK = 0.05  # seconds; the longest wait of the thread
LOOK_EVERY = 0.01  # seconds between looks at the journal of another program, which does not tell us of news
GATHER_EVERY = clock.SECOND // 2  # decoded events become rows at least so often
START_PATIENCE = 45.0  # seconds for connecting, logging in and confirming the topics
MAX_RESTARTS = 5  # of a receiver that is killed, in a row
STEADY = clock.MINUTE  # a receiver that lasted this long starts the count afresh
COME_BACK = (
    10 * clock.SECOND
)  # for a receiver of another program that was killed, before its feed is taken over
SCRATCH_SEGMENTS = 2  # kept of a stream that nobody records

Items = list[Message | Note]
Tap = Callable[[Items], None]


class Source(Protocol):
    """What the thread reads: a dataset that grows, or the bare journal of a stream that nobody records."""

    journal: Path

    def step(self) -> Items: ...

    def go_on(self, leader: Path | None) -> None:
        """Read on from the journal of another recording, or from one's own."""


class Scratch:
    """The journal of a stream that nobody records. `own`: where it goes on when one that it follows ends."""

    def __init__(self, journal: Path, *, after: int = -1, own: Path | None = None) -> None:
        self.journal, self._own = journal, own or journal
        self._follower = Follower(journal, after=after)

    def step(self) -> Items:
        return self._follower.read()

    def go_on(self, leader: Path | None) -> None:
        self.journal = leader or self._own
        self._follower.close()
        self._follower = Follower(self.journal, after=last_sequence(leader) if leader else -1)


class Stream:
    """One live connection. `start` returns when the topics are confirmed, or raises why they are not.

    `error` is what ended it early, if anything did. `leader` is the journal of another program's recording,
    where this one follows that instead of opening a second connection.
    """

    def __init__(self, settings: Settings, market: str, topics: list[str]) -> None:
        self.market, self.topics = market, list(topics)
        self.error: TapelabError | None = None
        self.taps: list[Tap] = []
        self.leader: Path | None = None
        self._key = settings.need_api_key()
        self._settings = settings
        self._source: Source | None = None
        self._coming: dict[str, Source] = {}  # by journal: where a move leads
        self._left: Source | None = None  # what the last move left
        self._process: Process | None = None
        self._journal: Path | None = None
        self._dataset_id = ""
        self._keep: int | None = None
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._settled = self._over = self._stopping = False
        self._leads = False  # whether this one took over from the recording that it followed
        self._ended = False  # whether the recording that is followed has said its last
        self._alone_since = 0  # since when nobody writes its journal
        self._restarts = 0
        self._before = 0  # bytes acknowledged by receivers that were killed
        self._started_at = self._gathered_at = 0
        self._wake, self._alarm = -1, -1

    @property
    def running(self) -> bool:
        return self._thread is not None and not self._over

    @property
    def figures(self) -> Figures:
        """What the receiver has acknowledged, and what of it is durable."""
        if self._process is None:
            return Figures()
        figures, before = self._process.figures, self._before
        return figures._replace(
            acknowledged_bytes=figures.acknowledged_bytes + before,
            durable_bytes=figures.durable_bytes + before,
        )

    @property
    def receiver_pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self, source: Source, journal: Path, dataset_id: str = "") -> None:
        """Connect, and journal into `journal`. Raises what the vendor or the network says, or `Locked`."""
        self._source, self._journal = source, journal
        self._dataset_id = dataset_id or uuid.uuid4().hex
        self._keep = None if isinstance(source, Growing) else SCRATCH_SEGMENTS
        self._run(self._spawn)

    def follow(self, source: Source, leader: Path) -> None:
        """Follow another program's recording, which journals into `leader`; go on alone when it ends."""
        self._source, self.leader = source, leader
        self._dataset_id = source.manifest.id if isinstance(source, Growing) else uuid.uuid4().hex
        self._keep = None if isinstance(source, Growing) else SCRATCH_SEGMENTS
        self._settled = True
        self._run(None)

    def change(self, *, more: list[str], less: list[str]) -> None:
        """Subscribe to more topics and to fewer."""
        gone = set(less)
        self.topics = [topic for topic in dict.fromkeys(self.topics + more) if topic not in gone]
        if self._process is not None and (more or less):
            self._process.command(Command(subscribe=more, unsubscribe=less))

    def need_connection(self) -> Process:
        """Its own receiver. Raises `RecordingError` where it follows another program's recording."""
        if self._process is None:
            raise RecordingError(
                "A stream that follows another program's recording cannot be recorded apart.",
                remedy="Record it with WebSocketDataRecorder, or stop the other program.",
            )
        return self._process

    def move(self, source: Source, journal: Path, dataset_id: str = "") -> None:
        """Go on in another journal from the next message on; returns when the old one is read to its end."""
        process = self.need_connection()
        keep = None if isinstance(source, Growing) else SCRATCH_SEGMENTS
        dataset_id = dataset_id or uuid.uuid4().hex
        with self._changed:
            self._left = None
            self._coming[str(journal)] = source
            self._journal, self._dataset_id, self._keep = journal, dataset_id, keep
            process.command(Command(journal=str(journal), dataset_id=dataset_id, keep=keep))
            if not self._changed.wait_for(lambda: self._left is not None or self._over, START_PATIENCE):
                raise RecordingError("The receiver did not change its journal in time.", remedy="Try again.")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """Close the connection, take in what is left, end the thread."""
        self._stopping = True
        if self._process is not None:
            self._process.terminate()
        self._ring()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()  # the receiver's end is bounded, and then what is left to read

    def _run(self, begin: Callable[[], None] | None) -> None:
        self._wake, self._alarm = os.pipe()
        os.set_blocking(self._alarm, False)
        if begin is not None:
            begin()
        self._thread = threading.Thread(target=self._follow_on, name="tapelab-stream", daemon=True)
        self._thread.start()
        try:
            with self._changed:
                in_time = self._changed.wait_for(lambda: self._settled or self._over, START_PATIENCE)
            if self.error is not None and not self._settled:
                raise self.error
            if not in_time:
                raise RecordingError("The live stream did not begin in time.", remedy="Try again.")
        except BaseException:
            self.stop()
            raise

    def _spawn(self) -> None:
        settings = self._settings
        lock = settings.root / "feeds" / f"{self.market}-{_fingerprint(self._key)}.lock"
        config = Config(
            settings.ws_url,
            self.market,
            self._key,
            self.topics,
            str(self._journal),
            self._dataset_id,
            str(lock),
            self._keep,
            SEGMENT_BYTES,
            self._leads,
        )
        self._process = Process(config)
        self._started_at = clock.monotonic()
        if self._stopping:
            self._process.terminate()

    def _follow_on(self) -> None:
        try:
            while not self._over:
                said_last = self._listen()
                busy = self._take_in()
                # Another program's recording may never fall silent; who stops following does not wait for it.
                if said_last and (not busy or (self._stopping and self._process is None)):
                    self._on_end()
        except Exception as error:
            self.error = error if isinstance(error, TapelabError) else _broken(error)
            if self._process is not None:
                self._process.terminate()
                self._process.wait()
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()
            os.close(self._wake)
            os.close(self._alarm)
            self._wake = self._alarm = -1

    def _listen(self) -> bool:
        """Wait for news, a moment at most; true when there will be none."""
        process = self._process
        watched: list[int] = [self._wake] if process is None else [self._wake, process.fileno()]
        ready = select.select(watched, [], [], TICK if process is not None else LOOK_EVERY)[0]
        if self._wake in ready:
            os.read(self._wake, 4096)
        if process is not None:
            return not process.hear()
        return self._stopping or self._is_alone()

    def _is_alone(self) -> bool:
        """Whether the recording that is followed has ended; a receiver that was killed is given time."""
        assert self.leader is not None
        if is_held(lock_path(self.leader)):
            self._alone_since = 0
            return False
        self._alone_since = self._alone_since or clock.monotonic()
        recorded = self.leader.name == JOURNAL
        gone = self._ended or (recorded and not is_held(lock_of(self.leader.parent)))
        return gone or clock.monotonic() - self._alone_since > COME_BACK

    def _take_in(self) -> bool:
        """Read what is new, hand it on; false when there was nothing."""
        source = self._source
        assert source is not None
        items = source.step()
        for tap in self.taps:
            tap(items)
        for item in items:
            if isinstance(item, Note):
                self._on_note(item)
        now = clock.monotonic()
        if isinstance(source, Growing) and now - self._gathered_at >= GATHER_EVERY:
            self._gathered_at = now
            source.gather()
        return bool(items)

    def _on_note(self, note: Note) -> None:
        if note.kind is Kind.SUBS and not self._settled:
            with self._changed:
                self._settled = True
                self._changed.notify_all()
        elif self.leader is not None:
            self._ended = note.final
        elif note.final and note.facts.get("cause") == "moved":
            self._switch(str(note.facts.get("journal")))

    def _switch(self, journal: str) -> None:
        with self._changed:
            self._left = self._source
            self._source = self._coming.pop(journal, None) or self._source
            self._changed.notify_all()

    def _on_end(self) -> None:
        """All is read, and the receiver is gone: in order, with an error, or killed."""
        process = self._process
        if process is None:
            if self._stopping:
                self._over = True
            else:
                self._lead()
            return
        process.wait()
        if self._take_in() or self._follow_another(process):
            return
        if process.ending is not None or self._stopping:
            self.error = (process.ending or Ending()).error()
            self._over = True
            return
        if clock.monotonic() - self._started_at > STEADY:
            self._restarts = 0
        if not self._settled or self._restarts >= MAX_RESTARTS:
            self.error = process.killed()
            self._over = True
            return
        self._restarts += 1
        if self._coming:  # it was killed on its way to another journal
            self._switch(str(self._journal))
        self._before = self.figures.acknowledged_bytes
        self._spawn()  # it puts the journal in order, and notes the gap

    def _lead(self) -> None:
        """The recording that was followed has ended: listen to the feed ourselves."""
        assert self._source is not None
        self._source.go_on(None)
        self._journal, self.leader, self._leads = self._source.journal, None, True
        self._spawn()

    def _follow_another(self, process: Process) -> bool:
        """Whether another program was quicker to take over; it is followed in turn, unless we are to stop."""
        error = process.ending.error() if process.ending is not None else None
        if not self._leads or not isinstance(error, Locked) or process.figures.acknowledged >= 0:
            return False
        if self._stopping:
            self._over = True
            return True
        leader = following(error, self.topics)
        if leader is None:
            return False
        assert self._source is not None
        self._source.go_on(leader)
        self.leader, self._process, self._leads = leader, None, False
        self._ended, self._alone_since = False, 0
        return True

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._alarm, b"!")


def _broken(error: Exception) -> RecordingError:
    made = RecordingError(
        f"Reading what was received failed ({type(error).__name__}: {error}).",
        remedy="What was received is kept in the journal; please report this.",
    )
    made.__cause__ = error
    return made


def _fingerprint(key: str) -> str:
    from hashlib import sha256

    return sha256(key.encode()).hexdigest()[:12]


def following(error: Locked, topics: list[str]) -> Path | None:
    """The journal of the running recording that holds the feed, if it hears all these topics."""
    heard = error.facts.get("topics")
    journal = error.facts.get("journal")
    if not isinstance(heard, list) or not isinstance(journal, str):
        return None
    wild = {topic.split(".", 1)[0] for topic in heard if topic.endswith(".*")}
    covered = all(topic in heard or topic.split(".", 1)[0] in wild for topic in topics)
    return Path(journal) if covered else None
