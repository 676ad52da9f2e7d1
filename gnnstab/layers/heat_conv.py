"""HEATConv: scores LeakyReLU(a·[W x_i, W x_j, type of the edge, features of the edge]), a map per node type."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import GAT_DEFAULTS, Factor, PygLayer
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import nn

_NEEDED = ("num_node_types", "num_edge_types", "edge_type_emb_dim", "edge_dim", "edge_attr_emb_dim")


class HEATConvLayer(PygLayer):
    """`torch_geometric.nn.HEATConv` and its subclasses."""

    kind = "HEATConv"
    attributes = ("heads", "out_channels", "hetero_lin", "message")
    roles = {
        "score": ("att",),
        "value": ("lin", "hetero_lin"),
        "edge": ("edge_type_emb", "edge_attr_emb"),
    }
    factors = (Factor("att.weight", 0),)
    given = ("x", "edge_index", "node_type", "edge_type", "edge_attr")
    hint = "hetero_lin.weight"
    static = "none: node types, edge types and edge features have maps of their own"
    defaults = {**GAT_DEFAULTS, "root_weight": True, "bias": True}

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes and the layer's parts show it."""
        conv: Any = module
        known = super().facts(name, module, position)
        return replace(known, edge_dim=conv.edge_attr_emb.in_channels, bias=conv.lin.bias is not None)

    def more(self, conv: Any) -> dict[str, Any]:
        """The sizes that the constructor needs."""
        return {
            "num_node_types": conv.hetero_lin.num_types,
            "num_edge_types": conv.edge_type_emb.num_embeddings,
            "edge_type_emb_dim": conv.edge_type_emb.embedding_dim,
            "edge_attr_emb_dim": conv.edge_attr_emb.out_channels,
        }

    def positional(self, facts: LayerFacts) -> list[str]:
        """Widths and sizes."""
        return [*super().positional(facts), *(str(facts.get(name) or "...") for name in _NEEDED)]
