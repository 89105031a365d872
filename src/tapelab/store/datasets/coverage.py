"""What a dataset holds of each symbol, and when anybody listened to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapelab.store.datasets.manifest import Heard, Manifest, Seen


@dataclass(frozen=True)
class Coverage:
    """What a dataset holds of one symbol.

    `quotes`, `trades`, `bars` count rows; `first` and `last` are the exchange's times of the first and last
    of them. `listened`: from when to when (our clock) the symbol was subscribed; inside these, and outside
    the gaps, no row means that nothing happened. Times are ns UTC.
    """

    quotes: int
    trades: int
    bars: int
    first: int
    last: int
    listened: tuple[tuple[int, int], ...]


def coverage_of(known: Manifest) -> dict[str, Coverage]:
    """By symbol, those that were asked for and never came included."""
    asked = {topic.split(".", 1)[1] for heard in known.heard for topic in heard.topics}
    return {
        name: Coverage(
            seen.quotes,
            seen.trades,
            seen.bars,
            seen.first,
            seen.last,
            _listened(known.heard, name, known.ended),
        )
        for name in sorted({*known.symbols, *asked} - {"*"})
        for seen in (known.symbols.get(name, Seen()),)
    }


def _listened(heard: Sequence[Heard], symbol: str, ended: int) -> tuple[tuple[int, int], ...]:
    stretches: list[tuple[int, int]] = []
    for one in heard:
        if not any(topic.split(".", 1)[1] in (symbol, "*") for topic in one.topics):
            continue
        end = one.end or ended
        if stretches and stretches[-1][1] == one.start:
            stretches[-1] = (stretches[-1][0], end)
        else:
            stretches.append((one.start, end))
    return tuple(stretches)
