"""Test strategies on what was recorded or fetched: events in, a result out."""

from tapelab.lab import rules, strategies
from tapelab.lab.backtest import backtest
from tapelab.lab.broker import Fill, Order, Position
from tapelab.lab.compare import Comparison, compare
from tapelab.lab.paper import PaperSession, paper_trade
from tapelab.lab.result import Result
from tapelab.lab.strategy import Strategy

__all__ = [
    "Comparison",
    "Fill",
    "Order",
    "PaperSession",
    "Position",
    "Result",
    "Strategy",
    "backtest",
    "compare",
    "paper_trade",
    "rules",
    "strategies",
]
