"""The symptom vector: which findings are symptoms that one forward and backward can measure again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    CHANNELS_DEAD_SHARE,
    CLIP_SHARE,
    GRADIENT_RATIO,
    INPUT_MAX_ABS,
    LOSS_OVER_ZERO,
    OUTPUT_MAX_ABS,
    PLACE_DEAD_SHARE,
    PLACE_SATURATED_SHARE,
    PRECISION_FP16_HEADROOM,
    PRECISION_ROUNDING,
    SCORE_MAX_ABS,
    SMOOTHNESS_RELATIVE,
)
from gnnstab.rules.explanation import is_warning
from gnnstab.rules.gs502_non_finite_value import NonFiniteValue
from gnnstab.verification.targets import Goal, goal_of

MEASURED = (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    SCORE_MAX_ABS,
    GRADIENT_RATIO,
    PRECISION_FP16_HEADROOM,
    PRECISION_ROUNDING,
    CHANNELS_DEAD_SHARE,
    CLIP_SHARE,
    SMOOTHNESS_RELATIVE,
    OUTPUT_MAX_ABS,
    INPUT_MAX_ABS,
    LOSS_OVER_ZERO,
    PLACE_SATURATED_SHARE,
    "loss",
)
"""Signals of `measuring.look`; a symptom of another signal cannot be tried."""


STATES = (
    ATTENTION_ENTROPY,
    ATTENTION_ONE_HOT_SHARE,
    CHANNELS_DEAD_SHARE,
    PLACE_DEAD_SHARE,
    PLACE_SATURATED_SHARE,
)
"""Signals of states that weights are drawn with, or that updates drive them into."""


@dataclass(frozen=True, slots=True)
class Symptom:
    """One finding, and the signal that has to come back into its healthy band."""

    finding: Finding
    goal: Goal

    def share(self, before: Signals, after: Signals) -> float:
        """Share of the way back to the healthy band, at most 1; negative where it moves away, NaN without meaning."""
        start, end = self.goal.read(before), self.goal.read(after)
        if self.goal.counts_events:
            return 1.0 if start > 0 == end else 0.0
        if math.isnan(start) or math.isnan(end):
            return math.nan
        if self.goal.crossed(end):
            return 1.0
        way = self.goal.scaled(self.goal.line) - self.goal.scaled(start)
        moved = self.goal.scaled(end) - self.goal.scaled(start)
        if not (math.isfinite(way) and way and math.isfinite(moved)):
            return 0.0 if start == end else math.nan
        return min(1.0, moved / way)

    def there(self, signals: Signals) -> bool:
        """True when the symptom is measured again on these signals, so that there is something to undo."""
        value = self.goal.read(signals)
        return not math.isnan(value) and not self.goal.crossed(value)


def symptoms_in(findings: Sequence[Finding]) -> tuple[Symptom, ...]:
    """The symptoms among the findings of at least a warning."""
    found = []
    for finding in findings:
        if finding.code == NonFiniteValue.code and finding.cause:
            continue  # The repeat of the step has shown its cause; nothing that can be undone knows better.
        goal = goal_of(finding) if is_warning(finding) and finding.signal else None
        if goal is not None and (goal.counts_events or (goal.signal in MEASURED and not goal.judged_by_status)):
            found.append(Symptom(finding, goal))
    return tuple(found)
