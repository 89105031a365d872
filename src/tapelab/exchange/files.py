"""Flat files as the vendor's S3 gives them: path style, listings of both versions, HEAD, GET with ranges.

Keys are looked up among the tape's own; nothing of a request ever becomes a path.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from email.utils import format_datetime, parsedate_to_datetime
from itertools import islice
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tapelab.exchange import signature
from tapelab.exchange.plans import Plan
from tapelab.exchange.rest import TAPE_HEADER
from tapelab.exchange.signature import Denied
from tapelab.exchange.tape import PRODUCTS, Tape
from tapelab.market import clock
from tapelab.market.clock import SECOND
from tapelab.massive import wire

BUCKET = "flatfiles"
MAX_KEYS = 1000
BLOCK = 1 << 18  # bytes of a file read at a time
XML = "application/xml"
GZIP = "application/gzip"  # and no Content-Encoding, or clients would unpack it

_METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE"]
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True)
class _Object:
    key: str
    content: Path | bytes
    size: int
    etag: str
    modified: datetime


class Files:
    """The S3 side of the exchange."""

    def __init__(self, tape: Tape, key_id: str, secret: str, plan: Plan) -> None:
        self._tape = tape
        self._key_id = key_id
        self._secret = secret
        self._plan = plan

    def app(self) -> Starlette:
        """The ASGI application."""
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=_METHODS)])

    async def _answer(self, request: Request) -> Response:
        path = request.scope["raw_path"].decode("latin-1").partition("?")[0]
        try:
            headers = dict(request.headers)
            query = request.scope["query_string"].decode("latin-1")
            signed = signature.Signed(request.method, path, query, headers)
            signature.check(signed, self._key_id, self._secret, clock.now())
            response = await run_in_threadpool(self._dispatch, request)
        except Denied as denied:
            response = _refusal(denied, request)
        response.headers[TAPE_HEADER] = self._tape.identity
        return response

    def _dispatch(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise Denied("AccessDenied", "Access Denied")
        bucket, _, key = request.path_params["path"].partition("/")
        if not bucket:
            raise Denied("AccessDenied", "Access Denied")
        if bucket != BUCKET:
            raise Denied("NoSuchBucket", "The specified bucket does not exist", 404)
        if key:
            return self._object(request, key)
        if "location" in request.query_params:
            return _xml("LocationConstraint", "")
        return _listing(request, self._keys(), self._described)

    def _keys(self) -> list[str]:
        return sorted(wire.file_key(product, day) for product in PRODUCTS for day in self._tape.days(product))

    def _described(self, key: str) -> _Object:
        found = wire.parse_key(key)
        assert found is not None
        product, day = found
        return _described(self._tape, key, product, day)

    def _object(self, request: Request, key: str) -> Response:
        found = wire.parse_key(key)
        if found is None or found[1] not in self._tape.days(found[0]):
            raise Denied("NoSuchKey", "The specified key does not exist.", 404)
        if found[0] not in self._plan.products:
            raise Denied("AccessDenied", "Access Denied")
        try:
            described = self._described(key)
        except FileNotFoundError as cause:
            raise Denied("NoSuchKey", "The specified key does not exist.", 404) from cause
        headers = {
            "ETag": described.etag,
            "Last-Modified": format_datetime(described.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "x-amz-meta-tapelab-tape": self._tape.identity,
        }
        if (status := _condition(request, described)) is not None:
            if status == 412:
                raise Denied("PreconditionFailed", "At least one of the pre-conditions did not hold", 412)
            return Response(status_code=status, headers=headers)
        first, last = 0, described.size - 1
        status = 200
        if (part := _range(request.headers.get("range", ""), described.size)) is not None:
            first, last = part
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{described.size}"
        headers["Content-Length"] = str(last - first + 1)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=GZIP)
        return StreamingResponse(_blocks(described.content, first, last + 1), status, headers, GZIP)


def _described(tape: Tape, key: str, product: str, day: date) -> _Object:
    content = tape.raw(product, day)
    modified = datetime.fromtimestamp(tape.modified(product, day) // SECOND, UTC)
    if isinstance(content, bytes):
        etag = hashlib.md5(content, usedforsecurity=False).hexdigest()
        return _Object(key, content, len(content), f'"{etag}"', modified)
    stat = content.stat()
    # As for objects uploaded in parts: no MD5 of the content, so a file of 10 GB need not be read to list it.
    told_apart = hashlib.md5(f"{key} {stat.st_size} {stat.st_mtime_ns}".encode(), usedforsecurity=False)
    return _Object(key, content, stat.st_size, f'"{told_apart.hexdigest()}-1"', modified)


def _blocks(content: Path | bytes, first: int, stop: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        for begin in range(first, stop, BLOCK):
            yield content[begin : min(begin + BLOCK, stop)]
        return
    with content.open("rb") as file:
        file.seek(first)
        while first < stop and (block := file.read(min(BLOCK, stop - first))):
            yield block
            first += len(block)


def _range(text: str, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; None where the range is none that S3 understands."""
    unit, _, span = text.partition("=")
    begin, dash, end = span.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (begin + end).isdecimal():
        return None
    first, last = (int(begin), int(end or size - 1)) if begin else (max(0, size - int(end)), size - 1)
    if begin and end and last < first:
        return None
    if first >= size or (not begin and int(end) == 0):
        raise Denied("InvalidRange", "The requested range is not satisfiable", 416)
    return first, min(last, size - 1)


def _condition(request: Request, described: _Object) -> int | None:
    """The status by which a conditional request ends early; None where it goes on."""
    match, none_match = request.headers.get("if-match"), request.headers.get("if-none-match")
    if match is not None and match.strip() not in ("*", described.etag):
        return 412
    if none_match is not None:
        return 304 if none_match.strip() in ("*", described.etag) else None
    since, unless = (_http_date(request, name) for name in ("if-modified-since", "if-unmodified-since"))
    if since is not None and described.modified <= since:
        return 304
    if match is None and unless is not None and described.modified > unless:
        return 412
    return None


def _http_date(request: Request, name: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(request.headers.get(name, ""))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _listing(request: Request, keys: list[str], describe: Callable[[str], _Object]) -> Response:
    query = request.query_params
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    try:
        most = min(int(query.get("max-keys", MAX_KEYS)), MAX_KEYS)
        after = query.get("start-after", "") if second else query.get("marker", "")
        if token := query.get("continuation-token", "") if second else "":
            after = base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as cause:
        raise Denied(
            "InvalidArgument", "Provided max-keys or continuation-token is not valid", 400
        ) from cause
    if most < 0:
        raise Denied("InvalidArgument", "Argument maxKeys must not be negative", 400)
    entries = _entries(keys, prefix, delimiter, after)
    page = list(islice(entries, most))
    more = most > 0 and next(entries, None) is not None
    url = query.get("encoding-type") == "url"
    written = (lambda text: quote(text, safe="/")) if url else escape
    parts = [_tag("Name", BUCKET), _tag("Prefix", written(prefix)), _tag("MaxKeys", str(most))]
    parts += [_tag("Delimiter", written(delimiter))] if delimiter else []
    parts += [_tag("EncodingType", "url")] if url else []
    parts.append(_tag("IsTruncated", str(more).lower()))
    last = page[-1] if page else ""
    if second:
        parts.append(_tag("KeyCount", str(len(page))))
        parts += [_tag("ContinuationToken", escape(token))] if token else []
        parts += (
            [_tag("NextContinuationToken", base64.urlsafe_b64encode(last.encode()).decode())] if more else []
        )
    else:
        parts.append(_tag("Marker", written(after)))
        parts += [_tag("NextMarker", written(last))] if more else []
    for entry in page:
        if delimiter and entry.endswith(delimiter):
            parts.append(_tag("CommonPrefixes", _tag("Prefix", written(entry))))
        else:
            parts.append(_contents(describe(entry), written(entry)))
    return _xml("ListBucketResult", "".join(parts))


def _entries(keys: list[str], prefix: str, delimiter: str, after: str) -> Iterator[str]:
    """Keys and common prefixes in order, from after `after` on."""
    at = max(bisect_left(keys, prefix), bisect_right(keys, after))
    while at < len(keys) and keys[at].startswith(prefix):
        cut = keys[at].find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            yield keys[at]
            at += 1
            continue
        common = keys[at][: cut + len(delimiter)]
        if common > after:
            yield common
        while at < len(keys) and keys[at].startswith(common):
            at += 1


def _contents(described: _Object, key: str) -> str:
    modified = described.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    inside = [
        _tag("Key", key),
        _tag("LastModified", modified),
        _tag("ETag", escape(described.etag, {'"': "&quot;"})),
        _tag("Size", str(described.size)),
        _tag("StorageClass", "STANDARD"),
        _tag("Type", "Normal"),
    ]
    return _tag("Contents", "".join(inside))


def _tag(name: str, inside: str) -> str:
    return f"<{name}>{inside}</{name}>"


def _xml(root: str, inside: str, status: int = 200) -> Response:
    attribute = "" if root == "Error" else f' xmlns="{_NAMESPACE}"'
    text = f'<?xml version="1.0" encoding="UTF-8"?><{root}{attribute}>{inside}</{root}>'
    return Response(text, status, media_type=XML)


def _refusal(denied: Denied, request: Request) -> Response:
    if request.method == "HEAD":
        return Response(status_code=denied.status)
    inside = [
        _tag("Code", denied.code),
        _tag("Message", escape(denied.message)),
        _tag("Resource", escape(quote(request.url.path))),
    ]
    return _xml("Error", "".join(inside), denied.status)
