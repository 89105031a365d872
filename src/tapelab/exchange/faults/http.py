"""What can go wrong with an answer over HTTP: one small dataclass a fault, each a wrapper around an ASGI app.

A share `at` counts from the start of an answer's body: 0 is before anything of the answer, headers included.
"""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec
from msgspec import Meta

from tapelab.exchange.files import xml
from tapelab.massive import wire
from tapelab.massive.wire.answers import JSON, Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tapelab.exchange.files.objects import Stored

Door = Literal["rest", "s3"]
Interrupt = Callable[[], Awaitable[bool]]  # whether the answer goes on

HANG_UP = "tapelab.hang_up"  # in the scope: ends the connection
PUBLISHED = "tapelab.published"  # in the scope: what is wrong with the object at a path

MAX_SECONDS = 3600
FLUSH_WITHIN = 5.0  # seconds for what was sent before a cut
DRIPS = 10  # a second
LATER = timedelta(hours=1)  # a replaced file is so much newer

_EMPTY_MEMBER = gzip.compress(b"", mtime=0)
_NEXT_URL = re.compile(rb'("next_url"\s*:\s*")([^"]*)(")')
_HTML = "text/html"
_REFUSALS: dict[int, Refusal] = {
    400: "bad_request",
    401: "unknown_key",
    403: "not_entitled",
    404: "no_ticker",
    429: "rate_limited",
}
_S3_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    429: "TooManyRequests",
    500: "InternalError",
    503: "SlowDown",
}

Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS)]
Share = Annotated[float, Meta(ge=0, lt=1)]


class HttpFault(Protocol):
    """Something wrong with the answer to one request."""

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        """The app with this fault."""
        ...


class ObjectFault(HttpFault, Protocol):
    """Something wrong with a file as it lies in the bucket; `listed`: listings and HEAD know of it."""

    @property
    def listed(self) -> bool: ...

    def alter(self, stored: Stored) -> Stored:
        """The object as it is published instead."""
        ...


@dataclass(frozen=True)
class Status:
    """Refused with an HTTP status, 400 to 599, in the vendor's form; `retry_after`: told to wait (s)."""

    code: Annotated[int, Meta(ge=400, le=599)]
    retry_after: Annotated[int, Meta(ge=0)] | None = None

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        content_type, body = _refusal(door, self.code)
        wait = [] if self.retry_after is None else [(b"retry-after", str(self.retry_after).encode())]
        return _saying(self.code, content_type, body, wait)


@dataclass(frozen=True)
class ErrorIn200:
    """A refusal that says 200 and means 500: only its body tells."""

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        if door == "rest":
            said = {"status": "ERROR", "request_id": _NOBODY, "error": "internal server error"}
            return _saying(200, JSON, msgspec.json.encode(said))
        return _saying(200, *_refusal(door, 500))


@dataclass(frozen=True)
class Cut:
    """The connection breaks after a share `at` of the answer; 0: there is no answer at all."""

    at: Share = 0.5

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        async def cut(scope: Scope, receive: Receive, send: Send) -> None:
            await _interrupted(app, scope, receive, send, self.at, scope[HANG_UP])

        return cut


@dataclass(frozen=True)
class Stall:
    """Nothing comes for some `seconds`, before the answer or after a share `at` of it."""

    seconds: Seconds
    at: Share = 0.0

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        async def stalled(scope: Scope, receive: Receive, send: Send) -> None:
            await _interrupted(app, scope, receive, send, self.at, lambda: _pause(self.seconds, receive))

        return stalled


@dataclass(frozen=True)
class Trickle:
    """The answer comes slowly: so many bytes a second."""

    bytes_per_second: Annotated[int, Meta(ge=1)]

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        drip = max(1, self.bytes_per_second // DRIPS)

        async def trickling(scope: Scope, receive: Receive, send: Send) -> None:
            async def slowly(message: Message) -> None:
                body = message.get("body", b"")
                for first in range(0, len(body), drip):
                    piece = body[first : first + drip]
                    if not await _pause(len(piece) / self.bytes_per_second, receive):
                        return
                    await send({**message, "body": piece, "more_body": True})
                if not (body and message.get("more_body", False)):
                    await send({**message, "body": b""} if body else message)

            await app(scope, receive, slowly)

        return trickling


@dataclass(frozen=True)
class BrokenPage:
    """A page that cannot be used, or not followed.

    `how`: `truncated` (its JSON ends in the middle), `cursor` (its `next_url` leads nowhere), `loop` (its
    `next_url` is the page itself). The last page of an answer has no `next_url` to break.
    """

    how: Literal["truncated", "cursor", "loop"] = "truncated"

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            plain = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            start, body = await _whole(app, {**scope, "headers": plain}, receive)
            body = self._broken(body, scope)
            kept = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            start["headers"] = [*kept, (b"content-length", str(len(body)).encode())]
            await send(start)
            await send({"type": "http.response.body", "body": body})

        return broken

    def _broken(self, body: bytes, scope: Scope) -> bytes:
        if self.how == "truncated":
            return body[: len(body) // 2]
        query = b"cursor=AAAA" if self.how == "cursor" else _without_key(scope["query_string"])
        route: bytes = scope["raw_path"].partition(b"?")[0]

        def mend(match: re.Match[bytes]) -> bytes:
            base = b"/".join(match[2].split(b"/", 3)[:3])
            return match[1] + base + route + b"?" + query + match[3]

        return _NEXT_URL.sub(mend, body)


@dataclass(frozen=True)
class Truncated:
    """A file that was published in part: a share `at` of its bytes, so that its gzip has no end.

    With `listed` false, listings and HEAD still know the whole file.
    """

    at: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    listed: bool = True

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        return app

    def alter(self, stored: Stored) -> Stored:
        return replace(stored, size=max(1, int(stored.size * self.at)), etag=_another(stored.etag))


@dataclass(frozen=True)
class Replaced:
    """A file that was published again: other bytes, another ETag, an hour later.

    `file` holds what is published instead; without it the rows stay the same and every byte moves. With
    `listed` false, listings and HEAD still know the old one: it happens between them and the download.
    """

    file: str | None = None
    listed: bool = True

    def around(self, app: ASGIApp, door: Door) -> ASGIApp:
        return app

    def alter(self, stored: Stored) -> Stored:
        etag, modified = _another(stored.etag), stored.modified + LATER
        if self.file is not None:
            path = Path(self.file)
            return replace(stored, content=path, size=path.stat().st_size, etag=etag, modified=modified)
        size = stored.size + len(_EMPTY_MEMBER)
        return replace(stored, before=_EMPTY_MEMBER, size=size, etag=etag, modified=modified)


def as_published(stored: Stored, scope: MutableMapping[str, Any], path: str) -> Stored:
    """The object at a path of the bucket as the fault script lets this request see it."""
    look: Callable[[str], Iterable[ObjectFault]] = scope.get(PUBLISHED, lambda path: ())
    for fault in look(path):
        stored = fault.alter(stored)
    return stored


async def hang_up(receive: Receive, send: Send) -> bool:
    """Let out what was sent, then end the connection without completing the answer.

    ASGI has no word for this. uvicorn's `send` belongs to the exchange of one request, which holds the
    connection; another server ends an answer that is not completed in its own way.
    """
    transport = getattr(getattr(send, "__self__", None), "transport", None)
    if transport is not None:
        transport.close()
        asyncio.get_running_loop().call_later(FLUSH_WITHIN, transport.abort)
        await _gone(receive)
    return False


async def _interrupted(
    app: ASGIApp, scope: Scope, receive: Receive, send: Send, at: float, interrupt: Interrupt
) -> None:
    """The answer of `app`, interrupted after a share of its body."""
    left = 0
    waits = goes_on = True

    async def counted(message: Message) -> None:
        nonlocal left, waits, goes_on
        if message["type"] == "http.response.start":
            left = int(_length(message) * at)
            await send(message)
            return
        body = message.get("body", b"")
        if waits and len(body) >= left:
            waits = False
            await send({**message, "body": body[:left], "more_body": True})
            goes_on = await interrupt()
            message = {**message, "body": body[left:]}
        left -= len(body)
        if goes_on:
            await send(message)

    if at > 0:
        await app(scope, receive, counted)
    elif await interrupt():
        await app(scope, receive, send)


async def _whole(app: ASGIApp, scope: Scope, receive: Receive) -> tuple[Message, bytes]:
    messages: list[Message] = []

    async def keep(message: Message) -> None:
        messages.append(message)

    await app(scope, receive, keep)
    return messages[0], b"".join(message.get("body", b"") for message in messages[1:])


async def _pause(seconds: float, receive: Receive) -> bool:
    """Wait; False if the client left meanwhile."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await _gone(receive)
            return False
    return True


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _saying(
    status: int, content_type: str, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()
) -> ASGIApp:
    head = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]

    async def say(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return say


_NOBODY = "0" * 32  # a request that no server will remember


def _refusal(door: Door, code: int) -> tuple[str, bytes]:
    """Content type and body of a refusal, as that door words it."""
    known = {status.value: status.phrase for status in HTTPStatus}
    phrase = known.get(code, "Unknown Error")
    if door == "s3":
        name = _S3_CODES.get(code, "InternalError" if code >= 500 else "InvalidRequest")
        return xml.MEDIA_TYPE, xml.error(name, phrase, resource="/", request_id=_NOBODY).encode()
    if code >= 500:
        page = f"<html><head><title>{code} {phrase}</title></head><body>{code} {phrase}</body></html>\n"
        return _HTML, page.encode()
    if code in _REFUSALS:
        said = wire.error_body(_REFUSALS[code], request_id=_NOBODY)
        return said.content_type, said.body
    return JSON, msgspec.json.encode({"status": "ERROR", "request_id": _NOBODY, "error": phrase})


def _length(start: Message) -> int:
    return next((int(value) for name, value in start["headers"] if name.lower() == b"content-length"), 0)


def _without_key(query: bytes) -> bytes:
    return b"&".join(part for part in query.split(b"&") if part and not part.startswith(b"apiKey="))


def _another(etag: str) -> str:
    """An ETag as long as this one, and never the same."""
    digits = etag.translate(str.maketrans("0123456789abcdef", "123456789abcdef0"))
    return digits.partition("-")[0].rstrip('"') + '"'
