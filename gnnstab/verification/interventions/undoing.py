"""A diagnosis whose causes have been undone one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from gnnstab.fixes import recommend
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Cause, Diagnosis, Signals
from gnnstab.verification.interventions.deciding import decided_causes, decided_findings, told
from gnnstab.verification.interventions.trying import Investigation, investigate


@keeps_random_state
def undo(diagnosis: Diagnosis, model: nn.Module, *, batch: Any, loss: Any = None, precision: str = "fp32") -> Diagnosis:
    """The diagnosis with root, contributing and explained-by from what undoing each suspect on a copy has shown.

    Args:
        diagnosis: Of this model, or of the run that ended with it.
        model: Any module; it stays as it is, as do its gradients and every random generator.
        batch: As for `gnnstab.diagnose`; the first of several is used.
        loss: ``callable(output, batch) -> scalar``; a fixed random linear read-out of the output when omitted.
        precision: ``fp32``, ``fp16`` or ``bf16``: the forward runs under autocast to it.

    Where no finding is a symptom that one forward and backward can show, the diagnosis comes back as it is.
    """
    signals = Signals(
        diagnosis.target.kind, diagnosis.layers, diagnosis.signals, diagnosis.series, diagnosis.events,
        context=diagnosis.context,
    )  # fmt: skip
    found = investigate(diagnosis.findings, signals, model, batch, loss, precision)
    if not found.symptoms:
        return diagnosis
    findings = decided_findings(diagnosis.findings, found)
    causes = _quieted(decided_causes(diagnosis.causes, found), findings, found)
    bare = tuple(replace(cause, fixes=()) for cause in causes)
    context = {**diagnosis.context, "interventions": tuple(told(found))}
    return replace(
        diagnosis, findings=findings, causes=_placed(recommend(bare, findings, signals), found), context=context
    )


def _quieted(causes: tuple[Cause, ...], findings: tuple[Any, ...], found: Investigation) -> tuple[Cause, ...]:
    """Sharp attention that is earned is a fact about the model, and no cause of anything."""
    loud = {
        finding.code for finding in findings if finding.severity != "info" and finding.cause == "attention-explosion"
    }
    if not found.earned or found.losses is None or loud:
        return causes
    before, after = found.losses
    reason = f"Softer scores on a copy raise your loss from {before:.3g} to {after:.3g}: the sharpness is earned."
    return tuple(
        replace(cause, status="present", how="undone", share=None, reason=reason)
        if cause.cause == "attention-explosion" and cause.status in ("root-cause", "contributing")
        else cause
        for cause in causes
    )


def _placed(causes: tuple[Cause, ...], found: Investigation) -> tuple[Cause, ...]:
    """The change for the tensor that was standardised, under its own name."""
    names = [tried.trial.place for tried in found.tried if tried.trial.cause == "feature-scale"]
    best = max(
        (tried for tried in found.tried if tried.trial.cause == "feature-scale"),
        key=lambda tried: max((share for share in tried.shares if share == share), default=0.0),
        default=None,
    )
    if best is None or not names:
        return causes
    name = best.trial.place.rpartition(".")[2]
    change = (
        f"mean, std = train_{name}.mean(0), train_{name}.std(0).clamp(min=1e-6)  # of the training set; leave id columns out\n"
        f"{name} = ({name} - mean) / std"
    )
    return tuple(
        replace(
            cause,
            fixes=tuple(replace(f, change=change) if f.fix == "input-standardisation" else f for f in cause.fixes),
        )
        if cause.cause == "feature-scale"
        else cause
        for cause in causes
    )
