"""What a trial says of an optimizer's rate, and what makes the same steps calm: a lower rate, or something else undone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import UsageError
from gnnstab.probe.optimizer._breaking import breaking
from gnnstab.probe.optimizer._narrow_norms import RowNorms
from gnnstab.probe.optimizer._sums import Divided
from gnnstab.records import Signal
from gnnstab.records.rises import rise_of
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

LOWER = 3.0
"""What the rate is divided by until the trial is calm; smaller changes make no difference that can be measured."""

LOWEST = 3**8
"""Largest divisor that is tried."""


def rate_signals(bench: Bench, trial: Trial) -> Iterator[Signal]:
    """What a trial says of the rate, with the rate at which the same steps are calm.

    Raises:
        UsageError: The loss is not finite before any step.
    """
    if not math.isfinite(trial.losses[0]):
        raise UsageError("the loss is not finite before any step, so that steps say nothing of the optimizer")
    rate = bench.largest_rate
    detail: dict[str, Any] = {
        "optimizer": type(bench.optimizer).__name__,
        "lr": rate,
        "steps": len(trial.losses) - 1,
        "first": trial.losses[0],
        "moved": trial.moved if math.isfinite(trial.moved) else None,
    }
    broke = breaking(bench, trial)
    if broke is not None:
        detail["event"] = {
            "layer": broke.layer, "stage": broke.stage, "origin": broke.origin, "message": broke.message, "detail": broke.detail,
        }  # fmt: skip
    elif not trial.calm:
        detail |= _undone(bench, rate)
    if trial.rise is not None:
        detail |= {"above": trial.rise.above, "peak": trial.rise.peak, "lost": trial.lost}
        yield Signal(OPTIMIZER_LOSS_RISE, trial.rise.largest, source="steps", detail=detail)
    if not math.isnan(trial.moved):
        yield Signal(OPTIMIZER_OUTPUT_MOVE, trial.moved, source="steps", detail=detail)


def _undone(bench: Bench, rate: float) -> dict[str, Any]:
    """What makes the same steps calm: a lower rate, or, at the rate as it is, sums that are divided by the number of their terms, or norms over rows instead of two graphs."""
    sums = Divided()
    with sums.mode():
        calm = bench.trial(edit=sums.edit, until=_risen).calm
    if calm and sums.names:
        return {"calm_as_means": list(sums.names[:20])}
    rows = RowNorms()
    if bench.trial(edit=rows.edit, until=_risen).calm and rows.names:
        return {"calm_as_rows": list(rows.names)[:20]}
    return {"calm_lr": calm_rate(bench, rate)}


def calm_rate(bench: Bench, rate: float) -> float:
    """The first of rate/3, rate/9, … at which the same steps raise the loss by no more than a quarter; NaN when none does.

    A rate is left at its first step that does: mostly two forwards per batch, where whole steps at the eight rates would take 56.
    """
    divisor = LOWER
    while divisor <= LOWEST:
        if bench.trial(factor=1 / divisor, until=_risen).calm:
            return rate / divisor
        divisor *= LOWER
    return math.nan


def _risen(losses: Sequence[float]) -> bool:
    """True as soon as a trial is not calm: no later step of it makes it so."""
    rise = rise_of(losses)
    return rise is not None and rise.above > 0
