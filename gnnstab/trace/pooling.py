"""Site statistics at several resolutions: what several rows of one series amount to together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
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


def gather(items: Iterable[SiteItem]) -> tuple[NDArray[np.float64], int]:
    """All waiting statistics as one matrix (n, 9) of level 0, one row per step and series.

    Items whose rows do not fit their ids are left out; the second result is how many rows that cost.
    """
    steps: list[int] = []
    ids: list[Sequence[int]] = []
    rows: list[NDArray[np.float64]] = []
    refused = 0
    for step, names, values in items:
        try:
            array = np.asarray(values, dtype=np.float64)
            if array.shape != (len(names), 5):
                raise ValueError(array.shape)
            step = whole(step)
        except (TypeError, ValueError, OverflowError):
            refused += len(names)
            continue
        steps.append(step)
        ids.append(names)
        rows.append(array)
    matrix = np.zeros((sum(map(len, rows)), 9))
    if len(matrix):
        matrix[:, STEP] = np.repeat(np.asarray(steps, dtype=np.float64), [len(array) for array in rows])
        matrix[:, SERIES] = np.fromiter(chain.from_iterable(ids), np.float64, len(matrix))
        matrix[:, SPAN] = 1.0
        matrix[:, MINIMUM:] = np.concatenate(rows)
        # These two are counts: NULL or Inf in them would make the whole transaction fail.
        matrix[:, COUNT] = np.nan_to_num(matrix[:, COUNT], nan=0.0, posinf=0.0, neginf=0.0)
        matrix[:, NON_FINITE] = np.nan_to_num(matrix[:, NON_FINITE], nan=-1.0, posinf=-1.0, neginf=-1.0)
    pooled = _pool(matrix)
    pooled[:, SPAN] = 1.0  # Several calls for one step are still one step.
    return pooled, refused


def coarser(rows: NDArray[np.float64], level: int) -> NDArray[np.float64]:
    """Rows of ``level - 1``, or of several flushes, pooled to ``level``: one row per bucket, series and part.

    A bucket starts at a multiple of ``FACTOR ** level`` steps. Its finite rows (part 0) and its rows with NaN or Inf
    (part 1) stay apart, since pooling the two would hide the largest finite value.
    """
    stride = float(FACTOR**level)
    rows = rows.copy()
    rows[:, STEP] = np.floor(rows[:, STEP] / stride) * stride
    rows[:, PART] = ~np.isfinite(rows[:, MINIMUM : RMS + 1]).all(axis=1)
    return _pool(rows)


def _pool(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of the same step, series and part as one: extremes of extremes, RMS by count, sums of the counts."""
    rows = rows[np.lexsort((rows[:, PART], rows[:, SERIES], rows[:, STEP]))]
    changes = (rows[1:, : PART + 1] != rows[:-1, : PART + 1]).any(axis=1)
    if changes.all():
        return rows
    starts = np.flatnonzero(np.r_[True, changes])
    pooled = rows[starts]
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
