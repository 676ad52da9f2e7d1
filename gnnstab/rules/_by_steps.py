"""What the same steps on two copies, one of them changed, say: the change helps, does harm, or neither."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gnnstab.records import Finding, Signals
from gnnstab.records.rises import LASTING, earned, harms
from gnnstab.records.vocabulary import LOSS, OPTIMIZER_INPUT_SHARE, OPTIMIZER_SOFTER
from gnnstab.rules.learned import KEEPS, came_down

ACQUITS = 0.5
"""× best loss with softer scores, up to which sharp ones are acquitted: one batch is learned by heart the easier the sharper they are;
measured: .13 to .38 where they are meant, .67 and .81 where weights were blown up. So are those that help steps for half of the rows with the
other half. Those of a large input's scores (GS302) are innocent: there what
`LASTING` allows is enough."""


def by_steps(finding: Finding, signals: Signals) -> Finding:
    """A finding of sharp attention as the steps with softer scores of its layer judge it: what they are no better without does no harm."""
    for signal in signals.find(OPTIMIZER_SOFTER):
        if finding.layer not in signal.detail.get("names", ()):
            continue
        steps = _steps("With softer scores", signal.detail)
        # Softened, a trained network is another function, and has to learn anew what it knew: there only a large loss acquits.
        most = LASTING if finding.code == "GS302" else ACQUITS
        unseen = signal.detail.get("unseen") is True
        if (written := _written(finding.layer, signal.detail)) and finding.severity != "info":
            return replace(finding, confidence="high", message=f"{finding.message} {written}")
        if not _learns(signal.detail):
            continue
        acquits = earned(signal.detail) if signal.detail.get("trained") else signal.value <= most or unseen
        if acquits and not _by_heart(signal.detail):
            helps = unseen or earned(signal.detail)
            end = "the sharpness is earned" if helps else "it does no harm that steps show"
            return replace(finding, severity="info", message=f"{finding.message} {steps}: {end}.")
        harm = harms(signal.detail) and _gain(signal.detail) > _left(signals) and not _beyond(signals, signal.detail)
        if harm and finding.signal.startswith("attention."):
            severity = "warning" if finding.severity == "info" else finding.severity
            message = f"{finding.message.replace(OPEN, '.')} {steps}: {KEEPS}"
            return replace(finding, severity=severity, confidence="high", message=message)
    return finding


def harmful(finding: Finding) -> bool:
    """True for sharp attention that steps with softer scores have shown to keep the model from learning."""
    return finding.message.endswith(KEEPS)


def by_steps_of_inputs(finding: Finding, signals: Signals) -> Finding:
    """A finding of the scale of a tensor of the batch as the steps with such tensors standardised judge it."""
    for signal in signals.find(OPTIMIZER_INPUT_SHARE):
        if finding.layer not in signal.detail.get("names", ()):
            continue
        message = f"{finding.message} {_steps('With it standardised', signal.detail)}"
        # Not by its share of the progress: a loss that large inputs have raised falls far in any case.
        if signals.kind == "trace" and came_down(signals):
            return replace(finding, message=f"{message}.")
        if not float(signal.detail.get("best", math.nan)) <= LASTING * float(signal.detail.get("undone", math.nan)):
            return replace(finding, confidence="high", message=f"{message}.")
        if _by_heart(signal.detail):
            continue
        return replace(finding, severity="info", message=f"{message}: it does no harm that steps show.")
    return finding


def _steps(what: str, told: Mapping[str, Any]) -> str:
    best, undone = (float(told.get(key, math.nan)) for key in ("best", "undone"))
    return f"{what} on a copy your optimizer's steps bring the loss of one batch to {undone:.3g} instead of {best:.3g}"


def _written(layer: str | None, told: Mapping[str, Any]) -> str:
    """Where scores that were too large before any training do nothing for rows that are not learned: what these say; else empty."""
    scales = told.get("scales")  # A trace may come from a stranger.
    scale = scales.get(layer) if isinstance(scales, dict) else None
    as_is, divided = (float(told.get(key, math.nan)) for key in ("others", "others_divided"))
    if not isinstance(scale, (int, float)) or not divided <= as_is:
        return ""
    return (
        f"It is so before any training: steps for half of the rows bring the loss of the others, with these left as they were, to {divided:.3g} with "
        f"the scores divided by {scale:.3g}, and to {as_is:.3g} as they are."
    )


def _learns(told: Mapping[str, Any]) -> bool:
    """False where neither has come below the loss of an output of zeros: what learns nothing is no witness."""
    best, undone, zeros = (told.get(key) for key in ("best", "undone", "zeros"))
    return not isinstance(zeros, float) or min(float(best or math.nan), float(undone or math.nan)) < zeros


def _by_heart(told: Mapping[str, Any]) -> bool:
    """True where both have learned the batch by heart, and equally well: that tells them not apart."""
    first, best, undone = (float(told.get(key, math.nan)) for key in ("first", "best", "undone"))
    return max(best, undone) <= NOTHING * first and undone <= LASTING * best


def _beyond(signals: Signals, told: Mapping[str, Any]) -> bool:
    """True where both have come a factor e below all that a run has: one batch learned by heart tells nothing of what the run learns."""
    reached = [s.detail.get("best") for s in signals.find(LOSS)]
    best, undone = (float(told.get(key, math.nan)) for key in ("best", "undone"))
    return any(isinstance(one, float) and math.e * max(best, undone) < one for one in reached)


def _gain(told: Mapping[str, Any]) -> float:
    return float(told.get("best", math.nan)) - float(told.get("undone", math.nan))


def _left(signals: Signals) -> float:
    """Loss that is next to nothing beside the one that a run began with; 0 without a run."""
    starts = [s.detail.get("start") for s in signals.find(LOSS)]
    return max((NOTHING * start for start in starts if isinstance(start, (int, float))), default=0.0)


NOTHING = 0.01
"""Share of a run's first loss that is not worth a warning: what has learned 99 % of it has learned."""

OPEN = ", nothing that could be undone differs from its reference, and sharp attention may be right: cause not established."
"""How a message of sharp attention ends where nothing is known of its cause."""
