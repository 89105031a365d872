"""Limit-up limit-down bands, computed from trades by the rules of the plan for a Tier 2 stock above $3.

The reference is the mean of the eligible prints of the last five minutes, first that of the opening print. It
is replaced when it has moved by 1 % or more, not sooner than after 30 seconds; the bands lie 10 % around it,
to the cent, in regular hours.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.exchange.tape.beside import Row
from tapelab.market.clock import MINUTE, SECOND
from tapelab.market.conditions import rules_of
from tapelab.market.sessions import Session

WIDTH = 0.10
LOOKBACK = 5 * MINUTE
MOVED = 0.01
HOLDS = 30 * SECOND


def bands(trades: pa.Table, session: Session) -> list[Row]:
    """Every change of a band in one session, as rows of the vendor's stream, in order of time.

    `trades` are those of the session, of any number of symbols, each in order of time.
    """
    stamps = trades.column("ts_event").to_numpy()
    counts = (
        rules_of(trades, waive_extended_hours=False).open_close
        & (stamps >= session.open)
        & (stamps < session.close)
    )
    counted = trades.filter(pa.array(counts))
    rows = [
        row
        for symbol in sorted(pc.unique(counted.column("symbol")).to_pylist())
        for row in _of_symbol(symbol, counted.filter(pc.equal(counted.column("symbol"), symbol)))
    ]
    return sorted(rows, key=lambda row: int(str(row["t"])))


def _of_symbol(symbol: str, trades: pa.Table) -> list[Row]:
    at = trades.column("ts_event").to_numpy()
    price = trades.column("price").to_numpy()
    tape = trades.column("tape").to_pylist()
    mean = _means(at, price)
    rows: list[Row] = []
    n, reference = 0, float(price[0])
    while True:
        low, high = (round(reference * (1 + side * WIDTH), 2) for side in (-1, 1))
        rows.append({"T": symbol, "h": high, "l": low, "z": tape[n], "t": int(at[n]), "q": len(rows) + 1})
        moved = np.abs(mean / reference - 1) >= MOVED
        later = np.flatnonzero(moved & (at >= at[n] + HOLDS))
        if not len(later):
            return rows
        n = int(later[0])
        reference = float(mean[n])


def _means(at: npt.NDArray[np.int64], price: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """At each print, the mean of the prints of the last five minutes."""
    total = np.concatenate([[0.0], np.cumsum(price)])
    first = np.searchsorted(at, at - LOOKBACK, side="right")
    last = np.arange(1, len(at) + 1)
    means: npt.NDArray[np.float64] = (total[last] - total[first]) / (last - first)
    return means
