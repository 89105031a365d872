"""The command line: what it prints, where it writes, and how it says no."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from tapelab import settings
from tapelab.exchange import Exchange, serve
from tapelab.faces import manual
from tapelab.faces.cli import main, parser

DAYS = ("--start", "2013-10-07", "--end", "2013-10-09")
RAW = ("--adjust", "none")


class Ran:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture(scope="module")
def exchange(real_day: Path) -> Iterator[Exchange]:
    with serve(flat_files=real_day, speed=0) as running:
        yield running


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for setting in settings.TABLE:
        monkeypatch.delenv(setting.name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("TAPELAB_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def point_at(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "MASSIVE_REST_URL": exchange.rest_url,
        "MASSIVE_WS_URL": exchange.ws_url,
        "MASSIVE_S3_ENDPOINT": exchange.s3_endpoint,
        "MASSIVE_S3_BUCKET": exchange.s3_bucket,
        "MASSIVE_API_KEY": exchange.api_key,
        "MASSIVE_S3_ACCESS_KEY_ID": exchange.s3_access_key_id,
        "MASSIVE_S3_SECRET_ACCESS_KEY": exchange.s3_secret_access_key,
        "TAPELAB_REST_CALLS_PER_DAY": "0",
        "TAPELAB_REST_CALLS_PER_MINUTE": "0",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run(environment: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*arguments: str) -> Ran:
        try:
            status = main(arguments)
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def on_exchange(exchange, monkeypatch, run) -> Callable[..., Ran]:
    point_at(exchange, monkeypatch)
    return run


def one_sentence(ran: Ran, status: int, says: str) -> None:
    assert ran.status == status, ran.err
    assert re.search(says, ran.err), ran.err
    assert ran.err.startswith("tapelab: ")
    assert "Traceback" not in ran.err
    assert ran.out == ""


def test_without_keys_the_remedy_is_named(run, environment):
    one_sentence(run("fetch", "AAPL", *DAYS), 2, r"MASSIVE_.*tapelab demo")
    one_sentence(run("record", "AAPL", "--duration", "1s"), 2, "MASSIVE_API_KEY")
    assert not (environment / "home").exists()


@pytest.mark.parametrize("method", ["rest", "flat_file"])
def test_a_wrong_key_is_refused_and_leaves_nothing(on_exchange, monkeypatch, environment, method):
    monkeypatch.setenv("MASSIVE_API_KEY", "not-the-key")
    monkeypatch.setenv("MASSIVE_S3_SECRET_ACCESS_KEY", "not-the-secret")
    ran = on_exchange("fetch", "AIG", *DAYS, "--method", method, *RAW)
    assert ran.status == 1
    assert re.search("(?i)key", ran.err)
    assert "not-the-" not in ran.out + ran.err
    assert not list((environment / "home").rglob("*.parquet"))


def test_a_wrong_key_is_refused_by_the_stream(on_exchange, monkeypatch):
    monkeypatch.setenv("MASSIVE_API_KEY", "not-the-key")
    ran = on_exchange("record", "AIG", "--duration", "30s")
    one_sentence(ran, 1, "(?i)key")
    assert "not-the-key" not in ran.err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("fetch", "AIGX", *DAYS, *RAW), 2, "Did you mean AIG"),
        (("fetch", "aig", *DAYS, *RAW), 2, "Did you mean 'AIG'"),
        (("fetch", "AIG", "X:BTC-USD", *DAYS), 2, "different markets"),
        (("fetch", "AIG", "--start", "2013-10-09", "--end", "2013-10-07"), 2, "ends .* before it starts"),
        (("fetch", "AIG", "--start", "2099-01-01", "--end", "2099-01-02"), 2, "future"),
        (("fetch", "AIG", *DAYS, "--interval", "7m"), 2, "no interval '7m'"),
        (("fetch", "AIG", *DAYS, "--method", "carrier-pigeon"), 2, "carrier-pigeon"),
        (("fetch", "AIG", *DAYS, "--adjust", "twice"), 2, "twice"),
        (("fetch", "AIG", "--start", "2013-10-12", "--end", "2013-10-13"), 1, "no trading session"),
        (("fetch", "AIG", *DAYS, "--out", "bars.xlsx"), 2, "neither"),
        (("backtest", "MovingAverageCros", "--dataset", "x"), 2, "Did you mean 'MovingAverageCross'"),
        (("backtest", "MarketMaker", "--dataset", "nothing-here"), 1, "nothing-here"),
        (("serve", "--flat-files", "no-such-folder"), 1, "no-such-folder"),
        (("record", "AIG", "--name", "a/b"), 2, "cannot be the name"),
        (("demo", "--out", "/dev/null/report.html"), 1, "/dev/null"),
        (("ui", "--port", "80000"), 2, "80000"),
    ],
)
def test_a_question_without_an_answer_gets_one_sentence(on_exchange, arguments, status, says):
    one_sentence(on_exchange(*arguments), status, says)


def test_days_without_any_bar_are_no_empty_table(on_exchange):
    ran = on_exchange(
        "fetch", "AIG", "--start", "2014-01-06", "--end", "2014-01-08", "--method", "rest", *RAW
    )
    one_sentence(ran, 1, "AIG")


def test_a_port_in_use_is_named(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        one_sentence(run("serve", "--simulate", "--rest-port", port), 1, port)
        one_sentence(run("ui", "--port", port), 1, f"Port {port} is in use")


def test_a_home_that_cannot_be_written_is_named(on_exchange, monkeypatch, environment):
    (environment / "file").write_text("")
    monkeypatch.setenv("TAPELAB_HOME", str(environment / "file"))
    one_sentence(on_exchange("fetch", "AIG", *DAYS, *RAW), 1, "TAPELAB_HOME")
    one_sentence(on_exchange("record", "AIG", "--duration", "5s"), 1, "TAPELAB_HOME")


def test_wrong_usage_exits_with_two(run):
    assert run("fetch").status == 2
    assert "tapelab demo" in run().err
    assert run("no-such-verb").status == 2
    assert run("serve", "--simulate", "--dataset", "x").status == 2


def test_every_verb_of_the_loop_is_there():
    text = parser().format_help()
    for verb in "demo doctor plan fetch record datasets backtest serve quota ui".split():
        assert re.search(rf"^\s+{verb}\b", text, re.M), verb


def test_the_page_of_commands_is_what_the_command_line_says():
    page = Path(__file__).parents[1] / "docs" / "commands.md"
    assert page.read_text() == manual.page(), "run: make docs"


def test_both_routes_write_the_same_file(on_exchange, environment, monkeypatch):
    frames = []
    for method in ("rest", "flat_file"):
        monkeypatch.setenv("TAPELAB_HOME", str(environment / method))
        out = f"{method}.parquet"
        ran = on_exchange(
            "fetch", "AIG", "IBM", *DAYS, "--interval", "5m", "--method", method, *RAW, "--out", out
        )
        assert ran.status == 0, ran.err
        frames.append(pd.read_parquet(out).drop(columns="vwap"))
    pd.testing.assert_frame_equal(*frames)
    assert len(frames[0]) > 300


def test_json_says_the_session_as_a_date_and_what_was_written(on_exchange):
    asked = ("fetch", "AIG", *DAYS, *RAW, "--json")
    assert [bar["session"] for bar in json.loads(on_exchange(*asked).out)][-1] == "2013-10-09"
    said = json.loads(on_exchange(*asked, "--out", "bars.csv").out)
    assert (said["path"], said["bars"], said["simulated"]) == ("bars.csv", 3, False)


def test_plan_says_the_route_and_spends_nothing(on_exchange, environment):
    ran = on_exchange("plan", "AIG", "IBM", "BAC", *DAYS)
    assert ran.status == 0, ran.err
    assert "Auto-selected REST API (small query: 3 symbols, 3 days)" in ran.out
    assert json.loads(on_exchange("plan", "AIG", *DAYS, "--json").out)
    used = json.loads(on_exchange("quota", "--json").out)["budgets"][0]["used"]
    assert used == 0


def test_quota_counts_what_was_sent_and_not_what_was_cached(on_exchange):
    fetch = ("fetch", "AIG", *DAYS, "--method", "rest", "--interval", "1h", *RAW)
    assert on_exchange(*fetch).status == 0
    first = json.loads(on_exchange("quota", "--json").out)["budgets"][0]["used"]
    assert on_exchange(*fetch).status == 0
    assert json.loads(on_exchange("quota", "--json").out)["budgets"][0]["used"] == first > 0


def test_doctor_names_what_is_missing_and_never_a_secret(run, on_exchange, exchange, monkeypatch):
    found = {row["what"]: row for row in json.loads(on_exchange("doctor", "--json").out)}
    assert found["REST"]["state"] == found["flat files"]["state"] == "ok"
    text = on_exchange("doctor").out
    for secret in (exchange.api_key, exchange.s3_secret_access_key):
        assert secret not in text
    monkeypatch.delenv("MASSIVE_API_KEY")
    found = {row["what"]: row for row in json.loads(run("doctor", "--json").out)}
    assert found["MASSIVE_API_KEY"]["state"] == "missing"
    assert "api_keys.properties" in found["MASSIVE_API_KEY"]["remedy"]


def test_ctrl_c_ends_a_recording_cleanly_and_it_is_a_dataset(environment, exchange, on_exchange):
    command = [sys.executable, "-m", "tapelab", "record", "AIG", "--name", "ended", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as recording:
        home = environment / "home"
        for _ in range(600):
            if any(path.stat().st_size > 100_000 for path in home.rglob("*.tlj")):
                break
            with pytest.raises(subprocess.TimeoutExpired):
                recording.wait(0.1)
        recording.send_signal(signal.SIGINT)
        out, _ = recording.communicate(timeout=60)
    assert recording.returncode == 0
    assert json.loads(out)["events"] > 0
    one_sentence(on_exchange("record", "AIG", "--name", "ended"), 2, "There is a dataset 'ended' already")
    assert [row["name"] for row in json.loads(on_exchange("datasets", "--json").out)] == ["ended"]
    assert json.loads(on_exchange("datasets", "verify", "ended", "--json").out)[0]["files"] > 0
    ran = on_exchange("backtest", "MarketMaker", "--dataset", "ended", "--set", "symbol=AIG")
    assert re.search(r"Profit +[+−]?\$[\d.,]+ +after fees", ran.out), ran.out
    assert "MakerOnCross, version 1" in ran.out


def test_what_is_piped_on_is_neither_cut_nor_folded(on_exchange):
    lines = on_exchange("doctor").out.splitlines()
    assert any(line.rstrip().endswith("`tapelab record` tries it") for line in lines)


def test_serve_says_where_in_one_line_of_json_and_ends_on_sigterm(environment):
    command = [sys.executable, "-m", "tapelab", "serve", "--simulate"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as serving:
        assert serving.stdout is not None
        ready = json.loads(serving.stdout.readline())
        serving.terminate()
        assert serving.wait(30) == 0
    assert set(ready) == {
        *("rest_url", "ws_url", "s3_endpoint", "s3_bucket"),
        *("api_key", "s3_access_key_id", "s3_secret_access_key"),
    }
