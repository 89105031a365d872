"""Records session after session with nobody looking: by the calendar, and through whatever goes wrong.

The loop asks the clock, waits, starts, watches and stops. Within a session it never gives up; what a session
missed is a declared gap of its dataset.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tapelab.errors import Locked, SettingError, TapelabError, UsageError
from tapelab.live.recorder import check_channels, parse_symbols
from tapelab.live.schedule import MARGIN, Slot, delay_of, next_session
from tapelab.live.session import SessionRecorder, settle
from tapelab.live.watch import State, Watch
from tapelab.market import clock, sessions
from tapelab.market.symbols import Market
from tapelab.settings import Settings, current
from tapelab.store.datasets.dataset import check_name, folder_of

if TYPE_CHECKING:
    from tapelab.market.bars import Hours

NAP = 1.0  # seconds between two looks at the clock
RETRY_FIRST, RETRY_MOST = 1.0, 60.0  # seconds before a session is tried again
TAKEN = 600.0  # the same where another program took the connection: two that insist cut each other off
STEADY = clock.MINUTE  # a recording that lasted this long starts the waits afresh

_log = logging.getLogger("tapelab")


class Unattended:
    """Records every session of the exchange until it is told to end: one dataset each, `<name>_<date>`.

    `hours`: `"all"` or `"regular"`; `margin` (ns): so long before and after. It may be killed and started
    again at any time, and goes on with the session's dataset; started twice, the second stands by and takes
    over when the first is gone. `watch` is told how things stand.
    """

    def __init__(
        self,
        symbols: str | Sequence[str],
        watch: Watch | None = None,
        *,
        channels: Sequence[str] = ("quotes", "trades"),
        name: str = "session",
        hours: Hours = "all",
        margin: int = MARGIN,
        tags: Sequence[str] = (),
        save_dir: str | Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        self._settings = settings or current()
        self._settings.need_api_key()
        market, self._symbols = parse_symbols(symbols)
        self._market = Market(market)
        self._channels = check_channels(channels)
        self._name = check_name(name)
        self._hours, self._margin, self._tags = hours, margin, tuple(tags)
        self._parent = Path(save_dir).absolute() if save_dir is not None else folder_of(self._settings)
        self._watch = watch or Watch(self._parent, market, delay=delay_of(self._settings.ws_url))

    def slot(self) -> Slot:
        """The session that is on, or the next one."""
        return next_session(
            clock.now(),
            market=self._market,
            hours=self._hours,
            margin=self._margin,
            delay=delay_of(self._settings.ws_url),
            prefix=self._name,
        )

    def run(self, ended: threading.Event, *, count: int | None = None) -> None:
        """Until `ended` is set, or `count` sessions are over. Raises only what no waiting can mend."""
        while not ended.is_set() and count != 0:
            slot = self.slot()
            self._wait(slot, ended)
            if clock.now() >= slot.start:
                self._session(slot, ended)
            count = None if count is None else count - 1
        self._watch.look("ended")

    def _wait(self, slot: Slot, ended: threading.Event) -> None:
        if clock.now() < slot.start:
            zone = sessions.zone(self._market)
            _log.info("%s: from %s to %s", slot.name, clock.iso(slot.start, zone), clock.iso(slot.stop, zone))
            self._linger(slot, slot.start, ended, "waiting")

    def _session(self, slot: Slot, ended: threading.Event) -> None:
        """Record until the session is over, whatever happens meanwhile."""
        tries = 0
        while not ended.is_set() and (began := clock.now()) < slot.stop:
            try:
                self._record(slot, ended)
            except (UsageError, SettingError):
                raise
            except TapelabError as error:
                tries = 1 if clock.now() - began > STEADY else tries + 1
                again = clock.now() + round(patience(error, tries) * clock.SECOND)
                if _is_ours(error):
                    if self._watch.said["state"] != "standing by":
                        _log.info("%s is recorded by another process; standing by.", slot.name)
                    self._linger(slot, again, ended, "standing by")
                else:
                    self._linger(slot, again, ended, "retrying", error)
        self._settle(slot)

    def _record(self, slot: Slot, ended: threading.Event) -> None:
        """Watch a recording to its end; raises what ended it early."""
        recorder = SessionRecorder(
            self._symbols, slot, channels=self._channels, save_dir=self._parent, settings=self._settings
        )
        with recorder:
            self._watch.follow(recorder, ended, lambda: (slot.stop - clock.now()) / clock.SECOND, slot=slot)

    def _linger(
        self,
        slot: Slot,
        until: int,
        ended: threading.Event,
        state: State,
        error: TapelabError | None = None,
    ) -> None:
        """Let time pass, in short naps: the wall clock may be set, and the machine may sleep."""
        while not ended.is_set() and (now := clock.now()) < min(until, slot.stop):
            self._watch.look(state, error=error, slot=slot)
            clock.sleep(min(NAP, (until - now) / clock.SECOND))

    def _settle(self, slot: Slot) -> None:
        try:
            dataset = settle(self._parent / slot.name, self._tags)
        except TapelabError as error:  # what was recorded is kept; `tapelab update` tries again
            _log.warning("%s: %s", slot.name, error)
            return
        if dataset is not None:
            events = sum(held.quotes + held.trades + held.bars for held in dataset.coverage.values())
            _log.info("%s: %s events, %d gaps", dataset.name, f"{events:,}", len(dataset.gaps))


def patience(error: TapelabError, tries: int) -> float:
    """Seconds before the next try, after so many that failed."""
    if _is_ours(error):
        return RETRY_FIRST
    if error.facts.get("status") == "max_connections":
        return TAKEN
    return float(min(RETRY_FIRST * 2 ** min(tries - 1, 20), RETRY_MOST))


def _is_ours(error: TapelabError) -> bool:
    """Whether another process of ours records this session already."""
    return isinstance(error, Locked) and "topics" not in error.facts
