"""All that a user subclasses or touches to write a strategy."""

from __future__ import annotations

import inspect
import numbers
from typing import Any, get_type_hints

from tapelab.errors import StrategyError, UnknownName, UsageError
from tapelab.lab.broker import Broker, Fill, Order
from tapelab.market.events import Bar, Quote, Trade
from tapelab.market.intervals import Interval


class Strategy:
    """What you do when the market moves: override the callbacks that you need.

    Class attributes are the parameters: `MyStrategy(fast=5)` sets one, a misspelt one is refused. Two are
    always there: `bars` asks for bars built on the way over quotes and trades (`"1m"`), `timer` for
    `on_timer` every so many seconds.

    A strategy knows what its callbacks have told it and nothing later. An order that it sends fills at the
    next event at the earliest. Each backtest runs on a copy, so an instance stays as you made it.
    """

    bars: str | None = None
    timer: float | None = None

    _broker: Broker | None = None

    # Callbacks

    def on_start(self) -> None:
        """Once, before the first event: set up what you keep in mind."""

    def on_quote(self, quote: Quote) -> None:
        """A new best bid and offer."""

    def on_trade(self, trade: Trade) -> None:
        """A print on the tape."""

    def on_bar(self, bar: Bar) -> None:
        """A bar is over."""

    def on_timer(self) -> None:
        """Another `timer` seconds have passed (on the clock: every 5 s means :00, :05, :10 …).

        The timer falls asleep after an hour without any event, and wakes with the next.
        """

    def on_fill(self, fill: Fill) -> None:
        """One of your orders was filled, wholly or in part; the position already counts it."""

    def on_stop(self) -> None:
        """Once, after the last event. Orders sent here reach no market."""

    # Orders

    def buy(self, symbol: str, size: float, limit: float | None = None, *, tag: str = "") -> Order:
        """Buy `size` shares at the market, or at `limit` or better."""
        return self._running.submit(_sided(symbol, size, 1, limit, tag))

    def sell(self, symbol: str, size: float, limit: float | None = None, *, tag: str = "") -> Order:
        """Sell `size` shares at the market, or at `limit` or better; what you do not hold is sold short."""
        return self._running.submit(_sided(symbol, size, -1, limit, tag))

    def submit(self, order: Order) -> Order:
        """Send an order (a negative size sells); returns it with its number, or with why it was refused."""
        return self._running.submit(order)

    def cancel(self, order: Order) -> bool:
        """Take an order back; False if nothing is left of it. With a latency it can fill on the way."""
        return self._running.cancel(order)

    def target_position(self, symbol: str, size: float, *, tag: str = "") -> Order | None:
        """Send the market order that is missing to hold `size` shares (negative: short).

        What is already in flight counts, so calling this on every event does not send twice. Returns None
        when nothing is missing.
        """
        broker = self._running
        missing = size - broker.position(symbol) - broker.in_flight(symbol)
        if abs(missing) < _DUST:
            return None
        return broker.submit(_sided(symbol, abs(missing), 1 if missing > 0 else -1, None, tag))

    # What it may know

    def position(self, symbol: str) -> float:
        """Shares held; negative is short."""
        return self._running.position(symbol)

    def in_flight(self, symbol: str) -> float:
        """Shares asked for and neither filled nor cancelled yet: bought minus sold."""
        return self._running.in_flight(symbol)

    def orders(self, symbol: str | None = None) -> list[Order]:
        """Your orders that can still fill, oldest first."""
        return self._running.live_orders(symbol)

    def quote(self, symbol: str) -> Quote | None:
        """The last quote of a symbol that was seen; None before the first."""
        return self._running.quotes.get(symbol)

    @property
    def symbols(self) -> tuple[str, ...]:
        """What the data was recorded for, in alphabetical order."""
        return self._running.symbols

    @property
    def cash(self) -> float:
        """Money that is not invested; negative when more was bought than was there."""
        return float(self._running.cash)

    @property
    def equity(self) -> float:
        """Cash plus positions at their last mid (last print or close where there are no quotes)."""
        return self._running.equity()

    @property
    def now(self) -> int:
        """The time, int64 ns UTC: by our clock for what was received live, otherwise by the exchange's."""
        return self._running.now

    def every(self, seconds: float) -> None:
        """Call `on_timer` every so many seconds from now on."""
        self.timer = _checked_timer(seconds)
        self._running.set_timer(seconds)

    # Parameters

    def __init__(self, **params: Any) -> None:
        known = type(self).parameters()
        for name, value in params.items():
            if name not in known:
                raise UnknownName.among(f"parameter of {type(self).__name__}", name, known)
            setattr(self, name, _fitting(type(self), name, value, known[name]))
        for name, default in known.items():
            if default is inspect.Parameter.empty and name not in params:
                raise UsageError(
                    f"{type(self).__name__} needs a value for {name!r}.", remedy=f"Give {name}=…", name=name
                )
        if self.bars is not None:
            Interval.parse(self.bars)
        if self.timer is not None:
            _checked_timer(self.timer)

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        for name, value in vars(cls).items():
            mine = vars(Strategy).get(name)
            hides = inspect.isfunction(mine) and not callable(value)
            if hides or isinstance(mine, property | classmethod):
                raise UsageError(
                    f"{cls.__name__}.{name} hides what every strategy has under that name.",
                    remedy="Give your parameter or method another name.",
                    name=name,
                )

    @classmethod
    def parameters(cls) -> dict[str, Any]:
        """Every parameter with its default; `inspect.Parameter.empty` where one must be given."""
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__[: cls.__mro__.index(Strategy) + 1]):
            for name in inspect.get_annotations(base):
                if not name.startswith("_") and name not in found:
                    found[name] = inspect.Parameter.empty
            for name, value in vars(base).items():
                if not name.startswith("_") and not _is_code(value):
                    found[name] = value
        return found

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as they are set."""
        return {name: getattr(self, name) for name in type(self).parameters()}

    @property
    def _running(self) -> Broker:
        if self._broker is None:
            raise StrategyError(
                f"{type(self).__name__} is not running, so it has no market.",
                remedy="Send orders from its callbacks; on_start is the first.",
            )
        return self._broker


_DUST = 1e-9
_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}


def _is_code(value: object) -> bool:
    return isinstance(value, type) or hasattr(value, "__get__")


def _sided(symbol: str, size: float, sign: int, limit: float | None, tag: str) -> Order:
    if not size > 0:
        raise StrategyError(
            f"An order of {size!r} shares makes no sense.",
            remedy="The size is positive; buy() and sell() say the side.",
            symbol=symbol,
        )
    return Order(symbol, sign * size, limit, tag)


def _checked_timer(seconds: float) -> float:
    if not seconds > 0:
        raise UsageError(f"A timer of {seconds!r} seconds never rings.", remedy="Give more than 0 seconds.")
    return seconds


def _kind(cls: type, name: str, default: object) -> type | None:
    """What a parameter is, by its default or else by its annotation; None: anything."""
    if default is None or default is inspect.Parameter.empty:
        try:
            hint = get_type_hints(cls).get(name)
        except NameError:  # annotated with something that is imported for type checkers only
            return None
        kinds = [k for k in getattr(hint, "__args__", (hint,)) if k in _KINDS]
        return kinds[0] if len(kinds) == 1 else None
    return type(default)


def _fitting(cls: type, name: str, value: object, default: object) -> object:
    kind = _kind(cls, name, default)
    if kind is None or (value is None and default is None):
        return value
    if isinstance(value, bool):
        if kind is bool:
            return value
    elif kind is int and isinstance(value, numbers.Integral):
        return int(value)
    elif kind is float and isinstance(value, numbers.Real):
        return float(value)
    elif kind in (tuple, list) and isinstance(value, tuple | list):
        return kind(value)
    elif kind not in (int, float) and isinstance(value, kind):
        return value
    wanted = _KINDS.get(kind, f"a {kind.__name__}")
    raise UsageError(
        f"{cls.__name__}.{name} is {wanted}, not {value!r}.",
        remedy=f"Give {name}={default!r}, for example." if default is not None else "",
        name=name,
    )
