"""HANConv: GAT's scores within every meta-path, then a softmax over the meta-paths of a node type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gnnstab.layers.hetero import HeteroLayer
from gnnstab.layers.pyg_layer import Factor


class HANConvLayer(HeteroLayer):
    """`torch_geometric.nn.HANConv` and its subclasses; the softmax over meta-paths has one score per path and is not recorded."""

    kind: ClassVar[str] = "HANConv"
    attributes: ClassVar[tuple[str, ...]] = ("heads", "out_channels", "metadata", "message")
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"score": ("lin_src", "lin_dst"), "value": ("proj",)}
    vectors: ClassVar[tuple[str, ...]] = ("lin_src", "lin_dst")
    factors: ClassVar[tuple[Factor, ...]] = (Factor("lin_src", 1, each=True), Factor("lin_dst", 1, each=True))
    static: ClassVar[str] = "none: every meta-path has vectors of its own"
    defaults: ClassVar[Mapping[str, Any]] = {"heads": 1, "negative_slope": 0.2, "dropout": 0.0}
