"""A recorded dataset as a connector: what runs on it runs on the live stream unchanged."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import NoData, RecordingError, UnknownSymbol
from tapelab.live.books import STOP_PATIENCE, Books, Callback, OrderBook
from tapelab.live.recorder import named_now, parse_symbols, write_bars
from tapelab.market import tables
from tapelab.market.events import Bar, Event
from tapelab.market.intervals import Interval
from tapelab.settings import Settings, current
from tapelab.store.datasets import catalogue
from tapelab.store.datasets.dataset import Dataset, folder_of, open_dataset
from tapelab.store.datasets.shaping import bars_of, paced

if TYPE_CHECKING:
    import pandas as pd

TOLD_AT_ONCE = 256  # events handed to the callbacks' thread at a time


class ReplayConnector:
    """Plays a dataset to callbacks, at the pace at which it came (`speed` 1), faster, or unpaced (0).

    The replay begins with the first `start_stream` and ends with the dataset; `wait` waits for that. One that
    was stopped begins afresh. A recording of it is the stretch that was played while it was enabled, as a
    dataset of its own.
    """

    def __init__(
        self, dataset: str | Path | Dataset, *, speed: float = 1.0, settings: Settings | None = None
    ) -> None:
        self._settings = settings or current()
        found = dataset if isinstance(dataset, Dataset) else open_dataset(dataset, settings=self._settings)
        self._played, self._speed = found, speed
        self._books = Books()
        self._events = 0
        self._arrived = -1  # number of the newest event played
        self._asked: tuple[list[str], Path, int] | None = None
        self._dataset: Dataset | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def list_symbols(self) -> list[str]:
        """The symbols of the dataset."""
        return list(self._played.symbols)

    def start_stream(self, symbols: str | Sequence[str], callback: Callback) -> None:
        """Call `callback(symbol, orderbook)` for every quote, from the beginning of the dataset."""
        _, names = parse_symbols(symbols)
        for name in names:
            if name not in self._played.symbols:
                known = ", ".join(self._played.symbols[:10])
                raise UnknownSymbol(
                    f"The dataset {self._played.name} has no {name!r}.", remedy=f"It has {known}."
                )
        self._books.listen(names, callback)
        if self._thread is None or self._stopping.is_set():
            self._stopping.clear()
            self._arrived = -1
            self._thread = threading.Thread(target=self._play, name="tapelab-replay", daemon=True)
            self._thread.start()

    def stop_stream(self, symbols: str | Sequence[str] | None = None) -> None:
        """No more callbacks for these symbols; without `symbols` the replay ends."""
        if symbols is not None:
            self._books.silence(parse_symbols(symbols)[1])
            return
        self._books.silence()
        self._stopping.set()
        self._books.drop()
        if self._thread is not None:
            self._thread.join(STOP_PATIENCE)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything was played; false if that took longer than `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is not None and not self._thread.is_alive()

    def enable_recording(
        self, symbols: str | Sequence[str] | None = None, save_dir: str | Path | None = None
    ) -> None:
        """Keep what is played from now on."""
        if self._asked is not None:
            raise RecordingError("A recording is enabled already.", remedy="Call disable_recording() first.")
        names = parse_symbols(symbols)[1] if symbols is not None else list(self._played.symbols)
        parent = Path(save_dir).absolute() if save_dir is not None else folder_of(self._settings)
        self._asked = (names, parent, self._arrived)

    def disable_recording(self) -> Path:
        """Lay down what was played since, as a dataset `replay_…`; returns its folder."""
        if self._asked is None:
            raise RecordingError("No recording is enabled.", remedy="Call enable_recording() first.")
        (names, parent, after), self._asked = self._asked, None
        ticks = {kind: self._stretch(kind, names, after) for kind in ("quotes", "trades")}
        if not any(map(len, ticks.values())):
            raise NoData("Nothing was played, so there is nothing to save.", remedy="Call start_stream().")
        self._dataset = catalogue.from_tables(
            named_now("replay", self._played.market),
            **ticks,
            source="replay",
            provenance={**self._played.provenance, "source": "replay", "replayed": self._played.name},
            settings=self._settings,
            folder=parent,
        )
        write_bars(self._dataset, Interval.parse("1min"))
        return self._dataset.path

    def get_recorded_dataframe(self, resample_interval: str = "1min") -> pd.DataFrame:
        """OHLCV bars of what was recorded so far, or of the last recording."""
        interval, market = Interval.any(resample_interval), self._played.market
        if self._asked is not None:
            names, _, after = self._asked
            bars = bars_of(lambda kind: self._stretch(kind, names, after), interval, market)
        elif self._dataset is not None:
            bars = self._dataset.bar_table(interval)
        else:
            raise RecordingError("Nothing is recorded yet.", remedy="Call enable_recording() first.")
        frame: pd.DataFrame = tables.to_frame(bars)
        return frame

    @property
    def recording(self) -> Dataset:
        """What is played."""
        return self._played

    def follow(self, stop: threading.Event) -> Iterator[Event]:
        """Every event of what is played, at its pace, until it ends or `stop` is set."""
        return self._played.replay(speed=self._speed or None, stop=stop)

    def latest_snapshot(self, symbol: str) -> OrderBook | None:
        """The newest book of a symbol with its last trade; None before the first quote."""
        return self._books.snapshot(symbol)

    def get_stats(self) -> dict[str, Any]:
        """What was played and told so far."""
        return {
            "streaming": self._thread is not None and self._thread.is_alive(),
            "recording": self._asked is not None,
            "dataset": self._played.name,
            "symbols": sorted(self._books.symbols),
            "events": self._events,
            "callbacks": self._books.told,
            "callback_errors": self._books.errors,
            "callback_skipped": self._books.skipped,
            "callback_last_error": repr(self._books.last_error) if self._books.last_error else None,
        }

    def close(self) -> None:
        """End the replay and the callbacks."""
        self.stop_stream()
        self._books.close()

    def _play(self) -> None:
        events = self._played.replay()
        if self._speed:
            events = paced(events, self._speed, self._stopping.wait)
        for some in _batches(events, 1 if self._speed else TOLD_AT_ONCE):
            if self._stopping.is_set():
                return
            self._books.add(some, patiently=not self._speed)
            self._events += len(some)
            last = some[-1]
            if not isinstance(last, Bar):
                self._arrived = last.arrival

    def _stretch(self, kind: str, names: list[str], after: int) -> pa.Table:
        table = self._played.table(kind)
        if kind == "bars":
            return table.slice(0, 0)
        order = table.column("arrival")
        played = pc.and_(pc.greater(order, after), pc.less_equal(order, self._arrived))
        return table.filter(pc.and_(played, pc.is_in(table.column("symbol"), pa.array(names))))


def _batches(events: Iterator[Event], size: int) -> Iterator[list[Event]]:
    some: list[Event] = []
    for event in events:
        some.append(event)
        if len(some) >= size:
            yield some
            some = []
    if some:
        yield some
