"""The page `docs/commands.md`, made from the command line itself and the table of settings: `make docs`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from tapelab import settings
from tapelab.faces.cli import parser

HEAD = """# Commands and settings

Made by `make docs` from the command line itself; `tapelab VERB --help` says the same.

Exit status: 0 done, 1 failed with a message, 2 wrong usage. Long work shows progress on a terminal and none
in a pipe. `--json`, where a command has it, gives machine-readable output.
"""
SETTINGS = """## Settings

Each is looked for in this order: argument, environment, `api_keys.properties` (in the working directory, then
in the configuration folder), default. `tapelab doctor` shows which counts and where it came from. A value
that starts with `your_` counts as not set; a budget of 0 means no limit. Budgets are yours, not the vendor's.

| setting | meaning | default |
|---|---|---|
"""


def page() -> str:
    """Every verb with its options, every setting with its default, as Markdown."""
    verbs = next(each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    parts = [HEAD, *(_verb(name, made) for name, made in verbs.choices.items())]
    return "\n".join([*parts, SETTINGS + "".join(map(_setting, settings.TABLE))])


def _verb(name: str, made: argparse.ArgumentParser) -> str:
    rows = "".join(_rows(made))
    table = f"\n| | |\n|---|---|\n{rows}" if rows else ""
    return f"## `tapelab {name}`\n\n{made.description}\n{table}"


def _rows(made: argparse.ArgumentParser) -> Iterator[str]:
    for each in made._actions:
        if each.dest in ("help", "json"):
            continue
        value = "\\|".join(each.choices) if each.choices else str(each.metavar or each.dest.upper())
        takes = "" if each.nargs == 0 else value
        several = "…" if each.nargs in ("+", "*") else ""
        term = " ".join(filter(None, [*each.option_strings[:1], takes])) + several
        said = [each.help or ""]
        if each.default not in (None, [], False, argparse.SUPPRESS) and each.nargs != 0:
            said.append(f"default `{each.default}`")
        if each.required and each.option_strings:
            said.append("required")
        yield f"| `{term}` | {'; '.join(filter(None, said))} |\n"


def _setting(setting: settings.Setting) -> str:
    default = f"`{setting.default}`" if setting.default else ""
    return f"| `{setting.name}` | {setting.meaning} | {default} |\n"


if __name__ == "__main__":
    print(page(), end="")
