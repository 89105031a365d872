"""Listings and ranges hold for any keys, pages and files."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapelab.exchange.files import listing, objects, xml
from tapelab.exchange.files.objects import Stored
from tapelab.exchange.files.signature import Denied

NAMES = st.text("ab/", min_size=1, max_size=6)
MODIFIED = datetime(2024, 4, 6, 15, tzinfo=UTC)


def stored(key: str, content: bytes = b"") -> Stored:
    return Stored.of(key, content, 0)


def walked(
    keys: list[str], prefix: str, delimiter: str, most: int, second: bool
) -> tuple[list[str], list[str]]:
    """Keys and common prefixes as a client finds them, following page after page."""
    found: list[str] = []
    folders: list[str] = []
    query = {"prefix": prefix, "delimiter": delimiter, "max-keys": str(most)}
    query |= {"list-type": "2"} if second else {}
    while True:
        page = ElementTree.fromstring(listing.page("b", keys, listing.Asked.of(query), stored))
        entries = [*page.findall("{*}Contents/{*}Key"), *page.findall("{*}CommonPrefixes/{*}Prefix")]
        assert len(entries) <= most
        found += [entry.text or "" for entry in page.findall("{*}Contents/{*}Key")]
        folders += [entry.text or "" for entry in page.findall("{*}CommonPrefixes/{*}Prefix")]
        if page.findtext("{*}IsTruncated") == "false":
            return found, folders
        last = "NextContinuationToken" if second else "NextMarker"
        query["continuation-token" if second else "marker"] = page.findtext(f"{{*}}{last}", "")


@given(
    st.sets(NAMES),
    st.text("ab/", max_size=3),
    st.sampled_from(["", "/", "b"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_pages_hold_every_key_and_folder_once_and_in_order(
    names: set[str], prefix: str, delimiter: str, most: int, second: bool
) -> None:
    keys = sorted(names)
    below = [key for key in keys if key.startswith(prefix)]
    folded = {
        key: key[: key.index(delimiter, len(prefix)) + 1]
        if delimiter and delimiter in key[len(prefix) :]
        else None
        for key in below
    }
    found, folders = walked(keys, prefix, delimiter, most, second)
    assert found == [key for key in below if folded[key] is None]
    assert folders == sorted({folder for folder in folded.values() if folder is not None})


@given(
    st.binary(max_size=40), st.one_of(st.none(), st.integers(0, 50)), st.one_of(st.none(), st.integers(0, 50))
)
def test_a_range_is_a_slice(content: bytes, first: int | None, last: int | None) -> None:
    asked = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    expected: bytes | None
    if first is None and last is None:
        expected = content
    elif first is None:
        assert last is not None
        expected = content[-last:] if last and content else None
    elif last is not None and last < first:
        expected = content
    else:
        expected = content[first:][: None if last is None else last - first + 1] or None
    if expected is None:
        with pytest.raises(Denied) as caught:
            objects.part(asked, len(content))
        assert caught.value.status == 416
        return
    begin, end = objects.part(asked, len(content)) or (0, len(content) - 1)
    assert b"".join(stored("k", content).blocks(begin, end + 1)) == expected


@given(st.text())
def test_whatever_a_client_sends_fits_into_xml(text: str) -> None:
    page = ElementTree.fromstring(xml.error("NoSuchKey", text, resource="/", request_id="0", Key=text))
    assert len(page.findtext("Key", "")) <= len(text)
