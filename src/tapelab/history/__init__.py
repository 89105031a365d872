"""History: a pure plan, and what obeys it."""

from tapelab.history.fetch import download_flat_file, fetch_data, plan_fetch
from tapelab.history.plan import FetchPlan

__all__ = ["FetchPlan", "download_flat_file", "fetch_data", "plan_fetch"]
