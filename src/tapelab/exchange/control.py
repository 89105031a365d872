"""The exchange's clock over HTTP: `GET` and `POST /tapelab/v1/clock`, on the REST port, with the same key.

The vendor has no such thing. `POST` takes an object with any of `speed` (1 real time, N times, 0 unpaced),
`paused`, and `at` (ns UTC, or a time of the streamed day in New York, such as `"09:30"`). Both answer with
the state: `at` in ns UTC, `time` as ISO 8601 in New York, `day`, `speed`, `paused`, `started`, `finished`.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from tapelab.errors import UsageError
from tapelab.exchange.doors import rest_key
from tapelab.massive import wire
from tapelab.massive.wire.answers import JSON, Refusal
from tapelab.massive.wire.columns import NOT_JSON

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

PATH = "/tapelab/v1/clock"
MAX_BODY = 4 << 10  # bytes


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    speed: float | None = None
    paused: bool | None = None
    at: int | str | None = None


_change = msgspec.json.Decoder(_Change)


class Turn(Protocol):
    """Changes the clock, in the exchange's own loop. Raises `UsageError` for what makes no sense."""

    def __call__(self, *, speed: float | None, paused: bool | None, at: int | str | None) -> None: ...


State = Callable[[], dict[str, Any]]


def beside(rest: ASGIApp, turn: Turn, state: State, keys: Sequence[str]) -> ASGIApp:
    """The REST app with the clock's endpoint beside it."""

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH:
            await rest(scope, receive, send)
            return
        status, content_type, body = await _answer(scope, receive, turn, state, keys)
        headers = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return dispatch


async def _answer(
    scope: Scope, receive: Receive, turn: Turn, state: State, keys: Sequence[str]
) -> tuple[int, str, bytes]:
    key = rest_key(scope)
    if not any(hmac.compare_digest(key.encode(), known.encode()) for known in keys):
        return _refused("unknown_key" if key else "no_key")
    if scope["method"] == "POST":
        body = await _body(receive)
        if body is None:
            return _refused("bad_request", f"a change of the clock has at most {MAX_BODY} bytes")
        try:
            change = _change.decode(body)
            turn(speed=change.speed, paused=change.paused, at=change.at)
        except NOT_JSON as error:
            return _refused("bad_request", f"not a change of the clock: {error}")
        except UsageError as error:
            return _refused("bad_request", str(error))
    elif scope["method"] != "GET":
        return _refused("no_route")
    return 200, JSON, msgspec.json.encode(state())


async def _body(receive: Receive) -> bytes | None:
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if len(body) > MAX_BODY:
            return None
        if not message.get("more_body", False):
            return body


def _refused(refusal: Refusal, text: str | None = None) -> tuple[int, str, bytes]:
    said = wire.error_body(refusal, request_id=secrets.token_hex(16), text=text)
    return said.status, said.content_type, said.body
