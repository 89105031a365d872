"""The files in `deploy` are what systemd and a container engine take, and what they run is a real command."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tapelab.faces.cli import parser
from tapelab.settings import TABLE, parse_properties

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.timer")])
CONTAINER = (DEPLOY / "Containerfile").read_text()
INSTRUCTIONS = "FROM RUN COPY USER WORKDIR VOLUME ENV STOPSIGNAL HEALTHCHECK ENTRYPOINT CMD".split()


def run_by(unit: Path) -> list[str]:
    """What a unit runs, also where the line is still a comment."""
    return re.findall(r"^#?ExecStart=\S*/tapelab (.*)$", unit.read_text(), re.M)


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_takes_the_unit(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in done.stderr.splitlines() if unit.name in line]
    assert all("is not executable: No such file" in line for line in said), said


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_has_sections_and_settings_and_nothing_else(unit: Path) -> None:
    for line in unit.read_text().splitlines():
        assert re.fullmatch(r"|#.*|\[(Unit|Service|Timer|Install)\]|[A-Z]\w+=.*", line), line


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda unit: unit.name)
def test_what_a_unit_runs_is_a_command(unit: Path) -> None:
    commands = run_by(unit)
    assert commands
    for command in commands:
        told = command.replace("$TAPELAB_SYMBOLS", "AAPL MSFT")
        parser().parse_args(told.split())


def test_the_recorder_is_started_again_whatever_ended_it() -> None:
    unit = (DEPLOY / "tapelab-record.service").read_text()
    for setting in (
        "Restart=always",
        "StartLimitIntervalSec=0",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ):
        assert f"\n{setting}\n" in unit


def test_the_environment_has_placeholders_only() -> None:
    values = parse_properties((DEPLOY / "tapelab.env").read_text())
    secrets = {setting.name for setting in TABLE if setting.secret}
    assert values.keys() - {"TAPELAB_SYMBOLS"} <= {setting.name for setting in TABLE}
    assert all(value.startswith("your_") for name, value in values.items() if name in secrets)


def test_the_container_runs_a_command_as_somebody_without_rights() -> None:
    text = re.sub(r"\\\n\s*", "", CONTAINER)
    lines = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {instruction for instruction, _ in lines} <= set(INSTRUCTIONS)
    said = dict(lines)
    assert said["FROM"].startswith("python:3.") and said["FROM"].endswith("-slim")  # noqa: PT018
    assert said["USER"] not in ("root", "0")
    assert json.loads(said["ENTRYPOINT"]) == ["tapelab"]
    chosen = parser().parse_args(json.loads(said["CMD"]))
    assert f":{chosen.health_port}/" in said["HEALTHCHECK"]
    assert "podman build --format docker " in CONTAINER  # an image of podman's own format has no health check
    [shown] = re.findall(r"-v \S+ tapelab (.*)$", CONTAINER, re.M)
    parser().parse_args(shlex.split(shown))
    for source in said["COPY"].split()[:-1]:
        assert (DEPLOY.parent / source).exists()
