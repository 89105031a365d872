"""Timing that survives a noisy machine: ours and the peer's in turn, the median of the ratios."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio`: how many times the peer we are (higher is better)."""

    what: str
    ours: str
    peer: str
    ratio: float | None
    aim: str = ""


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def versus(
    what: str, ours: Callable[[], object], peer: Callable[[], object], name: str, *, aim: str = ""
) -> Row:
    """Both `ROUNDS` times, in turn; the first round warms up and does not count."""
    pairs = [(seconds(ours), seconds(peer)) for _ in range(ROUNDS + 1)][1:]
    mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(other / own for own, other in pairs)
    return Row(what, f"{mine:.3f} s", f"{theirs:.3f} s {name}", ratio, aim)


@contextmanager
def one_processor() -> Iterator[ProcessPoolExecutor]:
    """A process that has one processor, and knows it from its start."""
    mine = os.sched_getaffinity(0)
    os.environ["POLARS_MAX_THREADS"] = "1"
    os.sched_setaffinity(0, {min(mine)})
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as there:
            there.submit(os.getpid).result()
            os.sched_setaffinity(0, mine)
            yield there
    finally:
        os.sched_setaffinity(0, mine)
        del os.environ["POLARS_MAX_THREADS"]


def show(rows: list[Row]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "tapelab", "peer", "ratio", "aim", box=box.SIMPLE)
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ×"
        table.add_row(row.what, row.ours, row.peer, ratio, row.aim)
    Console(width=120).print(table)
