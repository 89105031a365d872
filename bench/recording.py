"""What was recorded, turned into columns and Parquet, beside what one would write with the usual libraries.

All make the same columns. Peers are given the messages in memory, and quotes alone, because polars cannot
read both kinds at once; we read the journal, check its checksums, find the messages in it and decode them.
First all processors are there for either side, then one alone.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import ROUNDS, Row, one_processor, seconds

EVENTS = 1_100_000  # as many as the real day has quotes
PER_FRAME = (1, 20, 200)
CHUNK = 1 << 18  # bytes that arrive together in a burst; the receiver takes up to 2 MiB
FEW = 40_000  # events for the side that takes a tenth of a millisecond for each
REAL_DAY = date(2013, 10, 9)
START = 1_700_000_000_000_000_000  # ns UTC


def columns() -> list[Row]:
    """A journal as columns and as Parquet, once the kernel is ready."""
    from tapelab.massive.wire import compiled

    took = seconds(compiled.wait)
    rows = [Row("kernel made ready, in the background", f"{took:.1f} s", "", None)]
    for per_frame in PER_FRAME:
        rows += _to_columns(per_frame)
    with one_processor() as there:
        for per_frame in PER_FRAME:
            rows += there.submit(_to_columns, per_frame, where=", one processor").result()
    return [*rows, _to_parquet(), *_bytes_a_quote()]


def _to_columns(per_frame: int, where: str = "") -> list[Row]:
    from tapelab.massive.wire import compiled

    compiled.wait()
    with_polars = "polars.read_ndjson"
    payloads = _frames(_events(EVENTS, "Q"), per_frame)
    few = payloads[:: -(-EVENTS // FEW)]
    with TemporaryDirectory() as home:
        _journal(Path(home), payloads)
        rates = _rates(
            {
                "tapelab": (EVENTS, lambda: list(_decoded(Path(home)))),
                "json.loads, rows": (len(few) * per_frame, lambda: _json_rows(few)),
                with_polars: (EVENTS, lambda: _polars(payloads)),
            }
        )
    what = f"quotes to columns, {per_frame} a frame{where}"
    return [
        _beside(what, rates, "json.loads, rows", "30 ×"),
        _beside(what, rates, with_polars, "8 ×"),
    ]


def _to_parquet() -> Row:
    """The whole way of a recording whose recorder was killed, beside pyarrow writing the same rows."""
    from tapelab.store.datasets import growing

    payloads = _frames(_events(EVENTS, "QT"), 200)
    with TemporaryDirectory() as home:
        folders = [growing.create(Path(home), "bench", provenance={}) for _ in range(ROUNDS + 1)]
        for one in folders:
            _journal(one.journal, payloads)
        taken = list(_decoded(folders[0].journal))
        tables = [pa.concat_tables([found[kind] for found in taken]) for kind in ("quotes", "trades")]
        waiting = iter(folders)

        def ours() -> None:
            next(waiting).finish()

        def peer() -> None:
            for table in tables:
                pq.write_table(table, Path(home) / "peer.parquet")

        rates = _rates({"tapelab": (EVENTS, ours), "pyarrow writing only": (EVENTS, peer)})
    return _beside("journal to Parquet", rates, "pyarrow writing only", "0.33 ×")


def _bytes_a_quote() -> list[Row]:
    """The quotes of a real day as a recording lays them down, where that day is at hand."""
    from tapelab.massive import wire
    from tapelab.store.datasets import parts
    from tapelab.store.journal.frames import MAX_MESSAGE
    from tapelab.store.journal.reading import ARRIVAL_BITS

    shared = Path(os.environ.get("TAPELAB_SHARED") or Path(__file__).parents[2] / "shared")
    name = "us_stocks_sip/quotes_v1"
    file = shared / "data" / "us_equity_2013" / wire.file_key(name, REAL_DAY)
    if not file.exists():
        return [Row("bytes a quote, a real day", "no real day here", "", None)]
    day = wire.read_flat_file(file, name, day=REAL_DAY).sort_by("ts_event")
    late = np.random.default_rng(7).gamma(4.0, 5e6, len(day)).astype(np.int64)
    order = {
        "ts_recv": np.maximum.accumulate(day.column("ts_event").to_numpy() + late),
        "arrival": (np.arange(len(day)) << ARRIVAL_BITS) + MAX_MESSAGE,  # hardly two come together
    }
    quotes = wire.as_streamed(day, "Q")
    for column, values in order.items():
        place = quotes.column_names.index(column)
        quotes = quotes.set_column(place, quotes.schema.field(place), pa.array(values))
    with TemporaryDirectory() as home:
        ours, plain = Path(home) / "ours.parquet", Path(home) / "plain.parquet"
        parts.write_parquet(quotes, ours)
        pq.write_table(quotes, plain)
        each, peer = (path.stat().st_size / len(quotes) for path in (ours, plain))
    what = f"Parquet, {len(quotes):,} quotes of a real day"
    return [Row(what, f"{each:.1f} bytes each", f"{peer:.1f} pyarrow's defaults", peer / each, "13 bytes")]


def _rates(sides: dict[str, tuple[int, Callable[[], object]]]) -> dict[str, list[float]]:
    """Events a second of each side, in turn; the first round warms up and does not count."""
    rounds = [
        {name: events / seconds(run) for name, (events, run) in sides.items()} for _ in range(ROUNDS + 1)
    ]
    return {name: [one[name] for one in rounds[1:]] for name in sides}


def _beside(what: str, rates: dict[str, list[float]], peer: str, aim: str) -> Row:
    ours, theirs = statistics.median(rates["tapelab"]), statistics.median(rates[peer])
    ratio = statistics.median(a / b for a, b in zip(rates["tapelab"], rates[peer], strict=True))
    return Row(what, f"{ours / 1e6:.2f} M/s", f"{theirs / 1e6:.2f} M/s {peer}", ratio, aim)


def _events(count: int, channels: str) -> list[bytes]:
    """Quotes (`Q`) or both (`QT`) of the simulated market in their order, as the stream has them."""
    from tapelab.exchange.tape import QUOTES, TRADES, simulated
    from tapelab.massive import wire

    tape = simulated(7)
    told: list[tuple[int, bytes]] = []
    for channel in channels:
        product = {"Q": QUOTES, "T": TRADES}[channel]
        table = tape.table(product, tape.days(product)[-1])
        stamps = table.column("ts_event").to_pylist()
        told += zip(stamps, wire.encode_events(table, channel), strict=True)  # type: ignore[arg-type]
    told.sort()
    events = [event for _, event in told]
    return (events * (count // len(events) + 1))[:count]


def _frames(events: list[bytes], per_frame: int) -> list[bytes]:
    return [b"[" + b",".join(events[n : n + per_frame]) + b"]" for n in range(0, len(events), per_frame)]


def _journal(folder: Path, payloads: list[bytes]) -> None:
    """What the receiver writes when these messages arrive, uncompressed as the newest segment is."""
    from tapelab.store.journal import FINAL, Kind, Writer
    from tapelab.store.journal.frames import FrameWalk

    walk, stream = FrameWalk(), b"".join(map(_framed, payloads))
    with Writer(folder, bytes(16), segment_bytes=1 << 62, keep=1) as writer:
        writer.note(Kind.OPEN, {"url": "ws://bench"}, connection=1, ts_recv=START, monotonic=0)
        for begin in range(0, len(stream), CHUNK):
            chunk, after = stream[begin : begin + CHUNK], begin // CHUNK * 1_000_000
            times = {"ts_recv": START + after, "monotonic": after}
            writer.chunk(memoryview(chunk), walk.feed(chunk), connection=1, **times)
        facts = {"cause": "stopped"}
        writer.note(Kind.CLOSED, facts, connection=1, flags=FINAL, ts_recv=START + after, monotonic=after)


def _framed(payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes([0x81, length]) + payload
    if length < 1 << 16:
        return bytes([0x81, 126]) + length.to_bytes(2, "big") + payload
    return bytes([0x81, 127]) + length.to_bytes(8, "big") + payload


def _decoded(folder: Path) -> Iterator[dict[str, pa.Table]]:
    """A journal as tables, taken as often as a recording takes them."""
    from tapelab.store.datasets.columns import Decoder
    from tapelab.store.datasets.growing import GATHER_BYTES

    decoder = Decoder(folder)
    while decoder.read():
        if decoder.gathered >= GATHER_BYTES:
            yield decoder.take()
    yield decoder.take()
    decoder.close()


def _json_rows(payloads: list[bytes]) -> pa.Table:
    """The same columns by what one writes in ten minutes."""
    from tapelab.market.tables import QUOTES

    rows = []
    for n, payload in enumerate(payloads):
        for k, event in enumerate(json.loads(payload)):
            rows.append(
                {
                    "ts_event": event["t"] * 1_000_000,
                    "ts_recv": START + n,
                    "arrival": (n << 25) + k,
                    "symbol": event["sym"],
                    "bid": event.get("bp") or None,
                    "ask": event.get("ap") or None,
                    "bid_size": event.get("bs"),
                    "ask_size": event.get("as"),
                    "bid_exchange": event.get("bx"),
                    "ask_exchange": event.get("ax"),
                    "sequence": event.get("q"),
                    "conditions": [event["c"]] if "c" in event else None,
                    "indicators": event.get("i"),
                    "tape": event.get("z"),
                }
            )
    return pa.Table.from_pylist(rows, schema=QUOTES)


def _polars(payloads: list[bytes]) -> pa.Table:
    """The same columns by the quickest way that polars has."""
    import polars as pl

    from tapelab.market.tables import QUOTES, conform

    lines = b"\n".join([payload[1:-1].replace(b'},{"ev"', b'}\n{"ev"') for payload in payloads])
    counts = np.array([payload.count(b'"ev"') for payload in payloads])
    message = np.repeat(np.arange(len(payloads)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    frame = pl.read_ndjson(lines).select(
        (pl.col("t") * 1_000_000).alias("ts_event"),
        pl.Series("ts_recv", START + message),
        pl.Series("arrival", (message << 25) + np.arange(len(message)) - first),
        pl.col("sym").alias("symbol"),
        pl.when(pl.col("bp") != 0).then(pl.col("bp")).alias("bid"),
        pl.when(pl.col("ap") != 0).then(pl.col("ap")).alias("ask"),
        pl.col("bs").cast(pl.Float64).alias("bid_size"),
        pl.col("as").cast(pl.Float64).alias("ask_size"),
        pl.col("bx").cast(pl.Int16).alias("bid_exchange"),
        pl.col("ax").cast(pl.Int16).alias("ask_exchange"),
        pl.col("q").alias("sequence"),
        pl.concat_list(pl.col("c").cast(pl.Int16)).alias("conditions"),
        pl.col("z").cast(pl.Int8).alias("tape"),
    )
    return conform(frame.to_arrow(), QUOTES)
