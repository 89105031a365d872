"""What a recording listened to, and what its gaps are by the exchange's clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapelab.market import clock
from tapelab.massive.feed import CHANNELS
from tapelab.store.datasets import overlay
from tapelab.store.datasets.dataset import Dataset
from tapelab.store.datasets.manifest import Heard, Lost, Manifest
from tapelab.store.datasets.overlay import Around

MARGIN = 10 * clock.SECOND  # of the exchange's clock, which is not quite the order in which events come
CONNECTING = clock.MINUTE  # the most between a gap's end and topics that are confirmed
LIVE = clock.DAY  # a recording whose last event is further from our clock is a replay's
WILDCARD = "*"


@dataclass
class Missed:
    """A gap on one channel: whom it concerns, and from when to when by the exchange's clock."""

    start: int
    end: int
    around: Around
    symbols: frozenset[str]
    everybody: bool
    window: tuple[int, int] | None

    def concerns(self, symbol: str) -> bool:
        return self.everybody or symbol in self.symbols

    @property
    def key(self) -> tuple[int, int]:
        return self.start, self.end


@dataclass(frozen=True)
class Stretch:
    """The same topics listened to, gaps included, from `start` to `end` of the exchange's clock."""

    topics: frozenset[str]
    start: int
    end: int

    def symbols(self, kind: str) -> frozenset[str]:
        """Those of a channel; `*` for all there are."""
        prefix = f"{CHANNELS[kind]}."
        return frozenset(topic.removeprefix(prefix) for topic in self.topics if topic.startswith(prefix))

    def window(self, kind: str) -> tuple[int, int]:
        """From when to before when events of a channel belong to it; a bar comes at its end."""
        earlier = clock.MINUTE if kind == "bars" else 0
        return self.start - earlier, self.end + clock.MILLISECOND - earlier


class Listening:
    """The gaps of a dataset beside what was received around them."""

    def __init__(self, dataset: Dataset) -> None:
        self.known, self._path = dataset._manifest, dataset.path
        stretches = sorted({(gap.start, gap.end) for gap in self.known.gaps})
        runs = [_run_around(self.known, start, end) for start, end in stretches]
        edges = [(at, at) for run in runs for at in (run[0] - 1, run[1])]
        found = overlay.around(self._path, self.known, stretches + edges)
        self.around = dict(zip(stretches, found, strict=False))
        bounds = found[len(stretches) :]
        self.bounds = {key: (bounds[2 * n], bounds[2 * n + 1]) for n, key in enumerate(stretches)}

    def gaps(self, kind: str) -> list[Missed]:
        """The gaps of a channel by the exchange's clock; those of one stretch are one."""
        found: dict[tuple[int, int], Missed] = {}
        for lost in self.known.gaps:
            if lost.channels and kind not in lost.channels:
                continue
            symbols, everybody = _concerned(self.known, lost, kind)
            if not symbols and not everybody:
                continue
            key = (lost.start, lost.end)
            if key in found:
                symbols, everybody = symbols | found[key].symbols, everybody or found[key].everybody
            found[key] = Missed(*key, self.around[key], symbols, everybody, self._window(kind, key))
        return list(found.values())

    def stretches(self) -> list[Stretch]:
        """What was listened to, oldest first; a change of topics begins another."""
        heard = _joined(self.known) or [Heard(_topics_seen(self.known), self.known.begun, self.known.ended)]
        moments = [(at, at) for one in heard for at in (one.start - 1, one.end)]
        found = overlay.around(self._path, self.known, moments)
        stretches = []
        for one, opening, closing in zip(heard, found[::2], found[1::2], strict=True):
            known = [opening.first, closing.last]
            known += [
                at
                for kind in overlay.TICKS
                for gap in self.gaps(kind)
                if one.start <= _resumed(self.known, gap.end) and gap.start <= one.end
                for at in gap.window or ()
            ]
            clocks = [at for at in known if at is not None]
            if clocks and min(clocks) < max(clocks):
                stretches.append(Stretch(frozenset(one.topics), min(clocks), max(clocks)))
        return stretches

    def _window(self, kind: str, key: tuple[int, int]) -> tuple[int, int] | None:
        """What to ask for: the exchange's clock in the gap and a margin, within what was listened to."""
        around, (opening, closing) = self.around[key], self.bounds[key]
        lag = around.lag
        if lag is None and abs(self.known.ended - _last_event(self.known)) < LIVE:
            lag = 0
        began, ended = around.began, around.ended
        if lag is not None and abs(lag) < LIVE:
            began = key[0] - lag if began is None else began
            ended = key[1] - lag if ended is None else ended
        if ended is None and around.within.size:
            ended = int(around.within[2].max())
        if began is None or ended is None:
            return None
        start, end = began - MARGIN, ended + MARGIN
        if opening.first is not None:
            start = max(start, min(opening.first, began))
        if closing.last is not None:
            end = min(end, max(closing.last, ended))
        end += clock.MILLISECOND  # what was received lost what is below it
        if kind == "bars":  # a bar comes at its end
            start, end = start - clock.MINUTE, end - clock.MINUTE
        return (start, end) if start < end else None


def _concerned(known: Manifest, lost: Lost, kind: str) -> tuple[frozenset[str], bool]:
    """The symbols that were subscribed on a channel when a gap began; and whether it was all there are."""
    seen = frozenset(known.symbols)
    heard = _heard_at(known.heard, lost.start)
    if heard is None:
        channels = known.provenance.get("channels")
        told = not isinstance(channels, list) or kind in channels
        return (frozenset(lost.symbols) or seen, False) if told else (frozenset(), False)
    prefix = f"{CHANNELS[kind]}."
    names = frozenset(topic.removeprefix(prefix) for topic in heard.topics if topic.startswith(prefix))
    if lost.symbols:
        return frozenset(lost.symbols) if WILDCARD in names else names & frozenset(lost.symbols), False
    return (names - {WILDCARD}) | (seen if WILDCARD in names else frozenset()), WILDCARD in names


def _heard_at(heard: Sequence[Heard], moment: int) -> Heard | None:
    """What was subscribed at that moment, or before it, or else first of all."""
    earlier = [one for one in heard if one.start <= moment]
    return earlier[-1] if earlier else (heard[0] if heard else None)


def _run_around(known: Manifest, start: int, end: int) -> tuple[int, int]:
    """From when to when (our clock) was listened to around a gap, other gaps left aside."""
    runs: list[tuple[int, int]] = []
    stretches = sorted(
        [(h.start, h.end or known.ended) for h in known.heard]
        + [(g.start, _resumed(known, g.end)) for g in known.gaps]
    )
    for begin, stop in stretches:
        if runs and begin <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(runs[-1][1], stop))
        else:
            runs.append((begin, stop))
    if not known.heard:
        return known.begun, known.ended
    return next(run for run in runs if run[0] <= start and end <= run[1])


def _joined(known: Manifest) -> list[Heard]:
    """What was heard, the same topics on both sides of a gap as one."""
    found: list[Heard] = []
    for one in known.heard:
        last, end = (found[-1] if found else None), one.end or known.ended
        if (
            last is not None
            and set(last.topics) == set(one.topics)
            and _connected(known, last.end, one.start)
        ):
            found[-1] = Heard(last.topics, last.start, end)
        else:
            found.append(Heard(one.topics, one.start, end))
    return found


def _connected(known: Manifest, end: int, start: int) -> bool:
    return start <= end or any(gap.start <= end and start <= _resumed(known, gap.end) for gap in known.gaps)


def _resumed(known: Manifest, end: int) -> int:
    """When after the end of a gap the topics were confirmed; a recorder that begins late has to connect."""
    return min((h.start for h in known.heard if end <= h.start <= end + CONNECTING), default=end)


def _topics_seen(known: Manifest) -> tuple[str, ...]:
    channels = known.provenance.get("channels")
    kinds = [kind for kind in CHANNELS if not isinstance(channels, list) or kind in channels]
    return tuple(f"{CHANNELS[kind]}.{name}" for kind in kinds for name in known.symbols)


def clusters(gaps: Sequence[Missed]) -> list[list[Missed]]:
    """Gaps so close that one question covers them, in order; each that has no place stands alone."""
    found: list[list[Missed]] = []
    placed = [gap for gap in gaps if gap.window is not None]
    for gap in sorted(placed, key=lambda gap: gap.window or ()):
        if found and hull([gap])[0] <= hull(found[-1])[1]:
            found[-1].append(gap)
        else:
            found.append([gap])
    in_order = [sorted(cluster, key=lambda gap: gap.key) for cluster in found]
    return [*in_order, *([gap] for gap in gaps if gap.window is None)]


def hull(cluster: Sequence[Missed]) -> tuple[int, int]:
    windows = [gap.window for gap in cluster if gap.window is not None]
    return min(start for start, _ in windows), max(end for _, end in windows)


def names_of(cluster: Sequence[Missed]) -> list[str]:
    return sorted({name for gap in cluster for name in gap.symbols})


def _last_event(known: Manifest) -> int:
    return max((seen.last for seen in known.symbols.values()), default=0)
