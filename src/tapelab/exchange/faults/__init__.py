"""Faults by script: what goes wrong at the exchange, where and when; the same every time for a seed.

A script is a TOML or JSON file, or a mapping, with lists of rules for three doors. Each rule names a fault,
the settings of that fault, and where and when it strikes:

    seed = 3

    [[rest]]                      # the first request is told to slow down, and to wait a second
    fault = "status"
    code = 429
    retry_after = 1
    times = 1

    [[rest]]                      # every second page but the first breaks off in the middle of its JSON
    fault = "broken_page"
    path = "/v2/aggs/*cursor=*"
    every = 2

    [[s3]]                        # each file of trades breaks off on its first download
    fault = "cut"
    path = "*/trades_v1/*.csv.gz"
    times = 1
    each = true

    [[stream]]                    # the line drops before the 1000th quote, and ten times more
    fault = "cut"
    topic = "Q.*"
    first = 1000
    every = 1000
    times = 11

    [[stream]]                    # one trade in a hundred comes twice
    fault = "duplicate"
    topic = "T.*"
    chance = 0.01

Faults of `rest` and `s3`: `status`, `error_in_200`, `cut`, `stall`, `trickle`; of `rest` also `broken_page`,
of `s3` also `truncated` and `replaced` (`http.py`). Faults of `stream`: `cut`, `stall`, `duplicate`,
`reorder`, `garbage`, `unknown`, `status`, `slow_client` (`stream.py`). Several rules may strike at
once; what makes the answer comes before what happens to it on the way.
"""

from tapelab.exchange.faults.rules import KINDS, NO_FAULTS, Events, Faults, Requests, When

__all__ = ["KINDS", "NO_FAULTS", "Events", "Faults", "Requests", "When"]
