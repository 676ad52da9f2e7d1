"""A series in a few characters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BARS = "▁▂▃▄▅▆▇█"
ASCII_BARS = "_.-~=+*#"
BROKEN, ASCII_BROKEN = "×", "!"
"""Stands where a value is NaN or infinite."""


def sparkline(values: NDArray[np.float64], width: int, *, ascii_only: bool = False) -> str:
    """``width`` characters, the newest at the right; every character is the largest value of its stretch.

    The scale is logarithmic where the values are positive and span more than a factor of ten. A value that is not
    finite shows as a cross; a stretch with one shows nothing else.
    """
    bars, broken = (ASCII_BARS, ASCII_BROKEN) if ascii_only else (BARS, BROKEN)
    if not len(values) or width < 1:
        return " " * max(width, 0)
    chunks = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)))
    peaks = np.array([chunk.max() if np.isfinite(chunk).all() else np.nan for chunk in chunks])
    finite = peaks[np.isfinite(peaks)]
    if len(finite) and finite.min() > 0 and finite.max() / finite.min() > 10:
        peaks, finite = np.log(peaks), np.log(finite)
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    span = high - low or 1.0
    text = "".join(
        broken if np.isnan(p) else bars[min(int((p - low) / span * len(bars)), len(bars) - 1)] for p in peaks
    )
    return text.rjust(width)
