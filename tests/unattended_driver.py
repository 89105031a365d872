"""A program that records session after session by a clock of its own: run by tests, and killed by them.

Its one argument is JSON: `at` and `real` (ns UTC) say what the clock showed when the real one showed `real`;
it runs `speed` times as fast. `symbols`, `name`, `margin` (ns), `count` and `health_port` go to the recorder.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import dataclass

from tapelab.live.unattended import Unattended
from tapelab.live.watch import Watch
from tapelab.market import clock
from tapelab.settings import Settings
from tapelab.store.dataset import folder_of

SHORTEST = 0.01  # seconds; how long a nap takes at least


@dataclass
class Fast:
    """A wall clock that began at `at` and runs faster; sleeping is as much shorter."""

    at: int
    real: int
    speed: float = 1.0

    def now(self) -> int:
        return self.at + round((time.time_ns() - self.real) * self.speed)

    def monotonic(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(seconds / self.speed, SHORTEST))


def main(told: str) -> None:
    given = json.loads(told)
    settings = Settings.load()
    with clock.use(Fast(given["at"], given["real"], given["speed"])):
        watch = Watch(folder_of(settings), "stocks", health_port=given.get("health_port"), free_least=0)
        unattended = Unattended(given["symbols"], watch, name=given["name"], margin=given["margin"])
        unattended.run(threading.Event(), count=given["count"])
        watch.close()


if __name__ == "__main__":
    main(sys.argv[1])
