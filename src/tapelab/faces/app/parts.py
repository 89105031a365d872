"""What both pages say in the same way: errors, banners, times and colours."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import pandas as pd
import streamlit as st
from streamlit.runtime.scriptrunner import add_script_run_ctx, get_script_run_ctx

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
    st.error(f"**{_text(error.message)}** {_text(error.remedy)}", icon="⚠️")


def _text(text: str) -> str:
    """Text as it is, but what stands in backticks as code."""
    parts = text.split("`")
    return "".join(f"`{part}`" if n % 2 else plain(part) for n, part in enumerate(parts))


def counted(number: int, noun: str) -> str:
    """`1 bar`, `5,343 bars`, `no gaps`."""
    return f"{number or 'no':{',' if number else ''}} {noun}{'' if number == 1 else 's'}"


_teller: ContextVar[Callable[[str], None] | None] = ContextVar("teller", default=None)


class _Told(logging.Handler):
    """Brings what tapelab reports to the visitor who waits for it, whichever thread says it."""

    def emit(self, record: logging.LogRecord) -> None:
        if tell := _teller.get():
            tell(record.getMessage())


logging.getLogger("tapelab").addHandler(_Told())
logging.getLogger("tapelab").setLevel(logging.INFO)


@contextmanager
def working(what: str) -> Iterator[None]:
    """A spinner, and beside it the last line of report: a rate limit can make a small question long."""
    context = get_script_run_ctx()
    with st.spinner(what, show_time=True):
        place = st.empty()

        def tell(line: str) -> None:
            add_script_run_ctx(threading.current_thread(), context)
            place.caption(plain(line))

        token = _teller.set(tell)
        try:
            yield
        finally:
            _teller.reset(token)
            place.empty()


def simulated_banner(facts: Mapping[str, object]) -> None:
    """Prices that nobody paid never stand on the page without this."""
    if facts.get("simulated"):
        st.warning(
            "**SIMULATED.** These prices come from the stand-in exchange's invented market. "
            "Nobody ever traded them.",
            icon="🎭",
        )


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
        counted(len(dataset.gaps), "gap"),
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
