"""SoftmaxAggregation: scores t·m of every channel of a message, as GENConv(aggr="softmax") has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gnnstab.layers.aggregated import AggregatedLayer


class SoftmaxAggregationLayer(AggregatedLayer):
    """`torch_geometric.nn.SoftmaxAggregation`: by itself, or as the aggregation of GENConv and every other layer."""

    kind: ClassVar[str] = "SoftmaxAggregation"
    rowwise: ClassVar[bool] = False
    attributes: ClassVar[tuple[str, ...]] = ("t", "learn", "reduce")
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"score": ("t",)}
    edits: ClassVar[frozenset[str]] = frozenset()
    static: ClassVar[str] = "none: |score| ≤ |t|·max|m|, and the messages m are the layer's in front"
    defaults: ClassVar[Mapping[str, Any]] = {"t": 1.0, "learn": False, "semi_grad": False, "channels": 1}
