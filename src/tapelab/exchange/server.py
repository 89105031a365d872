"""The exchange as one thing: REST, WebSocket and S3 on ports of their own, in a thread of their own."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import tempfile
import threading
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import msgspec

from tapelab import settings
from tapelab.errors import BadRange, ServeError, UsageError
from tapelab.exchange.plans import Plan, plan_named
from tapelab.exchange.tape import (
    MINUTE_BARS,
    PRODUCTS,
    QUOTES,
    TRADES,
    FlatFileTape,
    Tape,
    of_dataset,
    simulated,
)
from tapelab.market import sessions
from tapelab.market.symbols import Market
from tapelab.settings import Secret, Settings

if TYPE_CHECKING:
    from tapelab.store.dataset import Dataset

HOST = "127.0.0.1"
MAX_PORT = 65_535
WAITING = 128  # connections that the system holds for us
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
    seed: int = SEED,
    day: date | str | None = None,
    start: int | str | None = None,
    until: int | str | None = None,
    speed: float = 1.0,
    wait_for: int = 1,
    plan: str | None = None,
    max_connections: int | None = None,
    host: str = HOST,
    rest_port: int = 0,
    ws_port: int = 0,
    s3_port: int = 0,
) -> Exchange:
    """Start a stand-in for Massive on this machine: REST, live stream and flat files from one tape.

    The tape is one of: `simulate` (a seeded market on test symbols), `dataset` (a recording), `flat_files` (a
    folder in the vendor's layout). `day` is the day that is streamed (the latest with ticks), from `start`
    to `until` (ns UTC, or "09:30" at the exchange). `speed` 1 is real time, N so many times faster, 0
    unpaced. The clock starts with the `wait_for`-th subscribed client. Port 0 picks a free one. `plan` names
    one of the vendor's plans whose limits are to hold (none). Use it in a `with` block, or call `close()`.
    Raises `ServeError` when it cannot start, `UsageError` for a question without sense.
    """
    tape = _tape(simulate, dataset, flat_files, seed)
    if not speed >= 0 or speed == float("inf"):
        raise UsageError(
            f"speed={speed} makes no sense.", remedy="1 is real time, 60 a minute a second, 0 unpaced."
        )
    if wait_for < 0:
        raise UsageError(
            f"wait_for={wait_for} makes no sense.", remedy="It is a number of clients, 1 or more."
        )
    entitled = plan_named(plan)
    streamed = _day(tape, day)
    first, last = _moment(streamed, start, "start"), _moment(streamed, until, "until")
    if first is not None and last is not None and last <= first:
        raise BadRange(f"until={until} is not after start={start}.", remedy="Swap them.")
    return Exchange(
        tape,
        entitled,
        day=streamed,
        span=(first, last),
        speed=speed,
        wait_for=wait_for,
        max_connections=entitled.connections if max_connections is None else max_connections,
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
        plan: Plan,
        *,
        day: date,
        span: tuple[int | None, int | None],
        speed: float,
        wait_for: int,
        max_connections: int | None,
        host: str,
        ports: tuple[int, int, int],
    ) -> None:
        from tapelab.exchange.script import Script
        from tapelab.exchange.stream import Stream, TapeClock

        self.tape = tape
        self.day = day
        self.s3_bucket = BUCKET
        # The same tape has the same keys, so that what was stored from it is found again; another has others.
        digest = hashlib.sha256(f"tapelab {tape.identity}".encode()).hexdigest()
        self.api_key = f"demo-{digest[:24]}"
        self.s3_access_key_id = f"demo-{digest[24:40]}"
        self.s3_secret_access_key = f"demo-{digest[40:]}"
        self._plan = plan
        self._sockets = _listen(host, ports)
        shown = HOST if host in _WILDCARDS else f"[{host}]" if ":" in host else host
        rest, ws, s3 = (sock.getsockname()[1] for sock in self._sockets)
        self.rest_url = f"http://{shown}:{rest}"
        self.ws_url = f"ws://{shown}:{ws}"
        self.s3_endpoint = f"http://{shown}:{s3}"
        session = sessions.session(Market.STOCKS, day)
        begins = span[0] or (session.start if session else sessions.day_start(Market.STOCKS, day))
        self._stream = Stream(
            tape.identity,
            self.api_key,
            plan,
            lambda: Script(tape, day, *span),
            TapeClock(begins, speed),
            wait_for=wait_for,
            max_connections=max_connections,
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

    def settings(self, home: str | Path) -> Settings:
        """Settings that point everything at this exchange; your own budgets do not count here."""
        return Settings(
            api_key=Secret(self.api_key),
            s3_access_key_id=Secret(self.s3_access_key_id),
            s3_secret_access_key=Secret(self.s3_secret_access_key),
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
    def use(self, home: str | Path | None = None) -> Iterator[Settings]:
        """Everything in this context talks to this exchange and keeps its data in `home`.

        Without `home`, in a temporary folder that is gone afterwards.
        """
        with ExitStack() as stack:
            if home is None:
                home = stack.enter_context(tempfile.TemporaryDirectory(prefix="tapelab-"))
            yield stack.enter_context(settings.use(self.settings(home)))

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
        return self._stream.clock.now()

    @property
    def speed(self) -> float:
        """How fast the clock runs: 1 real time, 0 unpaced. May be set while it runs."""
        return self._stream.clock.speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._control(self._change(speed=speed))

    def pause(self) -> None:
        """Stop the clock; connections stay."""
        self._control(self._change(paused=True))

    def resume(self) -> None:
        """Let the clock run on from where it stopped."""
        self._control(self._change(paused=False))

    def disconnect_clients(self, *, clean: bool = True) -> int:
        """End every live connection, with a close frame or by cutting TCP; how many there were."""
        return self._control(self._stream.disconnect(clean))

    async def _change(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        self._stream.change(speed=speed, paused=paused)

    def _control(self, work: Coroutine[object, object, _Given]) -> _Given:
        if self._loop is None or not self._thread.is_alive():
            work.close()
            raise ServeError("The stand-in exchange is closed.", remedy="Start another.")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CONTROL_WITHIN)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            for sock in self._sockets:
                sock.close()
            self._ready.set()

    async def _serve(self) -> None:
        import uvicorn

        from tapelab.exchange.files import Files
        from tapelab.exchange.rest import Rest

        rest = Rest(self.tape, self.api_key, self._plan, lambda: self.position)
        files = Files(self.tape, self.s3_access_key_id, self.s3_secret_access_key, self._plan)
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
            for app in (rest.app(), files.app())
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


def _tape(
    simulate: bool, dataset: str | Path | Dataset | None, flat_files: str | Path | None, seed: int
) -> Tape:
    chosen = [simulate, dataset is not None, flat_files is not None]
    if sum(chosen) != 1:
        what = "Nothing to serve." if not any(chosen) else "There can be only one tape."
        raise UsageError(what, remedy="Give one of simulate=True, dataset=, flat_files=.")
    if dataset is not None:
        return of_dataset(dataset)
    if flat_files is not None:
        folder = Path(flat_files).expanduser()
        if not folder.is_dir():
            raise ServeError(f"There is no folder {folder}.", remedy="Name a folder in the vendor's layout.")
        return FlatFileTape(folder)
    return simulated(seed)


def _day(tape: Tape, day: date | str | None) -> date:
    ticks = sorted({*tape.days(TRADES), *tape.days(QUOTES)})
    if day is None:
        if days := ticks or tape.days(MINUTE_BARS):
            return days[-1]
        return max(day for product in PRODUCTS for day in tape.days(product))
    try:
        wanted = day if isinstance(day, date) else date.fromisoformat(day)
    except ValueError as cause:
        raise BadRange(f"day={day!r} is not a date.", remedy="Write it as 2026-10-02.") from cause
    if wanted not in ticks:
        known = f"It has {', '.join(map(str, ticks[-5:]))}." if ticks else "It has none at all."
        raise BadRange(f"The tape ({tape.identity}) has no ticks on {wanted}.", remedy=known)
    return wanted


def _moment(day: date, moment: int | str | None, name: str) -> int | None:
    if moment is None or isinstance(moment, int):
        return moment
    try:
        return sessions.instant(day, time.fromisoformat(moment), sessions.NEW_YORK)
    except ValueError as cause:
        raise BadRange(
            f"{name}={moment!r} is not a time.", remedy="Write it as 09:30 or 09:30:15."
        ) from cause


def _listen(host: str, ports: tuple[int, int, int]) -> list[socket.socket]:
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
