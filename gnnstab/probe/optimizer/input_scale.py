"""Whether the scale of an input keeps a model from being trained: the same steps on two copies, one of them given it standardised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.errors import UsageError
from gnnstab.probe.batches.loss import loss_with_targets
from gnnstab.probe.batches.named_tensors import named_tensors
from gnnstab.probe.batches.roles import deviating, standardised
from gnnstab.probe.optimizer.learning import LEARNS, of_zeros, progress
from gnnstab.probe.optimizer.learning import STEPS as FEW
from gnnstab.probe.optimizer.optimizer_steps import Bench, Loss, bench_for
from gnnstab.probe.replaying.marks import mark_among
from gnnstab.probe.replaying.replica import mapped
from gnnstab.records import Signal, Signals
from gnnstab.records.vocabulary import OPTIMIZER_INPUT_SHARE

STEPS = 100
"""Most steps of one trial: at Adam's usual rate of 1e-3 a small network takes 50 to 80 until the loss of a standardised batch has fallen by a factor e."""

FASTER = 4.0
"""Times its own progress that the standardised input may reach until a trial ends: three quarters are then the scale's share."""


def scale_signals(bench: Bench, suspects: Mapping[str, bool], objective: str) -> Iterator[Signal]:
    """Share of the progress, in ln(loss), that the scale of inputs takes from a few steps on the first batch; nothing where the loss falls anyway.

    Args:
        bench: Model, optimizer, batch and loss.
        suspects: Name of a tensor of the batch → True where a weight multiplies its whole numbers as they are.
        objective: What the loss is called in a report.

    Raises:
        UsageError: As `Bench.trial`.
    """
    args, kwargs = bench.calls[0]
    tensors = named_tensors(args, kwargs, bench.model)
    found = {name: deviating(tensors[name], whole=whole) for name, whole in suspects.items() if name in tensors}
    large = {name: columns for name, columns in found.items() if columns is not None}
    if not large:
        return
    filled = {name: _filled(tensors[name], columns) for name, columns in large.items()}
    marks = {name: mark for name, (_, mark) in filled.items() if mark is not None}
    scaled = {id(tensors[name]): standardised(filled[name][0], columns) for name, columns in large.items()}
    one = replace(bench, calls=bench.calls[:1], batches=bench.batches[:1])
    # To come down from a far-off first output, which is what large inputs give, is nothing learned.
    zeros = of_zeros(one)
    as_is = one.trial(STEPS, until=lambda losses: progress(min(losses[0], zeros), losses) >= LEARNS).losses
    first = min(as_is[0], zeros)
    own = progress(first, as_is)
    took = len(as_is) - 1
    if not own < LEARNS and took <= FEW:
        return
    enough = max(LEARNS, FASTER * own)
    changed = replace(one, calls=[mapped((args, kwargs), lambda tensor: scaled.get(id(tensor), tensor))])
    undone = changed.trial(took, until=lambda losses: progress(first, losses) >= enough).losses
    with_it = progress(first, undone)
    if with_it >= LEARNS:
        detail = {
            "names": list(large), "marks": marks, "objective": objective,
            "optimizer": type(bench.optimizer).__name__, "first": as_is[0], "best": min(as_is), "undone": min(undone),
            "zeros": first if first < as_is[0] else None, "steps": len(undone) - 1,
        }  # fmt: skip
        yield Signal(OPTIMIZER_INPUT_SHARE, 1 - max(own, 0.0) / with_it, source="steps", detail=detail)


def _filled(tensor: Tensor, columns: Tensor) -> tuple[Tensor, float | None]:
    """The tensor, with the mean of the others of their column in entries of the ``columns`` that hold a mark of missing values; and the mark."""
    values = tensor.detach()[:, columns]
    found = mark_among(values)
    if found is None:
        return tensor, None
    marked, _ = found
    filled = tensor.detach().clone()
    filled[:, columns] = torch.where(marked, values.masked_fill(marked, math.nan).nanmean(0).nan_to_num(), values)
    return filled, float(values[marked][0])


def with_scale_trial(
    signals: Signals,
    suspects: Mapping[str, bool],
    model: nn.Module,
    batch: Any,
    loss: Loss | None,
    optimizer: torch.optim.Optimizer | None,
    lr: float,
    precision: str = "fp32",
) -> Signals:
    """``signals`` with what the scale of the ``suspects`` takes from steps of the optimizer, else of Adam at ``lr``; as they are where nothing could be tried.

    ``suspects`` as of `scale_signals`; without a loss the usual one for the targets of the batch is taken.
    """
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    usual = loss_with_targets(batch) if loss is None and suspects else None
    if not suspects or (loss is None and usual is None):
        return signals
    named = "the loss of one batch" if usual is None else usual[1]
    mover = torch.optim.Adam(model.parameters(), lr=lr) if optimizer is None else optimizer
    try:
        bench = bench_for(model, batch, loss if usual is None else usual[0], mover, dtype)
        found = list(scale_signals(bench, suspects, named))
    except UsageError:
        return signals
    return replace(signals, values=(*signals.values, *found))
