"""Daily files of markets for which the exchange does not speak, as the vendor and others have shown them."""

from __future__ import annotations

import csv
import re
import xml.etree.ElementTree as ElementTree
from datetime import date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import papers
import pytest

from tapelab.massive.wire import catalogue
from tapelab.massive.wire.csvfile import Notes
from tapelab.massive.wire.otherfile import flat_file

pytestmark = pytest.mark.judge

ZONES = {"us_options_opra": "America/New_York", "us_indices": "America/Chicago"}  # others: UTC
SAMPLE = re.compile(r"(?:header-only--)?(?P<prefix>us_(?!stocks)\w+|global_\w+)-(?P<kind>\w+_v1)")
TIMES = {"window_start", "sip_timestamp", "participant_timestamp", "timestamp"}
COUNTS = {"ask_exchange", "bid_exchange", "exchange", "sequence_number", "transactions", "correction"}
TEXTS = {"ticker", "conditions", "id"}
# What columns are called in our own schema.
OURS = {
    "ticker": "symbol",
    "window_start": "timestamp",
    "sip_timestamp": "ts_event",
    "participant_timestamp": "ts_event",  # of those without a SIP
    "bid_price": "bid",
    "ask_price": "ask",
    "sequence_number": "sequence",
}


def meant(name: str, text: str, own: bool) -> object:
    """What a field of a file says; in our own schema, codes are a list and an empty side has no price."""
    if own and name == "conditions":
        return papers.codes(text)
    if name in TEXTS:
        return text or None
    if name in TIMES | COUNTS:
        return int(text)
    return (float(text) or None) if own and name in ("bid_price", "ask_price") else float(text)


def test_every_file_of_another_market_that_was_ever_shown_is_read_value_by_value(shared: Path) -> None:
    seen = set()
    for sample in sorted((shared / "payloads/flatfiles").glob("*.csv")):
        if (found := SAMPLE.match(sample.name)) is None:
            continue
        product = f"{found['prefix'].replace('futures_X', 'futures_cme')}/{found['kind']}"
        header, *lines = csv.reader(sample.read_text().splitlines())
        assert tuple(header) == catalogue.kind_named(product).header
        own = catalogue.kind_named(product).product is not None
        expected = [{n: meant(n, text, own) for n, text in zip(header, line, strict=True)} for line in lines]
        stamps = [int(text) for line in lines for n, text in zip(header, line, strict=True) if n in TIMES]
        zone = ZoneInfo(ZONES.get(found["prefix"], "UTC"))
        day = datetime.fromtimestamp(min(stamps, default=0) // papers.SECOND, zone).date()
        _, blocks = flat_file(sample, product, day=day, notes=Notes())
        rows = [row for block in blocks for row in block.to_pylist()]
        called = OURS if own else {}
        told = [{name: row[called.get(name, name)] for name in header} for row in rows]
        # A time is a pandas.Timestamp, whose `value` is in nanoseconds.
        assert [{n: getattr(v, "value", v) for n, v in row.items()} for row in told] == expected, sample.name
        seen.add(product)
    assert len(seen) == 17


def test_the_keys_that_the_vendors_bucket_lists_are_understood(shared: Path) -> None:
    listing = ElementTree.parse(shared / "payloads/s3/list-objects.xml")
    keys = [element.text or "" for element in listing.iterfind(".//{*}Key")]
    assert keys
    for key in keys:
        found = catalogue.read_key(key)
        assert found is not None
        assert catalogue.key_of(*found) == key
        assert key.startswith(f"{found[0]}/{found[1].year}/")
    assert catalogue.read_key(keys[0].replace("/07/", "/08/")) is None
    assert catalogue.read_key(keys[0].removesuffix(".gz")) is None
    assert catalogue.read_key(keys[0].replace("_v1", "_v9")) is None


def test_every_product_the_vendor_lists_is_of_its_market_and_begins_when_it_says(shared: Path) -> None:
    table = (shared / "massive-api.md").read_text().partition("| Prefix | Market |")[2].partition("\n\n")[0]
    listed = {}
    for prefixes, market, kinds, since in (line.strip("| ").split(" | ") for line in table.splitlines()[2:]):
        if kinds.startswith("`"):
            name = market.removeprefix("US ")
            first = [f"{day}-01-01"[:10] for day in re.findall(r"\d{4}(?:-\d\d-\d\d)?", since)]
            for prefix in re.findall(r"`(\w+)`", prefixes):
                for kind in kinds.split("`")[1].split():
                    later = name == "options" and kind == "quotes_v1"
                    listed[f"{prefix}/{kind}"] = (name, date.fromisoformat(first[-1 if later else 0]))
    assert {k.name: (k.market.value, k.since) for k in catalogue.CATALOGUE.values()} == listed
