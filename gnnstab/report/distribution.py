"""The distribution of one head's scores, read from whatever the measurement left behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gnnstab.records import Signal
from gnnstab.records.vocabulary import SCORE_MAX, SCORE_MAX_ABS, SCORE_MIN, SCORE_STD

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The pre-softmax scores of one head, as finely as they were recorded."""

    head: int | None
    low: float
    high: float
    edges: Array
    """Bin edges of a histogram, shape (bins + 1,); empty when none was recorded."""

    counts: Array
    """Entries per bin, shape (bins,)."""

    std: float = math.nan

    @property
    def middle(self) -> float:
        """Mean of the histogram, else the middle of the range."""
        if len(self.edges) and self.counts.sum() > 0:
            return float(np.average((self.edges[1:] + self.edges[:-1]) / 2, weights=self.counts))
        return (self.low + self.high) / 2


def distribution(signals: list[Signal], head: int | None) -> Distribution | None:
    """Put the ``score.*`` numbers of one head together; None when they hold no finite range.

    The finest record wins: ``detail["histogram"]``, then minimum and maximum.
    """
    values = {s.name: s.value for s in signals}
    edges, counts = _histogram(next((s.detail["histogram"] for s in signals if "histogram" in s.detail), None))
    bound = values.get(SCORE_MAX_ABS, math.nan)
    low, high = values.get(SCORE_MIN, -bound), values.get(SCORE_MAX, bound)
    if len(edges):
        low, high = float(edges[0]), float(edges[-1])
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Distribution(head, low, high, edges, counts, values.get(SCORE_STD, math.nan))


def _histogram(raw: object) -> tuple[Array, Array]:
    """Edges and counts of ``{"low": …, "high": …, "counts": (n)}``, bins of one width; empty for anything else."""
    nothing = np.empty(0), np.empty(0)
    if not isinstance(raw, Mapping):
        return nothing
    try:
        counts = np.asarray(raw["counts"], dtype=np.float64)
        with np.errstate(all="ignore"):  # a range wider than the largest number becomes Inf and is refused
            edges = np.linspace(float(raw["low"]), float(raw["high"]), len(counts) + 1)
    except (KeyError, TypeError, ValueError, OverflowError):
        return nothing
    sound = counts.ndim == 1 and len(counts) and np.isfinite(edges).all() and np.isfinite(counts).all()
    return (edges, counts) if sound and edges[-1] > edges[0] else nothing
