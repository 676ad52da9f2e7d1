"""The one fit of growth: a straight line through logarithms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEAST = 4
"""Points below which nothing is fitted: a line through three points always looks straight."""


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
