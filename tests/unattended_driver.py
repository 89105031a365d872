"""A program that records session after session by a clock of its own: run by tests, and killed by them.

Its one argument is JSON: `clock` is a file that says what the time is, as a test sets it (see `Told`); the
rest goes to the recorder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tapelab.live.talk import Holder
from tapelab.live.unattended import Unattended
from tapelab.live.watch import Watch
from tapelab.market import clock
from tapelab.settings import TABLE, Secret, Settings
from tapelab.store.datasets.dataset import folder_of


@dataclass
class Fast:
    """A wall clock that showed `at` (ns UTC) when the real one showed `real`."""

    at: int
    real: int

    def now(self) -> int:
        return self.at + time.time_ns() - self.real

    def monotonic(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, 0.1))


class Told(Fast):
    """The same, told by a file what it showed when, for as long as that stands there."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def now(self) -> int:
        self.at, self.real = json.loads(self._path.read_bytes())
        return super().now()

    @staticmethod
    def tell(path: Path, at: int) -> None:
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps([at, time.time_ns()]))
        beside.replace(path)


def main(argument: str) -> None:
    given = json.loads(argument)
    settings = Settings.load()
    with clock.use(Told(Path(given["clock"]))):
        watch = Watch(folder_of(settings), "stocks", health_port=given.get("health_port"), free_least=0)
        unattended = Unattended(given["symbols"], watch)
        unattended.run(threading.Event(), count=given["count"])
        watch.close()


class Program:
    """This program, running. `kill` ends it and its receiver at once, as a power cut does."""

    def __init__(self, settings: Settings, **given: object) -> None:
        self._settings = settings
        values = {s.name: getattr(settings, s.attribute) for s in TABLE}
        shown = {
            k: v.reveal() if isinstance(v, Secret) else str(v) for k, v in values.items() if v is not None
        }
        command = [sys.executable, __file__, json.dumps(given)]
        self._process = subprocess.Popen(command, env={**os.environ, **shown})

    def kill(self) -> None:
        if self._process.poll() is None:
            for pid in (self._process.pid, *receivers(self._settings)):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)

    def wait(self, seconds: float) -> int:
        return self._process.wait(seconds)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def receivers(settings: Settings) -> list[int]:
    """The receiver that holds the feed, as its lock says."""
    locks = (settings.root / "feeds").glob("*.lock")
    return [msgspec.json.decode(lock.read_bytes(), type=Holder).pid for lock in locks]


if __name__ == "__main__":
    main(sys.argv[1])
