"""What is waiting to be written, in the form the store writes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import Blind, Event, LayerFacts, Measure, SeriesKey, StepRow

SiteRows = Sequence[tuple[float, float, float, int, int]] | NDArray[np.float64]
"""Per series: minimum, maximum, rms, count, non_finite; a sequence of tuples or an array of shape (K, 5)."""

SiteItem = tuple[int, Sequence[int], SiteRows]
"""Step, ids of the series, shape (K,), and their rows."""


@dataclass
class Facts:
    """What a trace says about the run as a whole; kept for the life of the writer, to begin a new file if need be."""

    meta: dict[str, str] = field(default_factory=dict)
    layers: dict[str, LayerFacts] = field(default_factory=dict)
    blind: dict[tuple[str, str], Blind] = field(default_factory=dict)
    series: dict[int, SeriesKey] = field(default_factory=dict)
    quantities: dict[int, tuple[str, str, int, str, int]] = field(default_factory=dict)
    """Id → layer, mode, call, name, head of a stream of measures."""

    def update(self, other: Facts) -> None:
        """Take over everything from ``other``; the newer value of a key stays."""
        self.meta.update(other.meta)
        self.layers.update(other.layers)
        self.blind.update(other.blind)
        self.series.update(other.series)
        self.quantities.update(other.quantities)

    def __bool__(self) -> bool:
        return bool(self.meta or self.layers or self.blind or self.series or self.quantities)


@dataclass
class Batch:
    """Rows on their way into the store; the oldest are given up first when it cannot be written."""

    facts: Facts = field(default_factory=Facts)
    events: list[Event] = field(default_factory=list)
    sites: deque[SiteItem] = field(default_factory=deque)
    steps: deque[StepRow] = field(default_factory=deque)
    measures: deque[Measure] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return bool(self.facts or self.events or self.sites or self.steps or self.measures)

    def shrink(self, sites: int, rows: int) -> int:
        """Drop the oldest beyond ``sites`` calls and ``rows`` rows of each other kind; return how many rows that cost."""
        dropped = 0
        while len(self.sites) > sites:
            dropped += len(self.sites.popleft()[1])
        for queue in (self.steps, self.measures):
            while len(queue) > rows:
                queue.popleft()
                dropped += 1
        return dropped


def site_matrix(items: Iterable[SiteItem]) -> tuple[NDArray[np.float64], int]:
    """All items as one matrix (n, 8): step, series, span, minimum, maximum, rms, count, non_finite; sorted by both keys.

    Items whose rows do not fit their ids are left out; the second result is how many rows that cost.
    """
    steps: list[int] = []
    lengths: list[int] = []
    ids: list[Sequence[int]] = []
    rows: list[NDArray[np.float64]] = []
    refused = 0
    for step, names, values in items:
        try:
            array = np.asarray(values, dtype=np.float64)
            if array.shape != (len(names), 5):
                raise ValueError(array.shape)
        except (TypeError, ValueError):
            refused += len(names)
            continue
        steps.append(step)
        lengths.append(len(names))
        ids.append(names)
        rows.append(array)
    matrix = np.empty((sum(lengths), 8))
    if len(matrix):
        matrix[:, 0] = np.repeat(np.asarray(steps, dtype=np.float64), lengths)
        matrix[:, 1] = np.fromiter(chain.from_iterable(ids), np.float64, len(matrix))
        matrix[:, 2] = 1.0
        matrix[:, 3:] = np.concatenate(rows)
        # These two are counts: NULL or Inf in them would make the whole transaction fail.
        matrix[:, 6] = np.nan_to_num(matrix[:, 6], nan=0.0, posinf=0.0, neginf=0.0)
        matrix[:, 7] = np.nan_to_num(matrix[:, 7], nan=-1.0, posinf=-1.0, neginf=-1.0)
    return matrix[np.lexsort((matrix[:, 1], matrix[:, 0]))], refused


def flat_chunks(rows: Sequence[tuple[Any, ...]], size: int) -> Iterable[tuple[int, list[Any]]]:
    """Cut rows into groups of at most ``size`` and flatten each: (rows in the group, all their values)."""
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        yield len(group), list(chain.from_iterable(group))
