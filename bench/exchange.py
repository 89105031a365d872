"""The exchange as a sender: events a second unpaced beside a plain server, and lateness at real speed."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.measure import Row

EVENTS = 300_000  # what the plain server sends
PER_FRAME = 200
SECONDS = 20.0  # of the simulated open, at real speed
MAX_FRAME = 1 << 21


def exchange() -> list[Row]:
    """One client that only counts, in this process; each server in one of its own."""
    rates, plain = [], []
    for _ in range(3):
        with _serving("tapelab", "serve", "--simulate", "--speed", "0") as ready:
            said = json.loads(ready)
            rates.append(asyncio.run(_rate(f"{said['ws_url']}/stocks", said["api_key"])))
        with _serving("bench.exchange") as ready:
            plain.append(asyncio.run(_rate(ready.strip(), "any")))
    ours, peer = statistics.median(rates), statistics.median(plain)
    ratio = statistics.median(a / b for a, b in zip(rates, plain, strict=True))
    unpaced = Row(
        "exchange, unpaced",
        f"{ours / 1e3:.0f} k/s",
        f"{peer / 1e3:.0f} k/s websockets + json",
        ratio,
        "500 k/s",
    )
    return [unpaced, _lateness()]


def _lateness() -> Row:
    """How much later than the exchange's clock events come, over the earliest of them, at real speed."""
    import httpx

    with _serving("tapelab", "serve", "--simulate", "--speed", "1") as ready:
        said = json.loads(ready)
        clock, key = f"{said['rest_url']}/tapelab/v1/clock", said["api_key"]
        httpx.post(clock, params={"apiKey": key}, json={"at": "09:30"}).raise_for_status()
        offsets = asyncio.run(_offsets(f"{said['ws_url']}/stocks", key))
    late = sorted(offset - min(offsets) for offset in offsets)
    share = sum(offset <= 5 for offset in late) / len(late)
    p99 = late[int(0.99 * (len(late) - 1))]
    return Row("exchange, lateness at speed 1", f"p99 {p99:.1f} ms", f"{share:.1%} within 5 ms", None, "99 %")


@contextmanager
def _serving(*module: str) -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline()
        finally:
            server.kill()


async def _connected(url: str, key: str):
    from websockets.asyncio.client import connect

    client = await connect(url, compression=None, max_size=MAX_FRAME)
    await client.recv()
    await client.send(json.dumps({"action": "auth", "params": key}))
    await client.recv()
    await client.send(json.dumps({"action": "subscribe", "params": "Q.*,T.*"}))
    await client.recv()
    return client


async def _rate(url: str, key: str) -> float:
    """Events a second from the first message to the last; the stream is over after two silent seconds."""
    client = await _connected(url, key)
    events, begun, ended = 0, 0.0, 0.0
    try:
        while True:
            message = await asyncio.wait_for(client.recv(decode=False), 20 if not events else 2)
            begun = begun or time.perf_counter()
            events += message.count(b'"ev"')
            ended = time.perf_counter()
    except (TimeoutError, ConnectionError):
        pass
    finally:
        await client.close()
    return events / (ended - begun)


async def _offsets(url: str, key: str) -> list[float]:
    """Milliseconds between each event's stamp and its arrival, over `SECONDS`."""
    client = await _connected(url, key)
    until = time.perf_counter() + SECONDS
    found = []
    while time.perf_counter() < until:
        message = await client.recv(decode=False)
        now = time.time() * 1e3
        found += [now - event["t"] for event in json.loads(message) if "t" in event]
    await client.close()
    return found


async def _plain() -> None:
    """What one writes in ten minutes: `websockets`, `json.dumps`, a loop."""
    from websockets.asyncio.server import serve

    event = {"ev": "Q", "sym": "MSFT", "bx": 4, "bp": 114.125, "bs": 100, "ax": 7, "ap": 114.128, "as": 160}
    event |= {"c": 0, "i": [604], "t": 1536036818784, "q": 50385480, "z": 3}

    async def talk(client) -> None:
        await client.send("[]")
        for _ in ("auth", "subscribe"):
            await client.recv()
            await client.send("[]")
        for first in range(0, EVENTS, PER_FRAME):
            await client.send(json.dumps([event | {"q": first + n} for n in range(PER_FRAME)]))
        await client.wait_closed()

    async with serve(talk, "127.0.0.1", 0, compression=None) as server:
        port = server.sockets[0].getsockname()[1]
        print(f"ws://127.0.0.1:{port}", flush=True)
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(_plain())
