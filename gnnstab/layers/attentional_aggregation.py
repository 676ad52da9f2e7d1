"""AttentionalAggregation: one score per node by a gate network, softmax over the nodes of a graph."""

from __future__ import annotations

from gnnstab.layers.aggregated import AggregatedLayer


class AttentionalAggregationLayer(AggregatedLayer):
    """`torch_geometric.nn.AttentionalAggregation` and its subclasses."""

    kind = "AttentionalAggregation"
    rowwise = False
    attributes = ("gate_nn", "reduce")
    roles = {"score": ("gate_nn", "gate_mlp"), "value": ("nn", "mlp")}
    prints = False
    static = "none: the gate is a network of the user's own"
    defaults = {}
