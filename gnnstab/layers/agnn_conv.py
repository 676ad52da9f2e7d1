"""AGNNConv: scores β·cos(x_i, x_j), one head without a map."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from gnnstab.layers.pyg_layer import Factor, PygLayer
from gnnstab.records import LayerFacts


class AGNNConvLayer(PygLayer):
    """`torch_geometric.nn.AGNNConv` and its subclasses."""

    kind: ClassVar[str] = "AGNNConv"
    attributes: ClassVar[tuple[str, ...]] = ("beta", "add_self_loops", "message")
    roles: ClassVar[Mapping[str, tuple[str, ...]]] = {"score": ("beta",)}
    factors: ClassVar[tuple[Factor, ...]] = (Factor("beta", 0),)
    edits: ClassVar[frozenset[str]] = frozenset()
    static: ClassVar[str] = "|score| ≤ |β|: a cosine is at most 1"
    defaults: ClassVar[Mapping[str, Any]] = {"requires_grad": True, "add_self_loops": True}

    def positional(self, facts: LayerFacts) -> list[str]:
        """None: the width is that of the input."""
        return []
