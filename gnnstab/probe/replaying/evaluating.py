"""Evaluation mode for a copy that is looked at: no dropout, and normalisations that have something to go by."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor, nn

from gnnstab.probe.replaying.outside import keep_around
from gnnstab.randomness import given_back
from gnnstab.torch_private import BatchNorm

Model = TypeVar("Model", bound=nn.Module)


def in_mode(model: Model, training: bool = True) -> Model:
    """Puts a copy into training or evaluation mode and returns it; what a ``train`` of the user's counts or draws is given back.

    It may set what the forward reads: as of a forward, all of that is put back when the trial is over.
    """
    with given_back():
        keep_around(model)
        model.train() if training else model.eval()
    return model


def evaluating(model: Model) -> Model:
    """Puts a copy into evaluation mode and returns it; ``model`` itself is changed.

    A BatchNorm that has seen no batch yet would divide by the 1 that its running variance starts with, and so normalise
    nothing. It takes the statistics of the batch instead, as it will in the first step of the training.
    """
    in_mode(model, False)
    for module in model.modules():
        if isinstance(module, BatchNorm) and module.num_batches_tracked is not None and not module.num_batches_tracked:
            module.register_forward_pre_hook(ByBatch())
    return model


def by_running_statistics(model: nn.Module) -> bool:
    """Puts a copy into evaluation mode in which no BatchNorm goes by the batch; False where one has nothing else to go by."""
    in_mode(model, False)
    for module in model.modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            return False
        for key in [key for key, hook in module._forward_pre_hooks.items() if isinstance(hook, ByBatch)]:
            del module._forward_pre_hooks[key]
    return True


class ByBatch:
    """A hook before a BatchNorm that has it take the statistics of the batch, where that has any."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A single row has no spread: PyTorch refuses it in training mode."""
        x = args[0] if args else None
        module.training = isinstance(x, Tensor) and x.numel() > x.size(1)
