"""The one fit of growth: a straight line through logarithms."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEAST = 4
"""Points below which nothing is fitted: a line through three points always looks straight."""


class LogFit(NamedTuple):
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
