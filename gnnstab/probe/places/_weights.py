"""Whom the softmaxes of a forward give weight to, against what the batch says: padding, closed keys, weight that is taken away again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gnnstab.probe.places._numbers import MOST_ENTRIES
from gnnstab.probe.places._padding import is_binary, padding_mask, says_closed, says_open


def on_padding(weights: Tensor, axis: int, named: Mapping[str, Tensor]) -> tuple[float, dict[str, Any]] | None:
    """Mean weight of real queries on padded keys, with which tensor says so; None where no key is known to be padding.

    Args:
        weights: (sets or sets × heads, …, keys, …) result of a softmax.
        axis: Of the keys.
        named: Every tensor of the batch by name.
    """
    found = padding_mask(named)
    if found is None:
        return None
    name, real = found
    sets, width = real.shape
    if axis == 0 or weights.shape[axis] != width or len(weights) % sets or weights.numel() > MOST_ENTRIES:
        return None
    if not says_closed(name) and not says_open(name) and not bool(real[:, 0].all()):
        # Real rows stand in front by custom: those that stand behind may as well be padding, marked by True.
        return None
    # What the loss alone reads may lie on another device than the model.
    real = real.to(weights.device).repeat_interleave(len(weights) // sets, 0)
    shape = [len(weights)] + [1] * (weights.dim() - 1)
    keys = real.view(*shape[:axis], width, *shape[axis + 1 :])
    reads = (~real).any(1).view(shape).expand_as(weights.amax(axis, keepdim=True))
    if axis == weights.dim() - 1 and weights.dim() > 2 and weights.shape[-2] == width:
        reads = reads & real.view(*shape[:-2], width, 1)
    share = float((weights * ~keys).sum(axis, keepdim=True)[reads].mean())
    return share, {"mask": name, "share": float((~real).double().mean())}


def taken_away(weights: Tensor, axis: int, open_: Tensor) -> float | None:
    """Mean share of the weight that a mask (broadcast over the weights) takes away behind a softmax; None where it closes no part of a row."""
    try:
        open_ = open_.expand(weights.shape)
    except RuntimeError:
        return None
    both = open_.any(axis, keepdim=True) & (~open_).any(axis, keepdim=True)
    return float((weights * ~open_).sum(axis, keepdim=True)[both].mean()) if bool(both.any()) else None


def against_name(weights: Tensor, named: Mapping[str, Tensor]) -> str:
    """Name of the tensor of the batch whose closed entries, and no others, receive weight; empty without one.

    A name tells which entries are closed: ``blocked`` and ``padding`` those that are set, ``adj`` and ``valid`` the others, and of
    ``edge_index`` the pairs that are no edge.
    """
    if weights.dim() < 2 or weights.numel() > MOST_ENTRIES:
        return ""
    open_ = weights > 0
    if bool(open_.all()):
        return ""
    for name, tensor in named.items():
        if tensor.layout is not torch.strided:
            continue
        for allowed in _allowed(name, tensor.to(weights.device), weights):
            closed = ~allowed
            if bool(allowed.any()) and bool(closed.any()) and bool((open_ == closed).all()):
                return name
    return ""


def _allowed(name: str, tensor: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """What may be read by the word of one tensor, in shapes that broadcast to the weights (…, queries, keys)."""
    last = name.rpartition(".")[2]
    nodes = weights.shape[-1]
    if last == "edge_index" and tensor.dim() == 2 and len(tensor) == 2 and weights.shape[-2] == nodes:
        if tensor.numel() and int(tensor.max()) < nodes:
            edges = torch.zeros(nodes, nodes, dtype=torch.bool, device=tensor.device)
            edges[tensor[1], tensor[0]] = True
            loops = torch.eye(nodes, dtype=torch.bool, device=tensor.device)
            yield from (edges, edges | loops, edges.T, edges.T | loops)
        return
    if not (says_closed(name) or says_open(name)) or tensor.dim() not in (2, 3, 4) or not is_binary(tensor):
        return
    allowed = tensor == 0 if says_closed(name) else tensor != 0
    if tensor.shape == weights.shape[-tensor.dim() :]:
        yield allowed
    sets, keys = tensor.shape[0], tensor.shape[-1]
    if tensor.dim() < 4 and keys == nodes and len(weights) % sets == 0 and weights.dim() > 2:
        queries = 1 if tensor.dim() == 2 else tensor.shape[1]
        if queries in (1, weights.shape[-2]):
            spread = allowed.repeat_interleave(len(weights) // sets, 0)
            yield spread.view(len(weights), *[1] * (weights.dim() - 3), queries, keys)
