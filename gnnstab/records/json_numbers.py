"""Numbers as every JSON output writes them: a stated number of digits, NaN and infinities as strings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

DIGITS = 7
"""Significant digits: what a float32 carries. The digits beyond differ from processor to processor and mean nothing."""


def json_number(value: float) -> float | str:
    """The number rounded to `DIGITS` significant digits; NaN and infinities as ``"nan"``, ``"inf"`` and ``"-inf"``."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return float(f"{value:.{DIGITS}g}")


def plain(value: Any) -> Any:
    """Records, arrays and containers as what JSON knows, numbers as by `json_number`; anything else as its text."""
    if isinstance(value, bool) or value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return json_number(value)
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, (tuple, list, set, frozenset, Iterator)):
        return [plain(v) for v in value]
    return str(value)
