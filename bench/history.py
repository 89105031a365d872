"""History: the lake beside day files and csv.gz, a file into the lake, small objects far away, cold queries.

All bars are generated (seeded), as many symbols as the vendor has, with as many bars.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa

from bench.measure import Row, seconds
from tapelab.budget import Budget
from tapelab.exchange import serve
from tapelab.history.sync import SMALL_WORKERS, sync_flat_files, worker_environment
from tapelab.market import sessions, tables
from tapelab.market.clock import MINUTE
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.massive.flatfiles import FlatFiles, Listed
from tapelab.massive.wire import compiled
from tapelab.massive.wire.lines import Lines
from tapelab.settings import Settings, use
from tapelab.store.lake import Lake, sheets
from tapelab.store.lake.arriving import DayFile

PRODUCT = "us_stocks_sip/minute_aggs_v1"
SYMBOLS = 10_000
BARS = 183  # of a symbol on a day, on average: 1.83 million rows a day
DAYS = [s.date for s in sessions.between(Market.STOCKS, date(2024, 5, 14), date(2024, 6, 18))]
ASKED = (3, 2_500, 5_555, 7_000, 9_999)  # five symbols, from everywhere in the alphabet
OBJECTS, OBJECT_SIZE = 60, 20_000
KEYS = {"s3_access_key_id": "bench", "s3_secret_access_key": "bench", "api_key": "bench"}


def history() -> list[Row]:
    """Every case of this file."""
    with TemporaryDirectory() as folder:
        return [*lake(Path(folder)), *conversion(Path(folder)), *small_objects(), *cold_queries(Path(folder))]


def lake(folder: Path) -> list[Row]:
    """Five symbols over 25 days: from the lake, from a Parquet file a day, from the csv.gz."""
    import pandas as pd
    import polars as pl

    import tapelab as tl

    at = Settings.load(home=folder / "lake", **KEYS)
    files = [folder / f"{day}.parquet" for day in DAYS]
    for day, file in zip(DAYS, files, strict=True):
        bars = made(day, BARS)
        _keep(Lake(at), day, bars)
        pl.from_arrow(bars).write_parquet(file)
    took = seconds(lambda: Lake(at).compact(PRODUCT))
    text = folder / "one.csv.gz"
    _write_csv(text, made(DAYS[0], BARS))
    asked = [names()[n] for n in ASKED]
    ours = [Lake(at).day_path(PRODUCT, day) for day in DAYS]

    def from_lake() -> object:
        with use(at):
            return tl.fetch_data(asked, DAYS[0], DAYS[-1], "1m", adjust="none", frame="arrow")

    def from_days(paths: Sequence[Path]) -> object:
        return (
            pl.scan_parquet(paths).filter(pl.col("symbol").is_in(asked)).sort("symbol", "timestamp").collect()
        )

    def from_csv() -> object:
        found = pd.read_csv(text)
        return found[found["ticker"].isin(asked)]

    rows = SYMBOLS * BARS * len(DAYS)
    what = f"5 symbols, 25 days of {rows / 1e6:.0f} M minute bars"
    mine, days, own, csv = _alternated(
        [from_lake, lambda: from_days(files), lambda: from_days(ours), from_csv], rounds=3
    )
    peak = _peak(at, f"tl.fetch_data({asked!r}, {str(DAYS[0])!r}, {str(DAYS[-1])!r}, '1m', adjust='none')")
    return [
        Row(
            what, f"{mine:.4f} s, {peak:.0f} MB", f"{days:.3f} s polars, a Parquet a day", days / mine, "8 ×"
        ),
        Row("", "the same", f"{own:.3f} s polars on the lake's day files", own / mine),
        Row("", "the same", f"{25 * csv:.1f} s pandas, csv.gz (one day, × 25)", 25 * csv / mine, "1000 ×"),
        Row(f"25 days of {rows / 1e6:.0f} M bars into month files", f"{took:.1f} s", "", None),
    ]


def conversion(folder: Path) -> list[Row]:
    """A full day's csv.gz of minute bars into the lake, beside pandas: at first, and in a long sync."""
    import pandas as pd

    text = folder / "full.csv.gz"
    _write_csv(text, made(DAYS[0], BARS))
    at = Settings.load(home=folder / "converted")
    about = DayFile(PRODUCT, DAYS[0], "etag", text.stat().st_size, 0, 0)
    out = folder / "pandas.parquet"
    compiled.wait()

    def kept_at_first() -> None:
        with patch.object(Lines, "read", return_value=None):
            Lake(at).keep_file(text, about)

    mine, at_first, theirs = _alternated(
        [
            lambda: Lake(at).keep_file(text, about),
            kept_at_first,
            lambda: pd.read_csv(text).to_parquet(out),
        ],
        rounds=3,
    )
    day = f"date.fromisoformat({str(DAYS[0])!r})"
    kept = f"Lake(current()).keep_file(Path({str(text)!r}), DayFile({PRODUCT!r}, {day}, '', 0, 0, 0))"
    peak = _peak(at, kept)
    theirs_peak = _peak(at, f"pandas.read_csv({str(text)!r}).to_parquet({str(out)!r})", "import pandas")
    size = Lake(at).day_path(PRODUCT, DAYS[0]).stat().st_size / out.stat().st_size
    return [
        Row(
            f"a day of {SYMBOLS * BARS / 1e6:.2f} M minute bars into the lake",
            f"{mine:.2f} s, {size:.2f} of the size",
            f"{theirs:.2f} s, {theirs_peak:.0f} MB pandas",
            theirs / mine,
            "2 ×",
        ),
        Row("", f"{at_first:.2f} s, {peak:.0f} MB before the kernel is ready", "the same", theirs / at_first),
    ]


def small_objects() -> list[Row]:
    """60 objects of 20 kB from a store 30 ms away."""
    import boto3

    with _far_away() as (port, etag), TemporaryDirectory() as folder:
        url = f"http://127.0.0.1:{port}"
        at = Settings.load(home=folder, s3_endpoint=url, flat_file_gb_per_month=0, **KEYS)
        days = [s.date for s in sessions.between(Market.STOCKS, date(2024, 1, 2), date(2024, 12, 31))][
            :OBJECTS
        ]
        listed = [Listed(PRODUCT, day, wire.file_key(PRODUCT, day), etag, OBJECT_SIZE, 0) for day in days]
        client = boto3.client(
            "s3",
            endpoint_url=url,
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
            region_name="us-east-1",
        )

        files = FlatFiles(at, Budget(at))

        def ours() -> None:
            with ThreadPoolExecutor(SMALL_WORKERS) as pool:
                list(pool.map(lambda file: files.download(file, Path(folder) / f"{file.day}"), listed))

        def loop() -> None:
            for file in listed:
                client.download_file("flatfiles", file.key, f"{folder}/{file.day}.boto")

        mine, theirs = _alternated([ours, loop], rounds=2)
    what = f"{OBJECTS} objects of {OBJECT_SIZE // 1000} kB, 30 ms to the first byte"
    return [Row(what, f"{mine:.3f} s", f"{theirs:.2f} s boto3 download_file", theirs / mine, "20 ×")]


def cold_queries(folder: Path) -> list[Row]:
    """A new process, an empty lake: imports, list, download, conversion, answer."""
    tape = folder / "tape"
    for day in DAYS:
        path = tape / wire.file_key(PRODUCT, day)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_csv(path, made(day, BARS, symbols=200))
    asked = names()[:20]
    rows = []
    with serve(flat_files=tape) as exchange:
        for what, symbols, last in (
            ("small: 3 symbols, 5 days (REST)", asked[:3], DAYS[4]),
            ("large: 20 symbols, 25 days (flat files of 37 k rows)", asked, DAYS[-1]),
        ):
            at = exchange.settings(folder / what[:5])
            call = f"tl.fetch_data({symbols!r}, {str(DAYS[0])!r}, {str(last)!r}, '1m', adjust='none')"
            took: list[float] = []
            peak = _peak(at, call, took=took)
            rows.append(Row(f"cold query, {what}", f"{took[0]:.2f} s, {peak:.0f} MB", "", None))
        with use(exchange.settings(folder / "sync")):
            took = [seconds(lambda: sync_flat_files(PRODUCT, DAYS[0], DAYS[-1]))]
        rows.append(Row("sync of the same 25 files into the lake", f"{took[0]:.2f} s", "", None))
    return rows


def names() -> list[str]:
    """As many symbols as the vendor has, of three letters, in the order of its files."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [a + b + c for a in letters for b in letters for c in letters][:SYMBOLS]


def made(day: date, bars: int, *, symbols: int = SYMBOLS) -> pa.Table:
    """A day of minute bars, `bars` of each symbol, prices in cents."""
    rng = np.random.default_rng(day.toordinal())
    rows = symbols * bars
    begin = sessions.day_start(Market.STOCKS, day) + 570 * MINUTE
    price = np.repeat(rng.uniform(5, 500, symbols), bars) * (1 + rng.normal(0, 0.01, rows))
    close = np.round(price, 2)
    which = pa.array(np.repeat(np.arange(symbols, dtype=np.int32), bars))
    return tables.conform(
        pa.table(
            {
                "timestamp": np.tile(begin + np.arange(bars) * (390 // bars) * MINUTE, symbols),
                "session": pa.repeat(pa.scalar(day, pa.date32()), rows),
                "symbol": pa.DictionaryArray.from_arrays(which, pa.array(names()[:symbols])).cast(
                    pa.string()
                ),
                "open": close,
                "high": np.round(close + 0.03, 2),
                "low": np.round(close - 0.02, 2),
                "close": close,
                "volume": np.round(rng.lognormal(5, 1.5, rows)) + 1,
                "transactions": rng.integers(1, 200, rows),
            }
        ),
        tables.BARS,
    )


def _write_csv(path: Path, bars: pa.Table) -> None:
    from isal import igzip

    path.write_bytes(igzip.compress(wire.write_flat_file(bars, PRODUCT), 1))


def _keep(into: Lake, day: date, bars: pa.Table) -> None:
    """As the lake keeps a file, without the detour by its text."""
    about = DayFile(PRODUCT, day, "etag", 1, 0, 0, rows=len(bars))

    def fill(beside: Path) -> None:
        with sheets.Writer(beside, tables.BARS) as writer:
            writer.write(bars)
            writer.close(about)

    sheets.write(into.day_path(PRODUCT, day), fill)


def _alternated(runs: Sequence[Callable[[], object]], *, rounds: int) -> list[float]:
    """Medians of `rounds` in turn; a first round warms up."""
    times = [[seconds(run) for run in runs] for _ in range(rounds + 1)][1:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _peak(at: Settings, call: str, imports: str = "", *, took: list[float] | None = None) -> float:
    """The most memory, in MB, of a process of its own that does this; `took` gets its wall time."""
    program = (
        "import json, resource, sys, time\nfrom datetime import date\nfrom pathlib import Path\n"
        "begun = time.perf_counter()\nimport tapelab as tl\nfrom tapelab.settings import current\n"
        f"from tapelab.store.lake import DayFile, Lake\n{imports}\n{call}\n"
        "took = time.perf_counter() - begun\n"
        "if sys.platform == 'linux':\n"  # there a child begins with its parent's figure in getrusage
        "    peak = 1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "else:\n"
        "    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps([peak / 1e6, took]))"
    )
    environment = {**os.environ, **worker_environment(at)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    peak, wall = json.loads(done.stdout)
    if took is not None:
        took.append(wall)
    return float(peak)


@contextmanager
def _far_away() -> Iterator[tuple[int, str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.slow_s3", "--port", str(port), "--size", str(OBJECT_SIZE)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield port, server.stdout.readline().strip()
        finally:
            server.kill()


if __name__ == "__main__":
    from bench.measure import show

    show(history())
