"""Real steps of the user's optimizer on a copy of the model: what its rate and its eps do to the loss and to the output."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data.data import BaseData

from gnnstab.errors import GnnstabError, UsageError, let_through, ours
from gnnstab.probe.batches.arguments import Arguments, as_arguments
from gnnstab.probe.batches.loss import loss_with_targets
from gnnstab.probe.optimizer import learning
from gnnstab.probe.optimizer._copies import model_twin, twins
from gnnstab.probe.optimizer._eps import damping_signals, eps_signals, unguarded_signals
from gnnstab.probe.optimizer._groups import group_signals
from gnnstab.probe.optimizer._rounding import rounding_signals
from gnnstab.probe.optimizer._settings import setting_signals
from gnnstab.probe.optimizer._slow import far_below_usual, unclipped
from gnnstab.probe.optimizer._trial import Trial as Trial
from gnnstab.probe.optimizer.filled import filled_signals
from gnnstab.probe.optimizer.marked import marked_signals
from gnnstab.probe.optimizer.rate import rate_signals
from gnnstab.probe.optimizer.schedules import Rates, follow_rates, follows, of_torch, own_rates, times
from gnnstab.probe.optimizer.sizes import change_over_spread, norm_of
from gnnstab.probe.optimizer.softening import sharp_layers, softer_signals
from gnnstab.probe.optimizer.unseen import unseen_signals
from gnnstab.probe.replaying.known import Known
from gnnstab.probe.replaying.replica import copied, device_of, eager, forked_rng, rng_snapshot, tensors_in
from gnnstab.randomness import drawn_state
from gnnstab.records import Event, Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_EPS_DAMPING, OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE
from gnnstab.stored import is_dense
from gnnstab.trials import trial

Loss = Callable[[Any, Any], Tensor]

STEPS = 6
"""Steps of one trial: a rate that is too high shows in these, and a first batch is not learnt by heart in them."""

MOST_STEPS = 20
"""Steps of one trial at most: momentum of 0.95 has brought updates two thirds of the way to their size by then."""

MOST_BATCHES = 4
"""Batches that a trial goes round; each one costs a forward per step."""

_SCALES = tuple(2.0**power for power in (16, 12, 8, 4, 0))
"""Factors of the loss under fp16, as a GradScaler would choose: the largest that leaves the gradients finite."""


class TimeIsUpError(GnnstabError):
    """Steps on a copy have taken as long as they may: not a failure of one of them, which the others would go on without."""


@dataclass(frozen=True)
class Bench:
    """A model, an optimizer and batches from which any number of trials can start; none of them changes anything.

    Args:
        model: The model, which is copied for every trial.
        optimizer: Its optimizer; class, groups, settings and state are carried over to the copy.
        calls: Arguments of one forward per batch.
        batches: What the loss gets as its second argument, one per call.
        loss: ``loss(output, batch)``, a scalar.
        dtype: Format of the autocast around forward and loss; None for none.
        clip: Limit of the gradient's norm, where the training has one.
        until: Of `time.monotonic`: no step begins after it.
        rates: Those of the first steps of a run; without them the optimizer has its own, or what its class sets.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    calls: Sequence[Arguments]
    batches: Sequence[Any]
    loss: Loss
    dtype: torch.dtype | None = None
    clip: float | None = None
    until: float = math.inf
    rates: Rates = ()
    known: Known = field(default_factory=Known, init=False, compare=False)

    def trial(
        self,
        steps: int | None = None,
        *,
        factor: float = 1.0,
        factors: Mapping[int, float] = MappingProxyType({}),
        edit: Callable[[nn.Module], None] | None = None,
        setting: Callable[[torch.optim.Optimizer], None] | None = None,
        until: Callable[[Sequence[float]], bool] | None = None,
    ) -> Trial:
        """Take ``steps`` (as `steps_of` says, where None) with the rates of all groups times ``factor``.

        ``factors`` holds those of single groups, by their place; ``edit`` changes the copy before the first step, and ``setting`` that of the optimizer;
        the trial ends where ``until`` is true of the losses so far.

        Raises:
            UsageError: The model or the optimizer cannot be copied, or forward, loss or step fail on the copy.
        """
        model, optimizer = self.twins()
        if any("lr" not in group for group in optimizer.param_groups):
            raise UsageError("the optimizer has no rate named lr, which trial steps would lower")
        for place, group in enumerate(optimizer.param_groups):
            group["lr"] = group["lr"] * factors.get(place, factor)
        if setting is not None:
            setting(optimizer)
        with forked_rng(), torch.enable_grad():
            state = rng_snapshot()
            try:
                if edit is not None:
                    known = set(model.parameters())
                    edit(model)
                    # What an edit registers is stepped as the rest is.
                    if own := [p for p in model.parameters() if p not in known]:
                        optimizer.add_param_group({"params": own, "lr": optimizer.param_groups[0]["lr"]})
                asked = self.rates if factor == 1 and not factors else self.schedule
                if asked and not follows(optimizer):
                    by = [factors.get(place, factor) for place in range(len(optimizer.param_groups))]
                    follow_rates(optimizer, times(asked, by))
                return self._run(model, optimizer, steps_of(optimizer) if steps is None else steps, state, until)
            except (UsageError, TimeIsUpError):
                raise
            except Exception as error:
                let_through(error)
                if ours(error):
                    raise
                raise UsageError(f"trial steps on a copy failed: {type(error).__name__}: {error}") from error

    def twins(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        """As `gnnstab.probe.optimizer._copies.twins`; copies of one model do the same, and what the first was not refused no other is asked about."""
        return twins(self.model, self.optimizer, known=self.known)

    def twin(self) -> nn.Module:
        """That of the model alone, of which no step is taken."""
        return model_twin(self.model, known=self.known)

    @cached_property
    def schedule(self) -> Rates:
        """The rates of the steps, where they are not those that the optimizer has: those of the run, or those that the user's own class sets."""
        known = self.rates or of_torch(self.optimizer)
        return self.rates if known else own_rates(self.twins()[1], learning.STEPS)

    @property
    def largest_rate(self) -> float:
        """The largest that `learning.STEPS` steps have."""
        given = [[float(group["lr"]) for group in self.optimizer.param_groups]]
        return max(map(max, (self.schedule or given)[: learning.STEPS]))

    @cached_property
    def as_is(self) -> tuple[float, ...]:
        """The losses of `learning.STEPS` steps as they are, which several others are held against; failures as of `trial`."""
        return self.trial(learning.STEPS).losses

    def gradient_norm(self) -> float:
        """L2 norm over all gradients of the first batch, as no clipping has touched them; failures as of `trial`."""
        model = self.twin()
        with forked_rng(), torch.enable_grad():
            try:
                self._gradients(model, 0, _SCALES[0] if self.dtype is torch.float16 else 1.0)
            except Exception as error:
                let_through(error)
                raise UsageError(f"the backward failed on a copy: {type(error).__name__}: {error}") from error
        return norm_of(p.grad for p in model.parameters())

    def _run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        steps: int,
        state: Mapping[str, Any],
        until: Callable[[Sequence[float]], bool] | None,
    ) -> Trial:
        before, first, ahead = self._look(model, state, 0 if steps else None)
        losses, moved, scale = [first], math.nan, _SCALES[0] if self.dtype is torch.float16 else 1.0
        for step in range(steps):
            if time.monotonic() > self.until:
                raise TimeIsUpError("the time for steps on a copy is over")
            if not math.isfinite(losses[-1]) or (until is not None and until(losses)):
                break
            optimizer.zero_grad(set_to_none=True)
            scale = self._gradients(model, step % len(self.calls), scale, ahead)
            if step == 0 and not all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters()):
                raise UsageError(
                    "the gradients are not finite before any step, so that steps say nothing of the optimizer"
                )
            if self.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            after, loss, ahead = self._look(model, state, (step + 1) % len(self.calls) if step + 1 < steps else None)
            losses.append(loss if math.isfinite(loss) else math.inf)
            if step == 0:
                moved = change_over_spread(before, after)
        return Trial(tuple(losses), moved)

    def _look(
        self, model: nn.Module, state: Mapping[str, Any], following: int | None
    ) -> tuple[list[Tensor], float, Tensor | None]:
        """All outputs and the mean loss, in training mode from the same random numbers every time.

        Also the loss of batch ``following`` with its graph: the next step needs no forward of its own where nothing was drawn.
        """
        outputs, losses = list[Tensor](), list[float]()
        ahead: Tensor | None = None
        with forked_rng(state):
            start = drawn_state()
            for number in range(len(self.calls)):
                with torch.set_grad_enabled(number == following):
                    output, loss = self.forward(model, number)
                ahead = loss if number == following else ahead
                outputs += [t.detach().float() for _, t in tensors_in(output) if is_dense(t)]
                losses.append(float(loss.detach()))
            same = drawn_state() == start
        return outputs, sum(losses) / len(losses), ahead if same else None

    def forward(self, model: nn.Module, number: int) -> tuple[Any, Tensor]:
        """Output and loss of a copy on one batch."""
        (args, kwargs), device = self.calls[number], device_of(model).type
        # Without the cache: weights change between two forwards, some of which keep no gradients.
        cast = nullcontext() if self.dtype is None else torch.autocast(device, dtype=self.dtype, cache_enabled=False)
        with cast:
            output = eager(model)(*copied(tuple(args)), **copied(dict(kwargs)))
            loss = self.loss(output, self.batches[number])
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise TypeError(f"the loss gave {type(loss).__name__}, where trial steps need a tensor of one number")
        return output, loss

    def _gradients(self, model: nn.Module, number: int, scale: float, ahead: Tensor | None = None) -> float:
        """Backward of one batch, whose loss may be known ``ahead``; returns the scale of the loss that it took to keep the gradients finite."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        for candidate in [s for s in _SCALES if s <= scale] or [1.0]:
            for parameter in parameters:
                parameter.grad = None
            with trial():  # Each is a step of the present: what a model counts outside of itself does not run on.
                loss = self.forward(model, number)[1] if ahead is None else ahead
                ahead = None
                (loss * candidate).backward()  # type: ignore[no-untyped-call]
            gradients = [p.grad for p in parameters if p.grad is not None]
            if candidate == 1 or all(bool(gradient.isfinite().all()) for gradient in gradients):
                break
        for gradient in gradients if candidate != 1 else ():
            gradient.div_(candidate)
        return candidate


def steps_of(optimizer: torch.optim.Optimizer) -> int:
    """Steps of one trial: with momentum as many as it takes until an update is as large as those of the run will be."""
    momentum = max((float(group.get("momentum") or 0.0) for group in optimizer.param_groups), default=0.0)
    return STEPS if momentum >= 1 else min(MOST_STEPS, max(STEPS, round(1 / (1 - momentum))))


def optimizer_signals(
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    *,
    precision: torch.dtype | None = None,
    clip: float | None = None,
    sharp: Sequence[str] = (),
    alone: bool = False,
    search: bool = True,
) -> tuple[list[Signal], dict[str, str]]:
    """What trial steps say of the rate and the eps of an optimizer, and why they say nothing (signal name → reason).

    Of the layers ``sharp``, whose attention is, they say whether it is of use. With ``alone`` rate and eps are all that is asked about, and with ``search`` a lower rate than
    one that is too high.
    ``batch`` is what the user calls one, see `gnnstab.probe.batches.arguments.as_arguments`; of several the first four count.
    Nothing of the user's changes: model, gradients, optimizer, batches and the generators of torch, NumPy and ``random``.
    """
    lost = [] if optimizer is None else [*eps_signals(optimizer), *setting_signals(optimizer)]
    try:
        bench = bench_for(model, batch, loss, optimizer, precision, clip)
        # First what needs all steps as they are, which the rest then looks at.
        whole = [] if alone else list(softer_signals(bench, sharp))
        return [*lost, *_judged(bench, alone, search), *whole], {}
    except UsageError as error:
        why = str(error)
    except Exception as error:
        let_through(error)
        if not ours(error):
            raise
        why = f"gnnstab itself failed in steps on a copy: {type(error).__name__}: {error}"
    return lost, dict.fromkeys((OPTIMIZER_LOSS_RISE, OPTIMIZER_OUTPUT_MOVE, OPTIMIZER_EPS_DAMPING), why)


def with_trial_steps(
    signals: Signals,
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    precision: str = "fp32",
    clip: float | None = None,
    alone: bool = False,
    search: bool = True,
) -> Signals:
    """``signals`` with those of trial steps and the operation that ended them, or with the reasons why none were taken; ``precision`` as of `gnnstab.diagnose`, ``alone`` and ``search`` as of `optimizer_signals`."""
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    sharp = sharp_layers(signals.values)
    values, missing = optimizer_signals(
        model, batch, loss, optimizer, precision=dtype, clip=clip, sharp=sharp, alone=alone, search=search
    )
    own = [Event(s.detail["steps"], "non-finite", **s.detail["event"]) for s in values if "event" in s.detail]
    events = signals.events if any(e.kind == "non-finite" for e in signals.events) else (*signals.events, *own)
    return replace(signals, values=(*signals.values, *values), events=events, missing={**signals.missing, **missing})


def with_input_trial(
    signals: Signals,
    chosen: Mapping[str, bool],
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    lr: float,
    precision: str = "fp32",
    clip: float | None = None,
) -> Signals:
    """``signals`` with what the scale of ``chosen`` takes from steps of the optimizer, else of Adam at ``lr``; as they are where nothing could be tried.

    ``chosen`` as of `learning.input_signals`; without a loss the usual one for the targets of the batch is taken.
    """
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    usual = loss_with_targets(batch) if loss is None and chosen else None
    if not chosen or (loss is None and usual is None):
        return signals
    loss, named = (loss, "the loss of one batch") if usual is None else usual
    mover = torch.optim.Adam(model.parameters(), lr=lr) if optimizer is None else optimizer
    try:
        bench = bench_for(model, batch, loss, mover, dtype, clip)
        return replace(signals, values=(*signals.values, *learning.input_signals(bench, chosen, named)))
    except UsageError:
        return signals


def bench_for(
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    precision: torch.dtype | None,
    clip: float | None = None,
) -> Bench:
    """The bench of what the user calls a batch, of several of the first four; raises `UsageError` where no steps can be taken."""
    if optimizer is None:
        raise UsageError("no steps were tried; pass optimizer= to have its rate and eps judged")
    if loss is None:
        raise UsageError("no steps were tried; pass loss= to have the optimizer's rate and eps judged")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS chooses its steps by itself; none were tried on a copy")
    one = isinstance(batch, (BaseData, Tensor, Mapping, tuple, str, bytes)) or not isinstance(batch, Iterable)
    with forked_rng():  # a loader draws its order from the global generator
        batches = [batch] if one else list(itertools.islice(batch, MOST_BATCHES))
    calls = [arguments for item in batches for arguments in as_arguments(item, model)]
    if not calls or len(calls) != len(batches):
        raise UsageError("no steps were tried: the batch is none that a model could be called with")
    return Bench(model, optimizer, calls, batches, loss, precision, clip)


def _judged(bench: Bench, alone: bool, search: bool) -> Iterator[Signal]:
    trial = bench.trial()
    yield from rate_signals(bench, trial, search)
    yield from damping_signals(bench, trial)
    yield from unguarded_signals(bench)
    if alone:
        return
    yield from rounding_signals(bench)
    yield from far_below_usual(bench)
    if bench.clip is not None:
        yield from unclipped(replace(bench, clip=None), bench.clip)
    yield from group_signals(bench)
    yield from filled_signals(bench)
    yield from (learned := list(learning.learning_signals(bench)))
    if learning.open_to_more(learned):
        yield from unseen_signals(bench)
        yield from marked_signals(bench)
