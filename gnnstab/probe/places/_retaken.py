"""Attention weights that a second softmax is taken of: they lie between 0 and 1, and so no weight behind it is more than e times another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _masks as masks
from gnnstab.probe.places import _weight_sums as weight_sums
from gnnstab.records.vocabulary import PLACE_RETAKEN_SOFTMAX

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_KEEPS = (*autograd.SHAPES, "CloneBackward", "ToCopyBackward", "NativeDropoutBackward")
"""Operations behind which weights are still weights."""

MOST = 7.4
"""Largest over smallest weight, e², up to which nothing but weights was given: dropout of one half doubles them."""


class Taken(NamedTuple):
    """A softmax."""

    weights: Tensor
    above: Any
    """What made its scores."""

    over: int | Tensor
    """Axis that it runs over, or the group of each edge."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Each softmax that weighs values and is given the result of another one over the same entries, with its largest over smallest weight in a row."""
    nodes = list(autograd.walk(seen.outputs))
    users = masks.users_of(nodes)
    for node in nodes:
        later = taken(node)
        if later is None or not masks.weighs(node, users):
            continue
        earlier = _first(later.above)
        if earlier is None or earlier.weights.shape != later.weights.shape or not _alike(later.over, earlier.over):
            continue
        ratio = _ratio(later)
        if 1.0 < ratio < MOST:
            place = autograd.made_by(earlier.above, seen.calls.maker) or "output"
            yield PLACE_RETAKEN_SOFTMAX, place, ratio, {"messages": True} if isinstance(later.over, Tensor) else {}


def taken(node: Any) -> Taken | None:
    """The softmax that ends at a node; None for any other operation."""
    if type(node).__name__.startswith(masks.SOFTMAX[:2]):
        weights, axis = masks.weights_of(node)
        return None if weights is None else Taken(weights, node.next_functions[0][0], axis)
    if not type(node).__name__.startswith("DivBackward"):
        return None
    shares = weight_sums.shares(node) or _written_out(node)
    if shares is None:
        return None
    scores = node.next_functions[0][0].next_functions[0][0]
    if type(scores).__name__.startswith("SubBackward"):  # The largest of a group is taken off.
        scores = scores.next_functions[0][0]
    return Taken(shares[0], scores, shares[1])


def _written_out(node: Any) -> tuple[Tensor, int] | None:
    """Weights and axis of exponentials over their sum along one axis; None for any other quotient."""
    exponentials, total = node.next_functions[0][0], weight_sums.without_eps(node.next_functions[1][0])
    result, whole = autograd.saved(exponentials, "_saved_result"), autograd.saved(node, "_saved_other")
    if not type(exponentials).__name__.startswith("ExpBackward") or not type(total).__name__.startswith("SumBackward1"):
        return None
    if result is None or whole is None or total.next_functions[0][0] is not exponentials:
        return None
    over = [number - (1 << 64) if number >= 1 << 63 else number for number in getattr(total, "_saved_dim", ())]
    return (result.detach() / whole.detach(), over[0] % result.dim()) if len(over) == 1 else None


def _first(node: Any) -> Taken | None:
    """The softmax whose weights arrive at a node as they are, masked or thinned out."""
    while node is not None:
        if (found := taken(node)) is not None:
            return found
        kind = type(node).__name__
        added = kind.startswith("AddBackward") and [above for above, _ in node.next_functions].count(None) == 1
        thinned = kind.startswith("MulBackward") and weight_sums.thins(node)
        if not (added or thinned or kind.startswith(_KEEPS) or masks.constant(node) is not None):
            return None
        node = next((above for above, _ in node.next_functions if above is not None), None)
    return None


def _alike(one: int | Tensor, other: int | Tensor) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return isinstance(one, int) and one == other


def _ratio(taken: Taken) -> float:
    """Largest over smallest weight above 0, in the row where they differ most."""
    weights, over = taken.weights, taken.over
    axis = 0 if isinstance(over, Tensor) else over
    low, high = weights.masked_fill(weights <= 0, torch.inf), weights
    if isinstance(over, Tensor):
        groups = over.view(-1, *(1,) * (weights.dim() - 1)).expand_as(weights)
        empty = weights.new_zeros(int(over.max()) + 1, *weights.shape[1:])
        low = torch.full_like(empty, torch.inf).scatter_reduce(0, groups, low, "amin")
        high = empty.scatter_reduce(0, groups, high, "amax")
    else:
        low, high = low.amin(axis), high.amax(axis)
    known = low.isfinite()
    return float((high[known] / low[known]).max()) if bool(known.any()) else 1.0
