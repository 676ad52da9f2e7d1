"""Numbers of one tensor at one place; all in float64, NaN where nothing can be said, as of activations that are not finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MOST_ENTRIES = 4_000_000
"""Larger tensors are measured on evenly spread rows."""


def sampled(tensor: Tensor) -> Tensor:
    """The tensor, or evenly spread rows of one with more than `MOST_ENTRIES` entries."""
    if tensor.dim() == 0 or tensor.numel() <= MOST_ENTRIES:
        return tensor
    return tensor[:: math.ceil(tensor.numel() / MOST_ENTRIES)]


def rms(flat: Tensor) -> float:
    """RMS of the finite entries of any shape; NaN without one."""
    finite = flat[flat.isfinite()]
    return float(finite.double().square().mean().sqrt()) if finite.numel() else math.nan


def column_ratio(flat: Tensor) -> tuple[float, int]:
    """Largest over median column RMS of (rows, columns), and which column it is; zero columns do not count."""
    sizes = torch.nan_to_num(flat, 0.0, 0.0, 0.0).square().mean(0).sqrt()
    present = sizes[sizes > 0]
    if present.numel() < 2:
        return math.nan, -1
    return float(sizes.max() / present.median()), int(sizes.argmax())


def difference(states: Tensor, graphs: Tensor | None) -> float:
    """‖X − mean‖/‖X‖ of (nodes, channels), the mean taken over the nodes of each graph (nodes,); NaN where all is zero."""
    flat = states.detach().reshape(len(states), -1).double()
    size = float(flat.norm())
    if not size or not math.isfinite(size) or len(flat) < 2:
        return math.nan
    return float((flat - graph_means(flat, graphs)).norm()) / size


def graph_means(flat: Tensor, graphs: Tensor | None) -> Tensor:
    """For each of (nodes, channels) the mean over its graph; over all nodes without ``graphs``."""
    if graphs is None:
        return flat.mean(0, keepdim=True).expand_as(flat)
    count = int(graphs.max()) + 1
    sums = flat.new_zeros(count, flat.shape[1]).index_add_(0, graphs, flat)
    sizes = torch.bincount(graphs, minlength=count).clamp(min=1)
    return (sums / sizes[:, None])[graphs]


def dead_share(result: Tensor) -> float:
    """Share of the channels (last dimension) of a ReLU's result that are open in at most 2 % of the rows.

    NaN for fewer than 8 rows or 4 channels, where a closed one means little.
    """
    if result.dim() < 2 or result.shape[-1] < 4:
        return math.nan
    flat = sampled(result.detach()).reshape(-1, result.shape[-1])
    if len(flat) < 8 or not bool(flat.isfinite().all()):
        return math.nan
    return float(((flat > 0).double().mean(0) <= 0.02).double().mean())


_GUARD = 0.01
"""Share of the RMS by which a clamp may move an entry and counts as a guard."""


def cut_share(entering: Tensor, low: float | None, high: float | None) -> float:
    """Share of the entries that a clamp to [low, high] cuts, and so gives a gradient of 0; one at 0 is a ReLU's and not counted.

    A clamp to [0, 1] is a hard sigmoid, which is closed or open for some entries by right: it cuts all of them or counts as none.
    What is moved by less than `_GUARD` of the RMS is guarded (an ``acos`` from ±1, a root from 0), not cut.
    """
    flat = sampled(entering.detach())
    if (low, high) == (0, 1) and bool(((flat > 0) & (flat < 1)).any()):
        return 0.0
    cut = torch.zeros_like(flat, dtype=torch.bool)
    slack = _GUARD * flat.square().mean().sqrt()
    if low is not None and low != 0:
        cut |= flat < low - slack
    if high is not None and high != 0:
        cut |= flat > high + slack
    return float(cut.double().mean()) if flat.numel() and bool(flat.isfinite().all()) else math.nan


def saturated_share(result: Tensor) -> float:
    """Share of the entries of a tanh beyond ±0.97, where it passes less than 6 % of the gradient.

    Columns that are the same in every row do not count: a flag that is always set has nothing to learn.
    """
    rows = result.detach()
    if rows.dim() > 1 and rows.shape[0] > 1:
        rows = rows.flatten(1)
        rows = rows[:, (rows != rows[0]).any(0)]
        if not rows.numel():
            return 0.0
    flat = sampled(rows)
    return float((flat.abs() > 0.97).double().mean()) if flat.numel() and bool(flat.isfinite().all()) else math.nan


def range_over_open(entering: Tensor, low: float | None, high: float | None) -> float:
    """The range of the entries over what a clamp to [low, high] leaves open of it; infinite where that is nothing."""
    flat = sampled(entering.detach())
    if not flat.numel() or not bool(flat.isfinite().all()):
        return math.nan
    least, most = float(flat.min()), float(flat.max())
    left = (most if high is None else min(most, high)) - (least if low is None else max(least, low))
    return (most - least) / left if left > 0 else math.inf
