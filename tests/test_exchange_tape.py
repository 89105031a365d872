"""Tapes: what the exchange has to say agrees with itself, whichever way it is asked."""

from __future__ import annotations

import gzip
import json
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tapelab.errors import Damaged, ServeError
from tapelab.exchange.opening import tape_of_dataset
from tapelab.exchange.stream.dayscript import DayScript
from tapelab.exchange.stream.script import Script
from tapelab.exchange.tape import (
    DAY_BARS,
    MINUTE_BARS,
    PRODUCTS,
    QUOTES,
    TRADES,
    DatasetTape,
    FlatFileTape,
    simulated,
)
from tapelab.market import bars, sessions, tables
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.settings import Settings, use
from tapelab.store.datasets.catalogue import from_tables

DAY = date(2024, 4, 5)
MINUTE = 60_000_000_000
OPEN = 1712323800000000000  # 2024-04-05 09:30 New York

_TICKS = {
    "trades": "ticker,conditions,correction,exchange,id,participant_timestamp,price,sequence_number,"
    "sip_timestamp,size,tape,trf_id,trf_timestamp\n",
    "quotes": "ticker,ask_exchange,ask_price,ask_size,bid_exchange,bid_price,bid_size,conditions,indicators,"
    "participant_timestamp,sequence_number,sip_timestamp,tape,trf_timestamp\n",
}
_BARS = "ticker,volume,open,close,high,low,window_start,transactions\n"


def folder_of(path: Path) -> Path:
    """A small folder in the vendor's layout, written by hand: AAPL and the test symbol ZVZZT."""
    trades = _TICKS["trades"] + "".join(
        f"{symbol},{codes},0,11,{n},{OPEN + at - 1000},{price},{n},{OPEN + at},{size},3,0,0\n"
        for n, (symbol, at, price, size, codes) in enumerate(
            [
                ("AAPL", 1_000_000_001, 170.01, 100, ""),
                ("AAPL", 2_000_000_002, 170.02, 50, '"14,37"'),
                ("AAPL", 61_000_000_003, 170.05, 200, ""),
                ("ZVZZT", 1_500_000_000, 10.01, 100, ""),
            ],
            1,
        )
    )
    quotes = _TICKS["quotes"] + "".join(
        f"{symbol},8,{ask},300,19,{bid},200,1,,{OPEN + at - 1000},{n},{OPEN + at},3,0\n"
        for n, (symbol, at, bid, ask) in enumerate(
            [
                ("AAPL", 500_000_000, 170.00, 170.01),
                ("AAPL", 1_000_000_001, 170.01, 170.02),
                ("AAPL", 60_500_000_000, 170.04, 170.05),
                ("ZVZZT", 400_000_000, 10.00, 10.01),
            ],
            1,
        )
    )
    minutes = _BARS + (
        f"AAPL,120,170.01,170.01,170.01,170.01,{OPEN},2\n"
        f"AAPL,200,170.05,170.05,170.05,170.05,{OPEN + MINUTE},1\n"
        f"AAPL,300,170.1,170.2,170.3,170,{OPEN + 5 * MINUTE},3\n"
        f"ZVZZT,100,10.01,10.01,10.01,10.01,{OPEN},1\n"
    )
    _write(path, TRADES, DAY, trades)
    _write(path, QUOTES, DAY, quotes)
    _write(path, MINUTE_BARS, DAY, minutes)
    for day, price in ((date(2024, 4, 3), 100), (date(2024, 4, 4), 168), (DAY, 170)):
        midnight = sessions.day_start(Market.STOCKS, day)
        row = f"AAPL,1000,{price},{price + 1},{price + 2},{price - 1},{midnight},10\n"
        _write(path, DAY_BARS, day, _BARS + row)
    return path


def _write(folder: Path, product: str, day: date, text: str) -> None:
    path = folder / wire.file_key(product, day)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


@pytest.fixture
def folder(tmp_path: Path) -> FlatFileTape:
    return FlatFileTape(folder_of(tmp_path / "hand made"))


def test_a_folder_says_what_lies_in_it(folder: FlatFileTape) -> None:
    assert folder.days(DAY_BARS) == [date(2024, 4, 3), date(2024, 4, 4), DAY]
    assert folder.days(TRADES) == folder.days(QUOTES) == [DAY]
    assert folder.symbols() == ["AAPL"]
    assert folder.identity.startswith("flat-files hand made ")
    assert not folder.simulated


def test_files_are_served_as_they_lie_on_the_disk(folder: FlatFileTape) -> None:
    assert folder.raw(TRADES, DAY) == folder.folder / wire.file_key(TRADES, DAY)


def test_a_folder_without_reference_data_says_that_it_does_not_know(folder: FlatFileTape) -> None:
    assert folder.reference("splits") is None
    assert folder.reference("dividends") is None


def test_reference_data_beside_the_products_is_read(folder: FlatFileTape) -> None:
    rows = [{"ticker": "AAPL", "execution_date": "2024-04-04", "split_from": 1, "split_to": 2}]
    (folder.folder / "reference").mkdir()
    (folder.folder / "reference/splits.json").write_text(json.dumps(rows))
    assert folder.reference("splits") == rows
    (folder.folder / "reference/dividends.json").write_text('{"not": "rows"')
    with pytest.raises(Damaged, match="array"):
        folder.reference("dividends")


def test_bars_know_their_vwap_only_where_the_tape_has_trades(folder: FlatFileTape) -> None:
    minutes = folder.bars("1m", DAY, "AAPL").to_pylist()
    # 100 x 170.01 + 50 x 170.02: an odd lot counts in volume, not in prices.
    assert [row["vwap"] for row in minutes] == [170.0133, 170.05, None]
    assert [row["volume"] for row in minutes] == [120, 200, 300]
    assert folder.bars("1d", date(2024, 4, 4), "AAPL").column("vwap").to_pylist() == [None]


def test_seconds_are_built_from_trades(folder: FlatFileTape) -> None:
    seconds = folder.bars("1s", DAY, "AAPL").to_pylist()
    assert [(row["timestamp"] - OPEN) // 10**9 for row in seconds] == [1, 61]
    assert folder.bar_days("1s") == [DAY]


def test_a_replaced_file_is_read_again(folder: FlatFileTape) -> None:
    assert folder.bars("1d", DAY, "AAPL").column("open").to_pylist() == [170]
    text = _BARS + f"AAPL,1,5,5,5,5,{sessions.day_start(Market.STOCKS, DAY)},1\n"
    _write(folder.folder, DAY_BARS, DAY, text + text.splitlines()[1].replace("AAPL", "B") + "\n")
    assert folder.bars("1d", DAY, "AAPL").column("open").to_pylist() == [5]


def test_a_folder_without_flat_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "us_stocks_sip/trades_v1/2024/04").mkdir(parents=True)
    (tmp_path / "us_stocks_sip/trades_v1/2024/04/notes.csv.gz").write_bytes(b"")
    with pytest.raises(ServeError, match="no flat files"):
        FlatFileTape(tmp_path)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_simulated_files_hold_the_simulated_tables(product: str) -> None:
    tape = simulated(7)
    day = tape.days(product)[-1]
    read = wire.read_flat_file(tape.raw(product, day), product, day=day)
    table = tape.table(product, day)
    for name in set(table.column_names) - {"vwap", "arrival", "correction"}:
        assert read.column(name).to_pylist() == table.column(name).to_pylist(), name


def test_the_simulated_bars_are_those_of_its_trades() -> None:
    tape = simulated(7)
    day = tape.days(TRADES)[-1]
    assert tape.table(MINUTE_BARS, day) == bars.from_trades(tape.table(TRADES, day), "1m")
    assert len(tape.days(MINUTE_BARS)) == 10
    assert tape.days(TRADES) == tape.days(MINUTE_BARS)[-3:]
    assert tape.simulated
    assert tape.identity == "simulated seed=7"
    assert tape.reference("splits") == tape.reference("dividends") == []


def test_a_dataset_is_spoken_in_the_order_in_which_it_arrived() -> None:
    tape = simulated(7)
    day = tape.days(TRADES)[-1]
    ticks = tape.ticks(day)
    # Recorded with all trades first: the recording's order counts, not the stamps'.
    quotes, trades = (table.slice(0, 500) for table in (ticks.quotes, ticks.trades))
    backwards = {
        "quotes": _arrived(quotes, np.arange(500, 1000)),
        "trades": _arrived(trades, np.arange(500)),
    }
    recorded = SimpleNamespace(
        name="évening run", provenance={"simulated": True}, table=backwards.__getitem__
    )
    dataset = DatasetTape(recorded)  # type: ignore[arg-type]
    assert dataset.identity == "simulated dataset ?vening run"
    assert dataset.days(QUOTES) == dataset.days(MINUTE_BARS) == [day]
    assert dataset.table(TRADES, day).column("symbol").to_pylist() == sorted(
        trades.column("symbol").to_pylist()
    )
    heard = _told(DayScript(dataset, day), "T.*", "Q.*")
    assert [b'"ev":"T"' in event for event in heard] == [True] * 500 + [False] * 500


def _told(script: Script, *wanted: str) -> list[bytes]:
    part = script.part(0)
    assert part is not None
    chunk = part.chunk(0, script.topics.heard(set(wanted)), len(part))
    assert chunk is not None
    return chunk.payloads


def _arrived(table: pa.Table, arrival: np.ndarray) -> pa.Table:
    index = table.column_names.index("arrival")
    return table.set_column(index, table.schema.field(index), pa.array(arrival, pa.int64()))


def test_a_recorded_dataset_comes_back_as_stream_and_files(tmp_path: Path) -> None:
    """What is left of ticks after a stream: milliseconds, and no clock but one."""
    tape = simulated(7)
    day = tape.days(TRADES)[-1]
    ticks = tape.ticks(day)
    quotes = wire.as_streamed(ticks.quotes.slice(0, 20_000), "Q")
    trades = wire.as_streamed(ticks.trades.slice(0, 5_000), "T")
    with use(Settings.load(home=tmp_path)):
        from_tables("morning", quotes=quotes, trades=trades, source="live", provenance={"simulated": True})
        dataset = tape_of_dataset("morning")
        with pytest.raises(ServeError, match="'evening'") as caught:
            tape_of_dataset("evening")
        assert caught.value.remedy
    assert dataset.simulated
    for product, table in ((QUOTES, quotes), (TRADES, trades)):
        read = wire.read_flat_file(dataset.raw(product, day), product, day=day)
        for name in ("ts_event", "symbol", "sequence"):
            assert sorted(read.column(name).to_pylist()) == sorted(table.column(name).to_pylist())
    read = wire.read_flat_file(dataset.raw(MINUTE_BARS, day), MINUTE_BARS, day=day)
    assert read.column("close") == bars.from_trades(trades, "1m").column("close")
    heard = _told(DayScript(dataset, day), "T.*", "Q.*")
    times = [json.loads(event)["t"] for event in heard]
    assert times == sorted(times)


def test_an_empty_dataset_is_refused() -> None:
    empty = {"quotes": tables.QUOTES.empty_table(), "trades": tables.TRADES.empty_table()}
    nothing = SimpleNamespace(name="nothing", provenance={}, table=empty.__getitem__)
    with pytest.raises(ServeError, match="no quotes and no trades"):
        DatasetTape(nothing)  # type: ignore[arg-type]


@pytest.mark.judge
def test_the_real_files_are_found_and_agree(real_day: Path) -> None:
    tape = FlatFileTape(real_day)
    day = date(2013, 10, 9)
    assert tape.days(TRADES) == tape.days(QUOTES) == [day]
    ticks = tape.ticks(day)
    assert (len(ticks.quotes), len(ticks.trades)) == (1_102_192, 641_559)
    minutes = tape.all_bars("1m", day)
    assert pc.sum(pc.is_valid(minutes.column("vwap"))).as_py() > 0.99 * len(minutes)
    low, high = minutes.column("low"), minutes.column("high")
    near = pc.and_(
        pc.less_equal(pc.subtract(low, 0.01), minutes.column("vwap")),
        pc.less_equal(minutes.column("vwap"), pc.add(high, 0.01)),
    )
    assert pc.mean(pc.cast(near, pa.float64())).as_py() > 0.98


def test_files_that_are_out_of_order_are_put_in_order(folder: FlatFileTape) -> None:
    path = folder.raw(TRADES, DAY)
    expected = folder.table(TRADES, DAY).drop("arrival")
    header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join([header, *rows[::-1], ""]).encode(), mtime=1))
    assert FlatFileTape(folder.folder).table(TRADES, DAY).drop("arrival") == expected
