"""Graphs of the user's kind with more or fewer neighbours per node."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnstab.errors import UsageError
from gnnstab.probe.attaching.hooks import hookable
from gnnstab.probe.batches.arguments import Arguments
from gnnstab.probe.replaying.replica import eager
from gnnstab.verification._objective import is_edges

WINDOW = 0.05
"""A node takes over neighbourhoods of nodes whose rank by in-degree differs by at most this share of all nodes."""

PART_WINDOW = 0.1
"""The same for whole graphs of a batch, by their number of edges."""


SMALL_FACTOR = 8.0
"""Up to this factor a graph is made whatever its size: the batch itself was run."""

MOST_EDGES = 2**18
"""Edges of the largest graph that is made beyond it: ten seconds and a GB of a small network."""

LARGEST_FACTOR = 1024.0
"""Of few edges, too: every unit of a factor lays the graph over itself once more."""


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

    def look(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = [*args, *kwargs.values()]
        whole = any(isinstance(v, Data) and v.edge_index is not None and v.x is not None for v in values)
        if not found and (whole or (any(map(is_edges, values)) and any(map(_is_features, values)))):
            found.append(GraphCall(name, args, dict(kwargs)))

    handles = [m.register_forward_pre_hook(partial(look, n), with_kwargs=True) for n, m in hookable(model)]
    try:
        with torch.no_grad():
            eager(model)(*call[0], **call[1])
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


def check_growth(call: GraphCall, factor: float) -> None:
    """Raise `UsageError` for a factor beyond `SMALL_FACTOR` that makes more than `MOST_EDGES`, or is above `LARGEST_FACTOR`."""
    count = call.graph[1].size(1)
    most = max(SMALL_FACTOR, min(LARGEST_FACTOR, MOST_EDGES / max(count, 1)))
    if factor > most:
        raise UsageError(
            f"an in-degree {factor:g} times that of the batch, whose edges are {count}, is too large to run: at most {int(most)} times"
        )


def grown(call: GraphCall, factor: float, generator: torch.Generator) -> Arguments:
    """The call on a graph whose in-degrees are about ``factor`` times as large, nodes and their features unchanged.

    Below 1 every edge is kept with that probability. Above 1 every node also takes over the incoming edges of another
    node of about its own in-degree, with their edge data: the union of neighbourhoods that occur, which keeps what
    messages look like and changes only how many there are. In a batch of several graphs it is whole graphs that are laid
    over each other, so that nodes which shared their neighbours still do. Raises `UsageError` as `check_growth` does.
    """
    check_growth(call, factor)
    x, edges = call.graph
    count = edges.size(1)
    if factor <= 1:
        keep = (torch.rand(count, generator=generator) < factor).nonzero().flatten().to(edges.device)
        return call.with_edges(keep, edges[1, keep])
    parts = _parts(edges.cpu(), x.size(0), generator)
    kept, targets = [torch.arange(count, device=edges.device)], [edges[1]]
    rest, turn = factor - 1, 0
    while rest > 1e-9:
        turn += 1
        enough = len(parts) > math.ceil(factor)
        receiver = _of_other_part(parts, turn) if enough else _of_other_node(edges.cpu(), x.size(0), generator)
        share = min(rest, 1.0)
        chosen = (torch.rand(count, generator=generator) < share).nonzero().flatten().to(edges.device)
        kept.append(chosen)
        targets.append(receiver.to(edges.device)[edges[1, chosen]])
        rest -= share
    return call.with_edges(torch.cat(kept), torch.cat(targets))


def _parts(edges: Tensor, nodes: int, generator: torch.Generator) -> list[Tensor]:
    """Node ids of every connected part, by in-degree; parts with about as many edges stand beside each other."""
    ones = np.ones(edges.size(1))
    links = coo_matrix((ones, (edges[0].numpy(), edges[1].numpy())), shape=(nodes, nodes))
    count, labels = connected_components(links, directed=False)
    part = torch.from_numpy(labels).long()
    size = torch.bincount(part[edges[1]], minlength=count)
    degree = torch.bincount(edges[1], minlength=nodes) + 0.5 * torch.rand(nodes, generator=generator)
    by_part = torch.argsort(degree)
    by_part = by_part[torch.argsort(part[by_part], stable=True)]
    members = torch.split(by_part, torch.bincount(part, minlength=count).tolist())
    return [members[i] for i in _nearly_sorted(size, PART_WINDOW, generator).tolist()]


def _of_other_part(parts: Sequence[Tensor], turn: int) -> Tensor:
    """For every node the node that takes over its neighbourhood: of the same rank in the part ``turn`` places before.

    The parts stand in a ring. Two parts that took over each other's edges would hold every node twice, and attention
    between twins is never one-hot.
    """
    receiver = torch.empty(sum(map(len, parts)), dtype=torch.long)
    for i, part in enumerate(parts):
        other = parts[i - turn]
        receiver[part] = other[torch.arange(len(part)) * len(other) // len(part)]
    return receiver


def _of_other_node(edges: Tensor, nodes: int, generator: torch.Generator) -> Tensor:
    """The same within a graph of one part: a permutation within a window of in-degree ranks."""
    degree = torch.bincount(edges[1], minlength=nodes)
    ranked = torch.argsort(degree + 0.5 * torch.rand(nodes, generator=generator))
    receiver = torch.empty_like(ranked)
    receiver[ranked] = ranked[_nearly_sorted(torch.arange(nodes), WINDOW, generator)]
    return receiver


def _nearly_sorted(values: Tensor, window: float, generator: torch.Generator) -> Tensor:
    """Positions by value, each moved at random by up to ``window`` of their number; ties in random order."""
    count = values.numel()
    rank = torch.argsort(torch.argsort(values + 0.5 * torch.rand(count, generator=generator)))
    return torch.argsort(rank + max(1.0, window * count) * torch.rand(count, generator=generator))


def in_degrees(call: Arguments) -> tuple[float, float, int]:
    """Mean and median in-degree (of nodes with an edge) and the number of nodes of a call."""
    graph = GraphCall("", call[0], call[1]).graph
    degree = torch.bincount(graph[1][1], minlength=graph[0].size(0)).double()
    some = degree[degree > 0]
    return float(degree.mean()), float(some.median()) if some.numel() else 0.0, int(graph[0].size(0))


def bound(part: nn.Module, call: Arguments) -> tuple[nn.Module, Any]:
    """A module and a batch that make this call of ``part``: positional arguments, or keyword arguments, or the rest of both bound."""
    args, kwargs = call
    if args and kwargs:
        return _Bound(part, kwargs), args
    return part, args or kwargs


class _Bound(nn.Module):
    """A module with some keyword arguments fixed."""

    def __init__(self, inner: nn.Module, keywords: Mapping[str, Any]) -> None:
        super().__init__()
        self.inner, self.keywords = inner, dict(keywords)

    def forward(self, *args: Any) -> Any:
        return self.inner(*args, **self.keywords)
