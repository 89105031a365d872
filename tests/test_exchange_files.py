"""The exchange's flat files, judged by boto3 and obstore."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import botocore.awsrequest
import botocore.config
import botocore.credentials
import botocore.exceptions
import httpx
import obstore
import pytest
from obstore.store import S3Store

from tapelab.exchange import Exchange, files, serve, signature
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, PRODUCTS, QUOTES, TRADES
from tapelab.market import clock
from tapelab.massive import wire
from test_exchange_tape import DAY, folder_of

KEY = "us_stocks_sip/trades_v1/2024/04/2024-04-05.csv.gz"
SPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("tape"))


@pytest.fixture(scope="module")
def exchange(folder: Path) -> Iterator[Exchange]:
    with serve(flat_files=folder, speed=0) as exchange:
        yield exchange


@pytest.fixture
def s3(exchange: Exchange) -> Iterator[Any]:
    client = boto_client(exchange)
    yield client
    client.close()


def boto_client(exchange: Exchange, **credentials: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=exchange.s3_endpoint,
        aws_access_key_id=credentials.get("key", exchange.s3_access_key_id),
        aws_secret_access_key=credentials.get("secret", exchange.s3_secret_access_key),
        region_name="us-east-1",
        config=botocore.config.Config(signature_version="s3v4", retries={"max_attempts": 1}),
    )


def store(exchange: Exchange, **changes: str) -> S3Store:
    options = {
        "endpoint": exchange.s3_endpoint,
        "access_key_id": exchange.s3_access_key_id,
        "secret_access_key": exchange.s3_secret_access_key,
        "region": "us-east-1",
    }
    return S3Store(
        exchange.s3_bucket,
        **{**options, **changes},  # type: ignore[arg-type]
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
        retry_config={"max_retries": 0},
    )


@pytest.mark.judge
def test_boto3_gets_a_file_byte_for_byte(s3: Any, folder: Path, exchange: Exchange) -> None:
    answer = s3.get_object(Bucket="flatfiles", Key=KEY)
    with answer["Body"] as body:
        assert body.read() == (folder / KEY).read_bytes()
    head = s3.head_object(Bucket="flatfiles", Key=KEY)
    assert head["ContentLength"] == (folder / KEY).stat().st_size
    assert head["ETag"] == answer["ETag"]
    assert head["LastModified"].timestamp() == int((folder / KEY).stat().st_mtime)
    assert head["Metadata"] == {"tapelab-tape": exchange.tape.identity}
    assert "ContentEncoding" not in head
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-tapelab-tape"] == exchange.tape.identity


@pytest.mark.judge
@pytest.mark.parametrize(
    ("asked", "first", "stop"), [("bytes=5-9", 5, 10), ("bytes=20-", 20, None), ("bytes=-7", -7, None)]
)
def test_boto3_gets_a_part_of_a_file(s3: Any, folder: Path, asked: str, first: int, stop: int | None) -> None:
    whole = (folder / KEY).read_bytes()
    answer = s3.get_object(Bucket="flatfiles", Key=KEY, Range=asked)
    with answer["Body"] as body:
        assert body.read() == whole[first:stop]
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert answer["ContentRange"].endswith(f"/{len(whole)}")


@pytest.mark.judge
def test_boto3_downloads_to_a_file(s3: Any, folder: Path, tmp_path: Path) -> None:
    s3.download_file("flatfiles", KEY, str(tmp_path / "trades.csv.gz"))
    assert (tmp_path / "trades.csv.gz").read_bytes() == (folder / KEY).read_bytes()


@pytest.mark.judge
@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("size", [1, 2, 1000])
def test_boto3_lists_every_key_once_page_by_page(s3: Any, folder: Path, operation: str, size: int) -> None:
    pages = s3.get_paginator(operation).paginate(Bucket="flatfiles", PaginationConfig={"PageSize": size})
    listed = [row for page in pages for row in page.get("Contents", [])]
    assert [row["Key"] for row in listed] == sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*.csv.gz")
    )
    assert all(row["Size"] == (folder / row["Key"]).stat().st_size for row in listed)


@pytest.mark.judge
@pytest.mark.parametrize("operation", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_boto3_browses_folders(s3: Any, operation: str, size: int) -> None:
    def below(prefix: str) -> list[str]:
        pages = s3.get_paginator(operation).paginate(
            Bucket="flatfiles", Prefix=prefix, Delimiter="/", PaginationConfig={"PageSize": size}
        )
        return [row["Prefix"] for page in pages for row in page.get("CommonPrefixes", [])]

    assert below("") == ["us_stocks_sip/"]
    assert below("us_stocks_sip/") == [f"{product}/" for product in sorted(PRODUCTS)]
    assert below("us_stocks_sip/day_aggs_v1/2024/04/") == []
    assert below("nothing/") == []


@pytest.mark.judge
def test_boto3_is_told_what_is_wrong(exchange: Exchange, s3: Any) -> None:
    def code(client: Any, key: str = KEY) -> tuple[str, int]:
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            client.get_object(Bucket="flatfiles", Key=key)
        answer = caught.value.response
        return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]

    assert code(s3, KEY.replace("05.csv", "06.csv")) == ("NoSuchKey", 404)
    assert code(s3, "us_stocks_sip/../../etc/passwd") == ("NoSuchKey", 404)
    for wrong, expected in (
        ({"secret": "no"}, "SignatureDoesNotMatch"),
        ({"key": "no"}, "InvalidAccessKeyId"),
    ):
        client = boto_client(exchange, **wrong)
        assert code(client) == (expected, 403)
        client.close()
    with pytest.raises(botocore.exceptions.ClientError, match="404"):
        s3.head_object(Bucket="flatfiles", Key="nothing")
    with pytest.raises(botocore.exceptions.ClientError, match="NoSuchBucket"):
        s3.list_objects_v2(Bucket="other")
    with pytest.raises(botocore.exceptions.ClientError, match="InvalidRange"):
        s3.get_object(Bucket="flatfiles", Key=KEY, Range="bytes=99999-")
    with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
        s3.put_object(Bucket="flatfiles", Key=KEY, Body=b"mine")


@pytest.mark.judge
def test_boto3_asks_only_for_what_changed(s3: Any) -> None:
    etag = s3.head_object(Bucket="flatfiles", Key=KEY)["ETag"]
    with pytest.raises(botocore.exceptions.ClientError, match="304"):
        s3.get_object(Bucket="flatfiles", Key=KEY, IfNoneMatch=etag)
    with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
        s3.get_object(Bucket="flatfiles", Key=KEY, IfMatch='"other"')
    s3.get_object(Bucket="flatfiles", Key=KEY, IfMatch=etag)["Body"].close()


@pytest.mark.judge
def test_a_presigned_address_works_until_it_expires(s3: Any, folder: Path) -> None:
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "flatfiles", "Key": KEY}, ExpiresIn=600)
    assert httpx.get(url).content == (folder / KEY).read_bytes()
    assert httpx.get(url.replace("X-Amz-Expires=600", "X-Amz-Expires=60000")).status_code == 403
    late = s3.generate_presigned_url("get_object", Params={"Bucket": "flatfiles", "Key": KEY}, ExpiresIn=0)
    assert "expired" in httpx.get(late.replace("Date=2", "Date=1")).text


@pytest.mark.judge
def test_obstore_gets_lists_and_heads(exchange: Exchange, folder: Path) -> None:
    found = store(exchange)
    whole = (folder / KEY).read_bytes()
    assert bytes(obstore.get(found, KEY).bytes()) == whole
    assert bytes(obstore.get_range(found, KEY, start=3, end=30)) == whole[3:30]
    assert bytes(obstore.get_range(found, KEY, start=0, end=len(whole))) == whole
    head = obstore.head(found, KEY)
    assert head["size"] == len(whole)
    listed = [row for batch in obstore.list(found, "us_stocks_sip/day_aggs_v1") for row in batch]
    assert [row["path"] for row in listed] == [
        wire.file_key(DAY_BARS, date(2024, 4, day)) for day in (3, 4, 5)
    ]
    assert head["e_tag"] == obstore.get(found, KEY).meta["e_tag"]
    prefixes = obstore.list_with_delimiter(found, "us_stocks_sip")["common_prefixes"]
    assert list(prefixes) == sorted(PRODUCTS)


@pytest.mark.judge
def test_obstore_is_told_what_is_wrong(exchange: Exchange) -> None:
    with pytest.raises(FileNotFoundError):
        obstore.get(store(exchange), "us_stocks_sip/trades_v1/2024/04/2024-04-06.csv.gz")
    with pytest.raises(obstore.exceptions.BaseError, match=r"SignatureDoesNotMatch|403|denied"):
        obstore.get(store(exchange, secret_access_key="no"), KEY)


@pytest.mark.judge
def test_rclone_copies_the_bucket_and_finds_no_difference(
    exchange: Exchange, folder: Path, tmp_path: Path
) -> None:
    rclone = Path(sys.executable).with_name("rclone")
    if not rclone.exists():
        pytest.skip("rclone is not installed; it comes with the extra `dev`")
    remote = {"TYPE": "s3", "PROVIDER": "Other", "ENDPOINT": exchange.s3_endpoint}
    remote |= {"ACCESS_KEY_ID": exchange.s3_access_key_id, "SECRET_ACCESS_KEY": exchange.s3_secret_access_key}
    known = {f"RCLONE_CONFIG_X_{name}": value for name, value in remote.items()}
    for verb in ("copy", "check"):
        command = [str(rclone), verb, "--config", "/dev/null", "x:flatfiles", str(tmp_path)]
        subprocess.run(command, env={**os.environ, **known}, check=True, timeout=60, capture_output=True)
    copied = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.gz")}
    assert copied == {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.gz")}


@pytest.mark.judge
def test_the_real_files_come_out_as_they_lie_there(real_day: Path) -> None:
    key = wire.file_key(MINUTE_BARS, date(2013, 10, 9))
    with serve(flat_files=real_day, speed=0) as exchange:
        assert bytes(obstore.get(store(exchange), key).bytes()) == (real_day / key).read_bytes()


@pytest.mark.judge
def test_the_listing_looks_like_the_vendors(exchange: Exchange, s3: Any, shared: Path) -> None:
    theirs = ElementTree.parse(shared / "payloads/s3/list-objects.xml").getroot()
    url = s3.generate_presigned_url("list_objects", Params={"Bucket": "flatfiles", "MaxKeys": 1})
    ours = ElementTree.fromstring(httpx.get(url).text)
    assert ours.tag == theirs.tag == f"{SPACE}ListBucketResult"
    assert {child.tag for child in theirs} <= {child.tag for child in ours}
    entry, own = theirs.find(f"{SPACE}Contents"), ours.find(f"{SPACE}Contents")
    assert entry is not None
    assert own is not None
    assert [child.tag for child in own] == [child.tag for child in entry]
    assert own.findtext(f"{SPACE}ETag", "").startswith('"')


def test_the_simulated_market_has_files_too() -> None:
    with serve(simulate=True, speed=0) as exchange:
        found = store(exchange)
        listed = [row["path"] for batch in obstore.list(found, "us_stocks_sip/trades_v1") for row in batch]
        assert listed == [wire.file_key(TRADES, day) for day in exchange.tape.days(TRADES)]
        content = bytes(obstore.get(found, listed[-1]).bytes())
        table = wire.read_flat_file(content, TRADES, day=exchange.day)
        assert table.column("price").equals(exchange.tape.table(TRADES, exchange.day).column("price"))
        assert obstore.head(found, listed[-1])["e_tag"] == obstore.get(found, listed[-1]).meta["e_tag"]


def test_a_plan_lists_everything_and_gives_what_it_includes(folder: Path) -> None:
    with serve(flat_files=folder, speed=0, plan="starter") as exchange:
        s3 = boto_client(exchange)
        assert len(s3.list_objects_v2(Bucket="flatfiles")["Contents"]) == 6
        s3.get_object(Bucket="flatfiles", Key=wire.file_key(DAY_BARS, DAY))["Body"].close()
        for product in (TRADES, QUOTES):
            with pytest.raises(botocore.exceptions.ClientError, match="AccessDenied"):
                s3.get_object(Bucket="flatfiles", Key=wire.file_key(product, DAY))
            with pytest.raises(botocore.exceptions.ClientError, match="403"):
                s3.head_object(Bucket="flatfiles", Key=wire.file_key(product, DAY))
        s3.close()


def test_a_replaced_file_has_another_etag(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with serve(flat_files=folder, speed=0) as exchange:
        before = obstore.head(store(exchange), KEY)["e_tag"]
        (folder / KEY).write_bytes((folder / KEY).read_bytes() + b"\0")
        assert obstore.head(store(exchange), KEY)["e_tag"] != before
        (folder / KEY).unlink()
        with pytest.raises(FileNotFoundError):
            obstore.head(store(exchange), KEY)


@pytest.mark.parametrize(
    "path",
    [
        "/flatfiles/../../../../etc/passwd",
        "/flatfiles/us_stocks_sip/trades_v1/2024/04/..%2f..%2f..%2fsecret",
        "/flatfiles/us_stocks_sip/trades_v1/2024/05/2024-04-05.csv.gz",
        "/flatfiles//" + KEY,
        "/flatfiles/" + "a" * 2000,
        "/flatfiles/%00",
        "/flatfiles/%ff%fe",
        "/",
        "//",
    ],
)
def test_path_tricks_find_nothing_and_the_exchange_goes_on(exchange: Exchange, path: str) -> None:
    status, body = signed(exchange, path)
    assert status in (403, 404)
    assert b"<Code>" in body
    assert signed(exchange, f"/flatfiles/{KEY}")[0] == 200


@pytest.mark.parametrize(
    "query", ["max-keys=many", "max-keys=-1", "list-type=2&continuation-token=%25", "list-type=2&max-keys=0"]
)
def test_strange_listings_are_refused_or_empty(exchange: Exchange, query: str) -> None:
    status, body = signed(exchange, f"/flatfiles?{query}")
    assert (status, b"<Contents>" in body) == (200 if query.endswith("=0") else 400, False)


def signed(exchange: Exchange, target: str, **headers: str) -> tuple[int, bytes]:
    """Send `target` exactly as written, signed by botocore."""
    request = botocore.awsrequest.AWSRequest("GET", exchange.s3_endpoint + target, headers=headers)
    keys = botocore.credentials.Credentials(exchange.s3_access_key_id, exchange.s3_secret_access_key)
    botocore.auth.S3SigV4Auth(keys, "s3", "us-east-1").add_auth(request)
    connection = http.client.HTTPConnection(exchange.s3_endpoint.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", target, headers=dict(request.headers.items()))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_unsigned_and_badly_signed_requests_are_refused(exchange: Exchange) -> None:
    url = f"{exchange.s3_endpoint}/flatfiles/{KEY}"
    stamp = "20240405T120000Z"
    credential = f"{exchange.s3_access_key_id}/20240405/us-east-1/s3/aws4_request"
    old = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature={'0' * 64}"
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "AccessDenied"),
        ({"authorization": "Bearer key"}, "AuthorizationHeaderMalformed"),
        ({"authorization": "AWS4-HMAC-SHA256 nonsense"}, "AuthorizationHeaderMalformed"),
        ({"authorization": old}, "AccessDenied"),
        ({"authorization": old, "x-amz-date": "99999999T999999Z"}, "AccessDenied"),
        ({"authorization": old, "x-amz-date": stamp}, "RequestTimeTooSkewed"),
    ]
    for headers, code in cases:
        answer = httpx.get(url, headers=headers)
        assert answer.status_code in (400, 403)
        assert f"<Code>{code}</Code>" in answer.text
    assert signed(exchange, f"/flatfiles/{KEY}")[0] == 200


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


def test_a_long_file_is_sent_in_blocks(
    monkeypatch: pytest.MonkeyPatch, exchange: Exchange, folder: Path
) -> None:
    monkeypatch.setattr(files, "BLOCK", 10)
    assert bytes(obstore.get(store(exchange), KEY).bytes()) == (folder / KEY).read_bytes()
