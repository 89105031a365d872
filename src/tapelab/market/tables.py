"""The columns, types and units of every table that travels between rooms.

Inside tapelab tables are Arrow and times are int64 nanoseconds UTC; `to_frame` turns both into what
users see. What is known about a table's origin (route, endpoint, adjustment, simulated …) rides in the
schema's metadata: `facts` reads it, `with_facts` adds to it.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import UsageError

Frame = Literal["pandas", "polars", "arrow"]

BARS = pa.schema(
    [
        pa.field("timestamp", pa.int64(), nullable=False),  # start of the bar, ns UTC
        pa.field("session", pa.date32(), nullable=False),  # the exchange's date
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("open", pa.float64()),
        pa.field("high", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("close", pa.float64()),
        pa.field("volume", pa.float64()),  # shares; fractional since 2026
        pa.field("vwap", pa.float64()),  # null where the source has none
        pa.field("transactions", pa.int64()),
    ]
)

# Sizes are float64: exact for the vendor's six decimals up to 8.5 billion shares.
QUOTES = pa.schema(
    [
        pa.field("ts_event", pa.int64(), nullable=False),  # SIP clock, ns UTC
        pa.field("ts_recv", pa.int64()),  # our clock at arrival, ns UTC; null where we were not there
        pa.field("arrival", pa.int64(), nullable=False),  # orders events across channels
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("bid", pa.float64()),  # null: that side of the book is empty
        pa.field("ask", pa.float64()),
        pa.field("bid_size", pa.float64()),  # unit (shares, lots, unknown) is a fact of the table
        pa.field("ask_size", pa.float64()),
        pa.field("bid_exchange", pa.int16()),
        pa.field("ask_exchange", pa.int16()),
        pa.field("sequence", pa.int64()),
        pa.field("conditions", pa.list_(pa.int16())),
        pa.field("indicators", pa.list_(pa.int16())),
        pa.field("tape", pa.int8()),
        pa.field("ts_participant", pa.int64()),  # the exchange's own clock, ns UTC
        pa.field("ts_trf", pa.int64()),
    ]
)

TRADES = pa.schema(
    [
        pa.field("ts_event", pa.int64(), nullable=False),
        pa.field("ts_recv", pa.int64()),
        pa.field("arrival", pa.int64(), nullable=False),
        pa.field("symbol", pa.string(), nullable=False),
        pa.field("price", pa.float64()),
        pa.field("size", pa.float64()),
        pa.field("exchange", pa.int16()),
        pa.field("conditions", pa.list_(pa.int16())),
        pa.field("sequence", pa.int64()),
        pa.field("id", pa.string()),
        pa.field("tape", pa.int8()),
        pa.field("correction", pa.int8()),  # 0 normal; late, cancelled, corrected otherwise
        pa.field("ts_participant", pa.int64()),
        pa.field("trf_id", pa.int16()),  # null: not a TRF (off-exchange) print
        pa.field("ts_trf", pa.int64()),
    ]
)

SCHEMAS = {"bars": BARS, "quotes": QUOTES, "trades": TRADES}

_FACTS = b"tapelab"
_INSTANTS = ("timestamp", "ts_event", "ts_recv", "ts_participant", "ts_trf")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns and types of `schema`; a column it lacks is null."""
    columns = []
    for field in schema:
        if field.name in table.column_names:
            columns.append(table.column(field.name).cast(field.type))
        else:
            columns.append(pa.nulls(len(table), field.type))
    return pa.table(columns, schema=schema.with_metadata(table.schema.metadata))


def facts(table: pa.Table) -> dict[str, Any]:
    """What is known about where a table came from."""
    metadata = table.schema.metadata or {}
    return dict(msgspec.json.decode(metadata[_FACTS])) if _FACTS in metadata else {}


def with_facts(table: pa.Table, **more: Any) -> pa.Table:
    """`table` with `more` added to what is known about it."""
    metadata = dict(table.schema.metadata or {})
    metadata[_FACTS] = msgspec.json.encode({**facts(table), **more})
    return table.replace_schema_metadata(metadata)


def concat(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Several tables of one kind under each other; no table gives an empty one. Facts are dropped."""
    plain = [conform(table, schema).replace_schema_metadata(None) for table in tables]
    return pa.concat_tables(plain) if plain else schema.empty_table()


def check_frame(frame: str) -> None:
    """Raises `UsageError` for what is no kind of table."""
    if frame not in ("pandas", "polars", "arrow"):
        raise UsageError(
            f"There is no frame {frame!r}.", remedy="Use 'pandas', 'polars' or 'arrow'.", frame=frame
        )


def to_frame(table: pa.Table, frame: Frame = "pandas") -> Any:
    """A table as users see it: clocks are timezone-aware, origin is in `attrs["tapelab"]` (pandas).

    `"arrow"` keeps the origin in the schema's metadata under `tapelab`; polars has no place for it.
    """
    check_frame(frame)
    known = facts(table)
    instant = pa.timestamp("ns", tz="UTC")
    for name in _INSTANTS:
        if name in table.column_names:
            index = table.column_names.index(name)
            table = table.set_column(index, pa.field(name, instant), pc.cast(table.column(name), instant))
    if frame == "arrow":
        return table
    if frame == "polars":
        import polars as pl

        return pl.from_arrow(table.replace_schema_metadata(None))
    data = table.replace_schema_metadata(None).to_pandas()
    data.attrs["tapelab"] = known
    return data


def from_frame(data: Any, schema: pa.Schema) -> pa.Table:
    """A user's table (pandas, polars, Arrow) in our own form: aware times become int64 ns UTC.

    Raises `UsageError` when a column that the schema cannot do without is missing, or a time is naive.
    """
    table = _to_arrow(data)
    for name in _INSTANTS:
        if name not in table.column_names:
            continue
        column = table.column(name)
        if pa.types.is_timestamp(column.type):
            if column.type.tz is None:
                raise UsageError(
                    f"The times in column {name!r} have no zone.",
                    remedy="Give them one, for example with .dt.tz_localize('America/New_York').",
                )
            column = column.cast(pa.timestamp("ns", tz="UTC")).cast(pa.int64())
            table = table.set_column(table.column_names.index(name), name, column)
    needed = [f.name for f in schema if not f.nullable and f.name not in ("session", "arrival")]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise UsageError(
            f"The table lacks the column {missing[0]!r}.", remedy=f"It needs {', '.join(needed)}."
        )
    return table


def _to_arrow(data: Any) -> pa.Table:
    if isinstance(data, pa.Table):
        return data
    if hasattr(data, "to_arrow"):
        return data.to_arrow()
    if not hasattr(data, "attrs"):
        raise UsageError(
            f"A {type(data).__name__} is not a table.", remedy="Give a pandas, polars or Arrow table."
        )
    frame = data.reset_index() if data.index.name in _INSTANTS else data
    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    return with_facts(table, **data.attrs.get("tapelab", {}))
