"""Every fault of the exchange's script: complete data or one typed error, never a part, never half a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from history_tape import light_day
from tapelab import errors
from tapelab.exchange import faults, serve
from tapelab.history import download_flat_file, fetch_data
from tapelab.history.ticks import fetch_trades
from tapelab.market import tables
from tapelab.massive import flatfiles, rest
from tapelab.settings import Settings, use
from tapelab.store.lake import Lake

NAMES = ["AIG", "SPY"]
FIRST, LAST = date(2013, 10, 7), date(2013, 10, 11)
DAYS = [date(2013, 10, day) for day in (7, 8, 9, 10, 11)]
MORNING = ("2013-10-09T09:30", "2013-10-09T09:40")
MINUTES = "us_stocks_sip/minute_aggs_v1"
PAGE = 1000  # rows, so that answers have several
BARS = "/v2/aggs/*"

# What goes wrong once or twice is overcome; what stays wrong is an error.
PASSING: dict[str, dict[str, Any]] = {
    "429 with Retry-After": {"fault": "status", "code": 429, "retry_after": 1, "times": 2},
    "429": {"fault": "status", "code": 429, "times": 2},
    "500": {"fault": "status", "code": 500, "times": 2},
    "error in 200": {"fault": "error_in_200", "times": 1},
    "cut at the start": {"fault": "cut", "at": 0, "times": 2},
    "cut in the middle": {"fault": "cut", "at": 0.5, "times": 2},
    "every third cut": {"fault": "cut", "at": 0.9, "every": 3},
    "stall": {"fault": "stall", "seconds": 3600, "at": 0.5, "times": 1},
    "trickle": {"fault": "trickle", "bytes_per_second": 200_000, "times": 3},
    "half a page": {"fault": "broken_page", "how": "truncated", "times": 2},
}
LASTING: dict[str, tuple[dict[str, Any], type[errors.TapelabError]]] = {
    "429": ({"fault": "status", "code": 429, "retry_after": 400}, errors.RateLimited),
    "403": ({"fault": "status", "code": 403}, errors.NotInPlan),
    "500": ({"fault": "status", "code": 500}, errors.ServerTrouble),
    "error in 200": ({"fault": "error_in_200"}, errors.SourceError),
    "cut": ({"fault": "cut", "at": 0.5}, errors.Unreachable),
    "stall": ({"fault": "stall", "seconds": 3600, "at": 0.5}, errors.Unreachable),
    "half a page": ({"fault": "broken_page", "how": "truncated"}, errors.MalformedAnswer),
    "a cursor to nowhere": ({"fault": "broken_page", "how": "cursor"}, errors.SourceError),
    "a loop of pages": ({"fault": "broken_page", "how": "loop"}, errors.MalformedAnswer),
}
FILES: dict[str, dict[str, Any]] = {
    "403": {"fault": "status", "code": 403},
    "404": {"fault": "status", "code": 404},
    "500": {"fault": "status", "code": 500},
    "error in 200": {"fault": "error_in_200"},
    "cut": {"fault": "cut", "at": 0.5},
    "cut once each": {"fault": "cut", "at": 0.9, "times": 1, "each": True},
    "stall": {"fault": "stall", "seconds": 3600, "at": 0.5},
    "trickle": {"fault": "trickle", "bytes_per_second": 50_000, "times": 2},
    "truncated": {"fault": "truncated", "at": 0.5},
    "truncated behind the list": {"fault": "truncated", "at": 0.5, "listed": False},
    "replaced": {"fault": "replaced"},
    "replaced behind the list": {"fault": "replaced", "listed": False},
}


def test_no_fault_of_the_script_is_left_out() -> None:
    tried = {"rest": [*PASSING.values(), *(rule for rule, _ in LASTING.values())], "s3": [*FILES.values()]}
    for door, rules in tried.items():
        assert {rule["fault"] for rule in rules} == set(faults.KINDS[door])  # type: ignore[index]


@pytest.fixture(autouse=True)
def hurried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short patience and small pages, so that each fault is met and none is waited for long."""
    monkeypatch.setattr(rest, "FIRST_BACK_OFF", 0.001)
    monkeypatch.setattr(rest, "PAGE_ROWS", PAGE)
    monkeypatch.setattr(flatfiles, "STALL_TIMEOUT", "1s")
    if "[stall]" in request.node.name and "file_door" not in request.node.name:
        monkeypatch.setattr(rest, "READ_SECONDS", 2.0)
        if "stays" in request.node.name:
            monkeypatch.setattr(rest, "TRIES", 2)


@pytest.fixture(scope="module")
def tape(real_day: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return light_day(real_day, tmp_path_factory.mktemp("faults") / "tape", {"BAC": ("09:30", "09:40")})


@pytest.fixture(scope="module")
def truth(tape: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an exchange without faults gives."""
    with serve(flat_files=tape, speed=0) as exchange, exchange.use(home=tmp_path_factory.mktemp("truth")):
        bars = fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none")
        trades = fetch_trades("BAC", *MORNING, method="rest", frame="arrow")
    assert len(trades) > 2 * PAGE
    return {"bars": bars, "trades": trades}


def faulty(tape: Path, home: Path, door: str, rule: Mapping[str, Any]) -> Iterator[Settings]:
    script = {door: [dict(rule)]}
    with serve(flat_files=tape, speed=0, faults=script) as exchange, exchange.use(home=home) as settings:
        yield settings


def bare(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.drop(columns="vwap")


def assert_whole(settings: Settings, truth: dict[str, Any]) -> None:
    """Nothing half-written, and what the lake says it covers is what there is."""
    if not settings.root.exists():
        return
    assert not list(settings.root.rglob("*.part")) + list(settings.root.rglob("*.csv.gz"))
    for path in settings.root.rglob("*.parquet"):
        pq.ParquetFile(path).read()
    bars, covered = Lake(settings).read(NAMES, DAYS, "1m", product=MINUTES)
    found = tables.to_frame(bars)
    expected = truth["bars"]
    for name, day in covered:
        mine = found[(found["symbol"] == name) & (found["session"] == day)].reset_index(drop=True)
        true = expected[(expected["symbol"] == name) & (expected["session"] == day)].reset_index(drop=True)
        assert bare(mine)["close"].tolist() == bare(true)["close"].tolist()
        assert mine["timestamp"].tolist() == true["timestamp"].tolist()


@pytest.mark.parametrize("name", PASSING)
def test_a_rest_door_that_fails_for_a_while_gives_complete_data(
    tape: Path, tmp_path: Path, truth: dict[str, Any], name: str
) -> None:
    for settings in faulty(tape, tmp_path, "rest", PASSING[name]):
        found = fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none", fallback=False)
        pd.testing.assert_frame_equal(found, truth["bars"])
        assert_whole(settings, truth)
        ticks = fetch_trades("BAC", *MORNING, method="rest", frame="arrow", fallback=False)
        assert same(ticks, truth["trades"])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "stall")) for name in LASTING]
)
def test_a_rest_door_that_stays_broken_is_a_typed_error_or_the_other_route(
    tape: Path, tmp_path: Path, truth: dict[str, Any], name: str
) -> None:
    rule, error = LASTING[name]
    for settings in faulty(tape, tmp_path, "rest", rule):
        with pytest.raises(error):
            fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none", fallback=False)
        with pytest.raises(error):
            fetch_trades("BAC", *MORNING, method="rest", fallback=False)
        assert_whole(settings, truth)
        fallen = fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none")
        pd.testing.assert_frame_equal(bare(fallen), bare(truth["bars"]))
        assert any("Fell back to Flat Files" in line for line in fallen.attrs["tapelab"]["lines"])
        assert same(fetch_trades("BAC", *MORNING, method="rest", frame="arrow"), truth["trades"])
        assert_whole(settings, truth)


@pytest.mark.parametrize("name", FILES)
def test_a_file_door_that_fails_gives_complete_data_or_a_typed_error_and_no_half_file(
    tape: Path, tmp_path: Path, truth: dict[str, Any], name: str
) -> None:
    rule = {"path": "*.csv.gz", **FILES[name]}
    for settings in faulty(tape, tmp_path, "s3", rule):
        try:
            found = fetch_data(NAMES, FIRST, LAST, "1m", "flat_file", adjust="none", fallback=False)
            pd.testing.assert_frame_equal(bare(found), bare(truth["bars"]))
        except errors.SourceError:
            pass
        assert_whole(settings, truth)
        fallen = fetch_data(NAMES, FIRST, LAST, "1m", "flat_file", adjust="none")
        pd.testing.assert_frame_equal(bare(fallen), bare(truth["bars"]))
        assert_whole(settings, truth)


def test_a_listing_that_fails_turns_to_rest(tape: Path, tmp_path: Path, truth: dict[str, Any]) -> None:
    for _ in faulty(tape, tmp_path, "s3", {"fault": "status", "code": 403}):
        found = fetch_data(NAMES, FIRST, LAST, "1m", "flat_file", adjust="none")
        pd.testing.assert_frame_equal(found, truth["bars"])
        with pytest.raises(errors.SourceError):
            download_flat_file(MINUTES, LAST)


def test_both_doors_broken_is_one_error_that_names_both(
    tape: Path, tmp_path: Path, truth: dict[str, Any]
) -> None:
    script = {
        "rest": [{"fault": "status", "code": 500}],
        "s3": [{"fault": "status", "code": 403, "path": "*.csv.gz"}],
    }
    with serve(flat_files=tape, speed=0, faults=script) as exchange, exchange.use(home=tmp_path) as here:
        with pytest.raises(errors.ServerTrouble, match="Flat Files failed"):
            fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none")
        assert_whole(here, truth)


def test_what_a_faulty_door_left_is_finished_by_the_next_call(
    tape: Path, tmp_path: Path, truth: dict[str, Any]
) -> None:
    """The door breaks on the third request for good, then is whole again."""
    rule = {"fault": "status", "code": 500, "path": BARS, "first": 3, "times": rest.TRIES}
    for settings in faulty(tape, tmp_path, "rest", rule):
        with use(settings.with_(rest_calls_per_day=1000)):
            with pytest.raises(errors.ServerTrouble):
                fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none", fallback=False)
            assert_whole(settings, truth)
            found = fetch_data(NAMES, FIRST, LAST, "1m", "rest", adjust="none", fallback=False)
        pd.testing.assert_frame_equal(found, truth["bars"])
        assert found.attrs["tapelab"]["routes"].get("cache", 0) > 0


def same(one: pa.Table, other: pa.Table) -> bool:
    return bool(one.replace_schema_metadata(None).equals(other.replace_schema_metadata(None)))
