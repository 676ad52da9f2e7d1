"""On which scale a signal is drawn, and in which state a value is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gnnstab.records import SIGNALS
from gnnstab.report.evidence import Limit
from gnnstab.report.svg import Axis, axis_for


def scale_of(name: str) -> str:
    """``linear`` for shares and for numbers that are logarithms already, ``log`` for sizes, ``symlog`` for scores."""
    kind = SIGNALS[name]
    return "linear" if kind.is_share else kind.axis


def is_share(name: str) -> bool:
    """True for a signal between 0 and 1: its axis always spans both. False for a stranger."""
    return name in SIGNALS and SIGNALS[name].is_share


def axis_of(name: str, values: Iterable[float], start: float, stop: float, *, linear: bool = False) -> Axis:
    """The axis that a signal is drawn on, from pixel ``start`` to ``stop``; ``linear`` where no logarithm exists."""
    if is_share(name):
        return Axis(0.0, 1.0, start, stop)
    return axis_for(values, start, stop, kind="linear" if linear or name not in SIGNALS else scale_of(name))


def status(value: float, limits: Sequence[Limit]) -> str:
    """The worst severity whose limit ``value`` breaches, ``""`` for none."""
    breached = [limit.severity for limit in limits if limit.breached_by(value)]
    return "error" if "error" in breached else (breached[0] if breached else "")
