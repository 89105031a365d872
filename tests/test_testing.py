"""The pytest plugin that users of tapelab get for their own tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tapelab import settings
from tapelab.exchange import Exchange
from test_exchange_tape import folder_of

HEAVY = ("pyarrow", "numpy", "pandas", "polars", "starlette", "uvicorn", "websockets", "tapelab.exchange")


def last_trade(exchange: Exchange) -> httpx.Response:
    used = settings.current()
    assert used.rest_url == exchange.rest_url
    key = {"Authorization": f"Bearer {used.need_api_key()}"}
    return httpx.get(f"{used.rest_url}/v3/trades/ZVZZT", headers=key, params={"limit": 1})


def test_a_users_test_gets_an_exchange_of_its_own(tapelab_exchange: Exchange) -> None:
    answer = last_trade(tapelab_exchange)
    assert answer.headers["x-tapelab-tape"] == "simulated seed=7"
    assert len(answer.json()["results"]) == 1
    assert tapelab_exchange.speed == 0


@pytest.mark.tapelab_exchange(seed=11, speed=1)
class TestMarks:
    def test_a_mark_says_what_is_served(self, tapelab_exchange: Exchange) -> None:
        assert str(tapelab_exchange.tape) == "simulated seed=11"
        assert tapelab_exchange.speed == 1

    @pytest.mark.tapelab_exchange(speed=2, faults={"rest": [{"fault": "status", "code": 503, "times": 1}]})
    def test_marks_add_up(self, tapelab_exchange: Exchange) -> None:
        assert str(tapelab_exchange.tape) == "simulated seed=11"
        assert tapelab_exchange.speed == 2
        assert [last_trade(tapelab_exchange).status_code for _ in range(2)] == [503, 200]


class TestAnotherTape:
    @pytest.fixture
    def tapelab_exchange_options(self, tmp_path: Path) -> dict[str, Any]:
        return {"flat_files": folder_of(tmp_path), "plan": "advanced"}

    def test_the_fixture_of_options_can_be_overridden(self, tapelab_exchange: Exchange) -> None:
        assert str(tapelab_exchange.tape).startswith("flat-files")
        assert tapelab_exchange.speed == 1


@pytest.mark.tapelab_exchange(dataset="yesterday", follow=True)
def test_another_tape_takes_the_place_of_the_simulated_one(tapelab_exchange_options: dict[str, Any]) -> None:
    assert tapelab_exchange_options == {"dataset": "yesterday", "follow": True}


def test_the_settings_are_the_users_own_again_afterwards() -> None:
    assert settings.current().endpoint == "massive"


def test_the_plugin_costs_nothing_until_it_is_used() -> None:
    code = f"import sys, tapelab.testing; sys.exit(any(name in sys.modules for name in {HEAVY!r}))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
