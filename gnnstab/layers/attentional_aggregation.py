"""AttentionalAggregation: one score per node by a gate network, softmax over the nodes of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gnnstab.layers.aggregated import AggregatedLayer


class AttentionalAggregationLayer(AggregatedLayer):
    """`torch_geometric.nn.AttentionalAggregation` and its subclasses."""

    kind: ClassVar[str] = "AttentionalAggregation"
    rowwise: ClassVar[bool] = False
    attributes: ClassVar[tuple[str, ...]] = ("gate_nn", "reduce")
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"score": ("gate_nn", "gate_mlp"), "value": ("nn", "mlp")}
    prints: ClassVar[bool] = False
    static: ClassVar[str] = "none: the gate is a network of the user's own"
    defaults: ClassVar[Mapping[str, Any]] = {}
