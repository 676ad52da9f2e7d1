"""A diagnosis whose recommended fixes have been tried."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from gnnstab.randomness import keeps_random_state
from gnnstab.records import Cause, Diagnosis, Finding, FixAdvice
from gnnstab.records.vocabulary import LOSS_FIRST_RISE, OPTIMIZER_LOSS_RISE, in_group
from gnnstab.verification._protocol import NOTHING_FIRES, verify
from gnnstab.verification._sweep import Progress
from gnnstab.verification._verdict import Verdict
from gnnstab.verification.fix_spec import FixSpec
from gnnstab.verification.interventions.deciding import ROOT

_REFUTED = ("no-effect", "made-worse")

_UNSHOWN = "not tested: the model as it was passed shows no symptom of the run"

LOWER = "lower-lr"

LOOP = "for group in optimizer.param_groups:"
"""How a change of the rate of all groups begins."""

_ORDER = ("confirmed", "inconclusive", "not-tested", "no-effect", "made-worse")


@keeps_random_state
def prove(
    diagnosis: Diagnosis,
    model: nn.Module,
    *,
    batch: Any,
    loss: Any = None,
    precision: str = "fp32",
    progress: Progress | None = None,
    **options: Any,
) -> Diagnosis:
    """The diagnosis with a verdict on every fix of a root or contributing cause; confirmed fixes come first.

    The fixes are judged by the most severe symptom of the model; those of a cause that the optimizer alone shows, by the
    finding that led to it: no symptom of the current weights tells whether a run would have gone well at another rate.
    A cause whose fixes all had no effect, or a bad one, loses its status: it is merely present, or contributing where it was seen
    or undone on a copy. With the last root gone, the cause is not established. ``options`` are those of `verify`.
    """
    judged = [c for c in diagnosis.causes if c.status in ("root-cause", "contributing")]
    proven: dict[str, Cause] = {}
    trying: Callable[..., list[Verdict]] = partial(
        verify, model, batch=batch, loss=loss, precision=precision, progress=progress, **options
    )
    for finding, causes in _groups(diagnosis, judged):
        names = list(dict.fromkeys(advice.fix for cause in causes for advice in cause.fixes))
        if not names:
            continue
        found = trying(_as_told(diagnosis, names), finding=finding)
        found = [_searched(verdict, trying, finding) for verdict in found]
        # A model that its run has not ruined, as one with fresh weights, says nothing about what the run has shown.
        told = [v for v in found if diagnosis.target.kind != "trace" or not v.reason.startswith(NOTHING_FIRES)]
        verdicts = {verdict.fix: verdict for verdict in told}
        proven |= {cause.cause: _proven(cause, verdicts) for cause in causes}
    return replace(diagnosis, causes=tuple(proven.get(cause.cause, cause) for cause in diagnosis.causes))


def _as_told(diagnosis: Diagnosis, names: Sequence[str]) -> list[str | FixSpec]:
    """The fixes, a lower rate as the one that steps of the run have shown: what the diagnosis says is what is tried."""
    rises = [s.detail for s in diagnosis.signals if s.name == OPTIMIZER_LOSS_RISE]
    rates = [rate for detail in rises if isinstance(rate := detail.get("calm_lr"), float) and rate > 0]
    return [FixSpec(name, {"lr": rates[0]}) if name == LOWER and rates else name for name in names]


def _searched(verdict: Verdict, trying: Callable[..., list[Verdict]], finding: Finding | None) -> Verdict:
    """A rate that the first steps of a run have shown and that is not low enough for more of them, or for another batch: the next lower one that is confirmed."""
    rate = verdict.options.get("lr")
    if rate is None or verdict.verdict in ("confirmed", "not-tested") or verdict.before is None:
        return verdict
    for divisor in (3, 9):
        (other,) = trying([FixSpec(verdict.fix, {"lr": rate / divisor})], finding=finding)
        if other.verdict == "confirmed":
            why = f"{rate:.3g}, which the first steps of the run showed, is not low enough: {verdict.reason}"
            change = f"{other.change}; {rate:.3g}, as was warned, is not low enough"
            return replace(other, reason=f"{other.reason}; {why}", change=change)
    return verdict


def _groups(diagnosis: Diagnosis, causes: Sequence[Cause]) -> Iterator[tuple[Finding | None, list[Cause]]]:
    """Causes with the finding that their fixes are judged by; None for the most severe symptom of the model."""
    by_symptom = []
    for cause in causes:
        own = [f for f in diagnosis.at_least("warning") if f.code in cause.codes and f.signal in in_group("setting")]
        rises = [f for f in diagnosis.at_least("warning") if f.code in cause.codes and f.signal == LOSS_FIRST_RISE]
        if own:
            yield own[0], [cause]
        elif rises:
            # What the first steps of a run have shown, steps at its rate show again on a copy.
            yield replace(rises[0], signal=OPTIMIZER_LOSS_RISE), [cause]
        else:
            by_symptom.append(cause)
    yield None, by_symptom


def _proven(cause: Cause, verdicts: Mapping[str, Verdict]) -> Cause:
    fixes = [
        _at_its_rate(verdicts[f.fix].as_advice(f), verdicts[f.fix]) if f.fix in verdicts else replace(f, note=_UNSHOWN)
        for f in cause.fixes
    ]
    ordered = tuple(sorted(fixes, key=lambda advice: _ORDER.index(advice.verdict)))
    if not (ordered and all(advice.verdict in _REFUTED for advice in ordered)):
        return replace(cause, fixes=ordered)
    # What was seen itself, or went away when it was undone, is there, whatever its fixes do.
    shown = cause.how == "observed" or (cause.share is not None and cause.share >= ROOT)
    status = "contributing" if shown else "present"
    reason = f"{cause.reason} Verification spoke against it as the root: none of its fixes had an effect."
    return replace(cause, status=status, how=cause.how if shown else "", reason=reason, fixes=ordered)


def _at_its_rate(advice: FixAdvice, verdict: Verdict) -> FixAdvice:
    """A lower learning rate as the one that was confirmed; one of a parameter group, or of a schedule, stays as it is."""
    confirmed = verdict.fix == LOWER and verdict.verdict == "confirmed"
    return replace(advice, change=verdict.change) if confirmed and advice.change.startswith(LOOP) else advice
