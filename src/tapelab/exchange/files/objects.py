"""A flat file as it lies in the bucket: its bytes, ETag and date, and the part of it that a request gets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from tapelab.exchange.files.signature import Denied
from tapelab.market.clock import SECOND

BLOCK = 1 << 18  # bytes of a file read at a time

_RANGE = re.compile(r"\s*bytes\s*=\s*(?P<first>[0-9]{0,18})\s*-\s*(?P<last>[0-9]{0,18})\s*", re.ASCII)


@dataclass(frozen=True)
class Stored:
    """One object: `before` and then `content`, up to `size` bytes in all. `etag` is in its quotes."""

    key: str
    content: Path | bytes
    size: int
    etag: str
    modified: datetime
    before: bytes = b""

    @classmethod
    def of(cls, key: str, content: Path | bytes, modified: int) -> Stored:
        """The object of these bytes or this file; `modified` in ns UTC. `FileNotFoundError` if it is gone."""
        when = datetime.fromtimestamp(modified // SECOND, UTC)
        if isinstance(content, bytes):
            return cls(key, content, len(content), f'"{digest(content)}"', when)
        stat = content.stat()
        # As for objects uploaded in parts: no MD5 of the content, so 10 GB need not be read to list a file.
        told_apart = digest(f"{key} {stat.st_size} {stat.st_mtime_ns}".encode())
        return cls(key, content, stat.st_size, f'"{told_apart}-1"', when)

    def blocks(self, first: int, stop: int) -> Iterator[bytes]:
        """The bytes from `first` to before `stop`, piece by piece."""
        if first < len(self.before):
            yield self.before[first:stop]
        first, stop = max(first - len(self.before), 0), stop - len(self.before)
        if isinstance(self.content, bytes):
            for begin in range(first, stop, BLOCK):
                yield self.content[begin : min(begin + BLOCK, stop)]
            return
        with self.content.open("rb") as file:
            file.seek(first)
            while first < stop and (block := file.read(min(BLOCK, stop - first))):
                yield block
                first += len(block)


def part(asked: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a `Range` header; None where it is none that S3 understands, and all is sent.

    S3 gives one range a request. Raises `Denied` (416) for one that lies outside.
    """
    match = _RANGE.fullmatch(asked)
    if match is None or not (match["first"] or match["last"]):
        return None
    if not match["first"]:
        first, last = max(0, size - int(match["last"])), size - 1
    else:
        first, last = int(match["first"]), int(match["last"] or size - 1)
        if match["last"] and last < first:
            return None
    if first >= size:
        raise Denied(
            "InvalidRange",
            "The requested range is not satisfiable",
            416,
            RangeRequested=asked.strip(),
            ActualObjectSize=str(size),
        )
    return first, min(last, size - 1)


def condition(headers: Mapping[str, str], stored: Stored) -> int | None:
    """The status (304, 412) by which a conditional request ends early; None where it goes on."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    if match is not None and not _names(match, stored.etag):
        return 412
    if match is None and (unless := _date(headers.get("if-unmodified-since"))) and stored.modified > unless:
        return 412
    if none_match is not None:
        return 304 if _names(none_match, stored.etag) else None
    if (since := _date(headers.get("if-modified-since"))) and stored.modified <= since:
        return 304
    return None


def digest(content: bytes) -> str:
    """The MD5 that S3 uses to tell contents apart."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _names(tags: str, etag: str) -> bool:
    """Whether a list of ETags names this one; S3 takes them without quotes too."""
    known = {tag.strip().removeprefix("W/").strip('"') for tag in tags.split(",")}
    return "*" in known or etag.strip('"') in known


def _date(text: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
