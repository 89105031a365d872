"""Both routes and the lake, as one request uses them: opened when needed, one in the place of the other."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from datetime import date
from functools import cached_property
from types import TracebackType
from typing import Self
from urllib.parse import quote

from filelock import FileLock, Timeout

from tapelab.budget import Budget
from tapelab.errors import BudgetExceeded, SourceError, TapelabError
from tapelab.history.fetchplan import NAMES, FetchPlan, Route
from tapelab.history.plan import Doors
from tapelab.history.progress import Progress
from tapelab.history.request import Asked
from tapelab.massive.flatfiles import FlatFiles
from tapelab.massive.rest import RestClient
from tapelab.settings import Settings
from tapelab.store import files
from tapelab.store.lake import Lake

WORKERS = 8  # downloads or questions in flight
ASKING_SECONDS = 600.0  # how long another process may ask for the same before we ask too


class RouteFailed(Exception):
    """A route gave up in the middle; the other may still do."""

    def __init__(self, route: Route, error: SourceError | BudgetExceeded) -> None:
        super().__init__(route)
        self.route = route
        self.error = error
        self.why = f"{NAMES[route]} failed: {error.message.rstrip('.')}"


class Routes:
    """REST, flat files, budget and lake of one endpoint. A context manager."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.settings = settings
        self.progress = progress
        self.budget = Budget(settings, on_wait=progress.wait)
        self.lake = Lake(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "rest" in self.__dict__:
            self.rest.close()

    @cached_property
    def rest(self) -> RestClient:
        return RestClient(self.settings, self.budget, on_wait=self.progress.wait)

    @cached_property
    def files(self) -> FlatFiles:
        return FlatFiles(self.settings, self.budget)

    def doors(self) -> Doors:
        """What is open before anything was tried."""
        keys = self.settings.s3_access_key_id and self.settings.s3_secret_access_key
        return Doors(
            files_closed="" if keys else "no flat-file keys are set",
            rest_closed="" if self.settings.api_key else "no API key is set",
        )

    def listed(self, asked: Asked, doors: Doors, *, needed: bool) -> Doors:
        """`doors` with the flat files that the vendor lists; shut, where there is no list to be had."""
        days = [session.date for session in asked.range.sessions()]
        if asked.product is None:
            return doors
        try:
            return replace(doors, files=self.files.list(asked.product, days[0], days[-1]))
        except SourceError as error:
            if needed and (doors.rest_closed or not asked.fallback):
                raise
            return replace(doors, files_closed=f"{NAMES['flat_file']} failed: {error.message.rstrip('.')}")

    @contextlib.contextmanager
    def asking(self, base: str, name: str, first: date) -> Iterator[None]:
        """Of several processes that want the same of REST, one asks and the others find it in the lake.

        Where calls are free, the stretches of one symbol are asked for side by side.
        """
        free = not (self.settings.rest_calls_per_day or self.settings.rest_calls_per_minute)
        what = quote(f"ask-{base}-{name}-{first}" if free else f"ask-{base}-{name}", safe="")
        lock = FileLock(
            files.make_folder(self.lake.folder / ".locks") / f"{what}.lock", timeout=ASKING_SECONDS
        )
        with contextlib.suppress(Timeout):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def side_by_side(self, work: Sequence[Callable[[], None]]) -> None:
        """The last and the first alone, so that a refusal costs two requests, then the rest together."""
        ordered = [*work[-1:], *work[:-1]]
        for task in ordered[:2]:
            task()
            self.progress.step()
        if len(ordered) <= 2:
            return
        with ThreadPoolExecutor(WORKERS) as pool:
            # Threads do not inherit contexts, and the clock lives in one.
            running = [pool.submit(contextvars.copy_context().run, task) for task in ordered[2:]]
            try:
                for done in as_completed(running):
                    done.result()
                    self.progress.step()
            except BaseException:
                if "rest" in self.__dict__:
                    self.rest.stop()
                raise
            finally:
                for waiting in running:
                    waiting.cancel()

    def carry_out(
        self,
        asked: Asked,
        decide: Callable[[Doors], tuple[FetchPlan, Doors]],
        obey: Callable[[FetchPlan], None],
    ) -> tuple[FetchPlan, list[str]]:
        """Decide and obey until everything is there: a route that fails is shut, and the rest planned again.

        Returns the last plan and the lines that were reported.
        """
        doors = self.doors()
        lines: list[str] = []
        failures: list[RouteFailed] = []
        while True:
            try:
                chosen, doors = decide(doors)
            except TapelabError:
                if len(failures) == 1:
                    raise failures[0].error from failures[0].error.__cause__
                if failures:
                    raise _both_failed(failures) from failures[0].error
                raise
            if failures:
                fell_back = f"Fell back to {NAMES[chosen.route]} ({failures[-1].why})"
                chosen = replace(chosen, reason=fell_back)
            for line in chosen.lines:
                lines.append(line)
                self.progress.line(line)
            try:
                obey(chosen)
            except RouteFailed as failure:
                if not asked.fallback:
                    raise failure.error from failure.error.__cause__
                failures.append(failure)
                if failure.route == "rest":
                    doors = replace(doors, rest_closed=failure.why)
                else:
                    doors = replace(doors, files_closed=failure.why)
            else:
                return chosen, lines

    def obey(self, chosen: FetchPlan, steps: Sequence[tuple[Route, Sequence[Callable[[], None]]]]) -> None:
        """Each route's share of a plan. Raises `RouteFailed`."""
        names = " ".join(chosen.request.names[:3])
        work = sum(len(tasks) for _, tasks in steps)
        self.progress.begin(f"{NAMES[chosen.route]}: {names}", work)
        for route, tasks in steps:
            try:
                self.side_by_side(tasks)
            except (SourceError, BudgetExceeded) as error:
                raise RouteFailed(route, error) from error


def _both_failed(failures: Sequence[RouteFailed]) -> TapelabError:
    """What the first route said, and after it why the other could not help."""
    first, second = failures[0].error, failures[1]
    return type(first)(first.message, remedy=f"{first.remedy} {second.why}.", **first.facts)
