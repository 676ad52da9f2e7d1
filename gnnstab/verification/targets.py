"""What a fix has to move: the finding that it is judged by, and how far is far enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gnnstab.records import SIGNALS, Finding, Signals
from gnnstab.records.vocabulary import (
    OPTIMIZER_BELOW_EPS_SHARE,
    OPTIMIZER_INPUT_SHARE,
    PLACE_DEAD_SHARE,
    PLACE_OVERFLOW,
    PRECISION_FP16_HEADROOM,
    WEIGHT_NON_FINITE,
    in_group,
)
from gnnstab.rules.limits import limits_of
from gnnstab.rules.queries import typical_matrix

MARGIN = 0.1
"""A threshold counts as crossed when the value lies beyond it by this share of it."""

_SYMPTOMS = (
    "attention.", "gradient.", "precision.", "score.", "output.", "smoothness.", "channels.", PLACE_DEAD_SHARE,
)  # fmt: skip
"""Signals of what happens in the network, in contrast to causes such as the exponent of an aggregation."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A signal of one layer and the threshold that it has to get across."""

    code: str
    """Rule that fired."""

    signal: str
    layer: str | None
    threshold: float
    rises: bool
    """True when health lies above the threshold."""

    value: float
    """Of the finding on the model as given."""

    counts_events: bool = False
    """True when the goal is that no non-finite value comes into being; the value is then the number of those seen."""

    judged_by_status: bool = False
    """True when the goal is that the rule falls silent: its signal describes the data or a setting together with what
    stands around it, and need not move. The value is then 1 where the rule fires and 0 where it does not."""

    @property
    def healthy(self) -> tuple[float, float] | None:
        """The signal's healthy range, where that is narrower than the thresholds."""
        return SIGNALS[self.signal].healthy if self.signal in SIGNALS else None

    def _is(self, group: str) -> bool:
        return self.signal in in_group(group)

    @property
    def logarithmic(self) -> bool:
        """True when distances are ratios."""
        return self._is("ratio")

    def read(self, signals: Signals) -> float:
        """The goal's signal now: the worst over what was measured, NaN when it was not measured.

        Of a goal that `judged_by_status` nothing is to be read off the signals.
        """
        if self.counts_events:
            broken = sum(s.value > 0 for s in signals.find(WEIGHT_NON_FINITE))
            return float(sum(event.kind == "non-finite" for event in signals.events) + broken)
        if self.signal == PRECISION_FP16_HEADROOM and not self._in_fp16(signals):
            return math.inf
        if self._is("typical"):
            typical = typical_matrix(signals.find(self.signal))
            return math.nan if typical is None else typical.value
        found = [s.value for s in signals.find(self.signal, layer=self.layer, head=None)]
        found = found or [s.value for s in signals.find(self.signal, layer=self.layer)]
        if not found and self.signal == PLACE_OVERFLOW:
            return 0.0  # It lists the entries that overflow, and there are none.
        if not found or any(math.isnan(v) for v in found):
            return math.nan
        if self.healthy:
            return max(found, key=lambda v: abs(math.log(v)) if 0 < v < math.inf else math.inf)
        return min(found) if self.rises else max(found)

    def _in_fp16(self, signals: Signals) -> bool:
        """False when the goal's layers are known to compute their scores in a wider format, where fp16 has no limit."""
        formats = {
            layer.score_format for layer in signals.layers if layer.attention and self.layer in (None, layer.name)
        }
        return not formats or bool(formats & {"fp16", None})

    def crossed(self, value: float) -> bool:
        """True when the value lies on the healthy side with margin."""
        if math.isnan(value):
            return False
        if self.counts_events or self.judged_by_status:
            return value == 0
        if self.healthy:
            low, high = self.healthy
            return low <= value <= high
        return value >= self.line if self.rises else value <= self.line

    def effect(self, before: float, after: float) -> float:
        """How far a fix moved the signal, in units of the way that the model as given has to go; NaN without meaning.

        1 is the whole way from the model's own value to the threshold with its margin; negative moves away. Fresh twins
        need not start where the trained model stands, so the way is always the model's.
        """
        start, end = self.scaled(before), self.scaled(after)
        way = self.scaled(self.line) - self.scaled(self.value)
        if start == end:
            return 0.0
        if not math.isfinite(way) or way == 0 or math.isnan(start) or math.isnan(end):
            return math.nan
        return (end - start) / way

    @property
    def line(self) -> float:
        """The threshold with its margin."""
        if self.healthy or self.counts_events or self.judged_by_status:
            return self.threshold
        return self.threshold * (1 + MARGIN if self.rises else 1 - MARGIN)

    def scaled(self, value: float) -> float:
        """The value on the scale on which distances are taken."""
        if not self.logarithmic or self.judged_by_status:
            return value
        return math.log(value) if value > 0 else -math.inf if value == 0 else math.nan


def choose(findings: Sequence[Finding], causes: Sequence[str] = (), otherwise: Goal | None = None) -> Goal | None:
    """The goal that a fix of this model is judged by: the most severe symptom, on the layer where it is worst.

    With ``causes``, those that the fix is for, best first, it is a symptom of the first that has one, else ``otherwise``.
    Symptoms come before causes, since a fix that removes a cause and leaves the symptom has proven nothing; symptoms
    that follow from another symptom come last.
    """
    usable = [f for f in findings if f.signal and not f.code.startswith("GS9") and math.isfinite(f.threshold)]
    if not usable:
        return otherwise
    symptoms = [f for f in usable if f.signal.startswith(_SYMPTOMS) or f.code == _NON_FINITE]
    heads = [f for f in symptoms if f.explained_by not in {other.code for other in symptoms}]
    symptoms = heads or symptoms
    own = (alike for cause in causes if (alike := [f for f in symptoms if f.cause == cause]))
    if causes and not (symptoms := next(own, [])):
        return otherwise
    chosen = max(symptoms or usable, key=lambda f: (f.severity == "error", _distance(f)))
    return goal_of(chosen)


def goal_of(finding: Finding) -> Goal:
    """The goal to undo one finding."""
    if finding.code == _NON_FINITE:
        return Goal(finding.code, finding.signal, finding.layer, 0.0, False, finding.value, counts_events=True)
    if finding.signal.startswith(_OF_THE_DATA):
        return Goal(finding.code, finding.signal, finding.layer, 0.0, False, 1.0, judged_by_status=True)
    rises = finding.value < finding.threshold
    if finding.signal in in_group("typical"):
        return Goal(finding.code, finding.signal, None, _line(finding), rises, finding.value)
    return Goal(finding.code, finding.signal, finding.layer, _line(finding), rises, finding.value)


_NON_FINITE = "GS502"

_OF_THE_DATA = ("degree.", "graph.", "feature.", OPTIMIZER_BELOW_EPS_SHARE, OPTIMIZER_INPUT_SHARE)
"""Signals that no change of the model moves, or that tell of a fault only together with a setting such as eps."""


def _line(finding: Finding) -> float:
    """Where health begins; the threshold of a warning even when an error fired."""
    if finding.signal not in SIGNALS:
        return finding.threshold
    healthy = SIGNALS[finding.signal].healthy
    if healthy:
        return healthy[0] if finding.value < finding.threshold else healthy[1]
    warnings = (value for value, severity in limits_of(finding.signal) if severity == "warning")
    return next(warnings, finding.threshold)


def _distance(finding: Finding) -> float:
    """How far beyond its threshold, on a scale that compares signals; NaN and Inf are furthest."""
    value, line = abs(finding.value), abs(finding.threshold)
    if not math.isfinite(value) or value == 0 or line == 0:
        return math.inf if not math.isfinite(value) else 0.0
    return abs(float(np.log(value / line)))
