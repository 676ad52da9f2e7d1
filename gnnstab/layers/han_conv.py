"""HANConv: GAT's scores within every meta-path, then a softmax over the meta-paths of a node type."""

from __future__ import annotations

from gnnstab.layers.hetero import HeteroLayer
from gnnstab.layers.pyg_layer import Factor


class HANConvLayer(HeteroLayer):
    """`torch_geometric.nn.HANConv` and its subclasses; the softmax over meta-paths has one score per path and is not recorded."""

    kind = "HANConv"
    attributes = ("heads", "out_channels", "metadata", "message")
    roles = {"score": ("lin_src", "lin_dst"), "value": ("proj",)}
    vectors = ("lin_src", "lin_dst")
    factors = (Factor("lin_src", 1, each=True), Factor("lin_dst", 1, each=True))
    static = "none: every meta-path has vectors of its own"
    defaults = {"heads": 1, "negative_slope": 0.2, "dropout": 0.0}
