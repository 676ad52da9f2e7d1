"""The model's raw node features."""

from __future__ import annotations

import torch
from torch import Tensor

from gnnstab.probe.statistics.numbers import (
    Measured,
    as_rows,
    exact,
    extremes,
    highest,
    lower_median,
    quiet,
    rms,
    share,
    square_sum,
)
from gnnstab.probe.statistics.smoothness import relative_difference


@quiet
def node_measures(x: Tensor, batch: Tensor | None = None) -> dict[str, Measured]:
    """Scale, constant columns and non-finite entries of node features ``x`` (N, D).

    Empty for integer and boolean features (indices into an embedding, not magnitudes) and for a scalar. A vector (N,)
    is read as one column; of more than two axes the last one holds the columns.
    """
    if not x.is_floating_point() or x.dim() == 0:
        return {}
    x = as_rows(x)
    numbers = {
        "feature.rms": rms(x),
        "feature.column_ratio": _column_ratio(x),
        "feature.constant_share": constant_share(x),
        "feature.non_finite": (~torch.isfinite(x)).sum().to(exact(x.device)),
        "smoothness.relative_input": relative_difference(x, batch),
    }
    return {name: Measured(value) for name, value in numbers.items()}


def _column_ratio(x: Tensor) -> Tensor:
    """Largest over (lower) median column RMS; columns of zeros carry no scale and are left out."""
    energy = square_sum(x, dim=0)
    scale = torch.where(energy == 0, torch.nan, energy.sqrt())
    # The median skips a NaN that came from the data; the largest energy brings it back.
    return highest(energy).sqrt() / lower_median(scale)


def constant_share(*parts: Tensor) -> Tensor:
    """Share of the columns of ``parts`` (N, D) whose entries are all exactly equal; NaN for fewer than two rows."""
    bounds = [extremes(part) for part in parts if part.shape[0] >= 2]
    if not bounds:
        return torch.full((), torch.nan, dtype=exact(parts[0].device), device=parts[0].device)
    low, high = (torch.cat(side) for side in zip(*bounds, strict=True))
    return share(low == high, ~(low.isnan() | high.isnan()))
