"""The one fit of growth: a straight line through logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = Sequence[float]

LEAST = 4
"""Points below which nothing is fitted: a line through three points always looks straight."""


LASTS = 24
"""Points from which on a growth can be said to last: a dozen for each half of them."""

SOON = 16
"""The same of one that has multiplied by `MULTIPLIED` within them."""

DOUBLED = 2.0
"""× within the points: a loss that has grown by less stands on a plateau."""

MULTIPLIED = 4.0
"""× within the points, by the medians of their ends: from here on the loss may still lie below its start, down to `HALF` of it."""

LATEST = 4
"""Points whose median is held against the beginning of a run."""

HALF = 0.5
"""Share of a loss's start, at or below which a run has learned: what grows or jumps from there may be the noise of a run that has converged."""

EARLIEST = 8
"""Points whose median stands for the beginning of the points."""

BLOCK = 8
"""Losses whose median is one point of a slow growth: batches that differ even out."""

BLOCKS = 6
"""Such points in a row that must grow."""

RANKED = 2.0
"""Standard deviations of Kendall's rank correlation: a line through a few jumps at the end of a plateau is clear, and its ranks are not."""

PACE = 0.75
"""Share of the slope that the second half must have: an exponential has all of it, a straight line three fifths."""

CLEAR = 3.0
"""A slope is clear when it exceeds this many standard errors."""


@dataclass(frozen=True, slots=True)
class LogFit:
    """ln(value) = level + slope·(step − last step), by least squares."""

    slope: float
    """ln per step."""

    error: float
    """Standard error of the slope."""

    level: float
    """ln(value) fitted at the last step."""

    level_error: float
    """Standard error of ``level``."""

    last_step: int
    points: int

    @property
    def clear(self) -> bool:
        """True when the slope cannot well be chance."""
        return abs(self.slope) > CLEAR * self.error and self.slope != 0

    def crossing(self, limit: float) -> tuple[int, int, int] | None:
        """Step at which ``limit`` will be crossed, with a range of ± 2 standard errors: (earliest, expected, latest).

        None when the trend is not clear, leads away from the limit, has crossed it, or would need more than ten times
        the steps that were seen.
        """
        if not self.clear or limit <= 0:
            return None
        distance = math.log(limit) - self.level
        if distance * self.slope <= 0:
            return None
        expected = distance / self.slope
        if expected > 10 * max(self.last_step, 1):
            return None
        steep, flat = (
            self.slope + math.copysign(2 * self.error, self.slope),
            self.slope - math.copysign(2 * self.error, self.slope),
        )
        near, far = abs(distance) - 2 * self.level_error, abs(distance) + 2 * self.level_error
        return (
            self.last_step + round(max(near, 0.0) / abs(steep)),
            self.last_step + round(expected),
            self.last_step + round(far / abs(flat)),
        )


def log_linear(steps: ArrayLike, values: ArrayLike, least: int = LEAST) -> LogFit | None:
    """Fit the positive finite ones of ``values`` (n,) over ``steps`` (n,); None with fewer than ``least`` of them."""
    ys = np.asarray(values, dtype=np.float64)
    usable = np.isfinite(ys) & (ys > 0)
    x, y = np.asarray(steps, dtype=np.float64)[usable], np.log(ys[usable])
    if len(x) < max(least, 3) or x[-1] == x[0]:
        return None
    offset, middle = x - x.mean(), float(y.mean())
    spread = float((offset**2).sum())
    slope = float((offset * (y - middle)).sum() / spread)
    noise = math.sqrt(float(((y - middle - slope * offset) ** 2).sum()) / (len(x) - 2))
    ahead = float(offset[-1])
    return LogFit(
        slope,
        noise / math.sqrt(spread),
        middle + slope * ahead,
        noise * math.sqrt(1 / len(x) + ahead**2 / spread),
        int(x[-1]),
        len(x),
    )


def lasting_growth(steps: ArrayLike, values: ArrayLike, least: int) -> float:
    """Slope of ln|value| per step that is clear over all ``values`` (n,), also by their ranks, and in their second half, where it is about as steep.

    The growth of the first steps of a training ends by itself, and this is 0.0 then; also for fewer than ``least`` values, where
    their sign changes, and after a leap that they have come down from since.
    """
    x, ys = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(ys) < least or not ys.min() * ys.max() > 0 or _leapt(np.log(np.abs(ys))):
        return 0.0
    whole, half = log_linear(x, np.abs(ys), least), len(ys) // 2
    if whole is None or not whole.slope > CLEAR * whole.error:
        return 0.0
    late = log_linear(x[half:], np.abs(ys[half:]), len(ys) - half)
    lasts = late is not None and late.slope > max(PACE * whole.slope, CLEAR * late.error)
    return whole.slope if lasts and _ranked(np.abs(ys)) > RANKED else 0.0


def _leapt(logs: NDArray[np.float64]) -> bool:
    """True where one step of ``logs`` (n,) made more than half of the whole gain, and `LATEST` values or more since then have not risen."""
    steps = np.diff(logs)
    leap = int(np.argmax(steps))
    since = logs[leap + 1 :]
    if len(since) < LATEST or steps[leap] <= HALF * (logs[-1] - logs[0]):
        return False
    return bool((np.arange(len(since)) - (len(since) - 1) / 2) @ since <= 0)


def _ranked(values: NDArray[np.float64]) -> float:
    """Kendall's rank correlation of ``values`` (n,) with their order, in standard deviations of values in any order."""
    count = len(values)
    agree = float(np.sign(values[None, :] - values[:, None])[np.triu_indices(count, 1)].sum())
    return agree / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)


def shared_growth(
    loss: tuple[Floats, Floats], norm: tuple[Floats, Floats], start: tuple[float, float]
) -> tuple[float, float]:
    """Growth per step of |loss| and of the gradient norm, where both last and have left the beginning behind; else 0.0, 0.0.

    The norm lies above its start, and either the loss does too and has doubled, or both have multiplied by `MULTIPLIED` and the loss lies above half of its start.

    ``loss`` and ``norm`` are steps and values (n,), ``start`` the medians of the first ten of each.
    """
    none = 0.0, 0.0
    # At nearly every step of a healthy run this one comparison is all.
    if len(loss[1]) < SOON or not abs(loss[1][-1]) >= DOUBLED * abs(loss[1][0]):
        return none
    losses, norms = list(loss[1]), list(norm[1])
    if len(losses) > SOON and len(norms) > SOON:
        # What has begun to run away within the last steps does so behind a calm that bends the line through all of them.
        soon = shared_growth((_soon(loss[0]), _soon(losses)), (_soon(norm[0]), _soon(norms)), start)
        if soon != none:
            return soon
    beyond = len(losses) >= LASTS and abs(_last(losses)) > abs(start[0])
    # A likelihood that sharpens falls below 0 and may multiply; nothing there says that it goes on.
    multiplied = min(losses) > 0 and _last(losses) > HALF * start[0] and _multiplied(losses) and _multiplied(norms)
    if not (beyond or multiplied) or _last(norms) <= start[1]:
        return none
    slopes = lasting_growth(loss[0], losses, SOON), lasting_growth(norm[0], norms, SOON)
    return (math.expm1(min(slopes[0], 50.0)), math.expm1(min(slopes[1], 50.0))) if min(slopes) > 0 else none


def slow_growth(steps: Floats, medians: Floats, first: float, losses: Sequence[Floats]) -> float:
    """Growth per step over the medians (n,) of the latest `BLOCKS` blocks of losses, where it lasts and has led beyond the ``first`` block; else 0.0.

    It must stand out of the scatter of the ``losses`` (n, `BLOCK`) themselves, each held against those at its place in the other blocks, so
    that batches which come round again are no scatter: of losses around a constant, six medians now and then rise one after the other.
    """
    if len(medians) < BLOCKS or not medians[-1] > first > 0:
        return 0.0
    growth = lasting_growth(steps, medians, BLOCKS)
    return math.expm1(min(growth, 50.0)) if growth > 0 and _stands_out(losses) else 0.0


def _stands_out(losses: Sequence[Floats]) -> bool:
    """True where the line through ln(loss), one for all places (columns) of the blocks (rows), rises clearly."""
    logs = np.log(np.asarray(losses, dtype=np.float64))
    logs -= logs.mean(axis=0)
    offset = np.arange(len(logs)) - (len(logs) - 1) / 2
    spread = float((offset**2).sum()) * logs.shape[1]
    slope = float((offset @ logs).sum()) / spread
    free = logs.size - logs.shape[1] - 1
    noise = float(((logs - slope * offset[:, None]) ** 2).sum()) / free
    return bool(slope > CLEAR * math.sqrt(noise / spread))


def _soon(values: Floats) -> list[float]:
    return list(values)[-SOON:]


def _multiplied(values: list[float]) -> bool:
    return _last(values) > MULTIPLIED * sorted(values[:EARLIEST])[EARLIEST // 2]


def _last(values: list[float]) -> float:
    return sorted(values[-LATEST:])[LATEST // 2]
