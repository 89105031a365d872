"""What each verb of the command line does: thin, around the public names."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from argparse import ArgumentTypeError, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tapelab as tl
from tapelab.errors import MissingExtra, ServeError, TapelabError, Unwritable, UsageError
from tapelab.faces.printing import print_json, print_table
from tapelab.market import clock
from tapelab.settings import current

ROWS_PRINTED = 40
_UNITS = {"s": 1, "m": 60, "h": 3600, "": 1}


def seconds(text: str) -> float:
    """`90s`, `10m`, `6h` as seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is not a duration; write 90s, 10m or 6h")
    return float(match[1]) * _UNITS[match[2]]


def demo(chosen: Namespace) -> None:
    from tapelab.faces.demo import run

    run(flat_files=chosen.flat_files, out=chosen.out, as_json=chosen.json)


def doctor(chosen: Namespace) -> None:
    from tapelab.faces.doctor import examine, show

    findings = examine(tl.Settings.load())
    if chosen.json:
        print_json([finding._asdict() for finding in findings])
    else:
        show(findings)


def plan(chosen: Namespace) -> None:
    planned = tl.plan_fetch(chosen.symbols, chosen.start, chosen.end, chosen.interval, **_how(chosen))
    if chosen.json:
        print_json(planned.as_dict())
    else:
        print(planned)


def fetch(chosen: Namespace) -> None:
    if chosen.out and chosen.out.suffix not in (".parquet", ".csv"):
        raise UsageError(
            f"{chosen.out} is neither .parquet nor .csv.", remedy="Name the file with one of those endings."
        )
    bars = tl.fetch_data(chosen.symbols, chosen.start, chosen.end, chosen.interval, **_how(chosen))
    facts = bars.attrs["tapelab"]
    if facts["simulated"]:
        print("SIMULATED: nobody ever traded at these prices.", file=sys.stderr)
    if chosen.out:
        _write(chosen.out, bars)
        if chosen.json:
            print_json({"path": str(chosen.out), "bars": len(bars), **facts})
        else:
            print(f"{len(bars):,} bars in {chosen.out}")
    elif chosen.json:
        bars["session"] = bars["session"].astype(str)
        print(bars.to_json(orient="records", date_format="iso", date_unit="ns"))
    else:
        print(bars.to_string(index=False, max_rows=ROWS_PRINTED))


def sync(chosen: Namespace) -> None:
    logging.getLogger("tapelab").setLevel(logging.WARNING)  # the report is printed below
    report = tl.sync_flat_files(chosen.product, chosen.start, chosen.end)
    if chosen.json:
        print_json(asdict(report) | {"notes": {str(day): notes for day, notes in report.notes.items()}})
    else:
        print(report)


def update(chosen: Namespace) -> None:
    from tapelab.faces.update import update as chores

    found = []
    for done in chores(current()):
        found.append(done)
        if not chosen.json:
            print(done, flush=True)
    if chosen.json:
        print_json([asdict(done) for done in found])
    elif not found:
        print("Nothing is here yet that needs care.")
    failed = [done.what for done in found if done.failed]
    if failed:
        raise TapelabError(
            f"{len(failed)} of {len(found)} chores failed: {', '.join(failed[:5])}.",
            remedy="What could be done is done; call it again when the cause is mended.",
        )


def _how(chosen: Namespace) -> dict[str, Any]:
    return {"method": chosen.method, "adjust": chosen.adjust, "hours": chosen.hours}


def _write(path: Path, frame: Any) -> None:
    beside = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            frame.to_parquet(beside, index=False)
        else:
            frame.to_csv(beside, index=False)
        beside.replace(path)
    except OSError as cause:
        raise Unwritable(
            f"{path} cannot be written ({cause.strerror}).", remedy="Choose another place."
        ) from cause


def record(chosen: Namespace) -> None:
    from tapelab.faces import recording

    print(recording.record(chosen, _on_signal()))


def heal(chosen: Namespace) -> None:
    healing = tl.heal(chosen.name)
    if chosen.json:
        reported = {"report": healing.report().as_dict()} if chosen.report else {}
        print_json(healing.as_dict() | reported)
        return
    print(healing)
    if chosen.report:
        print(healing.report())


def backtest(chosen: Namespace) -> None:
    from tapelab.faces.panel import doing
    from tapelab.lab.strategies import by_name

    kind = by_name(chosen.strategy)
    strategy = kind(**dict(_parameter(text) for text in chosen.parameters))
    with doing(f"{chosen.strategy} on {chosen.dataset} …"):
        result = tl.backtest(strategy, tl.open_dataset(chosen.dataset), cash=chosen.cash)
    if chosen.out:
        result.to_html(chosen.out)
    if chosen.json:
        print_json({"metrics": result.metrics, "assumptions": result.assumptions, "params": result.params})
        return
    _print_result(result)
    if chosen.out:
        print(f"Report: {chosen.out}")


def _print_result(result: tl.Result) -> None:
    """The numbers of the report, and what they take for granted by name."""
    from tapelab.picture import words

    print(result)
    currency = result.as_run().currency
    rows = [
        {
            "": metric.label,
            "value": words.written(result.metrics[metric.key], metric.unit, currency),
            "meaning": result.notes.get(metric.key) or metric.meaning,
        }
        for metrics in words.METRICS.values()
        for metric in metrics
    ]
    print_table(rows, ("", "value", "meaning"))
    for topic, name, _ in result.assumptions:
        print(f"{topic}: {name}")


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text!r} is not of the form name=value.", remedy="Write --set fast=10.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def serve(chosen: Namespace) -> None:
    from tapelab.exchange import serve as start

    ended = _on_signal()
    with start(
        simulate=chosen.simulate,
        dataset=chosen.dataset,
        flat_files=chosen.flat_files,
        day=chosen.day,
        speed=chosen.speed,
        seed=chosen.seed,
        wait_for=chosen.wait_for,
        plan=chosen.plan,
        faults=chosen.faults,
        follow=chosen.follow,
        host=chosen.host,
        rest_port=chosen.rest_port,
        ws_port=chosen.ws_port,
        s3_port=chosen.s3_port,
    ) as exchange:
        print(exchange.ready_line(), flush=True)
        ended.wait()


def quota(chosen: Namespace) -> None:
    from tapelab.budget import GIGABYTE, Budget

    settings = tl.Settings.load()
    left = Budget(settings).left()
    rows = [
        _quota_row("REST calls today", left.calls_today, left.rest_day, clock.iso(left.day_resets)),
        _quota_row("REST calls this minute", None, left.rest_minute, "as the minute passes"),
        _quota_row(
            "flat files this month, GB",
            round(left.bytes_this_month / GIGABYTE, 6),
            None if left.bytes_month is None else round(left.bytes_month / GIGABYTE, 6),
            clock.iso(left.month_resets),
        ),
    ]
    if chosen.json:
        print_json({"endpoint": settings.endpoint, "budgets": rows})
    else:
        print(f"Your own budgets for {settings.endpoint} (the vendor knows nothing of them):")
        print_table(rows, ("budget", "used", "left", "resets"))


def _quota_row(budget: str, used: float | None, left: float | None, resets: str) -> dict[str, Any]:
    return {"budget": budget, "used": used, "left": "no limit" if left is None else left, "resets": resets}


def ui(chosen: Namespace) -> None:
    from importlib.util import find_spec

    if find_spec("streamlit") is None:
        raise MissingExtra("The web page needs Streamlit.", remedy="Install it: pip install 'tapelab[ui]'.")
    page = Path(__file__).parent / "app" / "main.py"
    options = {
        "server.address": "127.0.0.1",
        "server.port": chosen.port,
        "server.headless": "true",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.light.primaryColor": "#2f7de1",
        "theme.dark.primaryColor": "#5b9df0",
        # Otherwise every refresh of a live panel does a full garbage collection.
        "runner.postScriptGC": "false",
    }
    if not 0 < chosen.port < 65_536:
        raise UsageError(f"There is no port {chosen.port}.", remedy="1 to 65535.")
    try:
        socket.create_server(("127.0.0.1", chosen.port)).close()
    except OSError as cause:
        why = "is in use" if cause.errno == errno.EADDRINUSE else f"cannot be opened ({cause.strerror})"
        raise ServeError(f"Port {chosen.port} {why}.", remedy="Choose another with --port.") from cause
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    print(f"http://127.0.0.1:{chosen.port}", flush=True)
    # The server takes this process's place, so that signals reach it.
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(page), *arguments])


def _on_signal() -> threading.Event:
    """An event that SIGINT or SIGTERM sets, so that what runs can end cleanly."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    return ended
