"""`tapelab update` does what is due, once, and says so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import tapelab as tl
from heal_tape import Loss, Recorder, Tape, Tick
from streams import Vendor, both, settings_for, until
from tapelab import settings as settings_module
from tapelab.budget import Budget
from tapelab.exchange import Exchange, serve
from tapelab.faces.cli import main
from tapelab.faces.update import Done, update
from tapelab.live.schedule import next_session
from tapelab.live.session import SessionRecorder
from tapelab.market import clock, tables
from tapelab.settings import Settings
from tapelab.store.datasets import manifest
from tapelab.store.lake import DayFile, Lake, sheets

MINUTES = "us_stocks_sip/minute_aggs_v1"
LAST = date(2026, 10, 9)  # of the simulated market
AFTER = 1_791_900_000 * clock.SECOND  # four days later


@pytest.fixture(scope="module")
def exchange() -> Iterator[Exchange]:
    with serve(simulate=True, speed=0) as running:
        yield running


@pytest.fixture
def at_home(exchange: Exchange, tmp_path: Path) -> Iterator[Settings]:
    with exchange.use(home=tmp_path) as used, clock.use(clock.FixedClock(AFTER)):
        yield used


def did(settings: Settings) -> list[Done]:
    return [done for done in update(settings) if done.did or done.failed]


def test_files_that_came_since_are_brought_and_a_second_call_does_nothing(at_home: Settings) -> None:
    tl.sync_flat_files(MINUTES, "2026-10-06", "2026-10-07")
    assert did(at_home) == [Done("flat files", MINUTES, "2 files, of which the vendor had replaced 0")]
    assert Lake(at_home).day_file(MINUTES, LAST) is not None
    assert did(at_home) == []


def test_a_study_of_an_old_month_is_not_brought_up_to_date(at_home: Settings) -> None:
    tl.sync_flat_files(MINUTES, "2026-10-06", "2026-10-07")
    with clock.use(clock.FixedClock(AFTER + 60 * clock.DAY)):
        [done] = update(at_home)
    assert (done.did, done.failed) == ("", "")
    assert "2026-10-07; `tapelab sync`" in str(done)
    assert Lake(at_home).day_file(MINUTES, LAST) is None


def test_files_that_the_vendor_replaced_are_had_again(at_home: Settings) -> None:
    path = tl.download_flat_file(MINUTES, LAST)
    lake = Lake(at_home)
    known = lake.day_file(MINUTES, LAST)
    assert known is not None
    about = {name: getattr(known, name) for name in known.__struct_fields__} | {"etag": '"older"'}
    with sheets.opened(path) as file:
        rows = file.read()
    path.unlink()

    def fill(beside: Path) -> None:
        with sheets.Writer(beside, rows.schema) as writer:
            writer.write(rows)
            writer.close(DayFile(**about))

    sheets.write(path, fill)
    assert did(at_home) == [Done("flat files", MINUTES, "1 files, of which the vendor had replaced 1")]
    assert did(at_home) == []


def test_bars_that_were_fetched_before_their_day_was_over_are_fetched_again(at_home: Settings) -> None:
    early = tables.BARS.empty_table()
    Lake(at_home).keep_rest("ZVZZT", "1m", early, {LAST: False}, known_at=AFTER - 4 * clock.DAY)
    assert did(at_home) == [Done("provisional", "ZVZZT, 1m bars", "1 days are final now")]
    assert did(at_home) == []
    assert len(Lake(at_home).read(["ZVZZT"], [LAST], "1m", product=None)[0]) > 300


def test_a_recording_whose_program_died_is_finished(tmp_path: Path) -> None:
    with Vendor() as vendor, settings_module.use(settings_for(vendor, tmp_path)) as used:
        recorder = tl.WebSocketDataRecorder(["AAPL"])
        recorder.start()
        vendor.tell(*map(both, range(10)))
        until(lambda: recorder.stats.events == 20)
        grows, stream = recorder._growing, recorder._stream
        assert grows is not None
        assert stream is not None
        stream.stop()
        grows.close()  # as when the program is killed: no first version is written
        name = grows.folder.name
        assert did(used) == [Done("recording", name, "finished")]
        assert tl.open_dataset(name).version == 1
        assert did(used) == []


def test_the_recordings_of_a_session_become_one_dataset(tmp_path: Path) -> None:
    with Vendor() as vendor, settings_module.use(settings_for(vendor, tmp_path)) as used:
        slot = next_session(clock.now() + 5 * clock.DAY)
        for n in range(2):
            with SessionRecorder(["AAPL"], slot) as recorder:
                vendor.tell(*map(both, range(n * 10, n * 10 + 10)))
                until(lambda recorder=recorder: recorder.stats.events == 20)
        assert len(tl.list_datasets()) == 2
        done, healing = did(used)
        assert done == Done("recording", slot.name, "2 recordings are one dataset")
        assert "Open: " in healing.failed  # this vendor has no history
        [whole] = tl.list_datasets()
        assert len(whole.quotes()) == 20
        assert [done.chore for done in did(used)] == ["gaps"]


def test_a_gap_that_the_vendor_has_nothing_for_is_asked_about_once(
    exchange: Exchange, at_home: Settings
) -> None:
    """The vendor knows nothing of these symbols, which is its last word on a day that is long over."""
    tape = Tape([Tick(("quotes", "trades")[n % 2], "AAA", n * clock.SECOND) for n in range(40)])
    dataset = Recorder(topics=("Q.AAA", "T.AAA")).record(tape, [Loss(8, 20)], "day")
    [done] = did(at_home)
    assert (done.did, done.failed) == ("0 rows filled in, 2 are still open", "")
    assert not dataset.latest().complete
    calls = Budget(at_home).left().calls_today
    assert did(at_home) == []
    assert Budget(at_home).left().calls_today == calls
    tl.heal("day")
    assert Budget(at_home).left().calls_today != calls


def test_a_recording_that_cannot_be_healed_yet_is_no_failed_chore(at_home: Settings) -> None:
    tape = Tape([Tick("quotes", "AAA", n * clock.SECOND) for n in range(40)])
    dataset = Recorder().record(tape, [Loss(8, 20)], "day")
    known = dataset._manifest
    manifest.next_version(dataset.path, known, provenance={**known.provenance, "market": "crypto"})
    assert did(at_home) == []


def test_a_chore_that_fails_is_named_and_the_others_are_done(
    at_home: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tl.sync_flat_files(MINUTES, "2026-10-06", "2026-10-07")
    early = tables.BARS.empty_table()
    Lake(at_home).keep_rest("ZVZZT", "1m", early, {LAST: False}, known_at=AFTER - 4 * clock.DAY)
    wrong = at_home.with_(s3_secret_access_key="not-the-secret")
    with settings_module.use(wrong):
        assert main(["update", "--json"]) == 1
    said = capsys.readouterr()
    found: list[dict[str, Any]] = json.loads(said.out)
    assert [(one["chore"], bool(one["failed"]), bool(one["did"])) for one in found] == [
        ("flat files", True, False),
        ("provisional", False, True),
    ]
    assert "1 of 2 chores failed" in said.err
    assert "not-the-secret" not in said.out + said.err
