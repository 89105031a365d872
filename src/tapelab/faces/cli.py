"""The command line: verbs in the order of the work, from source to picture.

Exit status: 0 done, 1 failed with a message, 2 wrong usage. A traceback is a bug.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from tapelab import __version__
from tapelab.errors import SettingError, TapelabError, UsageError
from tapelab.faces import datasets, verbs

DONE, FAILED, WRONG_USAGE = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Every verb with its options."""
    top = argparse.ArgumentParser(
        prog="tapelab",
        description="Market data from Massive: source → store → strategy → result → picture.",
        epilog="No account yet? `tapelab demo` shows everything on a stand-in exchange.",
    )
    top.add_argument("--version", action="version", version=f"tapelab {__version__}")
    commands = top.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: object, summary: str, *, json: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=summary, description=summary)
        made.set_defaults(run=run)
        if json:
            made.add_argument("--json", action="store_true", help="machine-readable output")
        return made

    demo = verb("demo", verbs.demo, "The main job with no account and no network, on a stand-in exchange.")
    demo.add_argument("--flat-files", type=Path, metavar="FOLDER", help="real files in the vendor's layout")
    demo.add_argument("--out", type=Path, default=Path("demo/report.html"), help="where the report goes")

    verb("doctor", verbs.doctor, "What is configured, what works, what is missing, with the remedy.")

    for name, run, summary in (
        ("plan", verbs.plan, "What fetch would do and cost, without doing it."),
        ("fetch", verbs.fetch, "Bars by REST or flat files, from the cache first."),
    ):
        bars = verb(name, run, summary)
        bars.add_argument("symbols", nargs="+", metavar="SYMBOL")
        bars.add_argument("--start", required=True, help="2026-10-01, or an instant such as 2026-10-01T09:30")
        bars.add_argument("--end", required=True, help="likewise; a date is included, an instant is not")
        bars.add_argument("--interval", default="1d", help="1s 1m 5m 15m 30m 1h 4h 1d 1w 1mo")
        bars.add_argument("--method", default="auto", help="auto rest flat_file cheapest")
        bars.add_argument("--adjust", default="splits", help="none splits all")
        bars.add_argument("--hours", default="all", help="all regular")
        if name == "fetch":
            bars.add_argument("--out", type=Path, metavar="FILE", help="a .parquet or .csv file")

    sync = verb(
        "sync", verbs.sync, "The vendor's daily files of a range into the lake; goes on where it ended."
    )
    sync.add_argument("product", help="us_stocks_sip/minute_aggs_v1 and the like")
    sync.add_argument("--start", required=True)
    sync.add_argument("--end", required=True)

    verb("update", verbs.update, "Every day's chores: new files, healing, what was provisional or killed.")

    record = verb("record", verbs.record, "Record the live stream: every frame, safe against a kill.")
    record.add_argument("symbols", nargs="+", metavar="SYMBOL")
    record.add_argument("--duration", type=verbs.seconds, help="90s, 10m or 6h; without it until Ctrl-C")
    record.add_argument("--name", help="name of the dataset")
    record.add_argument("--tag", action="append", default=[], help="may be given several times")
    record.add_argument("--channels", default="quotes,trades", help="quotes, trades, bars")
    record.add_argument(
        "--schedule", action="store_true", help="every session by the exchange's calendar, one dataset each"
    )
    record.add_argument("--hours", choices=("all", "regular"), help="with --schedule; all hours unless said")
    record.add_argument("--margin", type=verbs.seconds, metavar="5m", help="so long before and after them")
    record.add_argument("--health-port", type=int, metavar="N", help="health as JSON on 127.0.0.1")
    record.add_argument(
        "--webhook-file", type=Path, metavar="FILE", help="holds the address that is told what goes wrong"
    )
    record.add_argument("--min-free", type=float, default=5.0, metavar="GB", help="less disk is worth a word")

    datasets.add(
        verb(
            "datasets",
            datasets.listed,
            "What was recorded: list, show, verify, tag, mark, merge, export, rm, prune.",
        )
    )

    heal = verb("heal", verbs.heal, "Fill a recording's gaps from REST or the day's flat file.")
    heal.add_argument("name")
    heal.add_argument("--report", action="store_true", help="what is there beside all that history has")

    backtest = verb("backtest", verbs.backtest, "Test a strategy on a dataset.")
    backtest.add_argument("strategy", help="a shipped name or path/to/file.py:Class")
    backtest.add_argument("--dataset", required=True, metavar="NAME")
    backtest.add_argument("--set", action="append", default=[], metavar="K=V", dest="parameters")
    backtest.add_argument("--cash", type=float, default=100_000)
    backtest.add_argument("--out", type=Path, metavar="FILE", help="an HTML report")

    serve = verb("serve", verbs.serve, "The stand-in exchange: Massive's REST, stream and S3.", json=False)
    tape = serve.add_mutually_exclusive_group(required=True)
    tape.add_argument("--dataset", metavar="NAME")
    tape.add_argument("--flat-files", type=Path, metavar="FOLDER")
    tape.add_argument("--simulate", action="store_true")
    serve.add_argument("--follow", action="store_true", help="serve a recording that still grows")
    serve.add_argument("--seed", type=int, default=7, help="of the simulated market and of the faults")
    serve.add_argument("--speed", type=float, default=1.0, help="1 real time, N times, 0 unpaced")
    serve.add_argument("--day", help="the day that is streamed; the latest that has ticks")
    serve.add_argument("--wait-for", type=int, default=1, metavar="N", help="clients that start the clock")
    serve.add_argument(
        "--plan", help="what the vendor's plan of that name allows: basic starter developer advanced"
    )
    serve.add_argument(
        "--faults", type=Path, metavar="FILE", help="a script of what goes wrong, JSON or TOML"
    )
    serve.add_argument("--host", default="127.0.0.1")
    for protocol in ("rest", "ws", "s3"):
        serve.add_argument(f"--{protocol}-port", type=int, default=0, metavar="N", help="0 picks a free one")

    verb("quota", verbs.quota, "What was used of each budget, and when it resets.")

    ui = verb("ui", verbs.ui, "The web page.", json=False)
    ui.add_argument("--port", type=int, default=8501)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("tapelab").setLevel(logging.INFO)
    warnings.showwarning = lambda message, *_, **__: print(f"Note: {message}", file=sys.stderr)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return WRONG_USAGE
    chosen = parser().parse_args(arguments)
    try:
        chosen.run(chosen)
        sys.stdout.flush()
    except (UsageError, SettingError) as error:
        print(f"tapelab: {error}", file=sys.stderr)
        return WRONG_USAGE
    except TapelabError as error:
        print(f"tapelab: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("tapelab: interrupted.", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # The reader of a pipe has left, as `head` does; there is no one to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return DONE
