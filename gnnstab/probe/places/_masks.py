"""Scores that a mask of zeros and ones multiplies in front of a softmax, which gives a score of 0 its share of the weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gnnstab.probe.places import _operations as operations

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_SCALES = ("DivBackward", "MulBackward", "ToCopyBackward", "CloneBackward")
"""Operations that leave every score where it stands."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """The weight that each softmax leaves to entries which its mask was to close; nothing for one that is masked as it should be."""
    users: dict[Any, list[Any]] = defaultdict(list)
    for node in operations.walk(seen.outputs):
        for above, _ in node.next_functions:
            users[above].append(node)
    for node in [one for one in users if type(one).__name__.startswith(("SoftmaxBackward", "LogSoftmaxBackward"))]:
        mask = _mask_above(node)
        # Weights that are multiplied by the mask again, and then by their sum, are right.
        if mask is None or any(_factor(user) is not None for user in users[node]):
            continue
        share = _left(node, mask)
        if share is not None:
            above = node.next_functions[0][0]
            place = operations.made_by(above, seen.calls.maker) or "output"
            yield "place.masked_weight", place, share, {"operation": "softmax"}


def _mask_above(node: Any) -> Tensor | None:
    """The mask that multiplies what a softmax is given, at most scaled in between."""
    while True:
        node = node.next_functions[0][0]
        if node is None or not type(node).__name__.startswith(_SCALES):
            return None
        mask = _factor(node)
        if mask is not None:
            return mask
        if not type(node).__name__.startswith(("ToCopy", "Clone")) and not _by_number(node):
            return None


def _factor(node: Any) -> Tensor | None:
    """The zeros and ones that a product is taken with; None for any other operation."""
    if not type(node).__name__.startswith("MulBackward"):
        return None
    for tensor in (_saved(node, "_saved_other"), _saved(node, "_saved_self")):
        if tensor is not None and tensor.numel() > 1:
            values = tensor if tensor.dtype == torch.bool else tensor[(tensor != 0) & (tensor != 1)]
            if tensor.dtype == torch.bool or not values.numel():
                return tensor != 0
    return None


def _by_number(node: Any) -> bool:
    other = _saved(node, "_saved_other")
    return other is None or other.numel() == 1


def _saved(node: Any, name: str) -> Tensor | None:
    try:
        found = getattr(node, name, None)
    except RuntimeError:  # Freed by a backward.
        return None
    return found if isinstance(found, Tensor) else None


def _left(node: Any, mask: Tensor) -> float | None:
    """Mean weight of the closed entries, over the rows that have closed and open ones; None where no row has both."""
    result = _saved(node, "_saved_result")
    if result is None or mask.dim() > result.dim():
        return None
    weights = result.exp() if type(node).__name__.startswith("Log") else result
    try:
        open_ = mask.expand(weights.shape)
    except RuntimeError:
        return None
    axis = int(getattr(node, "_saved_dim", -1))
    axis = axis - (1 << 64) if axis >= 1 << 63 else axis
    both = open_.any(axis) & (~open_).any(axis)
    if not bool(both.any()):
        return None
    return float((weights * ~open_).sum(axis)[both].mean())
