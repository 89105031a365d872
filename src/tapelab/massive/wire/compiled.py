"""The compiled kernel, made ready in the background: nobody waits for a compiler.

The first time, a process of its own compiles it into a folder of the user's cache, for about ten seconds;
from then on it is loaded from there, in less than one. Where that fails, the plain decoder goes on serving,
and `tapelab doctor` says why.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

PATIENCE = 300.0  # seconds for compiling, on a machine that has much else to do
LEAVING_PATIENCE = 5.0  # seconds for loading that is under way when the program ends
MAX_KEPT = 8  # compiled versions that stay in the cache
NICE = 10  # how far the compiler stands back for everything else


class Kernel(NamedTuple):
    """The compiled functions: see `kernel` and `linekernel`."""

    scan: Callable[..., None]
    walk: Callable[..., tuple[int, int, int]]
    lines: Callable[..., int]


_SOURCES = ("kernel.py", "linekernel.py", "plan.py")
_PROBLEM = "problem.txt"

_lock = threading.Lock()
_kernel: Kernel | None = None
_thread: threading.Thread | None = None
_loading = threading.Event()


def kernel(*, warm: bool) -> Kernel | None:
    """The kernel if it is ready. `warm`: if it is not, begin to make it ready in the background."""
    global _thread
    if _kernel is None and warm:
        with _lock:
            if _thread is None:
                _thread = threading.Thread(target=_prepare, name="tapelab-compile", daemon=True)
                _thread.start()
    return _kernel


def wait(seconds: float = PATIENCE) -> Kernel | None:
    """Make the kernel ready and wait for it, for tests and measurements; None where it cannot be had."""
    kernel(warm=True)
    assert _thread is not None
    _thread.join(seconds)
    return _kernel


def problem() -> str:
    """What keeps the kernel from being used, as far as is known; empty if nothing does."""
    if find_spec("numba") is None:
        return "numba is not installed"
    folder = _folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return f"{folder} cannot be written"
    note = folder / _PROBLEM
    return note.read_text("utf-8").strip() if note.exists() else ""


def build() -> None:
    """Compile into the cache, unless it is there; what the process of its own runs."""
    from filelock import FileLock

    os.nice(NICE)
    with FileLock(_folder() / "lock"):
        _load()


def _prepare() -> None:
    global _kernel
    try:
        folder = _folder()
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(folder)
        _compile(folder)
        _loading.set()
        _kernel = _load()
    except Exception:  # whatever fails, in a library that is not ours: the plain decoder serves
        return
    finally:
        _loading.clear()


def _compile(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"from {__name__} import build; build()"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE,
        start_new_session=True,
        check=False,
    )
    note = folder / _PROBLEM
    if done.returncode:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        note.write_text(last[0] if last else f"the compiler ended with status {done.returncode}", "utf-8")
        done.check_returncode()
    note.unlink(missing_ok=True)


def _load() -> Kernel:
    """Import the kernel, with its cache in our folder; that of the user's own functions stays where it is."""
    import numba

    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(_folder())
    try:
        from tapelab.massive.wire import kernel, linekernel
    finally:
        config.CACHE_DIR = before
    return Kernel(kernel.scan, kernel.walk, linekernel.lines)


def _folder() -> Path:
    """One folder for each version of the kernel: numba itself looks only at one file's date and size."""
    from platformdirs import user_cache_path

    version = hashlib.sha256(b"".join(Path(__file__).with_name(n).read_bytes() for n in _SOURCES))
    return user_cache_path("tapelab", appauthor=False) / "compiled" / version.hexdigest()[:16]


def _forget_old(folder: Path) -> None:
    import shutil

    others = sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in [path for path in others if path != folder][: 1 - MAX_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


@atexit.register
def _leave() -> None:
    if _loading.is_set() and _thread is not None:
        _thread.join(LEAVING_PATIENCE)
