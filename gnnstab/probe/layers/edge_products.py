"""Scores over edges that are products of queries and keys times a power of √d that a formula divides by, or cosines times a temperature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from torch import Tensor

from gnnstab.torch_private import keeps_saved_tensors

_MOST_STEPS = 6
"""Operations between the sum of a product and a softmax that are looked at: factors and views."""

_THROUGH = (
    "MulBackward",
    "DivBackward",
    "ToCopyBackward",
    "ViewBackward",
    "SqueezeBackward",
    "UnsqueezeBackward",
    "ReshapeAliasBackward",
)

_EXACT = 1e-3
"""Share by which a factor may miss √d or d: a factor that is learned or chosen seldom comes as near."""

_UNIT = 1e-2
"""Distance from 1 that lengths of normalised vectors keep in any format."""


def multiplied_products(score: Tensor) -> float | None:
    """c where the scores (E, H) of a graph of autograd are c·q·k/√d, the products having been multiplied with √d or d; else None."""
    found = _multiplied(score)
    if found is None or found.units:
        return None  # What multiplies cosines is a temperature that somebody chose.
    exact = any(abs(found.factor / power - 1) <= _EXACT for power in (math.sqrt(found.width), float(found.width)))
    return found.factor * math.sqrt(found.width) if exact else None


def multiplied_cosines(score: Tensor) -> float | None:
    """c where the scores (E, H) of a graph of autograd are c times the cosines of queries and keys; else None.

    One side has length 1 and the other one length, wherever the factor stands.
    """
    found = _multiplied(score)
    return None if found is None or not found.units or found.length is None else found.factor * found.length


class _Multiplied(NamedTuple):
    """Scores that are one factor times the products of queries and keys."""

    factor: float
    width: int
    units: int
    """How many of both sides have length 1."""

    length: float | None
    """Product of the lengths of both sides; None where those of one differ."""


def _multiplied(score: Tensor) -> _Multiplied | None:
    try:
        operands = _operands(score.grad_fn) if keeps_saved_tensors() else None
        if operands is None:
            return None
        query, key, axis = operands
        width = query.shape[axis]
        made, own = (query * key).sum(axis).flatten().double(), score.detach().flatten().double()
    except (RuntimeError, AttributeError, IndexError):  # What is saved was changed in place, or freed.
        return None
    size = float(made.square().sum())
    if width < 2 or made.shape != own.shape or not 0 < size < math.inf:
        return None
    lengths = [side.norm(dim=axis) for side in (query, key)]
    units = sum(float((length - 1).abs().max()) <= _UNIT for length in lengths)
    even = all(float(length.max() - length.min()) <= _UNIT * float(length.max()) for length in lengths)
    length = float(lengths[0].mean() * lengths[1].mean()) if even else None
    factor = float(own @ made) / size
    off = float((own - factor * made).square().sum())
    return _Multiplied(factor, width, units, length) if off <= _EXACT**2 * float(own.square().sum()) else None


def _operands(node: Any) -> tuple[Tensor, Tensor, int] | None:
    """Both sides of the product that a chain of factors and views begins with, and the axis that it is summed over."""
    for _ in range(_MOST_STEPS):
        if node is None:
            return None
        above = [one for one, _ in node.next_functions if one is not None]
        name = type(node).__name__
        if name.startswith("SumBackward1") and len(node._saved_dim) == 1 and not node._saved_keepdim:
            return _product(above[0], int(node._saved_dim[0]))
        if len(above) != 1 or not name.startswith(_THROUGH):
            return None
        node = above[0]
    return None


def _product(node: Any, axis: int) -> tuple[Tensor, Tensor, int] | None:
    if not type(node).__name__.startswith("MulBackward"):
        return None
    query, key = node._saved_self, node._saved_other
    if query is None or key is None or query.shape != key.shape:
        return None
    axis = axis if axis < query.dim() else axis - 2**64  # Autograd keeps −1 as an unsigned number.
    return query.detach(), key.detach(), axis
