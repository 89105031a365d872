"""The vendor's JSON, CSV and frames ⇄ tables, around one table of fields.

The only place that knows the vendor's keys, units and number styles.
"""

from tapelab.massive.wire import compiled, fields
from tapelab.massive.wire.answers import Answer, decode_error, error_body
from tapelab.massive.wire.bulk import BulkDecoder, Scanned
from tapelab.massive.wire.fields import PRODUCTS, Product, file_key, parse_key, product_named
from tapelab.massive.wire.flatfile import iter_flat_file, read_flat_file, write_flat_file
from tapelab.massive.wire.rest import (
    Page,
    decode_dividends,
    decode_page,
    decode_splits,
    encode_dividends,
    encode_rows,
    encode_splits,
    envelope,
    next_url,
)
from tapelab.massive.wire.stream import (
    FrameDecoder,
    as_streamed,
    decode_events,
    encode_events,
    frame,
    status_event,
)
from tapelab.massive.wire.workspace import Run

__all__ = [
    "PRODUCTS",
    "Answer",
    "BulkDecoder",
    "FrameDecoder",
    "Page",
    "Product",
    "Run",
    "Scanned",
    "as_streamed",
    "compiled",
    "decode_dividends",
    "decode_error",
    "decode_events",
    "decode_page",
    "decode_splits",
    "encode_dividends",
    "encode_events",
    "encode_rows",
    "encode_splits",
    "envelope",
    "error_body",
    "fields",
    "file_key",
    "frame",
    "iter_flat_file",
    "next_url",
    "parse_key",
    "product_named",
    "read_flat_file",
    "status_event",
    "write_flat_file",
]
