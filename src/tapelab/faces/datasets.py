"""`tapelab datasets`: what was recorded, and everything that is done with it afterwards."""

from __future__ import annotations

import argparse
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tapelab as tl
from tapelab.errors import Damaged, TapelabError, UsageError
from tapelab.faces.panel import doing
from tapelab.faces.printing import agreed, print_json, print_table
from tapelab.market import clock
from tapelab.store.datasets import room, upkeep
from tapelab.store.datasets.shaping import FORMATS

NAMED = 4  # symbols that a table names; of the rest it says how many
LISTED = 20  # rows of coverage and of gaps that `show` prints; --json gives all


def add(parser: ArgumentParser) -> None:
    """What may be asked of datasets; without a word they are listed."""
    parser.set_defaults(run=listed, symbol=None, date=None, tag=None, complete=None)
    actions = parser.add_subparsers(metavar="ACTION")

    def action(name: str, run: Callable[[Namespace], None], summary: str) -> ArgumentParser:
        made = actions.add_parser(name, help=summary, description=summary)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable")
        return made

    found = action("list", listed, "Every dataset of this endpoint, or some of them.")
    found.add_argument("--symbol", help="that hold it")
    found.add_argument("--date", help="with events on that day: 2026-10-01")
    found.add_argument("--tag", help="that carry it")
    found.add_argument("--complete", action="store_true", default=None, help="without a gap, or all healed")
    found.add_argument(
        "--gaps", action="store_false", dest="complete", default=None, help="with gaps that are not healed"
    )

    shown = action("show", show, "Coverage, gaps, versions, marks and origin of one.")
    shown.add_argument("name")
    shown.add_argument("--version", type=int, metavar="N", help="an earlier version")

    verified = action("verify", verify, "Check every file; names what is missing, foreign or damaged.")
    verified.add_argument("names", nargs="*", metavar="NAME", help="all, unless some are named")

    tagged = action("tag", tag, "Add tags to one, as a new version.")
    tagged.add_argument("name")
    tagged.add_argument("tags", nargs="+", metavar="TAG")

    marked = action("mark", mark, "Label a stretch of one, as a new version.")
    marked.add_argument("name")
    marked.add_argument("label", help="such as 'opening auction'")
    marked.add_argument("--start", required=True, help="2026-10-01, or an instant such as 2026-10-01T09:30")
    marked.add_argument("--end", required=True)
    marked.add_argument("--symbol", default="", help="of this one only")
    marked.add_argument("--fitted-on", default="", metavar="DATA", help="what the label was learned from")

    merged = action("merge", merge, "Several as a new one: every event once, in order of arrival.")
    merged.add_argument("names", nargs="+", metavar="NAME")
    merged.add_argument("--into", required=True, metavar="NEW", help="name of the new dataset")

    exported = action("export", export, "Write one for other programs, whole or not at all.")
    exported.add_argument("name")
    exported.add_argument("path", type=Path, metavar="FOLDER", help="a folder that is not there yet")
    exported.add_argument("--format", default="parquet", choices=FORMATS)
    exported.add_argument("--interval", default="1m", help="of the bars")
    exported.add_argument("--view", default="received", choices=("received", "healed"))

    removed = action("rm", remove, "Take datasets away, with all their versions.")
    removed.add_argument("names", nargs="+", metavar="NAME")
    removed.add_argument("--yes", action="store_true", help="do not ask")

    pruned = action("prune", prune, "Drop raw journals that are old, once the columns are verified.")
    pruned.add_argument("names", nargs="*", metavar="NAME", help="all, unless some are named")
    pruned.add_argument("--older-than", type=float, default=upkeep.KEEP_DAYS, metavar="DAYS")
    pruned.add_argument("--unknown", action="store_true", help="also where it holds what no table holds")
    pruned.add_argument("--yes", action="store_true", help="do not ask")


def listed(chosen: Namespace) -> None:
    found = tl.list_datasets(symbol=chosen.symbol, date=chosen.date, tag=chosen.tag, complete=chosen.complete)
    if chosen.json:
        print_json([described(dataset) for dataset in found])
    elif found:
        print_table([_row(dataset) for dataset in found], tuple(_row(found[0])))
    elif any(value is not None for value in (chosen.symbol, chosen.date, chosen.tag, chosen.complete)):
        print("No dataset is like that. `tapelab datasets` lists all.")
    else:
        print(f"No datasets in {tl.Settings.load().root}. `tapelab record SYMBOL` makes one.")


def show(chosen: Namespace) -> None:
    dataset = tl.open_dataset(chosen.name, version=chosen.version)
    if chosen.json:
        print_json(described(dataset) | _whole(dataset))
        return
    facts = {**_row(dataset), "folder": dataset.path, "clock": dataset.clock, **dataset.provenance}
    print_table([{"": name, " ": value} for name, value in facts.items() if value not in ("", [])], ("", " "))
    held = [
        {
            "symbol": symbol,
            "quotes": f"{one.quotes:,}",
            "trades": f"{one.trades:,}",
            "bars": f"{one.bars:,}",
            "first (UTC)": _time(one.first),
            "last (UTC)": _time(one.last),
            "listened": _duration(sum(end - start for start, end in one.listened)),
        }
        for symbol, one in dataset.coverage.items()
    ]
    _part(held, "coverage")
    healed = {(one.start, one.end): one for one in dataset.filled}
    lost = [
        {
            "from (UTC)": _time(gap.start),
            "lasted": _duration(gap.end - gap.start),
            "cause": gap.cause,
            "channels": gap.channels or "all",
            "symbols": gap.symbols or "all",
            "filled": f"{one.rows:,} rows" if (one := healed.get((gap.start, gap.end))) else "no",
        }
        for gap in dataset.gaps
    ]
    _part(lost, "gaps (by our clock)")
    _part(
        [
            {
                "label": mark.label,
                "from (UTC)": _time(mark.start),
                "to (UTC)": _time(mark.end),
                "symbol": mark.symbol or "all",
                "fitted on": mark.fitted_on or None,
            }
            for mark in dataset.marks
        ],
        "marks",
    )
    _part(
        [
            {"version": one.number, "made (UTC)": _time(one.changed), "by": one.change}
            for one in dataset.versions
        ],
        "versions",
    )


def verify(chosen: Namespace) -> None:
    results = []
    for dataset in _named(chosen.names):
        problems, checked = [], 0
        with doing(f"{dataset.name} …") as say:
            for problem in upkeep.check(dataset):
                checked += 1
                say(f"{dataset.name}: {checked} files …")
                problems += [problem] if problem else []
        results.append({"name": dataset.name, "files": checked, "problems": problems})
        if not chosen.json:
            bad = "; ".join(problems) or f"all {checked} files are as they were written"
            print(f"{dataset.name}: {bad}.")
    if chosen.json:
        print_json(results)
    if damaged := [str(result["name"]) for result in results if result["problems"]]:
        raise Damaged(
            f"Not what was written: {', '.join(damaged)}.",
            remedy="Restore the files that are named from a backup; take away what is foreign.",
        )


def tag(chosen: Namespace) -> None:
    _done(chosen, tl.open_dataset(chosen.name).tag(*chosen.tags))


def mark(chosen: Namespace) -> None:
    dataset = tl.open_dataset(chosen.name)
    about = {"symbol": chosen.symbol, "fitted_on": chosen.fitted_on}
    _done(chosen, dataset.mark(chosen.label, chosen.start, chosen.end, **about))


def merge(chosen: Namespace) -> None:
    first, *others = (tl.open_dataset(name) for name in chosen.names)
    with doing(f"{len(chosen.names)} datasets into {chosen.into} …"):
        merged = first.merge(*others, name=chosen.into)
    _done(chosen, merged)


def export(chosen: Namespace) -> None:
    dataset = tl.open_dataset(chosen.name)
    with doing(f"{dataset.name} as {chosen.format} …"):
        folder = dataset.export(chosen.path, chosen.format, interval=chosen.interval, view=chosen.view)
    if chosen.json:
        print_json({"name": dataset.name, "version": dataset.version, "folder": str(folder)})
    else:
        print(f"{dataset.name} is in {folder}")


def remove(chosen: Namespace) -> None:
    found = [tl.open_dataset(name) for name in dict.fromkeys(chosen.names)]
    sizes = {dataset.name: room.taken_by(dataset.path) for dataset in found}
    what = ", ".join(f"{name} ({room.in_words(size)})" for name, size in sizes.items())
    if not agreed(f"Take away {what}?", yes=chosen.yes):
        print("Nothing was taken away.")
        return
    for dataset in found:
        dataset.remove()
    if chosen.json:
        print_json([{"name": name, "bytes": size} for name, size in sizes.items()])
    else:
        print(f"Taken away: {what}.")


def prune(chosen: Namespace) -> None:
    how = {"days": chosen.older_than, "unknown": chosen.unknown}
    kept = {dataset.path: (dataset, upkeep.kept_because(dataset, **how)) for dataset in _named(chosen.names)}
    due = [dataset for dataset, why in kept.values() if not why]
    rows: list[dict[str, Any]] = [
        {"name": d.name, "freed": 0, "version": d.version, "why": why} for d, why in kept.values() if why
    ]
    if due:
        names = ", ".join(dataset.name for dataset in due)
        if not agreed(
            f"Drop the raw journals of {names}? They cannot be decoded again afterwards.", yes=chosen.yes
        ):
            print("Nothing was dropped.")
            return
    failed: TapelabError | None = None
    for dataset in due:
        try:
            with doing(f"{dataset.name}: every file is checked …"):
                new, freed = upkeep.prune(dataset, **how)
        except UsageError as error:  # it is to stay
            rows.append(_pruned(dataset, 0, error.message))
        except TapelabError as error:
            failed = failed or error
            rows.append(_pruned(dataset, 0, error.message))
        else:
            rows.append(_pruned(new, freed))
    if chosen.json:
        print_json(rows)
    elif rows:
        shown = [
            row | {"freed": room.in_words(row["freed"]), "stays because": row["why"] or None} for row in rows
        ]
        print_table(shown, ("name", "freed", "version", "stays because"))
    else:
        print("No datasets.")
    if failed is not None:
        raise failed


def _pruned(dataset: tl.Dataset, freed: int, why: str = "") -> dict[str, Any]:
    return {"name": dataset.name, "freed": freed, "version": dataset.version, "why": why}


def described(dataset: tl.Dataset) -> dict[str, Any]:
    """A dataset in a few plain values."""
    return {
        "name": dataset.name,
        "symbols": list(dataset.symbols),
        "start": dataset.start and dataset.start.isoformat(),
        "end": dataset.end and dataset.end.isoformat(),
        "quotes": sum(one.quotes for one in dataset.coverage.values()),
        "trades": sum(one.trades for one in dataset.coverage.values()),
        "bars": sum(one.bars for one in dataset.coverage.values()),
        "gaps": len(dataset.gaps),
        "complete": dataset.complete,
        "tags": list(dataset.tags),
        "simulated": bool(dataset.provenance.get("simulated")),
        "recording": dataset.growing,
        "version": dataset.version,
        "bytes": room.taken_by(dataset.path),
    }


def _whole(dataset: tl.Dataset) -> dict[str, Any]:
    return {
        "path": str(dataset.path),
        "clock": dataset.clock,
        "coverage": {symbol: asdict(held) for symbol, held in dataset.coverage.items()},
        "gaps": [gap._asdict() for gap in dataset.gaps],
        "marks": [
            {"label": m.label, "start": m.start, "end": m.end, "symbol": m.symbol, "fitted_on": m.fitted_on}
            for m in dataset.marks
        ],
        "versions": [version._asdict() for version in dataset.versions],
        "counts": dataset.counts,
        "provenance": dataset.provenance,
    }


def _row(dataset: tl.Dataset) -> dict[str, Any]:
    """A dataset as a line of a table."""
    known = described(dataset)
    more = len(known["symbols"]) - NAMED
    healed = ", healed" if dataset.complete else ""
    state = ["SIMULATED"] * known["simulated"] + ["recording"] * known["recording"]
    return {
        "name": known["name"],
        "symbols": ", ".join(known["symbols"][:NAMED]) + (f" and {more} more" if more > 0 else ""),
        "from (UTC)": (known["start"] or "–")[:19].replace("T", " "),
        "to (UTC)": (known["end"] or "–")[:19].replace("T", " "),
        "quotes": f"{known['quotes']:,}",
        "trades": f"{known['trades']:,}",
        "gaps": f"{known['gaps']}{healed}" if known["gaps"] else "none",
        "on disk": room.in_words(known["bytes"]),
        "version": known["version"],
        "tags": known["tags"],
        "origin": ", ".join(state),
    }


def _part(rows: list[dict[str, Any]], title: str) -> None:
    if rows:
        more = f", the first {LISTED} of {len(rows):,}" if len(rows) > LISTED else ""
        print_table(rows[:LISTED], tuple(rows[0]), f"{title}{more}")


def _done(chosen: Namespace, dataset: tl.Dataset) -> None:
    if chosen.json:
        print_json(described(dataset) | _whole(dataset))
    else:
        print(f"{dataset.name} is at version {dataset.version}: {dataset.versions[-1].change}.")


def _named(names: list[str]) -> Iterator[tl.Dataset]:
    """The datasets of these names; all that have ended, where none is named."""
    if names:
        yield from map(tl.open_dataset, dict.fromkeys(names))
    else:
        yield from (dataset for dataset in tl.list_datasets() if not dataset.growing)


def _time(instant: int) -> str | None:
    return clock.iso(instant)[:19].replace("T", " ") if instant else None


def _duration(length: int) -> str:
    seconds = length / clock.SECOND
    if seconds < 60:
        return f"{seconds:,.1f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 3600 else f"{seconds / 3600:,.1f} h"
