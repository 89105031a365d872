"""tapelab: source → store → strategy → result → picture, for Massive.com market data.

The names below are the whole public interface; each room loads when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tapelab.errors import TapelabError as TapelabError
    from tapelab.exchange import serve as serve
    from tapelab.history import FetchPlan as FetchPlan
    from tapelab.history import download_flat_file as download_flat_file
    from tapelab.history import fetch_data as fetch_data
    from tapelab.history import fetch_quotes as fetch_quotes
    from tapelab.history import fetch_trades as fetch_trades
    from tapelab.history import list_symbols as list_symbols
    from tapelab.history import plan_fetch as plan_fetch
    from tapelab.history import sync_flat_files as sync_flat_files
    from tapelab.lab import Fill as Fill
    from tapelab.lab import Order as Order
    from tapelab.lab import Position as Position
    from tapelab.lab import Result as Result
    from tapelab.lab import Strategy as Strategy
    from tapelab.lab import backtest as backtest
    from tapelab.lab import compare as compare
    from tapelab.lab import paper_trade as paper_trade
    from tapelab.lab import rules as rules
    from tapelab.lab import strategies as strategies
    from tapelab.live import WebSocketDataRecorder as WebSocketDataRecorder
    from tapelab.live import get_connector as get_connector
    from tapelab.live import list_connectors as list_connectors
    from tapelab.live.heal import heal as heal
    from tapelab.market.events import Bar as Bar
    from tapelab.market.events import Gap as Gap
    from tapelab.market.events import Quote as Quote
    from tapelab.market.events import Trade as Trade
    from tapelab.settings import Settings as Settings
    from tapelab.settings import get_api_key as get_api_key
    from tapelab.settings import get_massive_s3_credentials as get_massive_s3_credentials
    from tapelab.store.datasets.dataset import Dataset as Dataset
    from tapelab.store.datasets.dataset import list_datasets as list_datasets
    from tapelab.store.datasets.dataset import open_dataset as open_dataset

_ROOMS = {
    "Bar": "market.events",
    "Dataset": "store.datasets.dataset",
    "FetchPlan": "history",
    "Fill": "lab",
    "Gap": "market.events",
    "Order": "lab",
    "Position": "lab",
    "Quote": "market.events",
    "Result": "lab",
    "Settings": "settings",
    "Strategy": "lab",
    "TapelabError": "errors",
    "Trade": "market.events",
    "WebSocketDataRecorder": "live",
    "backtest": "lab",
    "compare": "lab",
    "download_flat_file": "history",
    "fetch_data": "history",
    "fetch_quotes": "history",
    "fetch_trades": "history",
    "get_api_key": "settings",
    "get_connector": "live",
    "get_massive_s3_credentials": "settings",
    "heal": "live.heal",
    "list_connectors": "live",
    "list_datasets": "store.datasets.dataset",
    "list_symbols": "history",
    "open_dataset": "store.datasets.dataset",
    "paper_trade": "lab",
    "plan_fetch": "history",
    "rules": "lab",
    "serve": "exchange",
    "strategies": "lab",
    "sync_flat_files": "history",
}

__all__ = sorted(_ROOMS)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"tapelab has no {name!r}; its names are {', '.join(__all__)}")
    found = getattr(import_module(f"tapelab.{_ROOMS[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
