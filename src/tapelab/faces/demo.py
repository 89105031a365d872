"""`tapelab demo`: market data travels the whole way, with no account and no network.

exchange → REST, flat files and stream → store → strategy → result → report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tapelab as tl
from tapelab.errors import RecordingError, TapelabError, Unwritable
from tapelab.exchange import Exchange, serve
from tapelab.faces.panel import doing
from tapelab.market import clock
from tapelab.market.adjust import Adjustment

MINUTES = "us_stocks_sip/minute_aggs_v1"
QUIET = 2.0  # seconds without a new event after which an unpaced stream is over
LONGEST = 600.0  # seconds that the recording of one day may take


def run(*, flat_files: Path | None, out: Path, as_json: bool) -> None:
    """Show the main job on a simulated market, or on real files in the vendor's layout."""
    say = _silent if as_json else _say
    logging.getLogger("tapelab").setLevel(logging.WARNING)  # the demo tells each step itself
    begun = clock.monotonic()
    home = tl.Settings.load().home
    for folder in (out.parent, home):
        _make(folder)
    with serve(simulate=flat_files is None, flat_files=flat_files, speed=0) as exchange:
        say("exchange", f"{exchange.tape.identity}, streaming {exchange.day}: {exchange.rest_url}")
        with exchange.use(home=home):
            symbols = exchange.tape.symbols()
            history = _fetch_both_ways(exchange, symbols, say)
            dataset = _record(exchange, symbols, say)
            comparison = _test(dataset, say)
            comparison.to_html(out)
    taken = (clock.monotonic() - begun) / clock.SECOND
    say("report", f"{out}  ({taken:.0f} s in all)")
    if as_json:
        print(
            json.dumps(
                {"report": str(out), "dataset": dataset.name, "seconds": taken, **history}, default=str
            )
        )


def _make(folder: Path) -> None:
    """Said before the work, not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise Unwritable(
            f"{folder} cannot be written ({cause.strerror}).",
            remedy="Choose another place with --out, or for what is fetched with TAPELAB_HOME.",
        ) from cause


def _fetch_both_ways(exchange: Exchange, symbols: list[str], say: Any) -> dict[str, Any]:
    """The same minute bars by REST and by flat file; each route starts with an empty cache."""
    days = exchange.tape.days(MINUTES)
    first, last = days[0], days[-1]
    adjust: Adjustment = "none" if exchange.tape.splits() is None else "splits"
    say("plan", tl.plan_fetch(symbols, first, last, "1m", adjust=adjust).reason)
    with TemporaryDirectory() as elsewhere, exchange.use(home=Path(elsewhere)):
        by_rest = tl.fetch_data(symbols, first, last, "1m", "rest", adjust=adjust)
    by_file = tl.fetch_data(symbols, first, last, "1m", "flat_file", adjust=adjust)
    columns = [name for name in by_rest.columns if name != "vwap"]
    if not by_rest[columns].equals(by_file[columns]):
        raise TapelabError(
            "REST and flat files gave different bars.", remedy="This is a bug in tapelab; please report it."
        )
    say(
        "history",
        f"{len(by_rest):,} minute bars of {len(symbols)} symbols, {first} to {last}: REST ≡ flat files",
    )
    return {"bars": len(by_rest), "symbols": symbols, "first": first, "last": last}


def _record(exchange: Exchange, symbols: list[str], say: Any) -> tl.Dataset:
    recorder = tl.WebSocketDataRecorder(symbols)
    with recorder, doing("recording …") as now:
        _until_quiet(exchange, recorder, now)
    stats = recorder.stats
    path = recorder.save_dataset(f"demo-{exchange.day}-{clock.iso(clock.now())[11:19].replace(':', '')}")
    size = sum(file.stat().st_size for file in path.parent.rglob("*") if file.is_file())
    say("recording", f"{stats.events:,} events, {stats.gaps} gaps, {size / 1e6:.1f} MB: {path.parent}")
    return tl.open_dataset(path)


def _until_quiet(
    exchange: Exchange, recorder: tl.WebSocketDataRecorder, now_doing: Callable[[str], None]
) -> None:
    begun = changed = clock.monotonic()
    seen = -1
    while (now := clock.monotonic()) - changed < QUIET * clock.SECOND or not exchange.finished.is_set():
        if now - begun > LONGEST * clock.SECOND:
            raise RecordingError("The stream did not end in time.", remedy="Try again on a quieter machine.")
        clock.sleep(0.1)
        events = recorder.stats.events
        if events != seen:
            seen, changed = events, now
            now_doing(f"recording: {events:,} events")


def _test(dataset: tl.Dataset, say: Any) -> Any:
    """The shipped strategies on what was recorded, each on the symbols with the most quotes."""
    held = dataset.coverage
    first, *others = sorted(held, key=lambda symbol: held[symbol].quotes, reverse=True)
    entrants: list[tl.Strategy] = [
        tl.strategies.MovingAverageCross(symbol=first),
        tl.strategies.MarketMaker(symbol=first),
    ]
    if others:
        entrants.insert(1, tl.strategies.PairsTrading(first=first, second=others[0]))
    # A retail broker's tariff and a home connection: without them a result would flatter.
    fees, latency = tl.rules.PerShare(0.005), tl.rules.FixedLatency(ms=50)
    with doing(f"testing {len(entrants)} strategies on {dataset.name} …"):
        comparison = tl.compare(entrants, [dataset], fees=fees, latency=latency)
    for row in comparison.table.to_dict("records"):
        profit = f"{row['profit']:+,.2f} ({row['profit_bp']:+.1f} bp)"
        say("strategy", f"{row['strategy']:<18} {profit:>20}  {row['round_trips']} round trips")
    return comparison


def _say(stage: str, text: str) -> None:
    print(f"{stage:>10}  {text}", flush=True)


def _silent(stage: str, text: str) -> None:
    pass
