"""The exchange as one thing: REST, WebSocket and S3 on ports of their own, in a thread of their own."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from tapelab import settings
from tapelab.errors import BadRange, ServeError, UsageError
from tapelab.exchange import opening
from tapelab.exchange.faults import Faults
from tapelab.exchange.plans import Account
from tapelab.exchange.tape import Tape
from tapelab.market import clock, sessions
from tapelab.settings import Secret, Settings

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tapelab.store.datasets.dataset import Dataset

HOST = "127.0.0.1"
SEED = 7
BUCKET = "flatfiles"
START_WITHIN = 30.0  # seconds
STOP_WITHIN = 15.0
CONTROL_WITHIN = 10.0
LAST_ANSWERS = 1  # seconds for answers under way when the exchange closes

_WILDCARDS = ("0.0.0.0", "::", "")
_ORIGIN = "stand-in exchange"
_log = logging.getLogger(__name__)
_Given = TypeVar("_Given")


def serve(
    *,
    simulate: bool = False,
    dataset: str | Path | Dataset | None = None,
    flat_files: str | Path | None = None,
    follow: bool = False,
    seed: int = SEED,
    day: date | str | None = None,
    start: int | str | None = None,
    until: int | str | None = None,
    speed: float = 1.0,
    wait_for: int = 1,
    plan: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    max_connections: int | None = None,
    faults: str | Path | Mapping[str, object] | None = None,
    host: str = HOST,
    rest_port: int = 0,
    ws_port: int = 0,
    s3_port: int = 0,
) -> Exchange:
    """Start a stand-in for Massive on this machine: REST, live stream and flat files from one tape.

    The tape is one of: `simulate` (a seeded market on test symbols), `dataset` (a recording), `flat_files` (a
    folder in the vendor's layout). `day` is the day that is streamed (the latest with ticks), from `start`
    to `until` (ns UTC, or "09:30" at the exchange). `speed` 1 is real time, N so many times faster, 0
    unpaced. The clock starts with the `wait_for`-th subscribed client. `follow`: the recording still grows,
    and is streamed as it comes until it ends.

    `plan` names one of the vendor's plans whose limits are to hold (none); `keys` are more keys and the plan
    of each, so that clients of different plans can be tried side by side. `faults` is a script of what goes
    wrong (`tapelab.exchange.faults`); `seed` settles its chances too. Port 0 picks a free one.

    Use it in a `with` block, or call `close()`. Raises `ServeError` when it cannot start, `UsageError` for a
    question without sense.
    """
    if follow and (day, start, until, speed) != (None, None, None, 1.0):
        raise UsageError(
            "A recording under way has its own day and pace.", remedy="Leave out day, start, until and speed."
        )
    tape = opening.tape_of(
        simulate=simulate, dataset=dataset, flat_files=flat_files, seed=seed, follow=follow
    )
    if wait_for < 0:
        raise UsageError(
            f"wait_for={wait_for} makes no sense.", remedy="It is a number of clients, 1 or more."
        )
    streamed = opening.day_of(tape, day)
    span = (opening.moment_of(streamed, start, "start"), opening.moment_of(streamed, until, "until"))
    if span[0] is not None and span[1] is not None and span[1] <= span[0]:
        raise BadRange(f"until={until} is not after start={start}.", remedy="Swap them.")
    return Exchange(
        tape,
        opening.accounts_of(tape, plan, keys, max_connections),
        Faults.load(faults, seed=seed),
        day=streamed,
        span=span,
        speed=0.0 if follow else opening.speed_of(speed),
        wait_for=0 if follow else wait_for,
        follow=follow,
        host=host,
        ports=(rest_port, ws_port, s3_port),
    )


class Exchange:
    """A running stand-in exchange; closes at the end of its `with` block.

    Addresses and throw-away credentials are attributes: `rest_url ws_url s3_endpoint s3_bucket api_key
    s3_access_key_id s3_secret_access_key`; `tape` is what it speaks, `day` what it streams. `finished` is set
    when the whole tape has been streamed. May be controlled from any thread.
    """

    def __init__(
        self,
        tape: Tape,
        accounts: Sequence[Account],
        faults: Faults,
        *,
        day: date,
        span: tuple[int | None, int | None],
        speed: float,
        wait_for: int,
        follow: bool,
        host: str,
        ports: tuple[int, int, int],
    ) -> None:
        from tapelab.exchange.stream.app import Stream
        from tapelab.exchange.stream.tapeclock import TapeClock

        self.tape = tape
        self.day = day
        self.s3_bucket = BUCKET
        own = accounts[0]
        self.api_key = own.api_key
        self.s3_access_key_id = own.s3_access_key_id
        self.s3_secret_access_key = own.s3_secret_access_key
        self._accounts = {account.api_key: account for account in accounts}
        self._faults = faults
        self._follow = follow
        self._end = tape.end
        self._sockets = opening.listen(host, ports)
        shown = HOST if host in _WILDCARDS else f"[{host}]" if ":" in host else host
        rest, ws, s3 = (sock.getsockname()[1] for sock in self._sockets)
        self.rest_url = f"http://{shown}:{rest}"
        self.ws_url = f"ws://{shown}:{ws}"
        self.s3_endpoint = f"http://{shown}:{s3}"
        self._stream = Stream(
            tape.identity,
            accounts,
            lambda: opening.script_of(tape, day, *span),
            TapeClock(opening.start_of(day) if span[0] is None else span[0], speed),
            wait_for=wait_for,
            faults=faults,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tapelab-exchange", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_WITHIN) or self._loop is None:
            raise ServeError("The stand-in exchange did not start.", remedy="See the log for the cause.")

    def __repr__(self) -> str:
        return f"<Exchange {self.tape.identity!r} {self.rest_url} {self.ws_url} {self.s3_endpoint}>"

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every connection and free the ports; within seconds, whatever clients do."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(STOP_WITHIN)
        if self._thread.is_alive():
            _log.error("The stand-in exchange did not stop within %.0f s.", STOP_WITHIN)

    def settings(self, home: str | Path, *, key: str | None = None) -> Settings:
        """Settings that point everything at this exchange; your own budgets do not count here.

        `key`: one of those that were given to `serve`, to ask as somebody of that plan.
        """
        key = self.api_key if key is None else key
        if key not in self._accounts:
            raise UsageError("The exchange does not know this key.", remedy="Give it to serve(keys=…).")
        account = self._accounts[key]
        return Settings(
            api_key=Secret(account.api_key),
            s3_access_key_id=Secret(account.s3_access_key_id),
            s3_secret_access_key=Secret(account.s3_secret_access_key),
            s3_endpoint=self.s3_endpoint,
            s3_bucket=self.s3_bucket,
            rest_url=self.rest_url,
            ws_url=self.ws_url,
            home=Path(home).absolute(),
            plan="",
            rest_calls_per_day=0,
            rest_calls_per_minute=0,
            flat_file_gb_per_month=0,
            origin={setting.attribute: _ORIGIN for setting in settings.TABLE},
        )

    @contextmanager
    def use(self, home: str | Path | None = None, *, key: str | None = None) -> Iterator[Settings]:
        """Everything in this context talks to this exchange and keeps its data in `home`.

        Without `home`, in a temporary folder that is gone afterwards. `key` as in `settings`.
        """
        with ExitStack() as stack:
            if home is None:
                home = stack.enter_context(tempfile.TemporaryDirectory(prefix="tapelab-"))
            yield stack.enter_context(settings.use(self.settings(home, key=key)))

    def ready_line(self) -> str:
        """Addresses and credentials as one line of JSON, for other programs."""
        names = (
            "rest_url", "ws_url", "s3_endpoint", "s3_bucket",
            "api_key", "s3_access_key_id", "s3_secret_access_key",
        )  # fmt: skip
        said = {name: getattr(self, name) for name in names}
        return msgspec.json.encode(said).decode()

    @property
    def finished(self) -> threading.Event:
        """Set when the whole tape has been streamed, and all of it taken by the clients."""
        return self._stream.finished

    @property
    def position(self) -> int:
        """Where the exchange's clock stands, ns UTC; unpaced, at the last event that was said."""
        # In a recording that is followed nothing may have happened yet.
        return self._stream.clock.now() or clock.now()

    @property
    def told(self) -> bool:
        """Whether its clock was ever started or set; until then everything on the tape is history."""
        return self._stream.clock.told

    @property
    def now(self) -> int:
        """What time it is at the exchange, ns UTC: its clock's, or before that is started the tape's end."""
        return self.position if self.told else self._end

    @property
    def speed(self) -> float:
        """How fast the clock runs: 1 real time, 0 unpaced. May be set while it runs."""
        return self._stream.clock.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._control(lambda: self._turn(speed=speed))

    def pause(self) -> None:
        """Stop the clock; connections stay."""
        self._control(lambda: self._turn(paused=True))

    def resume(self) -> None:
        """Let the clock run on from where it stopped."""
        self._control(lambda: self._turn(paused=False))

    def jump(self, to: int | str) -> None:
        """Set the clock to a moment of the streamed day: ns UTC, or "09:30" at the exchange.

        Clients hear what is said from then on, whether they have heard it before or not. Before the clock has
        been started it will start there. Raises `BadRange` for a moment of another day.
        """
        self._control(lambda: self._turn(at=to))

    def disconnect_clients(self, *, clean: bool = True) -> int:
        """End every live connection, with a close frame or by cutting TCP; how many there were."""
        loop = self._running()
        return asyncio.run_coroutine_threadsafe(self._stream.disconnect(clean), loop).result(CONTROL_WITHIN)

    def _turn(
        self, *, speed: float | None = None, paused: bool | None = None, at: int | str | None = None
    ) -> None:
        if self._follow:
            raise UsageError("A recording under way has its own pace.", remedy="Serve it when it has ended.")
        speed = None if speed is None else opening.speed_of(speed)
        to = None if at is None else opening.moment_on(self.day, at)
        self._stream.change(speed=speed, paused=paused, to=to)

    def _state(self) -> dict[str, Any]:
        tape_clock, at = self._stream.clock, self.position
        return {
            "at": at,
            "time": clock.iso(at, sessions.NEW_YORK),
            "day": self.day.isoformat(),
            "speed": tape_clock.speed,
            "paused": tape_clock.paused,
            "started": tape_clock.started,
            "finished": self.finished.is_set(),
        }

    def _control(self, work: Callable[[], _Given]) -> _Given:
        async def run() -> _Given:
            return work()

        loop = self._running()
        return asyncio.run_coroutine_threadsafe(run(), loop).result(CONTROL_WITHIN)

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or not self._thread.is_alive():
            raise ServeError("The stand-in exchange is closed.", remedy="Start another.")
        return self._loop

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            for sock in self._sockets:
                sock.close()
            self._ready.set()

    async def _serve(self) -> None:
        import uvicorn

        servers = [
            uvicorn.Server(
                uvicorn.Config(
                    app,
                    http="h11",
                    ws="none",
                    lifespan="off",
                    log_config=None,
                    access_log=False,
                    proxy_headers=False,
                    server_header=False,
                    timeout_graceful_shutdown=LAST_ANSWERS,
                )
            )
            for app in (self._rest_door(), self._files_door())
        ]
        rest_socket, ws_socket, s3_socket = self._sockets
        await self._stream.open(ws_socket)
        running = [
            asyncio.create_task(server.serve(sockets=[sock]))
            for server, sock in zip(servers, (rest_socket, s3_socket), strict=True)
        ]
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._ready.set()
        try:
            await self._stop.wait()
        finally:
            for server in servers:
                server.should_exit = True
            await asyncio.gather(self._stream.close(), *running)

    def _rest_door(self) -> ASGIApp:
        from tapelab.exchange import control, doors, sights
        from tapelab.exchange.rest.app import Rest

        apps: dict[str, ASGIApp] = {}
        for key, account in self._accounts.items():
            plan = account.plan
            tape = self.tape.seen(sights.OverRest(plan, self)) if plan.by_the_clock else self.tape
            apps[key] = Rest(tape, key, plan, now=lambda: self.now).app()
        faulty = self._faults.asgi(doors.by_key(apps, doors.rest_key), "rest")
        return control.beside(faulty, self._turn, self._state, list(self._accounts))

    def _files_door(self) -> ASGIApp:
        from tapelab.exchange import doors, sights
        from tapelab.exchange.files.app import Files

        apps: dict[str, ASGIApp] = {}
        for account in self._accounts.values():
            plan = account.plan
            tape = self.tape.seen(sights.InFiles(plan, self)) if plan.by_the_clock else self.tape
            key_id, secret = account.s3_access_key_id, account.s3_secret_access_key
            apps[key_id] = Files(tape, key_id, secret, plan).app()
        return self._faults.asgi(doors.by_key(apps, doors.s3_key), "s3")
