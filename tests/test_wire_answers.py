"""The vendor's refusals: written as the vendor writes them, and read as errors with a remedy."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path

import pytest

from tapelab.errors import (
    NotAuthorized,
    NotFound,
    NotInPlan,
    RateLimited,
    ServerTrouble,
    SourceError,
    TapelabError,
)
from tapelab.massive import wire
from tapelab.massive.wire.answers import Refusal

SAMPLES: list[tuple[str, int, Refusal, type[TapelabError]]] = [
    ("401-no-key.json", 401, "no_key", NotAuthorized),
    ("401-unknown-key.json", 401, "unknown_key", NotAuthorized),
    ("403-not-entitled.json", 403, "not_entitled", NotInPlan),
    ("403-timeframe.json", 403, "timeframe", NotInPlan),
    ("404-ticker.json", 404, "no_ticker", NotFound),
    ("404-unknown-route.txt", 404, "no_route", NotFound),
    ("429.json", 429, "rate_limited", RateLimited),
]
# What the message and the remedy of each say beside the vendor's words.
SAYS: dict[Refusal, tuple[str, str]] = {
    "no_key": ("No API key was sent for ", "MASSIVE_API_KEY"),
    "unknown_key": ("The API key was refused for ", "MASSIVE_API_KEY"),
    "not_entitled": ("This data is not in the plan: ", "plan that has this data"),
    "timeframe": ("These dates are not in the plan: ", "dates inside the plan's history"),
    "no_ticker": ("The vendor has nothing at ", "case matters"),
    "no_route": ("The vendor has nothing at ", "case matters"),
    "rate_limited": ("Too many requests for ", "TAPELAB_REST_CALLS_PER_MINUTE"),
}
MEANS = {401: NotAuthorized, 403: NotInPlan, 404: NotFound, 429: RateLimited}
PATH = "/v2/aggs/ticker/AAPL/range/1/day/2020-01-02/2020-01-03"


@pytest.mark.judge
@pytest.mark.parametrize(("sample", "status", "refusal", "error"), SAMPLES)
def test_a_refusal_is_written_as_the_vendor_writes_it(
    shared: Path, sample: str, status: int, refusal: Refusal, error: type[TapelabError]
) -> None:
    answer = wire.error_body(refusal, request_id="<32 hex>")
    assert answer.status == status
    assert answer.body.strip() == (shared / "payloads/errors" / sample).read_bytes().strip()
    assert answer.content_type.startswith("text/plain" if sample.endswith("txt") else "application/json")


@pytest.mark.judge
@pytest.mark.parametrize(("sample", "status", "refusal", "error"), SAMPLES)
def test_a_refusal_is_read_as_its_error_with_the_vendors_words_and_a_remedy(
    shared: Path, sample: str, status: int, refusal: Refusal, error: type[TapelabError]
) -> None:
    body = (shared / "payloads/errors" / sample).read_bytes()
    found = wire.decode_error(status, body, url_path=PATH)
    assert type(found) is error
    words = body.decode().split('":"')[-1].rstrip('"}\n')
    message, remedy = SAYS[refusal]
    assert found.message == f"{message}{PATH}. The vendor says: {words}"
    assert remedy in found.remedy
    number = "<32 hex>" if sample.endswith("json") else None
    assert found.facts == {"http_status": status, "path": PATH, "request_id": number}


@pytest.mark.judge
def test_every_sample_of_an_error_is_judged(shared: Path) -> None:
    assert {path.name for path in (shared / "payloads/errors").iterdir()} == {
        sample for sample, *_ in SAMPLES
    }


@pytest.mark.judge
@pytest.mark.parametrize("status", [status for status in HTTPStatus if status >= 400])
def test_every_refusal_that_http_knows_has_its_error(status: HTTPStatus) -> None:
    kind = MEANS.get(status, ServerTrouble if status >= 500 else SourceError)
    for body, quoted in (
        (b"", ""),
        (f"<html><h1>{status.phrase}</h1></html>".encode(), ""),
        (f"\n{status.phrase} \n".encode(), f" The vendor says: {status.phrase}"),
        (json.dumps({"error": status.phrase}).encode(), f" The vendor says: {status.phrase}"),
        (json.dumps({"message": f" {status.phrase} "}).encode(), f" The vendor says: {status.phrase}"),
        (json.dumps({"message": "long" * 1_000}).encode(), f" The vendor says: {'long' * 75}"),
        (b"long" * 1_000, f" The vendor says: {'long' * 75}"),
    ):
        found = wire.decode_error(status, body, url_path=f"{PATH}?apiKey=your_key&limit=5")
        assert type(found) is kind
        said = found.message.removesuffix(quoted)
        assert said.endswith((f"{PATH}.", f"{PATH} ({status.value})."))
        assert "your_key" not in f"{found} {found.facts}"
        assert found.facts == {"http_status": status, "path": PATH, "request_id": None}
        assert found.remedy


def test_dates_outside_the_plan_are_told_from_data_outside_the_plan() -> None:
    dates = wire.decode_error(403, wire.error_body("timeframe", request_id="a").body, url_path=PATH)
    data = wire.decode_error(403, wire.error_body("not_entitled", request_id="a").body, url_path=PATH)
    assert "dates" in dates.message
    assert "dates" in dates.remedy
    assert "dates" not in data.message


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (500, b"", ServerTrouble),
        (502, b"<html><body><h1>502 Bad Gateway</h1></body></html>", ServerTrouble),
        (503, b"\xff\xfe\x00", ServerTrouble),
        (400, wire.error_body("bad_request", request_id="a").body, SourceError),
        (418, b"[]", SourceError),
        (403, b"", NotInPlan),
        (429, b'{"error":null}', RateLimited),
        (401, b'{"error":{"text":"no"}}', NotAuthorized),
        (404, b"[" * 10_000, NotFound),
    ],
)
def test_any_body_gives_the_error_of_its_status(status: int, body: bytes, error: type[TapelabError]) -> None:
    found = wire.decode_error(status, body, url_path=PATH)
    assert type(found) is error
    assert found.remedy
    assert "<html" not in found.message
    assert len(found.message) < 500


def test_a_key_in_the_query_is_never_repeated() -> None:
    found = wire.decode_error(401, b"", url_path=f"{PATH}?apiKey=hunter2&limit=5")
    assert "hunter2" not in f"{found} {found.facts} {found!r}"


def test_other_words_can_be_put_into_a_refusal() -> None:
    answer = wire.error_body("bad_request", request_id="a", text="from is no date")
    assert answer.body == b'{"status":"ERROR","request_id":"a","error":"from is no date"}'
