"""SuperGATConv: GAT's score times σ(x_i·x_j) (MX), or x_i·x_j/√C (SD), both behind a LeakyReLU."""

from __future__ import annotations

from gnnstab.layers.pyg_layer import GAT_DEFAULTS, Factor, PygLayer


class SuperGATConvLayer(PygLayer):
    """`torch_geometric.nn.SuperGATConv` and its subclasses."""

    kind = "SuperGATConv"
    attributes = ("heads", "out_channels", "get_attention")
    softmax_in = ("get_attention",)
    roles = {"score": ("att_l", "att_r"), "value": ("lin",)}
    vectors = ("att_l", "att_r")
    factors = (Factor("att_l", 1), Factor("att_r", 1))
    hint = "att_l"
    static = "none: σ(x_i·x_j) and x_i·x_j depend on the nodes' features"
    defaults = {**GAT_DEFAULTS, "add_self_loops": True, "bias": True, "attention_type": "MX"}
