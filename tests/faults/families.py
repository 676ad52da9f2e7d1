"""The families of attention that a network of the bench is built of: how a layer is made, and where a fault is put into it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GATv2Conv, GPSConv, HGTConv, MessagePassing, TransformerConv
from torch_geometric.utils import softmax, to_dense_adj, to_dense_batch

if TYPE_CHECKING:
    from faults.recipes import Recipe


class Hetero(nn.Module):
    """HGTConv over one kind of nodes and one relation."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.conv = HGTConv(width, width, (["n"], [("n", "to", "n")]), heads=heads)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv({"n": x}, {("n", "to", "n"): edge_index})["n"]
        return out


class Vendored(MessagePassing):
    """A copy of TransformerConv as people keep it in their own repository: other names, the same softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * width) for _ in range(3))
        self.own = nn.Linear(width, width)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        q, k, v = (part(x).view(len(x), self.heads, -1) for part in (self.to_q, self.to_k, self.to_v))
        return self.propagate(edge_index, q=q, k=k, v=v).mean(dim=1) + self.own(x)

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int | None) -> Tensor:
        alpha = softmax((q_i * k_j).sum(-1) / math.sqrt(q_i.shape[-1]), index, num_nodes=size_i)
        return alpha.unsqueeze(-1) * v_j


class Dense(nn.Module):
    """Attention written by hand over a matrix of scores, which the adjacency masks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.own = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, edge_index: Tensor, batch: Tensor) -> Tensor:
        h, real = to_dense_batch(x, batch)
        near = to_dense_adj(edge_index, batch).transpose(1, 2) > 0
        score = self.query(h) @ self.key(h).transpose(1, 2) / math.sqrt(h.shape[-1])
        alpha = torch.softmax(score.masked_fill(~near, -1e9), dim=-1)
        return (alpha @ self.value(h))[real] + self.own(x)


@dataclass(frozen=True)
class Family:
    """One kind of attention."""

    make: Callable[[Recipe], nn.Module]
    scores: Callable[[Any], Sequence[Tensor]]
    """The tensors that the scores are proportional to, all together."""

    factors: int
    """How many of them one score is the product of."""

    batched: bool = False
    """True for a layer that is told which node belongs to which graph."""


def _in_proj(conv: Any) -> list[Tensor]:
    rows = 2 * conv.channels  # Queries and keys; the values stand behind them.
    return [conv.attn.in_proj_weight[:rows], conv.attn.in_proj_bias[:rows]]


def _transformer(recipe: Recipe) -> nn.Module:
    return TransformerConv(
        recipe.width,
        recipe.width,
        heads=recipe.heads,
        concat=recipe.structure == "wide-heads",
        beta=recipe.beta,
        dropout=recipe.dropout,
        edge_dim=recipe.edge_dim,
        root_weight=recipe.root_weight,
    )


def _additive(kind: type[nn.Module]) -> Callable[[Recipe], nn.Module]:
    return lambda r: kind(r.width, r.width, heads=r.heads, concat=False, dropout=r.dropout, residual=True)


FAMILIES: dict[str, Family] = {
    "TransformerConv": Family(
        _transformer,
        lambda c: [c.lin_query.weight, c.lin_query.bias, c.lin_key.weight, c.lin_key.bias],
        2,
    ),
    "GATConv": Family(_additive(GATConv), lambda c: [c.att_src, c.att_dst], 1),
    "GATv2Conv": Family(_additive(GATv2Conv), lambda c: [c.att], 1),
    "HGTConv": Family(lambda r: Hetero(r.width, r.heads), lambda c: list(c.conv.p_rel.values()), 1),
    "GPSConv": Family(
        lambda r: GPSConv(r.width, GATConv(r.width, r.width, residual=True), heads=r.heads), _in_proj, 2, batched=True
    ),
    "vendored": Family(
        lambda r: Vendored(r.width, r.heads), lambda c: [c.to_q.weight, c.to_q.bias, c.to_k.weight, c.to_k.bias], 2
    ),
    "dense": Family(
        lambda r: Dense(r.width), lambda c: [c.query.weight, c.query.bias, c.key.weight, c.key.bias], 2, batched=True
    ),
}
"""Name → family; what a fault needs beyond the scores stands in layers around the attention."""


def sharpen(conv: nn.Module, family: Family, strength: float) -> None:
    """Multiply every score by ``strength`` squared."""
    with torch.no_grad():
        for tensor in family.scores(conv):
            tensor *= strength ** (2 / family.factors)
