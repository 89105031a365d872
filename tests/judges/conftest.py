"""What the judges share: a market on paper, the exchange that speaks it, and the vendor's own clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import papers
import pytest
from clients import Client, Start
from massive import RESTClient

from tapelab.exchange import Exchange, serve


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> papers.Paper:
    """Two days of daily files, written with nothing of ours."""
    return papers.make(tmp_path_factory.mktemp("paper"))


@pytest.fixture(scope="session")
def exchange(paper: papers.Paper) -> Iterator[Exchange]:
    """The exchange that speaks the market on paper."""
    with serve(flat_files=paper.folder, speed=0) as exchange:
        yield exchange


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exchange]:
    """The same with reference data of every kind beside its files."""
    folder = papers.make(tmp_path_factory.mktemp("known"), well_known=True).folder
    with serve(flat_files=folder, speed=0) as exchange:
        yield exchange


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
def client() -> Iterator[Client]:
    """The vendor's REST client for an exchange; it tries once, so that errors show."""
    made: list[RESTClient] = []

    def client_of(exchange: Exchange, **options: Any) -> RESTClient:
        given = {"api_key": exchange.api_key, "base": exchange.rest_url, "retries": 0, **options}
        made.append(RESTClient(**given))
        return made[-1]

    yield client_of
    for each in made:
        each.client.clear()
