"""Masks that add a constant to the scores of an attention, found again from its weights and its queries and keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places._numbers import MOST_ENTRIES

_SMALL, _LARGE = 0.9, 30.0
"""Constants that are neither a slight preference nor a mask that masks: e⁻³⁰ of the weight is nothing."""

_ROUNDING = 1e-4
"""Share of the largest score that two ways to compute it may differ by."""

_VIEWS = ("ViewBackward", "UnsafeViewBackward", "ReshapeAliasBackward")


def added(node: Any, weights: Tensor, axis: int) -> tuple[Tensor, float] | None:
    """Open entries of a softmax over keys, and the constant below 0 that all others get in its place of −∞; None for anything else.

    Args:
        node: Of the softmax.
        weights: (…, queries, keys) its result, detached.
        axis: Of the keys.
    """
    above = node.next_functions[0][0]
    if not type(above).__name__.startswith(("AddBackward", "SubBackward")) or weights.numel() > MOST_ENTRIES:
        return None
    sides = [side for side, _ in above.next_functions[:2]]
    for one, other in (sides, sides[::-1]):
        scores = _products(one, weights)
        if scores is not None and _of_no_weight(other):
            return _two_levels(weights.double().log() - scores, float(scores.abs().max()), axis)
    return None


def _products(node: Any, weights: Tensor) -> Tensor | None:
    """The product of queries and keys at a node, at most scaled by a number and reshaped behind it."""
    factor = 1.0
    while type(node).__name__.startswith((*_VIEWS, "DivBackward", "MulBackward")):
        if not type(node).__name__.startswith(_VIEWS):
            number = getattr(node, "_saved_other", None)
            if not isinstance(number, Tensor) or number.numel() != 1:
                return None
            factor *= float(number) if type(node).__name__.startswith("Mul") else 1 / float(number)
        node = node.next_functions[0][0]
    if not type(node).__name__.startswith(("BmmBackward", "MmBackward")):
        return None
    left, right = getattr(node, "_saved_self", None), getattr(node, "_saved_mat2", None)
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return None
    product = left.detach().double() @ right.detach().double()
    return factor * product.reshape(weights.shape) if product.numel() == weights.numel() else None


def _of_no_weight(node: Any) -> bool:
    """True for a constant, and for what is computed of the batch alone."""
    found = [] if node is None else autograd.walk_nodes([node])
    return not any(isinstance(getattr(one, "variable", None), nn.Parameter) for one in found)


def _two_levels(rest: Tensor, size: float, axis: int) -> tuple[Tensor, float] | None:
    """What is left of the logarithms is 0 at open entries and one constant at all others, up to a shift of each row."""
    rest = rest - rest.amax(axis, keepdim=True)
    low = float(rest.min())
    if not -_LARGE < low < -_SMALL:
        return None
    near = torch.minimum(rest.abs(), (rest - low).abs())
    return (rest > low / 2, low) if float(near.max()) <= _ROUNDING * max(size, 1.0) else None
