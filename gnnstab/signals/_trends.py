"""Several checkpoints of one run → trends, and the step at which a limit will be crossed where the trend is clear."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from gnnstab.errors import UsageError
from gnnstab.layers import plays
from gnnstab.records import Series, Signals
from gnnstab.records.vocabulary import in_group
from gnnstab.signals.fitting import LogFit, log_linear

_Line = tuple[str, str | None, int | None, str]
"""Signal, layer, head, source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend(LogFit):
    """The fit of one signal over the steps of several checkpoints."""

    name: str
    layer: str | None
    head: int | None


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

    def add(self, step: int, signals: Signals, *, last: bool | None = None) -> None:
        """Take in one checkpoint; they may come in any order, and the last one of the highest step counts, unless ``last`` says which."""
        if last or (last is None and (self._last is None or step >= max(self._steps))):
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
            "trends": [_plain(trend) for one in series if (trend := fit(one)) is not None],
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


def fit(series: Series) -> Trend | None:
    """The log-linear fit of one series; None with too few positive finite points."""
    found = log_linear(series.steps, series.values)
    if found is None:
        return None
    return Trend(**dataclasses.asdict(found), name=series.name, layer=series.layer, head=series.head)


def _plain(trend: Trend) -> Mapping[str, object]:
    return {
        **dataclasses.asdict(trend),
        "clear": trend.clear,
        "growth_per_1000_steps": math.expm1(min(1000 * trend.slope, 50.0)),
    }
