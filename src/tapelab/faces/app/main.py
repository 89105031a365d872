"""What `tapelab ui` serves: two pages and the sidebar between them."""

from __future__ import annotations

import streamlit as st

from tapelab.faces.app import data_loader, live_trading, source

st.set_page_config(page_title="tapelab", page_icon="📼", layout="wide")

chosen = st.navigation(
    [
        st.Page(data_loader.page, title="Data Loader", icon="📈", url_path="data_loader", default=True),
        st.Page(live_trading.page, title="Live Trading", icon="📡", url_path="live_trading"),
    ]
)
# What is asked for stands higher on a screen than Streamlit would have it.
st.html("<style>[data-testid=stMainBlockContainer] { padding-top: 3.5rem }</style>")
with source.chosen():
    source.sidebar()
    chosen.run()
