"""How far a loss rose in the first steps, and whether the rise lasted: one reading for trial steps and for runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any, NamedTuple

LASTING = 1.25
"""× the first loss: a step above it has not come back."""


class Rise(NamedTuple):
    """The rise of a series of losses over its first."""

    largest: float
    """Largest later loss over the first; inf where one is not finite."""

    above: int
    """Number of later losses above `LASTING` × the first."""

    peak: int
    """Position of the largest, from 1."""


def rise_of(losses: Sequence[float]) -> Rise | None:
    """The rise of losses in order of steps; None where fewer than two are given or one is not positive, which has no ratio.

    What follows a loss that is not finite counts as not finite.
    """
    if len(losses) < 2 or not 0 < losses[0] < math.inf:
        return None
    later = [value if math.isfinite(value) else math.inf for value in losses[1:]]
    if min(later) <= 0:
        return None
    largest = max(later)
    return Rise(largest / losses[0], sum(v > LASTING * losses[0] for v in later), later.index(largest) + 1)


def rise_of_run(losses: Sequence[float]) -> Rise | None:
    """The rise of the losses of a run up to the first that is not finite; None where fewer than two are left.

    In a run the batches differ, and what made a loss NaN may be one of them: only what rose before it is a rise.
    """
    return rise_of(list(takewhile(math.isfinite, losses)))


HARMS = 0.25
"""Share of the progress, in ln(loss), that something takes away and from which on it does harm; measured: .3 to .5 where scores were never
scaled, .6 where the rate of a group was a thousand times too high, nothing where sharp scores or two rates are meant."""


def harms(told: Mapping[str, Any]) -> bool:
    """True where steps from one loss (``first``) reach one so much lower (``undone``) without something as to call it harmful (``best`` with it).

    Steps that do not come below the loss of an output of zeros (``zeros``, where that is lower than the first) have learned nothing, and say nothing.
    """
    zeros = told.get("zeros")
    if zeros is not None and not float(told.get("undone", math.nan)) < zeros:
        return False
    return _lost(told, better="undone", worse="best") >= HARMS


EARNED = 0.5
"""Share of the progress that is lost without something, from which on it is needed: weights that were blown up and train on lose .3."""


def earned(told: Mapping[str, Any]) -> bool:
    """True where steps from one loss reach one so much lower with something (``best``) than without (``undone``) as to say that it is needed."""
    return _lost(told, better="best", worse="undone") >= EARNED


def _lost(told: Mapping[str, Any], better: str, worse: str) -> float:
    """Share of the progress in ln(loss) to the ``better`` of two losses that the ``worse`` one lacks; 0 where they hardly differ."""
    first, low, high = (float(told.get(key, math.nan)) for key in ("first", better, worse))
    if not (0 < LASTING * low < high and low < first):
        return 0.0
    return 1 - math.log(first / high) / math.log(first / low)


class Overshoot(NamedTuple):
    """Rate times curvature along one update."""

    step: int = -1
    value: float = math.nan
    alone: bool = False
    """True where it counts while the loss falls too."""

    adaptive: bool = False
    """True of an optimizer that adapts to the curvature, and so trains close to where updates overshoot."""


OF = 4
"""Steps in a row, the updates of all but one of which must lie above a level."""


def lasting_level(updates: Sequence[tuple[int, float]]) -> float:
    """The level that the updates of all but one of the last `OF` steps exceed or reach; −inf where fewer were measured.

    Args:
        updates: (step, value), in order of steps. What momentum carries uphill has no value, and overshoots nothing.
    """
    last = [value for step, value in updates[-OF:] if step > updates[-1][0] - OF]
    return sorted([-math.inf] * (OF - len(last)) + last)[1]


LATEST, LATELY = 5, 32
"""Losses whose median says where a run stands, and the ones that it is held against."""


def falling(losses: Sequence[float]) -> bool:
    """True while the latest of more than ten losses lie below those around them: what overshoots, grows or scatters then is progress."""
    known = [loss for loss in losses[-LATELY:] if math.isfinite(loss)]
    around, latest = sorted(known), sorted(known[-LATEST:])
    return len(around) > 10 and latest[len(latest) // 2] < around[len(around) // 2]


EQUAL = 1.001
"""× a norm up to which another is the same."""

NOTHING = 1e-3
"""× the largest of the first gradients below which a median is about 0."""


def spike_floor(first: Sequence[float], middle: float, ratio: float) -> float:
    """The gradient norm up to which nothing is a spike: that of the ``first`` steps, up to rounding, as clipping gives it again and again.

    Where the running median, ``middle``, is next to nothing beside the largest of the first, any norm is many times as large: it must then be
    ``ratio`` times that largest. Rare steps alone have a gradient in a policy that has learned.
    """
    largest = max(first)
    if middle < NOTHING * largest:
        return ratio * largest
    known = sorted(first)
    half = len(known) // 2
    return EQUAL * (known[half] + known[-half - 1]) / 2


class Nearing(NamedTuple):
    """What an operation gave when it was looked at, on the way to an end of its number format."""

    step: int
    operation: str
    place: str
    """Module and line; empty where they are not known."""

    format: str
    """``float16``, ``float32``."""

    shrinks: bool
    """True of what is divided by: it heads for the smallest number."""

    end: float
    """ln of the largest number of the format, −ln of the smallest where it shrinks."""

    looks: tuple[tuple[int, float], ...]
    """(step, ln of the largest |entry|) of the latest looks, −ln where it shrinks."""

    def steps_left(self, close: float, gain: float, pace: float) -> float:
        """Steps to the end at the present pace; inf unless it has come ``close`` and gained (both shares of the way), and is not slower than ``pace`` × all the way.

        Four looks are needed, of which at most one may lie below the one before it.
        """
        sizes = [size for _, size in self.looks]
        rises = sum(b > a for a, b in pairwise(sizes))
        if len(sizes) < 4 or rises < max(3, len(sizes) - 2) or sizes[-1] < max(*sizes, close * self.end):
            return math.inf
        whole, late = (self._pace(first) for first in (0, len(sizes) - 3))
        if sizes[-1] - sizes[0] < gain * self.end or late < pace * whole:
            return math.inf
        return (self.end - sizes[-1]) / late

    def _pace(self, first: int) -> float:
        (before, low), (after, high) = self.looks[first], self.looks[-1]
        return (high - low) / (after - before)
