"""Batches of the healthy programs: graphs with targets that can be learnt, at scales that a user would bring."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data, HeteroData

NODES = 60


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def edges(nodes: int = NODES, degree: int = 6, seed: int = 0) -> Tensor:
    source = torch.randint(0, nodes, (nodes * degree,), generator=draw(seed))
    return torch.stack([source, torch.arange(nodes).repeat_interleave(degree)])


def mean_of_neighbours(x: Tensor, edge_index: Tensor) -> Tensor:
    total = torch.zeros_like(x).index_add_(0, edge_index[1], x[edge_index[0]])
    return total / edge_index[1].bincount(minlength=len(x)).clamp(min=1).unsqueeze(-1)


def nodes(seed: int = 0, degree: int = 6, scale: float = 1.0, **more: Any) -> Data:
    """Regression: the target mixes a node's own state with that of its neighbours."""
    x = torch.randn(NODES, 8, generator=draw(seed + 1))
    edge_index = edges(degree=degree, seed=seed)
    y = torch.tanh(x[:, 0] + mean_of_neighbours(x, edge_index)[:, 1])
    return Data(x=x * scale, edge_index=edge_index, y=y, batch=torch.zeros(NODES, dtype=torch.long), **more)


def chain(seed: int = 0) -> Data:
    """Every node hears its predecessor alone."""
    x = torch.randn(NODES, 8, generator=draw(seed + 1))
    edge_index = torch.stack([torch.arange(NODES - 1), torch.arange(1, NODES)])
    return Data(x=x, edge_index=edge_index, y=torch.tanh(x[:, 0] + x.roll(1, 0)[:, 1]))


def classes(seed: int = 0, shares: tuple[float, ...] = (0.34, 0.33, 0.33)) -> Data:
    """Classes of nodes by the rank of one learnable direction."""
    found = nodes(seed)
    order = (found.x[:, 0] + 0.5 * found.x[:, 1]).argsort().argsort() / NODES
    found.y = torch.bucketize(order, torch.tensor(shares).cumsum(0)[:-1])
    return found


def words(seed: int = 0, columns: int = 1433, documents: int = 120) -> Data:
    """Bags of words, rows normalised, edges mostly within a class."""
    g = draw(seed)
    y = torch.arange(documents) % 7
    topic = torch.rand(7, columns, generator=g) < 0.03
    chance = torch.where(topic[y], 0.15, 0.008)
    x = (torch.rand(documents, columns, generator=g) < chance).float()
    x = x / x.sum(-1, keepdim=True).clamp(min=1)
    target = torch.arange(documents).repeat_interleave(3)
    source = (target + 7 * torch.randint(1, documents // 7, target.shape, generator=g)) % documents
    return Data(x=x, edge_index=torch.cat([torch.stack([source, target]), torch.stack([target, source])], 1), y=y)


def one_hot_edges(seed: int = 0) -> Data:
    kinds = torch.randint(0, 4, (NODES * 6,), generator=draw(seed + 7))
    return nodes(seed, edge_attr=F.one_hot(kinds, 4).float())


def graphs(seed: int = 0, count: int = 12) -> Batch:
    """Graph classification: which of three columns is largest on average."""
    found = []
    for i in range(count):
        size = 8 + i % 5
        x = torch.randn(size, 8, generator=draw(100 * seed + i))
        x[:, i % 3] += 1.0
        pe = torch.linalg.eigh(torch.cov(torch.randn(size, 2 * size, generator=draw(i))))[1][:, :6]
        found.append(Data(x=x, edge_index=edges(size, 3, i), pe=pe, y=torch.tensor([i % 3])))
    return Batch.from_data_list(found)


def hetero(seed: int = 0) -> HeteroData:
    g, found = draw(seed), HeteroData()
    found["agent"].x, found["item"].x = torch.randn(24, 8, generator=g), torch.randn(40, 4, generator=g)
    for source, relation, target in (("agent", "sees", "item"), ("item", "near", "agent"), ("agent", "knows", "agent")):
        to = torch.arange(found[target].num_nodes).repeat_interleave(4)
        source_ids = torch.randint(0, found[source].num_nodes, to.shape, generator=g)
        found[source, relation, target].edge_index = torch.stack([source_ids, to])
    near = mean_of_neighbours_between(found["item"].x, found["item", "near", "agent"].edge_index, 24)
    found.y = torch.tanh(found["agent"].x[:, 0] + near[:, 0])
    return found


def mean_of_neighbours_between(x: Tensor, edge_index: Tensor, count: int) -> Tensor:
    total = torch.zeros(count, x.size(1)).index_add_(0, edge_index[1], x[edge_index[0]])
    return total / edge_index[1].bincount(minlength=count).clamp(min=1).unsqueeze(-1)


def unimp(seed: int = 0) -> Data:
    found = classes(seed)
    hidden = torch.rand(NODES, generator=draw(seed + 3)) < 0.5
    found.known, found.asked = torch.where(hidden, 3, found.y), hidden
    return found


def events(seed: int = 0) -> Data:
    """Events with relative times over their standard deviation, pairs of which half did meet."""
    found = nodes(seed)
    g = draw(seed + 5)
    count = found.edge_index.size(1)
    found.delta = torch.rand(count, generator=g) * 3
    found.msg = torch.randn(count, 4, generator=g)
    found.pairs = torch.randint(0, NODES, (2, 80), generator=g)
    found.y = (found.x[found.pairs[0], 0] + found.x[found.pairs[1], 0] > 0).float()
    return found


def agents(seed: int = 0) -> Data:
    """A team that sees its six nearest; advantages are normalised."""
    g = draw(seed)
    x = torch.randn(NODES, 6, generator=g)
    return Data(
        x=x,
        ids=torch.arange(NODES) % 20,
        edge_index=edges(seed=seed),
        action=(x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long(),
    )


def links(seed: int = 0) -> Data:
    """Edges within communities against random pairs."""
    found = nodes(seed)
    group = torch.arange(NODES) % 4
    found.x = found.x + 1.5 * F.one_hot(group, 8)
    start = torch.arange(NODES).repeat(2)
    found.good = torch.stack([start, (start + 4 * torch.randint(1, 15, start.shape, generator=draw(seed))) % NODES])
    found.bad = torch.stack([start, torch.randint(0, NODES, start.shape, generator=draw(seed + 9))])
    return found


def copies(seed: int = 0, keys: int = 12, values: int = 8) -> Data:
    """Every node hears twelve others with all keys, and has to repeat the value of the one that bears its key."""
    g = draw(seed)
    count = 10 * keys
    key = torch.arange(count) % keys
    value = torch.randint(0, values, (count,), generator=g)
    block = torch.randint(0, 10, (count,), generator=g)
    target = torch.arange(count).repeat_interleave(keys)
    source = block.repeat_interleave(keys) * keys + torch.arange(keys).repeat(count)
    x = torch.cat([F.one_hot(key, keys), F.one_hot(value, values)], 1).float()
    return Data(x=x, edge_index=torch.stack([source, target]), y=value[block * keys + key])


def dense(seed: int = 0) -> Data:
    found = nodes(seed)
    near = torch.eye(NODES, dtype=torch.bool)
    near[found.edge_index[1], found.edge_index[0]] = True
    found.near = near
    return found
