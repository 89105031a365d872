"""One dataset for each session, whatever happens to the recorder meanwhile.

A recording that was killed is gone on with in its own journal. One that was ended in order, as a reboot does,
is a finished dataset; what follows it in the same session is recorded beside it (`<name>-2`, …) and put
behind it when the session is over. Either way what was missed is a declared gap.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path

from tapelab.errors import Locked
from tapelab.live.recorder import WebSocketDataRecorder, provenance_of, write_bars
from tapelab.live.schedule import Slot
from tapelab.market import clock
from tapelab.market.intervals import Interval
from tapelab.settings import Settings
from tapelab.store import files
from tapelab.store.datasets import catalogue, growing, manifest
from tapelab.store.datasets.dataset import Dataset
from tapelab.store.datasets.growing import Growing
from tapelab.store.datasets.manifest import Lost
from tapelab.store.journal.segments import Lock

NOT_RUNNING = "not_running"  # the cause of a gap in which no recorder ran
MOST_TRADES = 20_000_000  # of a session whose bars are laid beside it; of more they would not fit in memory
UNHEARD = clock.MINUTE  # a recording that ended by so much before the close ended early


class SessionRecorder(WebSocketDataRecorder):
    """Records one session, or what is left of it, into its dataset.

    Raises `Locked` on `start` while another program records into it.
    """

    def __init__(
        self,
        symbols: str | Sequence[str],
        slot: Slot,
        *,
        channels: Sequence[str] = ("quotes", "trades"),
        save_dir: str | Path | None = None,
        settings: Settings | None = None,
    ) -> None:
        super().__init__(symbols, channels=channels, save_dir=save_dir, settings=settings)
        self.slot = slot
        self._continued = False

    def _create(self, leader: Path | None) -> Growing:
        parts = parts_of(self._parent / self.slot.name)
        if parts and leader is None:
            grows = growing.cut_short(parts[-1])
            self._continued = grows is not None
            if grows is not None:
                return grows
        now = clock.now()
        missed = self.slot.opens
        if parts:
            last = growing.finish_killed(parts[-1])
            if last.version == 0:
                raise Locked(f"{parts[-1].name} is recorded already.", remedy="Stop the other recorder.")
            missed = last.ended or last.begun
        gaps = (Lost(missed, now, NOT_RUNNING, self.channels),) if missed < now else ()
        slot = self.slot
        session = {"date": slot.session.date.isoformat(), "opens": slot.opens, "closes": slot.closes}
        return growing.create(
            self._parent,
            slot.name,
            provenance={**provenance_of(self._settings, self.market, self.channels), "session": session},
            following=leader,
            topics=self._topics(),
            gaps=gaps,
        )

    def _discard(self, grows: Growing) -> None:
        if self._continued:
            grows.close()
        else:
            super()._discard(grows)

    def _finish(self, grows: Growing) -> Dataset:
        return Dataset(grows.folder, grows.finish())  # that a session was silent is worth knowing


def parts_of(first: Path) -> list[Path]:
    """The folders of a session's recordings, in order; the first bears its name."""
    names = (first if n == 1 else first.with_name(f"{first.name}-{n}") for n in count(1))
    return list(takewhile(manifest.versions, names))


def settle(first: Path, tags: Sequence[str] = ()) -> Dataset | None:
    """Make one tagged dataset of a session's recordings; on one that is settled it changes nothing.

    None where there is none, or while one is still recorded. Raises `Locked` while another process does it.
    """
    if not parts_of(first):
        return None
    with Lock(first.with_name(f".{first.name}.lock")):
        return _settle(first, tags)


def _settle(first: Path, tags: Sequence[str]) -> Dataset | None:
    parts = []
    for folder in parts_of(first):
        known = growing.finish_killed(folder)
        if known.version == 0:
            return None
        parts.append(Dataset(folder, known))
    connected = [part for part in parts if part.provenance.get("url")] or parts[:1]
    whole, *others = connected
    unknown: list[Lost] = []
    for part in parts:
        if part not in connected:  # killed before it heard anything
            unknown += part._manifest.gaps
            shutil.rmtree(part.path)
    if whole.path != first:
        whole.path.rename(first)
        files.sync_folder(first.parent)
        whole = Dataset(first, whole._manifest)
    for part in others:
        held = {segment.sha256 for segment in whole._manifest.segments}
        if not held.issuperset(segment.sha256 for segment in part._manifest.segments):
            whole = catalogue.append(whole, part)
        shutil.rmtree(part.path)
    if unknown:
        whole = _lost(whole, *unknown)
    whole = _ended_early(whole)
    trades = sum(seen.trades for seen in whole._manifest.symbols.values())
    if whole.symbols and trades < MOST_TRADES and (others or not (first / "bars_1min.parquet").exists()):
        write_bars(whole, Interval.parse("1min"))
    return whole.tag(*tags) if tags else whole


def _ended_early(whole: Dataset) -> Dataset:
    """Declare what is missing at the end of a session that is over."""
    known = whole._manifest
    session = known.provenance.get("session")
    closes = session.get("closes", 0) if isinstance(session, dict) else 0
    declared = max((gap.end for gap in known.gaps), default=0)
    if not known.ended or clock.now() < closes or max(known.ended, declared) > closes - UNHEARD:
        return whole
    channels = tuple(str(channel) for channel in whole.provenance.get("channels", ()))
    return _lost(whole, Lost(known.ended, closes, NOT_RUNNING, channels))


def _lost(whole: Dataset, *more: Lost) -> Dataset:
    known = whole._manifest
    gaps = tuple(sorted((*known.gaps, *more), key=lambda gap: gap.start))
    return Dataset(whole.path, manifest.next_version(whole.path, known, gaps=gaps))
