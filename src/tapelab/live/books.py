"""The newest book of each symbol, and the callbacks that are told of it on a thread of their own.

A callback that is slow or raises costs no frame: what it has not been told yet waits, so many books and so
long, and beyond that only the newest book of each symbol is kept. Both are counted, and said once.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tapelab.market import clock
from tapelab.market.events import Event, Quote, Trade
from tapelab.massive.wire import FrameDecoder
from tapelab.store.journal import Message, Note

MAX_WAITING = 10_000  # books that wait to be told; beyond it the newest of each symbol is kept
MAX_BEHIND = 10 * clock.SECOND  # how long they wait; likewise
WILDCARD = "*"
STOP_PATIENCE = 5.0  # seconds for a callback that is under way

_log = logging.getLogger("tapelab")

OrderBook = dict[str, Any]
Callback = Callable[[str, OrderBook], object]


@dataclass(frozen=True)
class _Listener:
    symbols: frozenset[str]
    callback: Callback


class Books:
    """Keeps the newest quote and trade of each symbol and tells callbacks of every new quote."""

    def __init__(self) -> None:
        self.told = self.skipped = self.errors = 0
        self.last_error: BaseException | None = None
        self._quotes: dict[str, Quote] = {}
        self._trades: dict[str, Trade] = {}
        self._listeners: tuple[_Listener, ...] = ()
        self._decoder = FrameDecoder()
        self._waiting: deque[tuple[int, Quote]] = deque()  # each with when it came, on the monotonic clock
        self._patiently = False
        self._news = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def symbols(self) -> set[str]:
        """Those that callbacks listen to."""
        return {symbol for listener in self._listeners for symbol in listener.symbols}

    def listen(self, symbols: Iterable[str], callback: Callback) -> None:
        """Call `callback(symbol, orderbook)` for every quote of these symbols from now on."""
        self._listeners = (*self._listeners, _Listener(frozenset(symbols), callback))
        if self._thread is None:
            self._thread = threading.Thread(target=self._tell_all, name="tapelab-callbacks", daemon=True)
            self._thread.start()

    def silence(self, symbols: Iterable[str] | None = None) -> None:
        """No more callbacks for these symbols; for none at all without `symbols`."""
        gone = self.symbols if symbols is None else set(symbols)
        kept = (_Listener(one.symbols - gone, one.callback) for one in self._listeners)
        self._listeners = tuple(listener for listener in kept if listener.symbols)

    def take(self, items: list[Message | Note]) -> None:
        """What the stream has brought."""
        if not any(isinstance(item, Message) for item in items):
            return
        self.add(
            event
            for item in items
            if isinstance(item, Message)
            for event in self._decoder.events(item.payload, ts_recv=item.ts_recv, arrival=item.arrival)
            if isinstance(event, Quote | Trade)
        )

    def add(self, events: Iterable[Event], *, patiently: bool = False) -> None:
        """New events, in order. `patiently`: wait for slow callbacks instead of passing books over."""
        wanted, quotes = self.symbols, []
        for event in events:
            if isinstance(event, Quote):
                self._quotes[event.symbol] = event
                if event.symbol in wanted or WILDCARD in wanted:
                    quotes.append(event)
            elif isinstance(event, Trade):
                self._trades[event.symbol] = event
        if not quotes:
            return
        with self._news:
            if patiently:
                self._news.wait_for(lambda: len(self._waiting) < MAX_WAITING - len(quotes) or self._closed)
            self._patiently = patiently
            now = clock.monotonic()
            self._waiting.extend((now, quote) for quote in quotes)
            if len(self._waiting) > MAX_WAITING:
                self._pass_over()
            self._news.notify_all()

    def _pass_over(self) -> None:
        """Keep the newest book of each symbol alone, in order."""
        newest = {quote.symbol: (came, quote) for came, quote in self._waiting}
        if not self.skipped and len(newest) < len(self._waiting):
            _log.warning("A callback is too slow for the stream: it is told the newest books only.")
        self.skipped += len(self._waiting) - len(newest)
        self._waiting = deque(sorted(newest.values(), key=lambda one: one[1].arrival))

    def snapshot(self, symbol: str) -> OrderBook | None:
        """The newest book of a symbol with its last trade, or None before the first quote."""
        quote, trade = self._quotes.get(symbol), self._trades.get(symbol)
        if quote is None and trade is None:
            return None
        book = orderbook(quote) if quote is not None else {"symbol": symbol, "bids": [], "asks": []}
        last = (
            None if trade is None else {"price": trade.price, "size": trade.size, "ts_event": trade.ts_event}
        )
        return {**book, "last_trade": last}

    def drop(self) -> None:
        """Forget what has not been told yet."""
        with self._news:
            self._waiting.clear()
            self._news.notify_all()

    def close(self) -> None:
        """No more callbacks; one under way is waited for, a bounded time."""
        self._closed = True
        self.drop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_PATIENCE)

    def _tell_all(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                if not self._patiently and clock.monotonic() - self._waiting[0][0] > MAX_BEHIND:
                    self._pass_over()
                _, quote = self._waiting.popleft()
                if not self._waiting:
                    self._news.notify_all()
            for listener in self._listeners:
                if quote.symbol in listener.symbols or WILDCARD in listener.symbols:
                    self._tell(listener.callback, quote)

    def _tell(self, callback: Callback, quote: Quote) -> None:
        try:
            callback(quote.symbol, orderbook(quote))
        except BaseException as error:  # the user's own code: even its exit must not end the stream
            if not self.errors:
                _log.warning("A callback raised %s; it is called again for the next quote.", repr(error))
            self.errors += 1
            self.last_error = error
        else:
            self.told += 1


def orderbook(quote: Quote) -> OrderBook:
    """A quote as callbacks see it: `bids` and `asks` are lists of `[price, size]`, empty where a side is.

    Times are ns UTC: `ts_event` the exchange's, `ts_recv` ours at arrival.
    """
    return {
        "symbol": quote.symbol,
        "bids": [] if quote.bid is None else [[quote.bid, quote.bid_size]],
        "asks": [] if quote.ask is None else [[quote.ask, quote.ask_size]],
        "ts_event": quote.ts_event,
        "ts_recv": quote.ts_recv,
    }
