"""On which scale a signal is drawn, and in which state a value is."""

from __future__ import annotations

from collections.abc import Sequence

from gnnstab.records import SIGNALS
from gnnstab.report.evidence import Limit

LINEAR_FROM_ZERO = frozenset(
    {"fraction of ln(in-degree)", "share of node-heads", "share of nodes", "share of channels", "share of entries"}
)
"""Units of numbers between 0 and 1: their axis always spans both."""


def scale_of(name: str) -> str:
    """``linear`` for shares and for numbers that are logarithms already, ``log`` for sizes, ``symlog`` for scores."""
    if name in ("score.min", "score.max"):
        return "symlog"
    linear = SIGNALS[name].unit in LINEAR_FROM_ZERO or name.startswith(("gain.lambda", "gradient.slope"))
    return "linear" if linear else "log"


def status(value: float, limits: Sequence[Limit]) -> str:
    """The worst severity whose limit ``value`` breaches, ``""`` for none."""
    breached = [limit.severity for limit in limits if limit.breached_by(value)]
    return "error" if "error" in breached else (breached[0] if breached else "")
