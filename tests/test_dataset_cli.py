"""`tapelab datasets`: what people see, what programs get, and how it says no."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tapelab.faces.cli import main
from tapelab.market import clock
from tapelab.market.clock import FixedClock
from tapelab.settings import Settings, use
from tapelab.store.datasets import manifest
from tapelab.store.datasets.dataset import Dataset, list_datasets, open_dataset
from tapelab.store.datasets.manifest import Filled, Heard, Lost
from test_dataset import T0, made, quotes
from test_dataset_export import simulated
from test_dataset_upkeep import recording as recording

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.setenv("TAPELAB_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with use(Settings.load(home=tmp_path / "home")) as settings:
        yield settings


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[int, str, str]:
        try:
            status = main(("datasets", *arguments))
        except SystemExit as ended:
            status = int(ended.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def lossy(name: str = "lossy") -> Dataset:
    dataset = made(name)
    manifest.next_version(
        dataset.path,
        dataset._manifest,
        change="healed: 3 rows",
        gaps=(Lost(T0, T0 + 90 * clock.SECOND, "cut", ("quotes",)),),
        filled=(Filled(T0, T0 + 90 * clock.SECOND, "quotes", "rest", 3, T0, open="no answer"),),
        heard=(Heard(("Q.AAPL", "T.AAPL"), T0, T0 + clock.HOUR),),
    )
    return open_dataset(name)


def test_a_list_says_what_there_is_at_a_glance(run: Run) -> None:
    assert run()[1].startswith("No datasets in")
    lossy()
    made("whole").tag("open", "quiet")
    simulated()
    status, out, _ = run()
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert status == 0
    for name, said in {
        "lossy": ("AAPL", "2013-10-09 14:00:01", "2013-10-09 14:00:04", " 1 ", "kB"),
        "whole": ("none", "open, quiet"),
        "made-up": ("ZVZZT", "SIMULATED"),
    }.items():
        assert all(text in lines[name] for text in said), (lines[name], said)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ((), ["lossy", "whole"]),
        (("--complete",), ["whole"]),
        (("--gaps",), ["lossy"]),
        (("--tag", "open"), ["whole"]),
        (("--symbol", "AAPL", "--date", "2013-10-09"), ["lossy", "whole"]),
        (("--symbol", "MSFT"), []),
    ],
)
def test_a_list_is_narrowed_down(run: Run, arguments: tuple[str, ...], names: list[str]) -> None:
    lossy()
    made("whole").tag("open")
    status, out, _ = run("list", *arguments, "--json")
    assert (status, [row["name"] for row in json.loads(out)]) == (0, names)
    if not names:
        assert "`tapelab datasets` lists all" in run("list", *arguments)[1]


def test_show_tells_coverage_gaps_marks_and_versions(run: Run) -> None:
    lossy().mark("fast", "2013-10-09T10:00", "2013-10-09T10:01", fitted_on="monday")
    status, out, _ = run("show", "lossy")
    assert status == 0
    for text in (
        "coverage",
        "1.0 h",
        "1.5 min",
        "cut",
        "3 rows",
        "fast",
        "monday",
        "healed: 3 rows",
        "imported",
    ):
        assert text in out, text
    known = json.loads(run("show", "lossy", "--json")[1])
    assert (known["version"], known["gaps"][0]["cause"], known["complete"]) == (3, "cut", False)
    assert [version["change"] for version in known["versions"]] == [
        "imported",
        "healed: 3 rows",
        "marked fast",
    ]
    assert json.loads(run("show", "lossy", "--version", "1", "--json")[1])["gaps"] == []
    assert run("show", "lossy", "--version", "9")[0] == 1


def test_verify_names_each_file_that_is_wrong_and_goes_on(run: Run) -> None:
    made("good")
    (made("bad").path / "segments" / "trades-000001.parquet").unlink()
    status, out, err = run("verify")
    assert status == 1
    assert "bad: segments/trades-000001.parquet is missing." in out
    assert "good: all 2 files are as they were written." in out
    assert "Not what was written: bad." in err
    assert run("verify", "good") == (0, "good: all 2 files are as they were written.\n", "")
    status, out, _ = run("verify", "--json", "bad")
    assert (status, json.loads(out)[0]["problems"]) == (1, ["segments/trades-000001.parquet is missing"])


def test_tag_merge_and_export_say_what_they_made(run: Run, tmp_path: Path) -> None:
    made("one")
    made("two", quotes=quotes(1, symbol="MSFT"))
    assert run("tag", "one", "open", "quiet")[1] == "one is at version 2: tagged open, quiet.\n"
    status, out, _ = run("merge", "one", "two", "--into", "both", "--json")
    assert (status, json.loads(out)["symbols"]) == (0, ["AAPL", "MSFT"])
    assert run("merge", "one", "two", "--into", "both")[0] == 2
    status, out, _ = run("export", "both", "out", "--format", "flat_files")
    assert (status, out) == (0, "both is in out\n")
    assert (tmp_path / "out" / "us_stocks_sip" / "quotes_v1").is_dir()
    assert "something in out already" in run("export", "both", "out")[2]
    simulated()
    assert (
        json.loads(run("export", "made-up", "s", "--format", "flat_files", "--json")[1])["folder"]
        == "s/simulated"
    )


def test_a_stretch_is_marked_with_what_its_label_was_learned_from(run: Run) -> None:
    made("one")
    day = clock.date_of(T0, "America/New_York").isoformat()
    stretch = ("--start", day, "--end", day)
    assert run("mark", "one", "calm", *stretch)[1] == "one is at version 2: marked calm.\n"
    more = ("--symbol", "AAPL", "--fitted-on", "the week before", "--json")
    status, out, _ = run("mark", "one", "calm", *stretch, *more)
    assert (status, json.loads(out)["version"]) == (0, 3)
    found = [(mark.label, mark.symbol, mark.fitted_on) for mark in open_dataset("one").marks]
    assert found == [("calm", "", ""), ("calm", "AAPL", "the week before")]
    assert "the week before" in run("show", "one")[1]


def test_nothing_is_taken_away_unasked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    made("one")
    status, _, err = run("rm", "one")
    assert (status, "Say so with --yes" in err) == (2, True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer, left in (("n", ["one"]), ("", ["one"]), ("Y", [])):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert run("rm", "one")[0] == 0
        assert [dataset.name for dataset in list_datasets()] == left
    assert run("rm", "one", "--yes")[0] == 1


def test_old_journals_are_dropped_and_young_ones_stay(run: Run, recording: Path, home: Settings) -> None:
    folder = home.root / "datasets"
    shutil.copytree(recording, folder / "old")
    made("imported")
    assert "ended 0.0 days ago" in run("prune")[1]
    with clock.use(FixedClock(clock.now() + 40 * clock.DAY)):
        shutil.copytree(recording, folder / "spoilt")
        (folder / "spoilt" / "segments" / "trades-000001.parquet").unlink()
        assert run("prune")[0] == 2
        status, out, err = run("prune", "--yes", "--json")
        rows = {row["name"]: row for row in json.loads(out)}
        assert (status, "spoilt is not what was written" in err) == (1, True)
        assert rows["old"]["freed"] > 500
        assert rows["imported"]["why"] == "it has no raw journal"
        assert rows["spoilt"]["freed"] == 0
        assert "old" in run("prune", "old", "--yes")[1]
    assert not (folder / "old" / "journal").exists()
    assert (folder / "spoilt" / "journal").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("show",), 2, "name"),
        (("show", "absent"), 1, "no dataset 'absent'"),
        (("list", "--date", "soon"), 2, "not a date"),
        (("merge", "one", "--into", "x"), 2, "nothing to merge with"),
        (("merge", "one", "one", "--into", "a/b"), 2, "cannot be the name"),
        (("export", "one", "out", "--format", "excel"), 2, "invalid choice"),
        (("export", "one", "out", "--interval", "7m"), 2, "no interval"),
        (("tag", "one", "a,b"), 2, "no tag"),
        (("mark", "one", "calm", "--start", "2001-01-02", "--end", "2001-01-02"), 2, "no stretch of one"),
        (("mark", "one", "calm", "--start", "2001-01-02"), 2, "--end"),
        (("prune", "one", "--older-than", "soon"), 2, "invalid float"),
        (("dance",), 2, "invalid choice"),
    ],
)
def test_what_makes_no_sense_gets_one_sentence(
    run: Run, arguments: tuple[str, ...], status: int, says: str
) -> None:
    made("one")
    found, out, err = run(*arguments)
    assert (found, out) == (status, "")
    assert says in err
