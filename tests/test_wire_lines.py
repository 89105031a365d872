"""The compiled reading of daily files: what it takes, pyarrow reads the same; the rest is left to pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import csv

from tapelab import errors
from tapelab.massive import wire
from tapelab.massive.wire import catalogue, compiled, csvfile, flatfile, lines
from tapelab.massive.wire.lines import BEHIND, Lines

DAY = date(2013, 10, 9)
MINUTES = "us_stocks_sip/minute_aggs_v1"
TYPES = {"whole": pa.int64(), "ticker": lines.NAME, "real": pa.float64(), "more": pa.float64()}


@pytest.fixture(scope="module", autouse=True)
def _kernel() -> None:
    assert compiled.wait() is not None, compiled.problem()


def by_pyarrow(text: bytes, header: list[str]) -> pa.Table:
    return csv.read_csv(
        pa.BufferReader(text),
        read_options=csv.ReadOptions(use_threads=False, column_names=header),
        convert_options=csv.ConvertOptions(column_types=TYPES, null_values=[""], strings_can_be_null=False),
    )


def read(text: bytes, header: list[str]) -> pa.Table | None:
    """What the kernel makes of a text; whatever it takes is what pyarrow reads, or the test fails."""
    plain = Lines.of(header, TYPES)
    assert plain is not None
    batch = plain.read(text + BEHIND)
    if batch is None:
        return None
    batch.validate(full=True)
    table = pa.Table.from_batches([batch])
    expected = by_pyarrow(text, header)
    assert table.schema.equals(expected.schema)
    for name in header:
        assert table[name].to_pylist() == expected[name].to_pylist(), name
    return table


names = st.text("ABZz.:/-^", min_size=1, max_size=20)
wholes = st.integers(0, 9 * 10**18 - 1).map(str) | st.integers(0, 10**6).map(str)
decimals = st.decimals(0, 10**9, places=6).map(str) | st.decimals(0, 10**5, places=2).map(str) | wholes
AWKWARD = [
    "",
    " ",
    "0",
    "-0",
    "-1",
    "+1",
    "007",
    "00",
    ".5",
    "5.",
    "1e5",
    "1.5",
    "nan",
    "inf",
    "NA",
    "1,2",
    "\r",
]
AWKWARD += ['"1"', '"', "x", "é", "\x00", "\t1", "1 ", "9007199254740993", "0.1234567890123456789", "1" * 19]
AWKWARD += ["9223372036854775807", "9223372036854775808", "8999999999999999999", "1" * 30, "1." + "0" * 25]
headers = st.permutations(list(TYPES))


@given(st.lists(st.tuples(wholes, names, decimals, decimals), min_size=1, max_size=30), headers)
def test_plain_lines_are_taken_up_to_what_a_double_holds(
    rows: list[tuple[str, ...]], header: list[str]
) -> None:
    by_name = [dict(zip(TYPES, row, strict=True)) for row in rows]
    text = "".join(",".join(row[name] for name in header) + "\n" for row in by_name).encode()
    certain = all(
        len(row[name].replace(".", "")) <= 18 and int(row[name].replace(".", "")) <= 2**53
        for row in by_name
        for name in ("real", "more")
    )
    table = read(text, header)
    if certain and all(len(row["whole"]) != 19 or row["whole"][0] != "9" for row in by_name):
        assert table is not None
        assert len(table) == len(rows)


@given(
    st.lists(
        st.lists(decimals | names | st.sampled_from(AWKWARD), min_size=3, max_size=5), min_size=1, max_size=6
    ),
    st.sampled_from(["\n", "\r\n", "\n\n"]),
    st.booleans(),
    headers,
)
@example([["1", "A", "1", "1"], ["2", "A", "1"]], "\n", True, list(TYPES))
@example([["1", "A", "1", "1"]], "\n", False, list(TYPES))
def test_of_lines_that_are_not_plain_none_is_taken_wrongly(
    rows: list[list[str]], end: str, ended: bool, header: list[str]
) -> None:
    text = end.join(",".join(row) for row in rows) + (end if ended else "")
    read(text.encode(), header)


@pytest.mark.parametrize("which", list(TYPES))
@pytest.mark.parametrize("value", AWKWARD)
def test_an_awkward_value_among_plain_lines_is_read_as_pyarrow_reads_it(which: str, value: str) -> None:
    row = {"whole": "12", "ticker": "BRK.A", "real": "1.25", "more": "100"}
    text = "".join(",".join({**row, **change}.values()) + "\n" for change in ({}, {which: value}, {}))
    read(text.encode(), list(TYPES))


def test_bars_of_every_market_are_read_so_and_nothing_else() -> None:
    taken = set()
    for name, kind in catalogue.CATALOGUE.items():
        if kind.product is not None:
            file = flatfile._File(b"", kind.product, DAY, None)
            if Lines.of(kind.header, file.types()):
                taken.add(name)
            assert Lines.of([*kind.header, "added"], file.types()) is None
    assert taken == {name for name, kind in catalogue.CATALOGUE.items() if kind.product and kind.bars}


@pytest.fixture(params=["compiled", "plain"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csvfile, "BLOCK", 1 << 12)
        if request.param == "plain":
            patch.setattr(compiled, "_kernel", None)
        yield request.param


@pytest.mark.parametrize("style", ["whole", "decimal"])
def test_a_real_day_is_read_alike_either_way(real_day: Path, way: str, style: wire.fields.Style) -> None:
    text = (real_day / wire.file_key(MINUTES, DAY)).read_bytes()
    table = wire.read_flat_file(text, MINUTES, day=DAY)
    written = wire.write_flat_file(table, MINUTES, style=style)
    assert len(written) > 10 * csvfile.BLOCK
    assert wire.read_flat_file(written, MINUTES, day=DAY).equals(table)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("row", "column", "value", "said"),
    [
        (2, 4, "", "high None is missing"),
        (900, 6, "1", "is not on"),
        (901, 0, "A B", "not valid"),
        (7, 2, "x", "x"),
    ],
)
def test_a_wrong_row_is_named_either_way(
    real_day: Path, row: int, column: int, value: str, said: str
) -> None:
    table = wire.read_flat_file(real_day / wire.file_key(MINUTES, DAY), MINUTES, day=DAY)
    text = wire.write_flat_file(pa.concat_tables([table] * 3), MINUTES).decode().split("\n")
    fields = text[row - 1].split(",")
    fields[column] = value
    text[row - 1] = ",".join(fields)
    with pytest.raises(errors.MalformedAnswer, match=f"row {row}.*{said}"):
        wire.read_flat_file("\n".join(text).encode(), MINUTES, day=DAY)
