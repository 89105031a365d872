"""Paper trading: a backtest on a recording that still grows."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Protocol, runtime_checkable

from tapelab.errors import NoData, TapelabError, UsageError
from tapelab.lab import rules, sources
from tapelab.lab.backtest import Run, prepare
from tapelab.lab.loop import Record
from tapelab.lab.result import Result
from tapelab.lab.strategy import Strategy
from tapelab.market import clock
from tapelab.market.events import Event
from tapelab.store.datasets.dataset import Dataset

ROOM_FOR_OTHERS = 0.001  # seconds that the run leaves to whoever asks for its result


@runtime_checkable
class Recording(Protocol):
    """What paper trading asks of a connector: where its stream is recorded, and each event as it comes."""

    @property
    def recording(self) -> Dataset: ...

    def follow(self, stop: threading.Event) -> Iterator[Event]: ...


class PaperSession:
    """A strategy that trades on paper while the market is recorded; `paper_trade` makes it.

    It runs until the recording ends, `stop` is called or the strategy breaks. Also a context manager, which
    stops it.
    """

    def __init__(self, run: Run, dataset: Dataset, events: Iterator[Event], stop: threading.Event) -> None:
        self._run, self._dataset, self._events, self._stop = run, dataset, events, stop
        self._seen = 0
        self._record: Record | None = None
        self._error: TapelabError | None = None
        self._guard = threading.Lock()  # held by the run except between two events
        self._asked = 0
        self._thread = threading.Thread(target=self._go, name="tapelab-paper", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        name = type(self._run.loop.strategy).__name__
        return f"<PaperSession {name} on {self._dataset.name}: {'running' if self.running else 'ended'}>"

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def result(self) -> Result:
        """What it has made so far; at the end, what a backtest of the recording gives.

        Raises `NoData` before the first event, and what broke the strategy, if anything did.
        """
        source = sources.read(self._dataset.latest())
        self._asked += 1
        with self._guard:
            self._asked -= 1
            if self._error is not None:
                raise self._error
            if not self._seen:
                raise NoData(f"{self._dataset.name} has brought nothing yet.", remedy="Ask again later.")
            return self._run.result(source, self._record or self._run.loop.record(self._seen))

    def wait(self, seconds: float | None = None) -> bool:
        """Until the recording has ended, or so many seconds at most; whether it has."""
        self._thread.join(seconds)
        return not self.running

    def stop(self) -> None:
        """End it: what is still working is withdrawn. The recording goes on."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def __enter__(self) -> PaperSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _go(self) -> None:
        with self._guard:
            try:
                self._record = self._run.loop.run(self._one_by_one())
            except TapelabError as error:
                self._error = error

    def _one_by_one(self) -> Iterator[Event]:
        while True:
            self._guard.release()
            try:
                if self._asked:
                    clock.sleep(ROOM_FOR_OTHERS)
                event = next(self._events, None)
            finally:
                self._guard.acquire()
            if event is None:
                return
            self._seen += 1
            yield event


def paper_trade(
    strategy: Strategy | type[Strategy] | str,
    recording: Dataset | Recording,
    *,
    cash: float = 100_000,
    fees: rules.Fees | None = None,
    latency: rules.Latency | None = None,
    fill: rules.FillRule | Sequence[rules.FillRule] | None = None,
    risk: rules.RiskLimits | None = None,
) -> PaperSession:
    """Let a strategy trade on paper, on what is being recorded at this moment.

    `recording`: a `Dataset` that still grows, or a connector that records. The strategy sees everything from
    the beginning of the recording, then each event as it comes. It is a backtest on a dataset that grows:
    with the same rules a later `backtest` of the recording gives the same fills. Rules as for `backtest`.

    Raises `UsageError` for a recording that carries neither quotes nor trades.
    """
    stop = threading.Event()
    if isinstance(recording, Dataset):
        dataset, events = recording, recording.replay(follow=True, stop=stop)
    elif isinstance(recording, Recording):
        dataset, events = recording.recording, recording.follow(stop)
    else:
        raise UsageError(
            f"A {type(recording).__name__} is nothing to trade on paper with.",
            remedy="Give a dataset that is being recorded, or a connector.",
        )
    source = sources.to_come(dataset) if dataset.growing else sources.read(dataset)
    if dataset.growing and not {"quotes", "trades"} & {*source.carried}:
        raise UsageError(
            f"{dataset.name} records neither quotes nor trades.",
            remedy="Record one of them: channels=('quotes', …).",
        )
    run = prepare(strategy, source, cash=cash, fees=fees, latency=latency, fill=fill, risk=risk)
    return PaperSession(run, dataset, events, stop)
