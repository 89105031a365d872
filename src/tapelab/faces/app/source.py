"""Where the page's data comes from: the vendor, or a simulated market for whoever has no account yet."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import streamlit as st

import tapelab as tl
from tapelab.faces.app.parts import complaints, plain

SPEED = 20  # times real: what an hour of the market does is seen in three minutes
OPEN = "09:30"
MINUTES = "us_stocks_sip/minute_aggs_v1"


@dataclass(frozen=True)
class Usual:
    """What a form holds before anybody has typed; nothing where the vendor is asked."""

    symbols: str = ""
    first: date | None = None
    last: date | None = None


class _Market:
    """A simulated market, and the home of what comes from it; both are gone when this server ends."""

    def __init__(self) -> None:
        self.exchange = tl.serve(simulate=True, speed=SPEED, start=OPEN)
        self.home = TemporaryDirectory(prefix="tapelab-", ignore_cleanup_errors=True)
        atexit.register(self.close)

    def close(self) -> None:
        self.exchange.close()
        self.home.cleanup()


@st.cache_resource(show_spinner="Opening a simulated market …", on_release=_Market.close)
def _market() -> _Market:
    """The one of this server, whoever looks."""
    return _Market()


def _simulated() -> bool:
    return bool(st.session_state.get("simulated"))


@contextmanager
def chosen() -> Iterator[None]:
    """Everything inside asks the source that this visitor has chosen."""
    if not _simulated():
        yield
        return
    market = _market()
    if market.exchange.finished.is_set():
        market.exchange.jump(OPEN)  # a day that is over begins again
    with market.exchange.use(home=market.home.name):
        yield


def usual() -> Usual:
    """What can be asked of the chosen source, where that is not the whole market."""
    if not _simulated():
        return Usual()
    tape = _market().exchange.tape
    days = tape.days(MINUTES)
    return Usual(", ".join(tape.symbols()[:2]), max(days[0], days[-5]), days[-1])


def sidebar() -> None:
    """Which source this page asks, and where it keeps what it gets."""
    with complaints(), st.sidebar:
        settings = tl.Settings.current()
        st.caption("SOURCE")
        if _simulated():
            st.badge("simulated market", color="orange")
            st.caption(
                f"Invented prices of test symbols such as {plain(usual().symbols)}, {SPEED} times as fast as "
                "real ones. What is recorded on it is gone when this server ends."
            )
            st.button("Back to Massive.com", key="leave", on_click=_choose, args=(False,), width="stretch")
            return
        vendor = settings.endpoint == "massive"
        st.badge(
            "Massive.com" if vendor else f"stand-in: {plain(urlsplit(settings.rest_url).netloc)}",
            color="blue" if vendor else "orange",
        )
        _key("REST and stream key", settings.api_key is not None)
        _key("flat-file keys", settings.s3_secret_access_key is not None)
        if settings.api_key is None and settings.s3_secret_access_key is None:
            st.caption("No account yet? Everything here also runs on a simulated market.")
            st.button(
                "Try a simulated market",
                key="simulate",
                type="primary",
                on_click=_choose,
                args=(True,),
                width="stretch",
            )
        st.caption(f"Kept in `{settings.root}`")


def _key(name: str, there: bool) -> None:
    st.caption(f"{'🟢' if there else '⚪'} {name} {'set' if there else 'not set'}")


def _choose(simulated: bool) -> None:
    """What was typed and loaded belongs to the source that is left."""
    st.session_state.clear()
    st.session_state["simulated"] = simulated
    if simulated:
        with complaints():
            _market()


def stand_in_banner() -> None:
    """Live quotes carry no word of their origin; this says that they are not the vendor's."""
    with chosen():
        settings = tl.Settings.current()
    if settings.endpoint != "massive":
        where = "a simulated market" if _simulated() else plain(urlsplit(settings.ws_url).netloc)
        st.warning(f"**STAND-IN.** These quotes come from {where}, not from Massive.com.", icon="🎭")
