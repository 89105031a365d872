"""Kills at full speed, a program that dies, silent servers, TLS: what was acknowledged is always there."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from streams import KEY, Vendor, both, settings_for, until
from tapelab.errors import MalformedAnswer, NotAuthorized, Unreachable
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.live.talk import Config
from tapelab.massive.feed import open_feed
from tapelab.settings import Settings
from tapelab.store import journal
from tapelab.store.datasets.dataset import list_datasets, open_dataset

PROGRAM = """
import sys, time
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.settings import Settings
settings = Settings.load(api_key=sys.argv[1], ws_url=sys.argv[2], rest_url="http://127.0.0.1:1",
                         s3_endpoint="http://127.0.0.1:2", home=sys.argv[3])
recorder = WebSocketDataRecorder(["AAPL"], settings=settings)
recorder.start()
while True:
    print(recorder.stats.events, recorder._stream.receiver_pid, flush=True)
    time.sleep(0.05)
"""


def test_a_program_that_is_killed_leaves_a_dataset_that_opens(tmp_path: Path) -> None:
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path)
        program = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, KEY, vendor.url, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None
        with program.stdout:
            vendor.await_subscribers()
            vendor.tell(*map(both, range(500)))
            until(lambda: program.stdout.readline().split()[0] == "1000")
            (growing,) = list_datasets(settings=settings)
            assert growing.growing
            assert growing.symbols == ("AAPL",)
            assert len(growing.table("quotes")) == 500
            vendor.tell(*map(both, range(500, 600)))
            pid = int(program.stdout.readline().split()[1])
            os.kill(program.pid, signal.SIGKILL)
            program.wait(20)
        until(lambda: not alive(pid))  # the receiver noticed, closed, and finished the journal
        dataset = open_dataset(growing.name, settings=settings)
        assert dataset.version == 1
        assert dataset.table("quotes").column("sequence").to_pylist() == list(range(600))
        assert dataset.verify()
        tagged = dataset.tag("crash")
        assert list_datasets(tag="crash", settings=settings)[0].version == tagged.version == 2


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie counts as gone: whoever inherited it has not looked yet.
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] if on_linux() else True


def on_linux() -> bool:
    return sys.platform == "linux"


def test_the_key_is_in_no_argument_environment_or_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MASSIVE_API_KEY", raising=False)
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path)
        with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
            vendor.tell(both(1))
            until(lambda: recorder.stats.events == 2)
            if on_linux():
                proc = Path(f"/proc/{recorder._stream.receiver_pid}")  # type: ignore[union-attr]
                assert KEY.encode() not in (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        recorder.save_dataset("secret")
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or KEY.encode() not in path.read_bytes()
        sent = [r.payload for r in journal.records(settings.root / "datasets" / "secret" / "journal")]
        assert not any(KEY.encode() in payload for payload in sent)
        assert any(b'"auth"' in payload for payload in sent)


def test_a_stream_over_tls_is_recorded_and_a_wrong_certificate_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the certificate of this test")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split(),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Vendor(tls=context) as vendor:
        settings = settings_for(vendor, tmp_path)
        with pytest.raises(Unreachable, match="certificate"):
            WebSocketDataRecorder(["AAPL"], settings=settings).start()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
            vendor.tell(*map(both, range(20_000)))
            until(lambda: recorder.stats.events == 40_000)
        dataset = open_dataset(recorder.save_dataset("tls"))
        assert dataset.table("quotes").column("sequence").to_pylist() == list(range(20_000))


def answering(answer: bytes) -> tuple[socket.socket, str]:
    """A server that gives one answer, whatever it is asked."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server, f"ws://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", NotAuthorized),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", MalformedAnswer),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", MalformedAnswer),
        (b"SSH-2.0-OpenSSH\r\n\r\n", MalformedAnswer),
        (b"", MalformedAnswer),
    ],
)
def test_what_is_no_live_stream_is_said_so(answer: bytes, error: type[Exception]) -> None:
    server, url = answering(answer)
    with server, pytest.raises(error, match=r"127\.0\.0\.1"):
        open_feed(url, "stocks", timeout=10)


def test_a_server_that_never_answers_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(Unreachable, match="timed out"):
        open_feed(f"ws://127.0.0.1:{server.getsockname()[1]}", "stocks", timeout=0.2)


def test_what_follows_the_upgrade_in_the_same_packet_is_not_lost(tmp_path: Path) -> None:
    """Some servers send the greeting with the upgrade; its bytes belong to the stream."""
    with Vendor() as vendor:
        opened = open_feed(vendor.url, "stocks", timeout=10)
        with opened.sock:
            opened.sock.settimeout(10)
            stream = opened.leftover
            while b"Connected Successfully" not in stream:
                stream += opened.sock.recv(4096)
        assert stream[:1] == b"\x81"
        assert opened.tape == "simulated seed=1"


def test_a_line_of_configuration_never_shows_the_key() -> None:
    config = Config("ws://x", "stocks", KEY, [], "a", "b", "c")
    assert KEY not in repr(config)
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config).key == KEY


def test_names_of_recordings_never_collide(tmp_path: Path) -> None:
    with Vendor() as vendor:
        settings: Settings = settings_for(vendor, tmp_path)
        paths = []
        for n in range(3):
            with WebSocketDataRecorder(["AAPL"], settings=settings) as recorder:
                vendor.tell(both(n))
                until(lambda recorder=recorder: recorder.stats.events == 2)
            paths.append(recorder.stats.dataset)
        assert len(set(paths)) == 3
