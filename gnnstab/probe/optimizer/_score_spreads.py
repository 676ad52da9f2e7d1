"""How far the scores of one target spread."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASKED = 1e4
"""Size of a score from which on it stands for a mask."""


def spread(scores: Tensor, dim: int) -> float:
    """Standard deviation of scores around their mean along ``dim``, over all that are not masked."""
    scores = scores.detach().float()
    seen = scores.isfinite() & (scores.abs() < MASKED)
    known = scores.where(seen, torch.zeros_like(scores))
    mean = known.sum(dim, keepdim=True) / seen.sum(dim, keepdim=True).clamp(min=1)
    return math.sqrt(float(((known - mean).square() * seen).sum() / seen.sum().clamp(min=1)))


def spread_over_edges(scores: Tensor, index: Tensor, least: float = 0.0) -> float:
    """The same of scores (E, …) whose targets are ``index`` (E,); half of their range, which it cannot exceed, where that is up to ``least``."""
    scores = scores.detach().float()
    if not scores.numel():
        return 0.0
    low, high = scores.aminmax()
    if (bound := float(high - low) / 2) <= least:
        return bound
    flat = scores.reshape(len(scores), -1)
    total = flat.new_zeros(int(index.max()) + 1, flat.shape[1]).index_add_(0, index, flat)
    count = torch.bincount(index).clamp(min=1).to(flat)
    return math.sqrt(float((flat - (total / count[:, None])[index]).square().mean()))
