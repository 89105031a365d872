"""One connection to the vendor, many programs beside it, each a process of its own: all hear the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from websockets.sync.client import connect

from streams import KEY, WAIT, Vendor, both, settings_for, until
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.settings import Settings
from tapelab.store.datasets import manifest
from tapelab.store.datasets.dataset import open_dataset

COUNT = 3000  # messages of a quote and a trade each

CONNECTOR = """
import sys
import tapelab as tl
connector = tl.get_connector("massive")
seen = []
connector.start_stream(["AAPL"], lambda symbol, book: seen.append((book["ts_event"], book["bids"][0][0])))
print("ready", flush=True)
sys.stdin.readline()
for one in seen:
    print(*one)
connector.close()
"""


@contextmanager
def program(*command: str, env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    try:
        yield child
    finally:
        child.terminate()
        child.communicate(timeout=WAIT)


def environment(settings: Settings) -> dict[str, str]:
    return os.environ | {
        "MASSIVE_API_KEY": KEY,
        "MASSIVE_WS_URL": str(settings.ws_url),
        "MASSIVE_REST_URL": str(settings.rest_url),
        "MASSIVE_S3_ENDPOINT": str(settings.s3_endpoint),
        "TAPELAB_HOME": str(settings.home),
    }


def follower(settings: Settings) -> Path:
    """The dataset of the program that follows another one's recording, once it does."""

    def found() -> list[Path]:
        folders = (settings.root / "datasets").iterdir()
        return [path for path in folders if manifest.versions(path) and manifest.load(path).following]

    until(found)
    return found()[0]


def test_a_second_record_a_connector_and_a_server_beside_one_recording_hear_the_same(tmp_path: Path) -> None:
    tapelab = (sys.executable, "-m", "tapelab")
    with Vendor() as vendor, ExitStack() as running:
        settings = settings_for(vendor, tmp_path)
        env = environment(settings)
        recorder = running.enter_context(WebSocketDataRecorder(["AAPL"], settings=settings))
        first = recorder.stats.dataset
        second = running.enter_context(program(*tapelab, "record", "AAPL", "--name", "second", env=env))
        connector = running.enter_context(program(sys.executable, "-c", CONNECTOR, env=env))
        server = running.enter_context(program(*tapelab, "serve", "--dataset", first, "--follow", env=env))
        assert connector.stdout is not None
        assert connector.stdin is not None
        assert server.stdout is not None
        assert connector.stdout.readline() == "ready\n"
        serving = json.loads(server.stdout.readline())
        client = running.enter_context(connect(serving["ws_url"] + "/stocks", compression=None))
        client.send(json.dumps({"action": "auth", "params": serving["api_key"]}))
        client.send(json.dumps({"action": "subscribe", "params": "Q.AAPL,T.AAPL"}))
        while "subscribed to: T.AAPL" not in str(client.recv(WAIT)):
            pass
        beside = follower(settings)

        vendor.tell(*map(both, range(COUNT)))

        heard: list[dict[str, object]] = []
        while len(heard) < 2 * COUNT:
            heard += json.loads(client.recv(WAIT))
        until(lambda: recorder.stats.events == 2 * COUNT)
        until(lambda: len(open_dataset(beside).table("trades")) == COUNT)
        connector.stdin.write("\n")
        connector.stdin.flush()
        told = [connector.stdout.readline().split() for _ in range(COUNT)]
        second.terminate()
        assert second.wait(WAIT) == 0
        assert vendor.connections == 1
    recorded = open_dataset(first, settings=settings)
    followed = open_dataset("second", settings=settings)
    for kind in ("quotes", "trades"):
        assert followed.table(kind).equals(recorded.table(kind))
        assert recorded.table(kind).column("sequence").to_pylist() == list(range(COUNT))
    quotes = recorded.table("quotes").select(["ts_event", "bid"]).to_pylist()
    assert told == [[str(row["ts_event"]), str(row["bid"])] for row in quotes]
    assert [event for message in map(both, range(COUNT)) for event in json.loads(message)] == heard


def test_who_follows_may_be_killed_and_loses_nothing(tmp_path: Path) -> None:
    with Vendor() as vendor, ExitStack() as running:
        settings = settings_for(vendor, tmp_path)
        recorder = running.enter_context(WebSocketDataRecorder(["AAPL"], settings=settings))
        vendor.tell(both(0))
        until(lambda: recorder.stats.events == 2)
        command = (sys.executable, "-m", "tapelab", "record", "AAPL")
        second = running.enter_context(program(*command, env=environment(settings)))
        beside = follower(settings)
        vendor.tell(*map(both, range(1, 100)))
        until(lambda: recorder.stats.events == 200)
        assert len(open_dataset(beside).table("quotes")) == 99  # as seen from elsewhere
        second.kill()
        second.wait(WAIT)
        found = open_dataset(beside)
        assert found.version == 1
        assert found.table("quotes").column("sequence").to_pylist() == list(range(1, 100))
        assert found.gaps == ()
