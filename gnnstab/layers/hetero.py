"""What HGTConv and HANConv share: dictionaries of node types, one score per head and edge of every relation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gnnstab.layers.edges import edge_ends
from gnnstab.layers.pyg_layer import PygLayer
from gnnstab.records import LayerFacts

if TYPE_CHECKING:
    from torch import Tensor, nn


class HeteroLayer(PygLayer):
    """A kind that is given ``x_dict`` and ``edge_index_dict``; the heads share ``out_channels`` among them."""

    rowwise = False
    given = ("x_dict", "edge_index_dict")

    def facts(self, name: str, module: nn.Module, position: int) -> LayerFacts:
        """The configuration as the attributes show it; heads are always joined."""
        return replace(super().facts(name, module, position), concat=True)

    def positional(self, facts: LayerFacts) -> list[str]:
        """Width of the input, of the output with all heads, and the graph's node and edge types."""
        width = "..." if facts.in_channels is None else str(facts.in_channels[0])
        if facts.out_channels is None or facts.heads is None:
            return [width, "...", "metadata"]
        return [width, str(facts.out_channels * facts.heads), "metadata"]

    def head_channels(self, conv: Any) -> int | None:
        """``out_channels`` over the heads."""
        return int(conv.out_channels) // int(conv.heads)

    def in_channels(self, conv: Any) -> tuple[int, int] | None:
        """The common width of all node types; None where they differ."""
        widths = set(conv.in_channels.values())
        (width,) = widths if len(widths) == 1 else (None,)
        return (width, width) if isinstance(width, int) and width >= 0 else None

    def nodes(self, inputs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """All node types one after the other."""
        import torch

        rows = sum(len(x) for x in inputs)
        same = len({x.shape[-1] for x in inputs}) == 1
        joined = torch.cat(list(inputs)) if same else inputs[0].new_zeros(rows, 0)
        return joined, joined

    def edges(
        self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], target: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The edges of all relations, in the order in which they were given, with the nodes' own numbers within their type."""
        import torch

        found = self.argument("edge_index_dict", args, kwargs).values()
        ends = [edge_ends(edge_index)[:2] for edge_index in found]
        source = torch.cat([one for one, _ in ends])
        return source, torch.cat([one for _, one in ends]) if target is None else target, None
