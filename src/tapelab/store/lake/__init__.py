"""The lake: raw bars of history, from either route, with where they came from and whether they are final.

    lake/us_stocks_sip/minute_aggs_v1/2013/10/2013-10-09.parquet   a day's flat file: every symbol
    lake/us_stocks_sip/minute_aggs_v1/2013/2013-10.parquet         a month of them, sorted by symbol; derived
    lake/us_stocks_sip/minute_aggs_v1/2013/manifest.json           the year's files: ETag, size, rows, when
    lake/rest/1m/AAPL/2013-10.parquet                              what REST gave: one symbol, one month
    lake/rest/1d/AAPL/2013.parquet                                 the same for day bars: one year
    lake/reference/splits/AAPL.json                                splits, with the time they were asked for

Nothing here is adjusted. Each Parquet file opens with pandas, polars or duckdb, and says in its own metadata
(key `tapelab`) what it covers, so rows and coverage cannot part. Day files are the truth: a month file that
is older than one of its days is not used for that day, and the manifest is only a quicker way to the same
facts. Where both routes hold a day, the flat file wins.
"""

from __future__ import annotations

from tapelab.store.lake.lake import Coverage, DayFile, Dividends, Held, Lake, Splits

__all__ = ["Coverage", "DayFile", "Dividends", "Held", "Lake", "Splits"]
