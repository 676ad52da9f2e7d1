"""From findings to causes: one root cause per chain of symptoms, and a reason for every one of the five."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gnnstab.records import FIVE_CAUSES, FURTHER_CAUSES, Cause, Finding, RuleStatus, Signals
from gnnstab.records.findings import NOT_UNDONE
from gnnstab.records.vocabulary import (
    LOSS_MARKED_TARGETS,
    OPTIMIZER_EPS_DAMPING,
    OPTIMIZER_GROUP_RATE,
    OPTIMIZER_INPUT_SHARE,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_MADE,
    OPTIMIZER_SLOW,
    OPTIMIZER_UNDONE,
    OPTIMIZER_UNSEEN,
    PLACE_UNREACHED_TARGETS,
)
from gnnstab.rules._by_steps import harmful
from gnnstab.rules._five_causes import status_from_configuration
from gnnstab.rules.explanation import is_warning


def causes(findings: Sequence[Finding], statuses: Sequence[RuleStatus], signals: Signals) -> tuple[Cause, ...]:
    """The five causes, always and in their order, then the further ones that are not absent; without fixes.

    A cause is ``root-cause`` when one of its warnings heads a chain, ``contributing`` when all of them follow from
    others or only add to them, ``present`` with information alone. ``findings`` must carry ``explained_by``.
    """
    by_code = {status.code: status for status in statuses}
    five = [_five(cause, findings, by_code, signals) for cause in FIVE_CAUSES]
    further = [_further(cause, findings, by_code) for cause in FURTHER_CAUSES]
    found = (*five, *(cause for cause in further if cause is not None))
    known = [replace(cause, how=_how(cause, findings), share=_share(cause, findings)) for cause in found]
    return outcomes(known, signals.kind, signals.context)


_DRAWN = "unsuitable-init"
"""Begins with the weights as they were drawn, which nobody sees in trained ones."""

_MADE = (_DRAWN, "dead-units", "attention-explosion", "saturated-gate")
"""States of weights that training can bring about as well."""

_PERHAPS = "Perhaps an outcome"


def outcomes(found: Sequence[Cause], kind: str, context: Mapping[str, Any]) -> tuple[Cause, ...]:
    """In trained weights without their run, a state of weights may be the outcome and not the cause: it is said, and how they were drawn is no root.

    Trained are those whose steps somebody counted, or whose matrices have few large directions; the shape of their distribution alone may be
    a draw of the user's: there it is said that nobody knows.
    """
    shape = str(context.get("reshaped") or "")
    if kind == "trace":
        return tuple(found)
    if not context.get("steps_counted") and not shape:
        return tuple(_unknown(cause, kind, context) for cause in found)
    why = str(context.get("trained_reason") or "") if context.get("steps_counted") else shape
    told, said = [], f"{_PERHAPS} of training, not where it began ({why}; a Monitor over the run tells)"
    for cause in found:
        if cause.cause in _MADE and cause.status == "root-cause" and _PERHAPS not in cause.reason:
            status = "contributing" if cause.cause == _DRAWN else cause.status
            cause = replace(cause, status=status, reason=f"{cause.reason.rstrip('.')}. {said}.")
            said = f"{_PERHAPS} of training as well"
        told.append(cause)
    return tuple(told)


_UNTOLD = "Whether they were drawn so or came to be so in training is not in the file."


def _unknown(cause: Cause, kind: str, context: Mapping[str, Any]) -> Cause:
    """How weights were drawn, of a file that does not tell whether they were trained."""
    blamed = cause.cause == _DRAWN and cause.status == "root-cause" and _UNTOLD not in cause.reason
    if not blamed or kind != "checkpoint" or context.get("trained") is not None:
        return cause
    return replace(cause, reason=f"{cause.reason.rstrip('.')}. {_UNTOLD}")


_IN_STEPS = (OPTIMIZER_LOSS_RISE, OPTIMIZER_SLOW, OPTIMIZER_EPS_DAMPING, OPTIMIZER_GROUP_RATE)
"""Signals of real steps on a copy, of which no cause is the thing undone."""


def _how(cause: Cause, findings: Sequence[Finding]) -> str:
    """``observed`` where a rule sees the cause itself, ``tried`` where steps on a copy show it, ``inferred`` where a mechanism ties a symptom to it."""
    if cause.status not in ("root-cause", "contributing"):
        return ""
    if _share(cause, findings) is not None:
        return "undone"
    # GS502 names the cause of an event only where the repeat of the step has shown it; from a file it infers one.
    own = [f for f in findings if f.cause == cause.cause]
    repeated = any((f.code == "GS502" and f.step is not None) or f.signal in _SEEN for f in own)
    if repeated or OBSERVED.intersection(cause.codes):
        return "observed"
    return "tried" if any((f.signal in _IN_STEPS or harmful(f)) and is_warning(f) for f in own) else "inferred"


def _share(cause: Cause, findings: Sequence[Finding]) -> float | None:
    """What the undoing on a copy has brought back, where a rule speaks of one."""
    shares = (OPTIMIZER_UNDONE, OPTIMIZER_UNSEEN, OPTIMIZER_INPUT_SHARE, OPTIMIZER_MADE)
    own = [f.value for f in findings if f.cause == cause.cause and f.signal in shares and is_warning(f)]
    return max(own, default=None) if cause.status == "root-cause" else None


def modest(findings: Sequence[Finding], found: Sequence[Cause]) -> tuple[Finding, ...]:
    """The findings, of which those whose cause is only inferred are of medium confidence at most."""
    inferred = {cause.cause for cause in found if cause.how in NOT_UNDONE}
    return tuple(
        replace(f, confidence="medium") if f.cause in inferred and f.confidence == "high" and is_warning(f) else f
        for f in findings
    )


def _five(cause: str, findings: Sequence[Finding], statuses: Mapping[str, RuleStatus], signals: Signals) -> Cause:
    own = [f for f in findings if f.cause == cause]
    status, facts = status_from_configuration(cause, statuses, signals)
    judged = _judged(own, findings)
    if judged is None:
        return Cause(cause, status, facts, _codes(own))
    said = _evidence(own) if cause == "attention-explosion" else f"{_evidence(own)} {facts}"
    return Cause(cause, judged, said.strip(), _codes(own))


def _further(cause: str, findings: Sequence[Finding], statuses: Mapping[str, RuleStatus]) -> Cause | None:
    own = [f for f in findings if f.cause == cause]
    judged = _judged(own, findings)
    if judged is not None:
        return Cause(cause, judged, _evidence(own), _codes(own))
    if own:
        return Cause(cause, "present", f"{own[0].message} No symptom was measured.", _codes(own))
    reason = _not_evaluable(cause, statuses)
    return Cause(cause, "not-evaluable", reason) if reason else None


def _judged(own: Sequence[Finding], findings: Sequence[Finding]) -> str | None:
    """``root-cause`` or ``contributing`` from the findings of one cause; None when they say neither."""
    strong = [f for f in own if is_warning(f)]
    if any(f.explained_by is None and not _only_adds(f, findings) for f in strong):
        return "root-cause"
    return "contributing" if strong or any(f.code in _ADD_AS_INFORMATION for f in own) else None


_ADD_AS_INFORMATION = ("GS102",)
"""Rules that speak only beside a measured symptom, which they make worse."""


def _only_adds(finding: Finding, findings: Sequence[Finding]) -> bool:
    """True for weak static evidence beside a measured symptom that something else explains."""
    if finding.code == "GS301" and finding.signal.startswith("logit.") and finding.confidence == "low":
        return any(f.code == "GS302" and f.layer == finding.layer for f in findings)
    return False


def _evidence(own: Sequence[Finding]) -> str:
    """The message of the finding that counts most, with what it follows from."""
    strong = sorted(
        (f for f in own if is_warning(f)),
        key=lambda f: (f.explained_by is not None, not _at_any_rate(f), f.severity != "error"),
    )
    head = (strong or list(own))[0]
    follows = f" It follows from {head.explained_by}." if head.explained_by else ""
    return f"{head.message}{follows}"


def _at_any_rate(finding: Finding) -> bool:
    """True of a setting of the optimizer beyond its limit, under which no rate trains: all else that is seen of the rate follows from it."""
    return finding.code == "GS606" and finding.signal != OPTIMIZER_LR_JUMP


def _codes(own: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(sorted({f.code for f in own}))


def _not_evaluable(cause: str, statuses: Mapping[str, RuleStatus]) -> str:
    """The reason why a cause could not be judged, ``""`` when at least one of its rules came to a verdict."""
    codes = CODES_OF_CAUSE.get(cause, ())
    own = [statuses[code] for code in codes if code in statuses]
    blind = [status for status in own if status.status == "not-evaluable"]
    if not blind or any(status.status in ("passed", "fired", "suppressed") for status in own):
        return ""
    return f"{blind[0].code}: {blind[0].reason}"


OBSERVED = frozenset(
    {
        "GS104",
        "GS108",
        "GS305",
        "GS402",
        "GS407",
        "GS408",
        "GS503",
        "GS504",
        "GS602",
        "GS604",
        "GS608",
        "GS610",
        "GS701",
        "GS703",
        "GS704",
        "GS705",
    }
)
"""Rules that see the cause itself, such as NaN in the data or a parameter that never got a gradient; what others say about
a cause is inferred from a symptom."""

_SEEN = (LOSS_MARKED_TARGETS, PLACE_UNREACHED_TARGETS)
"""Signals of the targets themselves, of which the same holds."""

CODES_OF_CAUSE: Mapping[str, tuple[str, ...]] = {
    "sum-aggregation": ("GS401", "GS404"),
    "feature-scale": ("GS406",),
    "learning-rate": ("GS601", "GS603", "GS606", "GS608"),
    "adam-epsilon": ("GS602",),
    "precision": ("GS501", "GS504"),
    "dead-units": ("GS701",),
    "isolated-nodes": ("GS402",),
    "normalization-misuse": ("GS106", "GS108"),
    "oversmoothing": ("GS704",),
    "active-clamp": ("GS703",),
    "non-finite-data": ("GS407",),
    "uninitialized-parameter": ("GS502", "GS605"),
    "never-updated-parameter": ("GS604",),
    "saturated-gate": ("GS104",),
    "undefined-operation": ("GS502",),
    "masking": ("GS305", "GS408", "GS502"),
    "indistinguishable-nodes": ("GS704", "GS408"),
    "stale-gradients": ("GS610",),
}
"""Rules whose verdict decides whether a further cause was looked at."""
