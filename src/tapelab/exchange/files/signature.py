"""AWS Signature Version 4 as S3 checks it: in the header or presigned in the query. Pure.

Source: Amazon's "Authenticating Requests (AWS Signature Version 4)".
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, quote_from_bytes, unquote, unquote_to_bytes

from tapelab.market import clock
from tapelab.market.clock import MILLISECOND, MINUTE, SECOND

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_SKEW = 15 * MINUTE  # between the client's clock and ours
MAX_EXPIRES = 7 * 24 * 3600  # seconds a presigned address may live
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()

_HEADER = re.compile(
    rf"{ALGORITHM}\s+Credential=(?P<credential>[^,\s]+),\s*SignedHeaders=(?P<headers>[^,\s]+),"
    r"\s*Signature=(?P<signature>[0-9a-f]{64})"
)
_SCOPE = re.compile(r"(?P<key>[^/]+)/(?P<date>\d{8})/(?P<region>[\w-]+)/s3/aws4_request")
_STAMP = re.compile(r"\d{8}T\d{6}Z", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)
_UNRESERVED = "-_.~"


class Denied(Exception):
    """The request is refused with one of S3's error codes; `details` are further elements of its answer."""

    def __init__(self, code: str, message: str, status: int = 403, **details: str) -> None:
        super().__init__(code)
        self.code = code
        self.message = message
        self.status = status
        self.details = details


@dataclass(frozen=True)
class Signed:
    """What of a request is signed: `path` and `query` as they were sent, header names in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class _Claim:
    key: str
    date: str
    region: str
    stamp: str
    names: list[str]
    signature: str
    payload: str
    pairs: list[tuple[str, str]]


def check(request: Signed, key_id: str, secret: str, now: int) -> None:
    """Raise `Denied` unless `request` is signed with that key at about `now` (ns UTC)."""
    pairs = _pairs(request.query)
    presigned = dict(pairs)
    if "X-Amz-Signature" in presigned:
        claim = _from_query(pairs, presigned, now)
    elif "authorization" in request.headers:
        claim = _from_header(request, pairs, now)
    else:
        raise Denied("AccessDenied", "Access Denied")
    if claim.key != key_id:
        message = "The AWS Access Key Id you provided does not exist in our records."
        raise Denied("InvalidAccessKeyId", message)
    if "host" not in claim.names or not all(name in request.headers for name in claim.names):
        raise Denied("AccessDenied", "There were headers present in the request which were not signed")
    good = {_signature(request, path, claim, secret) for path in _spellings(request.path)}
    if not claim.stamp.startswith(claim.date) or claim.signature not in good:
        message = (
            "The request signature we calculated does not match the signature you provided. "
            "Check your key and signing method."
        )
        raise Denied("SignatureDoesNotMatch", message)


def _from_header(request: Signed, pairs: list[tuple[str, str]], now: int) -> _Claim:
    given = request.headers["authorization"].strip()
    if given.startswith("AWS "):
        message = f"The authorization mechanism you have provided is not supported. Please use {ALGORITHM}."
        raise Denied("InvalidRequest", message, 400)
    match = _HEADER.fullmatch(given)
    scope = match and _SCOPE.fullmatch(match["credential"])
    if match is None or scope is None:
        message = "The authorization header is malformed."
        raise Denied("AuthorizationHeaderMalformed", message, 400)
    stamp = request.headers.get("x-amz-date", "")
    if abs(_instant(stamp) - now) > MAX_SKEW:
        raise Denied(
            "RequestTimeTooSkewed",
            "The difference between the request time and the current time is too large.",
            RequestTime=stamp,
            ServerTime=clock.iso(now).replace("+00:00", "Z"),
            MaxAllowedSkewMilliseconds=str(MAX_SKEW // MILLISECOND),
        )
    payload = request.headers.get("x-amz-content-sha256", EMPTY)
    names = match["headers"].split(";")
    return _Claim(
        scope["key"], scope["date"], scope["region"], stamp, names, match["signature"], payload, pairs
    )


def _from_query(pairs: list[tuple[str, str]], presigned: Mapping[str, str], now: int) -> _Claim:
    scope = _SCOPE.fullmatch(presigned.get("X-Amz-Credential", ""))
    expires = presigned.get("X-Amz-Expires", "")
    if scope is None or presigned.get("X-Amz-Algorithm") != ALGORITHM or not _SECONDS.fullmatch(expires):
        raise Denied("AuthorizationQueryParametersError", "The query parameters are malformed.", 400)
    if int(expires) > MAX_EXPIRES:
        message = f"X-Amz-Expires must be less than a week (in seconds): less than {MAX_EXPIRES}"
        raise Denied("AuthorizationQueryParametersError", message, 400)
    stamp = presigned.get("X-Amz-Date", "")
    age = now - _instant(stamp)
    if age < -MAX_SKEW or age > int(expires) * SECOND:
        raise Denied("AccessDenied", "Request has expired")
    unsigned = [pair for pair in pairs if pair[0] != "X-Amz-Signature"]
    names = presigned.get("X-Amz-SignedHeaders", "").split(";")
    return _Claim(
        scope["key"],
        scope["date"],
        scope["region"],
        stamp,
        names,
        presigned["X-Amz-Signature"],
        UNSIGNED,
        unsigned,
    )


def _signature(request: Signed, path: str, claim: _Claim, secret: str) -> str:
    canonical = "\n".join(
        [
            request.method,
            path,
            "&".join(
                f"{name}={value}"
                for name, value in sorted((_encoded(n), _encoded(v)) for n, v in claim.pairs)
            ),
            *(f"{name}:{' '.join(request.headers[name].split())}" for name in claim.names),
            "",
            ";".join(claim.names),
            claim.payload,
        ]
    )
    scope = f"{claim.date}/{claim.region}/s3/aws4_request"
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join([ALGORITHM, claim.stamp, scope, digest])
    key = f"AWS4{secret}".encode()
    for part in (claim.date, claim.region, "s3", "aws4_request", text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()


def _spellings(path: str) -> set[str]:
    """The path as it was sent, which is what clients sign, and as Amazon writes it, should one on the way
    have rewritten it."""
    return {path, quote_from_bytes(unquote_to_bytes(path), safe=f"/{_UNRESERVED}")}


def _pairs(query: str) -> list[tuple[str, str]]:
    parts = (part.partition("=") for part in query.split("&") if part)
    return [(unquote(name), unquote(value)) for name, _, value in parts]


def _encoded(text: str) -> str:
    return quote(text, safe=_UNRESERVED)


def _instant(stamp: str) -> int:
    if not _STAMP.fullmatch(stamp):
        raise Denied("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    try:
        moment = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as cause:
        raise Denied("AccessDenied", "AWS authentication requires a valid Date") from cause
    return round(moment.timestamp()) * SECOND
