"""The upper half of "🧪 Test on Live Data": start and stop a recording, and see what it has."""

from __future__ import annotations

import re

import streamlit as st

import tapelab as tl
from tapelab.faces.app import charts
from tapelab.faces.app.desk import Desk, Recording, Wanted
from tapelab.faces.app.parts import (
    REFRESH,
    complain,
    complaints,
    counted,
    plain,
    simulated_banner,
    typed_symbols,
)
from tapelab.faces.app.source import usual

CHANNELS = ("quotes", "trades", "bars")
USUAL_MINUTES = 10.0
NAMES = "Use letters, digits, dots, dashes and _."


def section(desk: Desk) -> None:
    st.subheader("Record the live stream", anchor=False)
    with st.container(border=True), complaints():
        if desk.running:
            _panel(desk)
        else:
            if desk.recording:
                _outcome(desk.recording)
            _form(desk)


def _form(desk: Desk) -> None:
    names, length = st.columns([3, 1])
    before = ", ".join(desk.recording.wanted.symbols) if desk.recording else usual().symbols
    typed = names.text_input(
        "Symbols to record",
        before,
        key="record_symbols",
        placeholder="AAPL, MSFT",
        help="One connection carries them all.",
    )
    minutes = length.number_input(
        "Minutes",
        min_value=0.0,
        value=USUAL_MINUTES,
        step=1.0,
        format="%g",
        key="minutes",
        help="0 records until you stop it.",
    )
    channels, name, tags = st.columns([1.4, 1.3, 1.3])
    chosen = channels.pills(
        "Channels", CHANNELS, selection_mode="multi", default=CHANNELS[:2], key="channels"
    )
    called = name.text_input("Name", key="name", placeholder="by date and time", help=NAMES)
    marked = tags.text_input("Tags", key="tags", placeholder="open, earnings", help="To find it again.")
    symbols = typed_symbols(typed)
    if st.button("Start recording", type="primary", key="start", icon="⏺️"):
        _check_free(called.strip())
        wanted = Wanted(
            tuple(symbols), tuple(chosen), minutes or None, called.strip(), tuple(typed_symbols(marked))
        )
        with st.spinner("Connecting …"):
            begun = desk.record(wanted)
        if not begun:
            st.toast("Somebody else began a recording just now; this is it.", icon="🔴")
        st.rerun()


def _check_free(name: str) -> None:
    """Said before anything is recorded, not when the recording is to get its name."""
    if name and not re.fullmatch(r"[\w.-]+", name):
        raise tl.TapelabError(f"{name!r} cannot be the name of a dataset.", remedy=NAMES)
    if name in {dataset.name for dataset in tl.list_datasets()}:
        raise tl.TapelabError(f"There is a dataset {name!r} already.", remedy="Choose another name.")


@st.fragment(run_every=REFRESH)
def _panel(desk: Desk) -> None:
    """What a running recording has, every second, until it is over."""
    recording = desk.running
    if recording is None:
        st.rerun()
    wanted, stats = recording.wanted, recording.stats
    simulated_banner({"simulated": recording.simulated})
    title, stop = st.columns([5, 1], vertical_alignment="center")
    until = f"for {wanted.minutes:g} minutes" if wanted.minutes else "until you stop it"
    title.markdown(
        f"🔴 **Recording {plain(', '.join(wanted.symbols))}** {until}, as `{wanted.name or stats.dataset}`"
    )
    if stop.button("Stop", key="stop", icon="⏹️", width="stretch"):
        with st.spinner("Finishing the dataset …"):
            recording.stop()
        st.rerun()
    _numbers(recording)
    if len(recording.samples) > 1:
        st.altair_chart(
            charts.rate([(each.second, each.events) for each in recording.samples]),
            key="rate",
            alt="Events a second",
        )


def _numbers(recording: Recording) -> None:
    stats = recording.stats
    last = recording.samples[-1] if recording.samples else None
    shown = {
        "Events": (
            f"{stats.events:,}",
            f"{stats.quotes:,} quotes, {stats.trades:,} trades, {stats.bars:,} bars",
        ),
        "Events a second": (f"{last.events:,}" if last else "–", "in the last second"),
        "Lag": (
            "–" if stats.lag_ms is None else f"{stats.lag_ms:,.0f} ms",
            "behind the exchange's clock; none for a replay of another day",
        ),
        "Gaps": (f"{stats.gaps}", f"stretches known to be lost; {stats.reconnects} reconnections"),
        "Safe on disk": (
            _size(stats.durable),
            f"survives a power cut; {_size(stats.acknowledged)} survive a kill of this program",
        ),
    }
    for column, (label, (value, tip)) in zip(st.columns(len(shown)), shown.items(), strict=True):
        column.metric(label, value, help=tip)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def _outcome(recording: Recording) -> None:
    """What became of the last recording."""
    if recording.error:
        complain(recording.error)
    if dataset := recording.dataset:
        if st.session_state.get("told") is not recording:
            st.session_state["told"] = recording
            st.session_state["dataset"] = dataset.name  # the next thing to look at
        what = f"{recording.stats.events:,} events, {counted(len(dataset.gaps), 'gap')}"
        st.success(f"Recorded **{plain(dataset.name)}**: {what}.", icon="✅")
