"""Dense scores as the edges between a row and the keys that it may attend to."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MASKED = -9e3
"""A score at or below it is a key that a mask has taken away: −∞, or a large negative number in its place or added to it (10⁴ is usual)."""

ROWS = 1 << 22
"""Entries of scores beyond which rows are left out, evenly spaced."""


class Rows(NamedTuple):
    """Scores and attention (E, H) of every row and key."""

    score: Tensor
    attention: Tensor
    target: Tensor
    """(E,) the row, counted through all graphs of the batch."""

    size: int
    """How many rows there are."""

    source: Tensor | None = None
    """(E,) the key, counted in the same way; None where it is not known."""


def as_edges(score: Tensor, attention: Tensor, axis: int, heads: int | None, limit: int | None = ROWS) -> Rows:
    """Score and attention (…) with the keys along ``axis``, masked keys left out.

    Heads are told apart where exactly one other axis before the last two, or the last one, is ``heads`` long and masks are
    the same for all of them; otherwise every row of every head counts as a row of one head. Beyond ``limit`` entries rows are
    left out, evenly spaced; None keeps them all.
    """
    score, attention = (one.detach().movedim(axis, -1) for one in (score, attention))
    place = _head_axis(score, heads)
    if place is None:
        score, attention = score.unsqueeze(0), attention.unsqueeze(0)
    else:
        score, attention = score.movedim(place, 0), attention.movedim(place, 0)
    length = score.shape[-2]
    score, attention = (one.reshape(one.shape[0], -1, one.shape[-1]) for one in (score, attention))
    step = 1 if limit is None else max(1, math.ceil(score.numel() / limit))
    score, attention = score[:, ::step], attention[:, ::step]
    kept = ~(score <= MASKED)
    if not bool((kept == kept[:1]).all()):
        score, attention, kept = (one.reshape(1, -1, one.shape[-1]) for one in (score, attention, kept))
    row, key = kept[0].nonzero(as_tuple=True)
    return Rows(
        score[:, row, key].T, attention[:, row, key].T, row, score.shape[1], row * step // length * kept.shape[-1] + key
    )


def _head_axis(score: Tensor, heads: int | None) -> int | None:
    """The axis of the heads among those of scores (…, keys)."""
    if score.dim() == 4 and heads is None:
        return 1
    places = [i for i in range(score.dim() - 1) if heads is not None and score.shape[i] == heads]
    if score.dim() == 4 and 1 in places:
        return 1
    return places[0] if len(places) == 1 and score.dim() > 2 else None


def product_scores(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """(…, N, M) scores of scaled dot products (…, N, C) and (…, M, C), the mask added."""
    query, key = query.detach(), key.detach()
    score = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        allowed = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
        score = score.masked_fill(~allowed, -math.inf)
    if mask is None:
        return score
    return score.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else score + mask.detach()


def fused_softmax(score: Tensor) -> Tensor:
    """Softmax (…, M) along the last axis as torch's fused attention takes it: a row in which every key is masked is 0, not NaN."""
    return torch.softmax(score, -1).masked_fill((score == -math.inf).all(-1, keepdim=True), 0.0)
