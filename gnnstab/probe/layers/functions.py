"""Torch's functions by what they do to a tensor that is followed through a forward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_TURNED: tuple[Any, ...] = tuple(getattr(one, "__get__") for one in (Tensor.mT, Tensor.T))  # noqa: B009  # no class attribute to mypy
SAME = frozenset(
    {
        *(F.dropout, torch.dropout, F.alpha_dropout, torch.nan_to_num, Tensor.nan_to_num, torch.clone, Tensor.clone),
        *(Tensor.to, Tensor.float, Tensor.half, Tensor.double, Tensor.bfloat16, Tensor.type, Tensor.type_as),
        *(Tensor.contiguous, Tensor.masked_fill, torch.masked_fill, torch.where, Tensor.masked_fill_),
        *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute, Tensor.unsqueeze, torch.unsqueeze),
        *(Tensor.squeeze, torch.squeeze, Tensor.view, Tensor.reshape, torch.reshape, Tensor.movedim, torch.movedim),
        *(*_TURNED, Tensor.expand, Tensor.__getitem__, Tensor.swapaxes, torch.swapaxes),
        *(Tensor.flatten, torch.flatten),
    }
)
"""What keeps the numbers of a softmax, or drops some: its result is followed through these."""

TIMES = frozenset(
    {
        *(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply, Tensor.multiply, Tensor.mul_),
        Tensor.__imul__,
    }
)
DIVIDES = frozenset(
    {
        *(torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_, Tensor.__itruediv__, Tensor.__rtruediv__),
        *(torch.true_divide, Tensor.true_divide, torch.divide, Tensor.divide, torch.reciprocal, Tensor.reciprocal),
    }
)
"""Quotients; of a single argument, or of a tensor below a plain number, the inverse."""

MIXES = DIVIDES | {
    *(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__),
    *(torch.sub, Tensor.sub, Tensor.__sub__, Tensor.sub_, F.normalize),
}
"""What changes weights entry by entry and leaves them weights: mixed with an adjacency, normalised once more."""

PRODUCTS = frozenset(
    {
        *(torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__),
        *(torch.bmm, Tensor.bmm, torch.mm, Tensor.mm),
    }
)
SUMS = frozenset({torch.sum, Tensor.sum, torch.mean, Tensor.mean})


def above_and_below(func: Any, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Numerator and denominator of one of `DIVIDES`; 1 above an inverse."""
    if len(args) < 2:
        return 1, args[0]
    return (args[1], args[0]) if func is Tensor.__rtruediv__ else (args[0], args[1])
