"""The clock of a backtest: events in, orders out. It does not know where the events come from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain
from math import nan
from pathlib import Path
from traceback import extract_tb
from typing import Literal

from tapelab.errors import StrategyError, TapelabError
from tapelab.lab.bars import NEVER, RunningBars, moves
from tapelab.lab.broker import Broker, Fill
from tapelab.lab.curve import Curve
from tapelab.lab.metrics import MARK_OUTS
from tapelab.lab.strategy import Strategy
from tapelab.market.clock import HOUR, SECOND
from tapelab.market.events import Bar, Event, Quote, Trade
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market

QUIET = HOUR  # a timer rings this long into silence, then sleeps until the next event


@dataclass(frozen=True)
class Record:
    """What happened. `later_mids` has a row for each fill, a column for each mark-out."""

    start: int
    end: int
    events: int
    fills: list[Fill]
    curve: Curve
    later_mids: list[list[float]]
    late_prints: int
    unfilled: int


class Loop:
    """Shows every event first to the broker, which fills what was asked for before it, then to the strategy.

    Events come in order of arrival; the time is the exchange's, so that a recording gives the same result at
    whatever speed it was made. Bars, timers and mark-outs that fall due come before the event at or
    after their time. What breaks in a callback is raised as `StrategyError`, from its cause.
    """

    def __init__(
        self,
        strategy: Strategy,
        broker: Broker,
        market: Market = Market.STOCKS,
        bars_from: Literal["trades", "quotes"] = "trades",
    ) -> None:
        self.strategy, self.broker, self.market = strategy, broker, market
        interval = Interval.parse(strategy.bars) if strategy.bars and broker.on_bars is None else None
        self.running = RunningBars(interval, market) if interval is not None else None
        self.prints = self.running if bars_from == "trades" else None
        self.mids = self.running if bars_from == "quotes" else None
        self.period = round((strategy.timer or 0) * SECOND)
        self.ring = NEVER
        self.due = 0
        self.equity = float(broker.cash)
        self.mark_outs: list[tuple[int, int, int]] = []
        self.later_mids: list[list[float]] = []
        broker.tell = self._filled
        broker.set_timer = self._set_timer
        strategy._broker = broker

    def run(self, events: Iterable[Event]) -> Record:
        """From the first event to the last; what is still working then is withdrawn."""
        events = iter(events)
        first = next(events, None)
        self.start = 0 if first is None else first.timestamp if isinstance(first, Bar) else first.ts_event
        broker = self.broker
        broker.now = self.start
        self.curve = Curve(self.start, self.equity, self.market)
        self._set_timer(self.strategy.timer)
        self._call(self.strategy.on_start)
        count = self._through(chain((first,), events)) if first is not None else 0
        unfilled = broker.cancel_all()
        self._call(self.strategy.on_stop)
        broker.cancel_all()
        self._note_mark_outs(broker.now)
        return self.record(count, unfilled)

    def record(self, events: int, unfilled: int = 0) -> Record:
        """What has happened so far, in `events` events."""
        broker, curve = self.broker, copy.deepcopy(self.curve)
        curve.end(broker.now, broker.equity())
        later_mids = [list(mids) for mids in self.later_mids]
        late = self.running.late if self.running else 0
        return Record(self.start, broker.now, events, list(broker.fills), curve, later_mids, late, unfilled)

    def _through(self, events: Iterable[Event]) -> int:
        broker, curve, prints, mids = self.broker, self.curve, self.prints, self.mids
        working, held, marks, quotes = broker.working, broker.held, broker.marks, broker.quotes
        on_quote, on_trade = self._callback("on_quote"), self._callback("on_trade")
        group: list[Bar] = []
        count = 0
        for count, event in enumerate(events, 1):  # noqa: B007
            if isinstance(event, Quote):
                symbol, time, _, _, bid, ask, _, _ = event
                if time >= self.due:
                    self._catch_up(time)
                if time > broker.now:
                    broker.now = time
                before = marks.get(symbol)
                if bid is not None and ask is not None:
                    marks[symbol] = mid = (bid + ask) / 2
                    if before is not None and mid != before and (size := held.get(symbol)):
                        self.equity += size * (mid - before)
                        curve.update(time, self.equity)
                    if mids is not None:
                        mids.quote(symbol, time, mid)
                if symbol in working:
                    broker.see_quote(event, before)
                quotes[symbol] = event
                if on_quote is not None:
                    try:
                        on_quote(event)
                    except TapelabError:
                        raise
                    except Exception as cause:
                        raise self._broken("on_quote", cause) from cause
            elif isinstance(event, Trade):
                symbol, time, _, _, price, size, _, conditions, _ = event
                if time >= self.due:
                    self._catch_up(time)
                if time > broker.now:
                    broker.now = time
                if symbol in working:
                    broker.see_trade(event)
                if symbol not in quotes and moves(conditions).high_low:
                    self._mark(symbol, price)
                if prints is not None:
                    prints.trade(symbol, time, price, size, conditions)
                if on_trade is not None:
                    try:
                        on_trade(event)
                    except TapelabError:
                        raise
                    except Exception as cause:
                        raise self._broken("on_trade", cause) from cause
            else:
                if group and group[0].ends != event.ends:
                    self._see_bars(group)
                    group = []
                group.append(event)
        if group:
            self._see_bars(group)
        return count

    def _see_bars(self, bars: list[Bar]) -> None:
        """Bars that end together: fills at their opens come first, then what the strategy makes of them."""
        broker = self.broker
        starts, ends = min(bar.timestamp for bar in bars), bars[0].ends
        if broker.on_bars is not None:
            self._ring_until(starts)
            self._sample(ends - 1)
            broker.now = max(broker.now, starts)
            for bar in bars:
                self._mark(bar.symbol, bar.open)
            broker.see_bars(bars)
        self._catch_up(ends - 1)
        broker.now = max(broker.now, ends)
        if broker.on_bars is not None:
            for bar in bars:
                self._mark(bar.symbol, bar.close)
        for bar in bars:
            self._call(self.strategy.on_bar, bar)

    def _mark(self, symbol: str, price: float) -> None:
        marks = self.broker.marks
        before = marks.get(symbol)
        marks[symbol] = price
        size = self.broker.held.get(symbol)
        if size and before is not None and price != before:
            self.equity += size * (price - before)
            self.curve.update(self.broker.now, self.equity)

    def _catch_up(self, time: int) -> None:
        """What falls due before an event at `time`, in order."""
        self._note_mark_outs(time)
        running = self.running
        while running is not None and running.due <= time:
            self._ring_until(running.due - 1)
            self.broker.now = max(self.broker.now, running.due)
            for bar in running.close():
                self._call(self.strategy.on_bar, bar)
        self._ring_until(time)
        self._sample(time)
        self._set_due()

    def _sample(self, time: int) -> None:
        """Note what the account was worth before an event at `time`, if it is time to."""
        if time >= self.curve.due:
            self.equity = self.broker.equity()
            self.curve.sample(self.broker.now, self.equity, time)

    def _ring_until(self, time: int) -> None:
        awake = self.broker.now + max(QUIET, self.period)
        while self.ring <= time:
            if self.ring > awake:
                self.ring = -(-time // self.period) * self.period
                awake = NEVER
                continue
            self.broker.now = max(self.broker.now, self.ring)
            self.ring += self.period
            self._call(self.strategy.on_timer)

    def _set_timer(self, seconds: float | None) -> None:
        self.period = round((seconds or 0) * SECOND)
        self.ring = (self.broker.now // self.period + 1) * self.period if self.period else NEVER
        self._set_due()

    def _set_due(self) -> None:
        self.due = min(
            self.curve.due,
            self.ring,
            self.running.due if self.running is not None else NEVER,
            self.mark_outs[0][0] if self.mark_outs else NEVER,
        )

    def _filled(self, fill: Fill) -> None:
        broker = self.broker
        self.equity = broker.equity()
        self.curve.pin(fill.ts, self.equity)
        self.later_mids.append([nan] * len(MARK_OUTS))
        if broker.on_bars is None:
            for column, seconds in enumerate(MARK_OUTS):
                heappush(self.mark_outs, (fill.ts + seconds * SECOND, len(self.later_mids) - 1, column))
            self._set_due()
        self._call(self.strategy.on_fill, fill)

    def _note_mark_outs(self, time: int) -> None:
        """Note the mids that stood when a mark-out's time was up, before an event at `time` moves them."""
        while self.mark_outs and self.mark_outs[0][0] <= time:
            _, row, column = heappop(self.mark_outs)
            self.later_mids[row][column] = self.broker.marks[self.broker.fills[row].symbol]

    def _callback(self, name: str) -> Callable[..., None] | None:
        """A callback, if the strategy has one of its own."""
        same = getattr(type(self.strategy), name) is getattr(Strategy, name)
        return None if same else getattr(self.strategy, name)

    def _call(self, callback: Callable[..., None], *given: object) -> None:
        try:
            callback(*given)
        except TapelabError:
            raise
        except Exception as cause:
            raise self._broken(callback.__name__, cause) from cause

    def _broken(self, callback: str, cause: Exception) -> StrategyError:
        name = type(self.strategy).__name__
        frames = extract_tb(cause.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith(str(_PACKAGE))]
        place = (own or frames)[-1]
        return StrategyError(
            f"{name}.{callback} broke: {type(cause).__name__}: {str(cause).rstrip('.')}.",
            remedy=f"See {Path(place.filename).name}, line {place.lineno}.",
            strategy=name,
            callback=callback,
            now=self.broker.now,
        )


_PACKAGE = Path(__file__).parents[1]
