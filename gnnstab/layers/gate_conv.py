"""GATEConv of AttentiveFP: scores LeakyReLU(a_l·LeakyReLU(W [x_j, e]) + a_r·x_i), one head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import Factor, PygLayer
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn


class GATEConvLayer(PygLayer):
    """`torch_geometric.nn.models.attentive_fp.GATEConv` and its subclasses; it keeps no widths, its weights show them."""

    kind = "GATEConv"
    module = "torch_geometric.nn.models.attentive_fp"
    attributes = ("att_l", "att_r", "lin1", "edge_update")
    softmax_in = ("edge_update",)
    roles = {"score": ("att_l", "att_r", "lin1"), "value": ("lin2",)}
    vectors = ("att_l", "att_r")
    factors = (Factor("att_l", 0), Factor("att_r", 0))
    given = ("x", "edge_index", "edge_attr")
    static = "none: edge features are mapped together with the nodes'"
    defaults = {"dropout": 0.0}

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """With the widths that the weights show."""
        conv: Any = module
        width, out = int(conv.att_r.shape[1]), int(conv.att_l.shape[1])
        edge_dim = int(conv.lin1.weight.shape[1]) - width
        known = super().facts(name, module, position)
        return replace(known, in_channels=(width, width), out_channels=out, edge_dim=edge_dim)

    def positional(self, facts: LayerFacts) -> list[str]:
        """Widths of nodes, output and edges."""
        return [*super().positional(facts), str(facts.edge_dim or "...")]
