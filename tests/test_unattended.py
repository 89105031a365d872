"""A recorder that nobody looks after goes on after a kill, says what is wrong, and loses nothing unsaid."""

from __future__ import annotations

import contextvars
import http.server
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import streams
from streams import Vendor, both, settings_for, until
from tapelab.errors import RecordingError, SettingError
from tapelab.live import health, webhook
from tapelab.live.schedule import Slot, next_session
from tapelab.live.session import SessionRecorder, parts_of, settle
from tapelab.live.unattended import Unattended
from tapelab.live.watch import Watch
from tapelab.live.webhook import Incidents, Webhook, read_address
from tapelab.market import clock
from tapelab.settings import Secret, Settings
from tapelab.store.datasets import growing, manifest
from tapelab.store.datasets.dataset import Dataset, folder_of, list_datasets, open_dataset
from tapelab.store.journal.segments import Lock, lock_path
from unattended_driver import Fast, Program, Told

DRIVER = Path(__file__).with_name("unattended_driver.py")


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Settings:
    return settings_for(vendor, tmp_path)


# The receiver has a clock of its own, the machine's; a test is about one side of it.
PAST = next_session(1_772_517_600 * clock.SECOND)  # a Tuesday in March 2026, 01:00 in New York


@pytest.fixture
def slot() -> Slot:
    """A session to come: what is recorded in it by our clock is not older than what the receiver wrote."""
    return next_session(next_session(time.time_ns()).stop)


class Recorder:
    """`Unattended` in a thread, by a clock that a test sets."""

    def __init__(self, settings: Settings, at: int, **options: Any) -> None:
        self.clock = Fast(at, time.time_ns())
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self.watch = Watch(folder_of(settings), "stocks", free_least=0, **options)
        self._unattended = Unattended(["AAPL"], self.watch, tags=["nightly"], settings=settings)
        with clock.use(self.clock):
            context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._unattended.run(self.ended)
        except BaseException as error:
            self.error = error

    def skip_to(self, at: int) -> None:
        self.clock.at += at - self.clock.now()

    @property
    def state(self) -> object:
        return self.watch.said["state"]

    def close(self) -> None:
        self.ended.set()
        self._thread.join(30)
        self.watch.close()
        assert self.error is None


@pytest.fixture
def started(settings: Settings) -> Iterator[Callable[..., Recorder]]:
    running: list[Recorder] = []

    def start(at: int, **options: Any) -> Recorder:
        running.append(Recorder(settings, at, **options))
        return running[-1]

    yield start
    for one in running:
        one.close()


def sequences(dataset: Dataset) -> list[int]:
    found: list[int] = dataset.table("quotes").column("sequence").to_pylist()
    return found


def events(recorder: Recorder) -> int:
    count = recorder.watch.said.get("events", 0)
    assert isinstance(count, int)
    return count


def test_one_dataset_for_each_session_with_its_bars_and_tags(
    vendor: Vendor, settings: Settings, started: Callable[..., Recorder]
) -> None:
    recorder = started(PAST.start - clock.HOUR)
    until(lambda: recorder.state == "waiting")
    assert recorder.watch.said["session"]["date"] == str(PAST.session.date)  # type: ignore[index]
    assert vendor.connections == 0
    recorder.skip_to(PAST.start)
    until(lambda: recorder.state == "recording")
    vendor.tell(*map(both, range(100)))
    until(lambda: events(recorder) == 200)
    following = next_session(PAST.stop)
    recorder.skip_to(PAST.stop)
    until(lambda: recorder.state == "waiting")
    recorder.skip_to(following.start)
    until(lambda: recorder.state == "recording" and recorder.watch.said["dataset"] == following.name)
    vendor.tell(*map(both, range(100, 110)))
    until(lambda: events(recorder) == 20)
    recorder.close()
    first, second = list_datasets(settings=settings)
    assert (first.name, second.name) == (PAST.name, following.name)
    assert (sequences(first), sequences(second)) == (list(range(100)), list(range(100, 110)))
    assert first.tags == ("nightly",)
    assert first.gaps == ()
    assert (first.path / "bars_1min.parquet").exists()


def test_a_vendor_that_is_away_at_the_open_is_waited_for_and_the_loss_is_declared(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    vendor.away()
    recorder = started(slot.opens - 2 * clock.SECOND)
    until(lambda: recorder.state == "retrying")
    assert set(recorder.watch.said["problems"]) == {"failed"}  # type: ignore[call-overload]
    recorder.skip_to(slot.opens + clock.MINUTE)
    vendor.back()
    until(lambda: recorder.state == "recording")
    vendor.tell(*map(both, range(10)))
    until(lambda: events(recorder) == 20)
    recorder.close()
    [dataset] = list_datasets(settings=settings)
    assert sequences(dataset) == list(range(10))
    assert [(gap.cause, gap.start) for gap in dataset.gaps] == [("not_running", slot.opens)]


def test_a_reboot_in_order_leaves_one_dataset_with_the_gap_declared(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    for n in range(3):
        recorder = started(slot.start + n * clock.HOUR)
        until(lambda recorder=recorder: recorder.state == "recording")
        vendor.tell(*map(both, range(n * 10, n * 10 + 10)))
        until(lambda recorder=recorder: events(recorder) == 20)
        recorder.close()
    [dataset] = list_datasets(settings=settings)
    assert dataset.name == slot.name
    assert sequences(dataset) == list(range(30))
    assert [gap.cause for gap in dataset.gaps] == ["not_running", "not_running"]
    arrivals = [event.arrival for event in dataset.replay()]
    assert arrivals == sorted(set(arrivals))
    assert dataset.verify() > 3


def test_started_twice_it_records_once_and_the_second_takes_over(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    first = started(slot.start)
    until(lambda: first.state == "recording")
    second = started(slot.start)
    until(lambda: second.state == "standing by")
    assert second.watch.said["healthy"] is True
    vendor.tell(*map(both, range(10)))
    until(lambda: events(first) == 20)
    assert vendor.connections == 1
    first.close()
    until(lambda: second.state == "recording")
    vendor.tell(*map(both, range(10, 20)))
    until(lambda: events(second) == 20)
    second.close()
    [dataset] = list_datasets(settings=settings)
    assert sequences(dataset) == list(range(20))
    assert [gap.cause for gap in dataset.gaps] == ["not_running"]


def quotes_in(folder: Path) -> int:
    """How many a recording under way holds, in its journal or in segments."""
    return sum(seen.quotes for seen in growing.peek(folder, manifest.load(folder)).symbols.values())


def test_after_a_kill_of_the_whole_tree_the_same_dataset_goes_on(
    vendor: Vendor, settings: Settings, slot: Slot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WAIT", 90.0)  # programs are started
    Told.tell(tmp_path / "clock", slot.start)
    folder = settings.root / "datasets" / slot.name
    for n in range(2):
        with Program(settings, clock=str(tmp_path / "clock"), symbols=["AAPL"], count=1):
            vendor.await_subscribers()
            vendor.tell(*map(both, range(n * 100, n * 100 + 100)))
            until(lambda n=n: quotes_in(folder) == n * 100 + 100)
        until(lambda: not vendor.subscribed)
    dataset = open_dataset(folder)
    assert sequences(dataset) == list(range(200))
    assert [gap.cause for gap in dataset.gaps] == ["killed"]
    assert len(parts_of(folder)) == 1


def test_a_session_whose_recorder_never_came_back_says_what_is_missing_at_its_end(
    vendor: Vendor, settings: Settings
) -> None:
    now = time.time_ns()
    slot = next_session(now, prefix="short")
    over = Slot(slot.name, slot.session, now - clock.MINUTE, now + 2 * clock.MINUTE, now, slot.stop)
    with SessionRecorder(["AAPL"], over, settings=settings) as recorder:
        vendor.tell(*map(both, range(10)))
        until(lambda: recorder.stats.events == 20)
    first = settings.root / "datasets" / over.name
    whole = settle(first)
    assert whole is not None
    assert [gap.cause for gap in whole.gaps] == ["not_running"]  # it began too late
    with clock.use(Fast(now + clock.HOUR, now)):
        whole = settle(first)
        again = settle(first)
    assert whole is not None
    assert again is not None
    assert whole.gaps[-1].end == over.closes
    assert again.version == whole.version


def test_a_receiver_that_outlives_its_program_is_waited_for_and_its_dataset_gone_on_with(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    first = SessionRecorder(["AAPL"], slot, settings=settings)
    first.start()
    vendor.tell(*map(both, range(10)))
    until(lambda: first.stats.events == 20)
    grows, stream = first._growing, first._stream
    assert grows is not None
    assert stream is not None
    stream.stop()
    grows.close()  # as when the program alone is killed
    with Lock(lock_path(grows.journal)):
        recorder = started(slot.start)
        until(lambda: recorder.state == "standing by")
    until(lambda: recorder.state == "recording")
    vendor.await_subscribers()
    vendor.tell(*map(both, range(10, 20)))
    until(lambda: events(recorder) == 40)
    recorder.close()
    [dataset] = list_datasets(settings=settings)
    assert sequences(dataset) == list(range(20))
    assert [gap.cause for gap in dataset.gaps] == ["stopped"]


class Inbox:
    """A real HTTP server that takes what a webhook sends; `refuse` so many first."""

    def __init__(self, refuse: int = 0) -> None:
        self.taken: list[dict[str, Any]] = []
        self.asked = 0
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                inbox.asked += 1
                if inbox.asked <= refuse:
                    self.send_error(500)
                    return
                inbox.taken.append(json.loads(body))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = Secret(f"http://127.0.0.1:{self._server.server_address[1]}/your_secret_path")
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> Inbox:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def test_an_incident_is_told_once_and_so_is_its_end() -> None:
    with Inbox() as inbox:
        hook = Webhook(inbox.address)
        incidents = Incidents(hook)
        for now, found in enumerate(({}, {"stalled": "Quiet."}, {"stalled": "Quiet still."}, {}, {})):
            incidents.look(found, now=now * clock.SECOND, dataset="session_2026-11-27")
        hook.close()
    assert [(one["incident"], one["state"]) for one in inbox.taken] == [
        ("stalled", "open"),
        ("stalled", "over"),
    ]
    assert inbox.taken[0]["text"] == "tapelab, session_2026-11-27: Quiet."
    assert inbox.taken[1]["since"] == "1970-01-01T00:00:01+00:00"


def test_a_webhook_that_refuses_is_asked_again_and_then_given_up_without_a_word_of_its_address(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(webhook, "FIRST_PAUSE", 0.01)
    with Inbox(refuse=webhook.TRIES + 2) as inbox:
        hook = Webhook(inbox.address)
        hook.tell({"n": 1})
        hook.tell({"n": 2})
        until(lambda: (hook.failed, hook.delivered) == (1, 1))
        hook.close()
    assert inbox.taken == [{"n": 2}]
    assert "HTTP 500" in caplog.text
    assert "your_secret_path" not in caplog.text + repr(hook._address)


def test_an_address_is_read_from_a_file_and_a_bad_one_is_not_repeated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "webhook"
    file.write_text("https://your_host/your_path\n")
    file.chmod(0o644)
    assert read_address(file).reveal() == "https://your_host/your_path"
    assert "chmod 600" in caplog.text
    for bad in ("ftp://your_host/x", "your_secret", "", "https://your_host/a b", "http://[::1"):
        file.write_text(bad)
        with pytest.raises(SettingError) as caught:
            read_address(file)
        assert not bad or bad not in str(caught.value)
    with pytest.raises(SettingError, match="cannot be read"):
        read_address(tmp_path / "none")


def ask(port: int) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_health_and_webhook_tell_a_stall_in_an_open_session_and_its_end(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    with Inbox() as inbox:
        recorder = started(slot.session.open - clock.MINUTE, health_port=0, webhook=inbox.address)
        assert recorder.watch.health is not None
        port = recorder.watch.health.port
        until(lambda: recorder.state == "recording")
        vendor.tell(*map(both, range(1000)))
        until(lambda: events(recorder) == 2000)
        status_code, said = ask(port)
        assert (status_code, said["healthy"], said["dataset"]) == (200, True, slot.name)
        assert said["gaps"] == {"not_running": 1}
        assert said["disk_free_bytes"] > 0
        recorder.skip_to(slot.session.open + 30 * clock.MINUTE)
        until(lambda: ask(port)[0] == 503)
        assert "since the open; the connection is up" in ask(port)[1]["problems"]["no_events"]
        vendor.tell(*map(both, range(1000, 1010)))
        until(lambda: ask(port)[0] == 200)
        recorder.skip_to(slot.session.open + 2 * clock.HOUR)
        until(lambda: ask(port)[0] == 503)
        assert set(ask(port)[1]["problems"]) == {"stalled"}
        recorder.skip_to(slot.session.close)
        until(lambda: ask(port)[0] == 200)
        recorder.close()
    assert [(one["incident"], one["state"]) for one in inbox.taken] == [
        ("no_events", "open"),
        ("no_events", "over"),
        ("stalled", "open"),
        ("stalled", "over"),
    ]


def test_a_key_that_is_refused_is_told_and_the_session_is_tried_again(
    vendor: Vendor, settings: Settings, slot: Slot, started: Callable[..., Recorder]
) -> None:
    right, vendor.key = vendor.key, "another"
    with Inbox() as inbox:
        recorder = started(slot.start, webhook=inbox.address)
        until(lambda: inbox.taken)
        assert inbox.taken[0]["incident"] == "not_authorized"
        vendor.key = right
        recorder.skip_to(slot.start + 2 * clock.MINUTE)
        until(lambda: recorder.state == "recording")
        recorder.close()
    assert [one["state"] for one in inbox.taken] == ["open", "over"]
    assert right not in json.dumps(inbox.taken)


def test_a_port_in_use_is_an_error_and_a_loop_that_hangs_is_not_healthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(tmp_path, "stocks", health_port=0)
    assert watch.health is not None
    with pytest.raises(RecordingError, match=str(watch.health.port)):
        health.Health(watch.health.port, lambda: (True, {}))
    watch.look("waiting")
    assert ask(watch.health.port)[0] == 200
    monkeypatch.setattr("tapelab.live.watch.HUNG", -1)
    assert ask(watch.health.port)[1]["problems"] == {"hung": "Nobody looks at the recording any more."}
    watch.close()
