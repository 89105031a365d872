"""A dataset for other programs: Parquet, CSV, or files in the vendor's layout; whole or not at all.

Beside the rows lies `export.json`: where they came from, and what is known to be lacking. What came from a
simulated market says so in the name of every file or folder, and inside where the format has a place for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tapelab.errors import Damaged, NoData, StoreError, UnknownName, UsageError
from tapelab.market import sessions, tables
from tapelab.market.intervals import Interval
from tapelab.market.symbols import Market
from tapelab.massive import wire
from tapelab.store import files
from tapelab.store.datasets import parts
from tapelab.store.datasets.columns import KINDS
from tapelab.store.datasets.shaping import FORMATS, spelled

if TYPE_CHECKING:
    from tapelab.store.datasets.dataset import Dataset, View

NOTE = "export.json"
SIMULATED = "simulated"

_PRODUCTS = {
    "quotes": "us_stocks_sip/quotes_v1",
    "trades": "us_stocks_sip/trades_v1",
    "bars": "us_stocks_sip/minute_aggs_v1",
}


def export(dataset: Dataset, path: Path, form: str, *, interval: str, view: View) -> Path:
    """Write a dataset into a new folder at `path`; gives the folder in which its files lie."""
    if form not in FORMATS:
        raise UnknownName.among("format", form, FORMATS)
    if dataset.growing:
        raise StoreError(f"{dataset.name} is still recorded.", remedy="Export it when it has ended.")
    inside = Path(SIMULATED) if _is_made_up(dataset) and form == "flat_files" else Path()
    with files.whole_folder(path) as beside:
        folder = files.make_folder(beside / inside)
        files.write_bytes(folder / NOTE, msgspec.json.format(msgspec.json.encode(_note(dataset, view))))
        if form == "flat_files":
            _flat_files(dataset, folder, view)
        else:
            _tables(dataset, folder, form, Interval.any(interval), view)
    return path / inside


def is_simulated(folder: Path) -> bool:
    """Whether a folder of files says of itself that it was exported from a simulated market."""
    try:
        said = msgspec.json.decode((folder / NOTE).read_bytes(), type=dict[str, Any])
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise Damaged(
            f"{folder / NOTE} cannot be read, so it is not known where these files came from.",
            remedy="Export them again.",
            path=str(folder / NOTE),
        ) from error
    return bool(said.get(SIMULATED))


def _is_made_up(dataset: Dataset) -> bool:
    return bool(dataset.provenance.get(SIMULATED))


def _note(dataset: Dataset, view: View) -> dict[str, Any]:
    known = dataset._manifest
    return {
        "dataset": dataset.name,
        "version": dataset.version,
        SIMULATED: _is_made_up(dataset),
        "view": view,
        "clock": dataset.clock,
        "complete": dataset.complete,
        "gaps": known.gaps,
        "filled": known.filled if view == "healed" else (),
        "heard": known.heard,
        "rows": known.symbols,
        "tags": dataset.tags,
        "marks": dataset.marks,
        "provenance": dataset.provenance,
    }


def _tables(dataset: Dataset, folder: Path, form: str, interval: Interval, view: View) -> None:
    found = {kind: dataset.table(kind, view) for kind in ("quotes", "trades")}
    found[f"bars_{spelled(interval)}"] = dataset.bar_table(interval, view)
    prefix = f"{SIMULATED}_" if _is_made_up(dataset) else ""
    for name, table in found.items():
        if len(table):
            shown = tables.to_frame(tables.with_facts(table, simulated=_is_made_up(dataset)), "arrow")
            target = folder / f"{prefix}{name}.{form}"
            if form == "parquet":
                parts.write_parquet(shown, target)
            else:
                csv.write_csv(_flat(shown), target)


def _flat(table: pa.Table) -> pa.Table:
    """Lists of codes as text, such as `12,37`."""
    for index, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = pc.binary_join(table.column(index).cast(pa.list_(pa.string())), ",")
            table = table.set_column(index, field.name, texts)
    return table


def _flat_files(dataset: Dataset, folder: Path, view: View) -> None:
    from isal import igzip

    compressed: Any = igzip.IGzipFile
    if dataset.market is not Market.STOCKS:
        raise UsageError(
            f"Only US stocks have this layout here, and {dataset.name} is of {dataset.market.value}.",
            remedy="Export it as 'parquet' or 'csv'.",
        )
    written = 0
    for kind in KINDS:
        for day, rows in _by_day(dataset, kind, view):
            target = folder / wire.file_key(_PRODUCTS[kind], day)
            files.make_folder(target.parent)
            # A name inside the file is all that gzip has a place for.
            inside = f"{SIMULATED}-{day}.csv" if _is_made_up(dataset) else ""
            with target.open("wb") as file, compressed(inside, "wb", fileobj=file, mtime=0) as packed:
                packed.write(wire.write_flat_file(rows, _PRODUCTS[kind]))
            written += 1
    if not written:
        raise NoData(f"{dataset.name} holds nothing that has a place in flat files.")


def _by_day(dataset: Dataset, kind: str, view: View) -> Iterator[tuple[date, pa.Table]]:
    """The rows of a kind as the vendor sorts them: a file a day, by symbol, then time."""
    if kind == "bars" and dataset.provenance.get("interval", "1m") != "1m":
        return
    table = dataset.table(kind, view)
    stamp = parts.stamp_of(kind)
    for name in {"trades": ("price", "size"), "bars": ("open", "close")}.get(kind, ()):
        if lacking := table.column(name).null_count:
            raise UsageError(
                f"{lacking:,} {kind} of {dataset.name} have no {name}, which flat files cannot hold.",
                remedy="Export it as 'parquet' or 'csv'.",
            )
    keys = ["symbol", stamp, *(["arrival"] if kind != "bars" else [])]
    table = table.sort_by([(key, "ascending") for key in keys])
    days = sessions.dates_of(dataset.market, table.column(stamp).to_numpy())
    for day in np.unique(days):
        yield day.item(), table.filter(pa.array(days == day))
