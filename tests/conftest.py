"""What every test shares: the folder of real data, where there is one."""

from __future__ import annotations

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
