"""`make bench`: every case, one table. `python -m bench import stream` runs some of them."""

from __future__ import annotations

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


def main(chosen: list[str]) -> None:
    unknown = sorted(set(chosen) - set(CASES))
    if unknown:
        raise SystemExit(f"There is no case {unknown[0]!r}; known: {', '.join(CASES)}")
    show([row for name, case in CASES.items() if not chosen or name in chosen for row in case()])


if __name__ == "__main__":
    main(sys.argv[1:])
