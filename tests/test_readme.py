"""Every block of the README runs, in order, as a reader would type them."""

from __future__ import annotations

import builtins
import re
import time
from pathlib import Path

import pytest

from tapelab.exchange import serve
from tapelab.faces.cli import parser

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
LONGEST = 60.0


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


def test_the_python_blocks_run_and_print_what_the_page_says(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    with serve(simulate=True, speed=0) as exchange, exchange.use(home=tmp_path / "home"):

        def until_all_is_told(prompt: str = "") -> str:
            until = time.monotonic() + LONGEST
            while not exchange.finished.is_set() and time.monotonic() < until:
                time.sleep(0.05)
            return ""

        monkeypatch.setattr(builtins, "input", until_all_is_told)
        namespace: dict[str, object] = {}
        for number, block in enumerate(blocks("python")):
            exec(compile(block, f"README block {number}", "exec"), namespace)
    printed = capsys.readouterr().out
    for answer in blocks("text"):
        assert answer in printed
    assert namespace["path"].is_file()
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(namespace["spreads"]) > 1000
    assert namespace["result"].fills is not None
    assert len(namespace["result"].fills) > 0


def test_the_two_commands_are_targets_of_the_makefile():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    asked = {
        line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("make")
    }
    assert asked == {"demo", "test"}
    assert asked <= targets


def test_commands_that_the_page_names_exist():
    known = parser().format_help()
    for verb in re.findall(r"`tapelab (\w+)", TEXT):
        assert re.search(rf"^\s+{verb}\b", known, re.M), verb


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(((?!http)[^)]+)\)", TEXT))))
def test_what_the_page_links_to_is_there(link):
    assert (ROOT / link).is_file()
