"""How the command line prints: tables for people, JSON for programs, and a question before what is final."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from tapelab.errors import UsageError


def print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


def print_table(
    rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...], title: str | None = None
) -> None:
    from rich import box
    from rich.table import Table

    from tapelab.faces.panel import console

    table = Table(*columns, box=box.SIMPLE, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*(cell(row[column]) for column in columns))
    console().print(table)


def cell(value: object) -> str:
    if value is None:
        return "–"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def agreed(question: str, *, yes: bool) -> bool:
    """Whether to go on with what cannot be undone: asked on a terminal, to be said with --yes elsewhere."""
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{question} There is nobody to ask.", remedy="Say so with --yes.")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
