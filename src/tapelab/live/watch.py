"""Keeps an eye on a recording: what health says of it, and who is told of what goes wrong."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tapelab.errors import TapelabError
from tapelab.live.health import Health
from tapelab.live.problems import FREE_LEAST, Sight, problems
from tapelab.live.recorder import RecordingStats, session_at
from tapelab.live.schedule import Slot
from tapelab.live.webhook import Incidents, Webhook
from tapelab.market import clock
from tapelab.market.clock import SystemClock
from tapelab.settings import Secret
from tapelab.store.datasets import room

if TYPE_CHECKING:
    from tapelab.live.recorder import WebSocketDataRecorder

LOOK_EVERY = 0.5  # seconds between two looks at a recording
RATE_OVER = 20  # looks that the rate is taken over
FORECAST_EVERY = 10 * clock.SECOND  # what lies on the disk is counted so often
HUNG = clock.MINUTE  # without a look, health is not what it says

State = Literal["waiting", "recording", "retrying", "standing by", "ended"]
_real = SystemClock()


class Watch:
    """Looks at a recording, keeps what health says of it, and reports what begins or ceases to be wrong.

    `folder`: where it is recorded. `delay`: how far the feed is behind the market, ns. `health_port`: where
    health is served on this machine (0 picks a free one, None does not). `webhook`: the address that is told
    of incidents. `free_least`: bytes of disk below which there is one. `said` is what health says; `show` is
    told after each look.
    """

    def __init__(
        self,
        folder: Path,
        market: str,
        *,
        delay: int = 0,
        health_port: int | None = None,
        webhook: Secret | None = None,
        free_least: int = FREE_LEAST,
        show: Callable[[Watch], None] | None = None,
    ) -> None:
        self.said: Mapping[str, object] = {"state": "starting", "healthy": True}
        self.recorder: WebSocketDataRecorder | None = None
        self.forecast: room.Forecast | None = None
        self.slot: Slot | None = None
        self._folder, self._market, self._delay = folder, market, delay
        self._free_least, self._show = free_least, show
        self._looked, self._forecast_at = _real.monotonic(), 0
        self._begun = self._events = self._last_event = 0
        self._counted: deque[tuple[int, int]] = deque(maxlen=RATE_OVER)
        self._hook = Webhook(webhook) if webhook is not None else None
        self._incidents = Incidents(self._hook)
        self.health = Health(health_port, self._healthy) if health_port is not None else None

    def follow(
        self,
        recorder: WebSocketDataRecorder,
        ended: threading.Event,
        left: Callable[[], float],
        *,
        slot: Slot | None = None,
    ) -> None:
        """Watch a running recording until `ended` is set, no seconds are `left`, or it ends by itself."""
        self.recorder, self._begun, self._events, self._last_event = recorder, clock.now(), 0, 0
        self._counted.clear()
        try:
            while not ended.is_set() and (seconds := left()) > 0:
                stats = recorder.stats
                self.look("recording", stats, slot=slot)
                if stats.error is not None:
                    return
                clock.sleep(min(LOOK_EVERY, seconds))
        finally:
            self.recorder = None

    def look(
        self,
        state: State,
        stats: RecordingStats | None = None,
        *,
        error: TapelabError | None = None,
        slot: Slot | None = None,
    ) -> None:
        """Take in how things stand."""
        now, free = clock.now(), _free(self._folder)
        stats = stats or RecordingStats("ready", slot.name if slot else "")
        if stats.events != self._events:
            self._events, self._last_event = stats.events, now
        self._counted.append((now, stats.events))
        self.slot = slot
        self._look_ahead(stats)
        there = now - self._delay  # what time it is in the market that we hear
        sight = Sight(
            now=there,
            session=session_at(self._market, there) if state == "recording" else None,
            begun=self._begun - self._delay,
            events=stats.events,
            last_event=self._last_event - self._delay if self._last_event else None,
            connected=stats.connected,
            error=error or stats.error,
            free=free,
        )
        found = problems(sight, free_least=self._free_least)
        if state != "ended":  # what is wrong then stays wrong
            self._incidents.look(found, now=now, dataset=stats.dataset or self._folder.name)
        hook, ahead = self._hook, self.forecast
        self.said = {
            "state": state,
            "healthy": not found,
            "problems": found,
            "session": _about(slot) if slot else None,
            "dataset": stats.dataset,
            "connected": stats.connected,
            "events": stats.events,
            "events_per_second": self._rate(),
            "last_event": clock.iso(self._last_event) if self._last_event else None,
            "lag_ms": stats.lag_ms,
            "reconnects": stats.reconnects,
            "gaps": dict(stats.causes),
            "acknowledged_bytes": stats.acknowledged,
            "durable_bytes": stats.durable,
            "disk_free_bytes": free,
            "disk_full_in_hours": ahead.hours if ahead else None,
            "webhook": {"delivered": hook.delivered, "failed": hook.failed} if hook else None,
        }
        self._looked = _real.monotonic()
        if self._show is not None:
            self._show(self)

    def close(self) -> None:
        """End the endpoint, and deliver what is still to be told."""
        if self.health is not None:
            self.health.close()
        if self._hook is not None:
            self._hook.close()

    def _look_ahead(self, stats: RecordingStats) -> None:
        folder = self._folder / stats.dataset
        if stats.since is None or not folder.is_dir():
            self.forecast = None
        elif self.forecast is None or _real.monotonic() - self._forecast_at > FORECAST_EVERY:
            self._forecast_at = _real.monotonic()
            self.forecast = room.forecast_of(folder, stats.since)

    def _rate(self) -> float:
        (first, before), (last, after) = self._counted[0], self._counted[-1]
        return round((after - before) * clock.SECOND / (last - first), 1) if last > first else 0.0

    def _healthy(self) -> tuple[bool, Mapping[str, object]]:
        said = self.said
        if _real.monotonic() - self._looked > HUNG:
            said = {**said, "healthy": False, "problems": {"hung": "Nobody looks at the recording any more."}}
        return bool(said["healthy"]), said


def _about(slot: Slot) -> dict[str, object]:
    return {
        "date": slot.session.date.isoformat(),
        "start": clock.iso(slot.start),
        "stop": clock.iso(slot.stop),
        "early_close": slot.session.early_close,
    }


def _free(folder: Path) -> int | None:
    while not folder.exists():
        folder = folder.parent
    try:
        return room.free_at(folder)
    except OSError:
        return None
