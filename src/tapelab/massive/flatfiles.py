"""The vendor's daily files: which there are, and each of them whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tapelab.budget import Budget
from tapelab.errors import (
    BudgetExceeded,
    MalformedAnswer,
    NotAuthorized,
    NotFound,
    NotInPlan,
    ServerTrouble,
    SourceError,
    Unreachable,
)
from tapelab.massive.wire.catalogue import kind_named, read_key
from tapelab.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Store
    from typing_extensions import Buffer

REGION = "us-east-1"  # the vendor takes any; signatures need one
CHUNK = 8 << 20  # bytes that go to the disk at a time
RANGE = 32 << 20  # bytes of a large file in one request; smaller files come in one
RANGES = 8  # requests for one large file at a time: one stream gives about 1 MB/s, eight six to seven
CONNECT_TIMEOUT = "10s"
STALL_TIMEOUT = "60s"  # between two pieces of a file
WHOLE_TIMEOUT = "6h"  # a day of options quotes is over 100 GB
TRIES = 3
LONGEST_TROUBLE = timedelta(seconds=60)

TAPE_METADATA = "tapelab-tape"  # how the stand-in exchange says what it is; the vendor never sends it

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_WHOLE_INSTEAD = "non-partial response"
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
_BAD_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}


class _NoRanges(Exception):
    """The server gives whole files only."""


@dataclass(frozen=True)
class Listed:
    """One daily file as the vendor lists it: size in bytes, `modified` in ns UTC."""

    product: str
    day: date
    key: str
    etag: str
    size: int
    modified: int


class FlatFiles:
    """The vendor's bucket of daily files, of every market. Listing is free; downloads count in `budget`.

    May be used from several threads; `came` is told of the bytes as they arrive, from whichever thread.
    """

    def __init__(
        self, settings: Settings, budget: Budget, *, came: Callable[[int], None] = lambda count: None
    ) -> None:
        from obstore.store import S3Store

        self.tape = ""
        self._secrets = settings.need_s3()
        self._purse = _Purse(budget)
        self._came = came
        self._bucket = settings.s3_bucket
        self._host = urlsplit(settings.s3_endpoint).netloc
        key_id, secret = self._secrets
        self._store: S3Store = S3Store(
            settings.s3_bucket,
            endpoint=settings.s3_endpoint,
            access_key_id=key_id,
            secret_access_key=secret,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={
                "allow_http": settings.s3_endpoint.startswith("http://"),
                "connect_timeout": CONNECT_TIMEOUT,
                "read_timeout": STALL_TIMEOUT,
                "timeout": WHOLE_TIMEOUT,
            },
            retry_config={"max_retries": TRIES - 1, "retry_timeout": LONGEST_TROUBLE},
        )

    def list(self, product: str, first: date, last: date) -> dict[date, Listed]:
        """The files of a product from `first` to `last`, both included, by day.

        A day that is not in it has no file (yet). Raises `UnknownName` for a product that is not known.
        """
        import obstore

        name = kind_named(product).name
        found: dict[date, Listed] = {}
        for prefix in _prefixes(name, first, last):
            with self._understood(f"the list of {name}", name):
                for batch in obstore.list(self._store, prefix=prefix):
                    for meta in batch:
                        parsed = read_key(meta["path"])
                        if parsed is None or parsed[0] != name or not first <= parsed[1] <= last:
                            continue
                        found[parsed[1]] = Listed(
                            product=name,
                            day=parsed[1],
                            key=meta["path"],
                            etag=_etag(meta["e_tag"]),
                            size=meta["size"],
                            modified=round(meta["last_modified"].timestamp() * 1e6) * 1_000,
                        )
        return dict(sorted(found.items()))

    def download(self, listed: Listed, to: Path) -> Path:
        """One file, exactly the one that was listed, into `to`; a download that breaks leaves nothing.

        A large file comes in several ranges at once, through a bounded piece of memory. Raises `NotInPlan`
        (naming the product), `NotFound`, `NotAuthorized`, `Unreachable`, and `BudgetExceeded` before a byte
        of the file has come.
        """
        beside = to.with_name(f".{to.name}.part")
        try:
            with beside.open("wb") as file:
                self._fill(listed, file.fileno())
            beside.replace(to)
        finally:
            beside.unlink(missing_ok=True)
        return to

    def _fill(self, listed: Listed, file: int) -> None:
        """The first range alone, so that a refusal costs one request and no budget; then the rest at once."""
        starts = range(0, listed.size, RANGE)
        if len(starts) <= 1:
            self._fetch(listed, file, first=True)
            return
        try:
            self._fetch(listed, file, (0, RANGE), first=True)
        except _NoRanges:
            self._fetch(listed, file, first=True)
            return
        with ThreadPoolExecutor(RANGES) as pool:
            spans = [(start, min(start + RANGE, listed.size)) for start in starts[1:]]
            running = [pool.submit(self._fetch, listed, file, span) for span in spans]
            try:
                for done in as_completed(running):
                    done.result()
            finally:
                for waiting in running:
                    waiting.cancel()

    def _fetch(
        self, listed: Listed, file: int, span: tuple[int, int] | None = None, *, first: bool = False
    ) -> None:
        """The file, or a span of it, to its place in `file`; the first request counts the whole file."""
        import obstore

        at, end = span or (0, listed.size)
        with self._understood(listed.key, listed.product, day=listed.day):
            answer = obstore.get(self._store, listed.key, options={"range": span} if span else None)
            self._refuse_another(listed, _etag(answer.meta["e_tag"]), answer.meta["size"])
            if first:
                self.tape = dict(answer.attributes).get(TAPE_METADATA, "")
                self._purse.spend(listed.size)
            for chunk in answer.stream(min_chunk_size=CHUNK):
                _write(file, chunk, at)
                at += len(chunk)
                self._came(len(chunk))
        if at != end:
            raise MalformedAnswer(
                f"{listed.key} came {end - at} bytes short.", remedy="Try again.", key=listed.key
            )

    def _refuse_another(self, listed: Listed, etag: str, size: int) -> None:
        if (etag, size) != (listed.etag, listed.size):
            raise SourceError(
                f"The vendor replaced {listed.key} while it was being fetched.",
                remedy="Try again.",
                key=listed.key,
            )

    @contextlib.contextmanager
    def _understood(self, what: str, product: str, day: date | None = None) -> Iterator[None]:
        """Turn what the store says into what it means."""
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError as cause:
            raise NotFound(
                f"There is no file of {product} for {day} (yet).",
                remedy="A day's file appears about 11:00 New York on the day after; closed days have none.",
                product=product,
                day=str(day),
            ) from self._shown(cause)
        except BaseError as cause:
            if _WHOLE_INSTEAD in str(cause):
                raise _NoRanges from cause
            raise self._meaning(str(cause), what, product, day) from self._shown(cause)

    def _shown(self, cause: Exception) -> Exception | None:
        """A store may quote the key in its answer; then its words are not passed on."""
        return None if any(secret in str(cause) for secret in self._secrets) else cause

    def _meaning(self, said: str, what: str, product: str, day: date | None) -> SourceError:
        status = next(iter(_STATUS.findall(said)), "")
        code = next(iter(_CODE.findall(said)), "")
        facts = {"host": self._host, "product": product, "http_status": status, "code": code}
        if status == "403" and code in _BAD_CLOCK:
            remedy = "Set this computer's clock; signatures carry the time."
            return NotAuthorized(f"{self._host} refused {what}: the clocks differ.", remedy=remedy, **facts)
        if status == "401" or (status in ("400", "403") and code in _BAD_KEYS):
            remedy = (
                "Check MASSIVE_S3_ACCESS_KEY_ID and MASSIVE_S3_SECRET_ACCESS_KEY; they are not the API key."
            )
            return NotAuthorized(f"{self._host} refused the keys for flat files.", remedy=remedy, **facts)
        if status == "403" and day is not None:
            return NotInPlan(
                f"The file of {product} for {day} is not in your plan.",
                remedy="Use REST, other dates, or a plan that has it.",
                day=str(day),
                **facts,
            )
        if status == "403":
            remedy = "Check the keys for flat files; `tapelab doctor` shows what is set."
            return NotAuthorized(f"{self._host} refused {what}.", remedy=remedy, **facts)
        if status == "404":
            remedy = "Check MASSIVE_S3_BUCKET and MASSIVE_S3_ENDPOINT."
            return NotFound(f"{self._host} has no bucket {self._bucket!r}.", remedy=remedy, **facts)
        if status.startswith("5"):
            remedy = "Try again later, or use REST."
            return ServerTrouble(f"{self._host} failed ({status}) at {what}.", remedy=remedy, **facts)
        if status:
            remedy = "Check MASSIVE_S3_ENDPOINT."
            return SourceError(f"{self._host} refused {what} ({status}).", remedy=remedy, **facts)
        return Unreachable(
            f"{self._host} cannot be reached, or the connection broke, at {what}.",
            remedy="Check the network and MASSIVE_S3_ENDPOINT.",
            **facts,
        )


class _Purse:
    """Pays for the files of many threads: what gathers while one writes the ledger is paid in one go."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._turn = threading.Lock()
        self._waiting: list[tuple[int, Future[None]]] = []

    def spend(self, count: int) -> None:
        """Exactly what `Budget.spend_bytes` does."""
        paid: Future[None] = Future()
        self._waiting.append((count, paid))
        with self._turn:
            if not paid.done():
                count = len(self._waiting)
                together = self._waiting[:count]
                del self._waiting[:count]
                self._pay(together)
        paid.result()

    def _pay(self, together: list[tuple[int, Future[None]]]) -> None:
        try:
            self._budget.spend_bytes(sum(count for count, _ in together))
        except BudgetExceeded as error:
            if len(together) == 1:
                together[0][1].set_exception(error)
                return
            for one in together:  # some of them may still fit
                self._pay([one])
        except BaseException as error:  # whoever waits must hear of it
            for _, paid in together:
                paid.set_exception(error)
        else:
            for _, paid in together:
                paid.set_result(None)


def _prefixes(product: str, first: date, last: date) -> list[str]:
    """The folders to list: one month if the days lie in one, else whole years of about 250 files."""
    if (first.year, first.month) == (last.year, last.month):
        return [f"{product}/{first:%Y}/{first:%m}"]
    return [f"{product}/{year:04}" for year in range(first.year, last.year + 1)]


def _write(file: int, chunk: Buffer, at: int) -> None:
    """All of a chunk to its place: the system may take less than it is given."""
    left = memoryview(chunk)
    while left:
        count = os.pwrite(file, left, at)
        left, at = left[count:], at + count


def _etag(text: str | None) -> str:
    """An ETag without its quotes, which one door of a store gives and another leaves out."""
    return (text or "").removeprefix("W/").strip('"')
