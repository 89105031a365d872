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
from tapelab.store.growing import Growing
from tapelab.store.journal import SEGMENT_BYTES, Follower, Kind, Message, Note
from tapelab.store.segments import is_held, lock_path

TICK = 0.05  # seconds; the longest wait of the thread
GATHER_EVERY = clock.SECOND // 2  # decoded events become rows at least so often
START_PATIENCE = 45.0  # seconds for connecting, logging in and confirming the topics
MAX_RESTARTS = 5  # of a receiver that is killed, in a row
STEADY = clock.MINUTE  # a receiver that lasted this long starts the count afresh
SCRATCH_SEGMENTS = 2  # kept of a stream that nobody records

Items = list[Message | Note]
Tap = Callable[[Items], None]


class Source(Protocol):
    """What the thread reads: a dataset that grows, or the bare journal of a stream that nobody records."""

    def step(self) -> Items: ...


class Scratch:
    """The journal of a stream that nobody records."""

    def __init__(self, journal: Path, *, after: int = -1) -> None:
        self._follower = Follower(journal, after=after)

    def step(self) -> Items:
        return self._follower.read()


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
        """Follow the recording that another program journals into `leader`."""
        self._source, self.leader = source, leader
        self._settled = True
        self._run(None)

    def change(self, *, more: list[str], less: list[str]) -> None:
        """Subscribe to more topics and to fewer."""
        gone = set(less)
        self.topics = [topic for topic in dict.fromkeys(self.topics + more) if topic not in gone]
        if self._process is not None and (more or less):
            self._process.command(Command(subscribe=more, unsubscribe=less))

    def move(self, source: Source, journal: Path, dataset_id: str = "") -> None:
        """Go on in another journal from the next message on; returns when the old one is read to its end."""
        if self._process is None:
            raise RecordingError(
                "A stream that follows another program's recording cannot be recorded apart.",
                remedy="Record it with WebSocketDataRecorder, or stop the other program.",
            )
        keep = None if isinstance(source, Growing) else SCRATCH_SEGMENTS
        dataset_id = dataset_id or uuid.uuid4().hex
        with self._changed:
            self._left = None
            self._coming[str(journal)] = source
            self._journal, self._dataset_id, self._keep = journal, dataset_id, keep
            self._process.command(Command(journal=str(journal), dataset_id=dataset_id, keep=keep))
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
        )
        self._process = Process(config)
        self._started_at = clock.monotonic()

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
        ready = select.select(watched, [], [], TICK)[0]
        if self._wake in ready:
            os.read(self._wake, 4096)
        if process is not None:
            return not process.hear()
        assert self.leader is not None
        return self._stopping or not is_held(lock_path(self.leader))

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
            if not self._stopping:
                self.error = RecordingError(
                    "The recording that this one follows has ended.", remedy="Start a new one."
                )
            self._over = True
            return
        process.wait()
        if self._take_in():
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
