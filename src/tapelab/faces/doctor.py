"""`tapelab doctor`: what is configured, what works, what is missing, with the remedy."""

from __future__ import annotations

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

from tapelab.budget import Budget
from tapelab.errors import TapelabError
from tapelab.market import clock
from tapelab.market.sessions import NEW_YORK
from tapelab.settings import TABLE, Settings

State = Literal["ok", "missing", "fails", "not tried"]

LOW_DISK_GB = 5  # a busy session of quotes for a few hundred symbols


class Finding(NamedTuple):
    """One line of the examination. `detail` never holds a secret."""

    area: str
    what: str
    state: State
    detail: str
    remedy: str = ""


def examine(settings: Settings) -> list[Finding]:
    """Look at everything that can be looked at; spends one REST call if a key is set."""
    return [*_settings(settings), *_machine(settings), *_doors(settings)]


def _settings(settings: Settings) -> list[Finding]:
    found = []
    for setting in TABLE:
        value = getattr(settings, setting.attribute)
        where = settings.origin[setting.attribute]
        if setting.secret:
            state: State = "ok" if value else "missing"
            found.append(
                Finding(
                    "settings",
                    setting.name,
                    state,
                    f"set ({where})" if value else "not set",
                    "" if value else setting.remedy,
                )
            )
        else:
            found.append(Finding("settings", setting.name, "ok", f"{value or '–'} ({where})"))
    return found


def _machine(settings: Settings) -> list[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info < (3, 14)
    page = find_spec("streamlit") is not None
    return [
        Finding(
            "machine",
            "Python",
            "ok" if supported else "fails",
            version,
            "" if supported else "Use Python 3.11 to 3.13.",
        ),
        _home(settings),
        _decoder(),
        Finding(
            "machine",
            "web page",
            "ok" if page else "missing",
            "Streamlit is installed" if page else "Streamlit is not installed",
            "" if page else "pip install 'tapelab[ui]'",
        ),
    ]


def _decoder() -> Finding:
    from tapelab.massive.wire import compiled

    problem = compiled.problem()
    if not problem:
        return Finding("machine", "fast decoder", "ok", "compiled in the background where much is recorded")
    return Finding(
        "machine",
        "fast decoder",
        "missing",
        f"{problem}; the plain decoder serves, at about a tenth of the speed",
        "pip install numba" if "not installed" in problem else "Recordings lose nothing by it.",
    )


def _home(settings: Settings) -> Finding:
    folder = next(p for p in (settings.home, *settings.home.parents) if p.exists())
    if not folder.is_dir() or not _writable(folder):
        return Finding("machine", "home", "fails", f"{settings.home} cannot be written", "Set TAPELAB_HOME.")
    free = shutil.disk_usage(folder).free / 1e9
    if free < LOW_DISK_GB:
        return Finding(
            "machine",
            "home",
            "fails",
            f"{free:.1f} GB free in {settings.home}",
            "Make room or set TAPELAB_HOME.",
        )
    return Finding("machine", "home", "ok", f"{settings.home}, {free:.0f} GB free")


def _writable(folder: Path) -> bool:
    from tempfile import TemporaryFile

    try:
        with TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _doors(settings: Settings) -> list[Finding]:
    return [_rest(settings), _flat_files(settings), _stream(settings)]


def _rest(settings: Settings) -> Finding:
    if settings.api_key is None:
        return Finding("doors", "REST", "not tried", settings.rest_url, "Set MASSIVE_API_KEY.")
    from tapelab.massive.rest import RestClient

    try:
        with RestClient(settings, Budget(settings)) as client:
            market = client.market_status().get("market", "unknown")
    except TapelabError as error:
        return Finding("doors", "REST", "fails", error.message, error.remedy)
    return Finding("doors", "REST", "ok", f"{settings.rest_url} answers; the market is {market}")


def _flat_files(settings: Settings) -> Finding:
    if settings.s3_access_key_id is None or settings.s3_secret_access_key is None:
        return Finding(
            "doors",
            "flat files",
            "not tried",
            settings.s3_endpoint,
            "Set MASSIVE_S3_ACCESS_KEY_ID and its secret.",
        )
    from datetime import timedelta

    from tapelab.massive.flatfiles import FlatFiles

    today = clock.today(NEW_YORK)
    try:
        listed = FlatFiles(settings, Budget(settings)).list(
            "us_stocks_sip/day_aggs_v1", today - timedelta(days=7), today
        )
    except TapelabError as error:
        return Finding("doors", "flat files", "fails", error.message, error.remedy)
    return Finding(
        "doors", "flat files", "ok", f"{settings.s3_endpoint} lists {len(listed)} day files of the last week"
    )


def _stream(settings: Settings) -> Finding:
    # A second connection would push out a recording that runs: the vendor allows one per market.
    return Finding("doors", "live stream", "not tried", f"{settings.ws_url}; `tapelab record` tries it")


def show(findings: list[Finding]) -> None:
    """Print the findings as a table, each missing thing with its remedy."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from tapelab.faces.panel import console

    marks = {"ok": "[green]✓[/]", "missing": "[yellow]–[/]", "fails": "[red]✗[/]", "not tried": "[dim]·[/]"}
    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    area = ""
    for finding, following in zip(findings, [*findings[1:], None], strict=True):
        if finding.area != area:
            area = finding.area
            table.add_row("", f"[bold]{area}[/]", "")
        # One remedy for several things stands below the last of them.
        new = finding.remedy and (following is None or following.remedy != finding.remedy)
        remedy = f"\n[yellow]→ {escape(finding.remedy)}[/]" if new else ""
        table.add_row(marks[finding.state], finding.what, f"{escape(finding.detail)}{remedy}")
    console().print(table)
