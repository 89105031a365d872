"""Marks: labelled stretches of a dataset, such as a regime or an announcement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tapelab.errors import BadRange, StoreError, UnknownName, UsageError
from tapelab.market import clock, ranges
from tapelab.market.ranges import Moment
from tapelab.store.datasets import manifest
from tapelab.store.datasets.manifest import Mark

if TYPE_CHECKING:
    from tapelab.store.datasets.dataset import Dataset


def made(dataset: Dataset, label: str, start: Moment, end: Moment, symbol: str, fitted_on: str) -> Mark:
    """A mark, from what a user wrote."""
    first, last = ranges.bounds(start, end, dataset.market)
    return Mark(label.strip(), first, last, symbol, fitted_on)


def marked(dataset: Dataset, marks: Sequence[Mark]) -> Dataset:
    """The dataset with marks added, as one new version; those that it has already are not added again."""
    if dataset.growing:
        raise StoreError(f"{dataset.name} is still recorded.", remedy="Mark it when it has ended.")
    for mark in marks:
        _check(dataset, mark)
    new = [mark for mark in dict.fromkeys(marks) if mark not in dataset.marks]
    if not new:
        return dataset
    labels = ", ".join(dict.fromkeys(mark.label for mark in new))
    every = tuple(sorted((*dataset.marks, *new), key=lambda mark: (mark.start, mark.end, mark.symbol)))
    known = manifest.next_version(dataset.path, dataset._manifest, change=f"marked {labels}", marks=every)
    return type(dataset)(dataset.path, known)


def _check(dataset: Dataset, mark: Mark) -> None:
    if not mark.label:
        raise UsageError(
            "A mark needs a label.", remedy="Say what the stretch is, such as 'opening auction'."
        )
    if mark.symbol and mark.symbol not in dataset.symbols:
        raise UnknownName.among("symbol", mark.symbol, dataset.symbols)
    seen = dataset._manifest.symbols.values()
    first, last = min((s.first for s in seen), default=0), max((s.last for s in seen), default=0)
    if mark.start >= mark.end or mark.start > last or mark.end <= first:
        raise BadRange(
            f"{clock.iso(mark.start)} to {clock.iso(mark.end)} is no stretch of {dataset.name}.",
            remedy=f"It goes from {clock.iso(first)} to {clock.iso(last)}.",
        )
