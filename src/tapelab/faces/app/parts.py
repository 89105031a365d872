"""What both pages say in the same way: errors, banners, times and colours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urlsplit

import pandas as pd
import streamlit as st

import tapelab as tl

# Distinct in light and dark, and for most eyes that see no red or green.
UP, DOWN, QUIET = "#0f9d8a", "#e8663d", "#8a94a6"
CURVES = ("#2f7de1", "#e8663d", "#0f9d8a", "#a05fd0", "#d4a017", "#5b6b82")

REFRESH = 1.0  # seconds between two looks at what runs

ZONE = "America/New_York"
_ZONES = {"X:": "UTC", "C:": "UTC", "I:": "America/Chicago"}


def plain(text: object) -> str:
    """Text that Markdown shows as it is, `$` and `_` included."""
    return re.sub(r"([\\`*_{}\[\]<>#|~$:])", r"\\\1", str(text))


@contextmanager
def complaints() -> Iterator[None]:
    """Whatever tapelab refuses inside is said in one sentence, with what to do next."""
    try:
        yield
    except tl.TapelabError as error:
        complain(error)


def complain(error: tl.TapelabError) -> None:
    st.error(f"**{plain(error.message)}** {plain(error.remedy)}", icon="⚠️")


def simulated_banner(facts: Mapping[str, object]) -> None:
    """Prices that nobody paid never stand on the page without this."""
    if facts.get("simulated"):
        st.warning(
            "**SIMULATED.** These prices come from the stand-in exchange's invented market. "
            "Nobody ever traded them.",
            icon="🎭",
        )


def stand_in_banner() -> None:
    """Live quotes carry no word of their origin; this says that they are not the vendor's."""
    settings = tl.Settings.load()
    if settings.endpoint != "massive":
        where = plain(urlsplit(settings.ws_url).netloc)
        st.warning(f"**STAND-IN.** These quotes come from {where}, not from Massive.com.", icon="🎭")


def heading(title: str, subtitle: str) -> None:
    st.title(title, anchor=False)
    st.caption(subtitle)


def zone_of(symbol: str) -> str:
    """The zone of the symbol's exchange."""
    return _ZONES.get(symbol[:2], ZONE)


def wall_clock(instants: pd.Series, zone: str) -> pd.Series:
    """The exchange's wall clock, without a zone: charts show it as it is, wherever the browser is."""
    return pd.to_datetime(instants, utc=True).dt.tz_convert(zone).dt.tz_localize(None)


def facts_line(dataset: tl.Dataset) -> str:
    """A dataset in a line: symbols, when, gaps, tags."""
    symbols = ", ".join(dataset.symbols)
    parts = [
        symbols,
        spell_of(dataset),
        f"{len(dataset.gaps) or 'no'} gaps",
        *(f"#{tag}" for tag in dataset.tags),
    ]
    return " · ".join(["🎭 SIMULATED", *parts] if dataset.provenance.get("simulated") else parts)


def spell_of(dataset: tl.Dataset) -> str:
    """When a dataset was recorded, by the exchange's clock: `9 Oct 2013, 09:30:00 to 16:00:00`."""
    if dataset.start is None or dataset.end is None:
        return "empty"
    zone = zone_of(next(iter(dataset.symbols), ""))
    first, last = (pd.Timestamp(instant).tz_convert(zone) for instant in (dataset.start, dataset.end))
    until = f"{last:%H:%M:%S}" if first.date() == last.date() else f"{last:%-d %b %Y, %H:%M:%S}"
    return f"{first:%-d %b %Y, %H:%M:%S} to {until} ({zone})"


def typed_symbols(text: str) -> list[str]:
    """Symbols as people type them: `aapl, msft nvda`."""
    return list(dict.fromkeys(part for part in re.split(r"[,;\s]+", text) if part))


def from_where() -> None:
    """The sidebar's foot: which source this page asks, and where it keeps what it gets."""
    with complaints():
        settings = tl.Settings.load()
        vendor = settings.endpoint == "massive"
        with st.sidebar:
            st.caption("SOURCE")
            st.badge(
                "Massive.com" if vendor else f"stand-in: {plain(urlsplit(settings.rest_url).netloc)}",
                color="blue" if vendor else "orange",
            )
            _key("REST and stream key", settings.api_key is not None)
            _key("flat-file keys", settings.s3_secret_access_key is not None)
            st.caption(f"Kept in `{settings.root}`")


def _key(name: str, there: bool) -> None:
    st.caption(f"{'🟢' if there else '⚪'} {name} {'set' if there else 'not set'}")
