"""The last values of every series of a run, for rules that follow it step by step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gnnstab.records import Series, SeriesKey
from gnnstab.signals.fitting import BLOCK, BLOCKS, HALF, lasting_growth, log_linear, slow_growth

if TYPE_CHECKING:
    from numpy.typing import NDArray

ONE_HOT = math.log(float(np.finfo(np.float32).max))
"""Spread of the scores of a target, 88.7, from which on a softmax of fp32 is one-hot to its last bit, and hands no gradient back."""

WINDOW = 32
"""Values kept per series."""

WARM_UP = 10
"""Steps before anything is judged against a median: the first losses and gradients of a network are no measure."""


@dataclass(slots=True)
class Track:
    """The last values of one series, and what it looked like at the beginning."""

    values: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    steps: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    """The step of each value: a schedule may leave steps out."""

    first: list[float] = field(default_factory=list)
    best: float = math.inf
    before: float = 0.0
    """Largest earlier value."""

    lowest: float = math.inf
    """Smallest value so far."""

    def add(self, step: int, value: float) -> None:
        if self.values:
            self.before = max(self.before, abs(self.values[-1]))
        self.lowest = min(self.lowest, value)
        if len(self.first) < WARM_UP:
            self.first.append(value)
        self.values.append(value)
        self.steps.append(step)

    def extend(self, steps: Sequence[int], values: Sequence[float], largest: float) -> None:
        """Add finite values that nobody judged; ``largest`` is the largest of them and of others that were left out."""
        if self.values:
            self.before = max(self.before, abs(self.values[-1]))
        self.before = max(self.before, largest)
        self.values.extend(values)
        self.steps.extend(steps)

    @property
    def start(self) -> float:
        """Median of the first values."""
        return median(self.first)

    @property
    def middle(self) -> float:
        """Median of the window without its last value."""
        return median(list(self.values)[:-1])

    @property
    def ready(self) -> bool:
        return len(self.values) > WARM_UP

    def learned(self, lasts: int) -> bool:
        """True where a positive loss lies at half of what it began with, or below, by the median of its last values."""
        return self.ready and self.lowest > 0 and median(list(self.values)[-lasts:]) <= HALF * self.start

    def growth(self) -> tuple[float, float]:
        """Slope of ln(value) per step over the window, and its standard error."""
        fitted = log_linear(self.steps, self.values, WARM_UP + 1)
        return (0.0, math.inf) if fitted is None else (fitted.slope, fitted.error)

    @property
    def gap(self) -> int:
        """Steps between the latest two values; what kernels hide is measured in full steps alone, and no jump between those."""
        return self.steps[-1] - self.steps[-2] if len(self.steps) > 1 else 0

    def lasting_growth(self, span: int = WINDOW, least: int = WINDOW) -> float:
        """Growth of ln|value| per step over the window that does not end by itself; 0.0 for none, before ``span`` steps, and for fewer than ``least`` values."""
        spanned = bool(self.steps) and self.steps[-1] - self.steps[0] >= span - 1
        return lasting_growth(self.steps, self.values, least) if spanned else 0.0


def series_of(tracks: Mapping[SeriesKey | str, Track]) -> tuple[Series, ...]:
    """The values that are kept of each, as signals of a trace are called."""
    found = []
    for key, track in tracks.items():
        layer = key.layer if isinstance(key, SeriesKey) else None
        name = key if isinstance(key, str) else "score.max_abs" if key.site == "score" else "output.rms"
        found.append(Series(name, layer, None, np.array(track.steps), np.array(track.values)))
    return tuple(found)


class Blocks:
    """The medians of a positive series by blocks, for growth that single steps hide in their noise."""

    def __init__(self) -> None:
        self._open: list[float] = []
        self._first, self._growth = math.inf, 0.0
        self._steps: deque[int] = deque(maxlen=BLOCKS)
        self._medians: deque[float] = deque(maxlen=BLOCKS)
        self._losses: deque[list[float]] = deque(maxlen=BLOCKS)

    def growth(self, step: int, value: float) -> float:
        """Add a value; growth per step where this one closes a block and the last blocks grow, as those before it did, 0.0 otherwise."""
        self._open.append(value)
        if len(self._open) < BLOCK:
            return 0.0
        self._steps.append(step)
        self._medians.append(median(self._open))
        self._losses.append(self._open)
        self._open = []
        self._first = self._medians[0] if math.isinf(self._first) else self._first
        before, self._growth = self._growth, slow_growth(self._steps, self._medians, self._first, self._losses)
        return min(before, self._growth)


class Quiet:
    """Steps in which nothing was large enough for any rule: kept as they came until a later step needs them."""

    def __init__(self) -> None:
        self.keys: Sequence[SeriesKey] = ()
        self.limits: list[float] = []
        """(K,) what a rule has something to say from, by series."""

        self._largest: NDArray[np.float64] | float = 0.0
        """Of the values that are held no longer; all are sizes."""

        self._held: list[tuple[int, NDArray[np.float64]]] = []

    def add(self, step: int, values: NDArray[np.float64]) -> None:
        self._held.append((step, values))
        if len(self._held) == 2 * WINDOW:
            self._forget(self._held[:WINDOW])

    def hand_over(self, tracks: Mapping[SeriesKey | str, Track]) -> None:
        """Put everything that is held where it belongs."""
        if not self._held:
            return
        latest = self._held[-WINDOW:]
        self._forget(self._held)
        columns = np.stack([values for _, values in latest]).T.tolist()
        for key, column, largest in zip(self.keys, columns, np.asarray(self._largest).tolist(), strict=True):
            tracks[key].extend([step for step, _ in latest], column, largest)
        self._largest = 0.0

    def _forget(self, held: Sequence[tuple[int, NDArray[np.float64]]]) -> None:
        self._largest = np.maximum(self._largest, np.max([values for _, values in held], axis=0))
        self._held = self._held[len(held) :]


def median(values: Sequence[float]) -> float:
    """The upper median; 0 of nothing."""
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else 0.0
