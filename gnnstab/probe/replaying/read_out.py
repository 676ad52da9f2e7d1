"""The random read-out that stands in for a loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gnnstab.errors import UsageError

SEED = 20231
"""Seed of the read-out."""


def read_out(output: Any) -> Tensor:
    """Mean over all entries of a fixed random linear map of every floating tensor in the output; a scalar.

    Every node has weights of its own: a read-out shared by all nodes would hide gradients that vanish by being averaged.
    """
    generator = torch.Generator().manual_seed(SEED)
    total: Tensor | None = None
    for tensor in _floating(output):
        weight = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        part = (tensor.float() * weight).mean() if tensor.numel() else tensor.float().sum()
        total = part if total is None else total + part
    if total is None:
        raise UsageError("the model returned no floating-point tensor that a loss could be made of; pass loss=")
    return total


def _floating(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _floating(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floating(item)
