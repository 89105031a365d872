"""Faults as clients meet them, over HTTP and the stream; most of these clients nobody here wrote."""

from __future__ import annotations

import gzip
import json
import logging
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.config
import botocore.exceptions
import httpx
import obstore
import pytest
import urllib3
from massive import RESTClient
from obstore.store import S3Store
from urllib3.exceptions import MaxRetryError
from websockets.exceptions import ConnectionClosed, ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

import tapelab as tl
from streams import until
from tapelab.errors import MalformedAnswer, SourceError
from tapelab.exchange import Exchange, serve
from tapelab.exchange.faults import http as http_faults
from tapelab.exchange.tape import TRADES
from tapelab.massive import wire
from test_exchange_tape import DAY, folder_of

KEY = "us_stocks_sip/trades_v1/2024/04/2024-04-05.csv.gz"
BARS = "/v2/aggs/ticker/AAPL/range/1/minute/2024-04-05/2024-04-05"
WAIT = 20.0

Rule = dict[str, object]
Start = Callable[..., Exchange]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("tape"))


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start an exchange with a fault script; it ends with the test, and says nothing on its way."""
    running: list[Exchange] = []

    def started(**script: list[Rule]) -> Exchange:
        running.append(serve(flat_files=folder, speed=0, faults=script))
        return running[-1]

    yield started
    for exchange in running:
        exchange.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A fault is no trouble to the server: it logs no error, but that it did not wait for somebody."""
    yield
    errors = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert [error for error in errors if not error.startswith("Cancel ")] == []


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that faults make; none of them takes any time."""
    made: list[float] = []

    async def pause(seconds: float, receive: object) -> bool:
        made.append(seconds)
        return True

    monkeypatch.setattr(http_faults, "_pause", pause)
    return made


def get(exchange: Exchange, target: str = BARS, **params: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    return httpx.get(exchange.rest_url + target, headers=headers, params=params or None, timeout=WAIT)  # type: ignore[arg-type]


def store(exchange: Exchange) -> S3Store:
    return S3Store(
        exchange.s3_bucket,
        endpoint=exchange.s3_endpoint,
        access_key_id=exchange.s3_access_key_id,
        secret_access_key=exchange.s3_secret_access_key,
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True, "timeout": timedelta(seconds=WAIT)},
        retry_config={"max_retries": 0},
    )


def file_of(exchange: Exchange) -> bytes:
    return bytes(obstore.get(store(exchange), KEY).bytes())


# REST.


@pytest.mark.parametrize("code", [400, 401, 403, 404, 408, 429, 500, 502, 503, 504, 529])
def test_a_refusal_looks_like_the_vendors(start: Start, code: int, shared: Path) -> None:
    exchange = start(rest=[{"fault": "status", "code": code, "times": 1}])
    answer = get(exchange)
    assert (answer.status_code, answer.headers["X-Tapelab-Fault"]) == (code, "status")
    assert "Retry-After" not in answer.headers
    if code >= 500:
        assert answer.headers["Content-Type"] == "text/html"
    else:
        assert (answer.json().get("error") or answer.json().get("message")) is not None
        assert len(answer.json()["request_id"]) == 32
    if code == 429:
        theirs = json.loads((shared / "payloads/errors/429.json").read_bytes())
        assert {**answer.json(), "request_id": 0} == {**theirs, "request_id": 0}
    again = get(exchange)
    assert again.status_code == 200
    assert "X-Tapelab-Fault" not in again.headers


@pytest.mark.judge
def test_the_vendors_client_waits_for_retry_after_and_gives_up_without(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(urllib3.util.retry, "time", SimpleNamespace(sleep=slept.append, time=time.time))
    slow_down = {"fault": "status", "code": 429}
    exchange = start(rest=[{**slow_down, "retry_after": 30, "times": 2}, {**slow_down, "path": "/v3/*"}])
    client = RESTClient(api_key=exchange.api_key, base=exchange.rest_url, retries=3)
    assert len(list(client.list_aggs("AAPL", 1, "minute", "2024-04-05", "2024-04-05"))) == 3
    assert slept == [30, 30]
    with pytest.raises(MaxRetryError, match="too many 429"):
        list(client.list_trades("AAPL"))
    client.client.clear()


@pytest.mark.judge
@pytest.mark.parametrize("how", ["truncated", "cursor", "loop"])
def test_a_broken_second_page_is_not_taken_for_the_last(start: Start, how: str) -> None:
    exchange = start(rest=[{"fault": "broken_page", "how": how, "path": "/v2/*cursor=*", "times": 1}])
    first = get(exchange, adjusted="false", limit=1).json()
    second = get(exchange, first["next_url"].removeprefix(exchange.rest_url))
    third = get(exchange, first["next_url"].removeprefix(exchange.rest_url)).json()
    assert (second.status_code, second.headers["X-Tapelab-Fault"]) == (200, "broken_page")
    assert first["results"] != third["results"], "the fault is over"
    if how == "truncated":
        with pytest.raises(json.JSONDecodeError):
            second.json()
        return
    assert second.json()["results"] == third["results"]
    followed = get(exchange, second.json()["next_url"].removeprefix(exchange.rest_url))
    if how == "cursor":
        assert followed.status_code == 400
    else:
        assert followed.json()["results"] == third["results"]
        assert exchange.api_key not in second.text


def test_a_broken_page_breaks_ours_off_with_an_error(start: Start, tmp_path: Path) -> None:
    exchange = start(rest=[{"fault": "broken_page"}])
    with exchange.use(tmp_path), pytest.raises(MalformedAnswer):
        tl.fetch_data("AAPL", "2024-04-05", "2024-04-05", "1m", adjust="none", fallback=False)


def test_a_200_may_hold_an_error(start: Start) -> None:
    exchange = start(rest=[{"fault": "error_in_200"}], s3=[{"fault": "error_in_200"}])
    answer = get(exchange)
    assert (answer.status_code, answer.json()["status"]) == (200, "ERROR")
    assert b"<Code>InternalError</Code>" in file_of(exchange)


@pytest.mark.parametrize("at", [0, 0.3, 0.99])
def test_an_answer_breaks_off_where_the_script_says(start: Start, at: float) -> None:
    exchange = start(rest=[{"fault": "cut", "at": at, "times": 1}])
    whole = len(get_plain(start()))
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        get_plain(exchange)
    if at:
        assert f"received {int(whole * at)} bytes, expected {whole}" in str(caught.value)
    else:
        assert "without sending a response" in str(caught.value)
    assert get(exchange).status_code == 200


def get_plain(exchange: Exchange) -> bytes:
    headers = {"Authorization": f"Bearer {exchange.api_key}", "Accept-Encoding": "identity"}
    return httpx.get(exchange.rest_url + BARS, headers=headers).content


def test_slow_answers_come_whole(start: Start, waits: list[float]) -> None:
    rows = json.loads(whole := get_plain(start()))["results"]
    for fault, expected in (
        ({"fault": "stall", "seconds": 300}, [300]),
        ({"fault": "stall", "seconds": 300, "at": 0.5}, [300]),
        ({"fault": "trickle", "bytes_per_second": 1000}, [0.1] * (len(whole) // 100)),
    ):
        waits.clear()
        assert json.loads(get_plain(start(rest=[fault])))["results"] == rows
        assert waits[: len(expected)] == expected


def test_a_client_that_does_not_wait_is_let_go(start: Start) -> None:
    exchange = start(
        rest=[
            {"fault": "stall", "seconds": 3600, "path": "/v2/*"},
            {"fault": "stall", "seconds": 3600, "at": 0.5, "path": "/v3/trades/*"},
            {"fault": "trickle", "bytes_per_second": 1, "path": "/v3/quotes/*"},
        ]
    )
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    for target in (BARS, "/v3/trades/AAPL", "/v3/quotes/AAPL"):
        with pytest.raises(httpx.ReadTimeout):
            httpx.get(exchange.rest_url + target, headers=headers, timeout=0.3)
    assert get(exchange, "/v1/marketstatus/now").status_code == 200


@pytest.mark.parametrize(
    "setting", [{"fault": "stall", "seconds": 3600}, {"fault": "trickle", "bytes_per_second": 1}]
)
def test_an_exchange_closes_whatever_its_faults_hold_back(
    start: Start, caplog: pytest.LogCaptureFixture, setting: Rule
) -> None:
    exchange = start(rest=[setting])
    caplog.set_level(logging.INFO, "tapelab.exchange.faults")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(get, exchange)
        until(lambda: any(record.message.startswith("Fault ") for record in caplog.records))
        exchange.close()
        assert isinstance(asked.exception(WAIT), httpx.RemoteProtocolError)


def test_rules_choose_by_path_query_and_count(start: Start) -> None:
    exchange = start(
        rest=[
            {"fault": "status", "code": 500, "path": "/v3/trades/*limit=7*"},
            {"fault": "status", "code": 503, "path": "/v3/quotes/*", "each": True, "first": 2, "times": 1},
        ]
    )
    assert get(exchange, "/v3/trades/AAPL").status_code == 200
    assert get(exchange, "/v3/trades/AAPL", limit=7).status_code == 500
    for symbol in ("AAPL", "ZVZZT"):
        found = [get(exchange, f"/v3/quotes/{symbol}").status_code for _ in range(3)]
        assert found == [200, 503, 200]


def test_faults_add_up(start: Start, waits: list[float]) -> None:
    exchange = start(
        rest=[
            {"fault": "cut", "at": 0.5},
            {"fault": "status", "code": 503},
            {"fault": "stall", "seconds": 60},
        ]
    )
    headers = {"Authorization": f"Bearer {exchange.api_key}"}
    with (
        httpx.stream("GET", exchange.rest_url + BARS, headers=headers) as answer,
        pytest.raises(httpx.RemoteProtocolError),
    ):
        answer.read()
    assert answer.status_code == 503
    assert answer.headers["X-Tapelab-Fault"] == "status, cut, stall"
    assert waits == [60]


# Flat files.


@pytest.mark.judge
@pytest.mark.parametrize(
    ("code", "said"), [(503, "SlowDown"), (500, "InternalError"), (429, "TooManyRequests")]
)
def test_boto3_reads_the_refusals_of_s3_and_tries_again(
    start: Start, folder: Path, code: int, said: str
) -> None:
    exchange = start(s3=[{"fault": "status", "code": code, "times": 2}])
    for attempts in (1, 2):
        s3 = boto3.client(
            "s3",
            endpoint_url=exchange.s3_endpoint,
            aws_access_key_id=exchange.s3_access_key_id,
            aws_secret_access_key=exchange.s3_secret_access_key,
            region_name="us-east-1",
            config=botocore.config.Config(retries={"total_max_attempts": attempts, "mode": "standard"}),
        )
        if attempts == 1:
            with pytest.raises(botocore.exceptions.ClientError, match=said):
                s3.get_object(Bucket="flatfiles", Key=KEY)
        else:
            with s3.get_object(Bucket="flatfiles", Key=KEY)["Body"] as body:
                assert body.read() == (folder / KEY).read_bytes()
        s3.close()


@pytest.mark.judge
def test_a_file_that_breaks_off_is_an_error_to_obstore_and_whole_the_next_time(
    start: Start, folder: Path
) -> None:
    exchange = start(s3=[{"fault": "cut", "path": "*/trades_v1/*", "times": 1, "each": True}])
    with pytest.raises(obstore.exceptions.BaseError, match=r"decoding|end of file|body|incomplete"):
        file_of(exchange)
    assert file_of(exchange) == (folder / KEY).read_bytes()


@pytest.mark.judge
def test_a_truncated_file_is_a_whole_object_and_half_a_gzip(start: Start, folder: Path) -> None:
    exchange = start(s3=[{"fault": "truncated", "at": 0.5, "path": f"*/{KEY}", "times": 1}])
    whole = (folder / KEY).read_bytes()
    listed = {row["path"]: row for batch in obstore.list(store(exchange)) for row in batch}
    head = obstore.head(store(exchange), KEY)
    got = obstore.get(store(exchange), KEY)
    assert listed[KEY]["size"] == head["size"] == got.meta["size"] == len(whole) // 2
    assert listed[KEY]["e_tag"] == head["e_tag"] == got.meta["e_tag"]
    content = bytes(got.bytes())
    assert content == whole[: len(whole) // 2]
    with pytest.raises((EOFError, zlib.error)):
        gzip.decompress(content)
    assert file_of(exchange) == whole, "published again, whole"
    assert obstore.head(store(exchange), KEY)["e_tag"] != head["e_tag"]


@pytest.mark.judge
def test_a_file_is_replaced_from_the_third_download_on(start: Start, folder: Path) -> None:
    exchange = start(s3=[{"fault": "replaced", "path": "*/trades_v1/*", "first": 3}])
    before = obstore.head(store(exchange), KEY)
    first, second = file_of(exchange), file_of(exchange)
    listed = {row["path"]: row for batch in obstore.list(store(exchange)) for row in batch}
    after = obstore.head(store(exchange), KEY)
    third = obstore.get(store(exchange), KEY)
    assert first == second == (folder / KEY).read_bytes()
    assert (listed[KEY]["e_tag"], listed[KEY]["size"]) == (after["e_tag"], after["size"])
    assert (third.meta["e_tag"], third.meta["size"]) == (after["e_tag"], after["size"])
    assert before["e_tag"] != after["e_tag"]
    assert before["last_modified"] < after["last_modified"]
    content = bytes(third.bytes())
    assert content != first
    assert wire.read_flat_file(content, TRADES, day=DAY).equals(wire.read_flat_file(first, TRADES, day=DAY))
    part = obstore.get(store(exchange), KEY, options={"range": (10, 50), "if_match": after["e_tag"]})
    assert bytes(part.bytes()) == content[10:50]
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store(exchange), KEY, options={"if_match": before["e_tag"]})


def test_a_file_can_be_replaced_by_one_of_yours(start: Start, tmp_path: Path) -> None:
    (tmp_path / "corrected.csv.gz").write_bytes(gzip.compress(b"corrected"))
    (tmp_path / "faults.toml").write_text('[[s3]]\nfault = "replaced"\nfile = "corrected.csv.gz"\n')
    with serve(flat_files=folder_of(tmp_path / "tape"), faults=tmp_path / "faults.toml") as exchange:
        assert gzip.decompress(file_of(exchange)) == b"corrected"


@pytest.mark.parametrize("fault", ["replaced", "truncated"])
def test_what_happens_between_a_listing_and_a_download_is_noticed(
    start: Start, tmp_path: Path, fault: str
) -> None:
    exchange = start(s3=[{"fault": fault, "listed": False, "path": "*/minute_aggs_v1/*"}])
    listed = {row["path"]: row for batch in obstore.list(store(exchange)) for row in batch}
    minutes = KEY.replace("trades", "minute_aggs")
    assert listed[minutes]["e_tag"] == obstore.head(store(exchange), minutes)["e_tag"]
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store(exchange), minutes, options={"if_match": listed[minutes]["e_tag"]})
    with exchange.use(tmp_path), pytest.raises(SourceError, match="replaced"):
        tl.fetch_data(
            "AAPL", "2024-04-05", "2024-04-05", "1m", method="flat_file", adjust="none", fallback=False
        )


def test_a_replaced_file_is_as_good_as_another(start: Start, tmp_path: Path) -> None:
    exchange = start(s3=[{"fault": "replaced", "path": "*/minute_aggs_v1/*"}])
    with exchange.use(tmp_path):
        bars = tl.fetch_data("AAPL", "2024-04-05", "2024-04-05", "1m", method="flat_file", adjust="none")
    assert len(bars) == 3


# The stream.


@contextmanager
def subscribed(exchange: Exchange, topics: str = "Q.*") -> Iterator[ClientConnection]:
    with connect(f"{exchange.ws_url}/stocks", open_timeout=WAIT, close_timeout=1) as client:
        client.recv(WAIT)
        client.send(json.dumps({"action": "auth", "params": exchange.api_key}))
        client.recv(WAIT)
        client.send(json.dumps({"action": "subscribe", "params": topics}))
        yield client


def heard(client: ClientConnection, until: int) -> list[dict[str, Any]]:
    """The events until so many came or the connection ended."""
    found: list[dict[str, Any]] = []
    while len(found) < until:
        found += [each for each in json.loads(client.recv(WAIT)) if each["ev"] != "status"]
    return found


def test_the_stream_without_faults_is_the_tape(start: Start) -> None:
    with subscribed(start()) as client:
        assert [each["q"] for each in heard(client, 3)] == [1, 2, 3]


@pytest.mark.parametrize("clean", [True, False])
def test_the_line_drops_with_and_without_a_close_frame(start: Start, clean: bool) -> None:
    exchange = start(stream=[{"fault": "cut", "first": 3, "clean": clean, "times": 1}])
    with subscribed(exchange) as client:
        found = heard(client, 2)
        with pytest.raises(ConnectionClosed) as caught:
            client.recv(WAIT)
    assert [each["q"] for each in found] == [1, 2]
    assert (caught.value.rcvd is not None) == clean
    assert isinstance(caught.value, ConnectionClosedError) != clean


def test_events_come_twice_late_and_among_garbage(start: Start) -> None:
    exchange = start(
        stream=[
            {"fault": "duplicate", "first": 3, "times": 1},
            {"fault": "reorder", "first": 1, "times": 1},
            {"fault": "unknown", "first": 2, "times": 1},
        ]
    )
    with subscribed(exchange) as client:
        found = heard(client, 5)
    assert [(each["ev"], each.get("q")) for each in found] == [
        ("ZZ", None),
        ("Q", 2),
        ("Q", 1),
        ("Q", 3),
        ("Q", 3),
    ]


def test_a_client_that_is_called_slow_hears_why(start: Start) -> None:
    with subscribed(start(stream=[{"fault": "slow_client", "first": 2}])) as client:
        assert len(heard(client, 1)) == 1
        assert json.loads(client.recv(WAIT))[0]["status"] == "slow_consumer"
        with pytest.raises(ConnectionClosed):
            client.recv(WAIT)


def test_rules_may_be_about_one_connection(start: Start) -> None:
    exchange = start(stream=[{"fault": "cut", "connection": 2}])
    with subscribed(exchange) as first:
        assert len(heard(first, 3)) == 3
        with subscribed(exchange, "T.*") as second:
            assert json.loads(second.recv(WAIT))[0]["status"] == "success"
