"""Which rows of a run count: the mode that is judged, the latest rows, and series thinned to what a report can draw."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Floats: TypeAlias = "NDArray[np.float64]"
Integers: TypeAlias = "NDArray[np.int64]"

MODES = ("train", "eval-grad", "eval", "train-nograd")
"""Which mode of a layer is judged when it ran in several, best first: that of the update carries gradients."""

LATEST = 5
"""Measurements of the full tier, of the later half of a run at most, whose median stands for its end."""

LATEST_STEPS = 20
"""Steps of the light tier whose median stands for the end of a run."""

MOST_POINTS = 1000
"""Points of a series at most; a bucket of steps keeps its extreme, so that no peak disappears."""


def best_mode(modes: Iterable[str]) -> str:
    """The mode that is judged among those that occur; unknown ones come last."""
    return min(set(modes), key=lambda mode: (MODES.index(mode) if mode in MODES else len(MODES), mode))


def latest(values: Floats, most: int = LATEST) -> float:
    """Median of the last finite values, of ``values`` (n,) in order of steps; NaN when none is finite."""
    finite = values[np.isfinite(values)]
    return float(median(finite[-most:])) if len(finite) else float("nan")


def median(values: Floats) -> Floats:
    """Median over the last axis; unlike `numpy.median` it looks for no masked arrays, whose import takes longer than it."""
    ordered, middle = np.sort(values, axis=-1), values.shape[-1] // 2
    high, low = ordered[..., middle], ordered[..., middle - 1 + values.shape[-1] % 2]
    return np.asarray(np.where(high == low, high, low / 2 + high / 2))


def thin(steps: Integers, values: Floats, *, lowest: bool = False) -> tuple[Integers, Floats]:
    """At most `MOST_POINTS` points: of every bucket the largest finite value (``lowest``: the smallest) with its step."""
    if len(steps) <= MOST_POINTS:
        return steps, values
    finite = np.isfinite(values)
    rank = np.where(finite, values if lowest else -values, np.inf)
    # Sorted by bucket, within it by value, and of equal ones by step: the first of each bucket is picked.
    bucket = np.arange(len(steps)) * MOST_POINTS // len(steps)
    order = np.lexsort((rank, bucket))
    chosen = order[np.r_[True, np.diff(bucket) > 0]]
    return steps[chosen], values[chosen]
