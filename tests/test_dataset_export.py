"""Datasets for other programs: nothing lost that has a place there, and nothing that could be mistaken."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tapelab.errors import Damaged, NoData, StoreError, UnknownName, UsageError
from tapelab.exchange import serve
from tapelab.exchange.tape.folder import FlatFileTape
from tapelab.market import clock, tables
from tapelab.massive import wire
from tapelab.settings import Settings, use
from tapelab.store.datasets import catalogue, manifest, shaping
from tapelab.store.datasets.dataset import Dataset, open_dataset
from tapelab.store.datasets.manifest import Lost
from tapelab.store.lake import Lake
from tapelab.store.lake.arriving import DayFile
from test_dataset import T0, bars, made, quotes, trades

DAY = date(2013, 10, 9)
QUOTES, TRADES = "us_stocks_sip/quotes_v1", "us_stocks_sip/trades_v1"


@pytest.fixture(autouse=True)
def home(tmp_path: Path) -> object:
    with use(Settings.load(home=tmp_path / "home")) as settings:
        yield settings


def simulated() -> Dataset:
    return catalogue.from_tables(
        "made-up",
        quotes=quotes(1, 2, symbol="ZVZZT"),
        trades=trades(1, 3, symbol="ZVZZT"),
        source="live",
        provenance={"simulated": True},
    )


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_parquet_opens_with_pandas_as_the_dataset_shows_it(tmp_path: Path) -> None:
    dataset = made()
    folder = dataset.export(tmp_path / "out", interval="30s")
    assert names(folder) == ["bars_30s.parquet", "export.json", "quotes.parquet", "trades.parquet"]
    for name, frame in (
        ("quotes", dataset.quotes()),
        ("trades", dataset.trades()),
        ("bars_30s", dataset.bars("30s")),
    ):
        found = pd.read_parquet(folder / f"{name}.parquet")
        pd.testing.assert_frame_equal(found, frame, check_dtype=False)
    known = json.loads(pq.read_schema(folder / "quotes.parquet").metadata[b"tapelab"])
    assert (known["dataset"], known["version"], known["simulated"]) == ("day", 1, False)


def test_csv_holds_every_digit(tmp_path: Path) -> None:
    dataset = made(trades=trades(1, 2))
    folder = dataset.export(str(tmp_path / "out"), "csv")
    assert names(folder) == ["bars_1min.csv", "export.json", "trades.csv"]
    found = pd.read_csv(folder / "trades.csv", parse_dates=["ts_event"])
    assert found["price"].tolist() == dataset.trades()["price"].tolist()
    assert [stamp.value for stamp in found["ts_event"]] == [T0 + clock.SECOND, T0 + 2 * clock.SECOND]
    listed = made("listed", quotes=quotes(1)).export(tmp_path / "listed", "csv")
    assert pd.read_csv(listed / "quotes.csv", dtype=str)["conditions"].tolist() == ["1"]


def test_what_is_lacking_is_said_beside_the_rows(tmp_path: Path) -> None:
    dataset = made()
    manifest.next_version(dataset.path, dataset._manifest, gaps=(Lost(5, 9, "cut"),), tags=("open",))
    note = json.loads((open_dataset("day").export(tmp_path / "out", "csv") / "export.json").read_bytes())
    assert (note["version"], note["complete"], note["gaps"][0]["cause"]) == (2, False, "cut")
    assert note["rows"]["AAPL"]["quotes"] == 3
    assert (note["tags"], note["simulated"]) == (["open"], False)


def test_flat_files_are_read_back_as_the_vendors_are(tmp_path: Path, home: Settings) -> None:
    dataset = made(quotes=quotes(1, 2, 3), trades=pa.concat_tables([trades(2), trades(1, 4, symbol="A")]))
    folder = dataset.export(tmp_path / "out", "flat_files")
    assert names(folder) == [
        "export.json", "us_stocks_sip/quotes_v1/2013/10/2013-10-09.csv.gz",
        "us_stocks_sip/trades_v1/2013/10/2013-10-09.csv.gz",
    ]  # fmt: skip
    path = folder / wire.file_key(TRADES, DAY)
    found = wire.read_flat_file(path, TRADES, day=DAY)
    assert found.column("symbol").to_pylist() == ["A", "A", "AAPL"]
    said = [name for name in found.column_names if name not in ("arrival", "ts_recv")]
    by_symbol = dataset.table("trades").sort_by([("symbol", "ascending"), ("arrival", "ascending")])
    assert found.select(said).equals(by_symbol.select(said).replace_schema_metadata(None))
    lake = Lake(home)
    with lake.incoming(TRADES, DAY) as place:
        place.write_bytes(path.read_bytes())
        lake.keep_file(place, DayFile(TRADES, DAY, "etag", 1, 1, 1))
    assert lake.rows(TRADES, DAY).num_rows == 3
    tape = FlatFileTape(folder)
    assert not tape.simulated
    assert tape.table(QUOTES, DAY).num_rows == 3


def test_bars_alone_become_a_file_of_minute_bars(tmp_path: Path) -> None:
    folder = made(bars=bars(0, 1)).export(tmp_path / "out", "flat_files")
    assert names(folder)[1:] == ["us_stocks_sip/minute_aggs_v1/2013/10/2013-10-09.csv.gz"]


def test_a_file_of_the_real_day_comes_out_as_it_went_in(real_day: Path, tmp_path: Path) -> None:
    path = real_day / wire.file_key(TRADES, DAY)
    whole = wire.read_flat_file(path, TRADES, day=DAY)
    symbol = min(pc.value_counts(whole["symbol"]).to_pylist(), key=lambda count: count["counts"])["values"]
    dataset = made("real", trades=whole.filter(pc.equal(whole["symbol"], symbol)))
    exported = dataset.export(tmp_path / "out", "flat_files") / wire.file_key(TRADES, DAY)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    assert gzip.decompress(exported.read_bytes()).decode().splitlines() == [
        line for n, line in enumerate(lines) if n == 0 or line.startswith(f"{symbol},")
    ]


def test_what_is_simulated_says_so_in_every_name_and_inside(tmp_path: Path) -> None:
    dataset = simulated()
    for form in ("parquet", "csv"):
        folder = dataset.export(tmp_path / form, form)  # type: ignore[arg-type]
        assert all(name.startswith("simulated_") for name in names(folder) if name != "export.json")
    assert json.loads(pq.read_schema(tmp_path / "parquet/simulated_quotes.parquet").metadata[b"tapelab"])[
        "simulated"
    ]
    folder = dataset.export(tmp_path / "flat", "flat_files")
    assert folder == tmp_path / "flat" / "simulated"
    assert json.loads((folder / "export.json").read_bytes())["simulated"] is True
    assert b"simulated-2013-10-09.csv" in (folder / wire.file_key(TRADES, DAY)).read_bytes()[:64]
    assert FlatFileTape(folder).simulated


def test_what_is_served_from_an_exported_simulation_is_still_simulated(tmp_path: Path) -> None:
    import tapelab as tl

    folder = simulated().export(tmp_path / "flat", "flat_files")
    with serve(flat_files=folder) as exchange, exchange.use(home=tmp_path / "other"):
        found = tl.fetch_trades("ZVZZT", DAY, DAY)
    assert found.attrs["tapelab"]["simulated"] is True
    assert found["price"].tolist() == [101.5, 103.5]


def test_a_note_that_cannot_be_read_is_not_taken_for_real(tmp_path: Path) -> None:
    folder = simulated().export(tmp_path / "flat", "flat_files")
    (folder / "export.json").write_bytes(b"\xff")
    with pytest.raises(Damaged, match=r"export\.json"):
        FlatFileTape(folder)


def test_an_export_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = made()
    (dataset.path / "segments" / "trades-000001.parquet").unlink()
    for form in shaping.FORMATS:
        with pytest.raises(Damaged, match="trades-000001"):
            dataset.export(tmp_path / "out", form)
    assert not [path for path in tmp_path.iterdir() if path.name != "home"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(UsageError, match="something"):
        made("other").export(tmp_path / "mine")
    assert names(tmp_path / "mine") == ["thesis.txt"]


def test_what_a_killed_program_has_left_goes_with_the_next_try(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from tapelab.store import files
with files.whole_folder(Path(sys.argv[1])) as beside:
    (beside / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    assert killed.returncode == -signal.SIGKILL
    [left] = tmp_path.glob(".out.*.part")
    assert (left / "half").exists()
    assert not (tmp_path / "out").exists()
    assert "quotes.parquet" in names(made().export(tmp_path / "out"))
    assert list(tmp_path.glob(".out*")) == []


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    dataset = made()
    with pytest.raises(UnknownName, match="parket"):
        dataset.export(tmp_path / "out", "parket")  # type: ignore[arg-type]
    growing = Dataset(dataset.path, manifest.Manifest(id="", version=0, clock="received", created=0))
    with pytest.raises(StoreError, match="still recorded"):
        growing.export(tmp_path / "out")
    unpriced = trades(1, 2).set_column(4, tables.TRADES.field("price"), pa.array([1.0, None]))
    with pytest.raises(UsageError, match="1 trades of odd have no price"):
        made("odd", trades=unpriced).export(tmp_path / "out", "flat_files")
    hours = catalogue.from_tables("hours", bars=bars(0), source="x", provenance={"interval": "1h"})
    with pytest.raises(NoData):
        hours.export(tmp_path / "out", "flat_files")
    coins = catalogue.from_tables("coins", trades=trades(1), source="x", provenance={"market": "crypto"})
    with pytest.raises(UsageError, match="Only US stocks"):
        coins.export(tmp_path / "out", "flat_files")
