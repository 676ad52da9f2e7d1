"""Site statistics at several resolutions: what several rows of one series amount to together."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.trace.batch import SiteItem
from gnnstab.trace.codec import whole

if TYPE_CHECKING:
    from numpy.typing import NDArray

FACTOR = 8
"""Steps of one level that make one row of the next: a seventh more rows in all, and three levels span 512 steps."""

LEVELS = 6
"""Levels of resolution; a row of the last one covers 32 768 steps."""

STEP, SERIES, PART, SPAN, MINIMUM, MAXIMUM, RMS, COUNT, NON_FINITE = range(9)
"""Columns of a matrix of rows, in the order of the table statistic after its level."""


SHARED_SITES = ("weight_grad",)
"""Sites whose rows of level 0 cover up to ``FACTOR`` steps that are written together.

More than half of a step's rows are gradients of single parameters. What they tell step by step, the gradient norm of the
step and the gradients of the activations tell as well, and a non-finite one is named by an event with its step.
"""


def gather(items: Iterable[SiteItem], shared: Collection[int] = ()) -> tuple[NDArray[np.float64], int]:
    """All waiting statistics as one matrix (n, 9) of level 0: one row per step and series, fewer of ``shared`` series.

    Items whose rows do not fit their ids are left out; the second result is how many rows that cost.
    """
    steps: list[int] = []
    ids: list[NDArray[np.float64]] = []
    rows: list[NDArray[np.float64]] = []
    refused = 0
    last: tuple[Sequence[int], NDArray[np.float64]] = ((), np.empty(0))
    for step, names, values in items:
        try:
            array = np.asarray(values, dtype=np.float64)
            if array.shape != (len(names), 5):
                raise ValueError(array.shape)
            step = whole(step)
            if names is not last[0]:  # The same few tuples come again at every step.
                last = (names, np.asarray(names, dtype=np.float64))
        except (TypeError, ValueError, OverflowError):
            refused += len(names)
            continue
        steps.append(step)
        ids.append(last[1])
        rows.append(array)
    matrix = np.zeros((sum(map(len, rows)), 9))
    if len(matrix):
        matrix[:, STEP] = np.repeat(np.asarray(steps, dtype=np.float64), [len(array) for array in rows])
        matrix[:, SERIES] = np.concatenate(ids)
        matrix[:, SPAN] = 1.0
        matrix[:, MINIMUM:] = np.concatenate(rows)
        # These two are counts: NULL or Inf in them would make the whole transaction fail.
        matrix[:, COUNT] = np.nan_to_num(matrix[:, COUNT], nan=0.0, posinf=0.0, neginf=0.0)
        matrix[:, NON_FINITE] = np.nan_to_num(matrix[:, NON_FINITE], nan=-1.0, posinf=-1.0, neginf=-1.0)
    pooled = _pool(matrix)
    pooled[:, SPAN] = 1.0  # Several calls for one step are still one step.
    together = np.isin(pooled[:, SERIES], list(shared))
    if together.any():
        pooled = np.concatenate([pooled[~together], _pool_steps(pooled[together], FACTOR)])
    return pooled, refused


def coarser(rows: NDArray[np.float64], level: int) -> NDArray[np.float64]:
    """Rows of ``level - 1``, or of several flushes, pooled to ``level``: one row per bucket, series and part.

    A bucket starts at a multiple of ``FACTOR ** level`` steps. Its finite rows (part 0) and its rows with NaN or Inf
    (part 1) stay apart, since pooling the two would hide the largest finite value.
    """
    stride = FACTOR**level
    pooled = _pool_steps(rows, stride)
    pooled[:, STEP] = np.floor(pooled[:, STEP] / stride) * stride
    return pooled


@dataclass(frozen=True)
class Waiting:
    """Rows of the coarser levels whose buckets are not over yet: until then the finer level has their steps."""

    newest: float = -math.inf
    """Latest step so far."""

    rows: tuple[NDArray[np.float64], ...] = field(default_factory=lambda: (np.empty((0, 9)),) * (LEVELS - 1))
    """Per level from 1 on, (n, 9)."""

    def add(self, rows: NDArray[np.float64]) -> tuple[list[NDArray[np.float64]], Waiting]:
        """Take in rows of level 0; what is to be written of the levels from 1 on, and what waits then."""
        newest = max(self.newest, rows[:, STEP].max(initial=-math.inf))
        over, waiting = [], []
        for level, kept in enumerate(self.rows, start=1):
            if len(rows):
                kept = coarser(np.concatenate([kept, rows]), level)
            ends = kept[:, STEP] + FACTOR**level <= newest
            rows = kept[ends]
            over.append(rows)
            waiting.append(kept[~ends])
        return over, Waiting(newest, tuple(waiting))


def _pool_steps(rows: NDArray[np.float64], stride: int) -> NDArray[np.float64]:
    """One row per bucket of ``stride`` steps, series and part, at the first step that is in it."""
    rows = rows.copy()
    rows[:, PART] = ~np.isfinite(rows[:, MINIMUM : RMS + 1]).all(axis=1)
    return _pool(rows, stride)


def _pool(rows: NDArray[np.float64], stride: int = 1) -> NDArray[np.float64]:
    """Rows of the same bucket, series and part as one: extremes of extremes, RMS by count, sums of the counts."""
    keys = (rows[:, PART], rows[:, SERIES], rows[:, STEP] if stride == 1 else np.floor(rows[:, STEP] / stride))
    order = np.lexsort(keys)
    rows = rows[order]
    part, series, bucket = (key[order] for key in keys)
    changes = (part[1:] != part[:-1]) | (series[1:] != series[:-1]) | (bucket[1:] != bucket[:-1])
    if changes.all():
        return rows
    starts = np.flatnonzero(np.r_[True, changes])
    pooled = rows[starts]
    pooled[:, STEP] = np.minimum.reduceat(rows[:, STEP], starts)
    pooled[:, SPAN] = np.add.reduceat(rows[:, SPAN], starts)
    pooled[:, MINIMUM] = np.minimum.reduceat(rows[:, MINIMUM], starts)
    pooled[:, MAXIMUM] = np.maximum.reduceat(rows[:, MAXIMUM], starts)
    pooled[:, COUNT] = np.add.reduceat(rows[:, COUNT], starts)
    pooled[:, RMS] = _pooled_rms(rows, starts, pooled[:, COUNT])
    unknown = np.minimum.reduceat(rows[:, NON_FINITE], starts) < 0
    pooled[:, NON_FINITE] = np.where(unknown, -1.0, np.add.reduceat(rows[:, NON_FINITE], starts))
    return pooled


def _pooled_rms(
    rows: NDArray[np.float64], starts: NDArray[np.intp], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """RMS over all entries; every square is taken relative to the largest RMS, so that none overflows."""
    largest = np.maximum.reduceat(rows[:, RMS], starts)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = rows[:, RMS] / np.repeat(largest, np.diff(np.r_[starts, len(rows)]))
        pooled = largest * np.sqrt(np.add.reduceat(rows[:, COUNT] * relative**2, starts) / counts)
    plain = (largest > 0) & np.isfinite(largest) & (counts > 0)
    return np.where(plain, pooled, largest)
