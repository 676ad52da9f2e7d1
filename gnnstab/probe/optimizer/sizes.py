"""How large a change of outputs and a gradient are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor


def change_over_spread(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """‖after − before‖ over the spread of ``before`` around its mean over rows, all tensors together; NaN without a spread. One of at most one row is spread around zero."""
    moved = spread = 0.0
    for old, new in zip(before, after, strict=True):
        if old.shape == new.shape and old.numel():
            centre = old.mean(0, keepdim=True) if old.dim() and old.size(0) > 1 else 0.0
            moved += float((new - old).double().square().sum())
            spread += float((old - centre).double().square().sum())
    return math.sqrt(moved / spread) if spread > 0 else math.nan


def norm_of(gradients: Iterable[Tensor | None]) -> float:
    """L2 norm of all gradients together."""
    return math.sqrt(sum(float(g.detach().abs().double().square().sum()) for g in gradients if g is not None))
