"""Which account a request belongs to, so that each is answered by its own plan."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_CREDENTIAL = re.compile(r"Credential=([^/,\s]+)")


def rest_key(scope: Scope) -> str:
    """The key of a REST request, in either of its forms; empty if it has none."""
    scheme, _, bearer = _header(scope, b"authorization").partition(" ")
    if scheme.lower() == "bearer":
        return bearer.strip()
    return _parameter(scope, "apiKey")


def s3_key(scope: Scope) -> str:
    """The access key id that signed an S3 request, in its header or its address; empty if none did."""
    found = _CREDENTIAL.search(_header(scope, b"authorization"))
    return found[1] if found else _parameter(scope, "X-Amz-Credential").partition("/")[0]


def by_key(apps: Mapping[str, ASGIApp], key: Callable[[Scope], str]) -> ASGIApp:
    """Each request to the app of its key; the first app refuses keys that nobody has."""
    first, *others = apps.values()
    if not others:
        return first

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await apps.get(key(scope), first)(scope, receive, send)

    return dispatch


def _header(scope: Scope, name: bytes) -> str:
    found: bytes = next((value for known, value in scope["headers"] if known == name), b"")
    return found.decode("latin-1")


def _parameter(scope: Scope, name: str) -> str:
    query: str = scope["query_string"].decode("latin-1")
    return parse_qs(query, keep_blank_values=True).get(name, [""])[0]
