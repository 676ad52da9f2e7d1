"""Attention as it would be if the layer's input had RMS 1: tells sharp weights from a large input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch_geometric.nn import TransformerConv

from gnnstab.probe.statistics.groups import group_sum
from gnnstab.probe.statistics.numbers import rms, wide

# The adapters import this package in turn.
if TYPE_CHECKING:
    from gnnstab.probe.layers.base import Call

BLOCK = 2**20
"""Entries of the largest temporary of the recomputed scores."""


def is_plain(conv: nn.Module) -> TypeGuard[TransformerConv]:
    """True when the scores are q·(k + e)/√C by `TransformerConv`'s own code, so that the weights give them."""
    kind: Any = type(conv)
    return (
        isinstance(conv, TransformerConv)
        and kind.forward is TransformerConv.forward
        and kind.message is TransformerConv.message
    )


def project(linear: nn.Module | None, x: Tensor) -> Tensor | None:
    """``linear`` applied to ``x`` through its weight alone: no module call, so no hook fires.

    None where this cannot be done without side effects or guessing: a parametrised weight (reading one may advance a
    power iteration), a replaced module, a weight of another width.
    """
    weight = None if linear is None or parametrize.is_parametrized(linear) else getattr(linear, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        return None
    x = wide(x)
    bias = getattr(linear, "bias", None)
    return F.linear(x, weight.detach().to(x.dtype), None if bias is None else bias.detach().to(x.dtype))


def unit_input_attention(call: Call, conv: nn.Module) -> Tensor | None:
    """(E, H) attention recomputed on x / RMS(x), edge features unchanged; None when `is_plain` does not hold."""
    if not is_plain(conv):
        return None
    query = project(conv.lin_query, _unit(call.x_target))
    key = project(conv.lin_key, _unit(call.x_source))
    if query is None or key is None:
        return None
    score = _scores(query, key, call, conv)
    return None if score is None else _softmax(score, call.index_target, call.x_target.shape[0])


def _unit(x: Tensor) -> Tensor:
    x = wide(x)
    return x / rms(x).to(x.dtype)


def _scores(query: Tensor, key: Tensor, call: Call, conv: TransformerConv) -> Tensor | None:
    """(E, H) scores from (N, H·C) queries and keys, in blocks of edges: the (E, H·C) product is never held whole."""
    heads, width = int(conv.heads), query.shape[1]
    parts = [query.new_empty(0, heads)]
    block = max(1, BLOCK // width)
    for start in range(0, call.index_target.numel(), block):
        edges = slice(start, start + block)
        product = key.index_select(0, call.index_source[edges])
        if conv.lin_edge is not None:
            edge = None if call.edge_attr is None else project(conv.lin_edge, call.edge_attr[edges])
            if edge is None:
                return None
            product.add_(edge)
        product.mul_(query.index_select(0, call.index_target[edges]))
        parts.append(product.view(-1, heads, width // heads).sum(2))
    return torch.cat(parts) / math.sqrt(width // heads)


def _softmax(score: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the edges of each target."""
    spread = index.unsqueeze(1).expand_as(score)
    peak = score.new_full((size, score.shape[1]), -math.inf).scatter_reduce_(0, spread, score, "amax")
    weight = (score - peak.index_select(0, index)).exp()
    return weight / group_sum(weight, index, size).index_select(0, index)
