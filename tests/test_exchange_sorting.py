"""A day larger than memory comes in the same order as a small one, and nothing of it stays on the disk."""

from __future__ import annotations

import io
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from isal import igzip
from pyarrow import csv

from tapelab.errors import Damaged, Unwritable, UsageError
from tapelab.exchange.tape.sorting import LEAST_MEMORY, READING, sort_day
from tapelab.market import sessions, tables
from tapelab.market.clock import HOUR
from tapelab.market.replay import in_order_of_arrival
from tapelab.market.symbols import Market
from tapelab.massive import wire

QUOTES, TRADES = "us_stocks_sip/quotes_v1", "us_stocks_sip/trades_v1"
DAY = date(2025, 10, 2)
REAL_DAY = date(2013, 10, 9)
NOON = sessions.day_start(Market.STOCKS, DAY) + 12 * HOUR
SYMBOLS = ("A", "AA", "BApA", "BRK.B", "NA")

# Few instants, so that many rows tie, and in no order, which the vendor does not promise either.
rows = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(SYMBOLS)), max_size=150)
memories = st.sampled_from([LEAST_MEMORY, 3 * LEAST_MEMORY, 1 << 20])


def quotes_file(rows: list[tuple[int, str]]) -> bytes:
    """A file whose sequence numbers tell its rows apart."""
    count = len(rows)
    table = pa.table(
        {
            "ts_event": pa.array([NOON + instant for instant, _ in rows], pa.int64()),
            "symbol": pa.array([symbol for _, symbol in rows], pa.string()),
            "bid": pa.array([None if n % 7 == 0 else 10 + n / 100 for n in range(count)], pa.float64()),
            "ask": pa.array([20 + n / 100 for n in range(count)], pa.float64()),
            "sequence": pa.array(range(1, count + 1), pa.int64()),
            "conditions": pa.array([[1] * (n % 3) or None for n in range(count)], pa.list_(pa.int16())),
        }
    )
    return wire.write_flat_file(tables.conform(table, tables.QUOTES), QUOTES)


def trades_file(rows: list[tuple[int, str]]) -> bytes:
    count = len(rows)
    table = pa.table(
        {
            "ts_event": pa.array([NOON + instant for instant, _ in rows], pa.int64()),
            "symbol": pa.array([symbol for _, symbol in rows], pa.string()),
            "price": pa.array([10 + n / 100 for n in range(count)], pa.float64()),
            "size": pa.array([100.0] * count, pa.float64()),
            "sequence": pa.array(range(1, count + 1), pa.int64()),
            "id": pa.array([str(n) for n in range(count)], pa.string()),
            "correction": pa.array([0] * count, pa.int8()),
        }
    )
    return wire.write_flat_file(tables.conform(table, tables.TRADES), TRADES)


def in_memory(quotes: Path | bytes, trades: Path | bytes, day: date = DAY) -> tuple[pa.Table, pa.Table]:
    read = (wire.read_flat_file(quotes, QUOTES, day=day), wire.read_flat_file(trades, TRADES, day=day))
    return in_order_of_arrival(*read)


def joined(stretches: Iterator[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    """The stretches one after another, each going on in number and in time where the last one ended."""
    pairs = list(stretches)
    place: int | None = None
    last = 0
    for quotes, trades in pairs:
        numbers = np.sort(np.concatenate([table.column("arrival").to_numpy() for table in (quotes, trades)]))
        assert len(numbers)
        assert place is None or numbers[0] == place
        assert np.all(np.diff(numbers) == 1)
        place = int(numbers[-1]) + 1
        stamps = np.concatenate([table.column("ts_event").to_numpy() for table in (quotes, trades)])
        assert stamps.min() >= last
        last = stamps.max()
    return (
        pa.concat_tables([tables.QUOTES.empty_table(), *(quotes for quotes, _ in pairs)]),
        pa.concat_tables([tables.TRADES.empty_table(), *(trades for _, trades in pairs)]),
    )


@contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond `size` bytes, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@settings(deadline=None)
@given(rows, rows, memories)
def test_a_sorted_day_is_the_day_in_order_of_arrival(quotes, trades, memory):
    files = {"quotes": quotes_file(quotes), "trades": trades_file(trades)}
    expected = in_memory(**files)
    with sort_day(**files, day=DAY, memory=memory) as day:
        assert len(day) == len(quotes) + len(trades)
        assert joined(day.stretches()) == expected
        instants = [NOON + instant for instant, _ in (*quotes, *trades)]
        assert (day.first, day.last) == (min(instants, default=None), max(instants, default=None))
        assert day.symbols == {symbol for _, symbol in (*quotes, *trades)}


@settings(deadline=None)
@given(rows, rows, memories, st.integers(-1, 13), st.integers(-1, 13))
def test_a_reader_can_begin_and_end_at_any_instant(quotes, trades, memory, start, until):
    files = {"quotes": quotes_file(quotes), "trades": trades_file(trades)}
    bounds = (pa.scalar(NOON + start), pa.scalar(NOON + until))
    expected = tuple(
        table.filter((pa.compute.field("ts_event") >= bounds[0]) & (pa.compute.field("ts_event") < bounds[1]))
        for table in in_memory(**files)
    )
    with sort_day(**files, day=DAY, memory=memory) as day:
        assert joined(day.stretches(NOON + start, NOON + until)) == expected


@settings(deadline=None)
@given(rows, rows, memories, st.frozensets(st.sampled_from((*SYMBOLS, "ZZZ"))))
def test_only_the_symbols_asked_for_are_kept_and_numbered(quotes, trades, memory, symbols):
    files = {"quotes": quotes_file(quotes), "trades": trades_file(trades)}
    fewer = [[row for row in kind if row[1] in symbols] for kind in (quotes, trades)]
    with sort_day(**files, day=DAY, symbols=symbols, memory=memory) as day:
        found = joined(day.stretches())
    told_apart = ["arrival", "ts_event", "symbol"]
    expected = in_memory(quotes_file(fewer[0]), trades_file(fewer[1]))
    assert [t.select(told_apart) for t in found] == [t.select(told_apart) for t in expected]


def test_a_great_many_runs_are_merged_in_several_passes():
    rng = np.random.default_rng(7)
    rows = [(int(instant), SYMBOLS[n % 5]) for n, instant in enumerate(rng.integers(0, 10**9, 1500))]
    files = {"quotes": quotes_file(rows), "trades": trades_file(rows[:500])}
    with sort_day(**files, day=DAY, memory=LEAST_MEMORY) as day:
        stretches = list(day.stretches())
    assert len(stretches) > 500  # in 4 KiB there is room for a few rows only
    assert joined(iter(stretches)) == in_memory(**files)


def test_two_readers_do_not_disturb_each_other():
    rows = [(n * 37 % 101, SYMBOLS[n % 5]) for n in range(300)]
    files = {"quotes": quotes_file(rows), "trades": trades_file(rows)}
    with sort_day(**files, day=DAY, memory=LEAST_MEMORY) as day:
        pairs = list(zip(day.stretches(), day.stretches(), strict=True))
    assert [left for left, _ in pairs] == [right for _, right in pairs]
    assert joined(left for left, _ in pairs) == in_memory(**files)


@pytest.mark.parametrize("missing", ["quotes", "trades"])
def test_a_day_may_lack_quotes_or_trades(missing):
    rows = [(n * 37 % 101, "A") for n in range(100)]
    whole = {"quotes": quotes_file(rows), "trades": trades_file(rows)}
    empty = {"quotes": quotes_file([]), "trades": trades_file([])}
    with sort_day(**{**whole, missing: None}, day=DAY, memory=LEAST_MEMORY) as day:
        assert joined(day.stretches()) == in_memory(**{**whole, missing: empty[missing]})
    with sort_day(quotes=None, trades=None, day=DAY) as day:
        assert (len(day), day.first, day.last, list(day.stretches())) == (0, None, None, [])


def test_the_real_day_comes_in_order_in_24_mb(real_day):
    quotes, trades = (real_day / wire.file_key(product, REAL_DAY) for product in (QUOTES, TRADES))
    expected = in_memory(quotes, trades, REAL_DAY)
    with sort_day(quotes=quotes, trades=trades, day=REAL_DAY, memory=24 << 20) as day:
        assert joined(day.stretches()) == expected
        half_past_three = sessions.session(Market.STOCKS, REAL_DAY).close - HOUR // 2
        rest = joined(day.stretches(half_past_three))
    for found, whole in zip(rest, expected, strict=True):
        assert found == whole.filter(pa.compute.field("ts_event") >= half_past_three)


def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(tmp_path):
    files = {"quotes": quotes_file([(n, "A") for n in range(3000)]), "trades": None}
    with no_file_above(20_000), pytest.raises(Unwritable, match="no room left") as caught:
        sort_day(**files, day=DAY, memory=LEAST_MEMORY, folder=tmp_path)
    assert "TMPDIR" in caught.value.remedy
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error_that_says_so(tmp_path):
    with pytest.raises(Unwritable, match="nowhere") as caught:
        sort_day(quotes=quotes_file([]), trades=None, day=DAY, folder=tmp_path / "nowhere")
    assert caught.value.remedy


def test_a_file_that_is_cut_gives_nothing_and_leaves_nothing(tmp_path):
    # Random stamps do not pack, so that most rows lie before the cut.
    rng = np.random.default_rng(7)
    whole = igzip.compress(quotes_file([(int(n), "A") for n in rng.integers(0, 10**12, 20_000)]))
    with pytest.raises(Damaged):
        sort_day(quotes=whole[:-200], trades=None, day=DAY, memory=LEAST_MEMORY * 64, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_refused():
    with pytest.raises(UsageError, match="100 bytes"):
        sort_day(quotes=None, trades=None, day=DAY, memory=100)


def test_a_killed_sort_leaves_nothing_on_the_disk(tmp_path):
    quotes, spilled = tmp_path / "quotes.csv", tmp_path / "spilled"
    quotes.write_bytes(quotes_file([(n % 100, "A") for n in range(1000)]))
    spilled.mkdir()
    program = f"""
import os, signal
from datetime import date
from pathlib import Path
from tapelab.exchange.tape.sorting import sort_day
source, folder = Path({str(quotes)!r}), Path({str(spilled)!r})
day = sort_day(quotes=source, trades=None, day=date(2025, 10, 2), folder=folder)
next(day.stretches())
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert list(spilled.iterdir()) == []


MEASURE = """
import resource, sys
from datetime import date
from pathlib import Path
from tapelab.exchange.tape.sorting import sort_day

def peak():
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024

small, large, folder, memory = *map(Path, sys.argv[1:4]), int(sys.argv[4])
for path in (small, large):
    before = peak()
    with sort_day(quotes=path, trades=None, day=date(2025, 10, 2), memory=memory, folder=folder) as day:
        rows = sum(len(quotes) for quotes, _ in day.stretches())
print(rows, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("memory", [32 << 20, 128 << 20])
def test_five_million_quotes_take_no_more_memory_than_was_given(tmp_path, memory):
    small, large = tmp_path / "small.csv.gz", tmp_path / "large.csv.gz"
    write_quotes(small, 1_000)
    write_quotes(large, 5_000_000)
    program = [sys.executable, "-c", MEASURE, *map(str, (small, large, tmp_path, memory))]
    done = subprocess.run(program, timeout=240, check=True, capture_output=True, text=True, env=os.environ)
    rows, used = map(int, done.stdout.split())
    assert rows == 5_000_000
    assert used < memory + READING


def write_quotes(path: Path, count: int) -> None:
    """A file as the vendor groups it: fifty tickers, each over the whole day, in nanoseconds."""
    rng = np.random.default_rng(7)
    session = sessions.session(Market.STOCKS, DAY)
    header = wire.PRODUCTS[QUOTES].header
    each = count // 50
    with igzip.open(path, "wb", compresslevel=0) as file:
        file.write((",".join(header) + "\n").encode())
        for n in range(50):
            stamps = np.sort(rng.integers(session.start, session.end, each))
            price = np.round(100 + np.cumsum(rng.integers(-1, 2, each)) / 100, 2)
            columns = {
                "ticker": pa.repeat(f"T{n:03}", each),
                "ask_price": np.abs(price) + 0.01,
                "bid_price": np.abs(price),
                "conditions": np.ones(each, dtype=np.int64),
                "indicators": pa.nulls(each, pa.string()),
                "participant_timestamp": stamps - rng.integers(1_000, 500_000, each),
                "sequence_number": np.cumsum(rng.integers(1, 200, each)),
                "sip_timestamp": stamps,
                "trf_timestamp": np.zeros(each, dtype=np.int64),
            }
            table = pa.table({name: columns.get(name, rng.integers(1, 20, each)) for name in header})
            text = io.BytesIO()
            csv.write_csv(table, text, csv.WriteOptions(include_header=False, quoting_style="none"))
            file.write(text.getvalue())
