"""Torch's attention layer: it runs fused, so that its scores are computed once more from what it was given."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnnstab.layers import Layer
from gnnstab.probe.attaching.stand_in import StandIn
from gnnstab.probe.layers._edge_softmax import SoftmaxRecorder
from gnnstab.probe.layers.layer_recorder import Plan
from gnnstab.probe.state import State
from gnnstab.probe.statistics.dense import Rows, as_edges, fused_softmax, product_scores


class MultiheadRecorder(SoftmaxRecorder):
    """Records one such layer; scores and attention in steps of the full tier."""

    compiled_sites = ("output", "input")

    def __init__(self, state: State, name: str, module: nn.Module, kind: Layer) -> None:
        super().__init__(state, name, module, "")
        self.kind = kind

    def attach(self) -> None:
        """Begin to record; a hook would send the layer, and an encoder around it, another way."""
        hook = self.hook("the forward", self._after, self._compiled_after)
        self._placed.append(StandIn(self.module, after=hook).put())

    def record(self, grad: bool, plan: Plan, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> None:
        """Put the call's tensors into the buffer."""
        if not self.due(plan):
            self.put(plan, inputs, output, [])
            return
        seen = self._seen()
        if seen is None:
            self.put(plan, inputs, output, [])
            return
        score, attention = seen
        self.put(plan, inputs, output, [(score, attention)])
        self.measure(plan, inputs, output, as_edges(score, attention, 3, score.shape[1]))

    def shown(self, inputs: Sequence[Any], args: Any, kwargs: Any, output: Tensor) -> Iterator[Rows]:
        """Computed once more from what the layer was given."""
        seen = self._seen()
        if seen is not None:
            yield as_edges(*seen, 3, seen[0].shape[1], None)

    def _seen(self) -> tuple[Tensor, Tensor] | None:
        args, kwargs = self.given
        return multihead_attention(self.module, *args, **kwargs)


def multihead_attention(module: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """(B, H, N, M) scores and attention of one call; fused attention runs where the caller asked for no weights."""
    score = multihead_scores(module, *args, **kwargs)
    if score is None:
        return None
    weights = args[4] if len(args) > 4 else kwargs.get("need_weights", True)
    return score, torch.softmax(score, -1) if weights else fused_softmax(score)


def multihead_scores(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Tensor | None:
    """(B, H, N, M) scores as they go into the softmax, masks added.

    None for nested tensors, and where keys are added to those that were given (``bias_k``, ``add_zero_attn``).
    """
    if query.is_nested or module.bias_k is not None or module.add_zero_attn:
        return None
    if query.dim() == 2:
        query, key = query.unsqueeze(0), key.unsqueeze(0)
        key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
    elif not module.batch_first:
        query, key = query.transpose(0, 1), key.transpose(0, 1)
    heads, (w_q, w_k), (b_q, b_k) = module.num_heads, *_parameters(module)
    query, key = (
        F.linear(x.detach(), w.detach(), None if b is None else b.detach())
        .view(*x.shape[:2], heads, -1)
        .transpose(1, 2)
        for x, w, b in ((query, w_q, b_q), (key, w_k, b_k))
    )
    score = product_scores(query, key, None, False, None)
    if attn_mask is not None:
        mask = attn_mask if attn_mask.dim() == 2 else attn_mask.view(-1, heads, *attn_mask.shape[-2:])
        score = _masked(score, mask)
    return score if key_padding_mask is None else _masked(score, key_padding_mask[:, None, None, :])


def _masked(score: Tensor, mask: Tensor) -> Tensor:
    """Torch's convention here: True takes a key away, numbers are added."""
    return score.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else score + mask.detach()


def _parameters(module: Any) -> tuple[tuple[Tensor, Tensor], tuple[Tensor | None, Tensor | None]]:
    """Weights and biases of query and key, packed or apart."""
    bias = module.in_proj_bias
    biases = (None, None) if bias is None else tuple(bias.chunk(3)[:2])
    if module.in_proj_weight is None:
        return (module.q_proj_weight, module.k_proj_weight), biases
    query, key, _ = module.in_proj_weight.chunk(3)
    return (query, key), biases
