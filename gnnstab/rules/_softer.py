"""What steps with softer attention on a copy say of attention that is sharp: it is of use, it does harm, or neither."""

from __future__ import annotations

import math
from dataclasses import replace

from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import OPTIMIZER_SOFTER

HARMS = 0.25
"""Share of the progress, in ln(loss), that sharpness takes away and from which on it does harm; measured: .3 to .5 where scores were never
scaled, nothing where they are meant."""

LOWER = 1.25
"""Best loss over that with softer scores below which the two are alike, as for a rise of the loss."""


def by_steps(finding: Finding, signals: Signals) -> Finding:
    """A finding of sharp attention as the steps with softer scores of its layer judge it."""
    for signal in signals.find(OPTIMIZER_SOFTER):
        if finding.layer not in signal.detail.get("names", ()):
            continue
        first, best, undone = (float(signal.detail.get(key, math.nan)) for key in ("first", "best", "undone"))
        steps = f"With softer scores on a copy your optimizer's steps bring the loss of one batch to {undone:.3g} instead of {best:.3g}"
        if signal.value < 1 / LOWER:
            return replace(finding, severity="info", message=f"{finding.message} {steps}: the sharpness is of use.")
        taken = 1 - math.log(first / best) / math.log(first / undone) if undone < min(first, best) else 0.0
        harms = signal.value > LOWER and taken >= HARMS
        if harms and finding.severity == "info" and finding.signal.startswith("attention."):
            message = f"{finding.message.removesuffix(_OPEN)} {steps}: the sharpness keeps the model from learning."
            return replace(finding, severity="warning", confidence="high", message=message)
    return finding


_OPEN = ", and sharp attention may be right: cause not established."
