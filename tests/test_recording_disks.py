"""A slow disk, a full disk, a clock that jumps: the recording says so, and nothing acknowledged is lost.

The disks are real where this machine lets a test mount one; elsewhere the receiver's `writev` plays them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from streams import KEY, Flood, Vendor, both, settings_for, until
from tapelab.errors import Unwritable
from tapelab.live import process, stream
from tapelab.live.process import Process
from tapelab.live.recorder import WebSocketDataRecorder
from tapelab.live.talk import Config
from tapelab.market import clock
from tapelab.store import journal
from tapelab.store.datasets.dataset import open_dataset
from test_recording_kills import BLOCK

BLKIO = Path("/sys/fs/cgroup/blkio")  # version 1: it slows the writes of a synchronous file system
RSS_MOST = 120 * 2**20  # bytes; the receiver takes about 40 MB, and holds no data back

HANGS = """
import os, sys, time
from tapelab.live import link, receiver
link.BEHIND = 500_000_000
real, hung = os.writev, []
def writev(fd, parts):
    if len(parts[1]) > 10_000 and not hung:
        hung.append(time.sleep(2))
    return real(fd, parts)
os.writev = writev
sys.exit(receiver.main())
"""

CLOCK_JUMPS = """
import sys, time
from tapelab.live import receiver
from tapelab.market import clock
receiver.CLOCK_EVERY = clock.SECOND // 20
begun, real = time.monotonic(), time.time_ns
def time_ns():
    return real() + (0, 3600, -3600)[min(2, int((time.monotonic() - begun) / 0.7))] * clock.SECOND
time.time_ns = time_ns
sys.exit(receiver.main())
"""

Disk = Callable[..., Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a disk of so many MB and gives its folder; who may not is told in one line."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a disk for this test")
    with ExitStack() as undo:

        def mounted(kind: str, megabytes: int, *options: str) -> Path:
            folder = tmp_path / kind
            folder.mkdir()
            if kind == "tmpfs":
                command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
            else:
                image = tmp_path / "image"
                with image.open("wb") as file:
                    file.truncate(megabytes * 2**20)
                run("mkfs.ext4", "-q", "-F", "-m", "0", str(image))
                command = ["mount", "-o", ",".join(["loop", *options]), str(image), str(folder)]
            run(*command)
            undo.callback(run, "umount", "-l", str(folder))
            return folder

        yield mounted


def run(*command: str) -> None:
    done = (
        subprocess.run(command, capture_output=True, text=True, timeout=60)
        if shutil.which(command[0])
        else None
    )
    if done is None or done.returncode:
        pytest.skip(
            f"no disk can be mounted here: {done.stderr.strip() if done else command[0] + ' is missing'}"
        )


def receiver(url: str, folder: Path) -> Process:
    topics = ["Q.AAPL", "T.AAPL"]
    lock = folder.parent / "feed.lock"
    return Process(Config(url, "stocks", KEY, topics, str(folder), bytes(16).hex(), str(lock)))


def gaps(folder: Path) -> list[str]:
    return [str(n.facts["cause"]) for n in notes(folder) if n.kind is journal.Kind.GAP]


def notes(folder: Path) -> list[journal.Note]:
    follower, found = journal.Follower(folder), []
    while batch := follower.read():
        found += [item for item in batch if isinstance(item, journal.Note)]
    return found


def whole(folder: Path) -> bool:
    """Whether every connection's data is the block from its start on."""
    streams: dict[int, bytes] = {}
    for record in journal.records(folder):
        if record.kind is journal.Kind.DATA:
            streams[record.connection] = streams.get(record.connection, b"") + record.payload
    parts = [data[data.find(BLOCK[:1000]) :] for data in streams.values() if BLOCK[:1000] in data]
    return bool(parts) and all(part == (BLOCK * (len(part) // len(BLOCK) + 1))[: len(part)] for part in parts)


def test_a_disk_that_hangs_makes_the_vendor_cut_and_the_gap_says_who_was_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", HANGS])
    folder = tmp_path / "journal"
    with Flood(BLOCK, patience=0.3, pause=0.003) as flood:
        child = receiver(flood.url, folder)
        until(lambda: child.hear() and flood.connections == 2)
        known = child.figures.acknowledged
        until(lambda: child.hear() and child.figures.acknowledged > known + 20)
        child.terminate()
        assert child.wait() == 0
    assert flood.cut == 1
    assert gaps(folder) == ["slow_consumer"]
    assert whole(folder)


@pytest.mark.slow
def test_a_disk_that_is_really_slow_fills_no_memory_and_its_gaps_say_so(disk: Disk, tmp_path: Path) -> None:
    """A synchronous ext4 held to 200 kB a second; the vendor waits two seconds, then cuts."""
    folder = disk("ext4", 64, "sync") / "journal"
    group = BLKIO / f"tapelab-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("this kernel has no blkio control group, which slows the disk of this test")
    device = folder.parent.stat().st_dev
    try:
        limit = f"{os.major(device)}:{os.minor(device)} 200000"
        (group / "blkio.throttle.write_bps_device").write_text(limit)
        with Flood(BLOCK, patience=2.0) as flood:
            child = receiver(flood.url, folder)
            until(lambda: child.hear() and child.figures.acknowledged >= 3)
            (group / "cgroup.procs").write_text(str(child.pid))
            most = 0
            for _ in range(6):
                known = flood.connections
                until(lambda: child.hear() and flood.connections > known)  # noqa: B023
                pages = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1])
                most = max(most, pages * os.sysconf("SC_PAGE_SIZE"))
            (BLKIO / "cgroup.procs").write_text(str(child.pid))
            child.terminate()
            child.wait()
    finally:
        group.rmdir()
    assert most < RSS_MOST
    journal.recover(folder)
    assert set(gaps(folder)) == {"slow_consumer"}
    assert whole(folder)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_full_disk_ends_the_recording_with_what_to_do_and_keeps_what_came(
    disk: Disk, tmp_path: Path, kind: str
) -> None:
    folder = disk(kind, 4 if kind == "tmpfs" else 8)
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(2**20))
    with Vendor() as vendor:
        settings = settings_for(vendor, tmp_path / "home")
        recorder = WebSocketDataRecorder(["AAPL"], save_dir=folder, settings=settings)
        recorder.start()
        n = 0
        while recorder.stats.state == "recording":
            assert n < 100_000
            vendor.tell(*map(both, range(n, n + 1000)))
            n += 1000
        error, known = recorder.stats.error, recorder.stats.acknowledged
        assert isinstance(error, Unwritable)
        assert "no room left" in error.message
        assert error.remedy.startswith("Free some space")
        with pytest.raises(Unwritable):
            recorder.stop()
        (path,) = folder.glob("recording_*")
        assert notes(path / "journal")[-1].facts["cause"] == "disk_full"
        kept = [m.payload for m in journal.messages(path / "journal") if b'"status"' not in m.payload]
        assert kept == [both(k) for k in range(len(kept))]
        assert known > len(b"".join(kept))
        ballast.unlink()
        again = WebSocketDataRecorder(["AAPL"], save_dir=folder, settings=settings)
        with again:
            vendor.tell(both(n))
            until(lambda: again.stats.events == 2)
        again.append_to_dataset(path)
    dataset = open_dataset(path)
    assert dataset.table("quotes").column("sequence").to_pylist() == [*range(len(kept)), n]
    assert dataset.verify()


def test_a_receiver_that_goes_on_after_a_full_disk_says_what_it_lost(disk: Disk) -> None:
    folder = disk("tmpfs", 8) / "journal"
    ballast = folder.parent / "ballast"
    ballast.write_bytes(bytes(2 * 2**20))
    with Flood(BLOCK, pause=0.003) as flood:
        for _ in range(2):  # until it is full, and once more where there is no room at all
            child = receiver(flood.url, folder)
            until(lambda child=child: not child.hear())
            assert child.wait() == 1
            assert isinstance(child.ending and child.ending.error(), Unwritable)
        ballast.unlink()
        child = receiver(flood.url, folder)
        known = flood.connections
        until(lambda: child.hear() and flood.connections > known)
        until(lambda: child.hear() and child.figures.acknowledged_bytes > 2**17)
        child.terminate()
        child.wait()
    assert "disk_full" in gaps(folder)
    assert set(gaps(folder)) <= {"disk_full", "killed"}
    assert whole(folder)


def test_a_wall_clock_that_jumps_an_hour_is_noted_and_no_event_runs_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour forward, then two back; the clock of arrival takes no part in it."""
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-c", CLOCK_JUMPS])
    monkeypatch.setattr(stream, "GATHER_EVERY", 0)
    with (
        Vendor() as vendor,
        WebSocketDataRecorder(["AAPL"], settings=settings_for(vendor, tmp_path)) as recorder,
    ):
        folder = recorder._growing.journal  # type: ignore[union-attr]
        n = 0
        while n <= 10 or len(steps(folder)) < 2:
            vendor.tell(both(n))
            n += 1
            until(lambda n=n: recorder.stats.events == 2 * n)
            if n == 10:
                vendor.cut()
                vendor.await_subscribers()
    forward, back = steps(folder)
    assert abs(forward - 3600 * clock.SECOND) < clock.SECOND
    assert abs(back + 7200 * clock.SECOND) < clock.SECOND
    stamps = [record.ts_recv for record in journal.records(folder)]
    assert stamps == sorted(stamps)
    assert stamps[-1] - stamps[0] < 100 * clock.SECOND
    (gap,) = open_dataset(recorder.save_dataset("jumped")).gaps
    assert 0 < gap.end - gap.start < 100 * clock.SECOND


def steps(folder: Path) -> list[int]:
    return [int(str(n.facts["step"])) for n in notes(folder) if "step" in n.facts]
