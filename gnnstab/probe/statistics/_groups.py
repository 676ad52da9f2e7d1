"""Sums over groups (targets of edges, graphs of nodes) whose number is only known on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics.numbers import exact


def group_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of ``values`` (E, …) by ``index`` (E,) into (size, …)."""
    return values.new_zeros((size, *values.shape[1:])).index_add_(0, index, values)


def group_sizes(index: Tensor, size: int) -> Tensor:
    """Number of entries per group, (size,) float64. ``bincount`` would wait for the device."""
    return group_sum(torch.ones(index.shape, dtype=exact(index.device), device=index.device), index, size)


def compact(batch: Tensor) -> Tensor:
    """Renumber graph ids (N,) to 0 … G−1 with G ≤ N, whatever ids were used, without knowing G."""
    if batch.numel() == 0:
        return batch.long()
    ordered, order = torch.sort(batch)
    steps = (ordered[1:] != ordered[:-1]).long().cumsum(0)
    return torch.zeros_like(order).scatter_(0, order[1:], steps)
