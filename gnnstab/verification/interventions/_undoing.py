"""A diagnosis whose causes have been undone one by one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from gnnstab.fixes import recommend
from gnnstab.observation import static_signals
from gnnstab.randomness import keeps_random_state
from gnnstab.records import Cause, Diagnosis, Finding, FixAdvice, Signals
from gnnstab.records.vocabulary import GAIN_VALUE
from gnnstab.signals import join
from gnnstab.verification.interventions._trying import Investigation, Tried, investigate
from gnnstab.verification.interventions.deciding import decided_causes, decided_findings, told

_OF_WEIGHTS = GAIN_VALUE
"""A signal that the weights alone give."""


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
    if any(finding.severity != "info" for finding in diagnosis.findings) and not signals.find(_OF_WEIGHTS):
        # A trace holds no weights; here they are.
        signals = join(signals, static_signals(model))
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


def _quieted(causes: tuple[Cause, ...], findings: tuple[Finding, ...], found: Investigation) -> tuple[Cause, ...]:
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
    """The fixes that fit what was undone: the tensor that was standardised by its name, no other norm for a post-norm stack."""
    best: dict[str, Tried] = {}
    for tried in sorted(found.tried, key=_most):
        best[tried.trial.cause] = tried
    return tuple(replace(cause, fixes=_fitting(cause.fixes, best.get(cause.cause))) for cause in causes)


def _most(tried: Tried) -> float:
    return max((share for share in tried.shares if not math.isnan(share)), default=0.0)


def _fitting(fixes: tuple[FixAdvice, ...], tried: Tried | None) -> tuple[FixAdvice, ...]:
    if tried is not None and tried.trial.name == "post-norms":
        return tuple(fix for fix in fixes if fix.fix != "layer-norm")
    if tried is None or tried.trial.name != "standardise-input":
        return fixes
    name = tried.trial.place.rpartition(".")[2]
    change = (
        f"mean, std = train_{name}.mean(0), train_{name}.std(0).clamp(min=1e-6)  # of the training set; leave id columns out\n"
        f"{name} = ({name} - mean) / std"
    )
    return tuple(replace(fix, change=change) if fix.fix == "input-standardisation" else fix for fix in fixes)
