"""Your own quotas: a ledger on disk that survives the process and is exact between processes.

A request that was sent counts, a cached one does not, and flat files never count as REST. Days and months
begin at midnight UTC. These budgets are yours, not the vendor's.
"""

from __future__ import annotations

import calendar
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from tapelab.errors import BudgetExceeded, Locked, Unwritable
from tapelab.market import clock
from tapelab.settings import Settings

GIGABYTE = 1_000_000_000
MINUTE = 60 * clock.SECOND
LOCK_SECONDS = 30  # how long another process may hold the ledger before we say so
NAP = 1.0  # seconds; a wait is cut into these, so that it can be given up
LEDGER = "budget.json"


class _Ledger(msgspec.Struct):
    day: str = ""
    calls_today: int = 0
    month: str = ""
    bytes_this_month: int = 0
    recent_calls: list[int] = []  # ns of the calls in the last minute


@dataclass(frozen=True)
class Left:
    """What is left of each budget (None: no limit), and when it is whole again (ns UTC)."""

    rest_day: int | None
    rest_minute: int | None
    bytes_month: int | None
    day_resets: int
    month_resets: int
    calls_today: int
    bytes_this_month: int
    calls_a_minute: int | None = None  # the limit itself


class Budget:
    """The ledger of one endpoint.

    `on_wait` is told how many seconds a call waits for the minute to pass; without it waiting is silent.
    """

    def __init__(self, settings: Settings, *, on_wait: Callable[[float], None] | None = None) -> None:
        self._per_day = settings.rest_calls_per_day
        self._per_minute = settings.rest_calls_per_minute
        self._bytes = round(settings.flat_file_gb_per_month * GIGABYTE)
        self._path = settings.root / LEDGER
        self._on_wait = on_wait

    def left(self) -> Left:
        """What is left now; creates nothing."""
        return self._left(self._read())

    def check(self, *, rest_calls: int = 0, file_bytes: int = 0) -> None:
        """Raise `BudgetExceeded` if that many calls or bytes would break a budget; nothing is counted."""
        self._check(self._read(), rest_calls, file_bytes)

    def spend_rest(self, calls: int = 1, *, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Count calls that are about to be sent, waiting while only the minute is full.

        Once `given_up()` is true nothing more is counted, and the answer is False.
        """
        for _ in range(calls):
            said = False
            while not given_up():
                if (wait := self._spend_one()) <= 0:
                    break
                if self._on_wait and not said:
                    self._on_wait(wait)
                    said = True
                clock.sleep(min(wait, NAP))
            else:
                return False
        return True

    def return_rest(self) -> None:
        """Take back the last call that was counted: it found no server and never went out."""
        with self._locked() as ledger:
            ledger.calls_today = max(ledger.calls_today - 1, 0)
            del ledger.recent_calls[-1:]

    def spend_bytes(self, count: int) -> None:
        """Count bytes of flat files that are about to be downloaded."""
        with self._locked() as ledger:
            self._check(ledger, 0, count)
            ledger.bytes_this_month += count

    def _left(self, ledger: _Ledger) -> Left:
        today = _utc(clock.now()).date()
        days = calendar.monthrange(today.year, today.month)[1]
        return Left(
            rest_day=max(self._per_day - ledger.calls_today, 0) if self._per_day else None,
            rest_minute=max(self._per_minute - len(ledger.recent_calls), 0) if self._per_minute else None,
            bytes_month=max(self._bytes - ledger.bytes_this_month, 0) if self._bytes else None,
            day_resets=_midnight(today + timedelta(days=1)),
            month_resets=_midnight(today.replace(day=1) + timedelta(days=days)),
            calls_today=ledger.calls_today,
            bytes_this_month=ledger.bytes_this_month,
            calls_a_minute=self._per_minute or None,
        )

    def _check(self, ledger: _Ledger, rest_calls: int, file_bytes: int) -> None:
        left = self._left(ledger)
        if left.rest_day is not None and rest_calls > left.rest_day:
            raise BudgetExceeded(
                f"This needs {rest_calls} REST calls, and {left.rest_day} of {self._per_day} a day are left.",
                remedy=f"The day's budget resets at {clock.iso(left.day_resets)}; "
                "flat files cost none, and TAPELAB_REST_CALLS_PER_DAY changes it.",
                needed=rest_calls,
                left=left.rest_day,
            )
        if left.bytes_month is not None and file_bytes > left.bytes_month:
            raise BudgetExceeded(
                f"This needs {file_bytes / GIGABYTE:.3g} GB of flat files, and "
                f"{left.bytes_month / GIGABYTE:.3g} of {self._bytes / GIGABYTE:.3g} GB a month are left.",
                remedy=f"The month's budget resets at {clock.iso(left.month_resets)}; "
                "TAPELAB_FLAT_FILE_GB_PER_MONTH changes it.",
                needed=file_bytes,
                left=left.bytes_month,
            )

    def _spend_one(self) -> float:
        with self._locked() as ledger:
            self._check(ledger, 1, 0)
            if self._per_minute and len(ledger.recent_calls) >= self._per_minute:
                return max((ledger.recent_calls[0] + MINUTE - clock.now()) / clock.SECOND, 0.001)
            ledger.calls_today += 1
            if self._per_minute:
                ledger.recent_calls.append(clock.now())
            return 0.0

    @contextmanager
    def _locked(self) -> Iterator[_Ledger]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=LOCK_SECONDS):
                ledger = self._read()
                before = msgspec.json.encode(ledger)
                yield ledger
                after = msgspec.json.encode(ledger)
                if after != before:
                    _replace(self._path, after)
        except Timeout as cause:
            raise Locked(
                f"Another process holds the budget's ledger {self._path}.",
                remedy="Wait for it, or delete the .lock file beside it if no tapelab runs.",
            ) from cause
        except OSError as cause:
            raise self._out_of_reach(cause) from cause

    def _out_of_reach(self, cause: OSError) -> Unwritable:
        return Unwritable(
            f"The budget's ledger {self._path} is out of reach ({cause.strerror}).",
            remedy="Point TAPELAB_HOME at a folder that you may write.",
        )

    def _read(self) -> _Ledger:
        try:
            ledger = msgspec.json.decode(self._path.read_bytes(), type=_Ledger)
        except FileNotFoundError:
            ledger = _Ledger()
        except OSError as cause:
            raise self._out_of_reach(cause) from cause
        except msgspec.DecodeError as cause:
            raise Unwritable(
                f"The budget's ledger {self._path} is not readable.",
                remedy="Delete it to start the day's count at zero.",
            ) from cause
        now = clock.now()
        stamp = _utc(now)
        if ledger.day != f"{stamp:%Y-%m-%d}":
            ledger.day, ledger.calls_today = f"{stamp:%Y-%m-%d}", 0
        if ledger.month != f"{stamp:%Y-%m}":
            ledger.month, ledger.bytes_this_month = f"{stamp:%Y-%m}", 0
        ledger.recent_calls = [call for call in ledger.recent_calls if now - MINUTE < call <= now]
        return ledger


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _utc(instant: int) -> datetime:
    return datetime.fromtimestamp(instant // clock.SECOND, UTC)


def _midnight(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * clock.SECOND
