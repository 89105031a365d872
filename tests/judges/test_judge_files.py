"""Daily files of every kind that the vendor lists, written by polars: read as it reads them, or refused."""

from __future__ import annotations

import gzip
import re
import zlib
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import papers
import polars as pl
import pyarrow as pa
import pytest
from papers import MINUTE, SECOND
from polars.exceptions import PolarsError
from polars.testing import assert_frame_equal
from test_judge_other_markets import SAMPLE, ZONES

from tapelab.errors import Damaged, MalformedAnswer
from tapelab.market.tables import SCHEMAS
from tapelab.massive import wire
from tapelab.massive.wire import catalogue
from tapelab.massive.wire.csvfile import BLOCK, Notes
from tapelab.massive.wire.otherfile import flat_file

pytestmark = pytest.mark.judge

DAY = date(2026, 10, 2)
STOCKS, FUTURES = "us_stocks_sip/trades_v1", "us_futures_comex/quotes_v1"
DAYS = "us_stocks_sip/day_aggs_v1"
FEW = 300
FIRST, LAST = 631_152_000 * SECOND, 4_102_444_800 * SECOND  # 1990 and 2100
LOST = -68_400 * SECOND  # how every bar of the options file of 2025-02-10 is stamped
TICKERS = ("A", "BRK.B", "NA", "NULL", "TRUE", "nan", "1E5", "I:SPX", "C:EUR-USD")
EXTRA = "told_since_yesterday"  # a column that nobody knows yet

TYPES: dict[str, Any] = {
    **dict.fromkeys(("ticker", "id", "conditions", "indicators", EXTRA), pl.String),
    **dict.fromkeys(("open", "high", "low", "close", "volume", "price", "size", "value"), pl.Float64),
    **dict.fromkeys(("bid_price", "ask_price", "bid_size", "ask_size"), pl.Float64),
    **dict.fromkeys(("dollar_volume", "settlement_price"), pl.Float64),
    "session_end_date": pl.Date,
}  # the others are whole numbers
OPTIONAL = {"bid_price", "ask_price", "bid_size", "ask_size", "dollar_volume", "settlement_price"}
CODES = {"exchange", "bid_exchange", "ask_exchange", "tape", "correction", "trf_id"}
CLOCKS = ("window_start", "sip_timestamp", "timestamp", "participant_timestamp")  # the first is the row's own
OTHER_CLOCKS = ("trf_timestamp", "ask_timestamp", "bid_timestamp")
# What columns are called in our own schema, if not the same.
OURS = {
    "ticker": "symbol",
    "window_start": "timestamp",
    "sip_timestamp": "ts_event",
    "trf_timestamp": "ts_trf",
    "bid_price": "bid",
    "ask_price": "ask",
    "sequence_number": "sequence",
}
LISTS = ("conditions", "indicators")
NONE_WHEN_ZERO = ("bid", "ask", "trf_id", "ts_trf", "ts_participant")


def headers(shared: Path) -> dict[str, list[str]]:
    """What the vendor's files of every kind begin with."""
    found = {f"us_stocks_sip/{name}": text.split(",") for name, text in papers.HEADERS.items()}
    for path in sorted((shared / "payloads/flatfiles").glob("*.csv")):
        if match := SAMPLE.match(path.name):
            names = path.read_text().splitlines()[0].split(",")
            for exchange in ("cme", "cbot", "comex", "nymex"):
                found[f"{match['prefix'].replace('_X', f'_{exchange}')}/{match['kind']}"] = names
    return found


def edges(product: str) -> tuple[int, int]:
    """The first and the last instant of the day."""
    zone = ZoneInfo({**ZONES, "us_stocks_sip": "America/New_York"}.get(product.split("/")[0], "UTC"))
    first, after = (datetime.combine(day, time(), zone) for day in (DAY, DAY + timedelta(days=1)))
    return int(first.timestamp()) * SECOND, int(after.timestamp()) * SECOND - 1


def filled(product: str, header: list[str], rows: int = FEW) -> pl.DataFrame:
    """Rows of a kind of file, with all that the vendor may write in place of a value."""
    chance = np.random.default_rng(papers.SEED)
    clock = next(name for name in CLOCKS if name in header)
    stamps = papers.instant(DAY, 12) + chance.integers(0, MINUTE, rows)

    def column(name: str) -> tuple[list[Any], tuple[object, ...]]:
        """Values, and what else may stand there."""
        if name == "ticker":
            return sorted(chance.choice(TICKERS, rows).tolist()), ()
        if name == clock:
            return stamps.tolist(), edges(product) + ((LOST,) if "day_aggs" in product else ())
        if name in CLOCKS or name in OTHER_CLOCKS:
            return (stamps - SECOND).tolist(), (None, 0, FIRST, LAST)
        if name in LISTS:
            return chance.choice(["12", "12,37", "14,12,37,41", "0"], rows).tolist(), (None,)
        if name == "session_end_date":
            return chance.choice(["2026-10-02", "2026-10-05"], rows).tolist(), (None,)
        if TYPES.get(name) is pl.String:
            return chance.choice(["7", 'a "b", c', "d,e", "52983525159748"], rows).tolist(), (None,)
        if name in TYPES:
            below = (-1.5,) if product.startswith("us_indices") else ()
            values = chance.integers(1, 10**9, rows) / 10_000
            return values.tolist(), (
                0.0,
                0.00001,
                12_345_678.9,
                *below,
                *([None] if name in OPTIONAL else []),
            )
        return chance.integers(1, 120 if name in CODES else 10**9, rows).tolist(), (None, 0)

    made = {}
    for name in (*header, EXTRA):
        values, others = column(name)
        for place, other in enumerate(others, 1):
            values[place :: len(others) + 5] = [other] * len(values[place :: len(others) + 5])
        made[name] = values
    return pl.DataFrame(made, strict=False)


def in_our_schema(theirs: pl.DataFrame) -> pl.DataFrame:
    """What a file of stocks, options, crypto, forex or indices says, in our columns."""
    last = "ts_participant" if "sip_timestamp" in theirs.columns else "ts_event"
    out = theirs.drop(EXTRA).rename({**OURS, "participant_timestamp": last}, strict=False)
    return out.with_columns(
        *(pl.col(name).str.split(",").cast(pl.List(pl.Int16)) for name in LISTS if name in out),
        *(pl.col(name).replace(0, None) for name in NONE_WHEN_ZERO if name in out),
        *(pl.col(name).fill_null(0) for name in {"correction"} & set(out.columns)),
    )


def judged(path: Path, product: str) -> int:
    """Compare a file with what polars reads; gives in how many blocks it came."""
    names = pl.read_csv(path, n_rows=0).columns
    theirs = pl.read_csv(path, schema_overrides={name: TYPES.get(name, pl.Int64) for name in names})
    notes = Notes()
    schema, tables = flat_file(path, product, day=DAY, notes=notes)
    blocks = list(tables)
    ours = pl.from_arrow(pa.concat_tables(blocks))
    assert isinstance(ours, pl.DataFrame)
    assert all(block.schema.equals(schema) for block in blocks)
    known = catalogue.kind_named(product).product
    if known is None:
        times = [name for name in names if name in CLOCKS or name in OTHER_CLOCKS]
        utc = pl.col(times).cast(pl.Datetime("ns")).dt.replace_time_zone("UTC")
        assert_frame_equal(ours, theirs.with_columns(utc), check_exact=True)
        return len(blocks)
    assert schema.equals(SCHEMAS[known.kind])
    expected = in_our_schema(theirs)
    if known.interval == "1d":  # whatever its bars are stamped with, they are those of the day
        first = edges(product)[0]
        lost, late = (expected["timestamp"] == LOST).sum(), (expected["timestamp"] > first).sum()
        assert [note.split(":")[0] for note in notes.lines] == [f"{lost} rows", f"{late} rows"]
        expected = expected.with_columns(timestamp=pl.lit(first))
    else:
        assert notes.lines == ()
    assert_frame_equal(ours.select(expected.columns), expected, check_exact=True, check_dtypes=False)
    if known.kind == "bars":
        assert set(ours["session"]) == {DAY}
    else:
        assert ours["arrival"].to_list() == list(range(len(theirs)))
    if known.kind == "trades" and "correction" not in names:
        assert set(ours["correction"]) == {0}
    return len(blocks)


def test_every_kind_of_file_is_read_as_polars_reads_it(shared: Path, tmp_path: Path) -> None:
    found = headers(shared)
    assert set(found) == set(catalogue.CATALOGUE)
    for product, header in found.items():
        assert catalogue.kind_named(product).header == tuple(header)
        for names, end in ((header, "\n"), (header[::-1], "")):
            path = tmp_path / f"{DAY}.csv"
            path.write_text(filled(product, names).write_csv().removesuffix("\n") + end)
            judged(path, product)


@pytest.mark.parametrize("product", [STOCKS, FUTURES])
def test_a_file_of_many_blocks_is_read_as_polars_reads_it(shared: Path, tmp_path: Path, product: str) -> None:
    rows = filled(product, headers(shared)[product], 3_000)
    text = pl.concat([rows] * 80).with_columns(sequence_number=pl.int_range(pl.len())).write_csv()
    assert len(text) > 5 * BLOCK
    path = tmp_path / f"{DAY}.csv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1))
    assert judged(path, product) > 5


@pytest.mark.parametrize("product", [name for name in wire.PRODUCTS if "day_aggs" not in name])
@pytest.mark.parametrize("style", ["whole", "decimal"])
def test_a_file_that_we_write_is_read_by_polars_as_its_own(
    shared: Path, product: str, style: wire.fields.Style
) -> None:
    header = headers(shared)[product]
    theirs = filled(product, header).select(header)
    text = theirs.write_csv().encode()
    table = wire.read_flat_file(text, product, day=DAY)
    ours = wire.write_flat_file(pa.concat_tables([table, table]), product, style=style)
    assert not re.search(rb"\de[-+]?\d|\d\.(?!\d)", ours)  # the vendor writes no exponents
    again = pl.read_csv(ours, schema_overrides=theirs.schema)
    assert_frame_equal(again.fill_null(0), pl.concat([theirs, theirs]).fill_null(0), check_exact=True)


def test_a_file_of_nothing_but_its_header_is_an_empty_table(shared: Path) -> None:
    for product in wire.PRODUCTS:
        text = ",".join(headers(shared)[product]) + "\n"
        table = wire.read_flat_file(text.encode(), product, day=DAY)
        assert (len(table), len(pl.read_csv(text.encode()))) == (0, 0)
        assert table.schema.equals(SCHEMAS[wire.PRODUCTS[product].kind])
        assert wire.write_flat_file(table, product).decode() == text


BASES = {"1m": "minute_aggs_v1", "1d": "day_aggs_v1", "trades": "trades_v1", "quotes": "quotes_v1"}
REFUSED = [
    (FUTURES, "ticker", ""),
    (FUTURES, "timestamp", f"{FIRST - 1}"),
    (FUTURES, "timestamp", f"{LAST + 1}"),
    (FUTURES, "bid_timestamp", "1"),
    (FUTURES, "bid_timestamp", "-1"),
    (FUTURES, "bid_price", "inf"),
    (FUTURES, "ask_size", "nan"),
    (FUTURES, "ask_price", "much"),
    (FUTURES, "report_sequence", "1.5"),
    (FUTURES, "session_end_date", "2026-02-30"),
    (DAYS, "window_start", ""),
    (STOCKS, "ticker", ""),
    (STOCKS, "ticker", "A B"),
    (STOCKS, "conditions", "12;37"),
    (STOCKS, "conditions", "12345"),
    (STOCKS, "sip_timestamp", ""),
    (STOCKS, "sip_timestamp", f"{papers.instant(DAY, 0) - 1}"),
    (STOCKS, "sip_timestamp", f"{papers.instant(DAY + timedelta(days=1), 0)}"),
    (STOCKS, "participant_timestamp", f"{FIRST - 1}"),
    (STOCKS, "trf_timestamp", f"{LAST + 1}"),
    (STOCKS, "price", ""),
    (STOCKS, "price", "inf"),
    (STOCKS, "size", "nan"),
    (STOCKS, "size", "-0.5"),
    (STOCKS, "exchange", "-1"),
    (STOCKS, "tape", "300"),
    (STOCKS, "sequence_number", "-1"),
]


@pytest.mark.parametrize(("product", "column", "text"), REFUSED)
def test_what_a_market_cannot_have_is_refused_by_file_row_and_value(
    shared: Path, tmp_path: Path, product: str, column: str, text: str
) -> None:
    rows = filled(product, headers(shared)[product], 3_000).cast(pl.String)
    many = pl.concat([rows] * 25)
    bad = 70_000
    said = pl.when(pl.int_range(pl.len()) == bad).then(pl.lit(text or None)).otherwise(pl.col(column))
    path = tmp_path / f"{DAY}.csv"
    many.with_columns(said.alias(column)).write_csv(path)
    with path.open("rb") as file:
        assert sum(map(len, (file.readline() for _ in range(bad)))) > BLOCK
    _, tables = flat_file(path, product, day=DAY, notes=Notes())
    with pytest.raises(MalformedAnswer) as caught:
        list(tables)
    assert caught.value.facts == {"file": path.name, "row": bad + 2}
    assert f"{path.name}, row {bad + 2}: " in str(caught.value)
    assert text.removeprefix("-") in str(caught.value)
    assert column in str(caught.value) or f"#{rows.columns.index(column)}:" in str(caught.value)


def test_every_market_is_read_from_the_files_that_it_has(shared: Path) -> None:
    found = headers(shared)
    for market in {kind.market for kind in catalogue.CATALOGUE.values()}:
        prefix = next(
            kind.name.split("/")[0] for kind in catalogue.CATALOGUE.values() if kind.market is market
        )
        for base, short in BASES.items():
            product = catalogue.product_of(market, base)
            name = f"{prefix}/{short}"
            there = name in found and not prefix.startswith(
                "us_futures"
            )  # for which there is no schema of ours
            assert (product and product.name) == (name if there else None)


@pytest.mark.parametrize("product", [STOCKS, FUTURES])
def test_a_file_whose_header_polars_cannot_use_is_refused(shared: Path, tmp_path: Path, product: str) -> None:
    header = headers(shared)[product]
    rows = filled(product, header)
    path = tmp_path / f"{DAY}.csv"
    text = rows.write_csv()
    for name in header:
        lacking = rows.drop(name).write_csv()
        path.write_text(lacking)
        with pytest.raises(PolarsError):
            pl.read_csv(path, columns=header)
        with pytest.raises(MalformedAnswer, match=f"row 1: the header lacks '{name}'") as caught:
            list(flat_file(path, product, day=DAY, notes=Notes())[1])
        assert caught.value.facts == {"file": path.name, "row": 1}
    for coded in (text.encode("utf-16"), b"\xff" + text.encode()):
        path.write_bytes(coded)
        with pytest.raises(PolarsError):
            pl.read_csv(path, columns=header)
        with pytest.raises(MalformedAnswer, match="row 1: the header lacks"):
            list(flat_file(path, product, day=DAY, notes=Notes())[1])
    path.write_text(text.replace(EXTRA, header[-1], 1))
    with pytest.raises(MalformedAnswer, match=f"row 1: the header has '{header[-1]}' twice"):
        list(flat_file(path, product, day=DAY, notes=Notes())[1])


@pytest.mark.parametrize("product", [STOCKS, FUTURES])
def test_an_archive_that_gzip_refuses_is_damaged_whatever_it_says(
    shared: Path, tmp_path: Path, product: str
) -> None:
    rows = filled(product, headers(shared)[product], 5_000)
    path = tmp_path / f"{DAY}.csv.gz"
    for frame in (rows, rows.cast(pl.String).with_columns(ticker=pl.lit(""))):
        whole = gzip.compress(frame.write_csv().encode())
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 0x55]) + whole[middle + 1 :]
        for content in (whole[:5], whole[:middle], whole[:-1], whole[:-8] + bytes(8), flipped):
            with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
                gzip.decompress(content)
            path.write_bytes(content)
            with pytest.raises(Damaged, match=path.name) as caught:
                list(flat_file(path, product, day=DAY, notes=Notes())[1])
            assert caught.value.facts == {"file": path.name}
