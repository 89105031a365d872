"""What a backtest gives: fills, equity curve, metrics and everything that it takes for granted."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapelab.errors import Damaged, NotFound, Unwritable
from tapelab.lab.rules import Assumption

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from tapelab.picture.run import Run

FORMAT = 1  # of the saved file; a reader refuses what is newer than it knows

EQUITY = pa.schema([("timestamp", pa.int64()), ("equity", pa.float64()), ("drawdown", pa.float64())])
FILLS = pa.schema(
    [
        ("timestamp", pa.int64()),
        ("symbol", pa.string()),
        ("size", pa.float64()),  # shares; negative: sold
        ("price", pa.float64()),
        ("fee", pa.float64()),
        ("maker", pa.bool_()),
        ("position", pa.float64()),  # held afterwards
        ("order", pa.int64()),
        ("tag", pa.string()),
        ("mid", pa.float64()),
        ("mid_1s", pa.float64()),  # the mid so many seconds later; null where it is not known
        ("mid_5s", pa.float64()),
        ("mid_30s", pa.float64()),
    ]
)
ROUND_TRIPS = pa.schema(
    [
        ("symbol", pa.string()),
        ("opened", pa.int64()),
        ("closed", pa.int64()),
        ("size", pa.float64()),  # the most that was held; negative: short
        ("entry", pa.float64()),
        ("exit", pa.float64()),
        ("gross", pa.float64()),
        ("fees", pa.float64()),
        ("net", pa.float64()),
        ("fills", pa.int64()),
    ]
)
POSITIONS = pa.schema(
    [
        ("symbol", pa.string()),
        ("size", pa.float64()),
        ("price", pa.float64()),
        ("mark", pa.float64()),
        ("value", pa.float64()),
        ("unrealised", pa.float64()),
    ]
)
PRICES = pa.schema([("timestamp", pa.int64()), ("symbol", pa.string()), ("price", pa.float64())])
SCHEMAS = {
    "equity": EQUITY,
    "fills": FILLS,
    "round_trips": ROUND_TRIPS,
    "positions": POSITIONS,
    "prices": PRICES,
}
_INSTANTS = ("timestamp", "opened", "closed")


@dataclass(frozen=True)
class Result:
    """One strategy on one dataset: what it did, what came of it, what that assumes.

    `metrics` are numbers by name (None where a number would say nothing; `notes` then says why). `recipe` is
    all that is needed to run it again. Money is in the currency of the prices.
    """

    strategy: str
    params: dict[str, Any]
    dataset: dict[str, Any]
    metrics: dict[str, float | int | None]
    notes: dict[str, str]
    assumptions: tuple[Assumption, ...]
    recipe: dict[str, Any]
    tables: dict[str, pa.Table] = field(repr=False)

    @property
    def equity_curve(self) -> pd.DataFrame:
        """Equity and drawdown in money over time (UTC): sampled, with every fill and the extremes."""
        return _frame(self.tables["equity"]).set_index("timestamp")

    @property
    def fills(self) -> pd.DataFrame:
        """Every fill in order of time: signed size, price, fee, maker or taker, the mid then and later."""
        return _frame(self.tables["fills"])

    @property
    def round_trips(self) -> pd.DataFrame:
        """From flat to flat, in the order in which they closed, with profit before and after fees."""
        return _frame(self.tables["round_trips"])

    @property
    def positions(self) -> pd.DataFrame:
        """What was still held at the end, at the last mark."""
        return _frame(self.tables["positions"])

    @property
    def simulated(self) -> bool:
        """Whether the prices come from a simulated market, in whole or in part."""
        return bool(self.dataset.get("provenance", {}).get("simulated"))

    def plot(self) -> go.Figure:
        """Equity, drawdown and prices with the fills, as one plotly figure."""
        from tapelab.picture import charts

        return charts.overview(self.as_run())

    def to_html(self, path: str | Path) -> Path:
        """Write the report: one file that asks nothing of the network. Returns its path."""
        from tapelab.picture import report

        return write_whole(Path(path), report.html([self.as_run()]).encode())

    def save(self, path: str | Path) -> Path:
        """Write everything into one file, whole or not at all; `Result.load` reads it. Returns its path."""
        facts = {
            "format": FORMAT,
            "strategy": self.strategy,
            "params": self.params,
            "dataset": self.dataset,
            "metrics": self.metrics,
            "notes": self.notes,
            "assumptions": self.assumptions,
            "recipe": self.recipe,
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(_entry("result.json"), msgspec.json.format(msgspec.json.encode(facts)))
            for name, table in self.tables.items():
                sink = pa.BufferOutputStream()
                pq.write_table(table, sink, compression="zstd")
                archive.writestr(_entry(f"{name}.parquet"), sink.getvalue().to_pybytes())
        return write_whole(Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote. Raises `NotFound`, or `Damaged` for what is not a whole result."""
        path = Path(path)
        try:
            with zipfile.ZipFile(path) as archive:
                facts = msgspec.json.decode(archive.read("result.json"))
                if facts["format"] > FORMAT:
                    raise Damaged(
                        f"{path.name} was written by a newer tapelab (format {facts['format']}).",
                        remedy="Update tapelab to read it.",
                        path=str(path),
                    )
                found = {
                    name: pq.read_table(io.BytesIO(archive.read(f"{name}.parquet"))).cast(schema)
                    for name, schema in SCHEMAS.items()
                }
            return cls(
                facts["strategy"],
                facts["params"],
                facts["dataset"],
                facts["metrics"],
                facts["notes"],
                tuple(Assumption(*each) for each in facts["assumptions"]),
                facts["recipe"],
                found,
            )
        except FileNotFoundError as cause:
            raise NotFound(
                f"There is no result at {path}.", remedy="Check the path.", path=str(path)
            ) from cause
        except (zipfile.BadZipFile, KeyError, TypeError, msgspec.DecodeError, pa.ArrowException) as cause:
            raise Damaged(
                f"{path} is not a whole result.", remedy="Run the backtest again and save it.", path=str(path)
            ) from cause

    def as_run(self) -> Run:
        """What the report is made of, as plain tables and values."""
        from tapelab.picture.run import Run

        return Run(
            self.strategy,
            self.params,
            self.dataset,
            self.metrics,
            self.notes,
            [tuple(each) for each in self.assumptions],
            self.recipe,
            self.tables,
        )

    def __str__(self) -> str:
        made_up = " (SIMULATED)" if self.simulated else ""
        profit, fills = self.metrics["profit"], self.metrics["fills"]
        noun = "fill" if fills == 1 else "fills"
        return f"{self.strategy} on {self.dataset['name']}{made_up}: {profit:+,.2f} in {fills:,} {noun}"


def write_whole(path: Path, content: bytes) -> Path:
    """Write beside, rename when whole; raises `Unwritable`."""
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except OSError as cause:
        if beside:
            Path(beside).unlink(missing_ok=True)
        raise Unwritable(
            f"{path} cannot be written: {cause.strerror or cause}.",
            remedy="Choose another place, or make room and check the permissions.",
            path=str(path),
        ) from cause
    return path


def _entry(name: str) -> zipfile.ZipInfo:
    """The same result gives the same bytes, whatever the time."""
    return zipfile.ZipInfo(name)


def _frame(table: pa.Table) -> pd.DataFrame:
    instant = pa.timestamp("ns", tz="UTC")
    for index, name in enumerate(table.column_names):
        if name in _INSTANTS:
            table = table.set_column(index, name, pc.cast(table.column(name), instant))
    frame: pd.DataFrame = table.to_pandas()
    return frame
