"""The stand-in exchange as a pytest fixture: try your trading code when the market is closed.

The plugin is there as soon as tapelab is installed; it loads nothing until a test asks for its fixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tapelab.exchange import Exchange


@pytest.fixture
def tapelab_exchange_options() -> dict[str, Any]:
    """What `tl.serve` is called with; override this fixture to test on another tape or at another speed."""
    return {"simulate": True, "speed": 0}


@pytest.fixture
def tapelab_exchange(tapelab_exchange_options: dict[str, Any]) -> Iterator[Exchange]:
    """A running exchange on a simulated market, unpaced; all of tapelab in the test talks to it.

    Data goes to a temporary folder. The clock starts with the first subscribed client.
    """
    from tapelab.exchange import serve

    with serve(**tapelab_exchange_options) as exchange, exchange.use():
        yield exchange
