"""What a measurement is, and the reductions that all of them share.

Three conventions hold throughout. Small tensors (scores, degrees) are computed in float64; large ones (node features,
messages) stay in at least float32 and only their reductions accumulate in float64, so that measuring never doubles a
model's memory. Whatever touches a non-finite value becomes NaN or Inf itself: a broken tensor never looks healthy. What
is undefined (no edges, no eligible target, one node) is NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Measured(NamedTuple):
    """One signal of one layer call, still on the device."""

    total: Tensor | None
    """0-d; the aggregate over heads, or the only value."""

    per_head: Tensor | None = None
    """(H,) for the signals that exist per head."""

    spread: Tensor | None = None
    """(H, 2 + bins) smallest, largest and histogram of what ``per_head`` sums up, where it is kept."""


def quiet(function: Callable[P, R]) -> Callable[P, R]:
    """Run a measurement without autograd; its casts are explicit, so autocast must not reach it either."""

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        with torch.no_grad():
            if device is None:
                return function(*args, **kwargs)
            with torch.autocast(device, enabled=False):
                return function(*args, **kwargs)

    return measured


def exact(device: torch.device) -> torch.dtype:
    """The widest float of a device: float64, except on Apple GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def fine(values: Tensor) -> Tensor:
    """``values`` in the widest float; for small tensors."""
    return values.detach().to(exact(values.device))


def wide(values: Tensor) -> Tensor:
    """``values`` in at least float32; no copy where they already are."""
    values = values.detach()
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def undefined(like: Tensor, *shape: int) -> Tensor:
    """NaN of the given shape on the device of ``like``."""
    return torch.full(shape, torch.nan, dtype=exact(like.device), device=like.device)


def square_sum(values: Tensor, dim: int | None = None) -> Tensor:
    """Σ values², accumulated in float64 without a float64 copy of ``values``."""
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dim=dim, dtype=exact(values.device))
    return norm.square()


def rms(*parts: Tensor) -> Tensor:
    """Root mean square over all entries of all parts, 0-d."""
    count = sum(part.numel() for part in parts)
    if count == 0:
        return undefined(parts[0])
    return torch.stack([square_sum(part) for part in parts if part.numel()]).sum().div(count).sqrt()


def share(mask: Tensor, defined: Tensor) -> Tensor:
    """Share of True in ``mask``; NaN unless every entry of ``defined`` is True (broadcast), and for no entries."""
    part = mask.to(exact(mask.device)).mean()
    return torch.where(defined.all(), part, torch.nan)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over dim 0 of ``values`` (N, …) where ``mask`` (N,) is True; NaN where it never is."""
    column = mask.reshape(-1, *([1] * (values.dim() - 1)))
    return torch.where(column, values, 0.0).sum(0) / mask.sum()


def largest(low: Tensor, high: Tensor) -> Tensor:
    """max |x| from the minimum and the maximum; keeps NaN."""
    return torch.maximum(low.abs(), high.abs())


def extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Column minima and maxima (D,) of ``values`` (N, D), keeping NaN; NaN for no rows."""
    if values.shape[0] == 0:
        nothing = undefined(values, values.shape[1])
        return nothing, nothing
    low, high = torch.aminmax(values.detach(), dim=0)
    return fine(low), fine(high)


def lowest(values: Tensor) -> Tensor:
    """Smallest entry, 0-d; NaN for none."""
    return values.min() if values.numel() else undefined(values)


def highest(values: Tensor) -> Tensor:
    """Largest entry, 0-d; NaN for none."""
    return values.max() if values.numel() else undefined(values)


def lower_median(values: Tensor) -> Tensor:
    """The lower median of the entries of ``values`` (N,) that are not NaN, 0-d; NaN for none.

    By a sort, whose NaN come last, and a position that stays on the device.
    """
    if values.numel() == 0:
        return undefined(values)
    position = ((~values.isnan()).sum() - 1).clamp(min=0) // 2
    return values.sort().values.gather(0, position.view(1)).squeeze(0)


def as_rows(x: Tensor) -> Tensor:
    """``x`` as (N, D): a vector is one column; of more than two axes the last one holds the columns."""
    return x.reshape(-1, 1) if x.dim() < 2 else x.flatten(0, -2)
