"""GeneralConv with attention: scores LeakyReLU(a·m) of the message m, or of a product of two messages over √C."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import Factor, PygLayer

if TYPE_CHECKING:
    from torch import nn


class GeneralConvLayer(PygLayer):
    """`torch_geometric.nn.GeneralConv(attention=True)` and its subclasses."""

    kind = "GeneralConv"
    attributes = ("heads", "out_channels", "message_basic")
    roles = {
        "score": ("att_msg",),
        "value": ("lin_msg", "lin_msg_i"),
        "edge": ("lin_edge",),
        "skip": ("lin_self",),
    }
    vectors = ("att_msg",)
    factors = (Factor("att_msg", 1),)
    given = ("x", "edge_index", "edge_attr")
    hint = "att_msg"
    static = "none: the score is that of the message, edge features included"
    defaults = {
        "in_edge_channels": None,
        "aggr": "add",
        "skip_linear": False,
        "directed_msg": True,
        "heads": 1,
        "attention": False,
        "attention_type": "additive",
        "l2_normalize": False,
    }

    def matches(self, module: nn.Module) -> bool:
        """Only where attention was asked for."""
        return super().matches(module) and bool(getattr(module, "attention", False))

    def more(self, conv: Any) -> dict[str, Any]:
        """An argument that the layer keeps under another name."""
        return {"l2_normalize": getattr(conv, "normalize_l2", None)}
