"""`tapelab update`: every day's chores in one call, which may be repeated as often as one likes.

Recordings whose program died are finished; flat files that are new or that the vendor replaced come into the
lake; what REST gave before its day was final is asked for again; recordings with open gaps are healed, until
the source has said its last about them. A chore that fails does not stop the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path

import tapelab as tl
from tapelab.errors import NoData, TapelabError
from tapelab.live.heal import heal_from
from tapelab.live.lookup import History
from tapelab.live.session import parts_of, settle
from tapelab.market import clock, sessions
from tapelab.market.symbols import Market
from tapelab.massive.wire.catalogue import kind_named
from tapelab.settings import Settings, current
from tapelab.store.datasets import manifest
from tapelab.store.datasets.dataset import Dataset, folder_of, open_dataset
from tapelab.store.datasets.manifest import Manifest
from tapelab.store.lake import inspection

KEPT_UP = timedelta(days=31)  # a product whose last file is older is a study of its time, not kept up to date
TOGETHER = timedelta(days=4)  # days that lie closer, as those around a weekend, are asked for in one go


@dataclass(frozen=True)
class Done:
    """One chore: what was looked at, what was done (empty: there was nothing to do), what failed.

    `note` is worth knowing whatever was done.
    """

    chore: str
    what: str
    did: str = ""
    failed: str = ""
    note: str = ""

    def __str__(self) -> str:
        said = self.failed or self.did or "nothing to do"
        return f"{self.chore:>11}  {self.what}: {said}" + (f" ({self.note})" if self.note else "")


def update(settings: Settings) -> Iterator[Done]:
    """Do what is due, and tell of each chore when it is over; what one of them raises is in `failed`."""
    lake = settings.root / "lake"
    for path in _recordings(folder_of(settings)):
        yield _done("recording", path.name, partial(_finish, path))
    for product, days in inspection.products(lake).items():
        done = _done("flat files", product, partial(_sync, product, days))
        stale = (
            ""
            if _is_kept_up(product, days)
            else f"its last file is of {days[-1]}; `tapelab sync` brings more"
        )
        yield replace(done, note=stale)
    for (symbol, base), days in inspection.provisional(lake).items():
        what = f"{symbol}, {base} bars"
        yield _done("provisional", what, partial(_fetch_again, symbol, base, days))
    for path in _recordings(folder_of(settings)):
        yield _done("gaps", path.name, partial(_heal, path))


def _done(chore: str, what: str, work: Callable[[], str]) -> Done:
    try:
        return Done(chore, what, work())
    except TapelabError as error:
        return Done(chore, what, failed=str(error))


def _recordings(folder: Path) -> list[Path]:
    """The datasets that were recorded, each session's once."""
    found = [path for path in sorted(folder.iterdir()) if _recorded(path)] if folder.is_dir() else []
    later = {part for path in found if _session(path) for part in parts_of(path)[1:]}
    return [path for path in found if path not in later]


def _manifest(path: Path) -> Manifest | None:
    try:
        return manifest.load(path) if manifest.versions(path) else None
    except TapelabError:
        return None


def _recorded(path: Path) -> bool:
    known = _manifest(path)
    return known is not None and known.provenance.get("source") == "live"


def _session(path: Path) -> bool:
    known = _manifest(path)
    return known is not None and "session" in known.provenance


def _finish(path: Path) -> str:
    """A recording whose program died, put in order; a session's recordings as one."""
    before = (manifest.versions(path), len(parts_of(path)))
    if not _session(path):
        return "finished" if before[0][-1] == 0 and not open_dataset(path).growing else ""
    whole = settle(path)
    if whole is None or before == (manifest.versions(path), len(parts_of(path))):
        return ""
    return f"{before[1]} recordings are one dataset" if before[1] > 1 else "finished"


def _sync(product: str, days: Sequence[date]) -> str:
    """The files that are here, had again where the vendor replaced them, and those that came since."""
    stretches = _stretches(days)
    if _is_kept_up(product, days):
        stretches[-1] = (stretches[-1][0], _today(product))
    reports = [tl.sync_flat_files(product, first, last) for first, last in stretches]
    brought, again = (sum(len(getattr(r, name)) for r in reports) for name in ("brought", "replaced"))
    return f"{brought} files, of which the vendor had replaced {again}" if brought else ""


def _is_kept_up(product: str, days: Sequence[date]) -> bool:
    return _today(product) - days[-1] <= KEPT_UP


def _today(product: str) -> date:
    return clock.today(sessions.zone(kind_named(product).market))


def _stretches(days: Sequence[date]) -> list[tuple[date, date]]:
    begins = [days[0], *(after for before, after in pairwise(days) if after - before > TOGETHER)]
    ends = [*(before for before, after in pairwise(days) if after - before > TOGETHER), days[-1]]
    return list(zip(begins, ends, strict=True))


def _fetch_again(symbol: str, base: str, days: Sequence[date]) -> str:
    """Bars that were asked for while their day was not final yet."""
    for first, last in _stretches(days):
        with contextlib.suppress(NoData):
            tl.fetch_data(symbol, first, last, base, "rest", adjust="none", frame="arrow")
    left = inspection.provisional(current().root / "lake").get((symbol, base), [])
    return f"{len(days) - len(left)} days are final now" if len(left) < len(days) else ""


def _heal(path: Path) -> str:
    dataset = open_dataset(path)
    if dataset.growing or dataset.market is not Market.STOCKS or not _is_open(dataset):
        return ""
    healing = heal_from(dataset, History(), again=False)
    if healing.dataset.version == dataset.version:
        return ""
    left = f", {len(healing.open)} are still open" if healing.open else ""
    return f"{healing.added:,} rows filled in{left}"


def _is_open(dataset: Dataset) -> bool:
    """Whether it has gaps of which the source has not said its last."""
    asked = {(one.start, one.end) for one in dataset.filled}
    new = any((gap.start, gap.end) not in asked for gap in dataset.gaps)
    return new or not all(one.final for one in dataset.filled)
