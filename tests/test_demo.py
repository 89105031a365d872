"""The demo goes the whole way, tells no secret, and leaves nothing that could be taken for the vendor's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapelab import settings
from tapelab.exchange import serve

MINE = "my-own-key-of-the-vendor"
LONGEST = 240


class Run:
    """A command with a home of its own and keys of the vendor's set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("MASSIVE", "TAPELAB"))
        }
        self.environment = {
            **clean,
            "TAPELAB_HOME": str(folder / "home"),
            "XDG_CONFIG_HOME": str(folder / "config"),
            "MASSIVE_API_KEY": MINE,
            "MASSIVE_S3_ACCESS_KEY_ID": MINE,
            "MASSIVE_S3_SECRET_ACCESS_KEY": MINE,
        }

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tapelab", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LONGEST
        )

    def everything_written(self) -> bytes:
        return b"".join(path.read_bytes() for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def demo(run: Run) -> subprocess.CompletedProcess[str]:
    done = run("demo", "--json")
    assert done.returncode == 0, done.stderr
    return done


def test_the_demo_ends_with_a_report_that_says_simulated(run, demo):
    told = json.loads(demo.stdout)
    report = (run.folder / told["report"]).read_text()
    assert told["bars"] > 10_000
    assert "imulated" in report
    for strategy in ("MovingAverageCross", "PairsTrading", "MarketMaker"):
        assert strategy in report


def test_the_same_home_asked_for_the_vendors_url_finds_nothing_and_an_untouched_budget(run, demo):
    told = json.loads(demo.stdout)
    fetch = ("fetch", told["symbols"][0], "--start", told["first"], "--end", told["last"], "--interval", "1m")
    # No network here: the vendor is not reachable, whatever the machine.
    run.environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    asked = run(*fetch, "--adjust", "none")
    assert asked.returncode == 1
    assert asked.stdout == ""
    assert asked.stderr.count("tapelab: ") == 1
    assert "Traceback" not in asked.stderr
    quota = json.loads(run("quota", "--json").stdout)
    assert quota["endpoint"] == "massive"
    assert quota["budgets"][0]["used"] == 0
    assert json.loads(run("datasets", "--json").stdout) == []


def test_no_secret_is_printed_or_written_by_the_demo_or_by_a_run_that_fails(run, demo):
    with serve(simulate=True) as exchange:  # the same tape has the same throw-away keys
        secrets = [exchange.api_key, exchange.s3_secret_access_key, MINE]
        run.environment |= {
            "MASSIVE_REST_URL": exchange.rest_url,
            "MASSIVE_WS_URL": exchange.ws_url,
            "MASSIVE_S3_ENDPOINT": exchange.s3_endpoint,
            "NO_PROXY": "127.0.0.1",
        }
        days = ("--start", "2026-10-08", "--end", "2026-10-09")
        failed = [
            run("fetch", "ZVZZT", *days, "--method", "rest"),
            run("fetch", "ZVZZT", *days, "--method", "flat_file", "--adjust", "none"),
            run("record", "ZVZZT", "--duration", "20s"),
            run("doctor"),
        ]
    assert [done.returncode for done in failed] == [1, 1, 1, 0]
    printed = "".join(done.stdout + done.stderr for done in [demo, *failed])
    for secret in secrets:
        assert secret not in printed
        assert secret.encode() not in run.everything_written()


def test_the_environment_of_these_tests_covers_every_secret():
    names = {setting.name for setting in settings.TABLE if setting.secret}
    assert names <= set(Run(Path()).environment)
