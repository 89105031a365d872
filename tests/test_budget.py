"""The user's own quotas: exact between processes, and they survive them."""

from __future__ import annotations

import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tapelab.budget import Budget
from tapelab.errors import BudgetExceeded, Unwritable
from tapelab.market import clock
from tapelab.settings import Settings

NOON = round(datetime(2026, 10, 2, 12, tzinfo=UTC).timestamp()) * clock.SECOND


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(
        home=tmp_path, rest_calls_per_day=8, rest_calls_per_minute=3, flat_file_gb_per_month=0.001
    )


def test_the_day_ends_at_midnight_utc(settings):
    with clock.use(clock.FixedClock(NOON)) as now:
        budget = Budget(settings)
        budget.spend_rest(8)
        with pytest.raises(BudgetExceeded, match="2026-10-03T00:00:00") as caught:
            budget.spend_rest()
        assert caught.value.facts == {"needed": 1, "left": 0}
        now.at = round(datetime(2026, 10, 3, tzinfo=UTC).timestamp()) * clock.SECOND
        budget.spend_rest()
        assert budget.left().rest_day == 7


def test_a_full_minute_waits_and_says_how_long(settings):
    waits: list[float] = []
    with clock.use(clock.FixedClock(NOON)) as now:
        budget = Budget(settings, on_wait=waits.append)
        budget.spend_rest(3)
        now.sleep(20)
        budget.spend_rest()
        assert waits == [40.0]
        assert now.at == NOON + 60 * clock.SECOND


def test_nothing_is_counted_that_would_break_a_budget(settings):
    budget = Budget(settings)
    with pytest.raises(BudgetExceeded, match="9 REST calls"):
        budget.check(rest_calls=9)
    with pytest.raises(BudgetExceeded, match="GB"):
        budget.spend_bytes(1_000_001)
    assert budget.left().calls_today == 0
    assert budget.left().bytes_this_month == 0
    budget.spend_bytes(1_000_000)
    assert budget.left().bytes_month == 0


def test_bytes_reset_with_the_month(settings):
    with clock.use(clock.FixedClock(NOON)) as now:
        budget = Budget(settings)
        budget.spend_bytes(1_000_000)
        assert (
            budget.left().month_resets == round(datetime(2026, 11, 1, tzinfo=UTC).timestamp()) * clock.SECOND
        )
        now.at = budget.left().month_resets
        assert budget.left().bytes_month == 1_000_000


def test_zero_means_no_limit(tmp_path):
    free = Settings.load(
        home=tmp_path, rest_calls_per_day=0, rest_calls_per_minute=0, flat_file_gb_per_month=0
    )
    budget = Budget(free)
    budget.spend_rest(50)
    budget.spend_bytes(10**12)
    left = budget.left()
    assert (left.rest_day, left.rest_minute, left.bytes_month) == (None, None, None)
    assert (left.calls_today, left.bytes_this_month) == (50, 10**12)


def test_looking_creates_nothing(settings):
    Budget(settings).left()
    assert not settings.root.exists()


def test_processes_share_one_exact_ledger(settings, tmp_path):
    program = (
        "import sys; from tapelab.budget import Budget; from tapelab.settings import Settings;"
        "b = Budget(Settings.load(home=sys.argv[1], rest_calls_per_day=0, rest_calls_per_minute=0));"
        "b.spend_rest(50)"
    )
    running = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert Budget(settings).left().calls_today == 150


def test_a_home_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match="TAPELAB_HOME"):
        Budget(Settings.load(home=tmp_path / "file")).spend_rest()


def test_a_damaged_ledger_is_named_and_not_reset_in_silence(settings):
    settings.root.mkdir(parents=True)
    (settings.root / "budget.json").write_text("{")
    with pytest.raises(Unwritable, match=r"budget\.json"):
        Budget(settings).left()


def test_a_call_that_never_went_out_is_given_back(settings):
    budget = Budget(settings)
    budget.spend_rest(3)
    budget.return_rest()
    assert (budget.left().calls_today, budget.left().rest_minute) == (2, 1)


def test_a_wait_that_is_given_up_counts_nothing(settings):
    with clock.use(clock.FixedClock(NOON)) as now:
        budget = Budget(settings)
        assert budget.spend_rest(3)
        assert not budget.spend_rest(given_up=lambda: now.at >= NOON + 5 * clock.SECOND)
        assert now.at == NOON + 5 * clock.SECOND
        assert budget.left().calls_today == 3


KILLED = """
import os, signal, sys
from tapelab import budget
from tapelab.settings import Settings
replace = budget._replace
mine = budget.Budget(Settings.load(home=sys.argv[1], rest_calls_per_day=0, rest_calls_per_minute=0))
mine.spend_rest(2)
if sys.argv[2] == "before":
    budget._replace = lambda path, content: os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[2] == "half":
    def half(path, content):
        path.with_suffix(".new").write_bytes(content[:10])
        os.kill(os.getpid(), signal.SIGKILL)
    budget._replace = half
else:
    def after(path, content):
        replace(path, content)
        os.kill(os.getpid(), signal.SIGKILL)
    budget._replace = after
mine.spend_rest()
"""


@pytest.mark.parametrize(("when", "counted"), [("before", 2), ("half", 2), ("after", 3)])
def test_a_process_killed_while_it_holds_the_ledger_leaves_it_whole_and_free(
    settings, tmp_path, when, counted
):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), when], timeout=60, check=False)
    assert killed.returncode == -signal.SIGKILL
    budget = Budget(settings)
    assert budget.left().calls_today == counted
    budget.spend_rest()
    assert budget.left().calls_today == counted + 1


def test_the_minute_is_shared_by_processes(settings, tmp_path):
    program = (
        "import sys; from tapelab.budget import Budget; from tapelab.market import clock;"
        "from tapelab.settings import Settings;"
        "b = Budget(Settings.load(home=sys.argv[1], rest_calls_per_day=0, rest_calls_per_minute=4));"
        f"c = clock.FixedClock({NOON});\n"
        "with clock.use(c): b.spend_rest(4)\n"
        f"print((c.at - {NOON}) // clock.SECOND)"
    )
    waited = [
        int(subprocess.check_output([sys.executable, "-c", program, str(tmp_path)], timeout=60))
        for _ in range(2)
    ]
    assert waited == [0, 60]
