"""LayerNorm in place of norms over the nodes of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from gnnstab.errors import FixError
from gnnstab.fixes.base import Fix
from gnnstab.fixes.model_structure import edited_copy, exchange, like
from gnnstab.records import LayerFacts, Signals
from gnnstab.records.vocabulary import GRAPH_SMALLEST

if TYPE_CHECKING:
    from torch import nn


class LayerNormInstead(Fix):
    """Exchanges every GraphNorm and InstanceNorm for a LayerNorm over the channels of each node.

    A norm over the nodes of a graph leaves a constant of one node and a sign of two, and divides channels that do not vary
    by almost nothing. PyG's ``LayerNorm(width, mode="node")`` takes the same arguments as the norm that it replaces.
    """

    name: ClassVar[str] = "layer-norm"
    title: ClassVar[str] = "LayerNorm in place of GraphNorm"
    causes: ClassVar[tuple[str, ...]] = ("normalization-misuse",)
    signal: ClassVar[str] = GRAPH_SMALLEST
    keeps_function: ClassVar[bool] = False
    needs_fresh_weights: ClassVar[bool] = True
    cost: ClassVar[str] = "none; training starts anew"

    def change(self, layers: Sequence[LayerFacts], signals: Signals | None = None, **options: Any) -> str:
        """The constructor's lines."""
        attention = sum(layer.attention for layer in layers)
        return (
            "from torch_geometric.nn import LayerNorm\n"
            f'self.norms = nn.ModuleList([LayerNorm(width, mode="node") for _ in range({attention})])  # in __init__'
        )

    def apply(self, model: nn.Module, **options: Any) -> nn.Module:
        """Exchange the norms.

        Raises `FixError` when there is none.
        """
        from torch_geometric.nn import GraphNorm, InstanceNorm
        from torch_geometric.nn import LayerNorm as PerNode

        with edited_copy(model) as copy:
            found = [(n, m) for n, m in copy.named_modules() if n and isinstance(m, (GraphNorm, InstanceNorm))]
            if not found:
                raise FixError(f"{type(model).__name__} has no GraphNorm or InstanceNorm")
            for name, norm in found:
                exchange(copy, name, PerNode(norm.in_channels, mode="node").to(**like(copy)))
            return copy
