"""Attention that no adapter describes, written as people write it, with a second road to its scores."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
import torch_geometric.utils as pyg_utils
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GPSConv, MessagePassing
from torch_geometric.utils import softmax

WIDTH, NODES = 16, 40


class InMessage(MessagePassing):
    """Softmax in ``message``."""

    heads = 2

    def __init__(self) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        q, k, v = (part(x).view(-1, 2, WIDTH // 2) for part in (self.query, self.key, self.value))
        return self.propagate(edge_index, q=q, k=k, v=v).flatten(1)

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        alpha = softmax((q_i * k_j).sum(-1) / math.sqrt(q_i.shape[-1]), index, num_nodes=size_i)
        return alpha.unsqueeze(-1) * v_j

    def scores(self, x: Tensor, edge_index: Tensor) -> Tensor:
        q, k = (part(x).view(-1, 2, WIDTH // 2) for part in (self.query, self.key))
        return torch.einsum("ehc,ehc->eh", q[edge_index[1]], k[edge_index[0]]) / math.sqrt(WIDTH // 2)


class ThroughModule(InMessage):
    """The same through an imported module."""

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        alpha = pyg_utils.softmax((q_i * k_j).sum(-1) / math.sqrt(q_i.shape[-1]), index, num_nodes=size_i)
        return alpha.unsqueeze(-1) * v_j


class ThroughMethod(InMessage):
    """The same in a method of its own."""

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        return self.weigh((q_i * k_j).sum(-1) / math.sqrt(q_i.shape[-1]), index, size_i).unsqueeze(-1) * v_j

    def weigh(self, score: Tensor, index: Tensor, size: int) -> Tensor:
        return softmax(score, index, num_nodes=size)


def scatter_softmax(src: Tensor, index: Tensor, size: int) -> Tensor:
    """A copy of the operation, as of another library."""
    spread = index.view(-1, 1).expand_as(src)
    peak = src.new_full((size, src.shape[1]), -math.inf).scatter_reduce(0, spread, src, "amax")
    weight = (src - peak[index]).exp()
    return weight / torch.zeros_like(peak).index_add(0, index, weight)[index]


def weigh(score: Tensor, index: Tensor, size: int) -> Tensor:
    """A helper between the layer and its softmax."""
    return scatter_softmax(score, index, size)


class OwnSoftmax(InMessage):
    """A softmax of its own behind a function."""

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        return weigh((q_i * k_j).sum(-1) / math.sqrt(q_i.shape[-1]), index, size_i).unsqueeze(-1) * v_j


class PlainModule(nn.Module):
    """Attention over edges without `MessagePassing`."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        q, k, v = (part(x).view(-1, 2, WIDTH // 2) for part in (self.query, self.key, self.value))
        score = (q[target] * k[source]).sum(-1) / math.sqrt(WIDTH // 2)
        value = v[source] * softmax(score, target, num_nodes=len(x)).unsqueeze(-1)
        return torch.zeros_like(v).index_add(0, target, value).flatten(1)

    scores = InMessage.scores


EDGES: dict[str, Any] = {
    kind.__name__: kind for kind in (InMessage, ThroughModule, ThroughMethod, OwnSoftmax, PlainModule)
}


class Dense(nn.Module):
    """Attention of every node to every node of its graph, the rest masked."""

    def __init__(self, way: str = "method", mask: float = -math.inf) -> None:
        super().__init__()
        self.heads, self.way, self.mask = 2, way, mask
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.soft, self.drop = nn.Softmax(dim=-1), nn.Dropout(0.1)

    def parts(self, x: Tensor) -> list[Tensor]:
        return [part(x).view(len(x), 2, -1).transpose(0, 1) for part in (self.query, self.key, self.value)]

    def allowed(self, x: Tensor) -> Tensor:
        graph = torch.arange(len(x)) // 10
        return graph[:, None] == graph

    def scores(self, x: Tensor) -> Tensor:
        q, k, _ = self.parts(x)
        score = q @ k.transpose(1, 2) / math.sqrt(WIDTH // 2)
        return score.masked_fill(~self.allowed(x), self.mask)

    def forward(self, x: Tensor) -> Tensor:
        v = self.parts(x)[2]
        if self.way == "fused":
            q, k, v = (one.unsqueeze(0) for one in self.parts(x))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.allowed(x))[0]
            return out.transpose(0, 1).flatten(1)
        score = self.scores(x)
        if self.way == "module":
            alpha = self.soft(score)
        elif self.way == "function":
            alpha = F.softmax(score, dim=2)
        elif self.way == "torch":
            alpha = torch.softmax(score, -1)
        else:
            alpha = score.softmax(dim=-1)
        alpha = self.drop(alpha)
        out = torch.einsum("hnm,hmc->hnc", alpha, v) if self.way == "function" else alpha @ v
        return out.transpose(0, 1).flatten(1)


WAYS = ("method", "function", "torch", "module", "fused")


class Pool(nn.Module):
    """A weighted sum over the neighbours in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = x[torch.arange(len(x) * 5).remainder(len(x)).view(len(x), 5)]
        return (near * F.softmax(self.gate(near).squeeze(-1), dim=1).unsqueeze(-1)).sum(1)


class Assignment(nn.Module):
    """Nodes into clusters: the softmax is over the clusters, the sum over the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.cluster(x), dim=-1).transpose(0, 1) @ x


class Head(nn.Module):
    """Classes: the softmax is returned, and a loss may be made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(self.out(x), dim=1)


class Policy(Head):
    """An entropy of classes: multiplied with its own logarithm and summed."""

    def forward(self, x: Tensor) -> Tensor:
        p = torch.softmax(self.out(x), -1)
        return -(p * torch.log_softmax(self.out(x), -1)).sum(-1)


class Net(nn.Module):
    """GAT, then a layer, then classes."""

    def __init__(self, layer: nn.Module, head: bool = False) -> None:
        super().__init__()
        self.first, self.layer, self.out, self.head = GATConv(WIDTH, 4, heads=4), layer, nn.Linear(WIDTH, 4), head

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = torch.relu(self.first(x, edge_index))
        takes = isinstance(self.layer, (MessagePassing, PlainModule, GPSConv))
        x = x + (self.layer(x, edge_index) if takes else self.layer(x))
        return F.softmax(self.out(x), dim=-1) if self.head else self.out(x)


def graph() -> tuple[Tensor, Tensor, Tensor]:
    """Features, edges with an in-degree of about 6, classes."""
    torch.manual_seed(1)
    return torch.randn(NODES, WIDTH), torch.randint(0, NODES, (2, 6 * NODES)), torch.randint(0, 4, (NODES,))
