"""Which day files are here: each says so itself, and a manifest a year says it quicker.

    <product>/2013/manifest.json     ETag, size, rows, when, and which file on disk that was said of

An entry counts only for the very file it was written for; any other file is asked itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from functools import lru_cache
from pathlib import Path

import msgspec

from tapelab.massive.wire.catalogue import key_of, kind_named
from tapelab.store import files
from tapelab.store.lake import sheets
from tapelab.store.lake.arriving import DayFile
from tapelab.store.lake.sheets import Stamp

MANIFEST = "manifest.json"
YEARS_IN_MEMORY = 64


class Entry(msgspec.Struct, frozen=True):
    file: DayFile
    stamp: Stamp


class _Year(msgspec.Struct, frozen=True):
    product: str
    files: dict[date, Entry] = {}


class Census:
    """The day files below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, product: str, year: int) -> Path:
        return self._folder / kind_named(product).name / f"{year:04}" / MANIFEST

    def days(self, product: str) -> list[date]:
        """The days of which there is a file, oldest first."""
        found = (self._folder / kind_named(product).name).glob("[0-9]*/[0-9]*/????-??-??.parquet")
        return sorted(date.fromisoformat(path.stem) for path in found)

    def of(self, product: str, days: Iterable[date]) -> dict[date, DayFile]:
        """What is known of the files of these days that are here. Raises `Damaged`."""
        known: dict[date, DayFile] = {}
        years: dict[int, dict[date, Entry]] = {}
        for day in days:
            path = self._place(product, day)
            stamp = sheets.stamp_of(path)
            if stamp is None:
                continue
            if day.year not in years:
                years[day.year] = self._year(product, day.year)
            entry = years[day.year].get(day)
            if entry is not None and entry.stamp == stamp:
                known[day] = entry.file
            elif (found := sheets.footer(path)) is not None:
                known[day] = sheets.decoded(found.about, DayFile, path)
        return known

    def enter(self, product: str, year: int, files_: Iterable[DayFile]) -> None:
        """Note files of a year as they are now. The caller holds the manifest's lock."""
        path = self.path(product, year)
        entries = dict(self._year(product, year))
        for file in files_:
            stamp = sheets.stamp_of(self._place(product, file.day))
            if stamp is not None:
                entries[file.day] = Entry(file, stamp)
        whole = _Year(product, dict(sorted(entries.items())))
        beside = path.with_name(f".{path.name}.part")
        # Not forced to the disk: what a power cut leaves of it is not believed, and the files say the same.
        try:
            beside.write_bytes(msgspec.json.format(msgspec.json.encode(whole), indent=1))
            beside.replace(path)
        except OSError as error:
            raise files.unwritable(path, error) from error

    def unknown(self, product: str, days: Iterable[date]) -> list[date]:
        """Those of these days of which the manifests say nothing that is true now."""
        years: dict[int, dict[date, Entry]] = {}
        found = []
        for day in days:
            if day.year not in years:
                years[day.year] = self._year(product, day.year)
            entry = years[day.year].get(day)
            if entry is None or entry.stamp != sheets.stamp_of(self._place(product, day)):
                found.append(day)
        return found

    def _place(self, product: str, day: date) -> Path:
        return self._folder / key_of(product, day).replace(".csv.gz", ".parquet")

    def _year(self, product: str, year: int) -> dict[date, Entry]:
        path = self.path(product, year)
        stamp = sheets.stamp_of(path)
        return _read(path, stamp) if stamp is not None else {}


@lru_cache(maxsize=YEARS_IN_MEMORY)
def _read(path: Path, stamp: Stamp) -> dict[date, Entry]:
    """A manifest; one that cannot be read says nothing, and the files are asked themselves."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Year).files
    except (FileNotFoundError, msgspec.DecodeError):
        return {}
