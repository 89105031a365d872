"""Record the live stream: start, follow, stop, and keep what came as a dataset."""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

import msgspec
import pyarrow as pa

from tapelab.errors import Locked, NoData, RecordingError, TapelabError, UnknownName, UsageError
from tapelab.live.problems import is_stalled
from tapelab.live.schedule import delay_of
from tapelab.live.stream import Stream, following
from tapelab.market import clock, sessions, symbols, tables
from tapelab.market.intervals import Interval
from tapelab.market.sessions import Session
from tapelab.market.symbols import Market
from tapelab.massive.feed import CHANNELS, topics_of
from tapelab.settings import Settings, current
from tapelab.store import files
from tapelab.store.datasets import catalogue, growing, manifest, parts
from tapelab.store.datasets.dataset import Dataset, check_name, folder_of, open_dataset
from tapelab.store.datasets.growing import JOURNAL, Growing
from tapelab.store.datasets.shaping import bars_of, spelled
from tapelab.store.journal.segments import is_held, lock_path

if TYPE_CHECKING:
    import pandas as pd

WILDCARD = "*"
MAX_LAG = clock.DAY  # an event further from our clock than this is a replay's, and says nothing of lag

LETTING_GO = 5 * clock.SECOND  # for a receiver that goes on elsewhere to be done with the journal it left
LOOK_EVERY = 0.01  # seconds between two looks whether it has

State = Literal["ready", "recording", "stopped", "failed"]


@dataclass(frozen=True)
class RecordingStats:
    """A recording at a glance.

    `frames`, `events`, `bytes`: messages received, quotes, trades and bars in them, and their size.
    `acknowledged`, `durable`: bytes of the journal that survive a kill, and a power cut. `lag_ms`: how far
    behind the exchange's clock the newest event arrived; None for a replay of another day. `unknown`,
    `malformed`, `dropped`: events of channels without a table, what breaks the protocol, messages cut off
    by the end of a connection; all of them stay in the journal. `since`: ns UTC. `last_event`: when the
    newest event arrived, ns UTC. `connected`: the topics are confirmed just now. `stalled`: nothing comes
    though the session is open and something should. `causes`: the gaps by cause. `error`: what ended it.
    """

    state: State
    dataset: str
    frames: int = 0
    events: int = 0
    bytes: int = 0
    quotes: int = 0
    trades: int = 0
    bars: int = 0
    reconnects: int = 0
    gaps: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    lag_ms: float | None = None
    acknowledged: int = 0
    durable: int = 0
    unknown: int = 0
    malformed: int = 0
    dropped: int = 0
    since: int | None = None
    last_event: int | None = None
    connected: bool = False
    stalled: bool = False
    error: TapelabError | None = None


class WebSocketDataRecorder:
    """Records live quotes and trades of some symbols of one market: every frame, safe against a kill.

    `channels`: of `quotes`, `trades`, `bars` (minutes). `symbols`: names, or `"*"` for all stocks.
    `save_dir`: where the dataset goes, instead of the endpoint's own datasets. While it records, and if the
    program is killed, it is a dataset named `recording_…`; `save_dataset` gives it its name. If another
    program on this machine records the same already, this one follows that recording, since the vendor
    allows one connection for a market.

    Also a context manager, which starts and stops it.
    """

    def __init__(
        self,
        symbols: str | Sequence[str],
        *,
        channels: Sequence[str] = ("quotes", "trades"),
        save_dir: str | Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or current()
        self.market, self.symbols = parse_symbols(symbols)
        self.channels = check_channels(channels)
        self._parent = Path(save_dir).absolute() if save_dir is not None else folder_of(self._settings)
        self._growing: Growing | None = None
        self._stream: Stream | None = None
        self._dataset: Dataset | None = None
        self._saved = False

    def __repr__(self) -> str:
        return f"<WebSocketDataRecorder {', '.join(self.symbols[:4])}: {self.stats.state}>"

    def start(self) -> None:
        """Connect, log in, subscribe; returns once the vendor has confirmed.

        Raises `NotAuthorized`, `NotInPlan`, `Unreachable` …: nothing is left behind then, unless events
        had come already.
        """
        if self._growing is not None or self._dataset is not None:
            raise RecordingError("This recorder was started already.", remedy="Make a new one.")
        self._settings.need_api_key()
        topics = self._topics()
        stream = Stream(self._settings, self.market, topics)
        grows = self._create(None)
        try:
            stream.start(grows, grows.journal, grows.manifest.id)
        except Locked as error:
            self._discard(grows)
            leader = following(error, topics)
            if leader is None:
                raise
            grows = self._create(leader)
            stream = Stream(self._settings, self.market, topics)
            stream.follow(grows, leader)  # waits for nobody
        except BaseException:
            self._discard(grows)
            raise
        self._growing, self._stream = grows, stream

    def stop(self) -> None:
        """Close the connection and finish the dataset; of one in which nothing came and nothing was lost,
        nothing is left. A second call does nothing.

        Raises what ended the recording early, if anything did; what was received until then is kept.
        """
        if self._growing is None or self._stream is None:
            return
        grows, self._growing = self._growing, None
        self._stream.stop()
        try:
            self._dataset = self._finish(grows)
        finally:
            grows.close()
        self._last = self._stats_of(grows, self._stream, "stopped")
        if self._stream.error is not None:
            raise self._stream.error

    def __enter__(self) -> WebSocketDataRecorder:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except TapelabError:
            if kind is None:
                raise

    @property
    def stats(self) -> RecordingStats:
        """Counters of this moment. `state` is `failed` and `error` says why where it ended by itself."""
        if self._growing is not None and self._stream is not None:
            return self._stats_of(self._growing, self._stream, "recording")
        return self._last if self._dataset is not None else RecordingStats("ready", "")

    def get_dataframe(self, resample_interval: str = "1min") -> pd.DataFrame:
        """OHLCV bars of what was recorded so far: of the trades, without them of the quotes' mid prices."""
        interval = Interval.any(resample_interval)
        source = self._growing or self._dataset
        if source is None:
            raise RecordingError("Nothing is recorded yet.", remedy="Call start() first.")
        frame: pd.DataFrame = tables.to_frame(bars_of(source.table, interval, Market(self.market)))
        return frame

    def newest_quotes(self) -> pa.Table:
        """Some quotes that came last, while it records: for a look at them, not to count."""
        grows = self._growing
        return grows.newest_rows("quotes") if grows is not None else tables.QUOTES.empty_table()

    def save_dataset(self, name: str, resample_interval: str = "1min", append: bool = False) -> Path:
        """Give the finished recording its name; returns the path of its bars, `<dataset>/bars_1min.parquet`.

        `append`: where a dataset of that name is there already, the recording goes behind it as a new
        version. Raises `NoData` where nothing was received, `UsageError` where the name is taken.
        """
        interval = Interval.any(resample_interval)
        recorded = self._finished()
        target = recorded.path.parent / check_name(name)
        if manifest.versions(target) and target != recorded.path:
            if not append:
                raise UsageError(
                    f"There is a dataset {name!r} already.",
                    remedy="Choose another name, or add to it with append=True.",
                    name=name,
                )
            return self._append(Dataset(target, manifest.load(target)), interval)
        if target != recorded.path:
            if self._saved:
                raise RecordingError(
                    f"This recording is saved as {recorded.name!r} already.", remedy="Copy that folder."
                )
            try:
                recorded.path.rename(target)
            except OSError as error:
                raise files.unwritable(target, error) from error
            files.sync_folder(target.parent)
        self._dataset, self._saved = Dataset(target, recorded._manifest), True
        return write_bars(self._dataset, interval)

    def append_to_dataset(self, dataset: str | Path | Dataset, resample_interval: str = "1min") -> Path:
        """Put the finished recording behind an existing dataset, as a new version of it.

        Returns the path of the bars of the whole. Raises `UsageError` where the two come from different
        places, or overlap in time.
        """
        if not isinstance(dataset, Dataset):
            dataset = open_dataset(dataset, settings=self._settings)
        return self._append(dataset, Interval.any(resample_interval))

    def _append(self, target: Dataset, interval: Interval) -> Path:
        recorded = self._finished()
        whole = catalogue.append(target, recorded)
        if not self._saved:
            shutil.rmtree(recorded.path)
            mine = whole._manifest.segments[len(target._manifest.segments) :]
            only = msgspec.structs.replace(
                recorded._manifest, segments=mine, version=whole.version, journals=()
            )
            self._dataset, self._saved = Dataset(whole.path, only), True
        return write_bars(whole, interval)

    def _finished(self) -> Dataset:
        if self._growing is not None:
            raise RecordingError("The recording is still running.", remedy="Call stop() first.")
        if self._dataset is None:
            raise RecordingError("Nothing is recorded yet.", remedy="Call start() first, later stop().")
        if not self._dataset.symbols:
            raise NoData(
                "Nothing was received, so there is nothing to save.",
                remedy="Is the market open, and do the symbols trade?",
            )
        return self._dataset

    def _create(self, leader: Path | None) -> Growing:
        return growing.create(
            self._parent,
            named_now("recording", self.market),
            provenance=provenance_of(self._settings, self.market, self.channels),
            following=leader,
            topics=self._topics(),
        )

    def _topics(self) -> list[str]:
        return topics_of(self.channels, [spelling(name) for name in self.symbols])

    def _discard(self, grows: Growing) -> None:
        grows.give_up()

    def _finish(self, grows: Growing) -> Dataset:
        return finished(grows)

    def _stats_of(self, grows: Growing, stream: Stream, state: State) -> RecordingStats:
        known, counts, figures = grows.manifest, grows.counts(), stream.figures
        seen = known.symbols.values()
        rows = {kind: sum(getattr(one, kind) for one in seen) for kind in ("quotes", "trades", "bars")}
        lag, events = grows.lag, sum(rows.values())
        delay = delay_of(self._settings.ws_url)
        there = clock.now() - delay  # what time it is in the market that we hear
        last = grows.newest + lag if grows.newest is not None and lag is not None else None
        running = state == "recording" and stream.error is None
        return RecordingStats(
            state="failed" if stream.error is not None else state,
            dataset=grows.folder.name,
            events=events,
            **rows,
            **{name: counts[name] for name in ("frames", "bytes", "unknown", "malformed", "dropped")},
            reconnects=max(counts["connections"] - 1, 0),
            gaps=len(known.gaps),
            causes=Counter(gap.cause for gap in known.gaps),
            lag_ms=lag / clock.MILLISECOND if lag is not None and abs(lag) < MAX_LAG else None,
            acknowledged=figures.acknowledged_bytes,
            durable=figures.durable_bytes,
            since=known.begun,
            last_event=last,
            connected=running and bool(grows.topics),
            stalled=running
            and is_stalled(
                there,
                known.begun - delay,
                events,
                None if last is None else last - delay,
                session_at(self.market, there),
            ),
            error=stream.error,
        )


def finished(grows: Growing) -> Dataset:
    """The dataset of a recording that has ended, taken away where nothing came and nothing was lost."""
    dataset = Dataset(grows.folder, grows.finish())
    if grows.silent and not dataset.gaps:
        until = clock.monotonic() + LETTING_GO
        while is_held(lock_path(dataset.path / JOURNAL)) and clock.monotonic() < until:
            clock.sleep(LOOK_EVERY)
        with contextlib.suppress(Locked):
            dataset.remove()
    return dataset


def session_at(market: str, now: int) -> Session | None:
    """The session of that exchange's date."""
    kept = Market(market)
    return sessions.session(kept, clock.date_of(now, sessions.zone(kept)))


def parse_symbols(given: str | Sequence[str]) -> tuple[str, list[str]]:
    """The market and the symbols that a user means; `"*"` is every stock."""
    names = [given] if isinstance(given, str) else list(given)
    if names == [WILDCARD]:
        return Market.STOCKS.value, names
    parsed = symbols.parse_all(names)
    return parsed[0].market.value, [symbol.text for symbol in parsed]


def check_channels(channels: Sequence[str]) -> tuple[str, ...]:
    given = (channels,) if isinstance(channels, str) else tuple(dict.fromkeys(channels))
    for channel in given:
        if channel not in CHANNELS:
            raise UnknownName.among("channel", channel, CHANNELS)
    if not given:
        raise UsageError("No channel was given.", remedy=f"Choose of {', '.join(CHANNELS)}.")
    return given


def named_now(prefix: str, market: str) -> str:
    """`prefix_YYYYMMDD_HHMMSS`, by the exchange's clock on the wall."""
    stamp = clock.iso(clock.now(), sessions.zone(Market(market)))[:19]
    return f"{prefix}_{stamp.replace('-', '').replace(':', '').replace('T', '_')}"


def provenance_of(settings: Settings, market: str, channels: Sequence[str]) -> dict[str, object]:
    """What is known about a live recording before it begins."""
    return {
        "endpoint": settings.endpoint,
        "source": "live",
        "market": market,
        "channels": list(channels),
        "simulated": False,
        "quote_size_unit": "unknown",  # the vendor's papers say round lots in one place, shares in another
    }


def write_bars(dataset: Dataset, interval: Interval) -> Path:
    """Lay the bars of a dataset beside it, for any program that reads Parquet."""
    path = dataset.path / f"bars_{spelled(interval)}.parquet"
    parts.write_parquet(tables.to_frame(dataset.bar_table(interval), "arrow"), path, replace=True)
    return path


def spelling(name: str) -> str:
    return name if name == WILDCARD else symbols.parse(name).websocket
