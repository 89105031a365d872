"""The vendor's ways of saying no: error bodies, and what they mean to a user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from tapelab.errors import NotAuthorized, NotFound, NotInPlan, RateLimited, ServerTrouble, SourceError
from tapelab.massive.wire.columns import NOT_JSON

Refusal = Literal[
    "bad_request",
    "no_key",
    "unknown_key",
    "not_entitled",
    "timeframe",
    "no_ticker",
    "no_route",
    "rate_limited",
]

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
MAX_QUOTED = 300  # of what the vendor said, in characters


@dataclass(frozen=True)
class Answer:
    """A refusal as it goes over HTTP."""

    status: int
    content_type: str
    body: bytes


# HTTP status, `status`, the key that holds the text (the vendor uses two), the text.
_REFUSALS: dict[Refusal, tuple[int, str, str, str]] = {
    "bad_request": (400, "ERROR", "error", "a query parameter was malformed"),
    "no_key": (401, "ERROR", "error", "API Key was not provided"),
    "unknown_key": (401, "ERROR", "error", "Unknown API Key"),
    "not_entitled": (
        403,
        "NOT_AUTHORIZED",
        "message",
        "You are not entitled to this data. Please upgrade your plan at https://polygon.io/pricing",
    ),
    "timeframe": (
        403,
        "NOT_AUTHORIZED",
        "message",
        "Your plan doesn't include this data timeframe. Please upgrade your plan at https://polygon.io/pricing",
    ),
    "no_ticker": (404, "NOT_FOUND", "message", "Ticker not found."),
    "rate_limited": (
        429,
        "ERROR",
        "error",
        "You've exceeded the maximum requests per minute, "
        "please wait or upgrade your subscription to continue.",
    ),
}


class _Body(msgspec.Struct):
    error: str | None = None
    message: str | None = None
    request_id: str | int | None = None


_body = msgspec.json.Decoder(_Body)


def error_body(refusal: Refusal, *, request_id: str, text: str | None = None) -> Answer:
    """The answer by which the vendor refuses; `text` replaces the vendor's own words."""
    if refusal == "no_route":
        return Answer(404, TEXT, b"404 page not found\n")
    status, word, key, words = _REFUSALS[refusal]
    said = {"status": word, "request_id": request_id, key: text or words}
    return Answer(status, JSON, msgspec.json.encode(said))


def decode_error(http_status: int, body: bytes, *, url_path: str) -> SourceError:
    """The error that a refused request means: the right class, what the vendor said, what to do next.

    Reads the vendor's two keys `error` and `message`; a body that is no JSON (a gateway's page, nothing at
    all) still gives the class of the status. `url_path` is quoted without its query, which may hold the key.
    """
    path = url_path.partition("?")[0]
    said, request_id = _said(body)
    kind, message, remedy = _meaning(http_status, said)
    quoted = f" The vendor says: {said}" if said else ""
    facts = {"http_status": http_status, "path": path, "request_id": request_id}
    return kind(f"{message.format(path=path, status=http_status)}{quoted}", remedy=remedy, **facts)


def _said(body: bytes) -> tuple[str, str | None]:
    try:
        found = _body.decode(body)
    except NOT_JSON:
        text = body.decode("utf-8", "replace").strip()
        return ("" if text.startswith("<") else text[:MAX_QUOTED], None)
    request_id = None if found.request_id is None else str(found.request_id)
    return ((found.error or found.message or "").strip()[:MAX_QUOTED], request_id)


def _meaning(http_status: int, said: str) -> tuple[type[SourceError], str, str]:
    if http_status == 401:
        missing = "not provided" in said
        message = "No API key was sent for {path}." if missing else "The API key was refused for {path}."
        return NotAuthorized, message, "Check MASSIVE_API_KEY; `tapelab doctor` shows what is set."
    if http_status == 403 and "timeframe" in said:
        remedy = "Ask for dates inside the plan's history, or use a larger plan."
        return NotInPlan, "These dates are not in the plan: {path}.", remedy
    if http_status == 403:
        remedy = "Use another route or a plan that has this data."
        return NotInPlan, "This data is not in the plan: {path}.", remedy
    if http_status == 404:
        return NotFound, "The vendor has nothing at {path}.", "Check the symbol's spelling; case matters."
    if http_status == 429:
        remedy = "Wait a minute, or set TAPELAB_REST_CALLS_PER_MINUTE to what the plan allows."
        return RateLimited, "Too many requests for {path}.", remedy
    if http_status >= 500:
        return ServerTrouble, "The vendor's server failed ({status}) at {path}.", "Try again later."
    remedy = "Check the symbols, the dates and the interval."
    return SourceError, "The vendor refused {path} ({status}).", remedy
