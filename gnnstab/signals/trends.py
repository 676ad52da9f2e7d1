"""Several checkpoints of one run → trends, and the step at which a limit will be crossed where the trend is clear."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gnnstab.errors import UsageError
from gnnstab.records import Series, Signals
from gnnstab.signals.window import Floats, Integers

TRENDS = (
    "logit.frobenius",
    "logit.spectral_qk",
    "logit.alignment",
    "gain.value",
    "gain.skip",
    "score.max_abs",
    "score.within_std",
    "attention.entropy",
    "attention.one_hot_share",
    "input.rms",
    "output.rms",
    "gradient.ratio",
    "optimizer.gradient_rms",
)
"""Signals that are followed over checkpoints."""

LEAST = 4
"""Checkpoints below which no trend is claimed: a line through three points always looks straight."""

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


def trajectory(states: Sequence[tuple[int, Signals]]) -> Signals:
    """The signals of the last checkpoint with the series of all of them; the trends stand in ``context["trends"]``.

    ``states`` are (step, signals); they are put in order of steps. Raises `UsageError` when there are none.
    """
    if not states:
        raise UsageError("a trajectory needs at least one checkpoint")
    ordered = sorted(states, key=lambda state: state[0])
    last = ordered[-1][1]
    if len(ordered) == 1:
        return last
    series = tuple(over_checkpoints(ordered))
    context = {
        **last.context,
        "checkpoints": len(ordered),
        "steps": ordered[-1][0],
        "trends": [_plain(t) for t in trends(series)],
    }
    return dataclasses.replace(last, series=(*last.series, *series), context=context)


def over_checkpoints(ordered: Sequence[tuple[int, Signals]]) -> list[Series]:
    """One series per followed signal, layer and head that at least two checkpoints have."""
    points: dict[tuple[str, str | None, int | None, str], dict[int, float]] = {}
    for step, signals in ordered:
        for name in TRENDS:
            for signal in signals.find(name):
                parameter = str(signal.detail.get("parameter", ""))
                if not parameter or parameter.endswith("lin_value.weight"):
                    points.setdefault((name, signal.layer, signal.head, signal.source), {})[step] = signal.value
    return [
        Series(name, layer, head, np.array(sorted(own), dtype=np.int64), np.array([own[step] for step in sorted(own)]))
        for (name, layer, head, _), own in points.items()
        if len(own) > 1
    ]


def trends(series: Sequence[Series]) -> list[Trend]:
    """A fit for every series with at least `LEAST` positive finite points."""
    fitted = [fit(one) for one in series]
    return [trend for trend in fitted if trend is not None]


def fit(series: Series) -> Trend | None:
    """The log-linear fit of one series by least squares; None with too few positive finite points."""
    usable = np.isfinite(series.values) & (series.values > 0)
    steps: Integers = series.steps[usable]
    logs: Floats = np.log(series.values[usable])
    if len(steps) < LEAST or steps[-1] == steps[0]:
        return None
    x = steps.astype(np.float64)
    center, spread = float(x.mean()), float(((x - x.mean()) ** 2).sum())
    slope = float(((x - center) * (logs - logs.mean())).sum() / spread)
    residual = logs - logs.mean() - slope * (x - center)
    noise = math.sqrt(float((residual**2).sum()) / (len(x) - 2))
    ahead = float(x[-1]) - center
    return Trend(
        series.name,
        series.layer,
        series.head,
        slope,
        noise / math.sqrt(spread),
        float(logs.mean()) + slope * ahead,
        noise * math.sqrt(1 / len(x) + ahead**2 / spread),
        int(steps[-1]),
        len(x),
    )


def _plain(trend: Trend) -> Mapping[str, object]:
    return {
        **dataclasses.asdict(trend),
        "clear": trend.clear,
        "growth_per_1000_steps": math.expm1(min(1000 * trend.slope, 50.0)),
    }
