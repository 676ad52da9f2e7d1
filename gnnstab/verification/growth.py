"""Graphs of the user's kind with more or fewer neighbours per node."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnstab.errors import UsageError
from gnnstab.probe.batches import Arguments
from gnnstab.verification.objective import is_edges

WINDOW = 0.05
"""A node takes over neighbourhoods of nodes whose rank by in-degree differs by at most this share of all nodes."""


@dataclass(frozen=True)
class GraphCall:
    """The outermost module that is called with node features and edges, and what it was called with."""

    name: str
    """Its module path; ``""`` for the model itself."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def graph(self) -> tuple[Tensor, Tensor]:
        """(N, D) node features and (2, E) edges."""
        data = next((v for v in (*self.args, *self.kwargs.values()) if isinstance(v, Data)), None)
        if data is not None:
            return data.x, data.edge_index
        values = [*self.args, *self.kwargs.values()]
        edges = next(v for v in values if is_edges(v))
        x = self.kwargs.get("x")
        return (x if x is not None else next(v for v in values if _is_features(v))), edges

    def with_edges(self, keep: Tensor, target: Tensor) -> Arguments:
        """The call with other edges: ``keep`` (E',) old positions, ``target`` (E',) new targets; edge data follow."""
        _, edges = self.graph
        new = torch.stack([edges[0, keep], target])

        def changed(value: Any) -> Any:
            if isinstance(value, Data):
                data = copy.copy(value)
                data.edge_index = new
                for key, item in value.items():
                    if key != "edge_index" and value.is_edge_attr(key):
                        data[key] = item[keep]
                return data
            if value is edges:
                return new
            # Edge attributes have one row per edge; node features have one per node, which decides when both agree.
            per_edge = isinstance(value, Tensor) and value.dim() >= 1 and value.size(0) == edges.size(1)
            return value[keep] if per_edge and value is not self.graph[0] else value

        return tuple(changed(v) for v in self.args), {k: changed(v) for k, v in self.kwargs.items()}


def find_graph_call(model: nn.Module, call: Arguments) -> GraphCall:
    """Run one forward and catch the first module that gets node features and edges.

    Raises `UsageError` when none does (heterogeneous models hand over dictionaries).
    """
    found: list[GraphCall] = []

    def look(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [*args, *kwargs.values()]
            whole = any(isinstance(v, Data) and v.edge_index is not None and v.x is not None for v in values)
            if not found and (whole or (any(map(is_edges, values)) and any(map(_is_features, values)))):
                found.append(GraphCall(name, args, dict(kwargs)))

        return hook

    handles = [m.register_forward_pre_hook(look(n), with_kwargs=True) for n, m in model.named_modules()]
    try:
        with torch.no_grad():
            model(*call[0], **call[1])
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UsageError(
            "no module is called with node features (N, D) and edge_index (2, E); scale needs a homogeneous graph"
        )
    return found[0]


def _is_features(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point()


def grown(call: GraphCall, factor: float, generator: torch.Generator) -> Arguments:
    """The call on a graph whose in-degrees are about ``factor`` times as large, nodes and their features unchanged.

    Below 1 every edge is kept with that probability. Above 1 every node also takes over the incoming edges of other
    nodes of about its own in-degree, from anywhere in the batch, with their edge data: the union of neighbourhoods that
    occur, which keeps what messages look like and changes only how many there are.
    """
    x, edges = call.graph
    count = edges.size(1)
    if factor <= 1:
        keep = (torch.rand(count, generator=generator) < factor).nonzero().flatten().to(edges.device)
        return call.with_edges(keep, edges[1, keep])
    nodes = x.size(0)
    degree = torch.bincount(edges[1], minlength=nodes)
    kept, targets = [torch.arange(count, device=edges.device)], [edges[1]]
    rest = factor - 1
    while rest > 1e-9:
        receiver = _receivers(degree, generator)
        share = min(rest, 1.0)
        chosen = (torch.rand(count, generator=generator) < share).nonzero().flatten().to(edges.device)
        kept.append(chosen)
        targets.append(receiver[edges[1, chosen]])
        rest -= share
    return call.with_edges(torch.cat(kept), torch.cat(targets))


def _receivers(degree: Tensor, generator: torch.Generator) -> Tensor:
    """For every node the node that takes over its neighbourhood: a permutation within a window of in-degree ranks."""
    nodes = degree.numel()
    noise = torch.rand(nodes, generator=generator).to(degree.device)
    ranked = torch.argsort(degree + 0.5 * noise)
    shifted = torch.argsort(
        torch.arange(nodes, device=degree.device)
        + max(1.0, WINDOW * nodes) * noise[torch.randperm(nodes, generator=generator)]
    )
    receiver = torch.empty_like(ranked)
    receiver[ranked] = ranked[shifted]
    return receiver


def in_degrees(call: Arguments) -> tuple[float, float, int]:
    """Mean and median in-degree (of nodes with an edge) and the number of nodes of a call."""
    graph = GraphCall("", call[0], call[1]).graph
    degree = torch.bincount(graph[1][1], minlength=graph[0].size(0)).double()
    some = degree[degree > 0]
    return float(degree.mean()), float(some.median()) if some.numel() else 0.0, int(graph[0].size(0))
