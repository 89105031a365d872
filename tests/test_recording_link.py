"""One connection, minute by minute: what is due by the clock, without waiting for it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from websockets.frames import Close, Frame, Opcode

from streams import KEY, both, message, status
from tapelab.live.link import DEAD_AFTER, PING_EVERY, Link, Times
from tapelab.market import clock
from tapelab.market.clock import FixedClock
from tapelab.massive.feed import Login, Opened
from tapelab.store import journal
from tapelab.store.journal import Kind, Writer
from tapelab.store.journal.segments import numbers
from test_journal import frames

T0 = 1_700_000_000 * clock.SECOND
HELLO = frames(
    message(status("connected", "")),
    message(status("auth_success", "")),
    message(status("success", "subscribed to: Q.AAPL")),
)


class Line:
    """A link, the server's end of its socket, and the clock that both live by."""

    def __init__(self, folder: Path, time: FixedClock, leftover: bytes = b"") -> None:
        ours, self.server = socket.socketpair()
        self.server.settimeout(5)
        self.time = time
        self.folder = folder
        self.writer = Writer(folder, bytes(16))
        login = Login(KEY, ["Q.AAPL"])
        self.link = Link(Opened(ours, leftover, "ws://x/stocks", ""), login, self.writer, 1, Times())

    def hear(self, raw: bytes) -> None:
        self.server.sendall(raw)
        self.link.receive()

    def wait(self, ns: int) -> None:
        self.time.at += ns
        self.link.tick()

    def said(self) -> list[Frame]:
        """What the link has sent, unmasked."""
        raw, found = self.server.recv(65536), []
        while raw:
            length, mask = raw[1] & 0x7F, raw[2:6]
            body = bytes(byte ^ mask[n % 4] for n, byte in enumerate(raw[6 : 6 + length]))
            found.append(Frame(Opcode(raw[0] & 0x0F), body))
            raw = raw[6 + length :]
        return found

    def close(self) -> None:
        self.writer.close()
        self.link.sock.close()
        self.server.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    with clock.use(FixedClock(T0)) as time:
        made = Line(tmp_path, time)
        yield made
        made.close()


def notes(line: Line) -> list[tuple[Kind | int, dict[str, object]]]:
    items = journal.Follower(line.folder).read()
    return [(item.kind, item.facts) for item in items if isinstance(item, journal.Note)]


def test_topics_are_noted_once_they_are_confirmed(line: Line) -> None:
    line.hear(HELLO)
    assert line.link.settled
    assert [opcode for opcode, *_ in [(f.opcode,) for f in line.said()]] == [Opcode.TEXT] * 2
    assert [kind for kind, _ in notes(line)] == [Kind.OPEN, Kind.SENT, Kind.SENT, Kind.SUBS]
    assert notes(line)[-1][1] == {"topics": ["Q.AAPL"], "unconfirmed": []}


def test_what_came_with_the_upgrade_is_the_first_data(tmp_path: Path) -> None:
    with clock.use(FixedClock(T0)) as time:
        line = Line(tmp_path, time, leftover=HELLO[:30])
        line.hear(HELLO[30:])
        assert line.link.settled
        assert next(m.payload for m in journal.messages(tmp_path)) == message(status("connected", ""))
        line.close()


def test_a_silent_server_is_pinged_and_then_given_up(line: Line) -> None:
    line.hear(HELLO)
    line.said()
    line.wait(PING_EVERY)
    assert [frame.opcode for frame in line.said()] == [Opcode.PING]
    line.hear(Frame(Opcode.PONG, b"tapelab").serialize(mask=False))
    for _ in range(3):
        line.wait(DEAD_AFTER // 3)
    assert line.link.ended is None
    line.wait(1)
    assert line.link.ended is not None
    assert (line.link.ended.cause, line.link.ended.code) == ("dead", 1006)


def test_a_server_that_does_not_greet_is_given_up(line: Line) -> None:
    line.wait(11 * clock.SECOND)
    assert line.link.ended is not None
    assert line.link.ended.cause == "login_timeout"


def test_a_topic_that_is_never_confirmed_is_noted_as_such(line: Line) -> None:
    line.hear(HELLO[: -len(frames(message(status("success", "subscribed to: Q.AAPL"))))])
    line.wait(6 * clock.SECOND)
    assert line.link.ended is None
    assert notes(line)[-1] == (Kind.SUBS, {"topics": [], "unconfirmed": ["Q.AAPL"]})


def test_a_topic_refused_to_a_stream_that_runs_is_done_without(line: Line) -> None:
    line.hear(HELLO)
    line.link.change(more=["T.AAPL"], less=[])
    assert not line.link.settled
    line.hear(frames(both(1), message(status("error", "not authorized")), both(2)))
    assert line.link.ended is None
    assert line.link.settled
    assert line.link.denied == ["T.AAPL"]
    assert notes(line)[-1] == (Kind.SUBS, {"topics": ["Q.AAPL"], "unconfirmed": ["T.AAPL"]})
    line.hear(frames(both(3)))
    assert both(3) in [m.payload for m in journal.messages(line.folder)]


def test_of_several_pings_the_newest_is_answered(line: Line) -> None:
    line.hear(HELLO)
    line.said()
    pings = [Frame(Opcode.PING, name).serialize(mask=False) for name in (b"a", b"b", b"c")]
    line.hear(pings[0] + frames(both(1)) + pings[1] + pings[2][:2])
    assert [(f.opcode, f.data) for f in line.said()] == [(Opcode.PONG, b"b")]
    line.hear(pings[2][2:])
    assert [f.data for f in line.said()] == [b"c"]


def test_a_close_is_echoed_and_its_reason_is_the_cause(line: Line) -> None:
    line.hear(HELLO)
    line.said()
    line.hear(Frame(Opcode.CLOSE, Close(1008, "max_connections").serialize()).serialize(mask=False))
    (echo,) = line.said()
    assert echo.opcode is Opcode.CLOSE
    assert echo.data[:2] == (1008).to_bytes(2, "big")
    assert line.link.ended is not None
    assert line.link.ended.cause == "max_connections"
    assert line.link.ended.error is not None


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_the_last_words_are_heard_even_if_cut_in_two(line: Line, cut: int) -> None:
    line.hear(HELLO)
    last = frames(message(status("force_disconnect", "maintenance")))
    line.hear(frames(both(1)) + last[:cut])
    line.hear(last[cut:])
    line.server.close()
    line.link.receive()
    assert line.link.ended is not None
    assert (line.link.ended.cause, line.link.ended.reason) == ("force_disconnect", "maintenance")


def test_our_own_close_drains_what_still_comes_and_is_bounded(line: Line) -> None:
    line.hear(HELLO)
    line.link.close("stopped")
    line.hear(frames(both(1)))
    assert line.link.ended is None
    line.wait(3 * clock.SECOND)
    assert line.link.ended is not None
    assert (line.link.ended.cause, line.link.ended.code) == ("stopped", 1000)
    assert both(1) in [m.payload for m in journal.messages(line.folder)]


def test_a_server_that_reads_nothing_does_not_fill_our_memory(line: Line) -> None:
    line.hear(HELLO)
    pings = Frame(Opcode.PING, b"x" * 125).serialize(mask=False)
    for _ in range(40_000):
        if line.link.ended is not None or len(line.link.out) > 2**20:
            break
        line.hear(pings)
    line.wait(1)
    assert line.link.ended is not None
    assert line.link.ended.cause == "dead"


@pytest.mark.parametrize("at", [0, 1, 100])
def test_a_move_to_another_journal_happens_between_messages(line: Line, tmp_path: Path, at: int) -> None:
    line.hear(HELLO)
    wire = frames(both(1), both(2), both(3))
    line.hear(wire[:at])
    other = Writer(tmp_path / "other", bytes(16))
    left: list[Writer] = []
    line.link.move(other, left.append)
    assert bool(left) == (at == 0)
    for begin in range(at, len(wire), 50):
        line.hear(wire[begin : begin + 50])
    assert left == [line.writer]
    here = [m.payload for m in journal.messages(line.folder)][3:]
    there = [m.payload for m in journal.messages(tmp_path / "other")]
    assert here + there == [both(1), both(2), both(3)]
    assert len(here) == (at > 0)
    kinds = [
        item.kind for item in journal.Follower(tmp_path / "other").read() if isinstance(item, journal.Note)
    ]
    assert kinds == [Kind.OPEN, Kind.SUBS]
    other.close()


def test_a_segment_that_is_due_ends_between_messages(line: Line) -> None:
    line.hear(HELLO)
    line.time.at += 6 * clock.MINUTE
    wire = frames(both(1), both(2))
    line.hear(wire[:10])
    assert len(numbers(line.folder)) == 2
    line.time.at += 6 * clock.MINUTE
    line.hear(wire[10:-3])
    assert len(numbers(line.folder)) == 3
    line.hear(wire[-3:])
    assert [m.payload for m in journal.messages(line.folder)][3:] == [both(1), both(2)]
