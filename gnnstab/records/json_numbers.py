"""Numbers as every JSON output writes them: a stated number of digits, NaN and infinities as strings."""

from __future__ import annotations

import math

DIGITS = 7
"""Significant digits: what a float32 carries. The digits beyond differ from processor to processor and mean nothing."""


def json_number(value: float) -> float | str:
    """The number rounded to `DIGITS` significant digits; NaN and infinities as ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{DIGITS}g}")
