"""A store that waits before the first byte of each answer: a bucket in memory, 30 ms away."""

from __future__ import annotations

import argparse
import asyncio
import hashlib

DELAY = 0.030  # seconds
HEADERS = "Last-Modified: Mon, 21 Sep 2026 12:00:00 GMT\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n"


async def serve(port: int, size: int) -> None:
    """Every key holds the same `size` bytes; nobody's signature is checked."""
    body = (b"ticker,volume,open,close,high,low,window_start,transactions\n" * (size // 60 + 1))[:size]
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    head = f'HTTP/1.1 200 OK\r\nETag: "{etag}"\r\n{HEADERS.format(size)}\r\n'.encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(DELAY)
                writer.write(head if request.startswith(b"HEAD") else head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port)
    print(etag, flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    for name in ("port", "size"):
        options.add_argument(f"--{name}", type=int, required=True)
    chosen = options.parse_args()
    asyncio.run(serve(chosen.port, chosen.size))
