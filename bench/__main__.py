"""`make bench`: every case, one table. `python -m bench import stream` runs some of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from bench import cases, exchange, history, receiving, recording
from bench.measure import Row, show

CASES: dict[str, Callable[[], list[Row]]] = {
    "import": cases.importing,
    "files": cases.flat_files,
    "backtest": cases.backtest,
    "stream": receiving.stream,
    "latency": receiving.latency,
    "columns": recording.columns,
    "exchange": exchange.exchange,
    "history": history.history,
}

# Memory that went back to a virtual machine comes again at up to 17 µs a page, at random and to either side,
# which is more than what is measured: here, all allocators keep theirs (glibc's, Arrow's and polars').
KEEPING = {
    "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
    "MIMALLOC_PURGE_DELAY": "-1",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:-1,muzzy_decay_ms:-1",
}


def main(chosen: list[str]) -> None:
    unknown = sorted(set(chosen) - set(CASES))
    if unknown:
        raise SystemExit(f"There is no case {unknown[0]!r}; known: {', '.join(CASES)}")
    show([row for name, case in CASES.items() if not chosen or name in chosen for row in case()])


if __name__ == "__main__":
    if not KEEPING.keys() <= os.environ.keys():  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "bench", *sys.argv[1:]], {**os.environ, **KEEPING})
    main(sys.argv[1:])
