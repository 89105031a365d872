"""The one table of fields, and where the vendor keeps its daily files."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from tapelab.errors import UnknownName
from tapelab.market.tables import SCHEMAS
from tapelab.massive import wire
from tapelab.massive.wire.fields import CHANNELS, FIELDS, NOT_KEPT, REST_ORDER, STREAM_ORDER

# The vendor's first line of each file, from its documentation (massive-api.md 2.3).
HEADERS = {
    "us_stocks_sip/day_aggs_v1": "ticker,volume,open,close,high,low,window_start,transactions",
    "us_stocks_sip/minute_aggs_v1": "ticker,volume,open,close,high,low,window_start,transactions",
    "us_stocks_sip/trades_v1": (
        "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
        "sip_timestamp,size,tape,trf_id,trf_timestamp"
    ),
    "us_stocks_sip/quotes_v1": (
        "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
        "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp"
    ),
}
DAY = date(2013, 10, 9)


def test_the_four_stock_products_have_the_vendors_headers() -> None:
    assert {name: ",".join(product.header) for name, product in wire.PRODUCTS.items()} == HEADERS


@pytest.mark.parametrize("name", HEADERS)
def test_every_column_of_a_file_has_a_field_and_every_field_a_column(name: str) -> None:
    product = wire.PRODUCTS[name]
    fields = {field.csv: field.column for field in FIELDS[product.kind] if field.csv}
    assert set(fields) == set(product.header)
    assert set(fields.values()) <= set(SCHEMAS[product.kind].names)


def test_every_column_of_ours_comes_from_the_table_of_fields_or_from_the_moment_of_arrival() -> None:
    ours = {"bars": {"session"}, "quotes": {"ts_recv", "arrival"}, "trades": {"ts_recv", "arrival"}}
    for kind, schema in SCHEMAS.items():
        assert {field.column for field in FIELDS[kind]} | ours[kind] == set(schema.names)


def test_no_key_is_written_that_no_field_or_bar_rule_fills() -> None:
    for kind, keys in REST_ORDER.items():
        assert set(keys) <= {k for f in FIELDS[kind] for k in (f.rest, f.rest_exact)}
    for channel, keys in STREAM_ORDER.items():
        known = {k for f in FIELDS[CHANNELS[channel]] for k in (f.stream, f.stream_exact)}
        assert set(keys) - known <= set(NOT_KEPT[channel])


@pytest.mark.judge
def test_a_file_lies_where_the_vendor_puts_it_and_is_found_again(real_day: Path) -> None:
    assert (
        wire.file_key("us_stocks_sip/trades_v1", DAY) == "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz"
    )
    for path in real_day.rglob("*.csv.gz"):
        product, day = wire.parse_key(path.relative_to(real_day).as_posix()) or pytest.fail(str(path))
        assert real_day / wire.file_key(product, day) == path


@pytest.mark.parametrize(
    "key",
    [
        "",
        "us_stocks_sip/trades_v1/",
        "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv",
        "us_stocks_sip/trades_v1/2013/11/2013-10-09.csv.gz",
        "us_stocks_sip/trades_v1/2013/02/2013-02-30.csv.gz",
        "us_stocks_sip/nothing_v1/2013/10/2013-10-09.csv.gz",
        "x/us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz",
        "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz.part",
    ],
)
def test_what_is_no_key_of_a_known_product_is_none(key: str) -> None:
    assert wire.parse_key(key) is None


def test_a_misspelt_product_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="us_stocks_sip/minute_aggs_v1"):
        wire.file_key("us_stocks_sip/minute_agg_v1", DAY)
