"""Live Trading: watch the stream, record it, and test strategies on what was recorded."""

from __future__ import annotations

import streamlit as st

import tapelab as tl
from tapelab.faces.app import backtests, quotes, recordings
from tapelab.faces.app.desk import desk
from tapelab.faces.app.parts import complaints, heading


def page() -> None:
    heading(
        "Live Trading", "Record what the market really does, then see what a strategy would have made of it."
    )
    with complaints():
        here = desk(tl.Settings.current().endpoint)
        watch, test = st.tabs(["📡 Live Quotes", "🧪 Test on Live Data"])
        with watch:
            quotes.tab(here)
        with test:
            recordings.section(here)
            backtests.section()
