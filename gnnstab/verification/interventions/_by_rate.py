"""What a run's own rate has made of weights that began well: its steps anew on copies, from its beginning, at that rate and at lower ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from gnnstab.errors import FixError, GnnstabError
from gnnstab.fixes.model_structure import duplicate
from gnnstab.probe.optimizer.optimizer_steps import Bench
from gnnstab.probe.optimizer.softening import MORE_STEPS
from gnnstab.probe.replaying.evaluating import evaluating
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Diagnosis, Finding, LayerFacts, Signal, Signals
from gnnstab.records.rises import LASTING
from gnnstab.records.vocabulary import (
    GRADIENT_NORM,
    LOSS,
    OPTIMIZER_MADE,
)
from gnnstab.rules.explanation import is_warning
from gnnstab.verification.interventions._measuring import look
from gnnstab.verification.interventions._symptoms import STATES, Symptom
from gnnstab.verification.interventions._trial import Edit
from gnnstab.verification.targets import goal_of

LOWER = 3.0
"""What the rate is divided by, again and again; smaller changes make no difference that can be measured."""

MOST = 5
"""Times that it is."""

LAST = 5
"""Losses at the end whose median says where steps have come to."""

_CLIPPED = 0.9
"""Share of the first gradient's norm, beyond all norms of a run, from which on the run has limited them."""


def states_in(findings: Sequence[Finding]) -> tuple[Symptom, ...]:
    """The warnings of states of the weights that no finding beside them explains."""
    own = [f for f in findings if is_warning(f) and f.signal in STATES]
    codes = {f.code for f in own}
    return tuple(Symptom(f, goal_of(f)) for f in own if f.explained_by is None or f.explained_by in codes)


def by_its_rate(diagnosis: Diagnosis, bench: Bench, batch: Any) -> list[Signal]:
    """What the rate of a run, whose ``bench`` begins as it began, has made of its weights; nothing where a rate is blamed already, or nothing is shown.

    Raises:
        UsageError: As `Bench.trial`.
        TimeIsUpError: The time of the bench is over.
    """
    symptoms, blamed = states_in(diagnosis.findings), {f.cause for f in diagnosis.findings if is_warning(f)}
    steps = max(
        (int(s.detail["steps"]) for s in diagnosis.signals if s.name == LOSS and "steps" in s.detail), default=0
    )
    broken = any(event.kind == "non-finite" for event in diagnosis.events)
    if not symptoms or not steps or "learning-rate" in blamed or broken:
        return []
    norms = (s.detail for s in diagnosis.signals if s.name == GRADIENT_NORM)
    found = made_by_rate(
        symptoms, bench, min(MORE_STEPS, steps), batch=batch, layers=diagnosis.layers,
        precision=str(diagnosis.context.get("precision", "fp32")),
        norm=max((float(one.get("worst", 0.0)) for one in norms), default=0.0),
    )  # fmt: skip
    return [] if found is None else [found]


def made_by_rate(
    symptoms: Sequence[Symptom],
    bench: Bench,
    steps: int,
    *,
    batch: Any,
    layers: tuple[LayerFacts, ...],
    precision: str,
    norm: float = 0.0,
) -> Signal | None:
    """Share of the way back to health that a lower rate goes, where the run's own makes symptoms within its first ``steps``; None where that is not shown.

    It is shown where nothing of the kind is there at the beginning, where the steps as they are bring it about, and where as many at a third, a ninth, … of
    the rate come down to the loss of their end without it, hold that, and end without it or a factor e further down: a rate that is too low would show
    none either, and what is learned may well be sharp.

    Args:
        symptoms: As of `states_in`.
        bench: Of model and optimizer as the run began.
        steps: That are taken.
        batch: That of the bench, as of `look`.
        layers: What is known of them.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        norm: The largest norm of a gradient that the run has had, 0 where it is not known: where the first one is larger, the run clips.

    Raises:
        UsageError: As `Bench.trial`.
        TimeIsUpError: The time of the bench is over.
    """
    wanted = frozenset(symptom.goal.signal for symptom in symptoms)

    def seen(model: nn.Module) -> Signals | None:
        try:
            with forked_rng():
                copy = evaluating(duplicate(model))
                return look(
                    copy, batch, Edit(), loss=None, precision=precision, layers=layers, signals=wanted, backward=False
                ).signals
        except (FixError, GnnstabError, RuntimeError, ValueError, TypeError, LookupError):
            return None

    began = seen(bench.twin())
    if not symptoms or not _healthy(symptoms, began) or began is None:
        return None
    if 0 < norm < _CLIPPED * bench.gradient_norm():
        bench = replace(bench, clip=norm)
    own = _trained(bench, steps, 1.0, -math.inf, seen)
    there = [] if own.shown is None else [symptom for symptom in symptoms if symptom.there(own.shown)]
    if own.shown is None or not there:
        return None
    for times in range(1, MOST + 1):
        factor = LOWER**-times
        lower = _trained(bench, steps, factor, own.ended, seen)
        if lower.shown is None and max(lower.losses) <= LASTING * lower.losses[0]:
            return None  # Those below learn even less.
        if lower.shown is None or not lower.ended <= LASTING * own.ended:
            continue
        after, stays = lower.shown, lower.ended <= math.exp(-1) * own.ended or _healthy(there, lower.left)
        if stays and _healthy(there, after):
            detail = {
                "rate": bench.largest_rate, "lower": factor * bench.largest_rate, "steps": len(own.losses) - 1,
                "optimizer": type(bench.optimizer).__name__, "first": own.losses[0], "best": own.ended, "undone": lower.ended,
                "states": [_state(symptom, began, own.shown, after) for symptom in there[:20]],
            }  # fmt: skip
            return Signal(OPTIMIZER_MADE, min(s.share(own.shown, after) for s in there), source="steps", detail=detail)
    return None


class _Trained(NamedTuple):
    """What steps on a copy have come to."""

    losses: tuple[float, ...]
    ended: float
    """Median of the last losses."""

    shown: Signals | None
    """Of the copy where its loss had come down as far as was asked; None where it never did, or could not be looked at."""

    left: Signals | None
    """The same at the end."""


def _trained(
    bench: Bench, steps: int, factor: float, enough: float, seen: Callable[[nn.Module], Signals | None]
) -> _Trained:
    """Steps at ``factor`` times the rate, all of them, and a look where the loss is ``enough``: at their end where it is no less than the first, or −inf.

    To go on from where another rate has come to is to learn more, which makes attention sharper in any case.
    """
    kept: list[nn.Module] = []
    found: list[Signals | None] = []

    def reached(losses: Sequence[float]) -> bool:
        if not found and len(losses) > 1 and losses[-1] <= enough < losses[0]:
            found.append(seen(kept[0]))
        return False

    losses = bench.trial(steps, factor=factor, edit=kept.append, until=reached).losses
    reached(losses)
    left = seen(kept[0])
    if not found and not -math.inf < enough < losses[0]:
        found.append(left)
    last = sorted(losses[-LAST:])
    return _Trained(losses, last[len(last) // 2], found[0] if found else None, left)


def _healthy(symptoms: Sequence[Symptom], signals: Signals | None) -> bool:
    """True where none of them is there, by a margin."""
    return signals is not None and all(one.goal.crossed(one.goal.read(signals)) for one in symptoms)


def _state(symptom: Symptom, *signals: Signals) -> Mapping[str, Any]:
    """What was at the beginning, after steps at the run's rate, and after those at a lower one."""
    began, made, lower = (symptom.goal.read(one) for one in signals)
    own = symptom.goal
    return {"signal": own.signal, "layer": own.layer, "began": began, "made": made, "lower": lower}
