"""Forwards of one copy that are compared with each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.replaying.replica import copied, eager, forked_rng, tensors_in
from gnnstab.stored import is_dense

FILLED = 1e4
"""Times the median size from which on an entry of an output is a constant that stands for −∞, and says nothing."""


ROUNDING = 1e-6
"""Relative difference of two passes that sums in another order leave."""

Row = tuple[str, str, float, dict[str, Any]]


class Passes:
    """Forwards of one copy in evaluation mode, each from the same buffers and generators."""

    def __init__(self, model: nn.Module, rng: Any) -> None:
        self.model, self._rng = model, rng
        self._buffers = {b: b.detach().clone() for b in model.buffers()}

    def __call__(self, args: Any, kwargs: Mapping[str, Any], *, shifted: bool = False) -> list[Tensor]:
        with forked_rng(self._rng), torch.no_grad():
            if shifted:
                torch.rand(7)
            for buffer, value in self._buffers.items():
                buffer.copy_(value)
            output = eager(self.model)(*copied(tuple(args)), **copied(dict(kwargs)))
        return [t.detach() for _, t in tensors_in([output]) if is_dense(t)]


def moved(before: list[Tensor], after: list[Tensor]) -> float:
    """RMS of the difference over that of the tensors; entries that stand for −∞ are left out."""
    pairs = [
        (a.double().flatten(), b.double().flatten()) for a, b in zip(before, after, strict=True) if a.shape == b.shape
    ]
    if not pairs:
        return math.nan
    one, other = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    finite = one.isfinite() & other.isfinite()
    size = one[finite].abs()
    if not size.numel():
        return math.nan
    kept = finite & ~((one == other) & (one.abs() > FILLED * size.median()))
    one, other = one[kept], other[kept]
    norm = float(one.norm())
    return float((one - other).norm()) / norm if norm > 0 else 0.0
