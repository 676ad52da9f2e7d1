"""The network of the document that the project grew from, written anew from its description.

A multi-agent actor: an embedding that sums over incoming edges, then three TransformerConvs (see tests/data/README.md).
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, TransformerConv

DATA = Path(__file__).resolve().parent.parent / "data" / "informarl"
PREFIX = "gnn_base.gnn."


class EmbedConv(MessagePassing):
    """Embeds entities and sums the messages; no term for the node itself.

    Args:
        aggr: Reduction over incoming messages; the real network has ``add``.
        root: Adds a linear term of the node's own features (the real network has none).
        norm: Adds a LayerNorm after the aggregation (the real network has none).
    """

    def __init__(self, aggr: str = "add", root: bool = False, norm: bool = False) -> None:
        super().__init__(aggr=aggr)
        self.entity_embed = nn.Embedding(3, 2)
        self.lin1 = nn.Linear(9, 16)
        self.layer_norm = nn.LayerNorm(16)
        activation = nn.ReLU()
        # The same activation and the same LayerNorm are used twice, so the norm's tensors appear twice in a file.
        self.layers = nn.ModuleList([nn.Linear(16, 16), activation, self.layer_norm])
        self.activation = activation
        self.lin_root = nn.Linear(8, 16) if root else None
        self.norm = nn.LayerNorm(16) if norm else None

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x, edge_attr=edge_attr)
        if self.norm is not None:
            out = self.norm(out)
        if self.lin_root is not None:
            out = out + self.lin_root(self.embed(x))
        return out

    def embed(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :-1], self.entity_embed(x[:, -1].long())], dim=-1)

    def message(self, x_j: Tensor, edge_attr: Tensor) -> Tensor:
        out = self.lin1(torch.cat([self.embed(x_j), edge_attr], dim=-1))
        out = self.layer_norm(self.activation(out))
        for layer in self.layers:
            out = layer(out)
        return out


class TransformerConvNet(nn.Module):
    """Embedding, then ``1 + layers`` TransformerConvs with a ReLU after each; called on one stacked PyG graph."""

    def __init__(self, layers: int = 2, aggr: str = "add", root: bool = False, norm: bool = False, **conv: Any) -> None:
        super().__init__()
        options: dict[str, Any] = {"heads": 3, "concat": False, "beta": False, "dropout": 0.0, "edge_dim": 1, **conv}
        self.embed_layer = EmbedConv(aggr, root, norm)
        self.gnn1 = TransformerConv(16, 16, **options)
        self.gnn2 = nn.ModuleList([TransformerConv(16, 16, **options) for _ in range(layers)])
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x = self.embed_layer(x, edge_index, edge_attr)
        x = self.activation(self.gnn1(x, edge_index, edge_attr))
        for conv in self.gnn2:
            x = self.activation(conv(x, edge_index, edge_attr))
        return x


class Actor(nn.Module):
    """The graph part of the actor: a dense batch in, the row of each graph's own agent out, (batch, 16).

    Keyword arguments are those of the sample batches, so that a batch file can be passed as it is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.gnn = TransformerConvNet(**options)

    def forward(self, node_obs: Tensor, adj: Tensor, agent_id: Tensor, obs: Tensor | None = None) -> Tensor:
        x, edge_index, edge_attr = stack_graphs(node_obs, adj)
        nodes = self.gnn(x, edge_index, edge_attr).view(*node_obs.shape[:2], -1)
        index = agent_id.long().view(-1, 1, 1).expand(-1, 1, nodes.size(-1))
        return nodes.gather(1, index).squeeze(1)


def stack_graphs(node_obs: Tensor, adj: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One graph of all (b, i, j) with 0 < adj < 1: features (B·n, 7), edges i → j (2, E), distances (E, 1)."""
    graph, source, target = ((adj > 0) & (adj < 1)).nonzero(as_tuple=True)
    nodes = node_obs.size(1)
    edge_index = torch.stack([graph * nodes + source, graph * nodes + target])
    return node_obs.flatten(0, 1), edge_index, adj[graph, source, target].unsqueeze(-1)


def actor() -> Actor:
    """Factory without arguments, for ``--model models.informarl:actor``."""
    return Actor()


def load_actor(run: str = "agents7_default", **options: Any) -> Actor:
    """The actor with the weights of a real run; the file holds an MLP, a GRU and heads besides, left out here."""
    state = torch.load(DATA / run / "actor.pt", weights_only=True)
    part = OrderedDict((k.removeprefix("gnn_base."), v) for k, v in state.items() if k.startswith("gnn_base."))
    model = Actor(**options)
    model.load_state_dict(part, strict=not options)
    return model.eval()


def sample_batch(agents: int = 7) -> dict[str, Tensor]:
    """The real batch of 64 graphs, as keyword arguments of `Actor.forward`."""
    batch: dict[str, Tensor] = torch.load(DATA / f"sample_batch_{agents}agents.pt", weights_only=True)
    return batch


def reference(agents: int = 7) -> dict[str, Tensor]:
    """What the real network computed on the sample batch."""
    tensors: dict[str, Tensor] = torch.load(DATA / f"reference_{agents}agents.pt", weights_only=True)
    return tensors


def policy_loss(output: Tensor, batch: Any) -> Tensor:
    """A stand-in for the policy objective: the mean squared output of every agent."""
    return output.pow(2).mean()
