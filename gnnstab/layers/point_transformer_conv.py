"""PointTransformerConv: a score per channel, γ(W_t x_i − W_s x_j + δ) with δ of the difference of the positions."""

from __future__ import annotations

from typing import Any

from gnnstab.layers.pyg_layer import PygLayer


class PointTransformerConvLayer(PygLayer):
    """`torch_geometric.nn.PointTransformerConv` and its subclasses."""

    kind = "PointTransformerConv"
    attributes = ("pos_nn", "out_channels", "message")
    roles = {
        "score": ("lin_src", "lin_dst", "attn_nn"),
        "value": ("lin",),
        "edge": ("pos_nn",),
    }
    given = ("x", "pos", "edge_index")
    prints = False
    static = "none: γ and δ are networks of the user's own"
    defaults = {"add_self_loops": True}

    def heads(self, conv: Any) -> int | None:
        """One score per channel."""
        return int(conv.out_channels)

    def head_channels(self, conv: Any) -> int | None:
        """The width, which the constructor is given: every channel has a score of its own."""
        return int(conv.out_channels)
