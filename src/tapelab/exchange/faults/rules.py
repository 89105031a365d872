"""The rules of a fault script: which requests and events they strike, the same every time for a seed."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar, cast

import msgspec
from msgspec import Meta

from tapelab.errors import UnknownName, UsageError
from tapelab.exchange.faults import http, stream
from tapelab.exchange.faults.http import HANG_UP, PUBLISHED, Door, HttpFault, ObjectFault, hang_up
from tapelab.exchange.faults.stream import Cut, Stall, StreamFault, StreamFaults

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope
    from starlette.types import Send as Sender

FAULT_HEADER = "X-Tapelab-Fault"  # on every answer that a script changed: the names of its faults
MAX_TOPICS = 100_000  # whose rules are remembered

_HTTP: dict[str, type] = {
    "status": http.Status,
    "error_in_200": http.ErrorIn200,
    "cut": http.Cut,
    "stall": http.Stall,
    "trickle": http.Trickle,
}
KINDS: dict[str, dict[str, type]] = {
    "rest": {**_HTTP, "broken_page": http.BrokenPage},
    "s3": {**_HTTP, "truncated": http.Truncated, "replaced": http.Replaced},
    "stream": {
        "cut": Cut,
        "stall": Stall,
        "duplicate": stream.Duplicate,
        "reorder": stream.Reorder,
        "garbage": stream.Garbage,
        "unknown": stream.Unknown,
        "status": stream.Status,
        "slow_client": stream.SlowClient,
    },
}
_OBJECTS = (http.Truncated, http.Replaced)
_ON_THE_WAY = (http.Cut, http.Stall, http.Trickle)
_log = logging.getLogger(__name__)

Whole = Annotated[int, Meta(ge=1)]
Fault = TypeVar("Fault")


@dataclass(frozen=True)
class When:
    """Which of the requests (or events) that a rule is about it strikes.

    The `first`-th, counted from 1, and every `every`-th from there on; each of these with a `chance`; no more
    than so many `times`. `each`: every path (in the stream: every connection) is counted by itself.
    """

    first: Whole = 1
    every: Whole = 1
    chance: Annotated[float, Meta(gt=0, le=1)] = 1.0
    times: Whole | None = None
    each: bool = False

    def strikes(self, number: int, struck: int, draw: Callable[[], float]) -> bool:
        """Whether the rule strikes at this one, having struck so often; `draw` is from [0, 1)."""
        due = number >= self.first and (number - self.first) % self.every == 0
        return (
            due and (self.times is None or struck < self.times) and (self.chance == 1 or draw() < self.chance)
        )


@dataclass(frozen=True)
class Requests(When):
    """Requests: those whose `path`, or path with query, is like this (`*` is anything), by their method.

    What a script does to a file itself shows in HEAD and in listings too; only requests of `method` count.
    """

    path: str = "*"
    method: Literal["GET", "HEAD"] = "GET"

    def covers(self, method: str, target: str) -> bool:
        return method == self.method and self.like(target)

    def like(self, target: str) -> bool:
        return fnmatchcase(target.partition("?")[0], self.path) or fnmatchcase(target, self.path)


@dataclass(frozen=True)
class Events(When):
    """Events of the stream: those whose topic is like `Q.AAPL` (`*` is anything), on the n-th connection."""

    topic: str = "*"
    connection: Whole | None = None

    def covers(self, connection: int, topic: str) -> bool:
        return self.connection in (None, connection) and fnmatchcase(topic, self.topic)


class _Rule(Generic[Fault]):
    """A fault, when it strikes, and how often it has been asked and has struck."""

    def __init__(self, name: str, fault: Fault, when: When, dice: str) -> None:
        self.name = name
        self.fault = fault
        self.when = when
        self._dice = dice
        self._seen: Counter[str] = Counter()
        self._struck: Counter[str] = Counter()

    def strikes(self, key: str) -> bool:
        """Count one more, and say whether it is struck."""
        struck = self.would_strike(key)
        key = self._key(key)
        self._seen[key] += 1
        self._struck[key] += struck
        return struck

    def would_strike(self, key: str) -> bool:
        """Whether the next one will be struck."""
        key = self._key(key)
        number = self._seen[key] + 1
        return self.when.strikes(number, self._struck[key], lambda: _fraction(f"{self._dice} {key} {number}"))

    def dice(self, key: str) -> Random:
        """Chance for what was struck last."""
        key = self._key(key)
        return Random(f"{self._dice} {key} {self._seen[key]}")

    def _key(self, key: str) -> str:
        return key if self.when.each else ""


class Faults:
    """A fault script at work: it counts what passes the doors, and strikes where its rules say so.

    Serves one exchange. The same script and seed do the same to the same requests and events.
    """

    def __init__(self, rules: Mapping[str, Sequence[_Rule[Any]]]) -> None:
        self._rules = rules

    def __repr__(self) -> str:
        said = (f"{door}: {', '.join(rule.name for rule in rules)}" for door, rules in self._rules.items())
        return f"<Faults {'; '.join(said) or 'none'}>"

    @classmethod
    def load(cls, source: Path | str | Mapping[str, object] | None, *, seed: int = 0) -> Faults:
        """Read a script from a `.toml` or `.json` file or a mapping; the script's own `seed` wins.

        Raises `UnknownName` for a fault or a key that is not known, `UsageError` for what makes no sense.
        """
        if source is None:
            return NO_FAULTS
        script, folder = (source, Path()) if isinstance(source, Mapping) else _read(Path(source).expanduser())
        _check_names("fault script key", script, ("seed", *KINDS))
        seed = _understood(script.get("seed", seed), int, "The seed of the fault script")
        rules = {}
        for door in KINDS:
            tables = _understood(script.get(door, []), list[dict[str, Any]], f"The list of rules for {door}")
            found = [_rule(door, n, table, folder, f"{seed} {door} {n}") for n, table in enumerate(tables, 1)]
            if found:
                rules[door] = found
        return cls(rules)

    def asgi(self, app: ASGIApp, door: Door) -> ASGIApp:
        """The app of a door, with the faults of that door."""
        rules = cast("Sequence[_Rule[HttpFault]]", self._rules.get(door, ()))
        return _Faulty(app, door, rules) if rules else app

    def stream(self, connection: int) -> StreamFaults:
        """What becomes of the messages of the n-th connection, counted from 1."""
        rules = cast("Sequence[_Rule[StreamFault]]", self._rules.get("stream", ()))
        mine = [rule for rule in rules if _events(rule).connection in (None, connection)]
        if not mine:
            return StreamFaults(None)

        @lru_cache(MAX_TOPICS)
        def about(topic: str) -> list[_Rule[StreamFault]]:
            return [rule for rule in mine if _events(rule).covers(connection, topic)]

        def strike(topic: str) -> Sequence[tuple[StreamFault, Random]]:
            struck = [rule for rule in about(topic) if rule.strikes(str(connection))]
            for rule in struck:
                _log.info("Fault %s at %s of connection %d", rule.name, topic, connection)
            return [(rule.fault, rule.dice(str(connection))) for rule in struck]

        return StreamFaults(strike)


NO_FAULTS = Faults({})


class _Faulty:
    """An ASGI app behind the rules of its door."""

    def __init__(self, app: ASGIApp, door: Door, rules: Sequence[_Rule[HttpFault]]) -> None:
        self._app = app
        self._door = door
        self._rules = rules

    async def __call__(self, scope: Scope, receive: Receive, send: Sender) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        target = f"{path}?{scope['query_string'].decode('latin-1')}"
        about = [rule for rule in self._rules if _requests(rule).covers(method, target)]
        struck = [rule for rule in about if rule.strikes(path)]
        struck.sort(key=lambda rule: isinstance(rule.fault, _ON_THE_WAY))
        app = self._app
        for rule in struck:
            app = rule.fault.around(app, self._door)
        end = partial(hang_up, receive, send)
        published = partial(self._published, path if method == "GET" else None, struck)
        if struck:
            names = ", ".join(rule.name for rule in struck)
            _log.info("Fault %s at %s %s", names, method, path)
            send = partial(_named, send, names)
        try:
            await app({**scope, HANG_UP: end, PUBLISHED: published}, receive, send)
        except asyncio.CancelledError:
            # The server closes, and waits no longer for what a fault holds back.
            await end()

    def _published(
        self, asked: str | None, struck: Sequence[_Rule[HttpFault]], path: str
    ) -> list[ObjectFault]:
        """What is wrong with a file: as decided for this request, or as the next one for it would find it."""
        found: Iterable[_Rule[HttpFault]] = struck
        if path != asked:
            found = (r for r in self._rules if _requests(r).like(path) and r.would_strike(path))
        faults = (rule.fault for rule in found)
        return [fault for fault in faults if isinstance(fault, _OBJECTS) and (path == asked or fault.listed)]


async def _named(send: Sender, names: str, message: Message) -> None:
    """Say in the answer that it was changed, and by which faults."""
    if message["type"] == "http.response.start":
        headers = [*message["headers"], (FAULT_HEADER.lower().encode(), names.encode())]
        message = {**message, "headers": headers}
    await send(message)


def _requests(rule: _Rule[HttpFault]) -> Requests:
    return cast("Requests", rule.when)


def _events(rule: _Rule[StreamFault]) -> Events:
    return cast("Events", rule.when)


def _rule(door: str, number: int, table: Mapping[str, Any], folder: Path, dice: str) -> _Rule[Any]:
    kinds = KINDS[door]
    name = table.get("fault")
    if not isinstance(name, str):
        remedy = f"Give it a fault: {', '.join(kinds)}."
        raise UsageError(f"Rule {number} for {door} names no fault.", remedy=remedy)
    if name not in kinds:
        raise UnknownName.among(f"fault of {door}", name, kinds)
    selects = Events if door == "stream" else Requests
    where = {field.name for field in fields(selects)}
    settings = {field.name for field in fields(kinds[name])}
    _check_names(f"{door} {name} key", table, {"fault", *where, *settings})
    said = f"Rule {number} for {door} ({name!r})"
    when = _understood({key: table[key] for key in table if key in where}, selects, said)
    fault: object = _understood({key: table[key] for key in table if key in settings}, kinds[name], said)
    if isinstance(fault, http.Replaced) and fault.file is not None:
        path = (folder / fault.file).resolve()
        if not path.is_file():
            raise UsageError(f"{said} needs {path}, which is not there.", remedy="Name a csv.gz file.")
        fault = dataclasses.replace(fault, file=str(path))
    return _Rule(name, fault, when, dice)


def _read(path: Path) -> tuple[dict[str, object], Path]:
    """A script in a file, and the folder that its own file names start from."""
    try:
        text = path.read_text(encoding="utf-8")
        script = tomllib.loads(text) if path.suffix == ".toml" else msgspec.json.decode(text)
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"The fault script {path} cannot be read.", remedy="Check its name.") from cause
    except (tomllib.TOMLDecodeError, msgspec.DecodeError) as cause:
        remedy = "It is TOML if its name ends in .toml, otherwise JSON."
        raise UsageError(f"The fault script {path} is malformed: {cause}.", remedy=remedy) from cause
    if not isinstance(script, dict):
        raise UsageError(
            f"The fault script {path} is no table.", remedy=f"Its keys: seed, {', '.join(KINDS)}."
        )
    return script, path.parent


def _check_names(kind: str, table: Mapping[str, object], known: Iterable[str]) -> None:
    for name in table:
        if name not in set(known):
            raise UnknownName.among(kind, name, known)


_Given = TypeVar("_Given")


def _understood(given: object, kind: type[_Given], what: str) -> _Given:
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as cause:
        remedy = "See `tapelab.exchange.faults` for what a script may say."
        raise UsageError(f"{what} makes no sense: {cause}.", remedy=remedy) from cause


def _fraction(text: str) -> float:
    """A number from [0, 1) that is the same for a text on every machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)
