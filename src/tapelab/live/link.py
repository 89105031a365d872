"""One connection of the receiver: bytes from the socket to the journal, and what must be answered.

The hot path is `receive`: drain the socket, walk the frame headers, append the chunk as it came. JSON is
looked at only until the topics are confirmed, and in the last message before the connection ends.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import NamedTuple

from tapelab.errors import TapelabError
from tapelab.market import clock
from tapelab.massive import feed
from tapelab.massive.feed import Login, Opened, Say
from tapelab.store.journal import Kind, Writer
from tapelab.store.journal.frames import (
    ABNORMAL,
    CLOSE,
    NORMAL,
    NOWHERE,
    PING,
    Assembler,
    Control,
    FrameWalk,
    Walked,
)

CHUNK = 2**21  # bytes taken from the socket, if so many are there, before they are appended
PING_EVERY = 10 * clock.SECOND
DEAD_AFTER = 30 * clock.SECOND  # without a byte, though pings were sent
BEHIND = 5 * clock.SECOND  # spent writing without finding the socket empty: we were the slow one
CLOSING = 2 * clock.SECOND  # how long the server may take to answer our close
STATUS_BYTES = 4096  # a message that could be a status is not longer
MAX_OUT = 2**20  # bytes waiting to be sent; a server that reads none of them is dead

_WAITING = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


Moved = Callable[[Writer], None]


class Times:
    """The receive clock: the wall clock at the start, moved on by the one that never runs back."""

    def __init__(self, not_before: int = 0) -> None:
        self._monotonic = clock.monotonic()
        self._wall = max(clock.now(), not_before)

    def at(self, monotonic: int) -> int:
        return self._wall + monotonic - self._monotonic


class End(NamedTuple):
    """How a connection ended. `error`: it makes no sense to open another."""

    cause: str
    code: int
    reason: str = ""
    error: TapelabError | None = None


class Link:
    """An open connection. `ended` tells how it ended, `fileno` is what to wait for."""

    def __init__(self, opened: Opened, login: Login, writer: Writer, number: int, times: Times) -> None:
        self.sock = opened.sock
        self.sock.setblocking(False)
        self.login = login
        self.writer = writer
        self.number = number
        self.times = times
        self.ended: End | None = None
        self.settled = False
        self.denied: list[str] = []  # topics that were refused while others were streaming
        self.out = bytearray()
        self.heard = self._written = self._pinged = self._begun = clock.monotonic()
        self._behind = 0  # ns spent writing since the socket was last found empty
        self._closing_since: int | None = None
        self._stop: End | None = None
        self._walk = FrameWalk(newest=True)
        self._ears: Assembler | None = Assembler()  # only while messages are looked at
        self._streams = False  # whether topics were ever confirmed
        self._joining = False  # they begin at the next frame header
        self._latest = self._partial = b""
        self._buffer = bytearray(CHUNK)
        self._view = memoryview(self._buffer)
        self._opening: dict[str, object] = {"url": opened.url, "tape": opened.tape}
        self._moving: tuple[Writer, Moved] | None = None
        self.note(Kind.OPEN, self._opening)
        if opened.leftover:
            size = len(opened.leftover)
            self._buffer[:size] = opened.leftover
            self._take(size)

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def between_messages(self) -> bool:
        return self._walk.between_messages

    def note(self, kind: Kind, facts: dict[str, object], *, flags: int = 0) -> None:
        """Write down something of this connection that is not data."""
        now = clock.monotonic()
        self.writer.note(
            kind, facts, connection=self.number, ts_recv=self.times.at(now), monotonic=now, flags=flags
        )

    def receive(self) -> bool:
        """Drain the socket once; true when more may be waiting inside TLS."""
        filled, end = 0, None
        while filled < CHUNK:
            try:
                size = self.sock.recv_into(self._view[filled:])
            except _WAITING:
                self._behind = 0
                break
            except OSError as error:
                end = End("reset", ABNORMAL, error.strerror or str(error))
                break
            if not size:
                end = End("cut", ABNORMAL)
                break
            filled += size
        if filled:
            self._take(filled)
            self._written = clock.monotonic()
            self._behind += self._written - self.heard
        if end is not None:
            self._end(end)
        more = filled == CHUNK and self.ended is None
        if more:
            self.writer.calm.clear()
        else:
            self.writer.calm.set()
        return more

    def say(self, said: list[Say]) -> None:
        """Send messages, and write down what was sent."""
        for payload, shown in said:
            self._send(feed.text_frame(payload))
            self.note(Kind.SENT, shown)
        if said:
            self.settled = False
            self._begun = clock.monotonic()
            if self._ears is None:
                self._ears, self._joining = Assembler(resuming=True), True

    def change(self, *, more: list[str], less: list[str]) -> None:
        """Subscribe to more topics and to fewer, on the open connection."""
        self.say(self.login.subscribe(more))
        self.say(self.login.unsubscribe(less))
        if self.login.settled and not self.settled:
            self._settle()

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it."""
        while self.out and self.ended is None:
            try:
                del self.out[: self.sock.send(self.out)]
            except _WAITING:
                return
            except OSError as error:
                self._end(End("reset", ABNORMAL, error.strerror or str(error)))

    def close(self, cause: str, code: int = NORMAL) -> None:
        """Begin to close from our side; `ended` follows when the server has answered, or soon after."""
        if self._closing_since is None:
            self._closing_since = clock.monotonic()
            self._stop = End(cause, code)
            self._send(feed.close_frame(code))

    def tick(self) -> None:
        """What is due by the clock: pings, deadlines."""
        now = clock.monotonic()
        if self._closing_since is not None and now - self._closing_since > CLOSING:
            self._end(End("cut", ABNORMAL))
        elif now - self._written > DEAD_AFTER or len(self.out) > MAX_OUT:
            self._end(End("dead", ABNORMAL, "not a byte in time"))
        elif now - self._pinged >= PING_EVERY:
            self._pinged = now
            self._send(feed.ping_frame(b"tapelab"))
        if not self.settled and self.ended is None:
            limit = feed.CONFIRM_TIMEOUT if self.login.stage == "streaming" else feed.LOGIN_TIMEOUT
            if now - self._begun > limit * clock.SECOND:
                self._late()

    def move(self, writer: Writer, moved: Moved) -> None:
        """Go on in another journal from the next message boundary on; `moved` is then told of the old one."""
        self._moving = (writer, moved)
        if self.between_messages:
            self._move()

    def _move(self) -> None:
        if self._moving is None:
            return
        old = self.writer
        (self.writer, moved), self._moving = self._moving, None
        moved(old)
        self.note(Kind.OPEN, self._opening)
        if self.settled:
            self._note_topics()

    def _take(self, size: int) -> None:
        now = clock.monotonic()
        walked = self._walk.feed(self._buffer, size)
        cut = walked.boundary if self._moving is not None else -1
        if cut < 0:
            self._append(0, size, walked, now)
        else:
            self._append(0, cut, walked._replace(boundary=-1), now)
            self._move()
            self._append(cut, size, walked._replace(first=0, boundary=-1), now)
        self.heard = now
        self._remember(walked)
        if self._ears is not None:
            self._listen(self._ears, walked, size)
        if walked.controls:
            self._answer(walked.controls)
        if walked.violation is not None and self.ended is None:
            self._send(feed.close_frame(walked.violation.code))
            self.flush()
            self._end(End("protocol", walked.violation.code, walked.violation.message))

    def _append(self, start: int, stop: int, walked: Walked, now: int) -> None:
        if start < stop:
            if walked.first >= stop:
                walked = walked._replace(first=NOWHERE)
            times = {"ts_recv": self.times.at(now), "monotonic": now}
            self.writer.chunk(self._view[start:stop], walked, connection=self.number, **times)

    def _listen(self, ears: Assembler, walked: Walked, size: int) -> None:
        start = 0
        if self._joining:
            if walked.first == NOWHERE:
                return
            start, self._joining = walked.first, False
        for message, _ in ears.feed(bytes(self._view[:size]), start=start):
            self.say(self.login.hear(message))
        if self.login.refusal is not None:
            self._refused(self.login.refusal)
        elif self.login.settled and not self.settled:
            self._settle()

    def _settle(self) -> None:
        self.settled, self._streams, self._ears = True, True, None
        self._note_topics()

    def _note_topics(self) -> None:
        login = self.login
        self.note(Kind.SUBS, {"topics": login.confirmed, "unconfirmed": login.unconfirmed + self.denied})

    def _late(self) -> None:
        if self.login.stage != "streaming":
            self._end(End("login_timeout", ABNORMAL, f"no answer at the {self.login.stage}"))
            return
        self.login.give_up()
        if self.login.refusal is not None:
            self._refused(self.login.refusal)
        else:
            self._settle()

    def _refused(self, error: TapelabError) -> None:
        """A refusal ends a connection that begins; a stream that runs goes on without what was added."""
        if self._streams and "topics" in error.facts:
            self.denied += self.login.do_without()
            self._settle()
        else:
            self._end(_of(error))

    def _remember(self, walked: Walked) -> None:
        """Keep the newest message if it is short: the server may say there why it ends the connection."""
        if len(walked.pieces) > 2:
            self._partial = b""
        for start, stop, last in walked.pieces[-2:]:
            whole = self._partial + bytes(self._view[start : min(stop, start + STATUS_BYTES)])
            self._partial = b"" if last else whole[:STATUS_BYTES]
            if last:
                self._latest = whole

    def _answer(self, controls: list[Control]) -> None:
        pings = [control.payload for control in controls if control.opcode == PING]
        if pings:
            self._send(feed.pong_frame(pings[-1]))
        for control in controls:
            if control.opcode == CLOSE:
                code = int.from_bytes(control.payload[:2], "big") if len(control.payload) > 1 else 1005
                if self._closing_since is None:
                    self._send(feed.close_frame(NORMAL if code == 1005 else code))
                    self.flush()
                self._end(End("closed", code, control.payload[2:].decode("utf-8", "replace")))
                return

    def _send(self, frame: bytes) -> None:
        self.out += frame
        self.flush()

    def _end(self, end: End) -> None:
        """The first end counts; what the server said last makes it more telling."""
        if self.ended is not None:
            return
        if self._stop is not None and end.error is None:
            end = self._stop
        elif end.error is None:
            if end.code == ABNORMAL and self._behind > BEHIND:
                end = End("slow_consumer", end.code, "the disk took longer than the vendor would wait")
            said = [*feed.statuses(self._latest), (end.reason, "")]
            for status, message in said:
                error = feed.refusal(status, message)
                if error is not None:
                    end = End(status, end.code, message, error)
                elif status in feed.PASSING:
                    end = End(status, end.code, message)
        self.ended = end


def _of(error: TapelabError) -> End:
    return End(str(error.facts.get("status", "refused")), ABNORMAL, error.message, error)
