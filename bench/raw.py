"""The limit: the same login, then a socket copied to a file, and nothing else. Prints the seconds it took.

Without a file the bytes are thrown away: that is how fast the sender can be taken.
"""

from __future__ import annotations

import json
import os
import sys
import time

from tapelab.massive.feed import open_feed, text_frame

CHUNK = 1 << 20


def main(url: str, size: int, path: str) -> None:
    sock = open_feed(url, "stocks").sock
    sock.settimeout(60)
    for action, params in (("auth", "bench"), ("subscribe", "Q.MSFT")):
        sock.sendall(text_frame(json.dumps({"action": action, "params": params}).encode()))
    buffer = memoryview(bytearray(CHUNK))
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644) if path else -1
    taken, begun = 0, 0.0
    while taken < size:
        got = sock.recv_into(buffer)
        if got > 4096 and not begun:  # behind the login
            begun = time.perf_counter()
        if file >= 0:
            os.write(file, buffer[:got])
        taken += got
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
