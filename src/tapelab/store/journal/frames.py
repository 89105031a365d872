"""The WebSocket frames inside a stream of bytes, found by their headers alone.

A server's stream after the upgrade is unmasked frames, one behind the other (RFC 6455, section 5). The
receiver walks their headers to answer pings and to know where a message ends; the reader of a journal
walks them again to put the messages together. Chunks may be cut anywhere, even inside a header.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from tapelab.errors import MalformedAnswer

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MAX_MESSAGE = 16 * 2**20  # bytes; the vendor keeps below 1 MB, since its own clients refuse more
MAX_CONTROL = 125
NOWHERE = 0xFFFF_FFFF  # "no frame begins in this chunk"

NORMAL = 1000
PROTOCOL_ERROR = 1002
ABNORMAL = 1006  # noted where a connection ended without a close frame; never sent
TOO_BIG = 1009

_FINAL_TEXT = 0x80 | TEXT
_MEDIUM = _FINAL_TEXT << 8 | 126  # the first two bytes of a frame whose length takes 16 bits
_HEAD = struct.Struct(">HH")
_KNOWN = frozenset({TEXT, BINARY, CONTINUATION, *(0x80 | code for code in (0, 1, 2, 8, 9, 10))})

Buffer = bytes | bytearray | memoryview


class Violation(MalformedAnswer):
    """The server broke the WebSocket protocol; `code` is what to close the connection with."""

    @property
    def code(self) -> int:
        return TOO_BIG if self.facts.get("too_big") else PROTOCOL_ERROR


class Control(NamedTuple):
    """A close, ping or pong and what it carries."""

    opcode: int
    payload: bytes


# Payload of a message inside a chunk: where it starts, where it stops, and whether the message ends there.
Piece = tuple[int, int, bool]


class Walked(NamedTuple):
    """What a chunk held. Offsets count from the chunk's first byte.

    `first`: where the first frame header that begins in the chunk begins, or `NOWHERE`. `boundary`: the
    last place at which no message was under way, or -1. `violation`: what ended the walk, if anything.
    """

    pieces: list[Piece]
    controls: list[Control]
    first: int
    boundary: int
    violation: Violation | None


class FrameWalk:
    """Walks the frames of one connection, chunk by chunk, whatever the chunks are.

    `resuming`: the walk starts somewhere inside the stream, at a frame header; what is left of a message
    that began earlier is passed over. `newest`: of whole messages in a row only the last is told, which is
    all that the receiver wants, and twice as fast.
    """

    def __init__(self, *, resuming: bool = False, newest: bool = False) -> None:
        self._newest = newest
        self._header = b""  # of a header that the chunk's end cut
        self._left = 0  # payload still to come of the frame under way
        self._first = 0  # the first byte of that frame: FIN and opcode
        self._control = b""
        self._fragmented = False
        self._length = 0  # of the message under way
        self._passing = resuming
        self._violation: Violation | None = None

    @property
    def between_messages(self) -> bool:
        """Whether the chunks so far end where a message ends."""
        return not (self._left or self._header or self._fragmented)

    @property
    def left(self) -> int:
        """Payload still to come of the frame under way."""
        return self._left

    def pass_over(self) -> None:
        """Whole unfragmented messages between the last bytes and the next were walked by somebody else."""
        self._passing = False

    def feed(self, data: Buffer, end: int | None = None, *, start: int = 0) -> Walked:
        """Walk `data[start:end]`, the next bytes of the stream."""
        end = len(data) if end is None else end
        pieces: list[Piece] = []
        controls: list[Control] = []
        if self._violation is not None:
            return Walked(pieces, controls, NOWHERE, -1, self._violation)
        at, first, boundary = start, NOWHERE, -1
        try:
            if self._left:
                at = self._payload(data, at, end, pieces, controls)
            if self._header:
                at = self._split_header(data, at, end, pieces, controls)
            if at < end:
                first = at
            if self.between_messages:
                boundary = at
            while at + 2 <= end:
                if self._newest and not self._fragmented:
                    last, stop = _pass_over(data, at, end)
                    if stop > at:
                        pieces.append((last + (2 if data[last + 1] < 126 else 4), stop, True))
                        self._passing = False
                        at = boundary = stop
                        continue
                opening = data[at]
                length = data[at + 1]
                if length < 126:
                    body = at + 2
                elif length == 126 and at + 4 <= end:
                    body = at + 4
                    length = data[at + 2] << 8 | data[at + 3]
                elif length == 127 and at + 10 <= end:
                    body = at + 10
                    length = int.from_bytes(data[at + 2 : body], "big")
                elif length > 127:
                    raise Violation("The server sent a masked frame.")
                else:
                    break
                stop = body + length
                if opening == _FINAL_TEXT and stop <= end and not self._fragmented:
                    pieces.append((body, stop, True))
                    self._passing = False
                    at = boundary = stop
                    continue
                self._open(opening, length)
                at = self._payload(data, body, end, pieces, controls)
                if self.between_messages:
                    boundary = at
            if at < end:
                self._header = bytes(data[at:end])
        except Violation as violation:
            self._violation = violation
        return Walked(pieces, controls, first, boundary, self._violation)

    def _open(self, opening: int, length: int) -> None:
        if opening not in _KNOWN:
            raise Violation(f"The server sent a frame that begins with the unknown byte 0x{opening:02x}.")
        opcode = opening & 0x0F
        if opcode >= CLOSE:
            if length > MAX_CONTROL:
                raise Violation(f"The server sent a control frame of {length} bytes.")
            self._control = b""
        elif opcode == CONTINUATION:
            if not (self._fragmented or self._passing):
                raise Violation("The server continued a message that it had not begun.")
            self._length += length
        else:
            if self._fragmented:
                raise Violation("The server began a message inside another.")
            self._passing = False
            self._fragmented = True
            self._length = length
        if self._length > MAX_MESSAGE:
            raise Violation(f"The server sent a message of over {MAX_MESSAGE} bytes.", too_big=True)
        self._first = opening
        self._left = length

    def _payload(self, data: Buffer, at: int, end: int, pieces: list[Piece], controls: list[Control]) -> int:
        stop = min(at + self._left, end)
        self._left -= stop - at
        opcode = self._first & 0x0F
        if opcode >= CLOSE:
            self._control += bytes(data[at:stop])
            if not self._left:
                controls.append(Control(opcode, self._control))
            return stop
        last = self._left == 0 and self._first >= 0x80
        if not self._passing:
            pieces.append((at, stop, last))
        if last:
            self._fragmented = self._passing = False
            self._length = 0
        return stop

    def _split_header(
        self, data: Buffer, at: int, end: int, pieces: list[Piece], controls: list[Control]
    ) -> int:
        """Finish the header that the last chunk cut; returns where the frame after it begins."""
        known = len(self._header)
        joined = self._header + bytes(data[at : min(at + 10, end)])
        size = 2 if len(joined) < 2 or joined[1] < 126 else 4 if joined[1] == 126 else 10
        if len(joined) > 1 and joined[1] > 127:
            raise Violation("The server sent a masked frame.")
        if len(joined) < size:
            self._header = joined
            return end
        self._header = b""
        length = joined[1] if size == 2 else int.from_bytes(joined[2:size], "big")
        self._open(joined[0], length)
        return self._payload(data, at + size - known, end, pieces, controls)


def _pass_over(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """Pass whole messages of one short frame each; gives where the last began, and where it ended."""
    before, last, enough, head_of = at, at, end - 4, _HEAD.unpack_from
    while at <= enough:
        head, more = head_of(data, at)
        if head == _MEDIUM:
            before, last, at = last, at, at + 4 + more
        elif _FINAL_TEXT << 8 <= head < _MEDIUM:
            before, last, at = last, at, at + 2 + (head & 0x7F)
        else:
            break
    return (before, last) if at > end else (last, at)


class Assembler:
    """Puts the text messages of one connection together again, chunk by chunk."""

    def __init__(self, *, resuming: bool = False) -> None:
        self._walk = FrameWalk(resuming=resuming)
        self._parts: list[bytes] = []

    @property
    def torn(self) -> bool:
        """Whether the bytes so far end inside a message."""
        return not self._walk.between_messages

    @property
    def rest(self) -> int:
        """How many bytes are still to come of the frame under way, as far as is known."""
        return self._walk.left

    def pass_over(self) -> None:
        """Whole messages between the last bytes and the next were taken by somebody else."""
        self._walk.pass_over()

    def feed(self, data: Buffer, end: int | None = None, *, start: int = 0) -> list[tuple[bytes, int]]:
        """The messages that end in `data[start:end]`, each with the offset behind its last byte."""
        messages = []
        for begin, stop, last in self._walk.feed(data, end, start=start).pieces:
            if last and not self._parts:
                messages.append((bytes(data[begin:stop]), stop))
            else:
                self._parts.append(bytes(data[begin:stop]))
                if last:
                    messages.append((b"".join(self._parts), stop))
                    self._parts = []
        return messages
