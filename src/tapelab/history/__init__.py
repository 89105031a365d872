"""History: a pure plan, and what obeys it."""

from tapelab.history.fetch import download_flat_file, fetch_data, plan_fetch
from tapelab.history.fetchplan import FetchPlan
from tapelab.history.symbols import list_symbols
from tapelab.history.sync import sync_flat_files
from tapelab.history.ticks import dataset_of_ticks, fetch_quotes, fetch_trades

__all__ = [
    "FetchPlan",
    "dataset_of_ticks",
    "download_flat_file",
    "fetch_data",
    "fetch_quotes",
    "fetch_trades",
    "list_symbols",
    "plan_fetch",
    "sync_flat_files",
]
