"""Models of unusual inputs and shapes, and a run of them with and without gnnstab."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import (
    ChebConv,
    DNAConv,
    GATConv,
    GCNConv,
    HANConv,
    HeteroConv,
    HGTConv,
    TransformerConv,
    to_hetero,
)

import gnnstab
from gnnstab.diagnosis import Diagnosis

NODES, WIDTH = 20, 8
RELATIONS = [("item", "to", "user"), ("user", "to", "item")]


class Wrapped(nn.Module):
    """A layer and a linear read-out of what ``pick`` takes from its result."""

    def __init__(self, layer: nn.Module, width: int = WIDTH, pick: Callable[[Any], Tensor] | None = None) -> None:
        super().__init__()
        self.layer, self.out, self.pick = layer, nn.Linear(width, 1), pick

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        found = self.layer(*args, **kwargs)
        return self.out(found if self.pick is None else self.pick(found))


class FullyMasked(nn.Module):
    """Fused attention of four graphs, one of which has no node at all."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.qkv, self.out, self.way = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 1), way
        self.multihead = nn.MultiheadAttention(WIDTH, 2, batch_first=True) if way == "multihead" else None

    def forward(self, x: Tensor, empty: Tensor) -> Tensor:
        if self.multihead is not None:
            y = self.multihead(x, x, x, key_padding_mask=empty, need_weights=False)[0]
        else:
            q, k, v = self.qkv(x).view(4, 6, 3, 2, WIDTH // 2).permute(2, 0, 3, 1, 4)
            mask = ~empty[:, None, None, :]
            added = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=added if self.way == "added" else mask)
            y = y.transpose(1, 2).reshape(4, 6, WIDTH)
        return self.out(y).squeeze(-1)[~empty]


class Template(nn.Module):
    """Torch's encoder with the layer that it was copied from kept beside it, as torch's own manual writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(self.layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.encoder(x))


class Plain(nn.Module):
    """Two attention layers, for `to_hetero`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = TransformerConv(WIDTH, WIDTH)
        self.second = GATConv(WIDTH, WIDTH, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).tanh(), edge_index)


def edges(seed: int = 0, count: int = 80) -> Tensor:
    return torch.randint(0, NODES, (2, count), generator=torch.Generator().manual_seed(seed))


def users_and_items(users: int = NODES) -> tuple[dict[str, Tensor], dict[tuple[str, str, str], Tensor]]:
    x = {"user": torch.randn(users, WIDTH), "item": torch.randn(NODES, WIDTH)}
    return x, {relation: edges(i) if users else edges(i)[:, :0] for i, relation in enumerate(RELATIONS)}


def hetero() -> nn.Module:
    convs = {relation: TransformerConv(WIDTH, WIDTH) for relation in RELATIONS}
    return Wrapped(HeteroConv(convs, aggr="sum"), pick=lambda out: out["user"])


def masked(way: str) -> tuple[nn.Module, tuple[Any, ...]]:
    empty = torch.zeros(4, 6, dtype=torch.bool)
    empty[1, 3:] = empty[3] = True
    return FullyMasked(way), (torch.randn(4, 6, WIDTH), empty)


def adjacency() -> Tensor:
    dense = torch.zeros(NODES, NODES)
    dense[edges()[0], edges()[1]] = 1.0
    return dense.to_sparse_csr()


def lazy() -> tuple[nn.Module, tuple[Any, ...]]:
    """A node type without any node in the batch: the lazy parameters for it stay uninitialised."""
    types = (["user", "item", "shop"], [*RELATIONS, ("shop", "to", "user")])
    return Wrapped(HGTConv(-1, WIDTH, types, heads=2), pick=lambda out: out["user"]), users_and_items()


def sparse_features() -> Tensor:
    return torch.eye(NODES, WIDTH).to_sparse()


PROGRAMS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...]]]] = {
    "masked rows, boolean": lambda: masked("boolean"),
    "masked rows, added": lambda: masked("added"),
    "masked rows, multihead": lambda: masked("multihead"),
    "template": lambda: (Template(), (torch.randn(4, 6, WIDTH),)),
    "static GCN": lambda: (Wrapped(GCNConv(WIDTH, WIDTH)), (torch.randn(4, NODES, WIDTH), edges())),
    "static Cheb": lambda: (Wrapped(ChebConv(WIDTH, WIDTH, 2)), (torch.randn(4, NODES, WIDTH), edges())),
    "static and attention": lambda: (
        Wrapped(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True))),
        (torch.randn(4, NODES, WIDTH),),
    ),
    "lazy": lazy,
    "CSR beside three axes": lambda: (Wrapped(DNAConv(WIDTH, 2, 1)), (torch.randn(NODES, 3, WIDTH), adjacency())),
    "CSR": lambda: (Wrapped(GATConv(WIDTH, WIDTH)), (torch.randn(NODES, WIDTH), adjacency())),
    "no edges": lambda: (Wrapped(GATConv(WIDTH, WIDTH)), (torch.randn(NODES, WIDTH), edges(count=0))),
    "no edges, TransformerConv": lambda: (
        Wrapped(TransformerConv(WIDTH, WIDTH)),
        (torch.randn(NODES, WIDTH), edges(count=0)),
    ),
    "no nodes": lambda: (Wrapped(TransformerConv(WIDTH, WIDTH)), (torch.randn(0, WIDTH), edges(count=0))),
    "HeteroConv": lambda: (hetero(), users_and_items()),
    "HeteroConv without users": lambda: (hetero(), users_and_items(0)),
    "to_hetero": lambda: (
        Wrapped(to_hetero(Plain(), (["user", "item"], RELATIONS)), pick=lambda out: out["user"]),
        users_and_items(),
    ),
    "HAN without items": lambda: (
        Wrapped(
            HANConv({"user": WIDTH, "item": WIDTH}, WIDTH, (["user", "item"], RELATIONS)), pick=lambda out: out["item"]
        ),
        users_and_items(0),
    ),
    "sparse x": lambda: (Wrapped(GCNConv(WIDTH, WIDTH)), (sparse_features(), edges())),
    "sparse x, attention": lambda: (Wrapped(GATConv(WIDTH, WIDTH)), (sparse_features(), edges())),
}


EMPTY = dict.fromkeys(
    ("no edges, TransformerConv", "no nodes", "HeteroConv without users", "HAN without items"), ("GS402", "GS604")
)
"""Programs without an edge to the nodes that are read, and the rule that is right about it."""


def trained(
    model: nn.Module, args: tuple[Any, ...], monitored: bool, steps: int = 3
) -> tuple[list[Tensor], Diagnosis | None]:
    """Losses, gradients and random numbers of a short run, and what the monitor says."""
    torch.manual_seed(1)
    model = copy.deepcopy(model)
    with torch.no_grad():
        model(*args)  # Lazy parameters get their shapes, as torch_geometric's manual asks for.
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)], lr=1e-3
    )
    kept: list[Tensor] = []
    monitor = gnnstab.Monitor(model, optimizer=optimizer, schedule=2) if monitored else None
    with warnings.catch_warnings():
        warnings.simplefilter("error", gnnstab.errors.GnnstabWarning)
        if monitor is not None:
            monitor.__enter__()
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(*args).square().sum()
            loss.backward()
            kept += [loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None), torch.rand(2)]
            optimizer.step()
            if monitor is not None:
                monitor.loss(loss)
        if monitor is not None:
            monitor.__exit__(None, None, None)
    return kept, None if monitor is None else monitor.diagnose()
