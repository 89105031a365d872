"""Rows of a dataset as they are asked for: bars of an interval, events at a pace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import pyarrow as pa

from tapelab.errors import NoData, UnknownName, UsageError
from tapelab.market import bars as market_bars
from tapelab.market import clock, tables
from tapelab.market.events import Bar, Event
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

Kind = Literal["trades", "quotes", "bars"]
Format = Literal["parquet", "csv", "flat_files"]

SOURCES: tuple[Kind, ...] = ("trades", "quotes", "bars")
FORMATS: tuple[Format, ...] = ("parquet", "csv", "flat_files")


def bars_of(
    table: Callable[[str], pa.Table],
    interval: Interval,
    market: Market,
    of: Kind | None = None,
    *,
    recorded: str = "1m",
) -> pa.Table:
    """Bars of the rows that `table(kind)` gives: of trades, else of quotes, else of bars, unless `of` says.

    `recorded`: how long the bars are that are there. Bars that are not made of them are refused.
    """
    if of is not None and of not in SOURCES:
        raise UnknownName.among("source of bars", of, SOURCES)
    for kind, build in (("trades", market_bars.from_trades), ("quotes", market_bars.from_quotes)):
        if of not in (None, kind):
            continue
        ticks = table(kind)
        if len(ticks) or of == kind:
            built = build(ticks, interval, market=market)
            return tables.with_facts(built, **tables.facts(ticks), built_from=kind, interval=interval.text)
    bars = table("bars")
    shortest = Interval.parse(recorded)
    if len(bars) and shortest.ns and interval.ns and interval.ns % shortest.ns:
        raise UsageError(
            f"There are no trades and no quotes, and {interval} bars cannot be made of {shortest} bars.",
            remedy=f"Ask for {shortest} bars, or for a multiple of them.",
        )
    built = market_bars.from_bars(bars, interval, market=market)
    return tables.with_facts(built, **tables.facts(bars), built_from="bars", interval=interval.text)


def spelled(interval: Interval) -> str:
    """An interval in the name of a file, as pandas writes it: `1min`, `10s`, `1mo`."""
    return interval.text if interval.text.endswith("mo") else interval.text.replace("m", "min")


def bar_length(provenance: Mapping[str, Any]) -> int:
    """How long the bars of a dataset are, ns."""
    length = Interval.parse(str(provenance.get("interval", "1m"))).ns
    if length is None:
        raise NoData("Bars of a month have no fixed length to replay.", remedy="Use shorter bars.")
    return length


def paced(
    found: Iterator[Event],
    speed: float,
    wait: Callable[[float], object] = clock.sleep,
    *,
    received: bool = False,
) -> Iterator[Event]:
    """Each event when it is due: by our clock where we received it, else by the exchange's.

    `received`: the events came to us; one among them that did not was filled in, and waits for nobody.
    """
    began: int | None = None
    start = 0
    for event in found:
        if received and not isinstance(event, Bar) and event.ts_recv is None:
            yield event
            continue
        at = _due(event)
        now = clock.monotonic()
        if began is None:
            began, start = at, now
        ahead = (at - began) / speed - (now - start)
        if ahead > clock.MILLISECOND:
            wait(ahead / clock.SECOND)
        yield event


def _due(event: Event) -> int:
    if isinstance(event, Bar):
        return event.ends
    return event.ts_event if event.ts_recv is None else event.ts_recv
