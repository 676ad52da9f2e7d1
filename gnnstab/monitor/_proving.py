"""What the proof of a fix is to go by when a run has ended: its optimizer, the weights that it began with, its loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from gnnstab.errors import UsageError
from gnnstab.observation import adam_settings
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.operations.repeat import as_batch
from gnnstab.records import Diagnosis
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE, OPTIMIZER_LR_JUMP


def training_of(
    diagnosis: Diagnosis,
    model: torch.nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    start: Callable[[float], tuple[torch.nn.Module, torch.optim.Optimizer]],
) -> dict[str, Any]:
    """Arguments of `verify`: the optimizer and the weights as the run began, which ``start`` gives for its largest rate, else its rate and eps."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    if len(optimizers) != 1 or not any(float(group.get("lr", 0.0)) > 0 for group in groups):
        return {**adam_settings(groups)}
    rates = [float(s.detail.get("largest", 0.0)) for s in diagnosis.signals if s.name == OPTIMIZER_LR_JUMP]
    rates += [float(s.detail["lr"]) for s in diagnosis.signals if s.name == OPTIMIZER_LOSS_RISE and s.detail.get("lr")]
    with suppress(UsageError):
        began, optimizer = start(max(rates, default=0.0))
        return {"optimizer": optimizer} | ({"began": began} if began is not model else {})
    return {"optimizer": optimizers[0]}


def as_called(loss: Callable[[Any, Any], Tensor], inputs: ForwardInputs) -> Callable[[Any, Any], Tensor]:
    """The loss on what the model is called with: a batch of several arguments is known by their names in a trial."""
    if len(inputs.args) == 1 and not inputs.kwargs:
        return loss
    batch = as_batch(inputs.args, inputs.kwargs)
    return lambda output, _: loss(output, batch)
