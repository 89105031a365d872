"""What every test shares: the folder of real data, where there is one."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import hypothesis
import pytest

# A shared machine is slow at times; speed is measured by `make bench`, never by a test.
hypothesis.settings.register_profile("tapelab", deadline=None)
hypothesis.settings.load_profile("tapelab")

SHARED = Path(os.environ.get("TAPELAB_SHARED") or Path(__file__).parents[1].parent / "shared")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real market data and vendor payloads; a clone elsewhere has none and skips."""
    if not (SHARED / "payloads").is_dir():
        pytest.skip("the real data of ../shared is not here; point TAPELAB_SHARED at it")
    return SHARED


@pytest.fixture(scope="session")
def real_day(shared: Path) -> Path:
    """Flat files in the vendor's layout: four US stocks, 2013-10-07 to 11, ticks on the 9th."""
    return shared / "data" / "us_equity_2013"


@pytest.fixture(scope="session")
def real_minutes(real_day: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the 9th, line by line, but only what happened from 10:00 to 10:05: quick to read."""
    import polars as pl

    first = 1_381_327_200 * 10**9
    folder = tmp_path_factory.mktemp("real") / "us_equity_2013_ten"
    for path in real_day.rglob("2013-10-09.csv.gz"):
        rows = pl.read_csv(path, infer_schema=False)
        stamps = [name for name in rows.columns if name in ("sip_timestamp", "window_start")]
        within = pl.col(stamps[0]).cast(pl.Int64).is_between(first, first + 300 * 10**9, closed="left")
        kept = rows if "day_aggs" in str(path) else rows.filter(within)
        copy = folder / path.relative_to(real_day)
        copy.parent.mkdir(parents=True)
        copy.write_bytes(gzip.compress(kept.write_csv(null_value="").encode()))
    return folder
