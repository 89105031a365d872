"""What keeps datasets in order: they are checked, taken away, and relieved of raw journals that are old."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from tapelab.errors import Damaged, DatasetNotFound, Locked, StoreError, UsageError
from tapelab.market import clock
from tapelab.store import files
from tapelab.store.datasets import manifest, parts, room
from tapelab.store.datasets.columns import Decoder
from tapelab.store.datasets.growing import JOURNAL, lock_of
from tapelab.store.datasets.manifest import Manifest
from tapelab.store.journal.segments import Hole, Lock, RecordReader, is_held, lock_path, numbers, read_header

if TYPE_CHECKING:
    from tapelab.store.datasets.dataset import Dataset

KEEP_DAYS = 30.0  # for which raw journals are kept unless something else is said
_Rows = Counter[tuple[str, str]]  # by kind and symbol
DECODED_AT_ONCE = 4 * 2**20  # bytes of messages

_IN_JOURNAL = re.compile(r"\d{6}\.tlj(\.zst)?|lock|reserve|\..*\.part|.*\.part")


def check(dataset: Dataset) -> Iterator[str]:
    """Look at every file of a dataset: what is wrong with it, or nothing where it is as it was written.

    One word for each file, so that whoever asks can show how far it is; a file that no version names is
    foreign, and wrong.
    """
    path, known = dataset.path, dataset._manifest
    pruned = {journaled.folder for journaled in manifest.load(path).pruned}
    for segment in (*known.segments, *known.overlay):
        yield parts.check_segment(path, segment)
    for journaled in known.journals:
        if journaled.folder not in pruned:
            yield from _check_journal(path / journaled.folder, journaled.last)
    if not dataset.growing:
        yield from (f"{name} is foreign: no version of the dataset names it" for name in foreign(path))


def foreign(path: Path) -> list[str]:
    """Files among those of a dataset that none of its versions names."""
    named = set()
    journals = {JOURNAL}
    for version in manifest.versions(path):
        with contextlib.suppress(Damaged):
            known = manifest.load(path, version)
            named |= {segment.file for segment in (*known.segments, *known.overlay)}
            journals |= {journaled.folder for journaled in (*known.journals, *known.pruned)}
    found = []
    for folder in sorted(path.iterdir()):
        if folder.name in (parts.SEGMENTS, parts.OVERLAY):
            names = (f"{folder.name}/{file.name}" for file in sorted(folder.iterdir()))
            found += [name for name in names if name not in named and not name.endswith(".part")]
        elif folder.name.startswith(JOURNAL) and folder.is_dir():
            inside = sorted(folder.iterdir()) if folder.name in journals else [folder]
            found += [
                file.relative_to(path).as_posix()
                for file in inside
                if file == folder or not _IN_JOURNAL.fullmatch(file.name)
            ]
    return found


def remove(dataset: Dataset) -> None:
    """Take a dataset away, all versions of it. Raises `Locked` while it is recorded."""
    path = dataset.path
    with _nobody_records(path):
        gone = path.with_name(f".{path.name}.removed")
        shutil.rmtree(gone, ignore_errors=True)  # left by a removal that was killed
        try:
            path.rename(gone)
        except OSError as error:
            raise files.unwritable(path, error) from error
    shutil.rmtree(gone, ignore_errors=True)
    files.sync_folder(path.parent)


def kept_because(dataset: Dataset, *, days: float = KEEP_DAYS, unknown: bool = False) -> str:
    """Why the raw journals of a dataset stay; empty where they may go."""
    known = dataset._manifest
    if dataset.growing:
        return "it is still recorded"
    if not any((dataset.path / journaled.folder).exists() for journaled in (*known.journals, *known.pruned)):
        return "it has no raw journal"
    age = (clock.now() - known.ended) / clock.DAY
    if age < days:
        return f"it ended {age:.1f} days ago"
    only = sum(known.counts.get(name, 0) for name in ("unknown", "malformed"))
    if only and not unknown:
        return f"{only:,} events lie in the journal alone, for there is no table for them"
    return ""


def prune(dataset: Dataset, *, days: float = KEEP_DAYS, unknown: bool = False) -> tuple[Dataset, int]:
    """Drop the raw journals of a dataset that ended `days` ago: a new version of it, and the bytes freed.

    Every file is checked first, and the journals are decoded once more: what they hold has to be in the
    columns. From then on the dataset cannot be decoded again. `unknown`: even where the journal holds what
    the columns do not: events that have no table, symbols that nobody asked for. Raises `UsageError` where it
    is to stay, `Damaged` where something is wrong.
    """
    if why := kept_because(dataset, days=days, unknown=unknown):
        raise UsageError(f"The journal of {dataset.name} stays: {why}.", remedy="Leave it, or prune others.")
    path = dataset.path
    with _nobody_records(path):
        if manifest.versions(path)[-1] != dataset.version:
            raise StoreError(
                f"{dataset.name} has a newer version than {dataset.version}.", remedy="Prune the newest."
            )
        new, gone = dataset._manifest, dataset._manifest.journals
        if gone:
            dataset.verify()
            _compare(path, new, unknown=unknown)
        pruned = (*new.pruned, *gone)  # those of an earlier time may be here still, if it was killed
        freed = sum(room.taken_by(path / journaled.folder) for journaled in pruned)
        if gone:
            change = f"pruned of its raw journal ({room.in_words(freed)})"
            new = manifest.next_version(path, new, change=change, journals=(), pruned=pruned)
        for journaled in pruned:
            shutil.rmtree(path / journaled.folder, ignore_errors=True)
    return type(dataset)(path, new), freed


def _compare(path: Path, known: Manifest, *, unknown: bool) -> None:
    """Decode the journals: the columns have to hold what they hold; merged ones hold each event once."""
    decoded = sum((_decoded(path / journaled.folder) for journaled in known.journals), _Rows())
    merged = "merged" in known.provenance
    laid_by = {journaled.shift for journaled in known.journals}  # others may have been pruned before
    held = _Rows()
    for segment in known.segments:
        if merged or segment.shift in laid_by:
            held += _counted(segment.kind, parts.read_segment(path, segment, ["symbol"]))
    symbols = {symbol for _, symbol in held}
    for kind, symbol in sorted({*held, *(one for one in decoded if one[1] in symbols)}):
        here, there = held[kind, symbol], decoded[kind, symbol]
        if here > there or (here < there and not merged):
            raise Damaged(
                f"The journal of {path.name} holds {there:,} {kind} of {symbol}, its columns {here:,}.",
                remedy="The journal stays. Please report this: one of the two was not written rightly.",
            )
    if (others := sorted({symbol for _, symbol in decoded} - symbols)) and not unknown:
        raise UsageError(
            f"The journal of {path.name} stays: it holds {', '.join(others[:3])}, which nobody asked for.",
            remedy="Leave it, or say that it may go with what only it holds (--unknown).",
        )


def _decoded(folder: Path) -> _Rows:
    decoder = Decoder(folder)
    rows = _Rows()
    try:
        while decoder.advance():
            if decoder.gathered >= DECODED_AT_ONCE:
                rows += sum((_counted(kind, table) for kind, table in decoder.take().items()), _Rows())
        rows += sum((_counted(kind, table) for kind, table in decoder.take().items()), _Rows())
    finally:
        decoder.close()
    return rows


def _counted(kind: str, table: pa.Table) -> _Rows:
    counts = pc.value_counts(table.column("symbol")).to_pylist()
    return _Rows({(kind, one["values"]): one["counts"] for one in counts})


@contextlib.contextmanager
def _nobody_records(path: Path) -> Iterator[None]:
    if not manifest.versions(path):
        raise DatasetNotFound(f"There is no dataset in {path} any more.", remedy="See list_datasets().")
    recorded = Locked(f"{path.name} is being recorded.", remedy="Stop the recording first.", path=str(path))
    try:
        held = Lock(lock_of(path))
    except Locked as error:
        raise recorded from error
    with held:
        if is_held(lock_path(path / JOURNAL)):
            raise recorded
        yield


def _check_journal(folder: Path, last: int) -> Iterator[str]:
    """Each segment of a journal, then its end."""
    reader, found, problems = RecordReader(folder), -1, dict[str, str]()
    while batch := reader.read():
        for item in batch:
            if isinstance(item, Hole):
                name = f"{folder.name}/{item.path.name}"
                problems.setdefault(name, f"{name} is damaged at byte {item.offset:,}")
            else:
                found = item.sequence
    owner: bytes | None = None
    for number in numbers(folder):
        name = f"{folder.name}/{number:06d}.tlj"
        header = read_header(folder, number)
        owner = header.dataset_id if owner is None and header else owner
        if header is not None and header.dataset_id not in (owner, bytes(16)):
            problems[name] = f"{name} is foreign: it belongs to another recording"
        yield problems.pop(name, "")
    yield from problems.values()
    if found < last:
        yield f"{folder.name} ends at record {found:,} instead of {last:,}"
