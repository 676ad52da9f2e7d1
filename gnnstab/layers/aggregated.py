"""What the aggregations with a softmax of their own share: rows instead of edges, groups instead of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnnstab.layers.pyg_layer import PygLayer
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


class AggregatedLayer(PygLayer):
    """A kind whose ``forward`` weights the rows that it sums up, nodes of a graph or messages to a node."""

    softmax_in = ("forward",)
    given = ("x", "index", "ptr", "dim_size", "dim")

    def heads(self, conv: Any) -> int | None:
        """Not known before a call: one, or one per channel."""
        return None

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Every row, and the group that it is summed into."""
        import torch

        x = self.argument("x", args, kwargs)
        index = self.argument("index", args, kwargs) if target is None else target
        return torch.arange(x.shape[-2], device=x.device), index, None

    def positional(self, facts: LayerFacts) -> list[str]:
        """None: widths are those of the input."""
        return []
