"""What a trial says of an optimizer's rate, and what makes the same steps calm: a lower rate, or something else undone."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.errors import UsageError
from gnnstab.probe.optimizer._breaking import breaking
from gnnstab.probe.optimizer._narrow_norms import RowNorms
from gnnstab.probe.optimizer._sums import Divided
from gnnstab.probe.optimizer.softening import MORE_STEPS
from gnnstab.records import Signal
from gnnstab.records.rises import rise_of
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE

if TYPE_CHECKING:
    from gnnstab.probe.optimizer.optimizer_steps import Bench, Trial

LOWER = 3.0
"""What the rate is divided by until the trial is calm; smaller changes make no difference that can be measured."""

LOWEST = 3**8
"""Largest divisor that is tried."""

FURTHER = 0.01
"""Share by which `MORE_STEPS` steps have to end lower at a third of a rate, until that third is the better one."""

LONGEST = 20.0
"""Seconds after which no lower rate is compared with a calm one: the run waits for it."""

THIRD = MORE_STEPS // 3
"""Steps at the end of as many, over which the median of the losses counts."""


def rate_signals(bench: Bench, trial: Trial, search: bool = True) -> Iterator[Signal]:
    """What a trial says of the rate, and, with ``search``, at which lower one steps do better.

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
    if len({float(group["lr"]) for group in bench.optimizer.param_groups}) > 1:
        detail["apart"] = True
    broke = breaking(bench, trial)
    if broke is not None:
        detail["event"] = {
            "layer": broke.layer, "stage": broke.stage, "origin": broke.origin, "message": broke.message, "detail": broke.detail,
        }  # fmt: skip
    elif not trial.calm:
        detail |= _undone(bench, rate, trial.losses[0], search)
    if trial.rise is not None:
        detail |= {"above": trial.rise.above, "peak": trial.rise.peak, "lost": trial.lost}
        yield Signal(OPTIMIZER_LOSS_RISE, trial.rise.largest, source="steps", detail=detail)
    if not math.isnan(trial.moved):
        yield Signal(OPTIMIZER_OUTPUT_MOVE, trial.moved, source="steps", detail=detail)


def _undone(bench: Bench, rate: float, first: float, search: bool) -> dict[str, Any]:
    """What makes the same steps calm: a lower rate, or, at the rate as it is, sums that are divided by the number of their terms, or norms over rows instead of two graphs."""
    sums = Divided()
    with sums.mode():
        as_means = bench.trial(edit=sums.edit, until=_risen).calm
    if as_means and sums.names:
        return {"calm_as_means": list(sums.names[:20])}
    rows = RowNorms()
    if bench.trial(edit=rows.edit, until=_risen).calm and rows.names:
        return {"calm_as_rows": list(rows.names)[:20]}
    if not search:
        return {}
    calm = calm_rate(bench, rate)
    if math.isnan(calm):
        return {"calm_lr": calm}
    advised, reached = _learning_rate(bench, rate, calm)
    return {"calm_lr": advised} | ({"reached": reached, "taken": MORE_STEPS} if reached < first else {})


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


def _learning_rate(bench: Bench, rate: float, calm: float) -> tuple[float, float]:
    """The first of ``calm``, a third of it, … a third of which does not bring the loss further down in `MORE_STEPS` steps, and where it brings it.

    Steps at the largest calm rate may do no harm and no good: with momentum they swing about the loss that they began with, or rise in the end.
    """
    until = time.monotonic() + LONGEST
    best, reached = calm, _end(bench, calm / rate, until)
    while best / LOWER >= rate / LOWEST and time.monotonic() < until:
        end = _end(bench, best / LOWER / rate, until)
        if math.isfinite(reached) and not reached - end > FURTHER * abs(reached):
            break
        best, reached = best / LOWER, end
    return (best, reached) if math.isfinite(reached) else (calm, reached)


def _end(bench: Bench, factor: float, until: float) -> float:
    """The loss at which `MORE_STEPS` steps at ``factor`` times the rate end, the median of the last third; inf where one has raised it, or the time was over."""
    losses = bench.trial(MORE_STEPS, factor=factor, until=lambda seen: _risen(seen) or time.monotonic() > until).losses
    return math.inf if _risen(losses) or len(losses) <= MORE_STEPS else statistics.median(losses[-THIRD:])


def _risen(losses: Sequence[float]) -> bool:
    """True as soon as a trial is not calm: no later step of it makes it so."""
    rise = rise_of(losses)
    return rise is not None and rise.above > 0
