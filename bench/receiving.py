"""The live stream: received and journaled, and how late a callback hears of it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from bench.blast import frames
from bench.measure import Row

EVENTS = {1: 1_000_000, 20: 2_000_000, 200: 2_000_000}  # sent for each size of a frame, to us and the socket
FEW = {1: 50_000, 20: 200_000, 200: 200_000}  # to the vendor's client, which is slower
ROUNDS = 5
REAL_DAY = date(2013, 10, 9)
SECOND, MINUTE = 10**9, 60 * 10**9
PATIENCE = 120.0  # seconds that one side may take
AIMS = {1: ("", "100 ×"), 20: ("0.80 ×", "60 ×"), 200: ("0.80 ×", "50 ×")}


def stream() -> list[Row]:
    """Received and journaled on this disk, beside a socket copied to it and the vendor's client."""
    rows = []
    with ExitStack() as cleanup:
        home = Path(cleanup.enter_context(TemporaryDirectory(prefix=".bench-", dir=Path.cwd())))
        cleanup.enter_context(patch.dict(os.environ))  # our certificate is trusted only here
        certificate = _certificate(home)
        for per_frame in EVENTS:
            rows += _plain(home, per_frame)
        for per_frame in EVENTS if certificate else ():
            rows.append(_beside_raw(home, per_frame, "TLS", certificate, _journaled))
        for name, of in (("plain", ""), ("TLS", certificate)) if certificate else (("plain", ""),):
            rows.append(_beside_raw(home, 20, f"{name}, busy follower", of, _followed))
    return rows


def _plain(home: Path, per_frame: int) -> list[Row]:
    row = _beside_raw(home, per_frame, "plain", "", _journaled)
    events, few = EVENTS[per_frame], FEW[per_frame]
    size = _size(events, per_frame)
    with _blasting(events, per_frame) as many, _blasting(few, per_frame) as fewer:
        pairs = [(events / _journaled(home, many, size), _vendor(fewer, few)) for _ in range(ROUNDS)]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    said = f"{peer / 1e3:.0f} k/s massive (nothing kept)"
    return [row, Row(row.what, f"{ours / 1e6:.2f} M/s journaled", said, ratio, AIMS[per_frame][1])]


def _beside_raw(
    home: Path, per_frame: int, what: str, certificate: str, take: Callable[[Path, str, int], float]
) -> Row:
    """We and the raw socket in turn; and how fast the sender is where what it sends is thrown away.

    The first round does not count: memory that nobody has used yet, files among it, is slow to come.
    """
    events, size = EVENTS[per_frame], _size(EVENTS[per_frame], per_frame)
    busy = take is _followed
    with _blasting(events, per_frame, certificate) as url:
        pairs = []
        for _ in range(ROUNDS + 1):
            mine = events / take(home, url, size)
            with _spinning() if busy else nullcontext():
                pairs.append((mine, events / _raw(url, size, str(home / "raw"))))
        sender = events / _raw(url, size, "")
    del pairs[0]
    mine, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    return Row(
        f"stream, {what}, {per_frame} events a frame",
        f"{mine / 1e6:.2f} M/s journaled",
        f"{peer / 1e6:.2f} M/s raw socket to file (to nowhere {sender / 1e6:.1f})",
        statistics.median(a / b for a, b in pairs),
        AIMS[per_frame][0],
    )


@contextmanager
def _blasting(events: int, per_frame: int, certificate: str = "") -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.blast", "--port", str(port), "--certificate", certificate]
    command += ["--events", str(events), "--per-frame", str(per_frame)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield f"{'wss' if certificate else 'ws'}://127.0.0.1:{port}"
        finally:
            server.kill()


def _size(events: int, per_frame: int) -> int:
    return len(frames(per_frame, per_frame)) * (events // per_frame)


def _raw(url: str, size: int, path: str) -> float:
    """Seconds of the peer that only copies."""
    command = [sys.executable, "-m", "bench.raw", url, str(size), path]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=PATIENCE)
    return float(done.stdout)


def _journaled(home: Path, url: str, size: int) -> float:
    """Seconds of the receiver process alone, from the first data to the last, by the journal's own clock."""
    from tapelab.live.process import Process
    from tapelab.live.talk import Config

    folder = home / "journal"
    config = Config(url, "stocks", "bench", ["Q.MSFT"], str(folder), bytes(16).hex(), str(home / "feed.lock"))
    receiver = Process(config)
    until = time.perf_counter() + PATIENCE
    while receiver.hear() and receiver.figures.acknowledged_bytes < size and time.perf_counter() < until:
        select.select([receiver], [], [], 1)
    os.kill(receiver.pid, signal.SIGKILL)
    receiver.wait()
    took = _took(folder)
    shutil.rmtree(folder)
    return took


def _followed(home: Path, url: str, size: int) -> float:
    """The same with a recorder that decodes what comes, in a program that is busy with something else too."""
    import tapelab as tl
    from tapelab import settings

    at = tl.Settings.load(home=home / "busy", api_key="bench", ws_url=url)
    with _spinning(), settings.use(at):
        with tl.WebSocketDataRecorder(["MSFT"], channels=("quotes",)) as recorder:
            until = time.perf_counter() + PATIENCE
            while recorder.stats.acknowledged < size and time.perf_counter() < until:
                time.sleep(0.05)
        took = _took(at.root / "datasets" / recorder.stats.dataset / "journal")
    shutil.rmtree(at.root)
    return took


def _took(folder: Path) -> float:
    from tapelab.store import journal

    data = (record for record in journal.records(folder) if record.kind is journal.Kind.DATA)
    stamps = [record.monotonic for record in data if len(record.payload) > 4096]
    return (stamps[-1] - stamps[0]) / 1e9


@contextmanager
def _spinning() -> Iterator[None]:
    """A thread of this program that never rests."""
    over = False

    def spin() -> None:
        while not over:
            pass

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over = True
        thread.join()


def _certificate(home: Path) -> str:
    """A certificate of our own that this program trusts; empty where openssl is missing."""
    if shutil.which("openssl") is None:
        return ""
    both, crt, key = home / "both.pem", home / "crt.pem", home / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost".split()
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(crt)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_bytes(crt.read_bytes() + key.read_bytes())
    os.environ["SSL_CERT_FILE"] = str(crt)
    return str(both)


def _vendor(url: str, events: int) -> float:
    from massive import WebSocketClient

    client = WebSocketClient(
        "bench",
        feed=url.removeprefix("ws://"),
        market="stocks",
        secure=False,
        subscriptions=["Q.MSFT"],
    )
    seen = 0
    took = 0.0

    async def run() -> None:
        begun = time.perf_counter()
        done = asyncio.Event()

        async def count(messages: list[object]) -> None:
            nonlocal seen, took
            seen += len(messages)
            if seen >= events:
                took = time.perf_counter() - begun
                done.set()

        connected = asyncio.create_task(client.connect(count))
        await asyncio.wait_for(done.wait(), PATIENCE)
        connected.cancel()
        await asyncio.gather(connected, return_exceptions=True)

    asyncio.run(run())
    return events / took


LATENCY_SERVER = """
import sys, time
from tapelab.exchange import serve
start, end, folder, speed = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
with serve(flat_files=folder, day=sys.argv[5], speed=speed, start=start, until=end) as exchange:
    print(exchange.ready_line(), flush=True)
    exchange.finished.wait(120)
    time.sleep(5)
"""


def latency() -> list[Row]:
    """From receive to callback, on the real day's busiest minute at five times its speed."""
    folder = (
        Path(os.environ.get("TAPELAB_SHARED") or Path.cwd().parent / "shared") / "data" / "us_equity_2013"
    )
    if not folder.is_dir():
        return [Row("latency: the real day is not here", "", "", None)]
    import numpy as np

    from tapelab.massive import wire

    product = "us_stocks_sip/quotes_v1"
    table = wire.read_flat_file(folder / wire.file_key(product, REAL_DAY), product, day=REAL_DAY)
    stamps = table.column("ts_event").to_numpy()
    minutes, counts = np.unique(stamps // MINUTE, return_counts=True)
    start = int(minutes[counts.argmax()]) * MINUTE
    within = stamps[(stamps >= start) & (stamps < start + MINUTE)]
    peak = int(np.unique(within * 5 // SECOND, return_counts=True)[1].max())
    symbols = sorted(set(table.column("symbol").to_pylist()))
    rows = []
    for busy in (False, True):
        late = np.array(_late(folder, start, symbols, len(within), busy=busy)) / 1e6
        half, most, rare = np.percentile(late, [50, 99, 99.9])
        what = "latency, receive to callback" + (", busy program" if busy else "")
        said = f"median {half:.2f} ms, 99th {most:.2f} ms, 99.9th {rare:.2f} ms"
        rows.append(Row(what, said, f"{len(late):,} quotes at 5 ×, at most {peak:,} a second", None))
    return rows


def _late(folder: Path, start: int, symbols: list[str], count: int, *, busy: bool) -> list[int]:
    """Of each quote, the ns between its receive time and the callback."""
    import tapelab as tl
    from tapelab import settings
    from tapelab.market import clock

    command = [sys.executable, "-c", LATENCY_SERVER, str(start), str(start + MINUTE), str(folder), "5"]
    late: list[int] = []

    def told(symbol: str, book: dict[str, object]) -> None:
        late.append(clock.now() - int(str(book["ts_recv"])))

    with (
        subprocess.Popen([*command, str(REAL_DAY)], stdout=subprocess.PIPE, text=True) as server,
        TemporaryDirectory() as home,
    ):
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        at = tl.Settings.load(home=home, api_key=ready["api_key"], ws_url=ready["ws_url"])
        with settings.use(at), _spinning() if busy else nullcontext():
            connector = tl.get_connector("massive")
            connector.start_stream(symbols, told)
            until = time.perf_counter() + PATIENCE
            while len(late) < count and time.perf_counter() < until:
                time.sleep(0.1)
            connector.stop_stream()
        server.kill()
    return late
