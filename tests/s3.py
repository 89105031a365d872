"""A folder as a real S3 server that checks signatures (rclone): each subfolder is a bucket."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapelab.settings import Settings

KEY_ID, SECRET = "KEYID1234567890", "secret-that-nobody-may-see"
READY_SECONDS = 30


@contextmanager
def serving_folder(root: Path) -> Iterator[str]:
    """The address of a server over `root`; what changes there is served at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("rclone")
    arguments = ["--read-only", "--auth-key", f"{KEY_ID},{SECRET}", "--addr", f"127.0.0.1:{port}"]
    command = [program, "serve", "s3", *arguments, "--dir-cache-time", "0", root]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            given_up = threading.Timer(READY_SECONDS, server.kill)
            given_up.start()
            for line in server.stderr:
                if "Starting s3 server" in line:
                    break
            given_up.cancel()
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()


def settings_for(url: str, home: Path, **more: object) -> Settings:
    return Settings.load(
        s3_access_key_id=KEY_ID, s3_secret_access_key=SECRET, s3_endpoint=url, rest_url=url, home=home, **more
    )
