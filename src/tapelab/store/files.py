"""Files that are whole or not there: written beside, flushed, renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from tapelab.errors import Unwritable, UsageError

TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# macOS has no fdatasync
flush_data: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` as durable as the files."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> Path:
    """`folder`, created where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error
    return folder


def write_whole(path: Path, write: Callable[[Path], None], *, replace: bool = False) -> None:
    """Let `write` fill a file beside `path`, then give it its name; a kill leaves nothing half-written.

    Without `replace` an existing file is kept and FileExistsError raised: of two writers one wins.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(beside)
        fd = os.open(beside, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if replace:
            beside.replace(path)
        else:
            path.hardlink_to(beside)
        sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, replace: bool = False) -> None:
    """`write_whole` for bytes at hand."""

    def write(beside: Path) -> None:
        beside.write_bytes(content)

    write_whole(path, write, replace=replace)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its name at the end; whatever fails before leaves nothing.

    Raises `UsageError` where there is something at `path`.
    """
    taken = UsageError(
        f"There is something in {path} already.", remedy="Choose another name.", path=str(path)
    )
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise taken
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        beside.mkdir()
        yield beside
        sync_folder(beside)
        try:
            beside.rename(path)
        except OSError as error:
            raise taken if error.errno in TAKEN else error from error
        sync_folder(path.parent)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what programs that were killed have left beside `path`."""
    for entry in path.parent.iterdir():
        name, _, pid = entry.name.removesuffix(".part").rpartition(".")
        if name == f".{path.name}" and entry.suffix == ".part" and pid.isdigit() and not _runs(int(pid)):
            shutil.rmtree(entry, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def sha256(path: Path) -> str:
    """The checksum that a manifest keeps of each file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unwritable(path: Path, error: OSError) -> Unwritable:
    """The error for a path that could not be written, by what the system said."""
    if error.errno in NO_ROOM:
        return Unwritable(
            f"There is no room left to write {path}.", remedy="Free some space.", path=str(path)
        )
    return Unwritable(
        f"{path} cannot be written: {error.strerror}.",
        remedy="Check the permissions, or choose another folder with TAPELAB_HOME.",
        path=str(path),
    )
