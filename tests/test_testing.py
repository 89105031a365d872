"""The pytest plugin that users of tapelab get for their own tests."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import httpx
import pytest

from tapelab import settings
from tapelab.exchange import Exchange

HEAVY = ("pyarrow", "numpy", "pandas", "polars", "starlette", "uvicorn", "websockets", "tapelab.exchange")


def test_a_users_test_gets_an_exchange_of_its_own(tapelab_exchange: Exchange) -> None:
    used = settings.current()
    assert used.rest_url == tapelab_exchange.rest_url
    key = {"Authorization": f"Bearer {used.need_api_key()}"}
    answer = httpx.get(f"{used.rest_url}/v3/trades/ZVZZT", headers=key, params={"limit": 1})
    assert answer.headers["x-tapelab-tape"] == "simulated seed=7"
    assert len(answer.json()["results"]) == 1


class TestAnotherTape:
    @pytest.fixture
    def tapelab_exchange_options(self) -> dict[str, Any]:
        return {"simulate": True, "seed": 11, "plan": "starter"}

    def test_the_exchange_can_be_configured(self, tapelab_exchange: Exchange) -> None:
        assert str(tapelab_exchange.tape) == "simulated seed=11"
        assert tapelab_exchange.speed == 1


def test_the_settings_are_the_users_own_again_afterwards() -> None:
    assert settings.current().endpoint == "massive"


def test_the_plugin_costs_nothing_until_it_is_used() -> None:
    code = f"import sys, tapelab.testing; sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
