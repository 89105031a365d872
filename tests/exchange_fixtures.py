"""Exchanges for tests, closed at their end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exchange_clients import Start
from tapelab.exchange import Exchange, serve
from tapelab.exchange.stream import app as stream
from tapelab.exchange.stream import speaker
from test_exchange_tape import folder_of


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    return folder_of(tmp_path)


@pytest.fixture
def started() -> Iterator[Start]:
    """`serve`, with everything closed at the end."""
    running: list[Exchange] = []

    def start(**options: Any) -> Exchange:
        running.append(serve(**{"speed": 0, **options}))
        return running[-1]

    yield start
    for exchange in running:
        exchange.close()


@pytest.fixture
def tight(started: Start, monkeypatch: pytest.MonkeyPatch) -> Start:
    """The same with next to no room for what a client has not read, neither here nor in the system."""
    monkeypatch.setattr(speaker, "MAX_BACKLOG", 400_000)
    monkeypatch.setattr(speaker, "HIGH_WATER", 100_000)
    monkeypatch.setattr(stream, "WRITE_BUFFER", 10_000)

    def start(**options: Any) -> Exchange:
        exchange = started(**options)
        _, live, _ = exchange._sockets
        live.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        return exchange

    return start
