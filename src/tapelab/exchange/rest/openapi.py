"""What the exchange serves over REST as an OpenAPI 3.1 description: asked of the code, not written beside it.

Each route of the table is asked once, of a small simulated market, by a question that notes which parameters
were read and what they may be; its answer shows the keys and types. So nothing here can fall behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any, get_args

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tapelab.exchange.plans import EVERYTHING
from tapelab.exchange.rest.aggregates import BASES
from tapelab.exchange.rest.ask import Ask, Refused
from tapelab.exchange.tape import SimulatedTape, Tape
from tapelab.massive import wire
from tapelab.massive.wire.answers import JSON, TEXT, Refusal

PATH = "/openapi.json"

Schema = dict[str, Any]
Door = tuple[str, Callable[[Ask], bytes], str | None]  # path, what answers, what a plan must include for it

TITLE = "tapelab: a stand-in for Massive's REST"
SEED = 7
OPERATORS = ("", ".gt", ".gte", ".lt", ".lte")
INSIDE_CURSORS = ("ap", "as")
KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "query": {"type": "apiKey", "in": "query", "name": "apiKey"},
}

_DATE: Schema = {"type": "string", "format": "date"}
_STAMP: Schema = {"anyOf": [_DATE, {"type": "integer"}]}
_TEXT: Schema = {"type": "string"}


def route(doors: tuple[Door, ...]) -> Route:
    """The route at which the description of these others is read; that takes no key."""

    async def endpoint(request: Request) -> Response:
        return Response(await run_in_threadpool(described, doors), media_type=JSON)

    return Route(PATH, endpoint, methods=["GET"])


@lru_cache(maxsize=1)
def described(doors: tuple[Door, ...]) -> bytes:
    """The description of these routes as JSON; made once, in about a second."""
    return msgspec.json.encode(description(doors))


def description(doors: Iterable[Door]) -> Schema:
    """The description of these routes."""
    from tapelab.exchange.tape.simulate import SimulatedMarket

    tape = SimulatedTape(SimulatedMarket(SEED), tick_days=1)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": "1"},
        "security": [{name: []} for name in KEYS],
        "components": {"securitySchemes": KEYS},
        "paths": {path: {"get": _operation(path, answer, part, tape)} for path, answer, part in doors},
    }


class _Noted(Mapping[str, str]):
    """A query without parameters that notes which ones were looked for."""

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}

    def __getitem__(self, name: str) -> str:
        self.schemas.setdefault(name, _TEXT)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class _Question(Ask):
    """A question that notes what its parameters may be."""

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        inside = default if low <= default <= high else None
        self._note(name, {"type": "integer", "minimum": low, "maximum": high}, inside)
        return default

    def choice(self, name: str, default: str, *known: str) -> str:
        self._note(name, {"type": "string", "enum": list(dict.fromkeys(known))}, default or None)
        return default

    def flag(self, name: str, default: bool) -> bool:
        self._note(name, {"type": "boolean"}, default)
        return default

    def stamps(self, name: str) -> tuple[int, int]:
        for operator in OPERATORS:
            self._note(name + operator, _STAMP)
        return super().stamps(name)

    def _note(self, name: str, schema: Schema, default: object = None) -> None:
        assert isinstance(self.query, _Noted)
        self.query.schemas[name] = schema if default is None else {**schema, "default": default}


def _operation(path: str, answer: Callable[[Ask], bytes], part: str | None, tape: Tape) -> Schema:
    now = tape.end
    samples = _in_paths(tape)
    names = [name.partition("}")[0] for name in path.split("{")[1:]]
    noted = _Noted()
    question = _Question(
        {name: str(samples[name]["example"]) for name in names}, noted, "", path, "", tape, now, EVERYTHING
    )
    try:
        found = {"200": _response("What was asked for.", schema_of(json.loads(answer(question))))}
    except Refused:  # a simulated market does not know it
        found = {"200": _response("What was asked for.", {"type": "object"})}
    queried = {name: schema for name, schema in noted.schemas.items() if name not in INSIDE_CURSORS}
    if "limit" in queried:
        queried["cursor"] = _TEXT
    function = answer.func if isinstance(answer, partial) else answer
    return {
        "operationId": "_".join(word.strip("{}") for word in path.split("/") if word),
        "summary": (function.__doc__ or "").partition("\n")[0],
        "parameters": [
            *({"name": name, "in": "path", "required": True, **samples[name]} for name in names),
            *({"name": name, "in": "query", "schema": schema} for name, schema in queried.items()),
        ],
        "responses": found | _refusals(part),
    }


def _in_paths(tape: Tape) -> dict[str, Schema]:
    """What may stand in a path, and what does when the routes are asked."""
    from tapelab.exchange.tape.simulate import INSTRUMENTS

    symbol, day = INSTRUMENTS[0].symbol, tape.bar_days("1d")[-1].isoformat()
    return {
        "ticker": {"schema": _TEXT, "example": symbol},
        "id": {"schema": _TEXT, "example": symbol},
        "multiplier": {"schema": {"type": "integer", "minimum": 1}, "example": 1},
        "timespan": {"schema": {"type": "string", "enum": list(BASES)}, "example": "day"},
        "from": {"schema": _STAMP, "example": day},
        "to": {"schema": _STAMP, "example": day},
        "date": {"schema": _DATE, "example": day},
    }


def _refusals(part: str | None) -> dict[str, Schema]:
    """The vendor's ways of saying no, by HTTP status, as far as the route may use them."""
    kinds: tuple[Refusal, ...] = get_args(Refusal)
    said = [wire.error_body(kind, request_id="") for kind in kinds if part or "entitled" not in kind]
    found: dict[str, Schema] = {}
    for answer in said:
        response = found.setdefault(str(answer.status), {"description": "Refused.", "content": {}})
        schema = schema_of(json.loads(answer.body)) if answer.content_type == JSON else _TEXT
        response["content"][TEXT.partition(";")[0] if schema is _TEXT else JSON] = {"schema": schema}
    return found


def _response(text: str, schema: Schema) -> Schema:
    return {"description": text, "content": {JSON: {"schema": schema}}}


def schema_of(value: object) -> Schema:
    """The keys and JSON types of a value. Keys may be absent, a list may be null, its items are alike."""
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int | float):
        return {"type": "number"}
    if isinstance(value, dict):
        return {"type": "object", "properties": {key: schema_of(inner) for key, inner in value.items()}}
    if isinstance(value, list):
        return {"type": ["array", "null"], **({"items": schema_of(value[0])} if value else {})}
    return {"type": "string"} if isinstance(value, str) else {}
