"""The vendor's daily files: which there are, and each of them whole or not at all."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tapelab.budget import Budget
from tapelab.errors import (
    MalformedAnswer,
    NotAuthorized,
    NotFound,
    NotInPlan,
    ServerTrouble,
    SourceError,
    Unreachable,
)
from tapelab.massive import wire
from tapelab.settings import Settings

if TYPE_CHECKING:
    from obstore.store import S3Store

REGION = "us-east-1"  # the vendor takes any; signatures need one
CHUNK = 8 << 20  # bytes that go to the disk at a time
CONNECT_TIMEOUT = "10s"
STALL_TIMEOUT = "60s"  # between two pieces of a file
WHOLE_TIMEOUT = "6h"  # a day of options quotes is over 100 GB
TRIES = 3
LONGEST_TROUBLE = timedelta(seconds=60)

TAPE_METADATA = "tapelab-tape"  # how the stand-in exchange says what it is; the vendor never sends it

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BAD_KEYS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AuthorizationHeaderMalformed"}
_BAD_CLOCK = {"RequestTimeTooSkewed", "RequestExpired"}


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
    """The vendor's bucket of daily files. Listing is free; what is downloaded counts in `budget`."""

    def __init__(self, settings: Settings, budget: Budget) -> None:
        from obstore.store import S3Store

        self.tape = ""
        self._secrets = settings.need_s3()
        self._budget = budget
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

        name = wire.product_named(product).name
        found: dict[date, Listed] = {}
        for prefix in _prefixes(name, first, last):
            with self._understood(f"the list of {name}", name):
                for batch in obstore.list(self._store, prefix=prefix):
                    for meta in batch:
                        parsed = wire.parse_key(meta["path"])
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

        Raises `NotInPlan` (naming the product), `NotFound`, `NotAuthorized`, `Unreachable`, and
        `BudgetExceeded` before a byte of the file has come.
        """
        import obstore

        beside = to.with_name(f".{to.name}.part")
        try:
            with beside.open("wb") as file, self._understood(listed.key, listed.product, day=listed.day):
                answer = obstore.get(self._store, listed.key)
                self._refuse_another(listed, _etag(answer.meta["e_tag"]), answer.meta["size"])
                self.tape = dict(answer.attributes).get(TAPE_METADATA, "")
                self._budget.spend_bytes(listed.size)
                for chunk in answer.stream(min_chunk_size=CHUNK):
                    file.write(chunk)
            if (came := beside.stat().st_size) != listed.size:
                raise MalformedAnswer(
                    f"{listed.key} came with {came} of its {listed.size} bytes.",
                    remedy="Try again.",
                    key=listed.key,
                )
            beside.replace(to)
        finally:
            beside.unlink(missing_ok=True)
        return to

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


def _prefixes(product: str, first: date, last: date) -> list[str]:
    """The folders to list: one month if the days lie in one, else whole years of about 250 files."""
    if (first.year, first.month) == (last.year, last.month):
        return [f"{product}/{first:%Y}/{first:%m}"]
    return [f"{product}/{year:04}" for year in range(first.year, last.year + 1)]


def _etag(text: str | None) -> str:
    """An ETag without its quotes, which one door of a store gives and another leaves out."""
    return (text or "").removeprefix("W/").strip('"')
