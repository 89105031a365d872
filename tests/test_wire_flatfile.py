"""Daily files: the vendor's own rows read field by field, and written back byte for byte."""

from __future__ import annotations

import csv
import gzip
import io
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow as pa
import pytest

from tapelab.errors import Damaged, MalformedAnswer, UnknownName, UsageError
from tapelab.market.tables import SCHEMAS
from tapelab.massive import wire

DAY_BARS, MINUTES = "us_stocks_sip/day_aggs_v1", "us_stocks_sip/minute_aggs_v1"
TRADES, QUOTES = "us_stocks_sip/trades_v1", "us_stocks_sip/quotes_v1"
REAL_DAY = date(2013, 10, 9)

# Every sample of a stock product under payloads, and which product it is.
SAMPLES = {
    "flatfiles/us_stocks_sip-day_aggs_v1.csv": DAY_BARS,
    "flatfiles/us_stocks_sip-day_aggs_v1-docs-sample-2023.csv": DAY_BARS,
    "flatfiles/us_stocks_sip-minute_aggs_v1.csv": MINUTES,
    "flatfiles/us_stocks_sip-minute_aggs_v1-2025-04-16.csv": MINUTES,
    "flatfiles/us_stocks_sip-trades_v1.csv": TRADES,
    "flatfiles/us_stocks_sip-trades_v1-2024-04-05.csv": TRADES,
    "flatfiles/us_stocks_sip-trades_v1-2026-02-11.csv": TRADES,
    "flatfiles/us_stocks_sip-trades_v1-docs-sample-2023.csv": TRADES,
    "flatfiles/us_stocks_sip-quotes_v1.csv": QUOTES,
    "rows_and_frames/day_aggs_v1_2026-10-02.csv": DAY_BARS,
    "rows_and_frames/minute_aggs_v1_2026-10-02.csv": MINUTES,
    "rows_and_frames/minute_aggs_v1_2026-01-23_old_format.csv": MINUTES,
    "rows_and_frames/trades_v1_rows.csv": TRADES,
    "rows_and_frames/quotes_v1_rows.csv": QUOTES,
}

# Rows that the vendor's files do not write this way: read well, written back otherwise.
NOT_AS_IN_FILES = {
    'MSFT,"12,37",,11,1,': "the documentation's sample leaves correction and trf_id empty; files write 0",
    ",143,3808,": "the blog's excerpt shows 143 where files write 143.0",
    ",143,3809,": "the blog's excerpt shows 143 where files write 143.0",
}

# Which header goes to which column: written here by hand, beside the code's own table.
COLUMN = {
    "ticker": "symbol",
    "volume": "volume",
    "open": "open",
    "close": "close",
    "high": "high",
    "low": "low",
    "window_start": "timestamp",
    "transactions": "transactions",
    "conditions": "conditions",
    "indicators": "indicators",
    "correction": "correction",
    "exchange": "exchange",
    "id": "id",
    "price": "price",
    "size": "size",
    "participant_timestamp": "ts_participant",
    "sip_timestamp": "ts_event",
    "trf_timestamp": "ts_trf",
    "trf_id": "trf_id",
    "tape": "tape",
    "sequence_number": "sequence",
    "bid_price": "bid",
    "ask_price": "ask",
    "bid_size": "bid_size",
    "ask_size": "ask_size",
    "bid_exchange": "bid_exchange",
    "ask_exchange": "ask_exchange",
}
NONE_WHEN_ZERO = {"bid_price", "ask_price", "trf_id", "trf_timestamp"}


def samples() -> list[tuple[str, str]]:
    return sorted(SAMPLES.items())


def rows_of(path: Path) -> list[tuple[bytes, dict[str, str], date]]:
    """Each row as a file of its own, as a dictionary, and its New York date."""
    header, *lines = path.read_bytes().splitlines(keepends=True)
    out = []
    for line in lines:
        [row] = csv.DictReader(io.StringIO((header + line).decode()))
        stamp = int(row.get("sip_timestamp") or row["window_start"])
        day = datetime.fromtimestamp(stamp // 10**9, ZoneInfo("America/New_York")).date()
        out.append((header + line, row, day))
    return out


def expected(name: str, text: str) -> object:
    if name in ("conditions", "indicators"):
        return [int(code) for code in text.split(",")] if text else None
    if name in ("ticker", "id"):
        return text
    if name == "correction":
        return int(text or 0)
    if text == "" or (name in NONE_WHEN_ZERO and Decimal(text) == 0):
        return None
    return Decimal(text)


@pytest.mark.judge
@pytest.mark.parametrize(("sample", "product"), samples())
def test_every_row_the_vendor_shows_is_read_field_by_field(shared: Path, sample: str, product: str) -> None:
    for text, row, day in rows_of(shared / "payloads" / sample):
        table = wire.read_flat_file(text, product, day=day)
        assert table.schema.equals(SCHEMAS[wire.PRODUCTS[product].kind])
        [got] = table.to_pylist()
        for name, written in row.items():
            value = got[COLUMN[name]]
            value = Decimal(repr(value)) if isinstance(value, float) else value
            assert value == expected(name, written), name
        if "session" in got:
            assert got["session"] == day
        else:
            assert (got["arrival"], got["ts_recv"]) == (0, None)


@pytest.mark.judge
@pytest.mark.parametrize(("sample", "product"), samples())
def test_every_row_the_vendor_shows_is_written_back_to_the_byte(
    shared: Path, sample: str, product: str
) -> None:
    for text, _, day in rows_of(shared / "payloads" / sample):
        again = wire.write_flat_file(wire.read_flat_file(text, product, day=day), product)
        if any(mark.encode() in text for mark in NOT_AS_IN_FILES):
            assert again != text
            assert wire.read_flat_file(again, product, day=day).equals(
                wire.read_flat_file(text, product, day=day)
            )
        else:
            assert again == text


@pytest.mark.judge
def test_every_sample_of_a_stock_product_is_judged(shared: Path) -> None:
    there = {
        f"{folder}/{path.name}"
        for folder in ("flatfiles", "rows_and_frames")
        for path in (shared / "payloads" / folder).glob("*.csv")
        if path.name.startswith("us_stocks") or folder == "rows_and_frames"
    }
    assert there == set(SAMPLES)


@pytest.mark.judge
def test_a_decimal_trade_by_hand(shared: Path) -> None:
    path = shared / "payloads/flatfiles/us_stocks_sip-trades_v1.csv"
    [trade] = wire.read_flat_file(path, TRADES, day=date(2026, 5, 22)).to_pylist()
    assert trade == {
        "ts_event": 1779436803799308985,
        "ts_recv": None,
        "arrival": 0,
        "symbol": "A",
        "price": 114.79,
        "size": 4.0,
        "exchange": 4,
        "conditions": [12, 37],
        "sequence": 3478,
        "id": "52983525159748",
        "tape": 1,
        "correction": 0,
        "ts_participant": 1779427811494482943,
        "trf_id": 201,
        "ts_trf": 1779436803799271495,
    }


@pytest.mark.judge
def test_an_empty_opening_quote_by_hand(shared: Path) -> None:
    path = shared / "payloads/flatfiles/us_stocks_sip-quotes_v1.csv"
    [quote] = wire.read_flat_file(path, QUOTES, day=date(2026, 5, 22)).to_pylist()
    assert (quote["bid"], quote["bid_size"], quote["bid_exchange"]) == (None, 0.0, 12)
    assert (quote["ask"], quote["ask_size"], quote["ask_exchange"]) == (None, 0.0, 12)
    assert (quote["conditions"], quote["indicators"], quote["ts_trf"]) == ([1, 81], None, None)


@pytest.mark.judge
@pytest.mark.parametrize("product", sorted(wire.PRODUCTS))
def test_a_real_day_goes_through_a_table_and_back_to_the_byte(real_day: Path, product: str) -> None:
    with gzip.open(real_day / wire.file_key(product, REAL_DAY)) as stream:
        text = b"".join(line for line, _ in zip(stream, range(20_001), strict=False))
    table = wire.read_flat_file(text, product, day=REAL_DAY)
    assert wire.write_flat_file(table, product) == text
    assert wire.read_flat_file(gzip.compress(text, 1), product, day=REAL_DAY).equals(table)
    decimal = wire.write_flat_file(table, product, style="decimal")
    assert wire.read_flat_file(decimal, product, day=REAL_DAY).equals(table)
    assert (decimal == text) == (product == QUOTES)


@pytest.mark.judge
@pytest.mark.slow
@pytest.mark.parametrize("product", sorted(wire.PRODUCTS))
def test_the_whole_real_day_goes_through_and_back_to_the_byte(real_day: Path, product: str) -> None:
    path = real_day / wire.file_key(product, REAL_DAY)
    with gzip.open(path) as stream:
        assert (
            wire.write_flat_file(wire.read_flat_file(path, product, day=REAL_DAY), product) == stream.read()
        )


def test_a_file_in_blocks_is_the_same_file(real_day: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_day / wire.file_key(MINUTES, REAL_DAY)
    whole = wire.read_flat_file(path, MINUTES, day=REAL_DAY)
    monkeypatch.setattr("tapelab.massive.wire.csvfile.BLOCK", 4096)
    blocks = list(wire.iter_flat_file(path, MINUTES, day=REAL_DAY))
    assert len(blocks) > 10
    assert pa.concat_tables(blocks).equals(whole)


def test_columns_are_found_by_their_header_and_new_ones_left_alone() -> None:
    text = b"later,low,high,close,open,ticker,transactions,window_start,volume\nx,1,4,3,2,A,9,%d,7.5\n"
    stamp = 1779456600000000000
    [bar] = wire.read_flat_file(text % stamp, MINUTES, day=date(2026, 5, 22)).to_pylist()
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (2.0, 4.0, 1.0, 3.0)
    assert (bar["volume"], bar["transactions"], bar["vwap"]) == (7.5, 9, None)


def test_tickers_that_other_readers_take_for_nothing_stay_tickers() -> None:
    header = ",".join(wire.PRODUCTS[DAY_BARS].header)
    names = ["NA", "NULL", "TRUE", "nan", "BApA", "BAPA", "NE.WS.A", "1E5"]
    lines = [f"{name},1,1,1,1,1,1779422400000000000,1" for name in names]
    text = "\n".join([header, *lines]).encode()
    assert wire.read_flat_file(text, DAY_BARS, day=date(2026, 5, 22))["symbol"].to_pylist() == names


@pytest.mark.judge
def test_the_number_style_follows_the_day_of_the_rows(shared: Path) -> None:
    header = ",".join(wire.PRODUCTS[DAY_BARS].header) + "\n"
    last_whole = (header + "A,5,9.5,9.0,9.5,9.0,1771563600000000000,2\n").encode()  # 2026-02-20, a Friday
    first_decimal = (
        header + "A,5.000000,9.500000,9.000000,9.500000,9.000000,1771822800000000000,2\n"
    ).encode()
    for text, day in ((last_whole, date(2026, 2, 20)), (first_decimal, date(2026, 2, 23))):
        assert wire.write_flat_file(wire.read_flat_file(text, DAY_BARS, day=day), DAY_BARS) == text


def test_a_file_of_nothing_but_its_header_is_an_empty_table() -> None:
    for product in wire.PRODUCTS.values():
        header = (",".join(product.header) + "\n").encode()
        table = wire.read_flat_file(header, product.name, day=REAL_DAY)
        assert table.equals(SCHEMAS[product.kind].empty_table())
        assert wire.write_flat_file(table, product.name) == header


BAR = "A,18218,138.0,137.93,138.36,137.75,1769178600000000000,125"
QUOTE = 'A,8,180.0,100,11,164.28,100,"1,81",,1629716400001245000,79497,1629716400044243200,1,0'
TRADE = 'A,"12,37",0,12,62879131135034,1769161728012624580,137.73,4798,1769161728012983416,15,1,0,0'


@pytest.mark.parametrize(
    ("product", "day", "row", "old", "new", "says"),
    [
        (MINUTES, date(2026, 1, 23), BAR, "18218", "many", "row 3: .*many"),
        (MINUTES, date(2026, 1, 23), BAR, "18218", "", "row 3: volume None is missing"),
        (MINUTES, date(2026, 1, 23), BAR, "18218", "-5", "row 3: volume -5.0 is negative"),
        (MINUTES, date(2026, 1, 23), BAR, "137.93", "nan", "row 3: close nan is not a number"),
        (MINUTES, date(2026, 1, 23), BAR, "137.93", "inf", "row 3: close inf is not a number"),
        (MINUTES, date(2026, 1, 23), BAR, "A,", ",", "row 3: ticker '' is not valid"),
        (MINUTES, date(2026, 1, 23), BAR, ",125", "", "row 3: .*8 columns"),
        (MINUTES, date(2026, 1, 23), BAR, ",125", ",125,9", "row 3: .*8 columns"),
        (MINUTES, date(2026, 1, 23), BAR, ",125", ",-125", "row 3: transactions -125 is negative"),
        # The vendor's published sample lost two digits of its stamps.
        (MINUTES, date(2026, 1, 23), BAR, "1769178600000000000", "16799904000000000", "row 3: window_start"),
        # Every stamp of the options file of 2025-02-10 read like this.
        (MINUTES, date(2026, 1, 23), BAR, "1769178600000000000", "-68400000000000", "row 3: .*2026-01-23"),
        (MINUTES, date(2026, 1, 23), BAR, "1769178600000000000", "1769178600000", "row 3: window_start"),
        (MINUTES, date(2026, 1, 23), BAR, "1769178600000000000", "1.7691786e18", "row 3: .*1.7691786e18"),
        (MINUTES, date(2026, 1, 23), BAR, "1769178600000000000", "99999999999999999999", "row 3: .*99999"),
        (MINUTES, date(2026, 1, 22), BAR, "A,", "A,", "row 2: window_start .* is not on 2026-01-22"),
        (QUOTES, date(2021, 8, 23), QUOTE, '"1,81"', '"1;81"', "row 3: conditions '1;81' is not valid"),
        (QUOTES, date(2021, 8, 23), QUOTE, '"1,81"', '"1,"', "row 3: conditions '1,' is not valid"),
        (QUOTES, date(2021, 8, 23), QUOTE, '"1,81"', "99999", "row 3: conditions '99999' is not valid"),
        (QUOTES, date(2021, 8, 23), QUOTE, '"1,81"', '"1,81', "row"),
        (QUOTES, date(2021, 8, 23), QUOTE, "A,8,", "A,80000,", "row 3: .*80000"),
        (QUOTES, date(2021, 8, 23), QUOTE, ",1,0", ",300,0", "row 3: .*300"),
        (QUOTES, date(2021, 8, 23), QUOTE, "1629716400001245000", "16297164000012450", "is no time"),
        (TRADES, date(2026, 1, 23), TRADE, "137.73", "137,73", "row 3: .*13 columns"),
        (TRADES, date(2026, 1, 23), TRADE, "1769161728012983416", "", "row 3: sip_timestamp None is missing"),
        (TRADES, date(2026, 1, 23), TRADE, "A,", "\x00,", "row 3: ticker .* is not valid"),
        (TRADES, date(2026, 1, 23), TRADE, "A,", "\udcff,", "row 3: .*UTF8"),
    ],
)
def test_a_row_that_the_product_cannot_hold_is_refused_by_name(
    product: str, day: date, row: str, old: str, new: str, says: str
) -> None:
    header = ",".join(wire.PRODUCTS[product].header)
    text = f"{header}\n{row}\n{row.replace(old, new, 1)}\n".encode("utf-8", "surrogateescape")
    for source in (text, gzip.compress(text)):
        with pytest.raises(MalformedAnswer, match=says) as caught:
            wire.read_flat_file(source, product, day=day)
        assert product in str(caught.value)
        assert caught.value.remedy


def test_the_row_is_named_in_later_blocks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tapelab.massive.wire.csvfile.BLOCK", 4096)
    header = ",".join(wire.PRODUCTS[MINUTES].header)
    for broken in (BAR.replace("18218", "x"), BAR.replace("18218", "-1")):
        lines = [header, *[BAR] * 500, broken, *[BAR] * 500]
        with pytest.raises(MalformedAnswer, match="row 502:"):
            wire.read_flat_file("\n".join(lines).encode(), MINUTES, day=date(2026, 1, 23))


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"", "the header lacks 'ticker'"),
        (b"ticker,volume,open,close,high,low,transactions\n", "the header lacks 'window_start'"),
        (b"<html><body>404</body></html>\n", "the header lacks"),
        (b"ticker,ticker,volume,open,close,high,low,window_start,transactions\n", "'ticker' twice"),
        (b"A,18218,138.0,137.93,138.36,137.75,1769178600000000000,125\n", "the header lacks"),
    ],
)
def test_a_file_with_another_header_is_refused(header: bytes, says: str) -> None:
    with pytest.raises(MalformedAnswer, match=says):
        wire.read_flat_file(header, MINUTES, day=REAL_DAY)


def test_a_cut_or_flipped_archive_is_damaged_whatever_it_seems_to_say(tmp_path: Path, real_day: Path) -> None:
    whole = (real_day / wire.file_key(MINUTES, REAL_DAY)).read_bytes()
    path = tmp_path / "2013-10-09.csv.gz"
    broken = [whole[:5], whole[: len(whole) // 2], whole[:-1], whole[:-8] + b"\0" * 8, whole + b"\1more"]
    broken += [whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :] for at in range(60, len(whole), 977)]
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(Damaged, match=r"2013-10-09\.csv\.gz") as caught:
            wire.read_flat_file(path, MINUTES, day=REAL_DAY)
        assert "again" in caught.value.remedy


def test_a_misspelt_product_or_style_is_refused() -> None:
    with pytest.raises(UnknownName, match="quotes_v1"):
        wire.read_flat_file(b"", "us_stocks_sip/quote_v1", day=REAL_DAY)
    with pytest.raises(UsageError, match="style"):
        wire.write_flat_file(SCHEMAS["bars"].empty_table(), MINUTES, style="old")  # type: ignore[arg-type]
