"""What a dataset is made of: its manifest, one file per version, never changed once it is there.

    <dataset>/manifest-000001.json      version 1; the highest number is the newest
    <dataset>/segments/quotes-000001.parquet   rows, immutable; versions share them
    <dataset>/overlay/quotes-000002.parquet    rows that were not received, filled in later by version 2
    <dataset>/journal/…                 what they were decoded from, where it was recorded
    <dataset>/lock                      held by whoever records into it

Version 0 is a recording that still grows; it alone is rewritten, by its recorder.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import msgspec

from tapelab.errors import Damaged, DatasetNotFound, StoreError
from tapelab.market import clock
from tapelab.store import files

FORMAT = 1
_NAME = re.compile(r"manifest-(\d{6})\.json")


class Segment(msgspec.Struct, frozen=True):
    """A Parquet file of one kind. Parts hold rows that were laid down together, in order of arrival.

    `first`, `last`: arrival numbers; `shift` is added to them on reading, where a recording was appended
    to another. `start`, `end`: of `ts_event` (bars: `timestamp`), ns UTC.
    """

    file: str
    kind: str
    part: int
    rows: int
    bytes: int
    sha256: str
    first: int
    last: int
    start: int
    end: int
    shift: int = 0


class Seen(msgspec.Struct, frozen=True):
    """How much of a symbol there is, and between which times of the exchange."""

    quotes: int = 0
    trades: int = 0
    bars: int = 0
    first: int = 0
    last: int = 0


class Heard(msgspec.Struct, frozen=True):
    """From when to when (our clock, ns UTC) these topics were subscribed; `end` 0 while they still are."""

    topics: tuple[str, ...]
    start: int
    end: int = 0


class Lost(msgspec.Struct, frozen=True):
    """A gap: our clock, ns UTC.

    `symbols`: of which it lost something; none named means all that were subscribed.
    """

    start: int
    end: int
    cause: str
    channels: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()


class Filled(msgspec.Struct, frozen=True):
    """What healing did about one channel of a gap.

    `start`, `end`: the gap's, our clock; `source`: where the rows came from, `rest` or `flat_file`, empty
    while nobody could say; `rows`: how many were lacking and are in the overlay now; `at`: when. `final`:
    False while that source may still add something. `open`: what is lacking still, and why; with `final` it
    stays so, unless you ask again.
    """

    start: int
    end: int
    channel: str
    source: str = ""
    rows: int = 0
    at: int = 0
    final: bool = False
    open: str = ""


class Mark(msgspec.Struct, frozen=True):
    """A labelled stretch, and what it was fitted on."""

    label: str
    start: int
    end: int
    symbol: str = ""
    fitted_on: str = ""


class Journaled(msgspec.Struct, frozen=True):
    """A journal that belongs to the dataset: its folder, its last record, the shift of its rows."""

    folder: str
    last: int = -1
    shift: int = 0


class Decoded(msgspec.Struct, frozen=True):
    """How far the journal of a growing recording is in segments; see `columns.Position`."""

    resume: int = -1
    arrival: int = -1
    note: int = -1
    shift: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """One version of a dataset. Times are ns UTC; `begun` and `ended` are our clock.

    `change` says in a few words what made this version of the one before, at `changed`. `pruned`: journals
    that were taken away when the columns had been verified. `following`: the journal of the recording that
    this one reads, while it grows. `overlay`: rows that were not received, apart
    from `segments`, so that who knows nothing of them sees what was received; `filled`: what they fill.
    """

    id: str
    version: int
    clock: str  # "received": order and ts_recv are ours; "event": imported, the exchange's clock only
    created: int
    begun: int = 0
    ended: int = 0
    segments: tuple[Segment, ...] = ()
    symbols: dict[str, Seen] = {}
    heard: tuple[Heard, ...] = ()
    gaps: tuple[Lost, ...] = ()
    tags: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    provenance: dict[str, object] = {}
    counts: dict[str, int] = {}
    journals: tuple[Journaled, ...] = ()
    decoded: Decoded = Decoded()
    following: str = ""
    change: str = ""
    changed: int = 0
    pruned: tuple[Journaled, ...] = ()
    overlay: tuple[Segment, ...] = ()
    filled: tuple[Filled, ...] = ()

    @property
    def first_arrival(self) -> int:
        laid = (*self.segments, *self.overlay)
        return min((s.first + s.shift for s in laid if s.kind != "bars"), default=0)

    @property
    def last_arrival(self) -> int:
        laid = (*self.segments, *self.overlay)
        return max((segment.last + segment.shift for segment in laid), default=-1)


class Version(NamedTuple):
    """One version of a dataset: its number, when it was made (ns UTC; 0 unknown), what made it."""

    number: int
    changed: int
    change: str


class _Envelope(msgspec.Struct):
    format: int
    sha256: str
    manifest: msgspec.Raw
    tapelab: str = "dataset"


def path_of(folder: Path, version: int) -> Path:
    return folder / f"manifest-{version:06d}.json"


def versions(folder: Path) -> list[int]:
    """The versions of the dataset in `folder`, in order; none where there is no dataset."""
    if not folder.is_dir():
        return []
    found = (_NAME.fullmatch(entry.name) for entry in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def history(folder: Path) -> tuple[Version, ...]:
    """The versions of the dataset in `folder` and what made each; a damaged one says so."""
    found = []
    for number in versions(folder):
        try:
            known = load(folder, number)
        except StoreError:
            found.append(Version(number, 0, "damaged"))
        else:
            change = known.change or ("recorded" if number <= 1 else "")
            found.append(Version(number, known.changed or known.created, change))
    return tuple(found)


def load(folder: Path, version: int | None = None) -> Manifest:
    """A version of the dataset in `folder`, the newest unless one is named.

    Raises `DatasetNotFound`, `Damaged`, or `StoreError` where a newer tapelab wrote it.
    """
    present = versions(folder)
    if not present:
        raise DatasetNotFound(f"There is no dataset in {folder}.", remedy="See list_datasets().")
    version = present[-1] if version is None else version
    if version not in present:
        raise DatasetNotFound(
            f"The dataset {folder.name} has no version {version}.",
            remedy=f"It has {', '.join(map(str, present))}.",
        )
    path = path_of(folder, version)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return load(folder)  # version 0 gave way to version 1 between two looks
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}.", remedy="Check its permissions.", path=str(path)
        ) from error
    try:
        envelope = msgspec.json.decode(content, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path) from error
    if envelope.format > FORMAT:
        raise StoreError(
            f"The dataset {folder.name} was written by a newer tapelab (manifest format {envelope.format}).",
            remedy="Update tapelab to read it.",
            path=str(path),
        )
    if hashlib.sha256(bytes(envelope.manifest)).hexdigest() != envelope.sha256:
        raise _damaged(path)
    try:
        return msgspec.json.decode(envelope.manifest, type=Manifest)
    except msgspec.DecodeError as error:
        raise _damaged(path) from error


def save(folder: Path, manifest: Manifest) -> None:
    """Write a version. Only version 0 replaces an earlier self; of two writers of another one wins."""
    raw = msgspec.json.encode(manifest)
    envelope = _Envelope(FORMAT, hashlib.sha256(raw).hexdigest(), msgspec.Raw(raw))
    path = path_of(folder, manifest.version)
    try:
        files.write_bytes(path, msgspec.json.encode(envelope), replace=manifest.version == 0)
    except FileExistsError as error:
        raise StoreError(
            f"The dataset {folder.name} was changed by someone else at the same time.",
            remedy="Open it again and repeat.",
            path=str(path),
        ) from error


def next_version(folder: Path, manifest: Manifest, *, change: str = "", **changes: object) -> Manifest:
    """Save `manifest` with changes as the version behind the newest, and give it back."""
    version = max(versions(folder), default=0) + 1
    new = msgspec.structs.replace(manifest, version=version, change=change, changed=clock.now(), **changes)
    save(folder, new)
    return new


def _damaged(path: Path) -> Damaged:
    return Damaged(
        f"The manifest {path.parent.name}/{path.name} is not what was written.",
        remedy="Restore it from a backup, or open an earlier version with open_dataset(…, version=N).",
        path=str(path),
    )
