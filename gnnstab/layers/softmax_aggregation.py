"""SoftmaxAggregation: scores t·m of every channel of a message, as GENConv(aggr="softmax") has them."""

from __future__ import annotations

from gnnstab.layers.aggregated import AggregatedLayer


class SoftmaxAggregationLayer(AggregatedLayer):
    """`torch_geometric.nn.SoftmaxAggregation`: by itself, or as the aggregation of GENConv and every other layer."""

    kind = "SoftmaxAggregation"
    rowwise = False
    attributes = ("t", "learn", "reduce")
    roles = {"score": ("t",)}
    edits = frozenset()
    static = "none: |score| ≤ |t|·max|m|, and the messages m are the layer's in front"
    defaults = {"t": 1.0, "learn": False, "semi_grad": False, "channels": 1}
