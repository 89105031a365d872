"""A recording holds what was sent, says what it lost, and survives what happens to it."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from streams import Vendor, both, firehose, message, quote, settings_for, status, trade, until
from tapelab.errors import (
    Locked,
    NoData,
    NotAuthorized,
    NotInPlan,
    RecordingError,
    SettingError,
    StoreError,
    UnknownName,
    Unreachable,
    UsageError,
)
from tapelab.live import stream
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.live.schedule import next_session
from tapelab.live.session import SessionRecorder
from tapelab.market import clock
from tapelab.settings import Settings
from tapelab.store import journal
from tapelab.store.datasets import growing
from tapelab.store.datasets.dataset import list_datasets, open_dataset
from test_journal import Receiver, frames


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Settings:
    return settings_for(vendor, tmp_path)


def sequences(dataset: object, kind: str) -> list[int]:
    return dataset.table(kind).column("sequence").to_pylist()  # type: ignore[attr-defined]


def test_what_was_sent_is_what_is_recorded_byte_for_byte(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(*map(both, range(2000)), message(quote(2000)) + b" " * 200_000)
        until(lambda: recorder.stats.events == 4001)
    path = recorder.save_dataset("morning")
    assert path == settings.root / "datasets" / "morning" / "bars_1min.parquet"
    sent = [m.payload for m in journal.messages(path.parent / "journal")]
    assert [payload for payload in sent if b'"status"' not in payload] == vendor.told
    dataset = open_dataset(path)
    assert sequences(dataset, "quotes") == list(range(2001))
    assert sequences(dataset, "trades") == list(range(2000))
    assert dataset.gaps == ()
    assert dataset.verify() == 3
    assert dataset.provenance["source"] == "live"
    assert dataset.provenance["simulated"] is True
    events = list(dataset.replay())
    assert [type(event).__name__ for event in events[:4]] == ["Quote", "Trade", "Quote", "Trade"]
    assert [event.arrival for event in events] == sorted(event.arrival for event in events)
    assert len(events) == 4001


def test_the_bars_beside_a_recording_open_as_ohlcv_with_pandas(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder("AAPL", settings=settings) as recorder:
        vendor.tell(*map(both, range(100)))
        until(lambda: recorder.stats.events == 200)
        live = recorder.get_dataframe()
    bars = pd.read_parquet(recorder.save_dataset("opened"))
    assert {"timestamp", "symbol", "open", "high", "low", "close", "volume"} <= set(bars.columns)
    assert bars["volume"].sum() == sum(10 + n % 5 for n in range(100))
    assert str(bars["timestamp"].dtype) == "datetime64[ns, UTC]"
    pd.testing.assert_frame_equal(live, recorder.get_dataframe())
    assert recorder.save_dataset("opened", resample_interval="5min").name == "bars_5min.parquet"
    assert len(pd.read_parquet(recorder.save_dataset("opened", resample_interval="1s"))) == 1


def test_a_recording_of_quotes_alone_gives_bars_of_the_mid_price(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], channels=["quotes"], settings=settings) as recorder:
        vendor.tell(*(message(quote(n)) for n in range(10)))
        until(lambda: recorder.stats.quotes == 10)
    frame = recorder.get_dataframe()
    assert frame["open"].iloc[0] == pytest.approx(100.01)
    assert frame.attrs["tapelab"]["built_from"] == "quotes"


@pytest.mark.parametrize("clean", [False, True])
def test_a_connection_that_ends_leaves_a_gap_and_the_recording_goes_on(
    vendor: Vendor, settings: Settings, clean: bool
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        for n in range(3):
            vendor.tell(*map(both, range(n * 100, n * 100 + 100)))
            until(lambda n=n: recorder.stats.events == (n + 1) * 200)
            if n < 2:
                vendor.close(1001, "going away") if clean else vendor.cut()
                vendor.await_subscribers()
                until(lambda n=n: recorder.stats.gaps == n + 1)
        assert recorder.stats.reconnects == 2
    dataset = open_dataset(recorder.save_dataset("cut"))
    assert [gap.cause for gap in dataset.gaps] == (["closed"] * 2 if clean else ["cut"] * 2)
    assert all(gap.start < gap.end for gap in dataset.gaps)
    assert sequences(dataset, "quotes") == list(range(300))
    first, *_ = dataset.coverage["AAPL"].listened
    assert first[0] < dataset.gaps[0].start < first[1] < dataset.gaps[0].end


def test_what_the_server_says_before_it_ends_a_connection_is_the_cause(
    vendor: Vendor, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(message({"ev": "status", "status": "slow_consumer", "message": "too slow"}))
        vendor.cut()
        until(lambda: recorder.stats.gaps == 1)
        vendor.await_subscribers()
        vendor.tell(both(1))
        until(lambda: recorder.stats.events == 2)
    dataset = open_dataset(recorder.save_dataset("slow"))
    assert [gap.cause for gap in dataset.gaps] == ["slow_consumer"]


def test_a_server_that_breaks_the_protocol_is_left_and_tried_again(
    vendor: Vendor, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(both(1))
        vendor.tell_raw(b"\xc1\x03abc")
        until(lambda: recorder.stats.gaps == 1)
        vendor.await_subscribers()
        vendor.tell(both(2))
        until(lambda: recorder.stats.events == 4)
    dataset = open_dataset(recorder.save_dataset("broken"))
    assert [gap.cause for gap in dataset.gaps] == ["protocol"]
    assert sequences(dataset, "trades") == [1, 2]


def test_pings_between_and_inside_fragmented_messages_are_answered(
    vendor: Vendor, settings: Settings
) -> None:
    payload = both(7)
    head, tail = payload[:50], payload[50:]
    raw = (
        b"\x01"
        + bytes([len(head)])
        + head
        + b"\x89\x02hi"
        + b"\x80\x7e"
        + len(tail).to_bytes(2, "big")
        + tail
    )
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        for at in range(0, len(raw), 7):
            vendor.tell_raw(raw[at : at + 7])
        until(lambda: recorder.stats.events == 2)
        notes = [n for n in journal_notes(recorder, settings) if n["action"] == "subscribe"]
        assert notes == [{"action": "subscribe", "params": "Q.AAPL,T.AAPL"}]
    assert sequences(open_dataset(recorder.save_dataset("pinged")), "quotes") == [7]


def journal_notes(recorder: WebSocketDataRecorder, settings: Settings) -> list[dict[str, object]]:
    follower = journal.Follower(settings.root / "datasets" / recorder.stats.dataset / "journal")
    items = follower.read()
    return [i.facts for i in items if isinstance(i, journal.Note) and i.kind is journal.Kind.SENT]


def test_a_refused_key_is_an_error_and_leaves_nothing(vendor: Vendor, tmp_path: Path) -> None:
    settings = settings_for(vendor, tmp_path, key="not-the-key")
    with pytest.raises(NotAuthorized, match="refused your API key") as caught:
        WebSocketDataRecorder(["AAPL"], settings=settings).start()
    assert "MASSIVE_API_KEY" in caught.value.remedy
    assert "not-the-key" not in str(caught.value) + repr(caught.value)
    assert list_datasets(settings=settings) == []
    assert not list((settings.root / "datasets").iterdir())


def test_a_plan_without_streams_is_said_so(tmp_path: Path) -> None:
    with Vendor(streams=False) as vendor, pytest.raises(NotInPlan, match="no live stream"):
        WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)).start()


def test_a_channel_that_the_plan_lacks_is_named(tmp_path: Path) -> None:
    with Vendor(refused=["Q"]) as vendor:
        settings = settings_for(vendor, tmp_path)
        with pytest.raises(NotInPlan, match=r"Q\.AAPL") as caught:
            WebSocketDataRecorder(["AAPL"], settings=settings).start()
        assert "channels=" in caught.value.remedy
        with WebSocketDataRecorder(["AAPL"], channels=["trades"], settings=settings) as recorder:
            vendor.tell(message(trade(1)))
            until(lambda: recorder.stats.trades == 1)


def test_a_topic_added_later_that_the_plan_lacks_does_not_end_the_recording(tmp_path: Path) -> None:
    with Vendor(refused=["T"]) as vendor:
        settings = settings_for(vendor, tmp_path)
        with WebSocketDataRecorder(["AAPL"], channels=["quotes"], settings=settings) as recorder:
            recorder._stream.change(more=["T.AAPL"], less=[])  # type: ignore[union-attr]
            until(lambda: any("T.AAPL" in said["params"] for said in vendor.heard))
            vendor.tell(message(quote(1)))
            until(lambda: recorder.stats.events == 1)
            vendor.cut()
            vendor.await_subscribers()
            vendor.tell(message(quote(2)))
            until(lambda: recorder.stats.events == 2)
        assert vendor.heard[-1]["params"] == "Q.AAPL"
    dataset = open_dataset(recorder.save_dataset("without"))
    assert dataset.provenance["unconfirmed"] == ["T.AAPL"]
    assert [gap.cause for gap in dataset.gaps] == ["cut"]


def test_a_second_connection_elsewhere_ends_the_recording_and_keeps_what_came(
    vendor: Vendor, settings: Settings, tmp_path: Path
) -> None:
    vendor.one_only = True
    recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
    recorder.start()
    vendor.tell(both(1))
    until(lambda: recorder.stats.events == 2)
    other = settings_for(vendor, tmp_path / "elsewhere")
    with WebSocketDataRecorder(["AAPL"], settings=other):
        until(lambda: recorder.stats.state == "failed")
        with pytest.raises(RecordingError, match="Another program"):
            recorder.stop()
    assert vendor.connections == 2  # it did not come back to throw the other out
    assert sequences(open_dataset(recorder.save_dataset("first")), "trades") == [1]


def test_nobody_there_is_an_error_at_once(vendor: Vendor, settings: Settings) -> None:
    vendor.away()
    with pytest.raises(Unreachable, match="No connection"):
        WebSocketDataRecorder(["AAPL"], settings=settings).start()


def test_a_server_that_goes_away_is_waited_for(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(both(1))
        until(lambda: recorder.stats.events == 2)
        vendor.away()
        vendor.back()
        vendor.await_subscribers()
        vendor.tell(both(2))
        until(lambda: recorder.stats.events == 4)


def test_missing_keys_and_wrong_questions_are_refused_before_anything_is_sent(
    vendor: Vendor, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASSIVE_API_KEY", raising=False)
    without = settings.with_(api_key=None)
    with pytest.raises(SettingError, match="MASSIVE_API_KEY"):
        WebSocketDataRecorder(["AAPL"], settings=without).start()
    with pytest.raises(UnknownName, match="kwotes"):
        WebSocketDataRecorder(["AAPL"], channels=["kwotes"], settings=settings)
    with pytest.raises(UsageError):
        WebSocketDataRecorder([], settings=settings)
    recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
    with pytest.raises(RecordingError, match="Nothing is recorded"):
        recorder.save_dataset("x")
    assert recorder.stats.state == "ready"
    assert vendor.connections == 0


def test_an_empty_recording_cannot_be_saved_says_why_and_leaves_nothing(
    vendor: Vendor, settings: Settings
) -> None:
    recorders = [WebSocketDataRecorder(["AAPL"], settings=settings) for _ in range(2)]
    with recorders[0], recorders[1]:  # the second follows the first
        with pytest.raises(RecordingError, match="still running"):
            recorders[0].save_dataset("x")
        recorders[1].stop()
    for recorder in recorders:
        with pytest.raises(NoData, match="Nothing was received"):
            recorder.save_dataset("x")
        assert recorder.stats.state == "stopped"
    assert not list((settings.root / "datasets").iterdir())


def test_of_a_recording_without_events_stays_what_it_lost_and_what_has_no_table(
    vendor: Vendor, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.cut()
        until(lambda: recorder.stats.gaps == 1)
    assert [gap.cause for gap in open_dataset(recorder.stats.dataset, settings=settings).gaps] == ["cut"]
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(message({"ev": "XX"}))
        until(lambda: recorder.stats.unknown == 1)
    assert open_dataset(recorder.stats.dataset, settings=settings).counts["unknown"] == 1


def test_a_session_that_was_silent_is_kept(vendor: Vendor, settings: Settings) -> None:
    slot = next_session(clock.now() + 5 * clock.DAY)
    with SessionRecorder(["AAPL"], slot, settings=settings):
        pass
    dataset = open_dataset(slot.name, settings=settings)
    assert (dataset.symbols, dataset.gaps, len(dataset.coverage["AAPL"].listened)) == ((), (), 1)


@pytest.mark.parametrize("came", [False, True])
def test_a_recording_that_could_not_begin_leaves_only_what_came_all_the_same(
    tmp_path: Path, came: bool
) -> None:
    grows = growing.create(tmp_path, "refused", provenance={"channels": ["quotes"]})
    receiver = Receiver(grows.journal)
    receiver.open()
    said = [message(status("connected", "Connected Successfully"))]
    receiver.receive(frames(*said, *([message(quote(1))] if came else [])))
    receiver.writer.close()
    grows.give_up()
    assert [path.name for path in tmp_path.iterdir()] == (["refused"] if came else [])
    if came:
        assert sequences(open_dataset(tmp_path / "refused"), "quotes") == [1]


def test_a_second_recording_goes_behind_the_first_as_a_new_version(
    vendor: Vendor, settings: Settings
) -> None:
    for n, name in enumerate(["day", "day"]):
        with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
            vendor.tell(*map(both, range(n * 50, n * 50 + 50)))
            until(lambda recorder=recorder: recorder.stats.events == 100)
        if n:
            with pytest.raises(UsageError, match="already"):
                recorder.save_dataset(name)
        path = recorder.save_dataset(name, append=bool(n))
    dataset = open_dataset("day", settings=settings)
    assert dataset.version == 2
    assert sequences(dataset, "quotes") == list(range(100))
    arrivals = [event.arrival for event in dataset.replay()]
    assert arrivals == sorted(set(arrivals))
    assert dataset.verify() == 6
    assert sequences(open_dataset(path, version=1), "quotes") == list(range(50))
    assert [d.name for d in list_datasets(settings=settings)] == ["day"]
    assert len(recorder.get_dataframe()) == 1
    assert recorder.get_dataframe()["volume"].iloc[0] == sum(10 + n % 5 for n in range(50, 100))


def test_recordings_of_different_places_are_not_mixed(
    vendor: Vendor, settings: Settings, tmp_path: Path
) -> None:
    recorders = []
    for given in (settings, settings.with_(rest_url="http://127.0.0.1:9")):
        recorder = WebSocketDataRecorder(["AAPL"], save_dir=tmp_path / "mine", settings=given)
        with recorder:
            vendor.tell(both(1))
            until(lambda recorder=recorder: recorder.stats.events == 2)
        recorders.append(recorder)
    recorders[0].save_dataset("one")
    with pytest.raises(UsageError, match="endpoint differs"):
        recorders[1].append_to_dataset(tmp_path / "mine" / "one")


def test_a_dataset_goes_where_save_dir_says(vendor: Vendor, settings: Settings, tmp_path: Path) -> None:
    with WebSocketDataRecorder(["AAPL"], save_dir=tmp_path / "mine", settings=settings) as recorder:
        vendor.tell(both(1))
        until(lambda: recorder.stats.events == 2)
    assert recorder.save_dataset("here").parent == tmp_path / "mine" / "here"


def test_a_second_program_follows_the_recording_instead_of_connecting(
    vendor: Vendor, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL", "MSFT"], settings=settings) as first:
        vendor.tell(both(1))
        until(lambda: first.stats.events == 2)
        with WebSocketDataRecorder(["AAPL"], settings=settings) as second:
            vendor.tell(both(2), both(3))
            until(lambda: second.stats.events == 4)
        assert vendor.connections == 1
        with pytest.raises(Locked, match="already recorded"):
            WebSocketDataRecorder(["TSLA"], settings=settings).start()
    assert sequences(open_dataset(first.save_dataset("whole")), "quotes") == [1, 2, 3]
    followed = open_dataset(second.save_dataset("part"))
    assert sequences(followed, "quotes") == [2, 3]
    assert followed.verify() == 2


def test_who_follows_may_leave_while_the_recording_goes_on(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as first, firehose(vendor, both) as poured:
        second = WebSocketDataRecorder(["AAPL"], settings=settings)
        with second:
            until(lambda: second.stats.events > 1000)
        assert not poured.is_set()  # it did not wait for silence
        seen = first.stats.events
        until(lambda: first.stats.events > seen)
    assert second.stats.error is None
    assert len(open_dataset(second.save_dataset("part")).table("quotes")) > 400


def test_a_receiver_that_is_killed_comes_back_and_loses_nothing_acknowledged(
    vendor: Vendor, settings: Settings
) -> None:
    recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
    with recorder, firehose(vendor, both):
        until(lambda: recorder.stats.events > 2000)
        pid = recorder._stream.receiver_pid  # type: ignore[union-attr]
        os.kill(pid, signal.SIGKILL)
        known = recorder._stream.figures.acknowledged  # type: ignore[union-attr]
        until(lambda: recorder.stats.gaps == 1)
        more = recorder.stats.events
        until(lambda: recorder.stats.events > more + 1000)
    dataset = open_dataset(recorder.save_dataset("killed"))
    assert [gap.cause for gap in dataset.gaps] == ["killed"]
    numbers = [record.sequence for record in journal.records(dataset.path / "journal")]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > known
    found = sequences(dataset, "quotes")
    assert found == sorted(set(found))
    jumps = [b for a, b in itertools.pairwise(found) if b != a + 1]
    assert len(jumps) <= 1
    assert dataset.verify()


def test_a_replay_follows_a_recording_until_it_ends(vendor: Vendor, settings: Settings) -> None:
    seen: list[object] = []
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(*map(both, range(100)))
        until(lambda: recorder.stats.events == 200)
        view = open_dataset(recorder.stats.dataset, settings=settings)
        assert len(list(view.replay())) == 200
        follower = threading.Thread(target=lambda: seen.extend(view.replay(follow=True)))
        follower.start()
        vendor.tell(*map(both, range(100, 200)))
        until(lambda: len(seen) == 400)
        with pytest.raises(StoreError, match="still recorded"):
            view.tag("early")
    follower.join(20)
    assert not follower.is_alive()
    finished = open_dataset(recorder.save_dataset("followed"))
    assert seen == list(finished.replay())


def test_rows_are_laid_down_while_the_recording_runs(
    vendor: Vendor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "FLUSH_ROWS", 150)
    monkeypatch.setattr(stream, "GATHER_EVERY", 0)
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        folder = settings.root / "datasets" / recorder.stats.dataset
        for n in range(10):
            vendor.tell(*map(both, range(n * 50, n * 50 + 50)))
            until(lambda n=n: recorder.stats.events == (n + 1) * 100)
        assert len(list((folder / "segments").iterdir())) > 4
        assert len(recorder.get_dataframe()) == 1
        view = open_dataset(folder)
        assert sequences(view, "trades") == list(range(500))
        assert view.coverage["AAPL"].trades == 500
    dataset = open_dataset(recorder.save_dataset("parts"))
    assert sequences(dataset, "quotes") == list(range(500))
    arrivals = [event.arrival for event in dataset.replay()]
    assert arrivals == sorted(set(arrivals))
    assert dataset.coverage["AAPL"].quotes == 500


def test_ctrl_c_in_the_terminal_does_not_reach_the_receiver(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        os.kill(recorder._stream.receiver_pid, signal.SIGINT)  # type: ignore[union-attr, arg-type]
        vendor.tell(both(1))
        until(lambda: recorder.stats.events == 2)
        assert os.getsid(recorder._stream.receiver_pid) != os.getsid(0)  # type: ignore[union-attr, arg-type]


def test_statistics_are_frozen_and_say_how_safe_the_data_is(vendor: Vendor, settings: Settings) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
        vendor.tell(*map(both, range(100)), message({"ev": "XX"}), b"[{]")
        until(lambda: recorder.stats.malformed == 1 and recorder.stats.events == 200)
        until(lambda: recorder.stats.durable == recorder.stats.acknowledged > 10_000)
        stats = recorder.stats
        assert (stats.quotes, stats.trades, stats.events, stats.unknown) == (100, 100, 200, 1)
        assert stats.state == "recording"
        assert stats.lag_ms is None  # the tape is of another day
        with pytest.raises(AttributeError):
            stats.frames = 0  # type: ignore[misc]
    assert recorder.stats.state == "stopped"
    assert recorder.stats.events == 200
