"""Attention as it would be if the layer's input had RMS 1: tells sharp weights from a large input."""

from __future__ import annotations

import math

from torch import Tensor, nn

from gnnstab.layers import Call, Layer
from gnnstab.probe.statistics._groups import group_sum
from gnnstab.probe.statistics.numbers import rms, wide


def unit_input_attention(call: Call, kind: Layer, module: nn.Module) -> Tensor | None:
    """(E, H) attention recomputed on x / RMS(x), edge features unchanged; None where the weights do not give the scores."""
    if not kind.own_code(module):
        return None
    score = kind.scores(module, call, _unit(call.x_source), _unit(call.x_target))
    return None if score is None else _softmax(score, call.index_target, call.x_target.shape[0])


def _unit(x: Tensor) -> Tensor:
    x = wide(x)
    return x / rms(x).to(x.dtype)


def _softmax(score: Tensor, index: Tensor, size: int) -> Tensor:
    """Softmax over the edges of each target."""
    spread = index.unsqueeze(1).expand_as(score)
    peak = score.new_full((size, score.shape[1]), -math.inf).scatter_reduce_(0, spread, score, "amax")
    weight = (score - peak.index_select(0, index)).exp()
    return weight / group_sum(weight, index, size).index_select(0, index)
