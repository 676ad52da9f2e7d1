"""What the same steps on two copies, one of them changed, say: the change helps, does harm, or neither."""

from __future__ import annotations

import math
from dataclasses import replace

from gnnstab.records import Finding, Signals
from gnnstab.records.rises import earned, harms
from gnnstab.records.vocabulary import LOSS, OPTIMIZER_SOFTER


def by_steps(finding: Finding, signals: Signals) -> Finding:
    """A finding of sharp attention as the steps with softer scores of its layer judge it."""
    for signal in signals.find(OPTIMIZER_SOFTER):
        if finding.layer not in signal.detail.get("names", ()):
            continue
        best, undone = (float(signal.detail.get(key, math.nan)) for key in ("best", "undone"))
        steps = f"With softer scores on a copy your optimizer's steps bring the loss of one batch to {undone:.3g} instead of {best:.3g}"
        if earned(signal.detail):
            return replace(finding, severity="info", message=f"{finding.message} {steps}: the sharpness is earned.")
        if harms(signal.detail) and finding.signal.startswith("attention.") and best - undone > _left(signals):
            severity = "warning" if finding.severity == "info" else finding.severity
            message = f"{finding.message.removesuffix(_OPEN)} {steps}: the sharpness keeps the model from learning."
            return replace(finding, severity=severity, confidence="high", message=message)
    return finding


def _left(signals: Signals) -> float:
    """Loss that is next to nothing beside the one that a run began with; 0 without a run."""
    starts = [s.detail.get("start") for s in signals.find(LOSS)]
    return max((NOTHING * start for start in starts if isinstance(start, (int, float))), default=0.0)


NOTHING = 0.01
"""Share of a run's first loss that is not worth a warning: what has learned 99 % of it has learned."""

_OPEN = ", and sharp attention may be right: cause not established."
