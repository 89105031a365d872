"""Recordings with known losses, made by hand from a tape that knows everything."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.live.lookup import Answer
from tapelab.market import clock, tables
from tapelab.massive import wire
from tapelab.settings import current
from tapelab.store.datasets import manifest, parts
from tapelab.store.datasets.dataset import Dataset, open_dataset
from tapelab.store.datasets.manifest import Heard, Lost, Manifest

T0 = 1_381_327_200 * clock.SECOND  # 2013-10-09 10:00 New York
SPACE = 2**25  # arrival numbers of one record
CHANNELS = {"quotes": "Q", "trades": "T", "bars": "AM"}


@dataclass(frozen=True)
class Tick:
    """One event of a tape: its channel, its symbol, its time in ns since `T0`; of a trade, how long after it
    happened it was reported, and the code of its correction."""

    kind: str
    symbol: str
    at: int
    waited: int = 0
    correction: int = 0


@dataclass
class Tape:
    """Everything that happened; as a source it answers from that, and keeps what it was asked."""

    ticks: list[Tick]
    final: bool = True
    until: int = 2**62  # how far it has come
    route: str = "rest"
    asked: list[tuple[str, tuple[str, ...], int, int]] = field(default_factory=list)
    bars: pa.Table = field(default_factory=lambda: tables.BARS.empty_table())

    def table(self, kind: str) -> pa.Table:
        """In order; each row's `arrival` is its number on the tape."""
        if kind == "bars":
            return self.bars
        rows = [row_of(n, tick) for n, tick in enumerate(self.ticks) if tick.kind == kind]
        return tables.conform(pa.Table.from_pylist(rows, schema=tables.SCHEMAS[kind]), tables.SCHEMAS[kind])

    def ask(
        self, kind: str, symbols: Sequence[str], start: int, end: int, *, calls: int, everybody: bool
    ) -> Answer:
        self.asked.append((kind, tuple(symbols), start, end))
        table = self.table(kind)
        stamps = table.column(parts.stamp_of(kind))
        inside = pc.and_(pc.greater_equal(stamps, start), pc.less(stamps, min(end, self.until)))
        if not everybody:
            inside = pc.and_(inside, pc.is_in(table.column("symbol"), pa.array(symbols, pa.string())))
        return Answer(table.filter(inside), self.route, self.final)

    def final_at(self, kind: str, start: int, end: int) -> int:
        return 0 if self.final else 2**62


def row_of(n: int, tick: Tick) -> dict[str, object]:
    row = {"ts_event": T0 + tick.at, "arrival": n, "symbol": tick.symbol, "sequence": n}
    if tick.kind == "quotes":
        return {**row, "bid": 10.0, "ask": 11.0, "bid_size": 1.0, "ask_size": 2.0, "conditions": [1]}
    return {
        **row, "price": 10.5, "size": 7.0, "exchange": 4, "id": str(n), "conditions": [],
        "correction": tick.correction, "ts_participant": T0 + tick.at - tick.waited,
    }  # fmt: skip


@dataclass(frozen=True)
class Loss:
    """What was lost: events of the tape from number `first` to before `stop`, of some symbols or of all."""

    first: int
    stop: int
    symbols: tuple[str, ...] = ()
    cause: str = "cut"
    declared: bool = True


@dataclass(frozen=True)
class Recorder:
    """Our clock: how far behind the exchange's it is, and how much faster the tape was told."""

    lag: int = 30 * clock.MILLISECOND
    speed: int = 1
    late: Mapping[int, int] = field(default_factory=dict)  # events that come right behind later ones
    topics: tuple[str, ...] = ("Q.AAA", "Q.BBB", "T.AAA", "T.BBB")
    channels: tuple[str, ...] = ("quotes", "trades")

    def place(self, n: int) -> int:
        return self.late[n] * SPACE + 1 if n in self.late else n * SPACE

    def at(self, n: int, tape: Tape) -> int:
        return T0 + tape.ticks[n].at // self.speed + self.lag + n

    def record(
        self,
        tape: Tape,
        losses: Sequence[Loss],
        name: str,
        *,
        parts_of: int = 9,
        bars: pa.Table | None = None,
        changed: Mapping[int, tuple[str, ...]] | None = None,
    ) -> Dataset:
        """The dataset that this recorder makes of the tape with these losses."""
        folder = Path(current().root) / "datasets" / name
        lost = {
            n
            for loss in losses
            for n, tick in enumerate(tape.ticks)
            if loss.first <= self.late.get(n, n) < loss.stop
            and (not loss.symbols or tick.symbol in loss.symbols)
        }
        kept = [n for n in range(len(tape.ticks)) if n not in lost]
        kept.sort(key=self.place)
        segments, seen = [], []
        folder.mkdir(parents=True)
        for part, begin in enumerate(range(0, len(kept), parts_of), 1):
            mine = kept[begin : begin + parts_of]
            for kind in ("quotes", "trades"):
                table = self._received(tape, kind, mine)
                if len(table):
                    segments.append(parts.write_segment(folder, part, kind, table))
                    seen.append(parts.count(kind, table))
        if bars is not None:
            segments.append(parts.write_segment(folder, 1, "bars", bars))
        begun, ended = T0 + self.lag - 1, self.at(len(tape.ticks) - 1, tape) + 1
        made = Manifest(
            id=uuid.uuid4().hex,
            version=1,
            clock="received",
            created=begun,
            begun=begun,
            ended=ended,
            segments=tuple(segments),
            symbols=parts.merge(seen),
            heard=self._heard(tape, begun, ended, changed or {0: self.topics}),
            gaps=tuple(
                Lost(
                    self.at(loss.first - 1, tape) if loss.first else begun,
                    self.at(loss.stop, tape) if loss.stop < len(tape.ticks) else ended,
                    loss.cause,
                    self.channels,
                    symbols=loss.symbols,
                )
                for loss in losses
                if loss.declared
            ),
            provenance={
                "endpoint": current().endpoint, "source": "live", "market": "stocks", "simulated": False,
                "channels": list(self.channels),
            },
        )  # fmt: skip
        manifest.save(folder, made)
        return open_dataset(folder)

    def _heard(
        self, tape: Tape, begun: int, ended: int, topics: Mapping[int, tuple[str, ...]]
    ) -> tuple[Heard, ...]:
        starts = [self.at(n, tape) - 1 if n else begun for n in topics]
        return tuple(
            Heard(some, start, end)
            for some, start, end in zip(topics.values(), starts, [*starts[1:], ended], strict=True)
            if some
        )

    def _received(self, tape: Tape, kind: str, numbers: list[int]) -> pa.Table:
        rows = [
            row_of(n, tape.ticks[n])
            | {"arrival": self.place(n), "ts_recv": self.at(self.late.get(n, n), tape)}
            for n in numbers
            if tape.ticks[n].kind == kind
        ]
        table = tables.conform(pa.Table.from_pylist(rows, schema=tables.SCHEMAS[kind]), tables.SCHEMAS[kind])
        return wire.as_streamed(table, CHANNELS[kind])


def told(table: pa.Table, kind: str) -> list[dict[str, object]]:
    """The rows as the stream would have told them, without what is ours."""
    return wire.as_streamed(table, CHANNELS[kind]).drop(["ts_recv", "arrival"]).to_pylist()


def by_symbol(rows: list[dict[str, object]]) -> dict[object, list[dict[str, object]]]:
    return {name: [row for row in rows if row["symbol"] == name] for name in {r["symbol"] for r in rows}}
