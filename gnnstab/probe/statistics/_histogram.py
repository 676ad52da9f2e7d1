"""How the scores of every head are spread: a histogram of equal bins between the smallest and the largest."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics._groups import group_sum
from gnnstab.probe.statistics.numbers import exact

BINS = 32


def spread(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """(H, 2 + BINS): smallest, largest and the counts per bin of each column of ``values`` (E, H).

    ``low`` and ``high`` (H,) are the columns' own extremes. A bin holds its left edge, the last one both of its edges, as
    in `torch.histogram`. The counts of a column that is empty, constant or not finite mean nothing; its extremes say so.
    """
    heads = values.shape[1]
    places = torch.arange(BINS + 1, dtype=exact(values.device), device=values.device) / BINS
    edges = torch.lerp(low.unsqueeze(1), high.unsqueeze(1), places)
    found = torch.searchsorted(edges, values.t().contiguous(), right=True) - 1
    index = found.clamp(0, BINS - 1) + BINS * torch.arange(heads, device=values.device).unsqueeze(1)
    ones = torch.ones(index.numel(), dtype=values.dtype, device=values.device)
    counts = group_sum(ones, index.flatten(), heads * BINS).view(heads, BINS)
    return torch.cat([low.unsqueeze(1), high.unsqueeze(1), counts], dim=1)
