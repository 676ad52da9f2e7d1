"""Families of graphs: some for development, others kept for the held-out part."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor


def random_graph(n: int, degree: int, generator: Generator) -> Tensor:
    """Erdős–Rényi with the given mean in-degree."""
    return _without_loops(torch.rand(n, n, generator=generator) < degree / max(n - 1, 1))


def complete(n: int, degree: int, generator: Generator) -> Tensor:
    """Every node sees every other one."""
    return _without_loops(torch.ones(n, n, dtype=torch.bool))


def ring(n: int, degree: int, generator: Generator) -> Tensor:
    """Each node sees its nearest ``degree`` neighbours on a ring."""
    offsets = [o for k in range(1, degree // 2 + 1) for o in (k, -k)] or [1]
    nodes = torch.arange(n)
    return torch.stack([torch.cat([(nodes + o) % n for o in offsets]), nodes.repeat(len(offsets))])


def tree(n: int, degree: int, generator: Generator) -> Tensor:
    """A random tree with edges from parent to child: in-degree at most 1."""
    children = torch.arange(1, n)
    parents = (torch.rand(n - 1, generator=generator) * children).long()
    return torch.stack([parents, children])


def preferential(n: int, degree: int, generator: Generator) -> Tensor:
    """Preferential attachment, both directions: heavy-tailed in-degrees."""
    links = max(degree // 2, 1)
    ends = list(range(links))
    pairs: set[tuple[int, int]] = set()
    for node in range(links, n):
        for _ in range(links):
            other = ends[int(torch.randint(len(ends), (1,), generator=generator))]
            pairs |= {(node, other), (other, node)}
            ends += [node, other]
    return torch.tensor(sorted(p for p in pairs if p[0] != p[1])).t().contiguous()


def grid(n: int, degree: int, generator: Generator) -> Tensor:
    """A square lattice, four neighbours inside."""
    side = max(int(n**0.5), 2)
    index = torch.arange(n)
    row, column = index // side, index % side
    near = (row[:, None] - row[None]).abs() + (column[:, None] - column[None]).abs() == 1
    return _without_loops(near)


def geometric(n: int, degree: int, generator: Generator) -> Tensor:
    """Random points in the unit square, linked within the radius that gives the mean in-degree."""
    points = torch.rand(n, 2, generator=generator)
    radius = (degree / (3.1416 * max(n - 1, 1))) ** 0.5
    return _without_loops(torch.cdist(points, points) < radius)


def small_world(n: int, degree: int, generator: Generator) -> Tensor:
    """Watts–Strogatz: a ring of which a fifth of the edges starts somewhere else."""
    source, target = ring(n, degree, generator)
    moved = torch.rand(source.size(0), generator=generator) < 0.2
    anywhere = torch.randint(n, source.shape, generator=generator)
    edges = torch.stack([torch.where(moved, anywhere, source), target])
    return edges[:, edges[0] != edges[1]].unique(dim=1)


def communities(n: int, degree: int, generator: Generator) -> Tensor:
    """Stochastic block model of three communities; nine of ten edges stay within one."""
    block = torch.arange(n) * 3 // n
    same = block[:, None] == block[None]
    chance = torch.where(same, 0.9 * degree / (n / 3), 0.1 * degree / (2 * n / 3)).clamp(max=1)
    return _without_loops(torch.rand(n, n, generator=generator) < chance)


def _without_loops(adjacency: Tensor) -> Tensor:
    return adjacency.clone().fill_diagonal_(False).nonzero().t().contiguous()


def spread(values: Tensor, edge_index: Tensor, n: int) -> Tensor:
    """Mean over the in-neighbours; 0 where there is none. Shapes: (N,), (2, E) → (N,)."""
    total = torch.zeros(n).index_add_(0, edge_index[1], values[edge_index[0]])
    count = torch.zeros(n).index_add_(0, edge_index[1], torch.ones(edge_index.size(1)))
    return total / count.clamp(min=1)


GRAPHS: dict[str, Callable[[int, int, Generator], Tensor]] = {
    "random": random_graph,
    "complete": complete,
    "ring": ring,
    "tree": tree,
    "preferential": preferential,
    "grid": grid,
    "geometric": geometric,
    "small-world": small_world,
    "communities": communities,
}
