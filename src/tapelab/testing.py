"""The stand-in exchange as a pytest fixture: try your trading code when the market is closed.

    def test_my_program_trades(tapelab_exchange):
        tapelab_exchange.jump("09:30")
        ...

    @pytest.mark.tapelab_exchange(plan="starter", faults={"stream": [{"fault": "cut", "first": 1000}]})
    def test_my_program_survives_a_cut_line(tapelab_exchange):
        ...

The plugin is there as soon as tapelab is installed; it loads nothing until a test asks for its fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tapelab.exchange import Exchange

MARKER = "tapelab_exchange"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}(**options): what tl.serve is called with for this test")


@pytest.fixture
def tapelab_exchange_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `tl.serve` is called with: a simulated market, unpaced, unless `mark.tapelab_exchange` says else.

    The marks of a module, a class and a test add up. Override this fixture to decide in another way.
    """
    given: dict[str, Any] = {}
    for mark in reversed(list(request.node.iter_markers(MARKER))):
        given |= mark.kwargs
    made_up = {} if {"dataset", "flat_files"} & given.keys() else {"simulate": True}
    unpaced = {} if given.get("follow") else {"speed": 0}
    return {**made_up, **unpaced, **given}


@pytest.fixture
def tapelab_exchange(tapelab_exchange_options: dict[str, Any]) -> Iterator[Exchange]:
    """A running exchange on a simulated market, unpaced; all of tapelab in the test talks to it.

    Data goes to a temporary folder. The clock starts with the first subscribed client.
    """
    from tapelab.exchange import serve

    with serve(**tapelab_exchange_options) as exchange, exchange.use():
        yield exchange
