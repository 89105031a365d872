"""Who follows a recording goes on when that ends: one of them listens to the feed, the others to him."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streams import WAIT, Vendor, both, settings_for, until
from tapelab.live import process
from tapelab.live.connector import MassiveConnector
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.market.events import Event
from tapelab.settings import Settings
from tapelab.store.datasets import growing, manifest
from tapelab.store.datasets.dataset import Dataset, open_dataset


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Settings:
    return settings_for(vendor, tmp_path)


def sequences(dataset: Dataset) -> list[int]:
    found: list[int] = dataset.table("quotes").column("sequence").to_pylist()
    return found


def folder_of(recorder: WebSocketDataRecorder) -> Path:
    assert recorder._growing is not None
    return recorder._growing.folder


def test_a_follower_listens_itself_when_the_recording_it_follows_ends(
    vendor: Vendor, settings: Settings
) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    with WebSocketDataRecorder(["AAPL"], settings=settings) as follower:
        vendor.tell(*map(both, range(100)))
        until(lambda: follower.stats.events == 200)
        assert vendor.connections == 1
        leader.stop()
        until(lambda: vendor.connections == 2)
        vendor.await_subscribers()
        vendor.tell(*map(both, range(100, 200)))
        until(lambda: follower.stats.events == 400)
        assert follower.stats.causes == {"leader_ended": 1}
        assert follower.stats.acknowledged > 0
        folder = folder_of(follower)
        assert sequences(open_dataset(folder)) == list(range(200))
    dataset = open_dataset(folder)
    assert sequences(dataset) == list(range(200))
    assert [gap.cause for gap in dataset.gaps] == ["leader_ended"]
    arrivals = [event.arrival for event in dataset.replay()]
    assert arrivals == sorted(set(arrivals))
    assert len(arrivals) == 400
    assert dataset.verify() > 2
    assert len(dataset.coverage["AAPL"].listened) == 2


@contextmanager
def followed(recorder: WebSocketDataRecorder) -> Iterator[list[Event]]:
    """What a replay gives that follows a recording, until that ends, which it has to."""
    seen: list[Event] = []
    view = open_dataset(folder_of(recorder))
    thread = threading.Thread(target=lambda: seen.extend(view.replay(follow=True)), daemon=True)
    thread.start()
    yield seen
    thread.join(WAIT)
    assert not thread.is_alive()


def test_a_replay_goes_on_with_a_follower_that_takes_over_and_ends_with_it(
    vendor: Vendor, settings: Settings
) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    follower = WebSocketDataRecorder(["AAPL"], settings=settings)
    follower.start()
    with followed(follower) as seen:
        vendor.tell(*map(both, range(10)))
        until(lambda: len(seen) == 20)
        leader.stop()
        until(lambda: vendor.connections == 2)
        vendor.await_subscribers()
        vendor.tell(*map(both, range(10, 20)))
        until(lambda: len(seen) == 40)
        follower.stop()
    assert seen == list(open_dataset(follower.save_dataset("followed")).replay())


def test_replays_of_all_followers_go_on_whoever_of_them_takes_over(
    vendor: Vendor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "FLUSH_ROWS", 4)  # rows are laid down before a replay looks
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    followers = [WebSocketDataRecorder(["AAPL"], settings=settings) for _ in range(2)]
    for follower in followers:
        follower.start()
    with followed(followers[0]) as one, followed(followers[1]) as other:
        for n, ending in enumerate([leader, *followers]):
            vendor.tell(*map(both, range(n * 10, n * 10 + 10)))
            alive = followers[max(n - 1, 0) :]
            until(lambda n=n, alive=alive: all(f.stats.events == (n + 1) * 20 for f in alive))
            ending.stop()
            if n < 2:
                until(lambda n=n: any(f._stream.receiver_pid for f in followers[n:]))  # type: ignore[union-attr]
                vendor.await_subscribers()
    for follower, seen in zip(followers, (one, other), strict=True):
        assert seen == list(open_dataset(follower.save_dataset(f"of-{len(seen)}")).replay())
    assert len(one) == 40
    assert len(other) == 60


def test_who_is_stopped_when_another_was_quicker_to_take_over_ends_in_order(
    vendor: Vendor, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    follower = WebSocketDataRecorder(["AAPL"], settings=settings)
    follower.start()
    stream = follower._stream
    assert stream is not None
    vendor.tell(*map(both, range(10)))
    until(lambda: follower.stats.events == 20)
    go_on = threading.Event()
    with monkeypatch.context() as patched:
        late = "import time; time.sleep(1); from tapelab.live.receiver import main; raise SystemExit(main())"
        patched.setattr(process, "COMMAND", [sys.executable, "-c", late])
        leader.stop()
        until(lambda: stream.receiver_pid)
    stream.taps.append(lambda items: go_on.wait(WAIT))  # it does not see yet that its receiver is refused
    with WebSocketDataRecorder(["AAPL"], settings=settings) as quicker:
        until(lambda: stream._process is not None and stream._process._child.poll() is not None)
        ended: list[None] = []
        stopping = threading.Thread(target=lambda: ended.append(follower.stop()))
        stopping.start()
        until(lambda: stream._stopping)
        go_on.set()
        stopping.join(WAIT)
        assert ended == [None]
        assert quicker.stats.state == "recording"
    assert follower.stats.causes == {"leader_ended": 1}
    assert follower.stats.events == 20


def test_a_replay_of_a_follower_ends_with_it_though_the_recording_goes_on(
    vendor: Vendor, settings: Settings
) -> None:
    with WebSocketDataRecorder(["AAPL"], settings=settings):
        follower = WebSocketDataRecorder(["AAPL"], settings=settings)
        follower.start()
        with followed(follower) as seen:
            vendor.tell(*map(both, range(10)))
            until(lambda: len(seen) == follower.stats.events == 20)
            follower.stop()


def test_a_replay_gives_what_a_receiver_hears_though_its_recorder_was_killed(
    vendor: Vendor, settings: Settings
) -> None:
    recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
    recorder.start()
    with followed(recorder) as seen:
        assert recorder._growing is not None
        assert recorder._growing._held is not None
        recorder._growing._held.close()  # the system lets go of it when its program dies
        vendor.tell(*map(both, range(10)))
        until(lambda: len(seen) == 20)
        recorder.stop()


@pytest.mark.parametrize("follows", [False, True])
def test_a_replay_of_a_recording_in_which_nothing_came_ends_with_it(
    vendor: Vendor, settings: Settings, follows: bool
) -> None:
    recorders = [WebSocketDataRecorder(["AAPL"], settings=settings) for _ in range(2)]
    for recorder in recorders:
        recorder.start()
    with followed(recorders[follows]) as seen:
        recorders[follows].stop()
    assert seen == []
    recorders[not follows].stop()


def test_a_replay_waits_for_a_receiver_that_was_killed(vendor: Vendor, settings: Settings) -> None:
    recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
    recorder.start()
    with followed(recorder) as seen:
        vendor.tell(*map(both, range(10)))
        until(lambda: len(seen) == 20)
        assert recorder._stream is not None
        os.kill(recorder._stream.receiver_pid or 0, signal.SIGKILL)
        until(lambda: vendor.connections == 2)
        vendor.await_subscribers()
        vendor.tell(*map(both, range(10, 20)))
        until(lambda: len(seen) == 40)
        recorder.stop()


def test_of_several_followers_one_listens_and_the_others_follow_it(
    vendor: Vendor, settings: Settings
) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    followers = [WebSocketDataRecorder(["AAPL"], settings=settings) for _ in range(3)]
    for follower in followers:
        follower.start()
    vendor.tell(*map(both, range(10)))
    until(lambda: all(follower.stats.events == 20 for follower in followers))
    leader.stop()
    until(lambda: vendor.connections == 2)
    vendor.await_subscribers()
    vendor.tell(*map(both, range(10, 20)))
    until(lambda: all(follower.stats.events == 40 for follower in followers))
    folders = [folder_of(follower) for follower in followers]
    for follower in followers:
        follower.stop()
    assert vendor.connections <= 4
    for folder in folders:
        dataset = open_dataset(folder)
        assert sequences(dataset) == list(range(20))
        assert {gap.cause for gap in dataset.gaps} == {"leader_ended"}
        dataset.verify()


def test_a_receiver_that_is_killed_is_waited_for_and_not_replaced(vendor: Vendor, settings: Settings) -> None:
    with (
        WebSocketDataRecorder(["AAPL"], settings=settings) as leader,
        WebSocketDataRecorder(["AAPL"], settings=settings) as follower,
    ):
        vendor.tell(*map(both, range(10)))
        until(lambda: follower.stats.events == 20)
        assert leader._stream is not None
        assert follower._stream is not None
        os.kill(leader._stream.receiver_pid or 0, signal.SIGKILL)
        until(lambda: vendor.connections == 2)
        vendor.await_subscribers()
        vendor.tell(*map(both, range(10, 20)))
        until(lambda: follower.stats.events == leader.stats.events == 40)
        assert follower._stream.leader is not None
        assert follower.stats.causes == leader.stats.causes == {"killed": 1}


def test_a_recording_that_took_over_and_is_killed_is_whole(vendor: Vendor, settings: Settings) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    follower = WebSocketDataRecorder(["AAPL"], settings=settings)
    follower.start()
    vendor.tell(*map(both, range(10)))
    until(lambda: follower.stats.events == 20)
    leader.stop()
    until(lambda: vendor.connections == 2)
    vendor.await_subscribers()
    vendor.tell(*map(both, range(10, 20)))
    until(lambda: follower.stats.events == 40)
    grows, stream = follower._growing, follower._stream
    assert grows is not None
    assert stream is not None
    stream.stop()
    grows.close()  # as when the program is killed: no first version is written
    assert manifest.load(grows.folder).version == 0
    assert growing.finish_killed(grows.folder).version == 1
    dataset = open_dataset(grows.folder)
    assert sequences(dataset) == list(range(20))
    assert "leader_ended" in {gap.cause for gap in dataset.gaps}


def test_callbacks_go_on_when_the_recording_behind_them_ends(vendor: Vendor, settings: Settings) -> None:
    leader = WebSocketDataRecorder(["AAPL"], settings=settings)
    leader.start()
    told: list[int] = []

    def on_quote(symbol: str, orderbook: dict[str, Any]) -> None:
        told.append(orderbook["ts_event"])

    connector = MassiveConnector(settings=settings)
    connector.start_stream(["AAPL"], on_quote)
    vendor.tell(*map(both, range(10)))
    until(lambda: len(told) == 10)
    leader.stop()
    until(lambda: vendor.connections == 2)
    vendor.await_subscribers()
    vendor.tell(*map(both, range(10, 20)))
    until(lambda: len(told) == 20)
    assert connector.get_stats()["error"] is None
    connector.enable_recording()  # it has a connection of its own now
    vendor.tell(*map(both, range(20, 30)))
    until(lambda: len(told) == 30)
    assert sequences(open_dataset(connector.disable_recording())) == list(range(20, 30))
    connector.close()
    assert not list((settings.root / "streams").glob("*"))
