"""Flat files as the vendor's S3 gives them: path style, listings of both versions, HEAD, GET with ranges.

Keys are looked up among the tape's own; nothing of a request ever becomes a path. What is refused is refused
in S3's XML.
"""

from __future__ import annotations

import logging
import secrets
from datetime import date
from email.utils import format_datetime
from urllib.parse import quote, unquote_to_bytes

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tapelab.errors import TapelabError
from tapelab.exchange.faults.http import as_published
from tapelab.exchange.files import listing, objects, signature, xml
from tapelab.exchange.files.objects import Stored
from tapelab.exchange.files.signature import Denied
from tapelab.exchange.plans import Plan
from tapelab.exchange.tape import PRODUCTS, TAPE_HEADER, Tape
from tapelab.market import clock
from tapelab.massive import wire

BUCKET = "flatfiles"
REGION = "us-east-1"
GZIP = "application/gzip"  # and no Content-Encoding, or clients would unpack it
MAX_HEADERS = 8 << 10  # bytes, and of a key, as at Amazon
MAX_KEY = 1024

# Questions about buckets and objects that S3 knows and this exchange does not.
_ELSEWHERE = frozenset(
    "accelerate acl analytics cors encryption inventory legal-hold lifecycle logging metrics notification "
    "object-lock ownershipControls policy policyStatus publicAccessBlock replication requestPayment "
    "retention select tagging torrent uploads versions website".split()
)
_log = logging.getLogger(__name__)


class Files:
    """The S3 side of the exchange."""

    def __init__(self, tape: Tape, key_id: str, secret: str, plan: Plan) -> None:
        self._tape = tape
        self._key_id = key_id
        self._secret = secret
        self._plan = plan

    def app(self) -> ASGIApp:
        """The ASGI application."""

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await self._answer(Request(scope))
            await response(scope, receive, send)

        return answer

    async def _answer(self, request: Request) -> Response:
        request_id = secrets.token_hex(8).upper()
        try:
            self._admit(request)
            response = await run_in_threadpool(self._dispatch, request)
        except Denied as denied:
            response = _refusal(denied, request, request_id)
        except TapelabError as error:
            _log.error("%s: %s", request.scope["path"], error)
            response = _refusal(Denied("InternalError", str(error), 500), request, request_id)
        response.headers[TAPE_HEADER] = self._tape.identity
        response.headers["x-amz-request-id"] = request_id
        return response

    def _admit(self, request: Request) -> None:
        if sum(len(name) + len(value) for name, value in request.scope["headers"]) > MAX_HEADERS:
            message = "Your request header section exceeds the maximum allowed size."
            raise Denied("RequestHeaderSectionTooLarge", message, 400, MaxSizeAllowed=str(MAX_HEADERS))
        path = request.scope["raw_path"].decode("latin-1")
        try:
            unquote_to_bytes(path).decode()
        except UnicodeDecodeError as cause:
            raise Denied("InvalidURI", "Couldn't parse the specified URI.", 400) from cause
        query = request.scope["query_string"].decode("latin-1")
        signed = signature.Signed(request.method, path, query, dict(request.headers))
        signature.check(signed, self._key_id, self._secret, clock.now())

    def _dispatch(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise Denied("AccessDenied", "Access Denied")
        bucket, _, key = request.scope["path"].removeprefix("/").partition("/")
        if not bucket:
            raise Denied("AccessDenied", "Access Denied")
        if bucket != BUCKET:
            raise Denied("NoSuchBucket", "The specified bucket does not exist", 404, BucketName=bucket)
        if _ELSEWHERE & request.query_params.keys():
            message = "A header you provided implies functionality that is not implemented"
            raise Denied("NotImplemented", message, 501)
        if key:
            return self._object(request, key)
        if request.method == "HEAD":
            return Response(status_code=200, headers={"x-amz-bucket-region": REGION})
        if "location" in request.query_params:
            return _xml(xml.document("LocationConstraint", ""))
        asked = listing.Asked.of(request.query_params)
        return _xml(listing.page(BUCKET, self._keys(), asked, lambda key: self._stored(request, key)))

    def _keys(self) -> list[str]:
        return sorted(wire.file_key(product, day) for product in PRODUCTS for day in self._tape.days(product))

    def _place(self, key: str) -> tuple[str, date] | None:
        """The product and day of a key, if the tape has them."""
        place = wire.parse_key(key)
        return place if place is not None and place[1] in self._tape.days(place[0]) else None

    def _stored(self, request: Request, key: str) -> Stored | None:
        """The object of that key, as the fault script lets it look; None if the tape has none (any more)."""
        if (place := self._place(key)) is None:
            return None
        try:
            stored = Stored.of(key, self._tape.raw(*place), self._tape.modified(*place))
        except FileNotFoundError:
            return None
        return as_published(stored, request.scope, f"/{BUCKET}/{key}")

    def _object(self, request: Request, key: str) -> Response:
        if len(key.encode()) > MAX_KEY:
            raise Denied("KeyTooLongError", "Your key is too long", 400, MaxSizeAllowed=str(MAX_KEY))
        place = self._place(key)
        if place is not None and (place[0] not in self._plan.products or self._tape.kept_back(place[1])):
            raise Denied("AccessDenied", "Access Denied")
        if (stored := self._stored(request, key)) is None:
            raise Denied("NoSuchKey", "The specified key does not exist.", 404, Key=key)
        headers = {
            "ETag": stored.etag,
            "Last-Modified": format_datetime(stored.modified, usegmt=True),
            "Accept-Ranges": "bytes",
            "x-amz-meta-tapelab-tape": self._tape.identity,
        }
        if (status := objects.condition(request.headers, stored)) is not None:
            if status == 412:
                message = "At least one of the pre-conditions you specified did not hold"
                raise Denied("PreconditionFailed", message, 412)
            return Response(status_code=status, headers=headers)
        first, last = 0, stored.size - 1
        status = 200
        if (part := objects.part(request.headers.get("range", ""), stored.size)) is not None:
            first, last = part
            status = 206
            headers["Content-Range"] = f"bytes {first}-{last}/{stored.size}"
        headers["Content-Length"] = str(last - first + 1)
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers, media_type=GZIP)
        return StreamingResponse(stored.blocks(first, last + 1), status, headers, GZIP)


def _xml(body: str, status: int = 200) -> Response:
    return Response(body, status, media_type=xml.MEDIA_TYPE)


def _refusal(denied: Denied, request: Request, request_id: str) -> Response:
    if request.method == "HEAD":
        return Response(status_code=denied.status)
    resource = quote(request.scope["path"])
    body = xml.error(denied.code, denied.message, resource=resource, request_id=request_id, **denied.details)
    return _xml(body, denied.status)
