"""A diagnosis with the causes that undoing its suspects has shown; needs neither torch nor the model."""

from __future__ import annotations

import math
from dataclasses import replace

from gnnstab.fixes import recommend, standardised
from gnnstab.records import Cause, Diagnosis, Finding, FixAdvice, Signals
from gnnstab.records.vocabulary import INVESTIGATION
from gnnstab.rules import outcomes
from gnnstab.verification.interventions._investigation import Investigation, Tried, restored
from gnnstab.verification.interventions.deciding import decided_causes, decided_findings, told


def recalled(diagnosis: Diagnosis, signals: Signals) -> Diagnosis:
    """The diagnosis of a trace with what was undone at the run's end, which the trace has kept."""
    plain = signals.context.get(INVESTIGATION)
    found = None if plain is None else restored(plain, diagnosis.findings)
    return diagnosis if found is None else decided(diagnosis, found, signals)


def decided(diagnosis: Diagnosis, found: Investigation, signals: Signals) -> Diagnosis:
    """Findings, causes and fixes as what was undone has shown them; without a symptom the diagnosis as it is."""
    context = {key: value for key, value in diagnosis.context.items() if key != INVESTIGATION}
    if not found.symptoms:
        return replace(diagnosis, context=context)
    findings = decided_findings(diagnosis.findings, found)
    loud = {finding.code for finding in diagnosis.findings if finding.severity != "info"}
    tried = decided_causes(diagnosis.causes, found, loud)
    causes = _quieted(outcomes(tried, signals.kind, signals.context), findings, found)
    bare = tuple(replace(cause, fixes=()) for cause in causes)
    return replace(
        diagnosis, findings=findings, causes=_placed(recommend(bare, findings, signals), found),
        context={**context, "interventions": tuple(told(found))},
    )  # fmt: skip


def _quieted(causes: tuple[Cause, ...], findings: tuple[Finding, ...], found: Investigation) -> tuple[Cause, ...]:
    """Sharp attention that is earned is a fact about the model, and no cause of anything."""
    loud = {
        finding.code for finding in findings if finding.severity != "info" and finding.cause == "attention-explosion"
    }
    if not found.earned or loud:
        return causes
    return tuple(
        replace(cause, status="present", how="undone", share=None, reason=found.earned)
        if cause.cause == "attention-explosion" and cause.status in ("root-cause", "contributing")
        else cause
        for cause in causes
    )


def _placed(causes: tuple[Cause, ...], found: Investigation) -> tuple[Cause, ...]:
    """The fixes that fit what was undone: the tensor that was standardised by its name, no other norm for a post-norm stack."""
    best: dict[str, Tried] = {}
    for tried in sorted(found.tried, key=_most):
        best[tried.trial.cause] = tried
    in_code = {name for name, tried in best.items() if tried.trial.name == "unit-factors"}
    if any(cause.status == "root-cause" and cause.cause in in_code for cause in causes):
        return tuple(replace(cause, fixes=()) for cause in causes)  # What to change is one factor in the user's code.
    return tuple(replace(cause, fixes=_fitting(cause.fixes, best.get(cause.cause))) for cause in causes)


def _most(tried: Tried) -> float:
    return max((share for share in tried.shares if not math.isnan(share)), default=0.0)


_OF_SUMS = {
    "divide-sums": "",
    "divide-attention-sums": "weigh-messages",
    "divide-sums-by-hand": "divide-sum",
    "divide-pooled": "divide-sum",
}
"""What was undone of a sum → the one fix that fits it; empty for those that fit no other."""


def _fitting(fixes: tuple[FixAdvice, ...], tried: Tried | None) -> tuple[FixAdvice, ...]:
    if tried is not None and tried.trial.name == "post-norms":
        return tuple(fix for fix in fixes if fix.fix != "layer-norm")
    if tried is not None and tried.trial.cause == "sum-aggregation":
        alone = _OF_SUMS.get(tried.trial.name, "divide-sum")
        own = [fix for fix in fixes if fix.fix == alone or (not alone and fix.fix not in _OF_SUMS.values())]
        return tuple(own)
    if tried is None or tried.trial.name != "standardise-input":
        return fixes
    name = tried.trial.place.rpartition(".")[2]
    change = standardised(name, tried.trial.written)
    return tuple(replace(fix, change=change) if fix.fix == "input-standardisation" else fix for fix in fixes)
