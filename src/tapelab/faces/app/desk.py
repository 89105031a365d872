"""What this server does on the live stream: it outlives every look at the page, and has one connection."""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Sequence
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import streamlit as st

import tapelab as tl

SAMPLE_EVERY = 1.0  # seconds
SAMPLES = 300  # kept for the chart: the last five minutes
TOUCHES = 2_000  # kept of each symbol that is watched


class Sample(NamedTuple):
    """What came in one second. `second` counts from the start; `lag_ms` is None for a replay."""

    second: int
    events: int
    lag_ms: float | None


class Touch(NamedTuple):
    """What was bid and asked at a moment (ns UTC)."""

    at: int
    bid: float
    ask: float


@dataclass(frozen=True)
class Wanted:
    """What a recording is to hold. Without `minutes` it runs until it is stopped."""

    symbols: tuple[str, ...]
    channels: tuple[str, ...]
    minutes: float | None = None
    name: str = ""
    tags: tuple[str, ...] = ()


@dataclass(eq=False)
class Recording:
    """A recorder with a thread that samples it, ends it in time, and keeps what came as a dataset."""

    wanted: Wanted
    recorder: tl.WebSocketDataRecorder
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=SAMPLES))
    dataset: tl.Dataset | None = None
    error: tl.TapelabError | None = None
    over: bool = False
    simulated: bool = False
    _ending: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def stats(self) -> Any:
        return self.recorder.stats

    def start(self) -> None:
        """Returns once the vendor has confirmed; raises what the vendor or the network says."""
        self.recorder.start()
        here = copy_context()  # whatever settings the page runs under
        self._thread = threading.Thread(target=here.run, args=(self._watch,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and wait until what came is kept."""
        self._ending.set()
        self.wait()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until it is over."""
        if self._thread:
            self._thread.join(seconds)

    def _watch(self) -> None:
        try:
            self._sample()
        except tl.TapelabError as error:
            self.error = error
        finally:
            self._keep()
            self.over = True

    def _sample(self) -> None:
        self.simulated = bool(tl.open_dataset(self.recorder.stats.dataset).provenance.get("simulated"))
        seconds = events = 0
        longest = 60 * self.wanted.minutes if self.wanted.minutes else None
        while not self._ending.wait(SAMPLE_EVERY):
            seconds += 1
            stats = self.recorder.stats
            self.samples.append(Sample(seconds, stats.events - events, stats.lag_ms))
            events = stats.events
            if stats.state == "failed" or (longest and seconds * SAMPLE_EVERY >= longest):
                return

    def _keep(self) -> None:
        try:
            self.recorder.stop()
        except tl.TapelabError as error:
            self.error = self.error or error
        recorded = self.recorder.stats
        try:
            dataset = tl.open_dataset(self.recorder.save_dataset(self.wanted.name or recorded.dataset))
            self.dataset = dataset.tag(*self.wanted.tags) if self.wanted.tags else dataset
        except tl.TapelabError as error:
            self.error = self.error or error
            if recorded.events:  # what came is there, under the name that it had while it grew
                self.dataset = tl.open_dataset(recorded.dataset)


class Watch:
    """The live quotes of some symbols: the newest of each, and what was bid and asked a moment ago.

    The vendor allows one connection for a market: where a recording runs, this follows it.
    """

    def __init__(self, symbols: Sequence[str], channels: Sequence[str] = ("quotes", "trades")) -> None:
        self.symbols = tuple(symbols)
        self.connector = tl.get_connector("massive", channels=tuple(channels))
        self._history: dict[str, deque[Touch]] = {symbol: deque(maxlen=TOUCHES) for symbol in symbols}

    def start(self) -> None:
        self.connector.start_stream(list(self.symbols), self._on_quote)

    def stop(self) -> None:
        self.connector.stop_stream()

    def history(self, symbol: str) -> list[Touch]:
        return list(self._history[symbol])

    def _on_quote(self, symbol: str, book: dict[str, Any]) -> None:
        if book["bids"] and book["asks"]:
            self._history[symbol].append(Touch(book["ts_event"], book["bids"][0][0], book["asks"][0][0]))


class Desk:
    """What this server does on the live stream of one endpoint: at most one recording and one watch."""

    def __init__(self) -> None:
        self.recording: Recording | None = None
        self.watch: Watch | None = None
        self._lock = threading.RLock()
        atexit.register(self.close)

    @property
    def running(self) -> Recording | None:
        """The recording that runs now."""
        return self.recording if self.recording and not self.recording.over else None

    def record(self, wanted: Wanted) -> bool:
        """Begin a recording; false where one runs already. A watch gives its connection up for it."""
        with self._lock:
            if self.running:
                return False
            self.unwatch()
            begun = Recording(wanted, tl.WebSocketDataRecorder(wanted.symbols, channels=wanted.channels))
            begun.start()
            self.recording = begun
            return True

    def look(self, symbols: Sequence[str]) -> None:
        """Watch these symbols from now on; those of the recording, where one runs."""
        with self._lock:
            self.unwatch()
            if running := self.running:
                watch = Watch(running.wanted.symbols, running.wanted.channels)
            else:
                watch = Watch(symbols)
            watch.start()
            self.watch = watch

    def unwatch(self) -> None:
        with self._lock:
            if self.watch:
                self.watch.stop()
            self.watch = None

    def close(self) -> None:
        """The server ends: what runs is ended cleanly, and a recording is kept."""
        if self.running:
            self.running.stop()
        self.unwatch()


@st.cache_resource(show_spinner=False)
def desk(endpoint: str) -> Desk:
    """The one desk of an endpoint, whoever looks."""
    return Desk()
