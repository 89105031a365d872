"""Bars on the page: candles, the table, files to take home, and what has to be said about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import pandas as pd
import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from tapelab.faces.app import charts
from tapelab.faces.app.parts import counted, plain, simulated_banner, zone_of

HOURS = {"all": "All hours", "regular": "Regular session"}
ADJUST = {"splits": "for splits", "none": "not at all"}
ROUTES = {"cache": "the cache", "rest": "REST", "flat_file": "flat files"}
ALL_SESSIONS = "All sessions"
EASY_TO_READ = 600  # more candles than this, and the last session is shown first
ROWS_SEEN, TABLE_HEIGHT = 11, 420  # of more rows than these one scrolls through the table
MOST_ROWS = 50_000  # sent to the browser as a table

PRICE = st.column_config.NumberColumn(format="%.4f")


@dataclass(frozen=True)
class Loaded:
    """Bars with what is known about them; `name` is that of the files."""

    bars: pd.DataFrame
    interval: str
    name: str
    facts: dict[str, Any]


def show(loaded: Loaded) -> None:
    bars = loaded.bars
    if bars.empty:
        st.info("Nothing traded in that time.", icon="🕳️")
        return
    simulated_banner(loaded.facts)
    title, session, choice = st.columns([3, 1.2, 1.2], vertical_alignment="bottom")
    title.subheader(f"{counted(len(bars), 'bar')} of {loaded.interval}", anchor=False)
    st.caption(" · ".join(map(plain, _said(loaded.facts))))
    symbols = list(dict.fromkeys(bars["symbol"]))
    symbol = choice.selectbox("Symbol", symbols, key="shown")
    own = bars[bars["symbol"] == symbol]
    zone = zone_of(symbol)
    drawn = _of_session(own, session)
    st.altair_chart(charts.candles(drawn, loaded.interval, zone), key="candles", alt=f"Candles of {symbol}")
    most = charts.MOST_CANDLES
    last = f" The last {most:,} of {len(drawn):,} are drawn." if len(drawn) > most else ""
    st.caption(
        f"Times of {zone}. Where nothing traded there is no candle. Drag moves, Shift + wheel zooms.{last}"
    )
    st.dataframe(
        bars.head(MOST_ROWS),
        hide_index=True,
        key="bars",
        height=TABLE_HEIGHT if len(bars) > ROWS_SEEN else "content",
        placeholder="–",
        column_config={
            "timestamp": st.column_config.DatetimeColumn(
                format="YYYY-MM-DD HH:mm:ss", timezone=zone, help=zone
            ),
            **dict.fromkeys(("open", "high", "low", "close", "vwap"), PRICE),
            "volume": st.column_config.NumberColumn(format="localized"),
        },
    )
    if len(bars) > MOST_ROWS:
        st.caption(f"The table shows the first {MOST_ROWS:,} of {len(bars):,} bars; the files hold them all.")
    csv, parquet, _ = st.columns([1, 1, 4])
    _download(csv, "CSV", f"{loaded.name}.csv", partial(_csv, bars))
    _download(parquet, "Parquet", f"{loaded.name}.parquet", partial(_parquet, bars))


def _of_session(bars: pd.DataFrame, place: DeltaGenerator) -> pd.DataFrame:
    """The bars to draw: all of them, or one session's."""
    sessions = list(dict.fromkeys(bars["session"]))
    if len(sessions) == 1 or len(bars) == len(sessions):
        return bars
    first = len(sessions) if len(bars) > EASY_TO_READ else 0
    chosen = place.selectbox("Session", [ALL_SESSIONS, *sessions], index=first, key="session")
    return bars if chosen == ALL_SESSIONS else bars[bars["session"] == chosen]


def _said(facts: dict[str, Any]) -> list[str]:
    """Route and assumptions of what was loaded, in a line."""
    said = [str(line) for line in facts.get("lines", ())]
    if routes := facts.get("routes"):
        said.append(", ".join(f"{count} symbol-days from {ROUTES[route]}" for route, count in routes.items()))
    if facts.get("built_from") == "quotes":
        said.append("no trades were recorded: built from mid prices, without volume")
    if "adjust" in facts:
        said.append(f"prices adjusted {ADJUST.get(facts['adjust'], facts['adjust'])}")
    if "hours" in facts:
        said.append(HOURS.get(facts["hours"], facts["hours"]).lower())
    if provisional := facts.get("provisional"):
        said.append(f"may still change: {', '.join(provisional)}")
    return said


def _download(column: DeltaGenerator, kind: str, name: str, write: Callable[[], bytes]) -> None:
    """The file is written when it is asked for, not at every look."""
    column.download_button(
        f"Download {kind}", data=write, file_name=name, on_click="ignore", key=kind, width="stretch"
    )


def _csv(bars: pd.DataFrame) -> bytes:
    return bars.to_csv(index=False).encode()


def _parquet(bars: pd.DataFrame) -> bytes:
    target = BytesIO()
    bars.to_parquet(target, index=False)
    return target.getvalue()
