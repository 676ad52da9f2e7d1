"""What a run began with, kept until its end: where the weights have come to no good, trial steps start from there."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gnnstab.errors import UsageError
from gnnstab.probe.optimizer._copies import optimizer_twin
from gnnstab.probe.replaying.replica import replica
from gnnstab.stored import bytes_of

LARGEST = 2**24
"""Bytes of parameters and buffers up to which they are kept: four million numbers in fp32."""


class Beginning(NamedTuple):
    """Values of a model's parameters and buffers from before the first update."""

    values: dict[str, Tensor]

    def restored(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, largest: float
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Copies of the model with these values, and of its optimizer as new; its rates come up to ``largest`` again, where a schedule has lowered them.

        Raises:
            UsageError: One of them cannot be copied, or the model has other parameters by now.
        """
        twin = replica(model)
        own = dict(_named(twin))
        if own.keys() != self.values.keys() or any(own[k].shape != v.shape for k, v in self.values.items()):
            raise UsageError("the model has other parameters than at the beginning of the run")
        with torch.no_grad():
            for name, value in self.values.items():
                own[name].copy_(value)
        moved = optimizer_twin(optimizer, model, twin)
        moved.state.clear()
        rate = max((float(group.get("lr", 0.0)) for group in moved.param_groups), default=0.0)
        for group in moved.param_groups if largest > rate > 0 else ():
            group["lr"] = group["lr"] * largest / rate
        return twin, moved


def beginning(model: nn.Module, optimizer: torch.optim.Optimizer) -> Beginning | None:
    """What the run begins with; None of a large model, and of a run that goes on from a checkpoint."""
    named = dict(_named(model))
    if optimizer.state or any(is_lazy(t) for t in named.values()) or bytes_of(named.values()) > LARGEST:
        return None
    return Beginning({name: tensor.detach().clone() for name, tensor in named.items()})


def _named(model: nn.Module) -> itertools.chain[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())
