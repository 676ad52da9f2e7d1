"""What the live rules said while the run went on: kept in the trace as events, and part of every later diagnosis."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gnnstab.records import SEVERITIES, Event, Finding, Series, Signals
from gnnstab.records.vocabulary import (
    GRADIENT_SPIKE,
    LOSS_FIRST_RISE,
    OPTIMIZER_GROUP_RATE,
    OPTIMIZER_LR_JUMP,
    OPTIMIZER_MADE,
    OUTPUT_GROWTH,
    PRECISION_ROUNDING,
    SCORE_GROWTH,
    SCORE_MAX_ABS,
)
from gnnstab.rules.base import Rule
from gnnstab.rules.run_losses import came_down_after, learned_half, loss_at_its_best, trained_well

KIND = "finding"
LONG = 50
"""Steps after which a forecast has come true or not: the horizon of those that the live rules make."""

LEAP = 100.0
"""Growth within one recorded step that has happened, and is not expected to: training moves scores by percents a step."""

_OF_THE_RUN = ("GS601", "GS603", "GS607")
"""Rules that judge the course of a run."""

_TEXTS = ("code", "name", "cause", "severity", "confidence", "signal", "unit")
_NUMBERS = ("value", "threshold")


def as_event(finding: Finding) -> Event:
    """The event that keeps a finding; `findings_in` is the way back."""
    kept = {name: getattr(finding, name) for name in (*_TEXTS, *_NUMBERS)}
    step = 0 if finding.step is None else finding.step
    heads = () if finding.head is None else (finding.head,)
    return Event(step, KIND, finding.layer, heads=heads, message=finding.message, detail=kept)


def findings_in(events: Iterable[Event]) -> list[Finding]:
    """The findings that events hold, in order of steps; what is none, in the trace of a stranger, is left out."""
    found = [_finding(event) for event in events if event.kind == KIND]
    return [finding for finding in found if finding is not None]


def _finding(event: Event) -> Finding | None:
    kept: dict[str, Any] = {name: event.detail.get(name) for name in (*_TEXTS, *_NUMBERS)}
    if not all(isinstance(kept[name], str) for name in _TEXTS) or kept["severity"] not in SEVERITIES:
        return None
    if not all(type(kept[name]) in (int, float) for name in _NUMBERS):
        return None
    head = event.heads[0] if event.heads else None
    return Finding(**kept, layer=event.layer, head=head, step=event.step, message=event.message)


def settled(finding: Finding, series: Iterable[Series]) -> bool:
    """True for a forecast that did not come true: scores said to grow, and for `LONG` steps or more they have not doubled, or the loss
    has ended at its best; and for an output that grew and a warning of rounding where it has.

    Judged by every recorded step since, so no calm end hides what has happened in between. What was seen to go wrong, in
    contrast to what was expected to, is never settled.
    """
    series = tuple(series)
    if finding.signal in (PRECISION_ROUNDING, OUTPUT_GROWTH) and finding.severity == "warning":
        return loss_at_its_best(series, finding.step or 0)
    if finding.signal != SCORE_GROWTH or finding.step is None:
        return False
    own = next((s for s in series if s.name == SCORE_MAX_ABS and s.layer == finding.layer and s.head is None), None)
    if own is not None and _leapt(own, finding.step):
        return False
    if loss_at_its_best(series, finding.step):
        return True
    if own is None:
        return False
    before, after = own.values[own.steps <= finding.step], own.values[own.steps > finding.step]
    if not len(before) or not len(after) or own.steps[-1] - finding.step < LONG or not np.isfinite(after).all():
        return False
    return bool(after.max() <= 2 * before[-1])


def _leapt(own: Series, step: int) -> bool:
    """True where the scores stood `LEAP` times higher at the step than ever before: that is no forecast any more."""
    before, since = own.values[own.steps < step], own.values[own.steps >= step]
    return bool(len(before) and len(since) and since[0] > LEAP * before.max())


def outlived(finding: Finding, signals: Signals) -> Finding:
    """A warning of how a run goes as its end judges it: what half of the loss has gone since, or what it is at its best after, did no lasting harm.

    A jump of the rate is judged by the losses before and after it. Errors stay, and a rate of one group that a copy has shown to raise the loss.
    """
    jumped = finding.signal == OPTIMIZER_LR_JUMP
    if (
        (finding.code not in _OF_THE_RUN and not jumped)
        or finding.severity != "warning"
        or finding.signal in (OPTIMIZER_GROUP_RATE, OPTIMIZER_MADE)
    ):
        return finding
    # A rise of the first steps, and jumps that came back, are held against the first loss alone: batches differ.
    passing = finding.signal in (LOSS_FIRST_RISE, GRADIENT_SPIKE)
    if jumped:
        past = signals.kind == "trace" and came_down_after(signals.series, finding.step or 0)
    else:
        past = learned_half(signals) and (passing or trained_well(signals))
    if not past or any(s.detail.get("calms") for s in signals.find(OPTIMIZER_GROUP_RATE)):
        return finding
    return replace(
        finding, severity="info", message=f"{finding.message} The run has come past it, as its last losses show."
    )


def joined(rule: Rule, found: Sequence[Finding], raised: Iterable[Finding]) -> list[Finding]:
    """What a rule finds now, and what was raised under its code while the run went on.

    A live finding stands back only where the rule still says as much, or more, of the same layer: a median that has
    calmed down takes nothing back. One below a threshold that the user has replaced is left out.
    """
    said = {finding.layer: SEVERITIES.index(finding.severity) for finding in sorted(found, key=_severity)}
    kept: dict[tuple[str | None, str], Finding] = {}
    for finding in raised:
        weaker = _severity(finding) <= said.get(finding.layer, -1)
        if finding.code == rule.code and not weaker and _beyond_own(rule, finding):
            place = (finding.layer, finding.signal)
            if place not in kept or _severity(finding) > _severity(kept[place]):
                kept[place] = finding
    return [*found, *kept.values()]


def _severity(finding: Finding) -> int:
    return SEVERITIES.index(finding.severity)


def _beyond_own(rule: Rule, finding: Finding) -> bool:
    """False when the finding was held against a threshold of the rule that is another one now, and has not crossed it."""
    for field in dataclasses.fields(rule):
        own = getattr(rule, field.name)
        if field.default == finding.threshold and own != finding.threshold and math.isfinite(finding.value):
            return bool(finding.value > own if finding.value > finding.threshold else finding.value < own)
    return True
