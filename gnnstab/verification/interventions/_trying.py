"""Every suspect undone on a copy, one forward and backward each, and the symptoms measured again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from gnnstab.errors import FixError, GnnstabError
from gnnstab.fixes.model_structure import duplicate
from gnnstab.probe.replaying.evaluating import evaluating
from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import GAIN_VALUE, LOGIT_ALIGNMENT, LOGIT_FROBENIUS, LOSS
from gnnstab.rules.explanation import is_warning
from gnnstab.rules.gs301_attention_explosion import AttentionExplosion
from gnnstab.rules.gs605_absurd_weight import AbsurdWeight
from gnnstab.rules.learned import frozen
from gnnstab.rules.queries import attention, fresh, measured, sharp_from_the_start
from gnnstab.verification.interventions._investigation import ROOT, Investigation, Tried
from gnnstab.verification.interventions._measuring import Look, look
from gnnstab.verification.interventions._pairs import needs_both, pairs
from gnnstab.verification.interventions._symptoms import Symptom, symptoms_in
from gnnstab.verification.interventions._table import INTERVENTIONS
from gnnstab.verification.interventions._trial import Case, Edit, Trial
from gnnstab.verification.measuring import items

MOST_TRIALS = 12
"""Suspects that are undone; with more of them a diagnosis would take long, and the first ones stand furthest upstream."""

SOFTER = 0.5
"""Factor on the scores that shows whether sharp attention is of use."""

LEARNED = math.exp(-2)
"""Share of the loss of answers that tell no row from another up to which a model has learned, as for GS201."""


def investigate(
    findings: tuple[Finding, ...], signals: Signals, model: nn.Module, batch: Any, loss: Any, precision: str
) -> Investigation:
    """Undo what could have brought the symptoms about; the model stays as it is.

    Nothing is tried where no finding is a symptom, where the model cannot be copied, or where the short look that
    compares does not see a symptom that the full one saw.
    """
    wanted = symptoms_in(findings)
    if not wanted:
        return Investigation((), (), ())
    try:
        copy = evaluating(duplicate(model))
    except FixError:
        return Investigation((), (), ())
    case = Case(copy, items(batch)[0], loss, precision, signals, findings, wanted)
    base = _looked(case, Edit())
    if base is None:
        return Investigation((), (), ())
    there = tuple(symptom for symptom in wanted if symptom.there(base.signals))
    trials = _suspects(case, base) if there else []
    failed: set[str] = set()
    tried = tuple(_undone(case, base, there, trials, failed))
    together = _undone(case, base, there, list(pairs(tried, len(there))), set())
    tried = (*tried, *(one for one in together if needs_both(one, tried)))
    before = tuple(symptom.goal.read(base.signals) for symptom in there)
    explained = any(_restores(one, there) for one in tried if one.trial.cause != "attention-explosion")
    established = any(share >= ROOT for one in tried for share in one.shares)
    losses = None if explained else _softened(case, base, there, established)
    untried = (failed | _unknown(case)) - {one.trial.cause for one in tried}
    rate = _rate(case)
    excuse = _excuse(case, base, there) if rate is None else ""
    return Investigation(there, before, tried, frozenset(untried), rate, losses, excuse)


def _excuse(case: Case, base: Look, symptoms: tuple[Symptom, ...]) -> str:
    """A model that has learned is not blamed for how it attends; of one whose loss nobody gave, nobody knows."""
    sharp = _sharp(symptoms)
    rule = AttentionExplosion()
    began = any(sharp_from_the_start(case.signals, one, rule.warn_entropy) for one in sharp)
    if not sharp or fresh(case.signals) or began:
        return ""
    if base.over_ignorant < LEARNED:
        ignorant = base.loss / base.over_ignorant
        return f"Your loss is {base.loss:.3g}, where answers that tell nothing apart have {ignorant:.3g}: the model has learned with it."
    stuck = any(frozen(case.signals, s) is not None for s in attention(case.signals) if s.layer in sharp)
    perhaps = case.signals.kind == "checkpoint" or (
        case.signals.kind == "model" and case.signals.context.get("trained")
    )
    if case.loss is None and perhaps and not stuck and not any(rule.put_there(case.signals, one) for one in sharp):
        return "Training may have made it so; whether it is of use, your loss tells: pass it with loss=."
    return ""


def _sharp(symptoms: tuple[Symptom, ...]) -> list[str]:
    """The layers whose measured attention is a symptom."""
    found = (s.goal for s in symptoms)
    return [goal.layer for goal in found if goal.signal.startswith("attention.") and goal.layer is not None]


def _rate(case: Case) -> Finding | None:
    """What has made the weights so: memory that nobody wrote, a rate that is too high, or targets of another scale."""
    unwritten = next((f for f in case.findings if f.code == AbsurdWeight.code and is_warning(f)), None)
    if unwritten is not None:
        return unwritten
    sharp = {s.goal.layer for s in case.symptoms if s.goal.signal.startswith("attention.")}
    limit = AttentionExplosion().warn_entropy
    if fresh(case.signals) or any(sharp_from_the_start(case.signals, layer, limit) for layer in sharp):
        return None
    heads = [
        f
        for f in case.findings
        if is_warning(f) and f.explained_by is None and (f.cause == "learning-rate" or _of_targets(f))
    ]
    return heads[0] if heads else None


def _of_targets(finding: Finding) -> bool:
    """Targets of another scale drive the weights that way, as a rate does that is too high."""
    return finding.code == "GS406" and (finding.signal == LOSS or finding.message.startswith("the targets"))


def _suspects(case: Case, base: Look) -> list[Trial]:
    return [trial for suspects in INTERVENTIONS for trial in suspects(case, base)][:MOST_TRIALS]


def _unknown(case: Case) -> set[str]:
    """Causes of which nobody can say whether they are suspects, since their numbers are known of no layer."""
    numbers = {"attention-explosion": LOGIT_FROBENIUS, "unsuitable-init": GAIN_VALUE}
    return {cause for cause, signal in numbers.items() if not case.signals.find(signal)}


def _undone(
    case: Case, base: Look, symptoms: tuple[Symptom, ...], trials: list[Trial], failed: set[str]
) -> Iterator[Tried]:
    """What undoing each suspect did; the causes of trials that do not run are put into ``failed``."""
    for trial in trials:
        after = _looked(case, trial.edit)
        if after is None:
            failed.add(trial.cause)
            continue
        shares = tuple(symptom.share(base.signals, after.signals) for symptom in symptoms)
        values = tuple(symptom.goal.read(after.signals) for symptom in symptoms)
        yield (found := Tried(trial, shares, values))
        if _restores(found, symptoms):
            # The table stands upstream first: what comes after could at best do as much.
            return


def _restores(tried: Tried, symptoms: tuple[Symptom, ...]) -> bool:
    """True for what deviates from its reference and, undone, brings every symptom back entirely."""
    return tried.trial.deviates and bool(symptoms) and all(share == 1.0 for share in tried.shares)


def _looked(case: Case, edit: Edit) -> Look | None:
    """One look with an edit; None where the model has no place for it, or does not run with it."""
    backward = case.suffers("gradient.") or any(symptom.goal.counts_events for symptom in case.symptoms)
    batch = case.batch if edit.batch is None else edit.batch
    wanted = frozenset(symptom.goal.signal for symptom in case.symptoms)
    try:
        with nullcontext(case.model) if edit.model is None else edit.model(case.model) as model:
            return look(
                model, batch, edit, loss=case.loss, precision=case.precision, layers=case.signals.layers, signals=wanted,
                backward=backward,
            )  # fmt: skip
    except (GnnstabError, RuntimeError, ValueError, TypeError, IndexError, KeyError):
        # A stranger's forward may refuse what the edit makes of its model or batch: that suspect is then not tried.
        return None
    finally:
        case.model.zero_grad(set_to_none=True)


def _softened(case: Case, base: Look, symptoms: tuple[Symptom, ...], established: bool) -> tuple[float, float] | None:
    """The loss with and without softer scores, where the loss is known and the sharpness may have been learned.

    It may where training has made queries and keys agree, and where nothing that was undone explains it: values that grow
    with the training sharpen attention as well.
    """
    sharp = _sharp(symptoms)
    if not sharp or case.loss is None or fresh(case.signals) or not math.isfinite(base.loss):
        return None
    limit = AttentionExplosion().alignment
    aligned = [s for s in measured(case.signals.find(LOGIT_ALIGNMENT)) if s.layer in sharp and s.value > limit]
    factors = {layer: torch.tensor(SOFTER) for layer in sharp}
    softer = _looked(case, Edit(score_factors=factors)) if aligned or not established else None
    return None if softer is None else (base.loss, softer.loss)
