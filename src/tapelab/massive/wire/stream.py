"""The live stream: trades, quotes and bars as the events of the vendor's WebSocket, and back.

A message is a JSON array of events; times in it are whole milliseconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.clock import MILLISECOND
from tapelab.market.events import Bar, Quote, Trade
from tapelab.market.sessions import dates_of
from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive.wire import columns
from tapelab.massive.wire.fields import BAR_LENGTH, CHANNELS, NOT_KEPT, STREAM_ORDER, Channel

Status = dict[str, Any]
StreamEvent = Quote | Trade | Bar | Status

# The table that the events of each channel go to.
TABLES: Mapping[Channel, str] = {"Q": "quotes", "T": "trades", "AM": "bars", "A": "bars_1s"}

MAX_NAMES = 1000  # names of unknown events and fields that are told apart; further ones count as OTHERS
OTHERS = "…"


class _Status(msgspec.Struct, tag="status", tag_field="ev"):
    status: str
    message: str = ""


class _Head(msgspec.Struct):
    ev: str


def _reading(name: str, channel: Channel) -> Any:
    return columns.reading_class(name, CHANNELS[channel], "stream", tag=channel, not_kept=NOT_KEPT[channel])


_TradeEvent = _reading("TradeEvent", "T")
_QuoteEvent = _reading("QuoteEvent", "Q")
_SecondEvent = _reading("SecondEvent", "A")
_MinuteEvent = _reading("MinuteEvent", "AM")
_CLASSES = {"Q": _QuoteEvent, "T": _TradeEvent, "AM": _MinuteEvent, "A": _SecondEvent}
_Event: Any = _TradeEvent | _QuoteEvent | _SecondEvent | _MinuteEvent | _Status

_message = columns.decoder_of_many(_Event)
_raw_events = columns.decoder_of_many(msgspec.Raw)
_event = msgspec.json.Decoder(_Event)
_head = msgspec.json.Decoder(_Head)
_keys = msgspec.json.Decoder(dict[str, msgspec.Raw])
_KNOWN = {
    channel: {"ev", *(field.encode_name for field in msgspec.structs.fields(class_))}
    for channel, class_ in _CLASSES.items()
}

_WRITERS = {c: columns.writing_class(f"{c}Event", STREAM_ORDER[c], tag=c) for c in STREAM_ORDER}


def encode_events(table: pa.Table, channel: Channel) -> list[bytes]:
    """Each row as one event of the stream, in the vendor's order of keys.

    `T` trades, `Q` quotes, `A` second bars, `AM` minute bars. Sizes are cut to whole shares beside the exact
    decimal (`ds` of a trade only where they differ, `dv` of a bar always); a quote keeps its first condition.
    Bars may have columns `day_volume`, `day_vwap` and `day_open`: their day until then (`av`, `a`, `op`).
    """
    kind = CHANNELS[channel]
    by_key = columns.key_columns(table, kind, "stream")
    if kind == "bars":
        length = BAR_LENGTH[channel] // MILLISECOND
        by_key["e"] = [start + length for start in by_key["s"]]
        by_key["z"] = columns.values(_average_size(table))
        by_key |= _of_the_day(table)
    ordered = [by_key[key] for key in STREAM_ORDER[channel]]
    return list(map(msgspec.json.Encoder().encode, map(_WRITERS[channel], *ordered)))


def frame(events: Iterable[bytes]) -> bytes:
    """Events as one message of the stream."""
    return b"[" + b",".join(events) + b"]"


def status_event(status: str, message: str) -> bytes:
    """One of the vendor's status events: `connected`, `auth_success`, `success`, `error` …"""
    return msgspec.json.encode({"ev": "status", "status": status, "message": message})


def as_streamed(table: pa.Table, channel: Channel) -> pa.Table:
    """What is left of a table once it has gone over the stream, so that a recording can be compared with it.

    Times lose what is below the millisecond, quotes their fractions of a size and all conditions but the
    first, trades their correction, bars their number of trades; clocks that the stream does not carry are
    null. `ts_recv` and `arrival` stay as they are.
    """
    kind = CHANNELS[channel]
    kept = {f.column: f for f in columns.carried(kind, "stream")}
    out: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        column = table.column(name)
        field = kept.get(name)
        if field is None:
            if name in ("ts_recv", "arrival", "session"):
                out[name] = column
        elif field.sort == "instant":
            unit = field.stream_unit
            out[name] = pc.multiply(pc.divide(column, unit), unit)
        elif field.sort == "size":
            sizes = columns.to_decimals(column)
            out[name] = pc.trunc(sizes) if field.stream_exact is None else sizes
        elif field.sort == "codes":
            lists = columns.split_codes(columns.joined_codes(column.combine_chunks()))
            out[name] = pc.list_slice(lists, 0, 1) if columns.is_single(kind, field, "stream") else lists
        else:
            out[name] = column
    return conform(pa.table(out), SCHEMAS[kind]).replace_schema_metadata(table.schema.metadata)


class FrameDecoder:
    """Messages of the stock stream in, tables out.

    `feed` takes messages as they came, `take` gives what has gathered since the last time. Nothing vanishes:
    `unknown` counts the events of channels that have no table here, `unknown_fields` the fields that the
    vendor added to those that have one, `malformed` the events (or whole messages) that are not what the
    protocol promises. Not for use by several threads at once.
    """

    def __init__(self) -> None:
        self.unknown: Counter[str] = Counter()
        self.unknown_fields: Counter[tuple[Channel, str]] = Counter()
        self.malformed = 0
        self._kept: dict[Any, tuple[list[Any], list[int], list[int]]] = {}
        self._forget()

    def feed(self, payload: bytes, *, ts_recv: int, arrival: int) -> list[Status]:
        """Take one message; gives its status events.

        `ts_recv`: when it came, ns UTC. `arrival`: the number of its first event; each further event has the
        next one, whatever its kind.
        """
        statuses: list[Status] = []
        for number, event in enumerate(self._read(payload), arrival):
            if event is None:
                continue
            if event.__class__ is _Status:
                statuses.append(_status(event))
                continue
            rows, arrivals, stamps = self._kept[event.__class__]
            rows.append(event)
            arrivals.append(number)
            stamps.append(ts_recv)
        return statuses

    def gathered(self) -> dict[str, int]:
        """How many rows of each table have gathered since the last `take`."""
        return {name: len(self._kept[_CLASSES[channel]][0]) for channel, name in TABLES.items()}

    def take(self) -> dict[str, pa.Table]:
        """What has gathered, in order of arrival: `quotes`, `trades`, `bars` (minutes) and `bars_1s`.

        A bar that was sent again stands twice; the later one counts.
        """
        kept = self._kept
        self._forget()
        return {
            "quotes": _ticks(*kept[_QuoteEvent], "quotes"),
            "trades": _ticks(*kept[_TradeEvent], "trades"),
            "bars": _bars(kept[_MinuteEvent][0]),
            "bars_1s": _bars(kept[_SecondEvent][0]),
        }

    def events(self, payload: bytes, *, ts_recv: int | None, arrival: int) -> list[StreamEvent]:
        """The events of one message as objects, for callbacks; nothing is gathered, counters count."""
        found: list[StreamEvent] = []
        for number, event in enumerate(self._read(payload), arrival):
            if event is not None:
                found.append(_object(event, ts_recv, number))
        return found

    def _forget(self) -> None:
        self._kept = {class_: ([], [], []) for class_ in _CLASSES.values()}

    def _read(self, payload: bytes) -> list[Any]:
        """Every event of a message in its place; None where it is not for us."""
        try:
            return _message.decode(payload)
        except columns.NOT_JSON:
            # Something in it is unknown or broken: read event by event, so that the others are not lost.
            return list(self._read_each(payload))

    def _read_each(self, payload: bytes) -> Iterator[Any]:
        try:
            events = _raw_events.decode(payload)
        except columns.NOT_JSON:
            self.malformed += 1
            return
        for raw in events:
            try:
                yield _event.decode(raw)
            except columns.NOT_JSON:
                yield self._read_odd(raw)

    def _read_odd(self, raw: msgspec.Raw) -> Any:
        """An event with fields that are new to us; None, counted, for any other that we cannot read."""
        try:
            name = _head.decode(raw).ev
            if name not in CHANNELS and name != "status":
                _count(self.unknown, name, OTHERS)
                return None
            keys = _keys.decode(raw)
            known = _KNOWN.get(name, set())
            event = _event.decode(msgspec.json.encode({key: keys[key] for key in keys if key in known}))
        except columns.NOT_JSON:
            self.malformed += 1
            return None
        channel: Channel = name  # type: ignore[assignment]
        for key in keys.keys() - known:
            _count(self.unknown_fields, (channel, key), (channel, OTHERS))
        return event


def _count(counter: Counter[Any], name: Any, others: Any) -> None:
    counter[name if name in counter or len(counter) < MAX_NAMES else others] += 1


def decode_events(payload: bytes, *, ts_recv: int | None = None, arrival: int = 0) -> list[StreamEvent]:
    """One message of the stream as objects; what is unknown or malformed is left out."""
    return FrameDecoder().events(payload, ts_recv=ts_recv, arrival=arrival)


def _status(event: _Status) -> Status:
    return {"ev": "status", "status": event.status, "message": event.message}


def _object(event: Any, ts_recv: int | None, arrival: int) -> StreamEvent:
    if event.__class__ is _Status:
        return _status(event)
    if event.__class__ is _QuoteEvent:
        return Quote(
            event.symbol,
            event.ts_event * MILLISECOND,
            ts_recv,
            arrival,
            event.bid or None,
            event.ask or None,
            event.bid_size or 0.0,
            event.ask_size or 0.0,
        )
    if event.__class__ is _TradeEvent:
        return Trade(
            event.symbol,
            event.ts_event * MILLISECOND,
            ts_recv,
            arrival,
            event.price,
            event.size if event.size_exact is None else float(event.size_exact),
            event.exchange,
            tuple(event.conditions or ()),
            bool(event.trf_id),
        )
    start = event.timestamp * MILLISECOND
    return Bar(
        event.symbol,
        start,
        start + BAR_LENGTH["A" if event.__class__ is _SecondEvent else "AM"],
        event.open,
        event.high,
        event.low,
        event.close,
        event.volume if event.volume_exact is None else float(event.volume_exact),
        event.vwap,
        None,
    )


def _ticks(
    rows: list[Any], arrivals: list[int], stamps: list[int], kind: Literal["quotes", "trades"]
) -> pa.Table:
    order = {"arrival": pa.array(arrivals, pa.int64()), "ts_recv": pa.array(stamps, pa.int64())}
    return columns.table_of(rows, kind, "stream", **order)


def _bars(rows: list[Any]) -> pa.Table:
    starts = np.array([row.timestamp for row in rows], dtype=np.int64) * MILLISECOND
    return columns.table_of(rows, "bars", "stream", session=pa.array(dates_of(Market.STOCKS, starts)))


def _of_the_day(bars: pa.Table) -> dict[str, list[Any]]:
    names = ("day_volume", "day_vwap", "day_open")
    unknown = pa.chunked_array([pa.nulls(len(bars), pa.float64())])
    volume, vwap, official = (bars.column(n) if n in bars.column_names else unknown for n in names)
    volume = columns.to_decimals(volume)
    return {
        "av": columns.values(pc.trunc(volume).cast(pa.int64())),
        "dav": [None if v is None else columns.plain(v) for v in columns.values(volume)],
        "op": columns.shortest(official),
        "a": columns.shortest(vwap),
    }


def _average_size(bars: pa.Table) -> pa.ChunkedArray:
    trades = bars.column("transactions")
    known = pc.if_else(pc.greater(trades, 0), trades, None)
    return pc.floor(pc.divide(bars.column("volume"), known.cast(pa.float64()))).cast(pa.int64())
