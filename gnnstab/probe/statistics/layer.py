"""All numbers of one layer call."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnnstab.layers import Call, Layer
from gnnstab.probe.statistics._features import constant_share
from gnnstab.probe.statistics._graph import from_degrees
from gnnstab.probe.statistics._groups import group_sizes
from gnnstab.probe.statistics._unit_input import score_scale, unit_input_attention
from gnnstab.probe.statistics.activations import (
    clip_share,
    dead_share,
    gate_measures,
    message_measures,
    peak,
    tanh_saturated_share,
    underflow_share,
)
from gnnstab.probe.statistics.attention import entropy_measures, precision_measures, score_measures
from gnnstab.probe.statistics.numbers import Measured, as_rows, quiet, rms
from gnnstab.probe.statistics.smoothness import relative_difference
from gnnstab.records.vocabulary import SCORE_PRODUCT_SCALE, SMOOTHNESS_RELATIVE_INPUT
from gnnstab.sharding import sharded


def attention_measures(call: Call, kind: Layer, module: nn.Module, batch: Tensor | None = None) -> dict[str, Measured]:
    """Every full-tier number of one call of an attention layer, by name in `gnnstab.records.SIGNALS`.

    ``batch`` (N_t,) is the graph of every target node, where known. What the layer does not allow to be measured
    (a gate that is off, scores that its weights do not give, weights in other processes) is absent. Nothing is synchronised with the host.
    """
    with torch.no_grad(), torch.autocast(call.output.device.type, enabled=False):
        whole = not sharded(module)
        index, degree = call.index_target, group_sizes(call.index_target, _groups(call))
        numbers = {
            **from_degrees(degree),
            **score_measures(call.score, index, degree),
            **precision_measures(call.score, kind.product(module)),
            **entropy_measures(call.attention, index, degree),
            **gate_measures(call.gate),
            **(message_measures(call, kind, module, degree) if whole else {}),
            **activation_measures(
                call.x_target, call.output, batch, x_source=None if call.x_source is call.x_target else call.x_source
            ),
        }
        if call.x_target.shape[-1] == 0:
            numbers = {name: value for name, value in numbers.items() if name not in _OF_INPUT}
        scale = score_scale(call, kind, module) if whole else None
        if scale is not None and kind.multiplies:
            numbers[SCORE_PRODUCT_SCALE] = Measured(scale)
        unit = unit_input_attention(call, kind, module, scale) if whole else None
        if unit is not None:
            numbers.update(entropy_measures(unit, index, degree, "_unit_input"))
        return numbers


_OF_INPUT = (
    "input.rms",
    "input.max_abs",
    "channels.constant_share",
    "tanh.saturated_share",
    "clip.share",
    SMOOTHNESS_RELATIVE_INPUT,
)
"""What is left out where the node types have no common width."""


def _groups(call: Call) -> int:
    return len(call.x_target) if call.groups is None else call.groups


def softmax_measures(score: Tensor, attention: Tensor, index: Tensor, size: int) -> dict[str, Measured]:
    """What every attention has: scores and attention (E, H) over targets ``index`` (E,), of which there are ``size``."""
    with torch.no_grad(), torch.autocast(score.device.type, enabled=False):
        degree = group_sizes(index, size)
        return {
            **from_degrees(degree),
            **score_measures(score, index, degree),
            **precision_measures(score, None),
            **entropy_measures(attention, index, degree),
        }


@quiet
def activation_measures(
    x: Tensor, output: Tensor, batch: Tensor | None = None, *, x_source: Tensor | None = None
) -> dict[str, Measured]:
    """Numbers of any layer that maps node states ``x`` (N, D) to ``output`` (N, D'), both floating point.

    Tensors of one or of more than two axes are read as by `node_measures`.
    ``x_source`` (N_s, D_s) is a second input of a bipartite layer; scale and constant channels then cover both.
    """
    x, output = as_rows(x), as_rows(output)
    inputs = (x,) if x_source is None else (x, as_rows(x_source))
    numbers = {
        "input.rms": rms(*inputs),
        "input.max_abs": peak(*inputs),
        "output.rms": rms(output),
        "output.max_abs": peak(output),
        "channels.dead_share": dead_share(output),
        "channels.constant_share": constant_share(*inputs),
        "tanh.saturated_share": tanh_saturated_share(x),
        "clip.share": clip_share(x),
        "smoothness.relative": relative_difference(output, batch),
        SMOOTHNESS_RELATIVE_INPUT: relative_difference(x, batch),
        "precision.underflow_share": underflow_share(output),
    }
    return {name: Measured(value) for name, value in numbers.items()}
