"""Between columns and JSON objects: message classes made from the table of fields, and both ways across."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter
from types import GenericAlias
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapelab.market.symbols import Market
from tapelab.market.tables import SCHEMAS, conform
from tapelab.massive.wire.fields import EARLIEST, FIELDS, LATEST, Field, Kind

Protocol = Literal["rest", "stream"]

# What reading JSON that is not what it should be may raise.
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

SIZE_DECIMALS = 6  # of sizes and volumes at the vendor; further digits come from adding doubles

_EXACT = "_exact"  # attribute of the exact decimal beside a size
_DECIMAL = r"^[0-9]{1,20}(\.[0-9]{1,12})?\Z"
_ABSENT = {Market.INDICES: ("volume",), Market.CRYPTO: ("ts_event",), Market.FOREX: ("ts_event",)}
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]


def key_of(field: Field, protocol: Protocol) -> str | None:
    return field.rest if protocol == "rest" else field.stream


def exact_of(field: Field, protocol: Protocol) -> str | None:
    return field.rest_exact if protocol == "rest" else field.stream_exact


def unit_of(field: Field, protocol: Protocol) -> int:
    return field.rest_unit if protocol == "rest" else field.stream_unit


def carried(kind: Kind, protocol: Protocol) -> list[Field]:
    """The fields of a kind that a protocol carries."""
    return [field for field in FIELDS[kind] if key_of(field, protocol) is not None]


def is_single(kind: Kind, field: Field, protocol: Protocol) -> bool:
    """The stream gives a quote one condition where everything else gives a list."""
    return protocol == "stream" and kind == "quotes" and field.column == "conditions"


def may_be_number(field: Field) -> bool:
    """Years ago the vendor sent the ids of trades as numbers."""
    return field.column == "id"


def bounds(kind: Kind, field: Field, protocol: Protocol) -> tuple[int, int]:
    """The least and the greatest whole number that a field may be, in the protocol's unit."""
    match field.sort:
        case "instant":
            unit = unit_of(field, protocol)
            return EARLIEST // unit if field.required else 0, LATEST // unit
        case "code" if SCHEMAS[kind].field(field.column).type == pa.int8():
            return 0, 2**7 - 1
        case "code" | "codes":
            return 0, 2**15 - 1
        case _:
            return 0, 2**63 - 1


def reading_class(
    name: str,
    kind: Kind,
    protocol: Protocol,
    *,
    tag: str | None = None,
    market: Market = Market.STOCKS,
    not_kept: Iterable[str] | None = None,
) -> Any:
    """A message to decode into: attributes by our names, required ones required, numbers in their bounds.

    A REST row names no symbol (its address did), so there it may be absent. An index may be negative.
    `not_kept`: keys that may be there and are passed over; with it, any other is an error.
    """
    fields: list[Any] = []
    rename: dict[str, str] = {}
    for field in carried(kind, protocol):
        needed = field.required and not (field.sort == "text" and protocol == "rest")
        needed = needed and field.column not in _ABSENT.get(market, ())
        type_ = float if market is Market.INDICES and field.sort == "price" else _type(kind, field, protocol)
        rename[field.column] = str(key_of(field, protocol))
        fields.append((field.column, type_) if needed else (field.column, type_ | None, None))
        if exact := exact_of(field, protocol):
            rename[field.column + _EXACT] = exact
            text = Annotated[str, msgspec.Meta(pattern=_DECIMAL)]
            fields.append((field.column + _EXACT, text | None, None))
    for key in not_kept or ():
        rename[f"{key}_not_kept"] = key
        fields.append((f"{key}_not_kept", Any, None))
    return msgspec.defstruct(
        name,
        fields,
        rename=rename,
        kw_only=True,
        gc=False,
        tag=tag,
        tag_field="ev" if tag else None,
        forbid_unknown_fields=not_kept is not None,
    )


def writing_class(name: str, keys: Sequence[str], *, tag: str | None = None) -> Any:
    """A message to encode from: positional, in the vendor's order of keys; None is left out."""
    names = [f"k{n}" for n in range(len(keys))]
    return msgspec.defstruct(
        name,
        [(attribute, Any, None) for attribute in names],
        rename=dict(zip(names, keys, strict=True)),
        omit_defaults=True,
        gc=False,
        tag=tag,
        tag_field="ev" if tag else None,
    )


def decoder_of_many(message: Any) -> msgspec.json.Decoder[list[Any]]:
    """Reads a JSON array of such messages."""
    return msgspec.json.Decoder(GenericAlias(list, (message,)))


def table_of(rows: Sequence[Any], kind: Kind, protocol: Protocol, **more: object) -> pa.Table:
    """Decoded messages as a table in the normal form; `more` are columns that the messages do not hold."""
    columns: dict[str, object] = dict(more)
    for field in carried(kind, protocol):
        if field.column not in columns:
            columns[field.column] = _array(rows, kind, field, protocol)
    return conform(pa.table(columns), SCHEMAS[kind])


def key_columns(table: pa.Table, kind: Kind, protocol: Protocol) -> dict[str, list[Any]]:
    """A table's columns as lists of what the protocol writes, by key; None is what it leaves out."""
    out: dict[str, list[Any]] = {}
    for field in carried(kind, protocol):
        column = table.column(field.column)
        if field.sort == "size":
            column = to_decimals(column)
        key = str(key_of(field, protocol))
        exact = exact_of(field, protocol)
        if field.sort == "codes":
            lists = code_lists(column)
            out[key] = [c[0] if c else None for c in lists] if is_single(kind, field, protocol) else lists
        elif field.sort == "instant":
            out[key] = values(pc.divide(column, unit_of(field, protocol)))
        elif field.sort == "size" and (exact is not None or protocol == "stream"):
            whole = pc.trunc(column)
            out[key] = values(whole.cast(pa.int64()))
            if exact is not None:
                exactly = column if kind == "bars" else _fractional(column, whole)
                out[exact] = [None if v is None else plain(v) for v in values(exactly)]
        elif field.sort in ("price", "size"):
            filled = pc.fill_null(column, 0.0) if field.zero_is_null else column
            out[key] = shortest(filled)
        else:
            out[key] = values(column)
    return out


def to_decimals(sizes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Sizes without the noise of added doubles; Arrow's own rounding leaves it in large ones."""
    found = pc.fill_null(sizes, 0.0).to_numpy()
    kept = np.where(found == np.trunc(found), found, np.round(found, SIZE_DECIMALS))
    return pa.chunked_array([pa.array(kept, mask=sizes.is_null().to_numpy())])


def values(column: pa.ChunkedArray | pa.Array) -> list[Any]:
    """A column as Python values, None where it is null; numbers come by way of numpy, which is quicker."""
    if pa.types.is_string(column.type) or pa.types.is_list(column.type):
        return list(column.to_pylist())
    missing = pc.is_null(column).to_numpy(zero_copy_only=False) if column.null_count else None
    filled = pc.fill_null(column, pa.scalar(0, column.type)) if column.null_count else column
    found = filled.to_numpy(zero_copy_only=False)
    if missing is None:
        return list(found.tolist())
    boxed = found.astype(object)
    boxed[missing] = None
    return list(boxed.tolist())


def shortest(column: pa.ChunkedArray) -> list[Any]:
    """Decimals as the vendor's JSON has them: 143 for 143.0, the shortest text otherwise."""
    missing = column.is_null().to_numpy()
    found = pc.fill_null(column, 0.0).to_numpy()
    boxed = found.astype(object)
    whole = found == np.trunc(found)
    boxed[whole] = found[whole].astype(np.int64).astype(object)
    boxed[missing] = None
    return list(boxed.tolist())


def code_lists(column: pa.ChunkedArray) -> list[list[int] | None]:
    """A column of lists as Python lists (equal ones are one object); an empty list is None."""
    texts = joined_codes(column.combine_chunks()).dictionary_encode()
    known = [_codes(text) for text in texts.dictionary.to_pylist()]
    return [known[index] for index in texts.indices.to_numpy()]


def joined_codes(column: pa.Array) -> pa.Array:
    """Lists of codes as text: `12,37`; nothing for none."""
    return pc.fill_null(pc.binary_join(column.cast(pa.list_(pa.string())), ","), "")


def split_codes(texts: pa.Array) -> pa.Array:
    """Text such as `12,37` as lists of codes; nothing gives null. Few different texts make this quick."""
    encoded = texts if pa.types.is_dictionary(texts.type) else texts.dictionary_encode()
    known = [_codes(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(known, pa.list_(pa.int16())).take(encoded.indices)


def _codes(text: str) -> list[int] | None:
    return [int(code) for code in text.split(",")] if text else None


def plain(value: float) -> str:
    """A decimal as text, the shortest that reads back the same, never with an exponent."""
    text = repr(value)
    return np.format_float_positional(value, trim="0") if "e" in text else text


def _fractional(column: pa.ChunkedArray, whole: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(column, whole), None, column)


def _array(rows: Sequence[Any], kind: Kind, field: Field, protocol: Protocol) -> pa.Array:
    found: Iterable[Any] = map(attrgetter(field.column), rows)
    type_ = SCHEMAS[kind].field(field.column).type
    if field.sort == "text":
        texts = list(found)
        try:
            return pa.array(texts, type_)
        except pa.ArrowTypeError:  # see `may_be_number`
            return pa.array([None if text is None else str(text) for text in texts], type_)
    if is_single(kind, field, protocol):
        codes = pa.array(list(found), pa.int16())
        return pc.if_else(codes.is_valid(), _singletons(codes), None)
    if field.sort == "codes":
        return pa.array([codes or None for codes in found], type_)
    array = pa.array(list(found), type_)
    if exact_of(field, protocol):
        exactly = pa.array(list(map(attrgetter(field.column + _EXACT), rows)), pa.string())
        array = pc.coalesce(exactly.cast(pa.float64()), array)
    if field.sort == "instant":
        array = pc.multiply(array, unit_of(field, protocol))
    if field.zero_is_null:
        array = pc.if_else(pc.equal(array, pa.scalar(0, array.type)), None, array)
    if field.column == "correction":
        array = pc.fill_null(array, 0)
    return array


def _singletons(codes: pa.Array) -> pa.Array:
    offsets = pa.array(np.arange(len(codes) + 1, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, codes)


def _type(kind: Kind, field: Field, protocol: Protocol) -> Any:
    low, high = bounds(kind, field, protocol)
    whole = Annotated[int, msgspec.Meta(ge=low, le=high)]
    match field.sort:
        case "text":
            return str | int if may_be_number(field) else str
        case "codes":
            # Tuples of numbers, unlike lists, cost the garbage collector nothing.
            return whole if is_single(kind, field, protocol) else tuple[whole, ...]
        case "instant" | "code" | "count":
            return whole
        case _:
            return _NotNegative
