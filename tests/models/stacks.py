"""Small stacks of TransformerConvs whose true behaviour is known."""

# No annotations as text here: the `torch.fx` of torch 2.6, which `to_hetero` uses, cannot write those of a forward.
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import HeteroConv, MessagePassing, TransformerConv, to_hetero
from torch_geometric.utils import erdos_renyi_graph


class Stack(nn.Module):
    """``depth`` layers of one width; ``residual``, ``pre_norm`` as a user would write them in forward."""

    def __init__(
        self,
        depth: int = 4,
        width: int = 16,
        residual: float = 0.0,
        pre_norm: bool = False,
        activation: str = "relu",
        **conv: Any,
    ) -> None:
        super().__init__()
        conv = {"heads": 1, **conv}
        self.convs = nn.ModuleList([TransformerConv(width, width, **conv) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)]) if pre_norm else None
        self.residual, self.activation = residual, activation

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        activate = getattr(torch, self.activation)
        for number, conv in enumerate(self.convs):
            inner = self.norms[number](x) if self.norms is not None else x
            new = activate(conv(inner, edge_index))
            x = new + self.residual * x if self.residual else new
        return x


class SumThenAttention(nn.Module):
    """A message-passing module that sums raw features, then one attention layer."""

    class Sum(MessagePassing):
        def __init__(self, width: int) -> None:
            super().__init__(aggr="add")
            self.lin = nn.Linear(width, width)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.propagate(edge_index, x=self.lin(x))
            return out

        def message(self, x_j: Tensor) -> Tensor:
            return x_j

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = self.Sum(width)
        self.conv = TransformerConv(width, width)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(self.embed(x, edge_index), edge_index)
        return out


EDGE_TYPES = [("user", "rates", "item"), ("item", "rated_by", "user")]


class Hetero(nn.Module):
    """Two HeteroConv layers over users and items."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [HeteroConv({t: TransformerConv((width, width), width) for t in EDGE_TYPES}) for _ in range(3)]
        )

    def forward(self, x_dict: dict[str, Tensor], edge_index_dict: dict[Any, Tensor]) -> dict[str, Tensor]:
        for layer in self.layers:
            x_dict = {k: F.relu(v) for k, v in layer(x_dict, edge_index_dict).items()}
        return x_dict


def transformed(width: int = 8) -> nn.Module:
    """A two-layer homogeneous model turned heterogeneous by PyG's ``to_hetero``."""
    return to_hetero(Stack(3, width), (["user", "item"], EDGE_TYPES), aggr="sum")


def hetero_batch(width: int = 8) -> dict[str, Any]:
    """Arguments of `Hetero.forward`."""
    generator = torch.Generator().manual_seed(1)
    x = {"user": torch.randn(6, width, generator=generator), "item": torch.randn(5, width, generator=generator)}
    sizes = {("user", "rates", "item"): (6, 5), ("item", "rated_by", "user"): (5, 6)}
    edges = {t: torch.stack([torch.randint(0, n, (14,), generator=generator) for n in sizes[t]]) for t in EDGE_TYPES}
    return {"x_dict": x, "edge_index_dict": edges}


def random_batch(nodes: int = 64, degree: int = 8, width: int = 16, seed: int = 0) -> dict[str, Tensor]:
    """Gaussian features on an Erdős–Rényi graph, as keyword arguments; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"x": torch.randn(nodes, width), "edge_index": erdos_renyi_graph(nodes, degree / (nodes - 1))}
