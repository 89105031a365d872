"""The cases. All data is simulated or prepared here, so that they run anywhere."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.measure import ROUNDS, Row, versus


def importing() -> list[Row]:
    """CPU seconds of `import tapelab` beyond those of the interpreter."""
    with_us = statistics.median(_cpu("import tapelab") for _ in range(ROUNDS))
    bare = statistics.median(_cpu("pass") for _ in range(ROUNDS))
    peer = statistics.median(_cpu("import pandas") for _ in range(ROUNDS))
    ratio = (peer - bare) / max(with_us - bare, 1e-3)
    return [Row("import", f"{with_us - bare:.3f} s CPU", f"{peer - bare:.3f} s pandas", ratio, "0.15 s")]


def _cpu(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def flat_files() -> list[Row]:
    """A day's file to a table with the right types."""
    import pandas as pd

    from tapelab.exchange.tape import QUOTES, TRADES, simulated
    from tapelab.massive import wire

    tape = simulated(7)
    rows = []
    with TemporaryDirectory() as folder:
        for product in (TRADES, QUOTES):
            day = tape.days(product)[-1]
            path = Path(folder) / f"{day}-{product.rpartition('/')[2]}.csv.gz"
            path.write_bytes(bytes(tape.raw(product, day)))
            rows.append(
                versus(
                    f"{product.rpartition('/')[2]}, one day to a table",
                    lambda path=path, product=product, day=day: wire.read_flat_file(path, product, day=day),
                    lambda path=path: pd.read_csv(path),
                    "pandas.read_csv",
                )
            )
    return rows


def backtest() -> list[Row]:
    """A strategy that counts quotes, beside a bare loop over the same table."""
    import tapelab as tl
    from tapelab.exchange.tape import QUOTES, simulated

    class Count(tl.Strategy):
        seen = 0

        def on_quote(self, quote: tl.Quote) -> None:
            self.seen += 1

    tape = simulated(7)
    quotes = tape.table(QUOTES, tape.days(QUOTES)[-1])
    columns = ("symbol", "ts_event", "bid", "ask", "bid_size", "ask_size")

    def loop() -> None:
        for row in zip(*(quotes.column(name).to_pylist() for name in columns), strict=True):
            _symbol, _bid = row[0], row[2]

    what = f"backtest on {len(quotes):,} quotes"
    return [versus(what, lambda: tl.backtest(Count(), quotes), loop, "a bare loop")]
