"""The random read-out that stands in for a loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gnnstab.errors import UsageError
from gnnstab.probe.replaying.replica import tensors_in

SEED = 20231
"""Seed of the read-out."""


def read_out(output: Any) -> Tensor:
    """Mean over all entries of a fixed random linear map of every floating tensor in the output; a scalar.

    Every node has weights of its own: a read-out shared by all nodes would hide gradients that vanish by being averaged.
    """
    generator = torch.Generator().manual_seed(SEED)
    total: Tensor | None = None
    for tensor in [tensor for _, tensor in tensors_in(output) if tensor.is_floating_point()]:
        weight = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        part = (tensor.float() * weight).mean() if tensor.numel() else tensor.float().sum()
        total = part if total is None else total + part
    if total is None:
        raise UsageError("the model returned no floating-point tensor that a loss could be made of; pass loss=")
    return total
