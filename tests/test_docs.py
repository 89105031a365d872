"""Every block of the pages in `docs` runs, in order, as a reader would type them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from tapelab.exchange import control, faults, serve
from tapelab.exchange.tape import folder, sorting
from tapelab.faces.cli import parser

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TESTING = (ROOT / "docs" / "testing.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def is_a_test(block: str) -> bool:
    return "\ndef test_" in block


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_python_blocks_run_and_print_what_the_page_says(
    page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text()
    namespace: dict[str, object] = {}
    with serve(simulate=True, speed=0) as exchange, exchange.use(home=tmp_path / "home"):
        for number, block in enumerate(blocks(text, "python")):
            if not is_a_test(block):
                exec(compile(block, f"{page.name} block {number}", "exec"), namespace)
    printed, at = capsys.readouterr().out, 0
    for answer in blocks(text, "text"):
        assert answer in printed[at:]
        at = printed.index(answer, at) + len(answer)


def test_the_tests_on_the_page_pass_as_a_users_own(tmp_path: Path) -> None:
    tests = [block for block in blocks(TESTING, "python") if is_a_test(block)]
    for number, block in enumerate(tests):
        (tmp_path / f"test_mine_{number}.py").write_text(block)
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(tests)} passed" in done.stdout


def test_the_fault_script_on_the_page_is_one(tmp_path: Path) -> None:
    [block] = blocks(TESTING, "toml")
    (tmp_path / "faults.toml").write_text(block)
    assert faults.Faults.load(tmp_path / "faults.toml") is not faults.NO_FAULTS
    assert set(tomllib.loads(block)) == {"seed", "rest", "stream"}


def rows(heading: str) -> list[list[str]]:
    """The rows of the table under a heading, without its head."""
    section = TESTING.partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def names(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


def test_the_table_of_faults_has_every_fault_and_every_setting() -> None:
    doors: set[str] = set()
    listed: dict[str, dict[str, set[str]]] = {door: {} for door in faults.KINDS}
    for door, fault, _, settings in rows("What goes wrong"):
        doors = names(door) or doors
        said = re.sub(r"\([^)]*\)", "", settings)
        for each in doors:
            listed[each][fault.strip("`")] = names(said)
    for door, kinds in faults.KINDS.items():
        assert listed[door] == {name: {field.name for field in fields(kind)} for name, kind in kinds.items()}


def test_the_table_of_choices_has_every_key() -> None:
    known = {field.name for choice in (faults.Requests, faults.Events) for field in fields(choice)}
    assert {key.strip("`") for key, *_ in rows("Which requests and events")} == known


def test_other_names_on_the_page_are_right() -> None:
    assert f"`{control.PATH}`" in TESTING
    for size in (folder.LARGE, sorting.MEMORY, sorting.MEMORY + sorting.READING):
        assert f" {size >> 20} MiB" in TESTING


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_on_the_pages_are_known(page: Path) -> None:
    for block in blocks(page.read_text(), "sh"):
        for line in block.splitlines():
            if line.startswith("tapelab "):
                parser().parse_args(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_pages_link_to_is_there(page: Path) -> None:
    for link in re.findall(r"\]\(((?!http)[^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link
