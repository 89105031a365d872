"""The vendor's live feed: how to get in, what to say, and what its answers mean.

`open_feed` connects and upgrades; from then on the connection is the caller's. `Login` is the conversation
that follows, without a socket: it hears messages and says what to send. One connection carries one market.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake
from websockets.frames import Close, Frame, Opcode
from websockets.uri import parse_uri

from tapelab.errors import (
    MalformedAnswer,
    NotAuthorized,
    NotInPlan,
    RateLimited,
    RecordingError,
    ServerTrouble,
    SourceError,
    TapelabError,
    Unreachable,
)
from tapelab.market import clock

CONNECT_TIMEOUT = 10.0  # seconds, from the first packet to the upgrade
LOGIN_TIMEOUT = 10.0  # seconds for the greeting and the answer to the key
CONFIRM_TIMEOUT = 5.0  # seconds for the topics; an unknown channel is never answered
TAPE_HEADER = "X-Tapelab-Tape"  # only the stand-in exchange sends it

CHANNELS = {"quotes": "Q", "trades": "T", "bars": "AM"}

# What the server says when it is about to end a connection that may well be opened again.
PASSING = ("auth_timeout", "auth_required", "force_disconnect", "slow_consumer")

# The same as in `wire.columns`, which would load Arrow into the receiver.
_NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_HEAD_END = b"\r\n\r\n"
_MAX_HEAD = 64 * 1024


class Opened(NamedTuple):
    """An upgraded connection: `leftover` is what the server has already said, `tape` who it says it is."""

    sock: socket.socket
    leftover: bytes
    url: str
    tape: str


def topics_of(channels: Iterable[str], symbols: Iterable[str]) -> list[str]:
    """The vendor's topics for our channels: `Q.AAPL`, `T.AAPL` …"""
    symbols = list(symbols)
    return [f"{CHANNELS[channel]}.{symbol}" for channel in channels for symbol in symbols]


def text_frame(payload: bytes) -> bytes:
    return Frame(Opcode.TEXT, payload).serialize(mask=True)


def ping_frame(payload: bytes) -> bytes:
    return Frame(Opcode.PING, payload).serialize(mask=True)


def pong_frame(payload: bytes) -> bytes:
    return Frame(Opcode.PONG, payload).serialize(mask=True)


def close_frame(code: int, reason: str = "") -> bytes:
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=True)


def open_feed(ws_url: str, market: str, *, timeout: float = CONNECT_TIMEOUT) -> Opened:
    """Connect to a market's stream and upgrade; no compression is offered.

    Raises `Unreachable`, `NotAuthorized`, `RateLimited`, `ServerTrouble` or `MalformedAnswer`.
    """
    url = f"{ws_url}/{market}"
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "wss"
    deadline = clock.monotonic() + round(timeout * clock.SECOND)
    try:
        sock: socket.socket = socket.create_connection((host, parts.port or (443 if secure else 80)), timeout)
    except OSError as error:
        raise _unreachable(url, error) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if secure:
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        tape, leftover = _upgrade(sock, url, deadline)
    except OSError as error:
        sock.close()
        raise _unreachable(url, error) from error
    except BaseException:
        sock.close()
        raise
    return Opened(sock, leftover, url, tape)


def _upgrade(sock: socket.socket, url: str, deadline: int) -> tuple[str, bytes]:
    protocol = ClientProtocol(parse_uri(url))
    protocol.send_request(protocol.connect())
    sock.sendall(b"".join(protocol.data_to_send()))
    answer = b""
    while _HEAD_END not in answer:
        left = (deadline - clock.monotonic()) / clock.SECOND
        if left <= 0:
            raise TimeoutError("no answer in time")
        sock.settimeout(left)
        more = sock.recv(_MAX_HEAD)
        answer += more
        if not more or len(answer) > _MAX_HEAD:
            raise MalformedAnswer(
                f"{url} does not answer like a WebSocket server.", remedy="Check MASSIVE_WS_URL.", url=url
            )
    head, leftover = answer.split(_HEAD_END, 1)
    status = head.split(b"\r\n", 1)[0].split(b" ")
    if len(status) < 2 or status[1] != b"101":
        raise _refused_upgrade(url, status[1].decode("ascii", "replace") if len(status) > 1 else "")
    protocol.receive_data(head + _HEAD_END)
    protocol.events_received()
    problem = protocol.handshake_exc
    if problem is not None:
        if not isinstance(problem, InvalidHandshake):
            raise problem
        raise MalformedAnswer(
            f"{url} does not complete the WebSocket handshake: {problem}.",
            remedy="Check MASSIVE_WS_URL.",
            url=url,
        ) from problem
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == TAPE_HEADER.lower():
            return value.strip(), leftover
    return "", leftover


def _unreachable(url: str, error: OSError) -> Unreachable:
    what = error.strerror or str(error) or type(error).__name__
    return Unreachable(
        f"No connection to {url}: {what}.", remedy="Check the network and MASSIVE_WS_URL.", url=url
    )


def _refused_upgrade(url: str, status: str) -> SourceError:
    facts = {"url": url, "http_status": status}
    if status in ("401", "403"):
        return NotAuthorized(
            f"{url} refused the connection ({status}).",
            remedy="Check MASSIVE_API_KEY and your plan.",
            **facts,
        )
    if status == "429":
        return RateLimited(
            f"{url} asks to slow down (429).", remedy="Wait a minute, then try again.", **facts
        )
    if status.startswith("5"):
        return ServerTrouble(f"{url} has trouble of its own ({status}).", remedy="Try again later.", **facts)
    return MalformedAnswer(
        f"{url} is not a live stream (HTTP {status or 'nothing'}).", remedy="Check MASSIVE_WS_URL.", **facts
    )


class Say(NamedTuple):
    """A message to send, and the same as it may be written down: never with the key."""

    payload: bytes
    shown: dict[str, object]


class Login:
    """From the greeting to the topics: hears the server's messages and gives what to say next.

    `topics` are those asked for, `confirmed` those the server agreed to. `settled` becomes true when all are
    accounted for. `refusal` is the error that ends it: a key or channel that is not allowed.
    """

    def __init__(self, key: str, topics: Iterable[str]) -> None:
        self._key = key
        self.topics = list(topics)
        self.confirmed: list[str] = []
        self.refused = 0
        self.stage = "greeting"
        self.refusal: TapelabError | None = None

    @property
    def settled(self) -> bool:
        return self.stage == "streaming" and len(self.confirmed) >= len(self.topics)

    @property
    def unconfirmed(self) -> list[str]:
        known = set(self.confirmed)
        return [topic for topic in self.topics if topic not in known]

    def hear(self, payload: bytes) -> list[Say]:
        """One message of the server; events that are no status are passed over."""
        said: list[Say] = []
        for status, message in statuses(payload):
            said += self._hear(status, message)
        if self.refused and self.refusal is None and self.refused >= len(self.unconfirmed):
            self._refuse_topics()
        return said

    def give_up(self) -> None:
        """The time for confirmations is over: what was refused is an error, silence is not."""
        if self.refused and self.refusal is None:
            self._refuse_topics()

    def do_without(self) -> list[str]:
        """Go on without the topics that were refused, or never answered; gives their names."""
        names = self.unconfirmed
        self.topics, self.refused, self.refusal = list(self.confirmed), 0, None
        return names

    def subscribe(self, topics: Iterable[str]) -> list[Say]:
        """Ask for more topics on a connection that streams."""
        new = [topic for topic in topics if topic not in self.topics]
        self.topics += new
        return [_say("subscribe", new)] if new and self.stage == "streaming" else []

    def unsubscribe(self, topics: Iterable[str]) -> list[Say]:
        """Do without some topics."""
        gone = [topic for topic in topics if topic in self.topics]
        self.topics = [topic for topic in self.topics if topic not in gone]
        self.confirmed = [topic for topic in self.confirmed if topic not in gone]
        return [_say("unsubscribe", gone)] if gone and self.stage == "streaming" else []

    def _hear(self, status: str, message: str) -> list[Say]:
        if status == "auth_success":
            self.stage = "streaming"
            return [_say("subscribe", self.topics)] if self.topics else []
        if self.stage == "greeting" and status in ("connected", "success"):
            self.stage = "auth"
            payload = msgspec.json.encode({"action": "auth", "params": self._key})
            return [Say(payload, {"action": "auth"})]
        if status == "success" and message.startswith("subscribed to: "):
            topic = message.removeprefix("subscribed to: ").strip()
            if topic in self.topics and topic not in self.confirmed:
                self.confirmed.append(topic)
        elif status == "error" and self.stage == "streaming":
            self.refused += 1
        else:
            self.refusal = self.refusal or refusal(status, message)
        return []

    def _refuse_topics(self) -> None:
        names = self.unconfirmed
        self.refusal = NotInPlan(
            f"Your plan does not include {', '.join(names[:5])}{' …' if len(names) > 5 else ''}.",
            remedy="Record only channels that your plan has, for example channels=('trades',).",
            topics=names,
        )


def _say(action: str, topics: list[str]) -> Say:
    facts: dict[str, object] = {"action": action, "params": ",".join(topics)}
    return Say(msgspec.json.encode(facts), facts)


def statuses(payload: bytes) -> list[tuple[str, str]]:
    """Status and text of each status event in a message; nothing where it is not such a message."""
    if b"status" not in payload:
        return []
    try:
        events = msgspec.json.decode(payload)
    except _NOT_JSON:
        return []
    return [
        (str(event.get("status", "")), str(event.get("message", "")))
        for event in (events if isinstance(events, list) else [events])
        if isinstance(event, dict) and event.get("ev") == "status"
    ]


def refusal(status: str, message: str) -> TapelabError | None:
    """The error behind a status that ends a recording for good; None for any other."""
    if status == "auth_failed" and "plan" in message.lower():
        return NotInPlan(
            "Your plan has no live stream.",
            remedy="Upgrade it at massive.com/pricing, or try `tapelab demo` without an account.",
            status=status,
        )
    if status == "auth_failed":
        return NotAuthorized(
            "The live stream refused your API key.", remedy="Check MASSIVE_API_KEY.", status=status
        )
    if status == "max_connections":
        return RecordingError(
            "Another program opened a live connection with this key, and the plan allows no second one.",
            remedy="Stop the other program, or let it follow this recording instead of connecting.",
            status=status,
        )
    return None
