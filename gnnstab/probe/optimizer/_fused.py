"""What `nn.MultiheadAttention` hands to the function that holds its scores: these scores, and queries that make them larger or smaller."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _projections(given: Mapping[str, Any]) -> list[tuple[Tensor, Tensor | None]]:
    """Weight (E, in) and bias (E,) of queries and of keys."""
    bias = given.get("in_proj_bias")
    biases = (None, None) if bias is None else bias.chunk(3)[:2]
    if given.get("use_separate_proj_weight"):
        return list(zip((given["q_proj_weight"], given["k_proj_weight"]), biases, strict=True))
    return list(zip(given["in_proj_weight"].chunk(3)[:2], biases, strict=True))


def fused_scores(given: Mapping[str, Any]) -> Tensor:
    """Scores (N·heads, L, S) of queries (L, N, E) and keys (S, N, E), or without N; −∞ where masked."""
    heads = given["num_heads"]
    sides = zip((given["query"], given["key"]), _projections(given), strict=True)
    query, key = (
        made.reshape(len(made), -1, made.shape[-1] // heads).transpose(0, 1)
        for made in (F.linear(tokens.detach(), weight, bias).detach() for tokens, (weight, bias) in sides)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    padding = given.get("key_padding_mask")
    if padding is not None:
        padding = padding.reshape(-1, 1, 1, key.shape[1]).expand(-1, heads, -1, -1).flatten(0, 1)
    for mask in (padding, given.get("attn_mask")):
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype is torch.bool else scores + mask
    return scores


def with_queries(given: Mapping[str, Any], factor: float | Tensor) -> dict[str, Tensor]:
    """The arguments that make the queries, and with them the scores, ``factor`` times as large; one for all or one per row (E,)."""
    ((weight, bias), _), changed = _projections(given), dict[str, Tensor]()
    rows = torch.as_tensor(factor).to(weight).reshape(-1)
    if given.get("use_separate_proj_weight"):
        changed["q_proj_weight"] = weight * rows[:, None]
    else:
        changed["in_proj_weight"] = torch.cat([weight * rows[:, None], given["in_proj_weight"][len(weight) :]])
    if bias is not None:
        changed["in_proj_bias"] = torch.cat([bias * rows, given["in_proj_bias"][len(bias) :]])
    return changed
