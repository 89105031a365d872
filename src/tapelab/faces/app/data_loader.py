"""Data Loader: bars by REST or flat files, or from what was recorded; looked at, and taken home."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any, Literal

import pandas as pd
import streamlit as st

import tapelab as tl
from tapelab.faces.app.loaded import ADJUST, HOURS, ROUTES, Loaded, show
from tapelab.faces.app.parts import (
    complaints,
    counted,
    facts_line,
    heading,
    plain,
    typed_symbols,
    working,
)
from tapelab.faces.app.source import usual

METHODS = {
    "auto": (
        "Auto",
        "little by REST, much by flat files",
        "Takes REST for a small question and flat files for a large one, says which and why, "
        "and falls back to the other if one fails.",
    ),
    "rest": (
        "REST API",
        "each call counts",
        "Best under 5 symbols and 7 days: an answer in a second or two. Every call that is sent counts "
        "against your day's budget; what is already here is not asked for again.",
    ),
    "flat_file": (
        "Flat files",
        "whole days in bulk, no REST calls",
        "Best over 10 symbols or 30 days: whole days of the whole market by S3. Costs no REST call; "
        "its own budget counts gigabytes a month. A day's file appears the next morning.",
    ),
    "cheapest": (
        "Cheapest",
        "the least of your budgets",
        "Weighs what each route would cost with what is already here, and takes the cheaper.",
    ),
}
INTERVALS = ("1m", "5m", "15m", "30m", "1h", "4h", "1d", "1w", "1mo", "1s")
RECORDED_INTERVALS = ("1s", "1m", "5m", "15m", "30m", "1h")
HISTORY, RECORDED = "Market history", "Recorded dataset"
FIRST_DAY = date(2003, 9, 10)  # the vendor's history begins here
Lamp = Literal["red", "yellow", "green"]
LAMPS: dict[Lamp, str] = {"red": "🔴", "yellow": "🟡", "green": "🟢"}
LAMP_TIP = (
    "Only REST calls that are sent count. The cache and flat files cost none. The day begins at 00:00 UTC."
)
LOW = 0.25  # of a budget left: the lamp turns yellow


def page() -> None:
    heading(
        "Data Loader",
        "Bars from the vendor by two routes, or from your own recordings. Same rows, whichever way.",
    )
    source = st.segmented_control(
        "Source", [HISTORY, RECORDED], default=HISTORY, key="source", label_visibility="collapsed"
    )
    with st.container(border=True), complaints():
        if source == RECORDED:
            _choose_recording()
        else:
            _choose_history()
    loaded: Loaded | None = st.session_state.get("loaded")
    if loaded:
        show(loaded)


def _choose_history() -> None:
    before = usual()
    if before.last:
        st.session_state.setdefault("end", before.last)
    st.session_state.setdefault("symbols", before.symbols)
    wide, first, last = st.columns([3, 1, 1])
    bar, hours, adjust, _ = st.columns([1, 1, 1, 2])
    text = wide.text_input(
        "Symbols",
        key="symbols",
        placeholder="AAPL, MSFT",
        help="As many as you like; case matters: BRK.B, KIMpL.",
    )
    end = last.date_input("To, included", "today", key="end", min_value=FIRST_DAY)
    st.session_state.setdefault("start", before.first or end - timedelta(days=6))
    start = first.date_input("From", key="start", min_value=FIRST_DAY)
    interval = bar.selectbox("Interval", INTERVALS, key="interval", help="1s comes by REST only.")
    chosen_hours = hours.selectbox("Hours", HOURS, format_func=HOURS.__getitem__, key="hours")
    adjusted = adjust.selectbox(
        "Adjusted",
        ADJUST,
        format_func=ADJUST.__getitem__,
        key="adjust",
        help="Prices as if every later split (and dividend) had already happened.",
    )
    method = st.radio(
        "Method",
        METHODS,
        format_func=lambda name: METHODS[name][0],
        captions=[caption for _, caption, _ in METHODS.values()],
        key="method",
        horizontal=True,
        help="\n".join(f"- **{label}**: {tip}" for label, _, tip in METHODS.values()),
    )
    symbols = typed_symbols(text)
    if not symbols:
        st.caption("Name a symbol to see what loading it would take.")
        return
    asked: dict[str, Any] = {
        "symbols": symbols,
        "start": start,
        "end": end,
        "interval": interval,
        "method": method,
        "hours": chosen_hours,
        "adjust": adjusted,
    }
    with working("Planning …"):
        plan = tl.plan_fetch(**asked)
    _preview(plan)
    if st.button("Load bars", type="primary", key="load"):
        with working("Loading …"):
            bars: pd.DataFrame = tl.fetch_data(**asked)
        name = f"{'-'.join(symbols[:3])}_{interval}_{start}_{end}"
        st.session_state["loaded"] = Loaded(bars, interval, name, dict(bars.attrs["tapelab"]))
        st.rerun()


def _preview(plan: tl.FetchPlan) -> None:
    """The line that says which route and why, what it takes, and the lamp."""
    words, lamp = st.columns([3, 1.4], vertical_alignment="center")
    with words:
        st.markdown(f"**{plain(plan.reason)}**")
        for note in plan.notes:
            st.caption(plain(note))
        st.caption(" · ".join(_takes(plan)))
        if other := plan.cheapest:
            st.caption(f"Cheaper by {ROUTES[other.route]}: {', '.join(_takes(other))}")
    with lamp:
        text, colour = quota(plan.left.rest_day, plan.requests, tl.Settings.current().rest_calls_per_day)
        st.badge(text, icon=LAMPS[colour], color=colour, help=LAMP_TIP)
        if plan.left.bytes_month is not None:
            st.caption(f"{_megabytes(plan.left.bytes_month)} of flat files left this month")


def _takes(plan: tl.FetchPlan) -> list[str]:
    """What a plan costs, without what it does not cost."""
    costs = []
    if plan.requests:
        costs.append(f"at most {counted(plan.requests, 'REST call')}")
    if plan.files:
        costs.append(f"{counted(plan.files, 'file')}, {_megabytes(plan.bytes)}")
    return [*costs, f"{plan.cached} of {len(plan.routes)} symbol-days are here already"]


def quota(left: int | None, needed: int, budget: int) -> tuple[str, Lamp]:
    """What the lamp says: red when this cannot be paid or nothing is left, yellow when little would be."""
    if left is None:
        return "REST calls: no limit", "green"
    text = f"{left} of {budget} REST calls left today"
    if left == 0 or needed > left:
        return text, "red"
    return text, "yellow" if left - needed < LOW * budget else "green"


def _megabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _choose_recording() -> None:
    datasets = {dataset.name: dataset for dataset in reversed(tl.list_datasets())}
    if not datasets:
        st.info("Nothing is recorded yet; Live Trading records.", icon="🎙️")
        return
    which, bar, go = st.columns([4, 1, 1], vertical_alignment="bottom")
    dataset = datasets[which.selectbox("Recorded dataset", list(datasets), key="recorded")]
    interval = bar.selectbox("Interval", RECORDED_INTERVALS, index=1, key="recorded_interval")
    st.caption(facts_line(dataset))
    if go.button("Load bars", type="primary", key="load_recorded", width="stretch"):
        bars = dataset.bars(interval)
        facts = {**bars.attrs["tapelab"], "lines": [f"Bars of the recording {dataset.name}"]}
        st.session_state["loaded"] = Loaded(bars, interval, f"{dataset.name}_{interval}", facts)
        st.rerun()
