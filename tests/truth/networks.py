"""Networks of the healthy programs: ordinary designs, each written as its users write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import (
    GATConv,
    GCNConv,
    GINConv,
    GPSConv,
    GraphNorm,
    HeteroConv,
    HGTConv,
    SAGEConv,
    TransformerConv,
    global_mean_pool,
)

WIDTH = 16


class Nodes(nn.Module):
    """Encoder, convolutions with a residual and whatever norm is asked for, read-out per node."""

    def __init__(
        self,
        features: int = 8,
        out: int = 1,
        layers: int = 2,
        conv: Callable[..., nn.Module] | None = None,
        norm: Callable[[int], nn.Module] | None = None,
        pre: bool = False,
        residual: bool = True,
        act: Callable[[Tensor], Tensor] = F.relu,
        edges: int | None = None,
        tied: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        make = conv or (lambda: TransformerConv(WIDTH, WIDTH // 2, heads=2, edge_dim=edges))
        self.inp = nn.Linear(features, WIDTH)
        self.convs = nn.ModuleList([make() for _ in range(1 if tied else layers)])
        self.norms = nn.ModuleList([norm(WIDTH) for _ in range(layers)] if norm else [])
        self.out = nn.Linear(WIDTH, out)
        self.layers, self.pre, self.residual, self.act, self.edges, self.dropout = (
            layers, pre, residual, act, edges, dropout,
        )  # fmt: skip

    def normed(self, i: int, h: Tensor, batch: Data) -> Tensor:
        if not self.norms:
            return h
        norm = self.norms[i]
        out: Tensor = norm(h, batch.batch) if isinstance(norm, GraphNorm) else norm(h)
        return out

    def forward(self, batch: Data) -> Tensor:
        h = self.act(self.inp(batch.x))
        more = (batch.edge_attr,) if self.edges else ()
        for i in range(self.layers):
            z = self.normed(i, h, batch) if self.pre else h
            z = self.convs[i % len(self.convs)](z, batch.edge_index, *more)
            z = self.act(z if self.pre else self.normed(i, z, batch))
            z = F.dropout(z, self.dropout, self.training)
            h = h + z if self.residual else z
        out: Tensor = self.out(h)
        return out.squeeze(-1)


class Pooled(Nodes):
    """The same, read out per graph."""

    def __init__(self, out: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.out = nn.Identity()
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, out))

    def forward(self, batch: Data) -> Tensor:
        out: Tensor = self.head(global_mean_pool(super().forward(batch), batch.batch))
        return out


class Planetoid(nn.Module):
    """PyG's example for citation graphs: dropout, convolution, ELU, dropout, convolution."""

    def __init__(self, features: int, classes: int, kind: str = "gat") -> None:
        super().__init__()
        if kind == "gat":
            self.first = GATConv(features, 8, heads=8, dropout=0.6)
            self.second = GATConv(64, classes, heads=1, concat=False, dropout=0.6)
        elif kind == "transformer":
            self.first = TransformerConv(features, 8, heads=8, dropout=0.1)
            self.second = TransformerConv(64, classes, heads=1, concat=False, dropout=0.1)
        else:
            self.first, self.second = GCNConv(features, 64), GCNConv(64, classes)

    def forward(self, batch: Data) -> Tensor:
        h = F.dropout(batch.x, 0.6, self.training)
        h = F.elu(self.first(h, batch.edge_index))
        h = F.dropout(h, 0.6, self.training)
        out: Tensor = self.second(h, batch.edge_index)
        return out


class Mixed(nn.Module):
    """A GCN layer in front of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.gcn = GCNConv(8, WIDTH)
        self.conv = TransformerConv(WIDTH, WIDTH, heads=1, root_weight=True)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: Data) -> Tensor:
        h = F.relu(self.gcn(batch.x, batch.edge_index))
        out: Tensor = self.out(h + F.relu(self.conv(h, batch.edge_index)))
        return out.squeeze(-1)


class Gps(nn.Module):
    """Positional encodings and two GPS blocks with global attention."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.pe_norm, self.pe = nn.Linear(8, 12), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.blocks = nn.ModuleList(
            GPSConv(WIDTH, GINConv(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))), heads=2)
            for _ in range(2)
        )
        self.head = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, batch: Data) -> Tensor:
        h = torch.cat([self.inp(batch.x), self.pe(self.pe_norm(batch.pe))], -1)
        for block in self.blocks:
            h = block(h, batch.edge_index, batch.batch)
        out: Tensor = self.head(global_mean_pool(h, batch.batch))
        return out


class Hetero(nn.Module):
    """Two layers over two node types; the read-out looks at one of them, so that the last layer has relations unread."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        meta = (["agent", "item"], [("agent", "sees", "item"), ("item", "near", "agent"), ("agent", "knows", "agent")])
        self.inp = nn.ModuleDict({"agent": nn.Linear(8, WIDTH), "item": nn.Linear(4, WIDTH)})
        make = {
            "hgt": lambda: HGTConv(WIDTH, WIDTH, meta, heads=2),
            "transformer": lambda: HeteroConv({e: TransformerConv(WIDTH, 8, heads=2) for e in meta[1]}, aggr="sum"),
            "gat": lambda: HeteroConv({e: GATConv(WIDTH, 8, heads=2, add_self_loops=False) for e in meta[1]}),
            "sage": lambda: HeteroConv({e: SAGEConv(WIDTH, WIDTH) for e in meta[1]}, aggr="mean"),
        }[kind]
        self.convs = nn.ModuleList(make() for _ in range(2))
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: HeteroData) -> Tensor:
        h = {name: F.relu(self.inp[name](x)) for name, x in batch.x_dict.items()}
        for conv in self.convs:
            z = conv(h, batch.edge_index_dict)
            h = {name: h[name] + F.relu(z[name]) for name in h}
        out: Tensor = self.out(h["agent"])
        return out.squeeze(-1)


class Unimp(nn.Module):
    """Labels of a part of the nodes as input, gated residual, layer norms."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.label = nn.Embedding(classes + 1, 8)
        self.first = TransformerConv(8, 8, heads=2, beta=True, dropout=0.2)
        self.norm = nn.LayerNorm(16)
        self.second = TransformerConv(16, classes, heads=2, concat=False, beta=True, dropout=0.2)

    def forward(self, batch: Data) -> Tensor:
        h = batch.x + self.label(batch.known)
        h = F.relu(self.norm(self.first(h, batch.edge_index)))
        out: Tensor = self.second(h, batch.edge_index)
        return out


class Tgn(nn.Module):
    """Memory of the nodes, a cosine encoding of relative times, attention over events."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 6)
        self.conv = TransformerConv(8, 8, heads=2, dropout=0.1, edge_dim=6 + 4)
        self.link = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch: Data) -> Tensor:
        encoded = torch.cat([self.time(batch.delta.unsqueeze(-1)).cos(), batch.msg], -1)
        z = self.conv(batch.x, batch.edge_index, encoded)
        source, target = batch.pairs
        out: Tensor = self.link(torch.cat([z[source], z[target]], -1))
        return out.squeeze(-1)


class Policy(nn.Module):
    """Ids of agents into an embedding, attention over neighbours, logits of the actions."""

    def __init__(self, agents: int, actions: int = 5) -> None:
        super().__init__()
        self.entity = nn.Embedding(agents, 4)
        self.inp = nn.Linear(6 + 4, WIDTH)
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH, heads=3, concat=False) for _ in range(2)])
        self.actor = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, actions))

    def forward(self, batch: Data) -> Tensor:
        h = F.relu(self.inp(torch.cat([batch.x, self.entity(batch.ids)], -1)))
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index))
        out: Tensor = self.actor(h)
        return out


class Links(Nodes):
    """Node states, scored by their products."""

    def __init__(self, ranked: bool) -> None:
        super().__init__(out=WIDTH)
        self.ranked = ranked

    def forward(self, batch: Data) -> Tensor:
        z = super().forward(batch)
        good = (z[batch.good[0]] * z[batch.good[1]]).sum(-1) / 4
        bad = (z[batch.bad[0]] * z[batch.bad[1]]).sum(-1) / 4
        return good - bad if self.ranked else torch.cat([good, bad])


class Copying(nn.Module):
    """Attention that finds the one neighbour of the same key; a sharp softmax is the solution."""

    def __init__(self, keys: int, values: int) -> None:
        super().__init__()
        self.conv = TransformerConv(keys + values, 32, heads=1, root_weight=False)
        self.out = nn.Linear(32, values)

    def forward(self, batch: Data) -> Tensor:
        out: Tensor = self.out(self.conv(batch.x, batch.edge_index))
        return out


class Auxiliary(Nodes):
    """A second head that a later phase of the training will use."""

    def __init__(self) -> None:
        super().__init__()
        self.value_head = nn.Linear(WIDTH, 1)
        self.later = False

    def forward(self, batch: Data) -> Tensor:
        h = F.relu(self.inp(batch.x))
        for conv in self.convs:
            h = h + F.relu(conv(h, batch.edge_index))
        out: Tensor = self.value_head(h) if self.later else self.out(h)
        return out.squeeze(-1)


class Dense(nn.Module):
    """Attention by hand over all nodes of one set, masked by the adjacency."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.norm = nn.Linear(8, WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: Data) -> Tensor:
        h = F.relu(self.inp(batch.x))
        z = self.norm(h)
        scores = self.q(z) @ self.k(z).T / math.sqrt(WIDTH)
        scores = scores.masked_fill(~batch.near, float("-inf"))
        out: Tensor = self.out(h + self.o(scores.softmax(-1) @ self.v(z)))
        return out.squeeze(-1)


class Bounded(Nodes):
    """Actions within [-1, 1] by a tanh at the output."""

    def forward(self, batch: Data) -> Tensor:
        return torch.tanh(super().forward(batch))
