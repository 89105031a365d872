"""Three protocols, one day: what boto3 and obstore download is what REST answers and what the stream says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import obstore
import papers
import pytest
from botocore.config import Config
from clients import Client, Start, hear
from obstore.store import S3Store

from tapelab.exchange import Exchange

pytestmark = pytest.mark.judge

CHANNELS = {
    "T": ("trades_v1", papers.trade_over_stream),
    "Q": ("quotes_v1", papers.quote_over_stream),
    "AM": ("minute_aggs_v1", papers.bar_over_stream),
}
Told = list[dict[str, object]]


def downloaded(exchange: Exchange, product: str) -> bytes:
    """A daily file, the same to two clients."""
    key = papers.key(product, exchange.day)
    keys = exchange.s3_access_key_id, exchange.s3_secret_access_key
    s3 = boto3.client(
        "s3",
        endpoint_url=exchange.s3_endpoint,
        aws_access_key_id=keys[0],
        aws_secret_access_key=keys[1],
        region_name="us-east-1",
        config=Config(signature_version="s3v4"),
    )
    with s3.get_object(Bucket=exchange.s3_bucket, Key=key)["Body"] as body:
        first = body.read()
    s3.close()
    store = S3Store(
        exchange.s3_bucket,
        endpoint=exchange.s3_endpoint,
        access_key_id=keys[0],
        secret_access_key=keys[1],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    assert bytes(obstore.get(store, key).bytes()) == first
    return first


def names_of(found: Iterator[Any], like: Told) -> Told:
    """What a client handed over, by the names that paper has."""
    return [{name: getattr(row, name) for name in like[0]} for row in found]


def agree(exchange: Exchange, client: Client, first: int, last: int, least: int) -> None:
    """That all three protocols tell the same between two instants (ns) of the exchange's day."""
    files = {p: papers.read(downloaded(exchange, p), first, last) for p, _ in CHANNELS.values()}
    symbols = sorted({row["ticker"] for row in files["trades_v1"]})
    within = {(p, s): [row for row in files[p] if row["ticker"] == s] for p in files for s in symbols}
    vendor = client(exchange)
    assert sum(map(len, within.values())) > least
    asked = {"timestamp_gte": first, "timestamp_lt": last, "order": "asc", "limit": 5_000}
    for symbol in symbols:
        for product, told, listed in (
            ("trades_v1", papers.trade_over_rest, vendor.list_trades),
            ("quotes_v1", papers.quote_over_rest, vendor.list_quotes),
        ):
            if expected := [told(row) for row in within[product, symbol]]:
                assert names_of(listed(symbol, **asked), expected) == expected
        if expected := [papers.bar_over_rest(row) for row in within["minute_aggs_v1", symbol]]:
            bars = vendor.list_aggs(
                symbol, 1, "minute", first // 10**6, last // 10**6 - 1, adjusted=False, limit=500
            )
            assert names_of(bars, expected) == expected

    count = sum(map(len, within.values()))
    topics = (f"{channel}.{symbol}" for symbol in symbols for channel in CHANNELS)
    events = hear(exchange, *topics, count=count)
    assert len(events) == count
    for (product, symbol), rows in within.items():
        channel, told = next((c, told) for c, (p, told) in CHANNELS.items() if p == product)
        if expected := [told(row) for row in rows]:
            mine = iter([e for e in events if (e.event_type, e.symbol) == (channel, symbol)])
            assert names_of(mine, expected) == expected


def test_a_simulated_half_hour_is_told_alike_by_all_three(started: Start, client: Client) -> None:
    exchange = started(simulate=True, start="09:30", until="10:00")
    first, last = papers.instant(exchange.day, 9, 30), papers.instant(exchange.day, 10)
    agree(exchange, client, first, last, least=10_000)


def test_a_real_minute_is_told_alike_by_all_three(started: Start, client: Client, real_minutes: Path) -> None:
    exchange = started(flat_files=real_minutes, start="10:00", until="10:01")
    first, last = papers.instant(exchange.day, 10), papers.instant(exchange.day, 10, 1)
    agree(exchange, client, first, last, least=3_000)


@pytest.mark.slow
def test_a_real_quarter_hour_is_told_alike_by_all_three(
    started: Start, client: Client, real_day: Path
) -> None:
    exchange = started(flat_files=real_day, start="09:30", until="09:45")
    first, last = papers.instant(exchange.day, 9, 30), papers.instant(exchange.day, 9, 45)
    agree(exchange, client, first, last, least=50_000)
