"""What the page's server does on the live stream, against the stand-in exchange, without a page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("streamlit", reason="the page needs tapelab[ui]")

import tapelab as tl
from tapelab.faces.app.desk import Desk, Wanted
from tapelab.market import clock

LONGEST = 60.0  # seconds for what is waited for
A_MOMENT = 2 / 60  # minutes


@pytest.fixture
def desk(tmp_path) -> Iterator[Desk]:
    with tl.serve(simulate=True, speed=30, start="09:30") as exchange, exchange.use(home=tmp_path):
        desk = Desk()
        yield desk
        desk.close()


def wanted(**more: object) -> Wanted:
    return Wanted(("ZVZZT", "ZWZZT"), ("quotes", "trades"), **more)


def test_a_recording_ends_in_time_and_is_kept_under_its_name_with_its_tags(desk):
    assert desk.record(wanted(minutes=A_MOMENT, name="open", tags=("quiet",)))
    desk.recording.wait(LONGEST)
    assert desk.running is None
    assert desk.recording.error is None
    dataset = desk.recording.dataset
    assert (dataset.name, dataset.tags, dataset.symbols) == ("open", ("quiet",), ("ZVZZT", "ZWZZT"))
    assert sum(sample.events for sample in desk.recording.samples) <= desk.recording.stats.events
    assert desk.recording.simulated


def test_a_second_recording_waits_until_the_first_is_over(desk):
    assert desk.record(wanted(name="first"))
    first = desk.recording
    assert not desk.record(wanted(name="second"))
    assert desk.recording is first
    first.stop()
    assert desk.record(wanted(name="second"))


def test_a_recording_whose_name_is_taken_says_so_and_loses_nothing(desk):
    for _ in range(2):
        assert desk.record(wanted(minutes=A_MOMENT, name="open"))
        desk.recording.wait(LONGEST)
    assert "There is a dataset 'open' already" in str(desk.recording.error)
    assert sorted(dataset.name for dataset in tl.list_datasets()) == ["open", desk.recording.stats.dataset]


def test_the_end_of_the_server_ends_a_recording_cleanly(desk):
    assert desk.record(wanted(minutes=10, name="open"))
    until = clock.monotonic() + LONGEST * clock.SECOND
    while not desk.recording.stats.events and clock.monotonic() < until:
        clock.sleep(0.05)
    desk.close()
    assert tl.open_dataset("open").gaps == ()


def test_a_watch_shows_quotes_and_gives_its_connection_to_a_recording(desk):
    desk.look(["ZVZZT"])
    watch = desk.watch
    until = clock.monotonic() + LONGEST * clock.SECOND
    while not watch.history("ZVZZT") and clock.monotonic() < until:
        clock.sleep(0.05)
    touch = watch.history("ZVZZT")[-1]
    assert 0 < touch.bid < touch.ask
    assert desk.record(wanted())
    assert desk.watch is None
    desk.look(["ZXZZT"])
    assert desk.watch.symbols == ("ZVZZT", "ZWZZT")  # the one connection is the recording's
