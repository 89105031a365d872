"""What the exchange has to say: products × days, from a folder of flat files, a dataset or a simulation.

A tape is read only. Times are int64 ns UTC; days are the exchange's dates. Nothing here knows how it is said.
"""

from tapelab.exchange.tape.base import (
    TAPE_HEADER,
    VWAP_DECIMALS,
    Base,
    Sight,
    Tape,
    Ticks,
    rounded,
    with_vwap,
)
from tapelab.exchange.tape.beside import Name, Row
from tapelab.exchange.tape.folder import FlatFileTape
from tapelab.exchange.tape.products import DAY_BARS, MINUTE_BARS, PRODUCTS, PUBLISHED, QUOTES, TRADES
from tapelab.exchange.tape.recorded import DatasetTape
from tapelab.exchange.tape.simulated import SimulatedTape, simulated
from tapelab.exchange.tape.sorting import SortedDay

__all__ = [
    "DAY_BARS",
    "MINUTE_BARS",
    "PRODUCTS",
    "PUBLISHED",
    "QUOTES",
    "TAPE_HEADER",
    "TRADES",
    "VWAP_DECIMALS",
    "Base",
    "DatasetTape",
    "FlatFileTape",
    "Name",
    "Row",
    "Sight",
    "SimulatedTape",
    "SortedDay",
    "Tape",
    "Ticks",
    "rounded",
    "simulated",
    "with_vwap",
]
