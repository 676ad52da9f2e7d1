"""What a sink is, the numbers it is fed with, and a feed that keeps its failures away from the training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from gnnstab.errors import warn
from gnnstab.records import Diagnosis, Finding, SeriesKey, StepRow
from gnnstab.records.vocabulary import GRADIENT_NORM, OF_SITE
from gnnstab.report.escape import name as short_name

Extremes = Sequence[float]
"""Minimum, maximum, RMS (further entries are not read) of one site in one step."""

PREFIX = "gnnstab"
"""First part of every metric's name, so that a dashboard keeps them together."""


@runtime_checkable
class Sink(Protocol):
    """Where a run's numbers stream to. Called in the order of steps, by one thread; `on_end` comes last and once."""

    def on_step(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of one step, by name (see `step_values`); NaN and Inf are among them.

        The loss is among them when the monitor was given it before the optimizer's step.
        """

    def on_finding(self, finding: Finding) -> None:
        """A finding, once, as soon as it is known."""

    def on_end(self, diagnosis: Diagnosis) -> None:
        """The run is over; write the report and close."""


def step_values(row: StepRow | None, stats: Mapping[SeriesKey, Extremes] | None = None) -> dict[str, float]:
    """The numbers of one step for `Sink.on_step`: ``loss``, ``lr``, ``gradient.norm``, ``scale``, and per layer
    ``score.max_abs/LAYER``, ``output.rms/LAYER``, ….

    Numbers of evaluation are left out, several calls of one layer within a step are merged: the largest counts.
    """
    values: dict[str, float] = {}
    if row is not None:
        known = {"loss": row.loss, "lr": row.lr, GRADIENT_NORM: row.grad_norm, "scale": row.scale}
        values.update({name: value for name, value in known.items() if value is not None})
    for key, extremes in (stats or {}).items():
        signal = OF_SITE.get(key.site)
        if signal and key.mode.startswith("train"):
            name = f"{signal}/{short_name(key.layer, 120)}"
            values[name] = _larger(values.get(name), _max_abs(extremes) if key.site == "score" else float(extremes[2]))
    return values


def _max_abs(extremes: Extremes) -> float:
    low, high = abs(extremes[0]), abs(extremes[1])
    return math.nan if math.isnan(low) or math.isnan(high) else max(low, high)


def _larger(known: float | None, value: float) -> float:
    """The larger one; a NaN is worse than any number and stays."""
    return value if known is None or math.isnan(value) or value > known else known


class Feed:
    """Calls several sinks. A sink that raises is reported once, as a warning, and left out from then on."""

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self._sinks = list(sinks)

    def __bool__(self) -> bool:
        return bool(self._sinks)

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Hand one step to every sink."""
        self._each("on_step", step, values)

    def row(self, row: StepRow, keys: Sequence[SeriesKey], rows: NDArray[np.float64]) -> None:
        """`step` from what the monitor holds: ``rows`` has shape (len(keys), ≥ 3), minimum, maximum and RMS first."""
        if self._sinks:
            self.step(row.step, step_values(row, dict(zip(keys, rows[:, :3].tolist(), strict=True))))

    def finding(self, finding: Finding) -> None:
        """Hand one finding to every sink."""
        self._each("on_finding", finding)

    def end(self, diagnosis: Diagnosis) -> None:
        """Hand the diagnosis to every sink and let them go."""
        self._each("on_end", diagnosis)
        self._sinks = []

    def _each(self, method: str, *arguments: Any) -> None:
        for sink in tuple(self._sinks):
            try:
                getattr(sink, method)(*arguments)
            except Exception as error:  # whatever a logging service raises, the training goes on
                self._sinks.remove(sink)
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                told = f"{type(sink).__name__}.{method} failed and is left out from now on: {reason}"
                warn(told)
