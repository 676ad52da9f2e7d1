"""A cap on attention scores that follows the in-degree and is centred on each target."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import scatter

CAP_SHAPES = ("soft", "hard")


def cap_scores(score: Tensor, index: Tensor, size: int | None, cap: float, *, by_degree: bool, shape: str) -> Tensor:
    """Limit the scores of every target to ±τ around their mean.

    ``score`` is (E, H), ``index`` (E,) the target of every edge, ``size`` the number of targets. τ is ``cap`` times
    √(2 ln d) when ``by_degree`` (d the target's in-degree, at least 2), else ``cap`` itself, in logits. The shape is
    τ·tanh(s/τ) (``soft``) or a clamp (``hard``).

    The mean over a target's edges is taken out first: softmax does not see it, but a cap without centring does, and
    turns a large common offset into uniform attention with vanishing gradients.
    """
    count = size if size is not None else int(index.max()) + 1 if index.numel() else 0
    mean = scatter(score, index, dim=0, dim_size=count, reduce="mean")
    centred = score - mean.index_select(0, index)
    limit: Tensor | float = cap
    if by_degree:
        limit = (cap * degree_unit(index, count, score.dtype)).index_select(0, index).view(-1, 1)
    if shape == "soft":
        return limit * torch.tanh(centred / limit)
    return torch.minimum(torch.maximum(centred, -torch.as_tensor(limit)), torch.as_tensor(limit))


def degree_unit(index: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """√(2 ln d) of every target, shape (size,): how far the largest of d Gaussian scores lies out, in their std."""
    ones = torch.ones(index.numel(), dtype=dtype, device=index.device)
    degree = scatter(ones, index, dim=0, dim_size=size, reduce="sum")
    unit: Tensor = (2.0 * degree.clamp(min=2.0).log()).sqrt()
    return unit
