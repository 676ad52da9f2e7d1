"""Masks that do not mask: factors of 0 and small constants before a softmax, constants that win, keys closed the wrong way round."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from gnnstab.probe.places import _autograd as autograd
from gnnstab.probe.places import _weight_sums as weight_sums
from gnnstab.probe.places._added import added
from gnnstab.probe.places._numbers import MOST_ENTRIES
from gnnstab.probe.places._weights import against_name, on_padding, taken_away

if TYPE_CHECKING:
    from gnnstab.probe.places.survey import ForwardView

_SCALES = ("DivBackward", "MulBackward", "ToCopyBackward", "CloneBackward")
"""Operations that leave every score where it stands."""

_DROPS = ("NativeDropoutBackward", "MulBackward", "DivBackward", "CloneBackward")
"""What may stand between the weights of an attention and the values that they weigh."""

SOFTMAX = ("SoftmaxBackward", "SafeSoftmaxBackward", "LogSoftmaxBackward")

_FAR = 20.0
"""Distance of a constant from all scores from which on it is a mask and not the limit of a clamp: e⁻²⁰ of the weight."""

_NOTHING = 1e-3
"""Share of the weight up to which a mask has closed what it was to close."""

_ALIKE, _APART = 1e-5, 0.05
"""Largest difference of the values behind keys over their RMS: below the first they hold nothing, above the second they differ."""


class Mask(NamedTuple):
    """What closes some scores of a softmax."""

    open: Tensor
    """Bool, of a shape that expands to that of the scores."""

    constant: bool
    """True where closed scores are replaced by one number, False where they are multiplied by 0."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """What each softmax gives to entries that are none of its business, and masks that close what they should leave open."""
    nodes = list(autograd.walk(seen.outputs))
    users = users_of(nodes)
    read = False
    for node in [one for one in nodes if type(one).__name__.startswith(SOFTMAX)]:
        above = node.next_functions[0][0]
        place = autograd.made_by(above, seen.calls.maker) or "output"
        for signal, value, detail in _of_softmax(node, users, seen.batch):
            read |= signal in ("place.padding_weight", "place.closed_content")
            yield signal, place, value, detail
    for node, largest in weight_sums.over_edges(users):
        yield "place.weight_sum", autograd.made_by(node, seen.calls.maker) or "output", largest, {"over": "edges"}
    for node, factor in weight_sums.shrunk_edges(users):
        yield "place.weight_sum", autograd.made_by(node, seen.calls.maker) or "output", factor, {"over": "a number"}
    if not read:
        yield from _inverted(seen, list(users))
    yield from _filled_outputs(seen)


def users_of(nodes: list[Any]) -> dict[Any, list[Any]]:
    """What reads the result of each operation."""
    users: dict[Any, list[Any]] = defaultdict(list)
    for node in nodes:
        for above, _ in node.next_functions:
            users[above].append(node)
    return users


def _of_softmax(
    node: Any, users: Mapping[Any, list[Any]], batch: Mapping[str, Tensor]
) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """Signal, value and detail of what one softmax gives away; of several faults of one mask the first."""
    mask = _mask_above(node)
    if mask is not None and not _divided_again(node, users):
        share = _left(node, mask)
        if share is not None:
            yield "place.masked_weight", share, {"operation": "softmax", "constant": mask.constant}
            if share > _NOTHING:
                return
    weights, axis = weights_of(node)
    if weights is None or not users[node]:  # What the model returns are answers: no values are weighed by them.
        return
    largest = weight_sums.dense(node, weights, axis, users)
    if largest is not None:
        yield "place.weight_sum", largest, {"over": f"axis {axis} of {weights.dim()}"}
        return
    uneven = weight_sums.plain(node, weights, users)
    if uneven is not None:
        yield "place.weight_sum", uneven, {"over": f"axis {axis} of {weights.dim()}", "messages": True}
        return
    small = weight_sums.shrunk(node, weights, users)
    if small is not None:
        yield "place.weight_sum", small, {"over": "a number"}
    soft = None if mask is not None else added(node, weights, axis)
    if soft is not None and (share := taken_away(weights, axis, soft[0])) is not None:
        yield "place.masked_weight", share, {"operation": "softmax", "added": soft[1]}
        return
    masks = [found for user in users[node] if (found := _factor(user)) is not None]
    if masks:
        lost = None if _divided_again(node, users) else taken_away(weights, axis, masks[0])
        if lost is not None:
            yield "place.lost_weight", lost, {}
        return
    if axis == weights.dim() - 1 and (name := against_name(weights, batch)):
        yield "place.closed_content", 1.0, {"mask": name}
        return
    padding = on_padding(weights, axis, batch) if weighs(node, users) else None
    if padding is not None:
        yield "place.padding_weight", *padding


def weights_of(node: Any) -> tuple[Tensor | None, int]:
    """Result of a softmax without its gradient, and the axis of its keys from 0."""
    result = autograd.saved(node, "_saved_result")
    if result is None:
        return None, 0
    result = result.detach()
    axis = int(getattr(node, "_saved_dim", -1))
    axis = axis - (1 << 64) if axis >= 1 << 63 else axis
    return result.exp() if type(node).__name__.startswith("Log") else result, axis % max(result.dim(), 1)


def weighs(node: Any, users: Mapping[Any, list[Any]]) -> bool:
    """True for a softmax whose result, reshaped or dropped out, is multiplied with values."""
    waiting = list(users[node])
    while waiting:
        user = waiting.pop()
        kind = type(user).__name__
        if kind.startswith(("BmmBackward", "MmBackward")) or (kind.startswith("MulBackward") and not _by_number(user)):
            return True
        if kind.startswith((*autograd.SHAPES, *_DROPS, "TransposeBackward", "PermuteBackward")):
            waiting += users.get(user, ())
    return False


def filled(tensor: Tensor) -> Tensor | None:
    """Bool mask of the entries of an output that were set to a constant last of all; None without any."""
    node = tensor.grad_fn
    while node is not None and type(node).__name__.startswith((*_SCALES, *autograd.SHAPES, *SOFTMAX)):
        node = node.next_functions[0][0]
    found = constant(node)
    if found is None:
        return None
    try:
        closed = ~found if found.numel() == tensor.numel() else ~found.expand(tensor.shape)
    except RuntimeError:
        return None
    return closed.reshape(tensor.shape)


def _filled_outputs(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    for tensor in seen.outputs:
        closed = filled(tensor)
        if closed is None or not bool(closed.any()) or bool(closed.all()):
            continue
        above = float((tensor[closed].min() - tensor[~closed].max()).detach())
        if above > 0 and math.isfinite(above):
            yield "place.filled_output", "output", above, {"share": float(closed.double().mean())}


def _mask_above(node: Any) -> Mask | None:
    """The mask that closes what a softmax is given, at most scaled in between."""
    while True:
        node = node.next_functions[0][0]
        replaced = constant(node)
        if replaced is not None:
            return Mask(replaced, True)
        if node is None or not type(node).__name__.startswith(_SCALES):
            return None
        mask = _factor(node)
        if mask is not None:
            return Mask(mask, False)
        if not type(node).__name__.startswith(("ToCopy", "Clone")) and not _by_number(node):
            return None


def constant(node: Any) -> Tensor | None:
    """Where ``masked_fill`` or ``where`` with a constant leaves what it is given; None for any other operation."""
    kind = type(node).__name__
    if kind.startswith("MaskedFillBackward") and all(value is None for value, _ in node.next_functions[1:]):
        mask = autograd.saved(node, "_saved_mask")
        return None if mask is None else ~mask
    if kind.startswith("WhereBackward"):
        condition, (one, other) = (
            autograd.saved(node, "_saved_condition"),
            [above for above, _ in node.next_functions[-2:]],
        )
        if condition is not None and (one is None) != (other is None):
            return condition if other is None else ~condition
    return None


def _factor(node: Any) -> Tensor | None:
    """The zeros and ones that a product is taken with; None for any other operation."""
    if not type(node).__name__.startswith("MulBackward"):
        return None
    for tensor in (autograd.saved(node, "_saved_other"), autograd.saved(node, "_saved_self")):
        if tensor is not None and tensor.numel() > 1:
            values = tensor if tensor.dtype == torch.bool else tensor[(tensor != 0) & (tensor != 1)]
            if tensor.dtype == torch.bool or not values.numel():
                return tensor != 0
    return None


def _divided_again(node: Any, users: Mapping[Any, list[Any]]) -> bool:
    """Weights that are multiplied by the mask once more, and then divided by their sum, are right."""
    products = [user for user in users.get(node, ()) if _factor(user) is not None]
    return any(type(user).__name__.startswith("DivBackward") for product in products for user in users.get(product, ()))


def _by_number(node: Any) -> bool:
    other = autograd.saved(node, "_saved_other")
    return other is None or other.numel() == 1


def _left(node: Any, mask: Mask) -> float | None:
    """Mean weight of the closed entries, over the rows that have closed and open ones; None where no row has both.

    None as well where a constant limits the scores, as a clamp does, in place of taking some of them away.
    """
    weights, axis = weights_of(node)
    if weights is None or mask.open.dim() > weights.dim():
        return None
    try:
        open_ = mask.open.expand(weights.shape)
    except RuntimeError:
        return None
    both = open_.any(axis, keepdim=True) & (~open_).any(axis, keepdim=True)
    if not bool(both.any()):
        return None
    if mask.constant and _limits(weights.log(), open_, both, axis):
        return None
    return float((weights * ~open_).sum(axis, keepdim=True)[both].mean())


def _limits(logs: Tensor, open_: Tensor, both: Tensor, axis: int) -> bool:
    """True where every open score lies on one side of the constant and some lie near it: what was cut off lay beyond."""
    constant = logs.masked_fill(open_, -math.inf).amax(axis, keepdim=True)
    gaps = (logs - constant)[open_ & both & constant.isfinite()]
    gaps = gaps[~gaps.isnan()]
    if not gaps.numel():
        return False
    low, high = float(gaps.min()), float(gaps.max())
    return 0 <= low < _FAR or -_FAR < high <= 0


def _inverted(seen: ForwardView, nodes: list[Any]) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """Attention whose open keys all hold the same, as padding does, while the closed ones differ."""
    for node in nodes:
        found = _keys(node)
        if found is None:
            continue
        closed, values, above = found
        share = _same_open(closed, values)
        if share is not None and share > 0:
            place = autograd.made_by(above, seen.calls.maker) or "output"
            yield "place.closed_content", place, share, {}


def _keys(node: Any) -> tuple[Tensor, Tensor, Any] | None:
    """Of an attention: which keys no query may read (sets, keys), what stands behind them (sets, keys, channels), what made it."""
    if not type(node).__name__.startswith("BmmBackward"):
        return None
    weights, values = autograd.saved(node, "_saved_self"), autograd.saved(node, "_saved_mat2")
    if weights is None or values is None or weights.numel() > MOST_ENTRIES or not _are_weights(node):
        return None
    return (weights == 0).all(1), values, node.next_functions[1][0]


def _are_weights(node: Any) -> bool:
    node = node.next_functions[0][0]
    while node is not None and type(node).__name__.startswith((*autograd.SHAPES, *_DROPS)):
        node = node.next_functions[0][0]
    return type(node).__name__.startswith(SOFTMAX)


def _same_open(closed: Tensor, values: Tensor) -> float | None:
    """Share of the sets with two open and two closed keys whose open ones hold the same and whose closed ones differ."""
    both = ((~closed).sum(1) > 1) & (closed.sum(1) > 1)
    if not bool(both.any()):
        return None
    closed, values = closed[both], values[both].detach().double()
    size = values.square().mean((1, 2)).sqrt()

    def spread(kept: Tensor) -> Tensor:
        high = values.masked_fill(~kept[..., None], -math.inf).amax(1)
        return (high - values.masked_fill(~kept[..., None], math.inf).amin(1)).amax(1)

    return float(((spread(~closed) <= _ALIKE * size) & (spread(closed) > _APART * size)).double().mean())
