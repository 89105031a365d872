"""A server that does nothing but send: the vendor's handshake, then prepared frames as fast as they go.

With `--certificate FILE` (certificate and key) over TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import ssl
import threading

from websockets.protocol import OPEN
from websockets.server import ServerProtocol

BLOCK = 1 << 20  # bytes sent at a time


def status(name: str, message: str) -> dict[str, str]:
    return {"ev": "status", "status": name, "message": message}


def frames(events: int, per_frame: int) -> bytes:
    """Quotes of 126 bytes each, as text frames without a mask."""
    event = (
        b'{"ev":"Q","sym":"MSFT","bx":4,"bp":114.125,"bs":100,"ax":7,"ap":114.128,"as":160,'
        b'"c":0,"i":[604],"t":1536036818784,"q":50385480,"z":3}'
    )
    payload = b"[" + b",".join([event] * per_frame) + b"]"
    length = len(payload)
    if length < 126:
        head = bytes([0x81, length])
    elif length < 1 << 16:
        head = bytes([0x81, 126]) + length.to_bytes(2, "big")
    else:
        head = bytes([0x81, 127]) + length.to_bytes(8, "big")
    return (head + payload) * (events // per_frame)


def serve(port: int, events: int, per_frame: int, certificate: str) -> None:
    one = frames(per_frame, per_frame)
    many = max(BLOCK // len(one), 1)
    prepared = memoryview(one * many)
    times, rest = divmod(events // per_frame, many)
    pieces = [prepared] * times + [prepared[: rest * len(one)]]
    tls = None
    if certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    listener = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=tell, args=(client, tls, pieces), daemon=True).start()


def tell(client: socket.socket, tls: ssl.SSLContext | None, pieces: list[memoryview]) -> None:
    with client, contextlib.suppress(OSError):
        if tls is not None:
            client = tls.wrap_socket(client, server_side=True)
        greet(client)
        for piece in pieces:
            client.sendall(piece)
        while client.recv(1 << 16):
            pass


def greet(client: socket.socket) -> None:
    protocol = ServerProtocol()

    def flush() -> None:
        for data in protocol.data_to_send():
            if data:
                client.sendall(data)

    def say(*statuses: dict[str, str]) -> None:
        protocol.send_text(json.dumps(statuses).encode())
        flush()

    greeted = False
    while True:
        protocol.receive_data(client.recv(1 << 16))
        for event in protocol.events_received():
            if not greeted:
                protocol.send_response(protocol.accept(event))
                greeted = protocol.state is OPEN
                flush()
                say(status("connected", "Connected Successfully"))
                continue
            asked = json.loads(event.data)
            if asked["action"] == "auth":
                say(status("auth_success", "authenticated"))
            else:
                say(*(status("success", f"subscribed to: {t}") for t in asked["params"].split(",")))
                return


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    for name in ("port", "events", "per-frame"):
        options.add_argument(f"--{name}", type=int, required=True)
    options.add_argument("--certificate", default="")
    chosen = options.parse_args()
    serve(chosen.port, chosen.events, chosen.per_frame, chosen.certificate)
