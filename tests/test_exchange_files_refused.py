"""What S3 refuses, it refuses in S3's own form, and the exchange goes on."""

from __future__ import annotations

import http.client
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import botocore.auth
import botocore.awsrequest
import botocore.credentials
import httpx
import pytest

from tapelab.exchange import Exchange, serve
from tapelab.exchange.files import signature
from tapelab.market import clock
from test_exchange_tape import folder_of

KEY = "us_stocks_sip/trades_v1/2024/04/2024-04-05.csv.gz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("tape"))


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Exchange]:
    with serve(flat_files=folder, speed=0) as exchange:
        yield exchange


@pytest.fixture
def exchange(running: Exchange, folder: Path) -> Iterator[Exchange]:
    """The exchange; whatever the test did, it is healthy afterwards."""
    yield running
    assert signed(running, f"/flatfiles/{KEY}") == (200, (folder / KEY).read_bytes())
    assert b"<KeyCount>6</KeyCount>" in signed(running, "/flatfiles?list-type=2")[1]


def signed(exchange: Exchange, target: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    """Send `target` exactly as written, signed by botocore."""
    request = botocore.awsrequest.AWSRequest(method, exchange.s3_endpoint + target, headers=headers)
    keys = botocore.credentials.Credentials(exchange.s3_access_key_id, exchange.s3_secret_access_key)
    botocore.auth.S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(exchange.s3_endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request(method, target, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def code_of(answer: tuple[int, bytes]) -> tuple[int, str]:
    """The status and S3's code of a refusal, whose XML has all that S3 says."""
    status, body = answer
    error = ElementTree.fromstring(body)
    assert error.tag == "Error"
    assert error.findtext("Message")
    assert error.findtext("Resource", "").startswith("/")
    assert len(error.findtext("RequestId", "")) == 16
    return status, error.findtext("Code", "")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/flatfiles/../../../../etc/passwd", 404, "NoSuchKey"),
        ("/flatfiles/us_stocks_sip/trades_v1/2024/04/..%2f..%2f..%2fsecret", 404, "NoSuchKey"),
        ("/flatfiles/us_stocks_sip/trades_v1/2024/04/%2e%2e/2024-04-05.csv.gz", 404, "NoSuchKey"),
        ("/flatfiles/us_stocks_sip/trades_v1/2024/05/2024-04-05.csv.gz", 404, "NoSuchKey"),
        ("/flatfiles/us_stocks_sip/trades_v1/2024/04/2024-04-31.csv.gz", 404, "NoSuchKey"),
        (f"/flatfiles/{KEY}/", 404, "NoSuchKey"),
        (f"/flatfiles/{KEY}%00", 404, "NoSuchKey"),
        (f"/flatfiles//{KEY}", 404, "NoSuchKey"),
        (f"/flatfiles/./{KEY}", 404, "NoSuchKey"),
        (f"/flatfiles/{KEY}%252f", 404, "NoSuchKey"),
        ("/flatfiles/%00%01", 404, "NoSuchKey"),
        ("/flatfiles/C:%5Cwindows", 404, "NoSuchKey"),
        ("/flatfiles/%ff%fe", 400, "InvalidURI"),
        ("/flatfiles/" + "a" * 2000, 400, "KeyTooLongError"),
        ("/FLATFILES/" + KEY, 404, "NoSuchBucket"),
        ("/..%2fflatfiles/" + KEY, 404, "NoSuchBucket"),
        ("/", 403, "AccessDenied"),
        ("//", 403, "AccessDenied"),
    ],
)
def test_path_tricks_find_nothing(exchange: Exchange, path: str, status: int, code: str) -> None:
    assert code_of(signed(exchange, path)) == (status, code)
    assert signed(exchange, path, "HEAD") == (status, b"")


def test_an_encoded_slash_is_a_slash_and_an_empty_key_is_the_bucket(exchange: Exchange, folder: Path) -> None:
    whole = (folder / KEY).read_bytes()
    for slash in ("%2f", "%2F"):
        assert signed(exchange, "/flatfiles/" + KEY.replace("/", slash)) == (200, whole)
    assert b"<KeyCount>6</KeyCount>" in signed(exchange, "/flatfiles/?list-type=2")[1]


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "FROB"])
def test_nothing_can_be_written(exchange: Exchange, method: str) -> None:
    assert code_of(signed(exchange, f"/flatfiles/{KEY}", method)) == (403, "AccessDenied")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("max-keys=many", "InvalidArgument"),
        ("max-keys=-1", "InvalidArgument"),
        ("max-keys=" + "9" * 5000, "InvalidArgument"),
        ("encoding-type=xml", "InvalidArgument"),
        ("list-type=2&continuation-token=%25", "InvalidArgument"),
        ("list-type=2&continuation-token=_____w%3D%3D", "InvalidArgument"),
        ("acl=", "NotImplemented"),
        ("versions", "NotImplemented"),
    ],
)
def test_strange_questions_about_the_bucket_are_refused(exchange: Exchange, query: str, code: str) -> None:
    assert code_of(signed(exchange, f"/flatfiles?{query}"))[1] == code


@pytest.mark.parametrize(
    "query", ["max-keys=0", "list-type=2&max-keys=0", "prefix=%00", "delimiter=%00&prefix=%3C"]
)
def test_strange_questions_that_make_sense_are_answered(exchange: Exchange, query: str) -> None:
    status, body = signed(exchange, f"/flatfiles?{query}")
    assert status == 200
    listing = ElementTree.fromstring(body)
    assert listing.findtext("{*}IsTruncated") == "false"
    assert len(listing.findall("{*}Contents")) == (6 if query.startswith("delimiter=%00&prefix=u") else 0)


@pytest.mark.parametrize(
    "asked",
    ["bytes=99999-", "bytes=-0", "bytes=99999-99999", f"bytes={'9' * 18}-"],
)
def test_a_range_outside_the_file_cannot_be_had(exchange: Exchange, asked: str) -> None:
    assert code_of(signed(exchange, f"/flatfiles/{KEY}", Range=asked)) == (416, "InvalidRange")


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=5-3",
        "bytes=0-1,5-6",
        "bytes=a-b",
        "lines=0-1",
        "bytes=" + "9" * 5000,
    ],
)
def test_a_range_that_s3_does_not_understand_gives_the_whole_file(
    exchange: Exchange, folder: Path, asked: str
) -> None:
    assert signed(exchange, f"/flatfiles/{KEY}", Range=asked) == (200, (folder / KEY).read_bytes())


@pytest.mark.parametrize("name", ["If-Modified-Since", "If-Unmodified-Since"])
@pytest.mark.parametrize("date", ["yesterday", "", "1 Jan " + "9" * 30 + " 00:00:00 GMT", "Mon, 32 Jan 2024"])
def test_dates_that_are_none_are_left_alone(exchange: Exchange, name: str, date: str) -> None:
    assert signed(exchange, f"/flatfiles/{KEY}", **{name: date})[0] == 200


def test_oversized_headers_are_refused(exchange: Exchange) -> None:
    answer = signed(exchange, f"/flatfiles/{KEY}", **{"x-amz-meta-much": "a" * 9000})
    assert code_of(answer) == (400, "RequestHeaderSectionTooLarge")
    with suppress(ConnectionError):  # the refusal is out before all of it is in
        assert signed(exchange, f"/flatfiles/{KEY}", **{"x-amz-meta-too-much": "a" * 2_000_000})[0] == 400


def test_a_clock_that_is_off_by_a_quarter_of_an_hour_is_told_so(
    exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    for minutes, good in ((-14, True), (14, True), (-16, False), (16, False)):
        then = now + timedelta(minutes=minutes)
        with monkeypatch.context() as patched:
            patched.setattr(botocore.auth, "get_current_datetime", lambda *_, then=then: then)
            status, body = signed(exchange, f"/flatfiles/{KEY}")
        assert (status == 200) == good
        if not good:
            assert code_of((status, body)) == (403, "RequestTimeTooSkewed")
            error = ElementTree.fromstring(body)
            assert error.findtext("MaxAllowedSkewMilliseconds") == "900000"
            assert error.findtext("RequestTime") == then.strftime("%Y%m%dT%H%M%SZ")
            told = datetime.fromisoformat(error.findtext("ServerTime", "")).replace(tzinfo=None)
            assert abs(told - now) < timedelta(minutes=1)


def test_unsigned_and_badly_signed_requests_are_refused(exchange: Exchange) -> None:
    url = f"{exchange.s3_endpoint}/flatfiles/{KEY}"
    stamp = "20240405T120000Z"
    credential = f"{exchange.s3_access_key_id}/20240405/us-east-1/s3/aws4_request"
    old = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature={'0' * 64}"
    today = clock.iso(clock.now())[:19].replace("-", "").replace(":", "") + "Z"
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "AccessDenied"),
        ({"authorization": "Bearer key"}, "AuthorizationHeaderMalformed"),
        ({"authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        ({"authorization": "AWS key:c2lnbmF0dXJl"}, "InvalidRequest"),
        ({"authorization": old}, "AccessDenied"),
        ({"authorization": old, "x-amz-date": "99999999T999999Z"}, "AccessDenied"),
        ({"authorization": old, "x-amz-date": stamp}, "RequestTimeTooSkewed"),
        ({"authorization": old, "x-amz-date": today}, "SignatureDoesNotMatch"),
        ({"authorization": old.replace("host", "host;x-none"), "x-amz-date": today}, "AccessDenied"),
        ({"authorization": old.replace("=host", "=range"), "x-amz-date": today}, "AccessDenied"),
        ({"authorization": old.replace("demo-", "other-"), "x-amz-date": today}, "InvalidAccessKeyId"),
    ]
    for headers, code in cases:
        answer = httpx.get(url, headers=headers)
        assert code_of((answer.status_code, answer.content))[1] == code, headers
        assert exchange.s3_secret_access_key not in answer.text
    for expires in ("soon", "-1", "9" * 5000):
        query = {"X-Amz-Signature": "é", "X-Amz-Algorithm": "AWS4-HMAC-SHA256", "X-Amz-Expires": expires}
        answer = httpx.get(url, params={**query, "X-Amz-Credential": credential, "X-Amz-Date": today})
        assert code_of((answer.status_code, answer.content))[0] == 400


@pytest.mark.judge
def test_the_signature_of_botocore_is_good_for_a_quarter_of_an_hour() -> None:
    request = botocore.awsrequest.AWSRequest(
        "GET", "http://127.0.0.1:9/flatfiles/a%20b?delimiter=%2F&prefix=x%2Fy"
    )
    keys = botocore.credentials.Credentials("id", "secret")
    botocore.auth.S3SigV4Auth(keys, "s3", "eu-west-3").add_auth(request)
    headers = {"host": "127.0.0.1:9", **{name.lower(): value for name, value in request.headers.items()}}
    asked = signature.Signed("GET", "/flatfiles/a%20b", "delimiter=%2F&prefix=x%2Fy", headers)
    now = clock.now()
    signature.check(asked, "id", "secret", now)
    for shift in (-16, 16):
        with pytest.raises(signature.Denied) as caught:
            signature.check(asked, "id", "secret", now + shift * clock.MINUTE)
        assert caught.value.code == "RequestTimeTooSkewed"
    changed = signature.Signed("GET", "/flatfiles/a%20c", asked.query, headers)
    with pytest.raises(signature.Denied) as caught:
        signature.check(changed, "id", "secret", now)
    assert caught.value.code == "SignatureDoesNotMatch"
