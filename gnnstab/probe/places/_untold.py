"""Graphs of a batch that the forward was not told of: blocks of consecutive nodes that no edge leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gnnstab.probe.attaching.norms import arguments_of, batch_vectors

_BLOCKS = 4
"""Blocks with edges from which on nodes were lined up graph by graph; chance leaves hardly a gap amid the edges of one graph."""


def untold(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], named: Mapping[str, Tensor]
) -> Tensor | None:
    """(nodes,) block of every node; None where the forward was told the graphs, where nothing in it asks for them, or nodes are one block."""
    edges = [t for n, t in named.items() if n.rpartition(".")[2] == "edge_index" and t.dim() == 2 and len(t) == 2]
    if len(edges) != 1 or batch_vectors(model, args, kwargs):
        return None
    if not edges[0].numel() or not any("batch" in arguments_of(part) for part in model.modules()):
        return None
    (index,) = edges
    nodes = max(
        (len(t) for n, t in named.items() if n.rpartition(".")[2] == "x" and t.dim()), default=int(index.max()) + 1
    )
    low, high = index.min(0).values, index.max(0).values
    if int(high.max()) >= nodes:
        return None
    over = torch.zeros(nodes + 1, dtype=torch.long, device=index.device)
    one = torch.ones_like(low)
    # An edge from low to high closes every gap in front of low + 1, …, high.
    over.index_add_(0, low + 1, one).index_add_(0, high + 1, -one)
    block = (over.cumsum(0)[:nodes] == 0).long().cumsum(0) - 1
    inside = torch.bincount(block[low[low != high]], minlength=int(block.max()) + 1)
    return block if int((inside > 1).sum()) >= _BLOCKS else None
