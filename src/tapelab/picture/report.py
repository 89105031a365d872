"""The report: one HTML file that holds everything it shows and asks nothing of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tapelab.errors import NoData
from tapelab.market import clock
from tapelab.picture import charts, words
from tapelab.picture.run import Run

if TYPE_CHECKING:
    import jinja2
    import plotly.graph_objects as go

TRIPS_SHOWN = 200  # round trips of one run in the table; the result holds them all
GAPS_SHOWN = 100
SPARK_POINTS = 120

_HERE = Path(__file__).parent


def html(runs: Sequence[Run], *, title: str | None = None) -> str:
    """The report of one or more runs as one HTML page.

    Runs on the same dataset are shown over each other; several datasets follow one another below a table of
    all. Raises `NoData` when there is nothing to show.
    """
    if not runs:
        raise NoData("There is no result to report on.", remedy="Run a strategy first.")
    from plotly.offline import get_plotlyjs

    groups = _grouped(runs)
    names = list(dict.fromkeys(run.name for run in runs))
    places = [group.name for group in groups]
    shared = [a for a in runs[0].assumptions if all(a in run.assumptions for run in runs)]
    return _template().render(
        title=title or f"{words.listed(names)} on {words.listed(places)}",
        runs=list(runs),
        groups=groups,
        names=names,
        metrics=words.METRICS,
        shared=shared,
        simulated=[group.name for group in groups if group.simulated],
        made=words.moment(clock.now(), "UTC", date=True),
        version=runs[0].recipe.get("tapelab", ""),
        css=_markup((_HERE / "report.css").read_text("utf-8")),
        script=_markup((_HERE / "report.js").read_text("utf-8")),
        plotly=_markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


@dataclass(frozen=True)
class _Group:
    """The runs on one dataset."""

    name: str
    runs: list[Run]

    @property
    def simulated(self) -> bool:
        return any(run.simulated for run in self.runs)

    @property
    def labels(self) -> list[str]:
        """What each run is called: with what differs, where a strategy runs more than once."""
        names = [run.name for run in self.runs]
        return [
            run.name if names.count(run.name) == 1 else f"{run.name} ({_difference(run, self.runs)})"
            for run in self.runs
        ]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Why a number is missing, with the run where that is not true of all."""
        found: list[tuple[str, str]] = []
        for key in dict.fromkeys(key for run in self.runs for key in run.notes):
            texts = [run.notes.get(key) for run in self.runs]
            word = key.replace("_", " ").capitalize()
            if len(set(texts)) == 1:
                found.append((word, str(texts[0])))
                continue
            found += [
                (f"{word}, {label}", text) for label, text in zip(self.labels, texts, strict=True) if text
            ]
        return found

    @property
    def colours(self) -> list[str]:
        return [charts.CURVES[n % len(charts.CURVES)] for n in range(len(self.runs))]


def _grouped(runs: Sequence[Run]) -> list[_Group]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.dataset["name"], []).append(run)
    return [_Group(name, group) for name, group in found.items()]


def _difference(run: Run, others: list[Run]) -> str:
    """The parameters in which a run differs from others of its strategy."""
    twins = [other for other in others if other.name == run.name]
    changed = [
        f"{name} {words.setting(value)}"
        for name, value in run.params.items()
        if any(twin.params.get(name) != value for twin in twins)
    ]
    return ", ".join(changed) or f"run {twins.index(run) + 1}"


def _figure(figure: go.Figure) -> Any:
    """A figure as JSON inside a script element; the page's own script gives it its ground and draws it."""
    figure.update_layout(template={})
    return _markup(str(figure.to_json()).replace("</", "<\\/"))


def _spark(run: Run, width: int = 220, height: int = 44) -> str:
    """The equity curve as the points of a small SVG line."""
    curve = run.tables["equity"]
    if len(curve) < 2:
        return ""
    stamps, values = (curve.column(name).to_numpy().astype(float) for name in ("timestamp", "equity"))
    chosen = np.unique(np.linspace(0, len(curve) - 1, SPARK_POINTS).astype(int))
    stamps, values = stamps[chosen], values[chosen]
    wide, tall = np.ptp(stamps) or 1.0, np.ptp(values) or 1.0
    x = (stamps - stamps[0]) / wide * (width - 2) + 1
    y = (values.max() - values) / tall * (height - 6) + 3
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))


def _trips(run: Run) -> list[dict[str, Any]]:
    """The first round trips as rows of text, with how long the bar behind the profit is."""
    rows = run.tables["round_trips"].slice(0, TRIPS_SHOWN).to_pylist()
    most = max((abs(row["net"]) for row in rows), default=0.0) or 1.0
    one_day = _one_day(run)
    return [
        {
            "symbol": row["symbol"],
            "side": "long" if row["size"] > 0 else "short",
            "size": words.plain(abs(row["size"])),
            "opened": words.moment(row["opened"], run.zone, date=not one_day),
            "closed": words.moment(row["closed"], run.zone, date=not one_day),
            "held": words.duration(row["closed"] - row["opened"]),
            "entry": words.price(row["entry"]),
            "exit": words.price(row["exit"]),
            "fees": words.written(row["fees"], "money", run.currency),
            "net": words.written(row["net"], "gain", run.currency),
            "way": "up" if row["net"] > 0 else "down" if row["net"] < 0 else "",
            "bar": round(100 * abs(row["net"]) / most, 1),
        }
        for row in rows
    ]


def _one_day(run: Run) -> bool:
    stamps = run.tables["equity"].column("timestamp").to_pylist()
    first, last = (clock.date_of(each, run.zone) for each in (stamps[0], stamps[-1]))
    return first == last


def _span(run: Run) -> str:
    stamps = run.tables["equity"].column("timestamp").to_pylist()
    return words.span(stamps[0], stamps[-1], run.zone)


def _gaps(run: Run) -> list[dict[str, str]]:
    one_day = _one_day(run)
    return [
        {
            "start": words.moment(gap["start"], run.zone, date=not one_day, fraction=True),
            "end": words.moment(gap["end"], run.zone, date=not one_day, fraction=True),
            "length": words.duration(gap["end"] - gap["start"]),
            "cause": gap["cause"],
            "channels": ", ".join(gap["channels"]) or "all",
        }
        for gap in run.dataset.get("gaps", [])[:GAPS_SHOWN]
    ]


def _provenance(run: Run) -> list[tuple[str, str]]:
    """What is known of the origin, as name and text."""
    known = run.dataset.get("provenance", {})
    return [
        (name.replace("_", " "), words.setting(value))
        for name, value in known.items()
        if value is not None and not isinstance(value, dict)
    ]


@cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "equity_chart": lambda group: _figure(charts.equity(group.runs, group.labels)),
        "price_chart": lambda run: _figure(charts.prices_with_fills(run)),
        "spark": _spark,
        "trips": _trips,
        "gaps": _gaps,
        "provenance": _provenance,
        "span": _span,
        "written": words.written,
        "price": words.price,
        "plain": words.plain,
        "setting": words.setting,
        "city": words.city,
        "zip": zip,
        "TRIPS_SHOWN": TRIPS_SHOWN,
        "FILLS_SHOWN": charts.FILLS_SHOWN,
    }
    environment.filters |= {
        "pretty": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "humps": _humps,
    }
    return environment.get_template("report.html.j2")


def _humps(name: str) -> Any:
    """A name that may break before its capitals, for narrow columns."""
    from markupsafe import escape

    return _markup(re.sub(r"(?<=[a-z])(?=[A-Z])", "<wbr>", str(escape(name))))


def _markup(text: str) -> Any:
    from markupsafe import Markup

    return Markup(text)
