"""What is settled before the exchange opens: its tape and day, who may ask, what is said, its ports."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import date, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tapelab.errors import BadRange, DatasetNotFound, ServeError, UsageError
from tapelab.exchange.plans import Account, plan_named
from tapelab.exchange.tape import (
    MINUTE_BARS,
    PRODUCTS,
    QUOTES,
    TRADES,
    DatasetTape,
    FlatFileTape,
    Tape,
    simulated,
)
from tapelab.market import clock, sessions
from tapelab.market.symbols import Market

if TYPE_CHECKING:
    from tapelab.exchange.stream.script import Script
    from tapelab.store.datasets.dataset import Dataset

MAX_PORT = 65_535
WAITING = 128  # connections that the system holds for us
SHORTEST_KEY = 8  # characters


def tape_of(
    *,
    simulate: bool,
    dataset: str | Path | Dataset | None,
    flat_files: str | Path | None,
    seed: int,
    follow: bool,
) -> Tape:
    """The one tape that was asked for."""
    chosen = [simulate, dataset is not None, flat_files is not None]
    if sum(chosen) != 1:
        what = "Nothing to serve." if not any(chosen) else "There can be only one tape."
        raise UsageError(what, remedy="Give one of simulate=True, dataset=, flat_files=.")
    if follow and dataset is None:
        raise UsageError("Only a recording can be followed.", remedy="Name it with dataset=.")
    if dataset is not None:
        return tape_of_dataset(dataset, follow=follow)
    if flat_files is not None:
        folder = Path(flat_files).expanduser()
        if not folder.is_dir():
            raise ServeError(f"There is no folder {folder}.", remedy="Name a folder in the vendor's layout.")
        return FlatFileTape(folder)
    return simulated(seed)


def tape_of_dataset(name: str | Path | Dataset, *, follow: bool = False) -> DatasetTape:
    """The tape of a dataset, given by name, path or itself; `follow`: of a recording that still grows."""
    from tapelab.exchange.tape.growing import GrowingTape
    from tapelab.store.datasets.dataset import open_dataset

    kind = GrowingTape if follow else DatasetTape
    if not isinstance(name, str | Path):
        return kind(name)
    try:
        return kind(open_dataset(name))
    except DatasetNotFound as cause:
        raise ServeError(cause.message, remedy=cause.remedy) from cause


def day_of(tape: Tape, day: date | str | None) -> date:
    """The day that is streamed: the latest with ticks, unless another is asked for."""
    ticks = sorted({*tape.days(TRADES), *tape.days(QUOTES)})
    if day is None:
        if days := ticks or tape.days(MINUTE_BARS):
            return days[-1]
        days = [day for product in PRODUCTS for day in tape.days(product)]
        return max(days, default=clock.today(sessions.NEW_YORK))
    try:
        wanted = day if isinstance(day, date) else date.fromisoformat(day)
    except ValueError as cause:
        raise BadRange(f"day={day!r} is not a date.", remedy="Write it as 2026-10-02.") from cause
    if wanted not in ticks:
        known = f"It has {', '.join(map(str, ticks[-5:]))}." if ticks else "It has none at all."
        raise BadRange(f"The tape ({tape.identity}) has no ticks on {wanted}.", remedy=known)
    return wanted


def moment_of(day: date, moment: int | str | None, name: str) -> int | None:
    """An instant (ns UTC), given as such or as a time of the day in New York."""
    if moment is None or isinstance(moment, int):
        return moment
    try:
        return sessions.instant(day, time.fromisoformat(moment), sessions.NEW_YORK)
    except ValueError as cause:
        raise BadRange(
            f"{name}={moment!r} is not a time.", remedy="Write it as 09:30 or 09:30:15."
        ) from cause


def moment_on(day: date, moment: int | str) -> int:
    """The same, within the day."""
    at = moment_of(day, moment, "at")
    assert at is not None
    first, last = bounds_of(day)
    if not first <= at <= last:
        raise BadRange(f"{moment} is not on {day}, which is streamed.", remedy="Write it as 09:30, or in ns.")
    return at


def bounds_of(day: date) -> tuple[int, int]:
    """Midnight to midnight in New York, ns UTC."""
    nights = (sessions.day_start(Market.STOCKS, day + timedelta(days=n)) for n in (0, 1))
    return next(nights), next(nights)


def start_of(day: date) -> int:
    """When a day begins to be streamed, ns UTC."""
    session = sessions.session(Market.STOCKS, day)
    return bounds_of(day)[0] if session is None else session.start


def speed_of(speed: float) -> float:
    """A speed that makes sense."""
    if not 0 <= speed < float("inf"):
        raise UsageError(
            f"speed={speed} makes no sense.", remedy="1 is real time, 60 a minute a second, 0 unpaced."
        )
    return speed


def accounts_of(
    tape: Tape, plan: str | None, keys: Mapping[str, str | None] | None, max_connections: int | None
) -> list[Account]:
    """Who may ask: the exchange's own account, then one for each of `keys`.

    The same tape has the same keys, so that what was stored from it is found again; another has others.
    """
    own = Account.of(tape.identity, plan_named(plan), connections=max_connections)
    accounts = [own]
    for key, name in (keys or {}).items():
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or key == own.api_key:
            raise UsageError(
                "One of the keys cannot be used.", remedy=f"Give {SHORTEST_KEY} printable characters or more."
            )
        text = f"{tape.identity} {key}"
        accounts.append(Account.of(text, plan_named(name), api_key=key, connections=max_connections))
    return accounts


def script_of(tape: Tape, day: date, start: int | None, until: int | None) -> Script:
    """What is said on a day: from memory, from a sort on the disk, or from a recording that still grows."""
    from tapelab.exchange.stream.dayscript import DayScript
    from tapelab.exchange.stream.growing import GrowingScript
    from tapelab.exchange.stream.longscript import LongScript
    from tapelab.exchange.tape.growing import GrowingTape

    if isinstance(tape, GrowingTape):
        return GrowingScript(tape)
    ticks = tape.sorted_ticks(day)
    return DayScript(tape, day, start, until) if ticks is None else LongScript(tape, ticks, day, start, until)


def listen(host: str, ports: tuple[int, int, int]) -> list[socket.socket]:
    """The sockets of REST, stream and files."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with ExitStack() as opened:
        sockets = []
        for port, option in zip(ports, ("rest", "ws", "s3"), strict=True):
            if not 0 <= port <= MAX_PORT:
                raise ServeError(f"There is no port {port}.", remedy=f"0 to {MAX_PORT}; 0 picks one.")
            # Named as TCP, so that asyncio does not let small answers wait for 40 ms (Nagle's algorithm).
            sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((host, port))
                sock.listen(WAITING)
            except OSError as cause:
                raise ServeError(
                    f"Port {port} of {host} cannot be opened: {(cause.strerror or str(cause)).lower()}.",
                    remedy=f"Choose another --{option}-port ({option}_port= in Python), or 0 for a free one.",
                    port=port,
                    host=host,
                ) from cause
            sockets.append(sock)
        opened.pop_all()
        return sockets
