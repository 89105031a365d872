"""The lower half of "🧪 Test on Live Data": choose a recording and strategies, run them, compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import streamlit as st

import tapelab as tl
from tapelab.faces.app import charts
from tapelab.faces.app.parts import complaints, facts_line, plain, simulated_banner, wall_clock, zone_of

FIELDS = 4  # beside each other
BARS = ("1s", "1m", "5m", "15m", "30m", "1h")
FEES = {
    "No fees": tl.rules.NoFees(),
    "0.5 cents a share": tl.rules.PerShare(0.005),
    "1 basis point": tl.rules.BasisPoints(1.0),
}

Show = Callable[[float], str]
METRICS: dict[str, tuple[str, Show]] = {
    "profit": ("Profit", "{:+,.2f}".format),
    "profit_bp": ("Profit, basis points", "{:+,.2f}".format),
    "max_drawdown": ("Largest drawdown", "{:,.2f}".format),
    "fees": ("Fees", "{:,.2f}".format),
    "turnover": ("Turnover", "{:,.0f}".format),
    "fills": ("Fills", "{:,}".format),
    "maker_share": ("of them as maker", "{:.0%}".format),
    "round_trips": ("Round trips", "{:,}".format),
    "hit_rate": ("of them with a profit", "{:.0%}".format),
    "average_trip": ("Average round trip", "{:+,.2f}".format),
    "t_statistic": ("t-statistic (±2: hardly luck)", "{:+.2f}".format),
    "spread_captured": ("Spread captured", "{:+,.2f}".format),
    "mark_out_5s": ("Mid 5 s after a fill, basis points", "{:+.2f}".format),
    "time_in_market": ("Time in the market", "{:.0%}".format),
    "max_inventory": ("Most shares held", "{:,.0f}".format),
    "sharpe": ("Sharpe ratio", "{:.2f}".format),
    "refused": ("Orders refused", "{:,}".format),
    "unfilled": ("Orders never filled", "{:,}".format),
}
FILLS = ("timestamp", "symbol", "size", "price", "fee", "maker", "mid", "position", "tag")


def section() -> None:
    """Choose, run, and show what was found until something else is run."""
    st.subheader("Test strategies on a recording", anchor=False)
    datasets = [dataset for dataset in reversed(tl.list_datasets()) if not dataset.growing]
    if not datasets:
        st.info("Nothing is recorded yet. A minute of a busy symbol is enough to begin with.", icon="🎙️")
        return
    with st.container(border=True), complaints():
        _choose(datasets)
    if "comparison" in st.session_state:
        _show(st.session_state["comparison"])


def _choose(datasets: Sequence[tl.Dataset]) -> None:
    wide, right = st.columns([1, 1])
    by_name = {dataset.name: dataset for dataset in datasets}
    with wide:
        name = st.selectbox("Recorded dataset", list(by_name), key="dataset")
        dataset = by_name[name]
    with right:
        kinds = {kind.__name__: kind for kind in _shipped()}
        chosen = st.pills(
            "Strategies",
            list(kinds),
            selection_mode="multi",
            default=["MovingAverageCross"],
            key="strategies",
        )
    st.caption(plain(facts_line(dataset)))
    parameters = {}
    if chosen:
        with st.expander("Parameters"):
            for kind, tab in zip(chosen, st.tabs(chosen), strict=True):
                with tab:
                    parameters[kind] = _parameters(kinds[kind], dataset)
    cash, fees, latency, run = st.columns([1, 1, 1, 1], vertical_alignment="bottom")
    money = cash.number_input(
        "Cash", min_value=0.0, value=100_000.0, step=10_000.0, format="%0.0f", key="cash"
    )
    fee = fees.selectbox("Fees", FEES, key="fees")
    late = latency.number_input(
        "Latency of orders, ms", min_value=0.0, value=0.0, step=1.0, format="%g", key="latency"
    )
    if run.button("Run", type="primary", key="run", disabled=not chosen, width="stretch"):
        rules: dict[str, Any] = {
            "cash": money,
            "fees": FEES[fee],
            "latency": tl.rules.FixedLatency(late) if late else tl.rules.NoLatency(),
        }
        entrants = [kinds[kind](**parameters[kind]) for kind in chosen]
        with st.spinner(f"{', '.join(chosen)} on {name} …"):
            st.session_state.pop("comparison", None)
            st.session_state["comparison"] = tl.compare(entrants, [dataset], **rules)


def _shipped() -> list[type[tl.Strategy]]:
    found = (getattr(tl.strategies, name) for name in tl.strategies.__all__)
    return [each for each in found if isinstance(each, type) and issubclass(each, tl.Strategy)]


def _parameters(kind: type[tl.Strategy], dataset: tl.Dataset) -> dict[str, Any]:
    """A field for every parameter that has a default; what it is decides how it is asked."""
    st.caption((kind.__doc__ or "").split("\n\n")[0])
    asked = {name: default for name, default in kind.parameters().items() if default is not None}
    values = {}
    for row in range(0, len(asked), FIELDS):
        names = list(asked)[row : row + FIELDS]
        for name, place in zip(names, st.columns(FIELDS, vertical_alignment="bottom"), strict=False):
            with place:
                values[name] = _field(kind.__name__, name, asked[name], dataset)
    return values


def _field(strategy: str, name: str, default: Any, dataset: tl.Dataset) -> Any:
    label, key = name.replace("_", " "), f"{strategy}.{name}"
    if isinstance(default, bool):
        return st.toggle(label, default, key=key)
    if isinstance(default, int):
        return st.number_input(label, value=default, step=1, key=key)
    if isinstance(default, float):
        return st.number_input(label, value=default, step=default / 10 or 0.1, format="%g", key=key)
    if name == "bars":
        return st.selectbox(label, BARS, index=BARS.index(default), key=key)
    if default == "":
        return st.selectbox(label, ["", *dataset.symbols], format_func=lambda each: each or "any", key=key)
    return st.text_input(label, default, key=key)


def _show(comparison: Any) -> None:
    results: tuple[tl.Result, ...] = comparison.results
    first = results[0]
    zone = zone_of(next(iter(first.dataset["symbols"]), ""))
    title, report = st.columns([4, 1], vertical_alignment="bottom")
    title.subheader(f"What came of it on {plain(first.dataset['name'])}", anchor=False)
    report.download_button(
        "Report (HTML)",
        data=partial(_report, comparison),
        file_name=f"{first.dataset['name']}.html",
        mime="text/html",
        on_click="ignore",
        key="report",
        width="stretch",
    )
    simulated_banner({"simulated": comparison.simulated})
    lines = {
        name: result.equity_curve.reset_index().rename(columns={"timestamp": "at", "equity": "value"})
        for name, result in _named(results).items()
    }
    st.altair_chart(
        charts.curves(lines, zone, title="equity"), key="equity", alt=f"Equity of {', '.join(lines)}"
    )
    st.caption(f"Times of {zone}.")
    numbers, trades, small_print = st.tabs(["Metrics", "Trades", "Assumptions and gaps"])
    with numbers:
        wide = st.column_config.Column(width="medium")
        st.dataframe(metrics(results), height="content", key="metrics", column_config={"_index": wide})
        for (metric, why), names in _notes(results).items():
            whose = "" if len(names) == len(results) else f" ({', '.join(names)})"
            st.caption(plain(f"{metric.replace('_', ' ').capitalize()}{whose}: {why}"))
    with trades:
        _trades(results, zone)
    with small_print:
        _small_print(results, zone)


def _named(results: Sequence[tl.Result]) -> dict[str, tl.Result]:
    return {result.strategy: result for result in results}


def metrics(results: Sequence[tl.Result]) -> pd.DataFrame:
    """Metrics side by side: a row each, a column per strategy; a dash where a number would say nothing."""
    return pd.DataFrame(
        {
            name: {
                label: _shown(result.metrics.get(metric), show) for metric, (label, show) in METRICS.items()
            }
            for name, result in _named(results).items()
        }
    )


def _notes(results: Sequence[tl.Result]) -> dict[tuple[str, str], list[str]]:
    """Why a number is missing, once, with the strategies of which that is true."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, result in _named(results).items():
        for note in result.notes.items():
            found.setdefault(note, []).append(name)
    return found


def _shown(value: float | None, show: Show) -> str:
    return "–" if value is None else show(value)


def _trades(results: Sequence[tl.Result], zone: str) -> None:
    which, what = st.columns(2)
    by_name = _named(results)
    busy = next((n for n, each in enumerate(by_name.values()) if each.metrics["fills"]), 0)
    name = which.selectbox("Strategy", list(by_name), busy, key="trades_of", label_visibility="collapsed")
    kind = what.segmented_control(
        "Table",
        ["Round trips", "Fills"],
        default="Fills",
        key="trades",
        label_visibility="collapsed",
        required=True,
    )
    result = by_name.get(name) or results[0]
    table = result.round_trips if kind == "Round trips" else result.fills[list(FILLS)]
    if table.empty:
        st.info(
            f"No {str(kind).lower()}." + ("" if kind == "Fills" else " What is still open is not among them.")
        )
        return
    if kind == "Fills" and not table["tag"].any():
        table = table.drop(columns="tag")
    for column in table.columns.intersection(["timestamp", "opened", "closed"]):
        table[column] = wall_clock(table[column], zone)
    moment = st.column_config.DatetimeColumn(format="D MMM HH:mm:ss.SSS", help=zone)
    money = st.column_config.NumberColumn(format="%.2f")
    price = st.column_config.NumberColumn(format="%.4f")
    st.dataframe(
        table,
        hide_index=True,
        key="trade_table",
        column_config={
            **dict.fromkeys(("timestamp", "opened", "closed"), moment),
            **dict.fromkeys(("fee", "gross", "fees", "net"), money),
            **dict.fromkeys(("price", "mid", "entry", "exit"), price),
        },
    )


def _small_print(results: Sequence[tl.Result], zone: str) -> None:
    first = results[0]
    for assumption, names in _assumptions(results).items():
        topic, name, text = assumption
        whose = "" if len(names) == len(results) else f" ({', '.join(names)})"
        st.markdown(f"**{plain(topic)}{plain(whose)}:** {plain(name)}. {plain(text)}")
    gaps = first.dataset["gaps"]
    st.markdown(f"**Gaps in the recording:** {len(gaps) or 'none'}.")
    if gaps:
        table = pd.DataFrame(gaps)
        for column in ("start", "end"):
            table[column] = wall_clock(table[column], zone)
        moment = st.column_config.DatetimeColumn(format="D MMM HH:mm:ss.SSS", help=zone)
        st.dataframe(table, hide_index=True, column_config={"start": moment, "end": moment}, key="gaps")


def _assumptions(results: Sequence[tl.Result]) -> dict[tuple[str, ...], list[str]]:
    """Each assumption once, with the strategies that it holds for."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name, result in _named(results).items():
        for assumption in result.assumptions:
            found.setdefault(tuple(assumption), []).append(name)
    return found


def _report(comparison: Any) -> bytes:
    with TemporaryDirectory() as folder:
        report: Path = comparison.to_html(Path(folder) / "report.html")
        return report.read_bytes()
