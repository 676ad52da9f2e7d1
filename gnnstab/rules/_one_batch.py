"""A jump of one step alone: where the next recorded batch is calm with what the weights have become, the batch has made it, and not the rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gnnstab.records import Finding, Series, Signals
from gnnstab.records.vocabulary import INPUT_RMS, LOSS, OUTPUT_RMS, SCORE_GROWTH, SCORE_MAX_ABS
from gnnstab.rules.gs406_feature_scale import FeatureScale
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from gnnstab.rules.run_losses import learned_half, trained_well

BEYOND = LearningRateTooHigh.loss_rise
"""× all before: what a step must reach, and what the next one must stay below."""

_SERIES = {LOSS: LOSS, OUTPUT_RMS: OUTPUT_RMS, SCORE_GROWTH: SCORE_MAX_ABS}
"""Signal of a live finding of a jump → the series that jumped."""


def of_one_batch(finding: Finding, signals: Signals) -> Finding:
    """A jump that was raised live, as one of the input where the first layer's jumped at that step and both are calm again at the next."""
    name = _SERIES.get(finding.signal)
    step = finding.step
    if (
        finding.code not in ("GS301", "GS601")
        or name is None
        or step is None
        or not _alone(_of(signals, name, finding.layer), step)
    ):
        return finding
    past = learned_half(signals) or trained_well(signals)
    then = "the loss or the layers jump with it; at the next recorded step all is calm again"
    blame = "and the rate is not to blame"
    return _of_the_input(signals, step, then, blame, past=past) or finding


def of_the_broken_step(signals: Signals) -> Iterator[Finding]:
    """A jump of the input in the very step in which the run went non-finite: what grows with it there, no weight has made."""
    first = min((event.step for event in signals.events if event.kind == "non-finite"), default=None)
    if first is not None:
        then = "the first non-finite value comes in this step"
        found = _of_the_input(signals, first, then, "and scores that are too large there follow from them", past=False)
        yield from () if found is None else (found,)


def _of_the_input(signals: Signals, step: int, then: str, blame: str, *, past: bool) -> Finding | None:
    """The jump of what the first attention layer was given at this step alone; None where there is none."""
    first = min((layer for layer in signals.layers if layer.attention), key=lambda layer: layer.position, default=None)
    given = None if first is None else _of(signals, INPUT_RMS, first.name)
    if first is None or given is None or not _alone(given, step):
        return None
    at, usual = float(given.values[given.steps == step][0]), float(np.max(given.values[given.steps < step]))
    return replace(
        FeatureScale().finding(
            f"at step {step} the input of {first.name} has RMS {at:.3g}, {at / usual:.3g} times the most before, and {then}: rows of that batch lie "
            f"far beyond all others, {blame}. With x that input, (x.abs() > {BEYOND * usual:.2g}).nonzero() names row and column; correct such "
            f"rows, or leave them out.{' The run has come past it.' if past else ''}",
            severity="info" if past else "warning",
            limit=BEYOND * usual,
            name=INPUT_RMS,
            value=at,
            layer=first.name,
            step=step,
        ),
        confidence="medium",
    )  # fmt: skip


def _of(signals: Signals, name: str, layer: str | None) -> Series | None:
    return next((s for s in signals.series if (s.name, s.layer, s.head) == (name, layer, None)), None)


def _alone(series: Series | None, step: int) -> bool:
    """True where the value of this step lies far beyond all before, and the next one does not."""
    if series is None:
        return False
    before, here, after = (
        series.values[mask] for mask in (series.steps < step, series.steps == step, series.steps > step)
    )
    if not (len(before) and len(here) and len(after)):
        return False
    limit = BEYOND * np.max(np.abs(before))
    return bool(0 < limit < here[0] and abs(after[0]) <= limit)
