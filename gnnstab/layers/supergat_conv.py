"""SuperGATConv: GAT's score times σ(x_i·x_j) (MX), or x_i·x_j/√C (SD), both behind a LeakyReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gnnstab.layers.pyg_layer import Factor, PygLayer


class SuperGATConvLayer(PygLayer):
    """`torch_geometric.nn.SuperGATConv` and its subclasses."""

    kind: ClassVar[str] = "SuperGATConv"
    attributes: ClassVar[tuple[str, ...]] = ("heads", "out_channels", "get_attention")
    softmax_in: ClassVar[tuple[str, ...]] = ("get_attention",)
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"score": ("att_l", "att_r"), "value": ("lin",)}
    vectors: ClassVar[tuple[str, ...]] = ("att_l", "att_r")
    factors: ClassVar[tuple[Factor, ...]] = (Factor("att_l", 1), Factor("att_r", 1))
    hint: ClassVar[str] = "att_l"
    static: ClassVar[str] = "none: σ(x_i·x_j) and x_i·x_j depend on the nodes' features"
    defaults: ClassVar[Mapping[str, Any]] = {
        "heads": 1,
        "concat": True,
        "negative_slope": 0.2,
        "dropout": 0.0,
        "add_self_loops": True,
        "bias": True,
        "attention_type": "MX",
    }
