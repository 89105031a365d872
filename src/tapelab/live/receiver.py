"""The receiver: a process of its own that keeps one connection and only journals.

Run as `python -m tapelab.live.receiver`. Its first line of input is the configuration, with the key, so
that neither arguments nor environment ever show it; further lines are commands (see `talk`). The end of
its input, or SIGTERM, means: close, drain, finish the journal. To its output it writes, after each append,
four numbers (see `talk.Figures`), and at the end one JSON object that says how it ended. It connects again
for ever, except where that makes no sense: a refused key, a channel that the plan lacks, a second program on
the same key.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import selectors
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import msgspec

from tapelab.errors import (
    Locked,
    NotAuthorized,
    NotInPlan,
    RecordingError,
    TapelabError,
    Unreachable,
    Unwritable,
)
from tapelab.live.link import End, Link, Times
from tapelab.live.talk import Command, Config, Ending, Holder
from tapelab.market import clock
from tapelab.massive.feed import Login, Opened, open_feed
from tapelab.store import journal
from tapelab.store.journal import FINAL, Kind, Record, Writer
from tapelab.store.journal.frames import ABNORMAL, NORMAL
from tapelab.store.journal.segments import Lock

TICK = 0.25  # seconds; the longest wait of the loop
RETRY_FIRST, RETRY_MOST = 0.25, 30.0  # seconds before the next connection
STEADY = clock.SECOND  # a connection that lasted this long starts the waits afresh
CLOCK_EVERY = 10 * clock.SECOND
CLOCK_STEP = 50 * clock.MILLISECOND  # a wall clock that moved by more against ours is noted as a step
LAST_WORDS = 2.0  # seconds for the parent to take the last line

_FOR_GOOD = (NotAuthorized, NotInPlan, RecordingError)


class _Stop(BaseException):
    """SIGTERM while connecting, when nothing is lost by stopping at once."""


@dataclass
class _Loss:
    """Since when (ns UTC) nothing is heard, and why."""

    since: int
    cause: str
    code: int


class Receiver:
    """The loop. `commands` and `reports` are file descriptors; `pending` is input already read."""

    def __init__(self, config: Config, lock: Lock, commands: int, reports: int, pending: bytes = b"") -> None:
        self._config, self._lock = config, lock
        self._topics = list(config.topics)
        self._commands, self._reports, self._pending = commands, reports, pending
        self._parent = os.getppid()
        self._stopping = self._interruptible = False
        self._selector = selectors.DefaultSelector()
        self._link: Link | None = None
        self._watching_out = self._more = False
        self._number = self._tries = 0
        self._opened_at = self._retry_at = self._clock_at = 0
        self._ahead: int | None = None  # of the wall clock against ours, when last looked at
        self._begun = config.insist  # whether the topics were ever confirmed
        self._loss: _Loss | None = None
        self._failed: TapelabError | None = None
        self._closers: list[threading.Thread] = []
        folder = Path(config.journal)
        found = journal.recover(folder, compress=False) if folder.is_dir() else None
        last = found.last if found else None
        self._times = Times(not_before=last.ts_recv + 1 if last else 0)
        if last is not None:
            self._number, self._begun = last.connection, True
            self._loss = _since(last)
        self._writer = self._write_into(folder, config, after=found.ends_at if found else None)
        self._hold()

    def run(self) -> TapelabError | None:
        """Until told to stop, or until going on makes no sense: then the error that says why."""
        wake, alarm = os.pipe()
        for fd in (wake, alarm, self._commands, self._reports):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(alarm, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        self._selector.register(wake, selectors.EVENT_READ, "wake")
        self._selector.register(self._commands, selectors.EVENT_READ, "commands")
        try:
            self._obey(b"")
            while self._failed is None and not (self._stopping and self._link is None):
                self._step(wake)
            self._finish()
        except Unwritable as error:
            self._failed = error  # the journal has written down its own end
        finally:
            self._writer.close()
            for closer in self._closers:
                closer.join()
        self._report()
        return self._failed

    def _step(self, wake: int) -> None:
        if self._link is None and not self._stopping and clock.monotonic() >= self._retry_at:
            self._connect()
        more, self._more = self._more, False
        for key, mask in self._selector.select(0 if more else self._patience()):
            if key.data == "wake":
                os.read(wake, 4096)
            elif key.data == "commands":
                self._read_commands()
            elif self._link is not None:
                if mask & selectors.EVENT_WRITE:
                    self._link.flush()
                more = more or bool(mask & selectors.EVENT_READ)
        if more and self._link is not None:
            self._more = self._link.receive()
        self._look_around()
        if self._link is not None:
            self._mind(self._link)
        self._report()

    def _patience(self) -> float:
        if self._link is not None or self._stopping:
            return TICK
        return min(TICK, max(0.0, (self._retry_at - clock.monotonic()) / clock.SECOND))

    def _connect(self) -> None:
        try:
            opened = self._dial()
        except _Stop:
            return
        except TapelabError as error:
            if isinstance(error, _FOR_GOOD) or not self._begun:
                self._fail(error)
            self._wait()
            return
        self._number += 1
        login = Login(self._config.key, self._topics)
        self._link = Link(opened, login, self._writer, self._number, self._times)
        self._opened_at = clock.monotonic()
        self._watching_out = False
        self._selector.register(self._link, selectors.EVENT_READ, "link")
        self._mind(self._link)

    def _dial(self) -> Opened:
        """Connect, which SIGTERM may interrupt."""
        self._interruptible = True
        try:
            if self._stopping:
                raise _Stop
            return open_feed(self._config.ws_url, self._config.market)
        finally:
            self._interruptible = False

    def _mind(self, link: Link) -> None:
        """What is due on the open connection."""
        if self._stopping:
            link.close("stopped")
        link.tick()
        if link.settled:
            self._begun = True
            self._end_loss(self._now())
            if link.denied and not set(self._topics).isdisjoint(link.denied):
                self._topics = [topic for topic in self._topics if topic not in link.denied]
                self._hold()
        if link.ended is not None:
            self._on_end(link, link.ended)
        elif bool(link.out) != self._watching_out:
            self._watching_out = bool(link.out)
            wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.out else 0)
            self._selector.modify(link, wanted, "link")

    def _on_end(self, link: Link, end: End) -> None:
        self._selector.unregister(link)
        link.sock.close()
        self._link = None
        if end.error is not None:
            self._fail(end.error)
        elif not self._begun and not self._stopping:
            self._fail(_never_began(self._config, end))
        elif not self._stopping:
            link.note(Kind.CLOSED, {"cause": end.cause, "code": end.code, "reason": end.reason})
            self._loss = self._loss or _Loss(self._times.at(link.heard), end.cause, end.code)
            if clock.monotonic() - self._opened_at >= STEADY:
                self._tries = 0
            self._wait()

    def _wait(self) -> None:
        """Back off: twice as long each time up to a ceiling, and never in step with others."""
        most = min(RETRY_FIRST * 2**self._tries, RETRY_MOST)
        self._tries = min(self._tries + 1, 20)
        self._retry_at = clock.monotonic() + round(random.uniform(most / 2, most) * clock.SECOND)

    def _fail(self, error: TapelabError) -> None:
        self._failed = error

    def _finish(self) -> None:
        """The last words of the journal."""
        now = self._now()
        self._end_loss(now)
        ending = Ending.of(self._failed)
        cause = "stopped" if self._failed is None else str(self._failed.facts.get("status", "refused"))
        facts: dict[str, object] = {"cause": cause, **(msgspec.to_builtins(ending) if ending.kind else {})}
        self._note(Kind.CLOSED, facts, now, flags=FINAL)

    def _end_loss(self, now: int) -> None:
        loss, self._loss = self._loss, None
        if loss is not None:
            facts = {"start": loss.since, "end": now, "cause": loss.cause, "code": loss.code}
            self._note(Kind.GAP, facts, now)

    def _note(self, kind: Kind, facts: dict[str, object], now: int, *, flags: int = 0) -> None:
        self._writer.note(
            kind,
            facts,
            connection=self._number,
            ts_recv=now,
            monotonic=clock.monotonic(),
            flags=flags,
        )

    def _now(self) -> int:
        return self._times.at(clock.monotonic())

    def _look_around(self) -> None:
        """Whether the parent is still there; now and then the wall clock, and whether a segment is due."""
        if os.getppid() != self._parent:
            self._stopping = True
        monotonic = clock.monotonic()
        if monotonic - self._clock_at < CLOCK_EVERY:
            return
        self._clock_at = monotonic
        if self._writer.is_due(monotonic) and (self._link is None or self._link.between_messages):
            self._writer.rotate()
        ahead = clock.now() - self._times.at(monotonic)
        facts: dict[str, object] = {"ahead": ahead}
        if self._ahead is not None and abs(ahead - self._ahead) > CLOCK_STEP:
            facts["step"] = ahead - self._ahead
        self._ahead = ahead
        self._note(Kind.CLOCK, facts, self._times.at(monotonic))

    def _read_commands(self) -> None:
        try:
            more = os.read(self._commands, 65536)
        except BlockingIOError:
            return
        if more:
            self._obey(more)
        else:
            self._selector.unregister(self._commands)
            self._stopping = True

    def _obey(self, more: bytes) -> None:
        *lines, self._pending = (self._pending + more).split(b"\n")
        for line in lines:
            command = msgspec.json.decode(line, type=Command)
            gone = set(command.unsubscribe)
            self._topics = [t for t in dict.fromkeys(self._topics + command.subscribe) if t not in gone]
            if self._link is not None:
                self._link.change(more=command.subscribe, less=command.unsubscribe)
            if command.journal:
                self._move(command)
            self._hold()

    def _move(self, command: Command) -> None:
        try:
            writer = self._write_into(Path(command.journal), command)
        except TapelabError as error:
            self._fail(error)
            return
        if self._link is not None:
            self._link.move(writer, lambda old: self._moved(old, writer))
        else:
            self._moved(self._writer, writer)

    def _write_into(self, folder: Path, given: Config | Command, *, after: int | None = None) -> Writer:
        return Writer(
            folder,
            bytes.fromhex(given.dataset_id),
            after=after,
            segment_bytes=self._config.segment_bytes,
            keep=given.keep,
        )

    def _moved(self, old: Writer, new: Writer) -> None:
        now = self._now()
        loss = self._loss
        self._end_loss(now)
        facts: dict[str, object] = {"cause": "moved", "journal": str(new.folder)}
        self._note(Kind.CLOSED, facts, now, flags=FINAL)
        self._writer = new
        self._loss = _Loss(now, loss.cause, loss.code) if loss else None
        self._closers.append(threading.Thread(target=old.close, name="tapelab-close"))
        self._closers[-1].start()
        self._hold()

    def _hold(self) -> None:
        """Say in the lock who holds the feed, so that a second program can follow instead of connecting."""
        holder = Holder(os.getpid(), str(self._writer.folder), self._topics)
        os.ftruncate(self._lock.fd, 0)
        os.pwrite(self._lock.fd, msgspec.json.encode(holder), 0)

    def _report(self) -> None:
        writer = self._writer
        figures = (writer.acknowledged, writer.durable, writer.bytes, writer.durable_bytes)
        line = b"%d %d %d %d\n" % figures
        # Where nobody reads just now, the next line says it again.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(self._reports, line)

    def _on_term(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True
        if self._interruptible:
            raise _Stop


def _since(last: Record) -> _Loss:
    """What is lost since the last record of a journal that is gone on with, by what that record says."""
    ended = last.kind is Kind.CLOSED and last.flags & FINAL
    if not ended:
        return _Loss(last.ts_recv, "killed", ABNORMAL)
    facts = msgspec.json.decode(last.payload, type=dict[str, object])
    return _Loss(last.ts_recv, str(facts.get("cause", "stopped")), NORMAL)


def _never_began(config: Config, end: End) -> Unreachable:
    detail = end.reason or f"the connection was {end.cause}"
    return Unreachable(
        f"The live stream at {config.ws_url} did not begin: {detail}.",
        remedy="Try again; if it stays so, check MASSIVE_WS_URL.",
        cause=end.cause,
    )


def _take_lock(config: Config) -> Lock:
    try:
        lock = Lock(Path(config.lock))
        os.ftruncate(lock.fd, 0)  # what the last holder said
        return lock
    except Locked as error:
        try:
            holder = msgspec.json.decode(Path(config.lock).read_bytes(), type=Holder)
        except (OSError, msgspec.DecodeError):
            raise error from None
        raise Locked(
            f"This feed is already recorded by process {holder.pid}.",
            remedy="Follow that recording instead, or stop it: the vendor allows one connection.",
            journal=holder.journal,
            topics=holder.topics,
        ) from error


def main(commands: int = 0, reports: int = 1) -> int:
    """One receiver, from its configuration to its last line; the exit status is 1 if it failed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.setswitchinterval(0.0005)  # the helper threads hold the socket up for as little as possible
    read = b""
    while b"\n" not in read:
        more = os.read(commands, 65536)
        if not more:
            return 0
        read += more
    line, pending = read.split(b"\n", 1)
    failed: TapelabError | None
    try:
        config = msgspec.json.decode(line, type=Config)
        with _take_lock(config) as lock:
            failed = Receiver(config, lock, commands, reports, pending).run()
    except TapelabError as error:
        failed = error
    last = msgspec.json.encode(Ending.of(failed)) + b"\n"
    if select.select([], [reports], [], LAST_WORDS)[1]:
        with contextlib.suppress(BrokenPipeError):
            os.write(reports, last)
    return 1 if failed is not None else 0


if __name__ == "__main__":
    sys.exit(main())
