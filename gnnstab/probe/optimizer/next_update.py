"""What the update that is about to happen does to the output, measured on a copy in a run: no loss function is needed."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gnnstab.errors import UsageError
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.buffering.step_writer import Writer
from gnnstab.probe.optimizer._copies import optimizer_twin, twins
from gnnstab.probe.optimizer._eps import WHOLE, eps_of, eps_signals, shrink_eps, unguarded
from gnnstab.probe.optimizer._groups import FirstStep, far_apart
from gnnstab.probe.optimizer._joined import joined
from gnnstab.probe.optimizer._rounding import lost_share
from gnnstab.probe.optimizer.beginning import Beginning, beginning
from gnnstab.probe.optimizer.optimizer_steps import Loss
from gnnstab.probe.optimizer.run_trial import rows_of, run_trial
from gnnstab.probe.optimizer.sizes import change_over_spread
from gnnstab.probe.optimizer.softening import outputs_and_wide
from gnnstab.probe.optimizer.standing import Standing
from gnnstab.probe.places import filled_rows
from gnnstab.probe.replaying.known import Known
from gnnstab.probe.replaying.replica import forked_rng, run_replica, tensors_in
from gnnstab.records import Measure, Signal
from gnnstab.records.vocabulary import (
    OPTIMIZER_EPS_DAMPING,
    OPTIMIZER_FEW_BITS,
    OPTIMIZER_LOSS_RISE,
    OPTIMIZER_LOST_SHARE,
    OPTIMIZER_OUTPUT_MOVE,
)
from gnnstab.stored import is_dense

FIRST_AGAIN = 100
"""Step of the second measurement; the steps double from there on, so that their share of the run's time falls."""

SOONER = 50
"""The same where eps or rounding has taken part of the first update."""

SMALLEST = 2.0**-24
"""Smallest positive number of fp16; all others are whole multiples of it."""

FEW = 4
"""Multiples of `SMALLEST` that hold one or two bits."""

FAST = 4.0
"""Change of the output by the first update, over its spread, from which on its rate is tried, as for GS601."""


class Update(NamedTuple):
    """The effect of one update."""

    moved: float
    """Change of the output over its spread; NaN where it has none."""

    damping: float
    """That change over the one with an eps of 1e-20; NaN where the optimizer has no eps."""

    lost: float = math.nan
    """Share of the entries with a gradient that the update leaves as they are, of weights held in 16 bits; NaN without such."""


def next_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    wide: list[str],
    give: Callable[[nn.Module], None] | None = None,
) -> Update:
    """Take the update that the gradients of ``model`` ask for on a copy, and compare its outputs on ``inputs``.

    ``give`` gets the copy of the model in the end, with the numbers that the model has.

    The modules whose attention may be sharp as it is are added to ``wide``, also where the update cannot be taken.

    Model, gradients, optimizer, inputs and random generators stay as they are.

    Raises:
        UsageError: Model or optimizer cannot be copied, a gradient is not finite, or forward or step fail on the copy.
    """
    known = Known()
    with forked_rng():
        twin, mover = twins(model, optimizer, keep_mode=True, known=known)
        asked = {
            p: own.grad for p, own in zip(twin.parameters(), model.parameters(), strict=True) if own.grad is not None
        }
        try:
            start = [(t, t.detach().clone()) for t in (*asked, *itertools.filterfalse(is_lazy, twin.buffers()))]
            before, found = outputs_and_wide(twin, lambda: _outputs(twin, inputs))
            wide += found
            if not all(bool(flat.isfinite().all()) for flat, _ in joined(asked.values())):
                raise UsageError("a gradient is not finite, so that the update was not tried on a copy")
            moved, lost = _moved(twin, mover, asked, before, inputs), lost_share(start)
            damping = math.nan
            if eps_of(optimizer) is not None:
                mover = optimizer_twin(optimizer, model, twin, known)
                shrink_eps(mover)
                _set(start)
                free = _moved(twin, mover, asked, before, inputs)
                damping = moved / free if free > 0 else math.nan
            if give is not None:
                _set(start)
                for parameter in asked:
                    parameter.grad = None
                give(twin)
            return Update(moved, damping, lost)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            # The model or the optimizer may refuse a copy; anything else is a failure of the tool, and told as such.
            raise UsageError(f"the update failed on a copy: {type(error).__name__}: {error}") from error


def _set(start: Sequence[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in start:
            tensor.copy_(value)


def _moved(
    twin: nn.Module,
    mover: torch.optim.Optimizer,
    asked: Mapping[nn.Parameter, Tensor],
    before: Sequence[Tensor],
    inputs: ForwardInputs,
) -> float:
    """Change of the output over its spread by one step with the gradients that are asked for."""
    for parameter, gradient in asked.items():
        parameter.grad = gradient.detach().clone()
    mover.step()
    return change_over_spread(before, _outputs(twin, inputs))


def few_bits(model: nn.Module) -> float:
    """Share of the non-zero entries of all gradients that are a few times the smallest number of fp16, in tensors of whole multiples of it.

    Gradients that went through fp16 unscaled, or by too little, look so; NaN without a gradient.
    """
    given = [p.grad.detach() for p in model.parameters() if p.grad is not None and p.grad.layout is torch.strided]
    few = nonzero = 0
    whole = other = False
    for flat, starts in joined(gradient for gradient in given if gradient.numel()):
        steps = (flat.abs().double() / SMALLEST).cpu().numpy()
        between = np.logical_or.reduceat(steps != np.round(steps), starts)
        within = ~between & np.logical_or.reduceat(steps != 0, starts)
        nonzero += int(np.count_nonzero(steps))
        whole, other = whole or bool(within.any()), other or bool(between.any())
        if within.any():
            few += int(np.add.reduceat((steps > 0) & (steps <= FEW), starts, dtype=np.int64)[within].sum())
    if not whole:
        return 0.0 if other else math.nan
    return few / nonzero


def _outputs(twin: nn.Module, inputs: ForwardInputs) -> list[Tensor]:
    output = run_replica(twin, inputs)
    return [t.detach().float() for _, t in tensors_in(output) if is_dense(t)]


class UpdateWatch:
    """Measures the update of step 0, and those of ever rarer steps after it, and hands them to the trace.

    Args:
        model: The model inside its wrappers.
        optimizers: All that move it; with several nothing is measured, since what one of them does is no whole update.
        writer: Gets the measures.
        now: The step that is about to end, and the latest inputs of it per mode.
        loss: ``loss(output, batch)``, with which the first update of the run is tried in full, see `run_trial`.
        kept: The forward that is kept beyond its step, with what came back to it.
        give: Gets the copy on which the first update was tried, as it was before it, and the step.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        writer: Writer,
        now: Callable[[], tuple[int, Mapping[str, ForwardInputs]]],
        loss: Loss | None = None,
        kept: Callable[[], ForwardInputs | None] = lambda: None,
        give: Callable[[int, nn.Module], None] = lambda step, twin: None,
    ) -> None:
        self._model = model
        self._watched = len(optimizers) == 1 and not isinstance(optimizers[0], torch.optim.LBFGS)
        self._writer = writer
        self._now = now
        self._next = 0
        self._latest: tuple[int, float] = (-1, math.nan)
        self._loss = self._given = loss
        self._kept, self._give = kept, give
        self._first: FirstStep | None = None
        self.rise: Signal | None = None
        """How far the loss rose in trial steps before the first update of the run; None where none were taken."""
        self.raised: tuple[ForwardInputs, Loss] | None = None
        """The forward and the loss of steps that raised it, with which a lower rate can be proven when the run is lost."""
        self.began: Beginning | None = None
        """What the run began with, where it is small enough to be kept."""
        self.standing = Standing(model, optimizers)

    def moved(self, step: int) -> float | None:
        """Change of the output over its spread by the update of ``step``; None when it was not measured."""
        at, value = self._latest
        return value if at == step and not math.isnan(value) else None

    def look(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure what ``optimizer`` is about to do, when it is time to."""
        step, last = self._now()
        self.standing.look(optimizer, step)
        self._try_groups(step)
        if not self._watched or step < self._next:
            return
        inputs = last.get("train") or last.get("eval-grad")
        # A fused optimizer under a GradScaler is handed gradients that are still scaled.
        if inputs is None or getattr(optimizer, "grad_scale", None) is not None:
            return
        first, self._next = not self._next, max(FIRST_AGAIN, 2 * step)
        for lost in (*eps_signals(optimizer), *unguarded(optimizer)) if first else ():
            self._writer.measures(
                [Measure(step, "", inputs.mode, 0, lost.name, -1, lost.value, json.dumps(dict(lost.detail)))]
            )
        kept = self._kept()
        wide, fast = list[str](), False
        try:
            self._try_rate(optimizer, inputs, step)
            update = next_update(self._model, optimizer, inputs, wide, partial(self._give, step) if first else None)
            fast = self.rise is None and update.moved >= FAST
            if first:
                self.began = beginning(self._model, optimizer)
        except UsageError:
            # What cannot be copied now cannot be copied later; a gradient that is not finite is an event of its own.
            self._watched = False
            return
        finally:
            if first and kept is not None:
                with suppress(UsageError):
                    self._keep_first(optimizer, kept, wide, fast=fast)
        self._latest = (step, update.moved)
        if first and (update.damping < WHOLE or update.lost > 1 - WHOLE):
            self._next = SOONER
        found = {
            OPTIMIZER_OUTPUT_MOVE: update.moved,
            OPTIMIZER_EPS_DAMPING: update.damping,
            OPTIMIZER_LOST_SHARE: update.lost,
            OPTIMIZER_FEW_BITS: few_bits(self._model),
        }
        detail = json.dumps({"optimizer": type(optimizer).__name__, "eps": eps_of(optimizer)})
        rows = [Measure(step, "", inputs.mode, 0, name, -1, value, detail) for name, value in found.items()]
        self._writer.measures([row for row in rows if not math.isnan(row.value)])

    def _keep_first(
        self, optimizer: torch.optim.Optimizer, kept: ForwardInputs, sharp: Sequence[str], *, fast: bool
    ) -> None:
        """Copies of what the first step starts from, where its loss will say more."""
        filled = filled_rows(named_tensors(kept.args, kept.kwargs, self._model)) is not None
        if sharp or fast or filled or far_apart(optimizer):
            self._first = FirstStep(self._model, optimizer, kept, sharp, fast=fast)

    def _try_groups(self, step: int) -> None:
        """Once, when the loss of the first step is known: the run's own, where the user gave none to call."""
        if self._first is None:
            return
        found = self._first.signals(self._given)
        if found is not None:
            self._tell(rows_of(found, "train", step), step, self._first.tried)
        if found is not None or self._first.over:
            self._first = None

    def _try_rate(self, optimizer: torch.optim.Optimizer, inputs: ForwardInputs, step: int) -> None:
        """Once, before the first update that is looked at."""
        loss, self._loss = self._loss, None
        if loss is None:
            return
        try:
            rows = run_trial(self._model, optimizer, inputs, loss, step)
        except UsageError:
            return  # A loss of more than one forward, as of a rollout, cannot be asked about one of them.
        self._tell(rows, step, (inputs, loss))

    def _tell(self, rows: list[Measure], step: int, tried: tuple[ForwardInputs, Loss] | None) -> None:
        self._writer.measures(rows)
        rises = (r for r in rows if r.name == OPTIMIZER_LOSS_RISE)
        told = (Signal(r.name, r.value, None, None, step, "training", json.loads(r.detail)) for r in rises)
        self.rise = next(told, self.rise)
        if self.rise is not None and "calm_lr" in self.rise.detail:
            self.raised = tried
