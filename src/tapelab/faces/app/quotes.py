"""The tab "📡 Live Quotes": the newest quote of each symbol, as it comes."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from tapelab.faces.app import charts
from tapelab.faces.app.desk import Desk, Watch
from tapelab.faces.app.parts import REFRESH, complaints, plain, typed_symbols, zone_of
from tapelab.faces.app.source import stand_in_banner, usual

PRICE = st.column_config.NumberColumn(format="%.4f")
SIZE = st.column_config.NumberColumn(format="localized")


def tab(desk: Desk) -> None:
    with st.container(border=True), complaints():
        names, go = st.columns([5, 1], vertical_alignment="bottom")
        if desk.watch:
            names.markdown(f"🟢 **Watching {plain(', '.join(desk.watch.symbols))}**")
            if go.button("Stop watching", key="unwatch", width="stretch"):
                desk.unwatch()
                st.rerun()
            _board(desk)
            return
        if running := desk.running:
            symbols = list(running.wanted.symbols)
            names.markdown(
                f"The recording of **{plain(', '.join(symbols))}** has the one connection; watch it here."
            )
        else:
            symbols = typed_symbols(
                names.text_input("Symbols to watch", usual().symbols, key="watched", placeholder="AAPL, MSFT")
            )
        if go.button("Watch", type="primary", key="watch", width="stretch"):
            with st.spinner("Connecting …"):
                desk.look(symbols)
            st.rerun()


@st.fragment(run_every=REFRESH)
def _board(desk: Desk) -> None:
    watch = desk.watch
    if watch is None:
        st.rerun()
    stand_in_banner()
    stats = watch.connector.get_stats()
    if not stats["streaming"]:
        st.error(plain(stats["error"] or "The stream has ended."), icon="⚠️")
    st.dataframe(
        _newest(watch),
        hide_index=True,
        key="board",
        placeholder="–",
        column_config={
            **dict.fromkeys(("bid", "ask", "spread", "last"), PRICE),
            **dict.fromkeys(("bid size", "ask size", "last size"), SIZE),
        },
    )
    symbol = st.selectbox("Chart", watch.symbols, key="charted", label_visibility="collapsed")
    touches = pd.DataFrame(watch.history(symbol), columns=["at", "bid", "ask"])
    lines = {side: touches[["at", side]].rename(columns={side: "value"}) for side in ("bid", "ask")}
    if len(touches) > 1:
        st.altair_chart(
            charts.curves(lines, zone_of(symbol), title=symbol, height=260),
            key="touch",
            alt=f"Quotes of {symbol}",
        )


def _newest(watch: Watch) -> pd.DataFrame:
    """A row for each symbol; empty where nothing came yet or a side of the book is empty."""
    rows = []
    for symbol in watch.symbols:
        book = watch.connector.latest_snapshot(symbol) or {}
        bid, bid_size = next(iter(book.get("bids", ())), (None, None))
        ask, ask_size = next(iter(book.get("asks", ())), (None, None))
        last = book.get("last_trade") or {}
        rows.append(
            {
                "symbol": symbol,
                "bid size": bid_size,
                "bid": bid,
                "ask": ask,
                "ask size": ask_size,
                "spread": None if bid is None or ask is None else ask - bid,
                "last": last.get("price"),
                "last size": last.get("size"),
            }
        )
    return pd.DataFrame(rows)
