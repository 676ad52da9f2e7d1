"""What the attention weights of a target sum up to: not 1 where a softmax runs over another axis, or over other edges, than the sum does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gnnstab.probe.places import _autograd as autograd

_SAME = (*autograd.SHAPES, "CloneBackward", "NativeDropoutBackward", "ToCopyBackward")
"""Operations that leave the last axis of weights last, and their sums what they are but for dropout."""

_SUMS = ("IndexAddBackward", "ScatterAddBackward")


def dense(node: Any, weights: Tensor, axis: int, users: Mapping[Any, list[Any]]) -> float | None:
    """The sum of the weights of a row that is multiplied with values that is farthest from 1, where the softmax ran over another axis; None for any other use.

    Weights that share out a row among clusters are meant so: an axis of queries counts where there are as many of them as of keys.
    """
    last = weights.dim() - 1
    if axis == last or (axis == last - 1 and weights.shape[axis] != weights.shape[last]):
        return None
    for user, above in uses(node, users):
        left = type(user).__name__.startswith(("BmmBackward", "MmBackward")) and user.next_functions[0][0] is above
        read = autograd.saved(user, "_saved_self") if left else None
        if read is not None and read.shape[-2:] == weights.shape[-2:]:
            return _farthest(weights.sum(-1))
    return None


def plain(node: Any, weights: Tensor, users: Mapping[Any, list[Any]]) -> float | None:
    """The sum of the weights (edges, …) of a target that is farthest from 1, where a softmax over one axis of all edges weighs messages.

    None where a weight has one channel to weigh, as a gate has, and where there is but one target.
    """
    for user, above in uses(node, users, values=True):
        index = _index(user) if type(user).__name__.startswith(_SUMS) else None
        if index is None or len(index) != len(weights) or above not in [one for one, _ in user.next_functions]:
            continue
        width = _width(user, above)
        targets = int(index.max()) + 1
        if targets < 2 or width is None or width <= weights[0].numel():
            return None
        sums = weights.new_zeros(targets, *weights.shape[1:]).index_add_(0, index, weights)[torch.bincount(index) > 0]
        return _farthest(sums)
    return None


def _farthest(sums: Tensor) -> float:
    """The one that is the most times larger or smaller than 1; a row without a key has the sum 0, or none, and is left out."""
    found = sums.flatten()[sums.flatten() > 0]
    return float(found[found.log().abs().argmax()]) if found.numel() else 1.0


def _width(user: Any, above: Any) -> int | None:
    """Numbers of each message that a sum is given."""
    shape = next((m.shape for m in getattr(above, "_input_metadata", ())), None)
    return None if not shape or not len(shape) else int(torch.Size(shape[1:]).numel())


def shrunk(node: Any, weights: Tensor, users: Mapping[Any, list[Any]], edges: bool = False) -> float | None:
    """What the weights of a target sum up to, where numbers divide them before they weigh values; None for any other use.

    A mean over the heads may be taken so.
    """
    ends, heads = (_SUMS, weights.shape[1:]) if edges else (("BmmBackward", "MmBackward"), weights.shape[:-2])
    waiting = [(node, 1.0)]
    while waiting:
        above, before = waiting.pop()
        for user, _ in uses(above, users):
            factor = before * (_number(user) or 0.0)
            if not factor:
                continue
            waiting.append((user, factor))
            read = any(type(below).__name__.startswith(ends) for below, _ in uses(user, users, values=edges))
            if read and not any(abs(factor * n - 1) < 1e-3 for n in heads):
                return factor
    return None


def shrunk_edges(users: Mapping[Any, list[Any]]) -> Iterator[tuple[Any, float]]:
    """Each softmax over edges whose weights one number divides."""
    for node in [one for one in users if type(one).__name__.startswith("DivBackward")]:
        found = shares(node)
        factor = None if found is None else shrunk(node, found[0], users, edges=True)
        if factor is not None:
            yield node, factor


def _number(node: Any) -> float | None:
    """The one number that a tensor is multiplied with or divided by."""
    if not type(node).__name__.startswith(("MulBackward", "DivBackward")):
        return None
    other = autograd.saved(node, "_saved_other")
    if other is None or other.numel() != 1 or other.requires_grad or not float(other):
        return None
    return float(other) if type(node).__name__.startswith("Mul") else 1 / float(other)


def over_edges(users: Mapping[Any, list[Any]]) -> Iterator[tuple[Any, float]]:
    """Each softmax over the edges of one end whose weights are summed up at the other one, with the largest such sum.

    Groups within those that are summed up are meant so, as a softmax for each relation.
    """
    for node in [one for one in users if type(one).__name__.startswith("DivBackward")]:
        found = shares(node)
        if found is None:
            continue
        weights, groups = found
        sums = [
            index
            for user, above in uses(node, users, values=True)
            if type(user).__name__.startswith(_SUMS) and above in [one for one, _ in user.next_functions]
            if (index := _index(user)) is not None and index.shape == groups.shape
        ]
        # A hypergraph sums with the same weights twice: at its edges, and back at its nodes.
        if sums and not any(_within(groups, index) for index in sums):
            added = weights.new_zeros(int(sums[0].max()) + 1, *weights.shape[1:])
            yield node, float(added.index_add_(0, sums[0], weights).max())


def uses(node: Any, users: Mapping[Any, list[Any]], *, values: bool = False) -> Iterator[tuple[Any, Any]]:
    """What reads weights that at most dropout has changed, with what hands them over; ``values``: or their products with values."""
    waiting = [(user, node) for user in users.get(node, ())]
    for _ in range(50):
        if not waiting:
            return
        user, above = waiting.pop()
        yield user, above
        kind = type(user).__name__
        if kind.startswith(_SAME) or (kind.startswith("MulBackward") and (values or thins(user))):
            waiting += [(below, user) for below in users.get(user, ())]


def thins(node: Any) -> bool:
    """True for a product with the zeros and the one constant of a dropout."""
    for tensor in (autograd.saved(node, "_saved_other"), autograd.saved(node, "_saved_self")):
        if tensor is not None and tensor.numel() > 1 and not tensor.requires_grad:
            kept = tensor[tensor != 0]
            if kept.numel() and float(kept.min()) == float(kept.max()) > 1:
                return True
    return False


def shares(node: Any) -> tuple[Tensor, Tensor] | None:
    """Weights (edges, …) and groups (edges,) of exponentials over the sums of their groups; None for any other quotient."""
    exponentials, picked = (above for above, _ in node.next_functions)
    whole, picked = autograd.saved(node, "_saved_other"), without_eps(picked)
    if whole is None or not type(exponentials).__name__.startswith("ExpBackward"):
        return None
    if not type(picked).__name__.startswith(("IndexSelectBackward", "IndexBackward", "GatherBackward")):
        return None
    result, groups = autograd.saved(exponentials, "_saved_result"), _index(picked)
    total = picked.next_functions[0][0]
    while type(total).__name__.startswith(("AddBackward", "ClampBackward", *_SAME)):
        total = total.next_functions[0][0]
    summed = type(total).__name__.startswith(_SUMS) and exponentials in [one for one, _ in total.next_functions]
    if not summed or result is None or groups is None or len(result) != len(groups) or result.shape != whole.shape:
        return None
    return result.detach() / whole.detach(), groups


def without_eps(node: Any) -> Any:
    """What stands in front of a number that is added, or of a lower limit."""
    while type(node).__name__.startswith(("AddBackward", "ClampBackward", "ClampMinBackward")):
        above = [one for one, _ in node.next_functions if one is not None]
        if len(above) != 1:
            break
        node = above[0]
    return node


def _index(node: Any) -> Tensor | None:
    """(edges,) which group each row is taken from, or put into; None where rows are not told apart by one number."""
    found = autograd.saved(node, "_saved_index")
    if found is None:
        indices: tuple[Tensor | None, ...] = getattr(node, "_saved_indices", None) or ()
        found = next(iter(indices), None) if len(indices) == 1 else None
    if not isinstance(found, Tensor) or found.dtype != torch.long or not found.numel():
        return None
    return found.reshape(len(found), -1)[:, 0]


def _within(groups: Tensor, targets: Tensor) -> bool:
    """True where all members of a group go to one target."""
    first = torch.full((int(groups.max()) + 1,), -1, dtype=torch.long, device=groups.device)
    first[groups] = targets
    return bool((first[groups] == targets).all())
