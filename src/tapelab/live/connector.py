"""Connectors: live prices to a callback, with or without a recording beside it."""

from __future__ import annotations

import shutil
import threading
import uuid
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tapelab.errors import Locked, MissingExtra, NoData, RecordingError, UnknownName
from tapelab.live.books import Books, Callback, OrderBook
from tapelab.live.recorder import (
    check_channels,
    finished,
    named_now,
    parse_symbols,
    provenance_of,
    spelling,
    write_bars,
)
from tapelab.live.stream import Scratch, Stream, following
from tapelab.market import clock, tables
from tapelab.market.events import Event
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market
from tapelab.massive.feed import topics_of
from tapelab.settings import Settings, current
from tapelab.store import journal
from tapelab.store.datasets import growing
from tapelab.store.datasets.dataset import Dataset, folder_of, list_datasets, open_dataset
from tapelab.store.datasets.growing import Growing
from tapelab.store.datasets.shaping import bars_of
from tapelab.store.journal.segments import is_held, lock_path

if TYPE_CHECKING:
    import pandas as pd

ABANDONED = clock.HOUR  # age from which the journal of a stream that nobody records may be removed
GROUP = "tapelab.connectors"  # of entry points: name → a callable that takes options, gives a connector


class Connector(Protocol):
    """What every connector offers, whether the prices are live or replayed."""

    def list_symbols(self) -> list[str]: ...

    def start_stream(self, symbols: str | Sequence[str], callback: Callback) -> None: ...

    def stop_stream(self, symbols: str | Sequence[str] | None = None) -> None: ...

    def enable_recording(
        self, symbols: str | Sequence[str] | None = None, save_dir: str | Path | None = None
    ) -> None: ...

    def disable_recording(self) -> Path: ...

    def get_recorded_dataframe(self, resample_interval: str = "1min") -> pd.DataFrame: ...

    def latest_snapshot(self, symbol: str) -> OrderBook | None: ...

    def get_stats(self) -> dict[str, Any]: ...


def get_connector(name: str, **options: Any) -> Connector:
    """A connector by name: `"massive"` (live) or `"replay"` (`dataset=`, `speed=`), or one from a plugin.

    Raises `UnknownName` with the nearest known one.
    """
    if name == "massive":
        return MassiveConnector(**options)
    if name == "replay":
        from tapelab.live.replaying import ReplayConnector

        return ReplayConnector(**options)
    for entry in entry_points(group=GROUP, name=name):
        try:
            make = entry.load()
        except (ImportError, AttributeError) as cause:
            raise MissingExtra(
                f"The connector {name!r} cannot be loaded from {entry.value} ({cause}).",
                remedy="Install the package again that brings it.",
            ) from cause
        made: Connector = make(**options)
        return made
    raise UnknownName.among("connector", name, list_connectors())


def list_connectors() -> list[str]:
    """The names that `get_connector` knows."""
    return sorted({"massive", "replay", *(entry.name for entry in entry_points(group=GROUP))})


class MassiveConnector:
    """The vendor's live stream of one market: one connection, whatever the number of symbols.

    Every frame goes to a journal in a process of its own; callbacks read behind it, on their own thread.
    Without a recording the journal is a short one that is thrown away.
    """

    def __init__(
        self, *, channels: Sequence[str] = ("quotes", "trades"), settings: Settings | None = None
    ) -> None:
        self._settings = settings or current()
        self._channels = check_channels(channels)
        self._market = Market.STOCKS.value
        self._books = Books()
        self._stream: Stream | None = None
        self._streamed: list[str] = []
        self._asked: tuple[list[str], Path] | None = None  # to be recorded, and where
        self._growing: Growing | None = None
        self._dataset: Dataset | None = None
        self._scratch: list[Path] = []

    def list_symbols(self) -> list[str]:
        """The symbols that are streamed now, and those that recordings of this endpoint hold."""
        held = {symbol for dataset in list_datasets(settings=self._settings) for symbol in dataset.symbols}
        return sorted({*self._streamed, *held})

    def start_stream(self, symbols: str | Sequence[str], callback: Callback) -> None:
        """Call `callback(symbol, orderbook)` for every quote; returns once the vendor has confirmed.

        `orderbook["bids"][0]` and `["asks"][0]` are `[price, size]`; a side that is empty is an empty list.
        More symbols and callbacks may follow while it runs. Raises `NotAuthorized`, `NotInPlan` …
        """
        self._market, names = parse_symbols(symbols)
        new = [name for name in names if name not in self._streamed]
        self._books.listen(names, callback)
        self._streamed += new
        try:
            if self._stream is not None and self._stream.running:
                self._stream.change(more=self._topics(new), less=[])
            else:
                self._open()
        except BaseException:
            self._books.silence(names)
            self._streamed = [name for name in self._streamed if name not in new]
            raise

    def stop_stream(self, symbols: str | Sequence[str] | None = None) -> None:
        """No more callbacks for these symbols; without `symbols` the connection is closed.

        A recording that is enabled keeps what came, and its symbols while the connection is open.
        """
        if symbols is None:
            self._books.silence()
            self._streamed = []
            if self._stream is not None:
                self._stream.stop()
                self._sweep()
            return
        _, names = parse_symbols(symbols)
        self._books.silence(names)
        self._streamed = [name for name in self._streamed if name not in names]
        recorded = self._asked[0] if self._asked else []
        if self._stream is not None and self._stream.running:
            self._stream.change(more=[], less=self._topics([n for n in names if n not in recorded]))

    def enable_recording(
        self, symbols: str | Sequence[str] | None = None, save_dir: str | Path | None = None
    ) -> None:
        """Record what the stream brings, from now or from when it starts; all streamed symbols by default.

        `save_dir`: where the dataset goes, instead of the endpoint's own datasets.
        """
        if self._asked is not None:
            raise RecordingError("A recording is enabled already.", remedy="Call disable_recording() first.")
        names = parse_symbols(symbols)[1] if symbols is not None else []
        parent = Path(save_dir).absolute() if save_dir is not None else folder_of(self._settings)
        self._asked, self._dataset = (names, parent), None
        if self._stream is not None and self._stream.running:
            try:
                self._stream.need_connection()
                self._stream.change(more=self._topics([n for n in names if n not in self._streamed]), less=[])
                grows = self._grow(None)
                self._stream.move(grows, grows.journal, grows.manifest.id)
            except BaseException:
                self._asked = None
                raise
            self._growing = grows
            self._sweep()

    def disable_recording(self) -> Path:
        """Finish the recording; the stream goes on. Returns the dataset's folder, `massive_live_…`.

        `open_dataset` takes it, and `bars_1min.parquet` lies in it. Raises `NoData` where the stream was
        never started or nothing came.
        """
        if self._asked is None:
            raise RecordingError("No recording is enabled.", remedy="Call enable_recording() first.")
        self._asked = None
        grows, self._growing = self._growing, None
        if grows is None:
            raise NoData(
                "The stream was never started, so nothing was recorded.", remedy="Call start_stream()."
            )
        stream = self._stream
        if stream is not None and stream.running and stream.leader is None:
            folder = self._scratch_folder()
            stream.move(Scratch(folder), folder)
        elif stream is not None and stream.running:
            stream.stop()  # it followed another program's recording for this one alone
        if stream is not None and stream.error is not None:
            warnings.warn(f"The stream ended early: {stream.error}", UserWarning, stacklevel=2)
        self._dataset = finished(grows)
        if not self._dataset.symbols:
            raise NoData(
                "Nothing was received, so there is nothing to save.",
                remedy="Is the market open, and do the symbols trade?",
            )
        write_bars(self._dataset, Interval.parse("1min"))
        return self._dataset.path

    def get_recorded_dataframe(self, resample_interval: str = "1min") -> pd.DataFrame:
        """OHLCV bars of the recording under way, or of the last one."""
        source = self._growing or self._dataset
        if source is None:
            raise RecordingError("Nothing is recorded yet.", remedy="Call enable_recording() first.")
        bars = bars_of(source.table, Interval.any(resample_interval), Market(self._market))
        frame: pd.DataFrame = tables.to_frame(bars)
        return frame

    @property
    def recording(self) -> Dataset:
        """The dataset of the recording under way."""
        if self._growing is None:
            raise RecordingError("Nothing is recorded.", remedy="Call enable_recording() and start_stream().")
        return open_dataset(self._growing.folder)

    def follow(self, stop: threading.Event) -> Iterator[Event]:
        """Every event of the recording under way, from its beginning, until it ends or `stop` is set."""
        leader = self._stream.leader if self._stream is not None else None
        if leader is not None:
            name = leader.parent.name
            raise RecordingError(
                f"This stream follows another program's recording, {name}.",
                remedy=f"Use that one: tl.open_dataset({name!r}).",
            )
        return self.recording.replay(follow=True, stop=stop)

    def latest_snapshot(self, symbol: str) -> OrderBook | None:
        """The newest book of a symbol with its last trade; None before the first quote."""
        return self._books.snapshot(symbol)

    def get_stats(self) -> dict[str, Any]:
        """What the stream, the recording and the callbacks have done so far."""
        stream, grows, books = self._stream, self._growing, self._books
        error = stream.error if stream is not None else None
        figures = stream.figures if stream is not None else None
        stats: dict[str, Any] = {
            "streaming": stream is not None and stream.running,
            "recording": grows is not None,
            "symbols": sorted(self._streamed),
            "callbacks": books.told,
            "callback_errors": books.errors,
            "callback_skipped": books.skipped,
            "callback_last_error": repr(books.last_error) if books.last_error else None,
            "acknowledged": figures.acknowledged_bytes if figures else 0,
            "durable": figures.durable_bytes if figures else 0,
            "error": str(error) if error else None,
        }
        if grows is not None:
            seen = grows.manifest.symbols.values()
            counts = grows.counts()
            stats |= counts | {
                "dataset": grows.folder.name,
                "quotes": sum(one.quotes for one in seen),
                "trades": sum(one.trades for one in seen),
                "gaps": len(grows.manifest.gaps),
            }
        return stats

    def close(self) -> None:
        """Stop streaming and recording; what was recorded is kept."""
        self.stop_stream()
        if self._growing is not None:
            finished(self._growing)
            self._growing = self._asked = None
        self._books.close()

    def _open(self) -> None:
        recorded = self._asked[0] if self._asked else []
        topics = self._topics(list(dict.fromkeys(self._streamed + recorded)))
        stream = self._new_stream(topics)
        try:
            if self._asked is not None:
                self._growing = self._growing or self._grow(None)
                stream.start(self._growing, self._growing.journal, self._growing.manifest.id)
            else:
                folder = self._scratch_folder()
                stream.start(Scratch(folder), folder)
        except Locked as error:
            leader = following(error, topics)
            if leader is None:
                raise
            stream = self._new_stream(topics)
            if self._asked is not None:
                self._discard()
                self._growing = self._grow(leader)
                stream.follow(self._growing, leader)
            else:
                own = self._scratch_folder()
                stream.follow(Scratch(leader, after=journal.last_sequence(leader), own=own), leader)
        except BaseException:
            self._discard()
            self._sweep()
            raise
        self._stream = stream

    def _new_stream(self, topics: list[str]) -> Stream:
        stream = Stream(self._settings, self._market, topics)
        stream.taps.append(self._books.take)
        return stream

    def _grow(self, leader: Path | None) -> Growing:
        assert self._asked is not None
        names, parent = self._asked
        grows = growing.create(
            parent,
            named_now("massive_live", self._market),
            provenance=provenance_of(self._settings, self._market, self._channels),
            following=leader,
            topics=self._topics(list(dict.fromkeys(self._streamed + names))),
        )
        if names:
            grows.keep_only(names)
        return grows

    def _discard(self) -> None:
        """Give up the recording that could not begin, unless it holds something already."""
        if self._growing is not None and not self._growing.manifest.symbols:
            self._growing.give_up()
            self._growing = None

    def _scratch_folder(self) -> Path:
        parent = self._settings.root / "streams"
        for old in parent.glob("*"):  # left by programs that were killed
            if clock.now() - old.stat().st_mtime_ns > ABANDONED and not is_held(lock_path(old)):
                shutil.rmtree(old, ignore_errors=True)
        self._scratch.append(parent / uuid.uuid4().hex)
        return self._scratch[-1]

    def _sweep(self) -> None:
        """Remove the journals of what nobody recorded."""
        for folder in self._scratch:
            shutil.rmtree(folder, ignore_errors=True)
        self._scratch = []

    def _topics(self, names: list[str]) -> list[str]:
        return topics_of(self._channels, [spelling(name) for name in names])
