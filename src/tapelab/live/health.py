"""A recording's health over HTTP, for whatever looks after the machine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec

from tapelab.errors import RecordingError

HOST = "127.0.0.1"
ASK_WITHIN = 2.0  # seconds for a request to be said; only one is heard at a time

State = Callable[[], tuple[bool, Mapping[str, object]]]


class Health:
    """Answers every GET on a local port with JSON: status 200 while all is well, 503 otherwise.

    `state` gives whether it is, and what to say. Port 0 picks a free one. Raises `RecordingError` where the
    port is in use.
    """

    def __init__(self, port: int, state: State) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = ASK_WITHIN

            def do_GET(self) -> None:
                well, said = state()
                body = msgspec.json.encode(said) + b"\n"
                self.send_response(200 if well else 503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(HTTPServer):
            def handle_error(self, *_: Any) -> None:
                pass  # who asked has left

        try:
            self._server = Server((HOST, port), Handler)
        except OSError as cause:
            raise RecordingError(
                f"The health endpoint cannot listen on port {port} ({cause.strerror}).",
                remedy="Choose another with --health-port.",
            ) from cause
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            name="tapelab-health",
            daemon=True,
            kwargs={"poll_interval": 0.2},
        )
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
