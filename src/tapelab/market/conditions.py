"""Sale conditions of US stocks: which print may move which part of a bar (consolidated rules).

Source: the vendor's `/v3/reference/conditions` (ids 1 to 10) and two public tables that agree with it.
A print with several conditions is allowed what all of them allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

EXTENDED_HOURS = 12  # "form T": every print outside regular hours carries it

# What a condition forbids. A condition that is not named here forbids nothing.
_NO_OPEN_CLOSE = frozenset({2, 5, 7, 10, 12, 13, 15, 16, 20, 21, 22, 29, 33, 37, 52, 53})
_NO_HIGH_LOW = frozenset({2, 7, 12, 13, 15, 16, 20, 21, 37, 52, 53})
_NO_VOLUME = frozenset({15, 16, 38})  # official and corrected prices repeat volume that was printed before

# Corrections in which the print no longer stands: erroneous, cancelled, and the records that say so.
_VOID = (7, 8, 10, 11)

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """For each print: may it set open and close, high and low, and does its volume count?"""

    open_close: Mask
    high_low: Mask
    volume: Mask


def rules_of(trades: pa.Table, *, waive_extended_hours: bool) -> Rules:
    """What each print of a table of trades may move.

    Taken literally, condition 12 would leave the hours before the open and after the close without
    prices; the vendor's minute bars have them, so they waive it. Its day bars do not.
    """
    waived = {EXTENDED_HOURS} if waive_extended_hours else frozenset[int]()
    correction = pc.fill_null(trades.column("correction").cast(pa.int64()), 0)
    stands = ~np.isin(correction.to_numpy(), _VOID)
    column = trades.column("conditions").combine_chunks()
    values = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(column).to_numpy()

    def allowed(forbidding: frozenset[int]) -> Mask:
        mask = stands.copy()
        mask[rows[np.isin(values, list(forbidding))]] = False
        return mask

    return Rules(
        open_close=allowed(_NO_OPEN_CLOSE - waived),
        high_low=allowed(_NO_HIGH_LOW - waived),
        volume=allowed(_NO_VOLUME),
    )
