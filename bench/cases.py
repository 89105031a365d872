"""The cases. All data is simulated or prepared here, so that they run anywhere."""

from __future__ import annotations

import asyncio
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import ROUNDS, Row, versus

PER_FRAME = {1: 100_000, 20: 600_000, 200: 1_000_000}  # events sent for each size of a frame
PATIENCE = 120.0  # seconds that one side of the stream case may take


def importing() -> list[Row]:
    """CPU seconds of `import tapelab` beyond those of the interpreter."""
    with_us = statistics.median(_cpu("import tapelab") for _ in range(ROUNDS))
    bare = statistics.median(_cpu("pass") for _ in range(ROUNDS))
    peer = statistics.median(_cpu("import pandas") for _ in range(ROUNDS))
    ratio = (peer - bare) / max(with_us - bare, 1e-3)
    return [Row("import", f"{with_us - bare:.3f} s CPU", f"{peer - bare:.3f} s pandas", ratio, "0.15 s")]


def _cpu(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def flat_files() -> list[Row]:
    """A day's file to a table with the right types."""
    import pandas as pd

    from tapelab.exchange.tape import QUOTES, TRADES, simulated
    from tapelab.massive import wire

    tape = simulated(7)
    rows = []
    with TemporaryDirectory() as folder:
        for product in (TRADES, QUOTES):
            day = tape.days(product)[-1]
            path = Path(folder) / f"{day}-{product.rpartition('/')[2]}.csv.gz"
            path.write_bytes(bytes(tape.raw(product, day)))
            rows.append(
                versus(
                    f"{product.rpartition('/')[2]}, one day to a table",
                    lambda path=path, product=product, day=day: wire.read_flat_file(path, product, day=day),
                    lambda path=path: pd.read_csv(path),
                    "pandas.read_csv",
                )
            )
    return rows


def backtest() -> list[Row]:
    """A strategy that counts quotes, beside a bare loop over the same table."""
    import tapelab as tl
    from tapelab.exchange.tape import QUOTES, simulated

    class Count(tl.Strategy):
        seen = 0

        def on_quote(self, quote: tl.Quote) -> None:
            self.seen += 1

    tape = simulated(7)
    quotes = tape.table(QUOTES, tape.days(QUOTES)[-1])
    columns = ("symbol", "ts_event", "bid", "ask", "bid_size", "ask_size")

    def loop() -> None:
        for row in zip(*(quotes.column(name).to_pylist() for name in columns), strict=True):
            _symbol, _bid = row[0], row[2]

    what = f"backtest on {len(quotes):,} quotes"
    return [versus(what, lambda: tl.backtest(Count(), quotes), loop, "a bare loop")]


def stream() -> list[Row]:
    """Events a second: received and journaled, beside the vendor's client doing nothing with them."""
    rows = []
    for per_frame, events in PER_FRAME.items():
        with _blasting(events, per_frame) as port:
            pairs = [(_recorded(port, events), _vendor(port, events)) for _ in range(3)]
        ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
        rows.append(
            Row(
                f"stream, {per_frame} events a frame",
                f"{ours / 1e6:.2f} M/s journaled",
                f"{peer / 1e3:.0f} k/s massive (nothing kept)",
                statistics.median(a / b for a, b in pairs),
            )
        )
    return rows


@contextmanager
def _blasting(events: int, per_frame: int) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bench.blast", "--port", str(port)]
    command += ["--events", str(events), "--per-frame", str(per_frame)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        try:
            yield port
        finally:
            server.kill()


def _recorded(port: int, events: int) -> float:
    """From the first byte of data journaled to the last, by the journal's own clock."""
    import tapelab as tl
    from tapelab import settings
    from tapelab.store import journal

    with TemporaryDirectory() as home:
        at = tl.Settings.load(home=home, api_key="bench", ws_url=f"ws://127.0.0.1:{port}")
        with settings.use(at):
            with tl.WebSocketDataRecorder(["MSFT"], channels=("quotes",)) as recorder:
                until = time.perf_counter() + PATIENCE
                while recorder.stats.events < events and time.perf_counter() < until:
                    time.sleep(0.05)
            assert recorder.stats.events == events, recorder.stats
            folder = at.root / "datasets" / recorder.stats.dataset / "journal"
        stamps = [record.monotonic for record in journal.records(folder) if record.kind is journal.Kind.DATA]
    return events / ((stamps[-1] - stamps[1]) / 1e9)


def _vendor(port: int, events: int) -> float:
    from massive import WebSocketClient

    client = WebSocketClient(
        "bench", feed=f"127.0.0.1:{port}", market="stocks", secure=False, subscriptions=["Q.MSFT"]
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
