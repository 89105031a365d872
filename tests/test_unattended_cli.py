"""`tapelab record` for hours and days: what it refuses, what it shows, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import streams
from streams import KEY, Vendor, both, message, quote, settings_for, until
from tapelab.faces import panel
from tapelab.faces.cli import main
from tapelab.live.recorder import RecordingStats, WebSocketDataRecorder
from tapelab.live.schedule import next_session
from tapelab.live.watch import Watch
from tapelab.market import clock
from tapelab.settings import Settings, use
from tapelab.store.datasets.dataset import folder_of
from unattended_driver import Fast


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as server:
        yield server


@pytest.fixture
def settings(vendor: Vendor, tmp_path: Path) -> Iterator[Settings]:
    with use(settings_for(vendor, tmp_path)) as used:
        yield used


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--schedule", "--duration", "5m"], "A schedule has its own times"),
        (["--hours", "regular"], "belong to --schedule"),
        (["--margin", "5m"], "belong to --schedule"),
        (["--schedule", "--webhook-file", "no-such-file"], "no-such-file cannot be read"),
        (["--schedule", "--name", "a/b"], "cannot be the name of a dataset"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_begins(
    options: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MASSIVE_API_KEY", "some-key")
    monkeypatch.setenv("TAPELAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert main(["record", "AAPL", *options]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


def test_a_schedule_waits_and_ends_in_order_when_it_is_told_to(
    vendor: Vendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "WAIT", 90.0)  # a program is started
    env = {
        **os.environ,
        "MASSIVE_API_KEY": KEY,
        "MASSIVE_WS_URL": vendor.url,
        "TAPELAB_HOME": str(tmp_path / "home"),
        "MASSIVE_REST_URL": "http://127.0.0.1:1",
    }
    # A market that never closes: its session is on whenever this runs.
    command = [
        sys.executable,
        "-m",
        "tapelab",
        "record",
        "X:BTC-USD",
        "--schedule",
        "--name",
        "coin",
        "--json",
    ]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        vendor.await_subscribers()
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out)["state"] == "ended"
    assert KEY not in out + err
    [folder] = (tmp_path / "home").glob("*/datasets/coin_*")
    assert (folder / "manifest-000001.json").exists()


def shown(watch: Watch, quotes: dict[str, dict[str, Any]]) -> str:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=100)
    console.print(panel._panel(watch, quotes))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_panel_shows_rate_quotes_gaps_and_disk(vendor: Vendor, settings: Settings) -> None:
    watch = Watch(folder_of(settings), "stocks", free_least=0)
    with WebSocketDataRecorder(["AAPL", "MSFT"]) as recorder:
        vendor.tell(*map(both, range(50)), message(quote(7, "MSFT")))
        until(lambda: recorder.stats.events == 101)
        vendor.cut()
        until(lambda: recorder.stats.causes)
        watch.look("recording", recorder.stats)
        latest = recorder.newest_quotes().to_pylist()
    text = shown(watch, {row["symbol"]: row for row in latest})
    assert "recording recording_" in text
    for line in ("0 events/s, 101 so far", "up, 1 reconnections", "from a kill", "GB free"):
        assert line in text, text
    assert "(cut 1)" in text or "(reset 1)" in text
    assert "AAPL" in text
    assert "100.49" in text


def test_the_panel_says_when_the_next_session_begins(tmp_path: Path) -> None:
    thanksgiving = 1_795_712_400 * clock.SECOND  # noon in New York
    with clock.use(clock.FixedClock(thanksgiving)):
        watch = Watch(tmp_path, "stocks", free_least=0)
        watch.look("waiting", slot=next_session(thanksgiving))
        text = shown(watch, {})
    assert "Fri 2026-11-27, 03:55 to 17:05 America/New_York, early close, in 15 h 55 min" in text


def test_in_a_pipe_there_is_no_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with panel.Panel() as drawn:
        watch = Watch(tmp_path, "stocks", show=drawn.show)
        watch.look("waiting")
    assert capsys.readouterr().out == ""


def test_the_statistics_tell_a_stall_from_a_market_that_is_closed(vendor: Vendor, settings: Settings) -> None:
    slot = next_session(next_session(time.time_ns()).stop)
    with WebSocketDataRecorder(["AAPL"]) as recorder:
        vendor.tell(*map(both, range(10)))
        until(lambda: recorder.stats.events == 20)

        def stalled(at: int) -> bool:
            with clock.use(Fast(at, time.time_ns())):
                return recorder.stats.stalled

        assert recorder.stats.connected
        assert not stalled(slot.session.open - clock.HOUR)
        assert stalled(slot.session.open + 2 * clock.HOUR)
        assert not stalled(slot.session.close + clock.MINUTE)
    assert not recorder.stats.stalled


def test_a_recording_that_ends_by_itself_is_reported(tmp_path: Path) -> None:
    watch = Watch(tmp_path, "stocks", free_least=0)
    failed = RecordingStats("failed", "recording_x", error=broken())

    class Failed:
        stats = failed

    watch.follow(Failed(), threading.Event(), lambda: 1.0)  # type: ignore[arg-type]
    assert watch.said["problems"] == {"failed": "It broke. Mend it."}


def broken() -> Any:
    from tapelab.errors import RecordingError

    return RecordingError("It broke.", remedy="Mend it.")
