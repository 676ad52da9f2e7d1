"""What an attention layer adds up: weights that a softmax has normalised give a mean, and what is added to each message beside them a sum that grows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch_geometric.nn.aggr import SumAggregation

from gnnstab.probe.statistics import growth_over_degree
from gnnstab.probe.statistics.numbers import rms
from gnnstab.records.vocabulary import PLACE_ATTENTION_SUM

if TYPE_CHECKING:
    from gnnstab.probe.places._calls import Call
    from gnnstab.probe.places.survey import ForwardView

_AGGREGATION = "aggr_module"
"""Under which a message-passing layer keeps what adds its messages up."""

_PYG = "torch_geometric."
"""Whose own layers are known for what they add up."""


def rows(seen: ForwardView) -> Iterator[tuple[str, str, float, dict[str, Any]]]:
    """RMS of each sum over edges, in a layer of the model's own code, that grows with the in-degree; the largest of each layer.

    What is no attention is listed, too: who reads it knows the layers.
    """
    largest: dict[str, tuple[float, dict[str, Any]]] = {}
    for call in seen.calls.all:
        owner, _, last = call.name.rpartition(".")
        if last != _AGGREGATION or not isinstance(call.module, SumAggregation):
            continue
        layer = seen.model.get_submodule(owner)
        found = None if type(layer).__module__.startswith(_PYG) else _grown(call)
        if found is not None:
            name = owner or type(layer).__name__
            largest[name] = max(largest.get(name, found), found, key=lambda one: one[0])
    for name, (size, detail) in largest.items():
        yield PLACE_ATTENTION_SUM, name, size, detail


def _grown(call: Call) -> tuple[float, dict[str, Any]] | None:
    """RMS of what was added up over the targets with an edge, with the power of the in-degree; None where it is not known to grow."""
    index = call.groups
    if index is None or not call.entering or len(call.leaving) != 1:
        return None
    messages, total = call.entering[0], call.leaving[0].detach()
    # Several states of the same nodes stand along another axis.
    if not 0 < len(index) == len(messages) or total.dim() < 2 or int(index.max()) >= len(total):
        return None
    degree = torch.bincount(index, minlength=len(total))
    exponent = float(growth_over_degree(total.flatten(1), degree))
    if not exponent > 0:
        return None
    return float(rms(total[degree > 0])), {"exponent": exponent, "degree": int(degree.max())}
