"""HypergraphConv with attention: scores LeakyReLU(a·[W x, W h]) of a node and a hyperedge, softmax over either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import Factor, PygLayer

if TYPE_CHECKING:
    from torch import Tensor, nn


class HypergraphConvLayer(PygLayer):
    """`torch_geometric.nn.HypergraphConv(use_attention=True)` and its subclasses."""

    kind = "HypergraphConv"
    attributes = ("heads", "out_channels", "att")
    softmax_in = ("forward",)
    roles = {"score": ("att",), "value": ("lin",)}
    vectors = ("att",)
    factors = (Factor("att", 1),)
    given = ("x", "hyperedge_index")
    hint = "att"
    static = "none: hyperedges have features of their own"
    defaults = {
        "use_attention": False,
        "attention_mode": "node",
        "heads": 1,
        "concat": True,
        "negative_slope": 0.2,
        "dropout": 0,
        "bias": True,
    }

    def matches(self, module: nn.Module) -> bool:
        """Only where attention was asked for."""
        return super().matches(module) and bool(getattr(module, "use_attention", False))

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Node and hyperedge of every membership, the one that softmax groups by as the target."""
        members = self.argument("hyperedge_index", args, kwargs)
        by_edge = getattr(module, "attention_mode", "node") == "node"
        source, index = (members[0], members[1]) if by_edge else (members[1], members[0])
        return source, index if target is None else target, None
