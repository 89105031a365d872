"""What lies in the bucket, page by page: S3's `ListObjects` and `ListObjectsV2`. Pure."""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from urllib.parse import quote

from tapelab.exchange.files import xml
from tapelab.exchange.files.objects import Stored
from tapelab.exchange.files.signature import Denied
from tapelab.exchange.files.xml import tag

MAX_KEYS = 1000


@dataclass(frozen=True)
class Asked:
    """A question for keys: those below `prefix`, after `after`, folded at `delimiter`, `most` at a time."""

    second: bool
    prefix: str
    delimiter: str
    most: int
    after: str
    token: str
    url: bool
    owner: bool

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Asked:
        """Read from a request's parameters; raises `Denied` for those without sense."""
        second = query.get("list-type") == "2"
        token = query.get("continuation-token", "") if second else ""
        after = query.get("start-after", "") if second else query.get("marker", "")
        try:
            most = int(query.get("max-keys", MAX_KEYS))
        except ValueError as cause:
            raise _invalid("max-keys", "Provided max-keys not an integer or within integer range") from cause
        if most < 0:
            raise _invalid("maxKeys", "Argument maxKeys must be an integer between 0 and 2147483647")
        if query.get("encoding-type", "url") != "url":
            raise _invalid("encoding-type", "Invalid Encoding Method specified in Request")
        return cls(
            second=second,
            prefix=query.get("prefix", ""),
            delimiter=query.get("delimiter", ""),
            most=min(most, MAX_KEYS),
            after=_opened(token) if token else after,
            token=token,
            url="encoding-type" in query,
            owner=query.get("fetch-owner") == "true",
        )

    def written(self, plain: str) -> str:
        return quote(plain, safe="/") if self.url else xml.text(plain)


def page(bucket: str, keys: Sequence[str], asked: Asked, describe: Callable[[str], Stored | None]) -> str:
    """One page of the listing of sorted `keys`, as XML; a key without description is gone, and left out."""
    found = entries(keys, asked.prefix, asked.delimiter, asked.after)
    rows = list(islice(found, asked.most))
    more = asked.most > 0 and next(found, None) is not None
    last = rows[-1][0] if rows else ""
    said = {"Name": xml.text(bucket), "Prefix": asked.written(asked.prefix)}
    if asked.second:
        said |= {"KeyCount": str(len(rows))}
        said |= {"ContinuationToken": xml.text(asked.token)} if asked.token else {}
        said |= {"StartAfter": asked.written(asked.after)} if asked.after and not asked.token else {}
        said |= {"NextContinuationToken": _closed(last)} if more else {}
    else:
        said |= {"Marker": asked.written(asked.after)}
        said |= {"NextMarker": asked.written(last)} if more else {}
    said |= {"MaxKeys": str(asked.most)}
    said |= {"Delimiter": asked.written(asked.delimiter)} if asked.delimiter else {}
    said |= {"EncodingType": "url"} if asked.url else {}
    said |= {"IsTruncated": str(more).lower()}
    parts = [tag(name, inside) for name, inside in said.items()]
    for row, folder in rows:
        if folder:
            parts.append(tag("CommonPrefixes", tag("Prefix", asked.written(row))))
        elif (stored := describe(row)) is not None:
            parts.append(_contents(stored, asked))
    return xml.document("ListBucketResult", "".join(parts))


def entries(keys: Sequence[str], prefix: str, delimiter: str, after: str) -> Iterator[tuple[str, bool]]:
    """Keys and common prefixes in order, from after `after` on, and whether each is a common prefix."""
    at = max(bisect_left(keys, prefix), bisect_right(keys, after))
    while at < len(keys) and keys[at].startswith(prefix):
        cut = keys[at].find(delimiter, len(prefix)) if delimiter else -1
        if cut < 0:
            yield keys[at], False
            at += 1
            continue
        common = keys[at][: cut + len(delimiter)]
        if common > after:
            yield common, True
        while at < len(keys) and keys[at].startswith(common):
            at += 1


def _contents(stored: Stored, asked: Asked) -> str:
    owner = tag("Owner", tag("ID", "tapelab") + tag("DisplayName", "tapelab"))
    return tag(
        "Contents",
        tag("Key", asked.written(stored.key))
        + tag("LastModified", stored.modified.strftime("%Y-%m-%dT%H:%M:%S.000Z"))
        + tag("ETag", xml.text(stored.etag))
        + tag("Size", str(stored.size))
        + (owner if asked.owner else "")
        + tag("StorageClass", "STANDARD")
        + tag("Type", "Normal"),  # not Amazon's; the vendor's back end says it
    )


def _closed(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _opened(token: str) -> str:
    try:
        return base64.b64decode(token, altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error) as cause:
        raise _invalid("continuation-token", "The continuation token provided is incorrect") from cause


def _invalid(name: str, message: str) -> Denied:
    return Denied("InvalidArgument", message, 400, ArgumentName=name)
