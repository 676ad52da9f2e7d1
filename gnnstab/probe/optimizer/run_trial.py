"""Trial steps of a run: before its first update moves the weights, real steps are taken on a copy."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.operations.repeat import as_batch
from gnnstab.probe.optimizer._eps import damping_signals
from gnnstab.probe.optimizer._revived import revived_signals
from gnnstab.probe.optimizer._slow import slow_signals, unclipped
from gnnstab.probe.optimizer.learning import input_signals, learning_signals
from gnnstab.probe.optimizer.marked import marked_signals
from gnnstab.probe.optimizer.optimizer_steps import Bench, Loss
from gnnstab.probe.optimizer.rate import rate_signals
from gnnstab.probe.optimizer.schedules import Rates
from gnnstab.probe.optimizer.sizes import norm_of
from gnnstab.probe.optimizer.softening import softer_signals
from gnnstab.probe.optimizer.unseen import unseen_signals
from gnnstab.probe.replaying.replica import forked_rng
from gnnstab.records import Measure, Signal
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE

LATER = 1000
"""Number of the first row that stands beside one of the first step; no model has as many groups or layers that are tried."""

CLIPPED = 0.9
"""Share of the norm of the trial's own gradient below which the run's gradient has been clipped on its way to the update."""


def run_trial(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: ForwardInputs, loss: Loss, step: int
) -> list[Measure]:
    """How far the loss rises in a few steps from here, as a row for the trace; nothing where it has no ratio.

    ``model`` holds the gradients of ``step``, as the update will see them: where they are smaller than those of the
    same loss on a copy, the run clips them, and so do the steps of the trial. Model, optimizer and generators stay as they are.

    Raises:
        UsageError: Model or optimizer cannot be copied, or forward, loss or step fail on the copy.
    """
    bench = bench_of(model, optimizer, inputs, loss)
    with forked_rng(inputs.rng):
        signals = rises(bench, norm_of(p.grad for p in model.parameters()))
    return _rows(signals, inputs, step)


def rises(bench: Bench, norm: float) -> list[Signal]:
    """How far the loss rises in a trial, clipped as the run's gradient of this ``norm`` is; failures as of `run_trial`."""
    if 0 < norm < CLIPPED * bench.gradient_norm():
        bench = replace(bench, clip=norm)
    return [signal for signal in rate_signals(bench, bench.trial()) if signal.name == OPTIMIZER_LOSS_RISE]


def undone_trial(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    loss: Loss,
    step: int,
    *,
    hindered: bool,
    slow: bool,
    lost: bool,
    scaled: Mapping[str, bool],
    until: float = math.inf,
    rates: Rates = (),
) -> list[Measure]:
    """What the scale of the inputs ``scaled`` and, where it seems ``hindered``, anything else takes from the progress of a few steps, as rows for the trace.

    Where it seems ``slow``, and nothing else is in the way, so does what data and graph take.

    Inputs as of `input_signals`, ``lost`` as of `learning_signals`, ``until`` and ``rates`` as of `Bench`, failures as of `run_trial`.
    """
    with forked_rng(inputs.rng):
        bench = replace(bench_of(model, optimizer, inputs, loss, until), rates=rates)
        found = list(input_signals(bench, scaled, "the loss of one batch"))
        found += learning_signals(bench, lost=lost) if hindered else ()
        found += unseen_signals(bench) if slow and not any("cause" in s.detail for s in found) else ()
        found += marked_signals(bench)
        return _rows(found, inputs, step)


def slow_trial(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    loss: Loss,
    step: int,
    largest: float = 0.0,
    until: float = math.inf,
) -> list[Measure]:
    """What eps keeps a few steps from here from, and how many times larger a rate has to be until they learn, as rows for the trace; failures as of `run_trial`.

    ``largest`` is the rate that a schedule has come down from.
    """
    with forked_rng(inputs.rng):
        bench = bench_of(model, optimizer, inputs, loss, until)
        return _rows([*damping_signals(bench, bench.trial()), *slow_signals(bench, largest)], inputs, step)


def clipped_trial(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    loss: Loss,
    step: int,
    norm: float,
    until: float = math.inf,
) -> list[Measure]:
    """What a few steps from here get to without the limit of a run whose gradients had at most this ``norm``, as rows for the trace; failures as of `run_trial`."""
    with forked_rng(inputs.rng):
        return _rows(unclipped(bench_of(model, optimizer, inputs, loss, until), norm), inputs, step)


def softer_trial(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    loss: Loss,
    step: int,
    sharp: Sequence[str],
    until: float = math.inf,
) -> list[Measure]:
    """What softer attention of the layers ``sharp`` makes of a few steps from here, as rows for the trace; failures as of `run_trial`."""
    with forked_rng(inputs.rng):
        return rows_of(
            softer_signals(bench_of(model, optimizer, inputs, loss, until), sharp), inputs.mode, step, later=True
        )


def revived_trial(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    inputs: ForwardInputs,
    loss: Loss,
    step: int,
    shut: Sequence[str],
    until: float = math.inf,
) -> list[Measure]:
    """What some steps from here make of the closed units behind the modules ``shut``, as rows for the trace; failures as of `run_trial`."""
    with forked_rng(inputs.rng):
        return _rows(revived_signals(bench_of(model, optimizer, inputs, loss, until), shut), inputs, step)


def bench_of(
    model: nn.Module, optimizer: torch.optim.Optimizer, inputs: ForwardInputs, loss: Loss, until: float = math.inf
) -> Bench:
    """The bench of one forward of a run."""
    cast, batch = inputs.autocast, as_batch(inputs.args, inputs.kwargs)
    dtype = cast.dtype if cast.enabled else None
    return Bench(model, optimizer, [(inputs.args, inputs.kwargs)], [batch], loss, dtype, until=until)


def _rows(signals: Iterable[Signal], inputs: ForwardInputs, step: int) -> list[Measure]:
    return rows_of(signals, inputs.mode, step)


def rows_of(signals: Iterable[Signal], mode: str, step: int, *, later: bool = False) -> list[Measure]:
    """Signals as rows of a trace; those of one name are about different things, and numbered, so that none takes the place of another.

    ``later`` ones stand beside those of the first step.
    """
    seen = Counter[str]()
    rows = []
    for signal in signals:
        call, seen[signal.name] = seen[signal.name] + LATER * later, seen[signal.name] + 1
        rows.append(Measure(step, "", mode, call, signal.name, -1, signal.value, json.dumps(dict(signal.detail))))
    return rows
