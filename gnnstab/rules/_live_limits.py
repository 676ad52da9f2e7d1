"""What counts as growth for the rules that follow a run step by step."""

from __future__ import annotations

from dataclasses import dataclass

from gnnstab.rules.base import threshold
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh


@dataclass(frozen=True)
class LiveLimits:
    """What counts as growth while a run goes on."""

    score_growth: float = threshold(
        0.05, unit="ln per step", source="measured: .02 to .04 in small runs that train, .09 to .36 in failing ones"
    )
    """Relative growth of max|s| per step, fitted over the window."""

    score_factor: float = threshold(4.0, unit="× first steps", source="heuristic: logits ×4 are weights ×2")
    """Growth of max|s| over its median in the first steps."""

    score_floor: float = threshold(60.0, unit="logit", source="measured: healthy trained networks reach 59")
    """Smaller scores may grow as they like."""

    projected_steps: float = threshold(50.0, unit="steps", source="heuristic: time to act")
    """A limit of the number format that is closer than this is reported."""

    loss_factor: float = threshold(LearningRateTooHigh.loss_rise, unit="× best loss", source="as GS601")
    """Rise of the loss over the best running median; it must lie above its start too."""

    loss_lasts: float = threshold(
        5, unit="steps", source="heuristic: the loss of a small batch jumps for a step or two"
    )
    """Latest steps that must all lie above the limit."""

    jump: float = threshold(
        1e3, unit="× all before", source="heuristic: three orders of magnitude beyond everything seen"
    )
    """Growth over the largest earlier value that is reported at once, without a warm-up."""

    jump_floor: float = threshold(100.0, unit="", source="heuristic: values that start near zero may grow as they like")
    """Smaller values are never reported as a jump."""
