"""Several checkpoints of one run → trends, and the step at which a limit will be crossed where the trend is clear."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gnnstab.errors import UsageError
from gnnstab.layers import plays
from gnnstab.records import Series, Signals
from gnnstab.records.vocabulary import in_group
from gnnstab.signals.fitting import log_linear

_Line = tuple[str, str | None, int | None, str]
"""Signal, layer, head, source."""

CLEAR = 3.0
"""A trend is clear when its slope exceeds this many standard errors."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A log-linear fit of one signal over steps: ln(value) = intercept + slope·step."""

    name: str
    layer: str | None
    head: int | None
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


class Trajectory:
    """The signals of many checkpoints as they come: the followed numbers of all, everything else of the last alone."""

    def __init__(self) -> None:
        self._points: dict[_Line, dict[int, float]] = {}
        self._steps: list[int] = []
        self._last: Signals | None = None

    @property
    def last_step(self) -> int | None:
        """The highest step so far; None before the first checkpoint."""
        return max(self._steps, default=None)

    def add(self, step: int, signals: Signals) -> None:
        """Take in one checkpoint; they may come in any order, and of several at the highest step the last one counts."""
        if self._last is None or step >= max(self._steps):
            self._last = signals
        self._steps.append(step)
        for line, value in _followed(signals):
            self._points.setdefault(line, {})[step] = value

    def signals(self) -> Signals:
        """The signals of the last checkpoint with the series of all of them; trends stand in ``context["trends"]``.

        Raises `UsageError` when there was no checkpoint.
        """
        if self._last is None:
            raise UsageError("a trajectory needs at least one checkpoint")
        if len(self._steps) == 1:
            return self._last
        series = tuple(_series(line, own) for line, own in self._points.items() if len(own) > 1)
        context = {
            **self._last.context,
            "checkpoints": len(self._steps),
            "steps": self.last_step,
            "trends": [_plain(t) for t in trends(series)],
        }
        return dataclasses.replace(self._last, series=(*self._last.series, *series), context=context)


def _followed(signals: Signals) -> Iterator[tuple[_Line, float]]:
    for name in in_group("trend"):
        for signal in signals.find(name):
            parameter = str(signal.detail.get("parameter", ""))
            if not parameter or plays(parameter, "value"):
                yield (name, signal.layer, signal.head, signal.source), signal.value


def _series(line: _Line, points: Mapping[int, float]) -> Series:
    name, layer, head, _ = line
    steps = sorted(points)
    return Series(name, layer, head, np.array(steps, dtype=np.int64), np.array([points[step] for step in steps]))


def trends(series: Sequence[Series]) -> list[Trend]:
    """A fit for every series with enough positive finite points."""
    fitted = [fit(one) for one in series]
    return [trend for trend in fitted if trend is not None]


def fit(series: Series) -> Trend | None:
    """The log-linear fit of one series; None with too few positive finite points."""
    found = log_linear(series.steps, series.values)
    return None if found is None else Trend(series.name, series.layer, series.head, *found)


def _plain(trend: Trend) -> Mapping[str, object]:
    return {
        **dataclasses.asdict(trend),
        "clear": trend.clear,
        "growth_per_1000_steps": math.expm1(min(1000 * trend.slope, 50.0)),
    }
