"""The exchange's flat files, judged by boto3, obstore and rclone."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import botocore.auth
import botocore.config
import botocore.exceptions
import httpx
import obstore
import pytest
from obstore.store import S3Store

from tapelab.exchange import Exchange, serve
from tapelab.exchange.files import objects
from tapelab.exchange.tape import DAY_BARS, MINUTE_BARS, PRODUCTS, QUOTES, TRADES
from tapelab.massive import wire
from tapelab.store.datasets.catalogue import from_tables
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
    head = s3.head_object(Bucket="flatfiles", Key=KEY)
    etag, modified, minute = head["ETag"], head["LastModified"], timedelta(minutes=1)
    for asked in ({"IfNoneMatch": etag}, {"IfNoneMatch": "*"}, {"IfModifiedSince": modified}):
        for operation in (s3.get_object, s3.head_object):
            with pytest.raises(botocore.exceptions.ClientError, match="304"):
                operation(Bucket="flatfiles", Key=KEY, **asked)
    for asked in ({"IfMatch": '"other"'}, {"IfUnmodifiedSince": modified - minute}):
        with pytest.raises(botocore.exceptions.ClientError, match="PreconditionFailed"):
            s3.get_object(Bucket="flatfiles", Key=KEY, **asked)
        with pytest.raises(botocore.exceptions.ClientError, match="412"):
            s3.head_object(Bucket="flatfiles", Key=KEY, **asked)
    for asked in (
        {"IfMatch": etag},
        {"IfMatch": f'"other", {etag}'},
        {"IfMatch": etag, "IfUnmodifiedSince": modified - minute},  # the ETag decides
        {"IfNoneMatch": '"other"', "IfModifiedSince": modified},
        {"IfModifiedSince": modified - minute},
        {"IfUnmodifiedSince": modified},
    ):
        s3.get_object(Bucket="flatfiles", Key=KEY, **asked)["Body"].close()


@pytest.mark.judge
def test_a_presigned_address_works_until_it_expires(
    s3: Any, folder: Path, exchange: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    def presigned(seconds: int) -> str:
        return str(
            s3.generate_presigned_url(
                "get_object", Params={"Bucket": "flatfiles", "Key": KEY}, ExpiresIn=seconds
            )
        )

    whole = (folder / KEY).read_bytes()
    assert httpx.get(presigned(600)).content == whole
    assert httpx.get(presigned(600), headers={"Range": "bytes=0-3"}).content == whole[:4]
    assert "SignatureDoesNotMatch" in httpx.get(presigned(600).replace("2024-04-05", "2024-04-04")).text
    assert "SignatureDoesNotMatch" in httpx.get(presigned(600).replace("=600", "=601")).text
    assert "less than a week" in httpx.get(presigned(7 * 24 * 3600 + 1)).text
    for days, said in ((-1, "Request has expired"), (1, "Request has expired")):
        then = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=days)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_, then=then: then)
        assert said in httpx.get(presigned(600)).text
    two_days = datetime.now(UTC).replace(tzinfo=None) - timedelta(days=1)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: two_days)
    assert httpx.get(presigned(2 * 24 * 3600)).content == whole
    address = obstore.sign(store(exchange), "GET", KEY, timedelta(minutes=5))
    assert httpx.get(address).content == whole


@pytest.mark.judge
def test_boto3_finds_the_bucket_and_its_region(s3: Any) -> None:
    assert s3.head_bucket(Bucket="flatfiles")["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket="flatfiles")["LocationConstraint"] is None
    for missing in (lambda: s3.head_bucket(Bucket="other"), lambda: s3.get_bucket_location(Bucket="other")):
        with pytest.raises(botocore.exceptions.ClientError, match=r"404|NoSuchBucket"):
            missing()
    with pytest.raises(botocore.exceptions.ClientError, match="NotImplemented"):
        s3.get_bucket_acl(Bucket="flatfiles")


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
def test_rclone_lists_copies_and_finds_no_difference(
    exchange: Exchange, folder: Path, tmp_path: Path
) -> None:
    remote = (
        f":s3,provider=Other,endpoint='{exchange.s3_endpoint}',access_key_id={exchange.s3_access_key_id},"
        f"secret_access_key={exchange.s3_secret_access_key}:flatfiles"
    )
    listed = rclone("lsf", "--recursive", "--files-only", "--format", "ps", remote).splitlines()
    whole = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.gz")}
    assert sorted(listed) == sorted(f"{key};{len(content)}" for key, content in whole.items())
    assert rclone("lsf", f"{remote}/us_stocks_sip").split() == [
        f"{product.partition('/')[2]}/" for product in sorted(PRODUCTS)
    ]
    rclone("copy", remote, str(tmp_path))
    copied = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.gz")}
    assert copied == whole
    rclone("check", "--download", remote, str(tmp_path))
    (tmp_path / KEY).write_bytes(b"something else")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        rclone("check", remote, str(tmp_path))
    assert "1 differences found" in caught.value.stderr


def rclone(*arguments: str) -> str:
    """Run rclone as a client with no configuration but its arguments; what it printed."""
    program = Path(sys.executable).with_name("rclone")
    if not program.exists():
        pytest.skip("rclone is not installed; it comes with the extra `dev`")
    command = [str(program), "--config", os.devnull, "--retries", "1", *arguments]
    return subprocess.run(command, check=True, timeout=60, capture_output=True, text=True).stdout


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


@pytest.mark.judge
@pytest.mark.parametrize(
    ("sample", "product", "day"),
    [
        ("flatfiles/us_stocks_sip-trades_v1-2026-02-11.csv", TRADES, date(2026, 2, 11)),
        ("flatfiles/us_stocks_sip-trades_v1.csv", TRADES, date(2026, 5, 22)),
        ("flatfiles/us_stocks_sip-quotes_v1.csv", QUOTES, date(2026, 5, 22)),
    ],
)
def test_a_recording_has_files_that_look_like_the_vendors_old_and_new(
    shared: Path, tmp_path: Path, sample: str, product: str, day: date
) -> None:
    """Columns, their order and the style of numbers, as the vendor wrote them before 2026-02-23 and since."""
    text = (shared / "payloads" / sample).read_bytes()
    kind = "trades" if product == TRADES else "quotes"
    rows = {kind: wire.read_flat_file(text, product, day=day)}
    dataset = from_tables("sample", source="flat_file", folder=tmp_path, **rows)  # type: ignore[arg-type]
    with serve(dataset=dataset, speed=0) as exchange:
        got = bytes(obstore.get(store(exchange), wire.file_key(product, day)).bytes())
    assert gzip.decompress(got) == text


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


def test_a_plan_gives_no_files_from_before_its_history(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    old, young = (wire.file_key(DAY_BARS, day) for day in (date(2019, 4, 4), DAY))
    (folder / old).parent.mkdir(parents=True)
    (folder / old).write_bytes((folder / young).read_bytes())
    for plan, given in (("starter", False), ("developer", True), (None, True)):
        with serve(flat_files=folder, speed=0, plan=plan) as exchange:
            found = store(exchange)
            listed = [
                row["path"] for batch in obstore.list(found, "us_stocks_sip/day_aggs_v1") for row in batch
            ]
            assert old in listed
            assert obstore.get(found, young).bytes()
            for ask in (obstore.get, obstore.head):
                if given:
                    ask(found, old)
                else:
                    with pytest.raises(obstore.exceptions.PermissionDeniedError):
                        ask(found, old)


def test_a_replaced_file_has_another_etag(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    with serve(flat_files=folder, speed=0) as exchange:
        before = obstore.head(store(exchange), KEY)["e_tag"]
        (folder / KEY).write_bytes((folder / KEY).read_bytes() + b"\0")
        assert obstore.head(store(exchange), KEY)["e_tag"] != before
        (folder / KEY).unlink()
        with pytest.raises(FileNotFoundError):
            obstore.head(store(exchange), KEY)


def test_a_long_file_is_sent_in_blocks(
    monkeypatch: pytest.MonkeyPatch, exchange: Exchange, folder: Path
) -> None:
    monkeypatch.setattr(objects, "BLOCK", 10)
    assert bytes(obstore.get(store(exchange), KEY).bytes()) == (folder / KEY).read_bytes()
