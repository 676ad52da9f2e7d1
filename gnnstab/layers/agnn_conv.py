"""AGNNConv: scores β·cos(x_i, x_j), one head without a map."""

from __future__ import annotations

from gnnstab.layers.pyg_layer import Factor, PygLayer
from gnnstab.records import LayerFacts


class AGNNConvLayer(PygLayer):
    """`torch_geometric.nn.AGNNConv` and its subclasses."""

    kind = "AGNNConv"
    attributes = ("beta", "add_self_loops", "message")
    roles = {"score": ("beta",)}
    factors = (Factor("beta", 0),)
    edits = frozenset()
    static = "|score| ≤ |β|: a cosine is at most 1"
    defaults = {"requires_grad": True, "add_self_loops": True}

    def positional(self, facts: LayerFacts) -> list[str]:
        """None: the width is that of the input."""
        return []
