"""Sale conditions of US stocks: what each is called, and which print may move which part of a bar.

Source: the vendor's `/v3/reference/conditions` (ids 1 to 10) and two public tables that agree with it; the
letters of the two tapes (CTA, UTP) are those of their specifications. A print with several conditions is
allowed what all of them allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

EXTENDED_HOURS = 12  # "form T": every print outside regular hours carries it

# Corrections in which the print no longer stands: erroneous, cancelled, and the records that say so.
_VOID = (7, 8, 10, 11)

Mask = npt.NDArray[np.bool_]


class Moves(NamedTuple):
    """Which parts of a bar a print may move."""

    high_low: bool
    open_close: bool
    volume: bool


ALL = Moves(True, True, True)
LATE = Moves(True, False, True)  # a price of the day, but not of this moment
VOLUME = Moves(False, False, True)
NONE = Moves(False, False, False)
PRICES = Moves(True, True, False)  # official prices repeat volume that was printed before


@dataclass(frozen=True)
class Condition:
    """One sale condition by the vendor's id.

    `consolidated`: what such a print may move in a bar of all exchanges, `market_center` in one of its own
    exchange. `cta` and `utp` are its letters on the two tapes, as far as they are known.
    """

    id: int
    name: str
    consolidated: Moves
    market_center: Moves
    cta: str | None = None
    utp: str | None = None
    kind: str = "sale_condition"
    legacy: bool = False


# A condition that is not named here forbids nothing.
CONDITIONS: tuple[Condition, ...] = (
    Condition(1, "Acquisition", ALL, ALL, None, "A"),
    Condition(2, "Average Price Trade", VOLUME, VOLUME, "B", "W"),
    Condition(3, "Automatic Execution", ALL, ALL, "E", None),
    Condition(4, "Bunched Trade", ALL, ALL, None, "B"),
    Condition(5, "Bunched Sold Trade", LATE, LATE, None, "G"),
    Condition(6, "CAP Election", ALL, ALL, "I", None, legacy=True),
    Condition(7, "Cash Sale", VOLUME, VOLUME, "C", "C"),
    Condition(8, "Closing Prints", ALL, ALL, None, "6"),
    Condition(9, "Cross Trade", ALL, ALL, "X", "X"),
    Condition(10, "Derivatively Priced", LATE, LATE, "4", "4"),
    Condition(11, "Distribution", ALL, ALL, None, "D"),
    Condition(EXTENDED_HOURS, "Form T", VOLUME, VOLUME, "T", "T"),
    Condition(13, "Extended Trading Hours (Sold Out of Sequence)", VOLUME, VOLUME, "U", "U"),
    Condition(14, "Intermarket Sweep", ALL, ALL, "F", "F"),
    Condition(15, "Market Center Official Close", NONE, PRICES, "M", "M"),
    Condition(16, "Market Center Official Open", NONE, Moves(True, False, False), "Q", "Q"),
    Condition(20, "Next Day", VOLUME, VOLUME, "N", "N"),
    Condition(21, "Price Variation Trade", VOLUME, VOLUME, "H", "H"),
    Condition(22, "Prior Reference Price", LATE, LATE, "P", "P"),
    Condition(23, "Rule 155 Trade (AMEX)", ALL, ALL, "K", "K"),
    Condition(25, "Opening Prints", ALL, ALL, None, "O"),
    Condition(27, "Stopped Stock (Regular Trade)", ALL, ALL, None, "1"),
    Condition(28, "Re-Opening Prints", ALL, ALL, None, "5"),
    Condition(29, "Seller", LATE, LATE, "R", "R"),
    Condition(30, "Sold Last", ALL, ALL, "L", "L"),
    Condition(33, "Sold (Out of Sequence)", LATE, LATE, "Z", "Z"),
    Condition(34, "Split Trade", ALL, ALL, None, "S"),
    Condition(36, "Yellow Flag Regular Trade", ALL, ALL, None, "Y"),
    Condition(37, "Odd Lot Trade", VOLUME, VOLUME, "I", "I"),
    Condition(38, "Corrected Consolidated Close (per listing market)", PRICES, NONE, "9", "9"),
    Condition(41, "Trade Thru Exempt", ALL, ALL, kind="trade_thru_exempt"),
    Condition(52, "Contingent Trade", VOLUME, VOLUME, "V", "V"),
    Condition(53, "Qualified Contingent Trade", VOLUME, VOLUME, "7", "7"),
)

_NO_OPEN_CLOSE = frozenset(c.id for c in CONDITIONS if not c.consolidated.open_close)
_NO_HIGH_LOW = frozenset(c.id for c in CONDITIONS if not c.consolidated.high_low)
_NO_VOLUME = frozenset(c.id for c in CONDITIONS if not c.consolidated.volume)


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
