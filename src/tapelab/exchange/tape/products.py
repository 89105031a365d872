"""The products that a tape may hold, and when the vendor publishes a day of them."""

from __future__ import annotations

from datetime import time

DAY_BARS = "us_stocks_sip/day_aggs_v1"
MINUTE_BARS = "us_stocks_sip/minute_aggs_v1"
TRADES = "us_stocks_sip/trades_v1"
QUOTES = "us_stocks_sip/quotes_v1"
PRODUCTS = (DAY_BARS, MINUTE_BARS, QUOTES, TRADES)

PUBLISHED = time(11)  # New York, on the day after: when the vendor's files are there
