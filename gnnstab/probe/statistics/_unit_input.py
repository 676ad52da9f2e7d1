"""Attention as it would be if the layer's input had RMS 1: tells sharp weights from a large input."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnnstab.layers import Call, Layer
from gnnstab.probe.statistics._groups import group_sum
from gnnstab.probe.statistics.numbers import rms, wide

_SAME = 1e-4
"""Share of the scores' squares up to which they count as a multiple of the recomputed ones."""


def score_scale(call: Call, kind: Layer, module: nn.Module) -> Tensor | None:
    """What a copy of a class multiplies the scores of the original with, NaN where they are something else; None for its own code."""
    if kind.own_code(module):
        return None
    try:
        known = kind.scores(module, call, wide(call.x_source), wide(call.x_target))
    except (
        AttributeError,
        KeyError,
        TypeError,
        RuntimeError,
    ):  # A copy may lack parts, or have others under these names.
        return None
    if known is None or known.shape != call.score.shape:
        return None
    own, known = wide(call.score), wide(known)
    factor = (own * known).sum() / known.square().sum()
    same = (own - factor * known).square().sum() <= _SAME * own.square().sum()
    return torch.where(same & (factor > 0), factor, math.nan)


def unit_input_attention(call: Call, kind: Layer, module: nn.Module, scale: Tensor | None = None) -> Tensor | None:
    """(E, H) attention recomputed on x / RMS(x), edge features unchanged; None where the weights do not give the scores.

    ``scale``: of the scores of a copy, as `score_scale` gives it.
    """
    if scale is None and not kind.own_code(module):
        return None
    score = kind.scores(module, call, _unit(call.x_source), _unit(call.x_target))
    if score is None:
        return None
    return _softmax(score if scale is None else scale * score, call.index_target, call.x_target.shape[0])


def _unit(x: Tensor) -> Tensor:
    x = wide(x)
    return x / rms(x).to(x.dtype)


def _softmax(score: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the edges of each target."""
    spread = index.unsqueeze(1).expand_as(score)
    peak = score.new_full((size, score.shape[1]), -math.inf).scatter_reduce_(0, spread, score, "amax")
    weight = (score - peak.index_select(0, index)).exp()
    return weight / group_sum(weight, index, size).index_select(0, index)
