"""Small networks around TransformerConv for the tests of the probe, each with a batch that it accepts."""

# No annotations as text here: the `torch.fx` of torch 2.6, which `to_hetero` uses, cannot write those of a forward.
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric import EdgeIndex
from torch_geometric.nn import GCNConv, HeteroConv, TransformerConv, to_hetero

NODES, EDGES, WIDTH = 12, 40, 8


class Stack(nn.Module):
    """TransformerConvs with an in-place ReLU after each."""

    def __init__(self, layers: int = 2, conv: type[nn.Module] = TransformerConv, **options: Any) -> None:
        super().__init__()
        options = {"heads": 2, "concat": False, "edge_dim": 3, **options}
        width = WIDTH // options["heads"] if options["concat"] else WIDTH
        self.convs = nn.ModuleList([conv(WIDTH, width, **options) for _ in range(layers)])

    def forward(self, x: Tensor, edge_index: Any, edge_attr: Tensor | None = None) -> Tensor:
        for conv in self.convs:
            x = conv(x, edge_index, edge_attr).relu_()
        return x


class SquareRoot(Stack):
    """Between its layers stands something finite whose gradient at 0 is infinite, where ``broken``."""

    broken = False

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        x = self.convs[0](x, edge_index, edge_attr)
        return self.convs[1]((0 * x).sqrt() if self.broken else x, edge_index, edge_attr)


class Shared(nn.Module):
    """One layer called three times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for _ in range(3):
            x = self.conv(x, edge_index).tanh()
        return x


class Bipartite(nn.Module):
    """Sources and targets are different nodes of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv((WIDTH, 5), WIDTH, heads=2, beta=True)

    def forward(self, sources: Tensor, targets: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv((sources, targets), edge_index)


class Hetero(nn.Module):
    """Two edge types through HeteroConv, and a layer of another family."""

    def __init__(self) -> None:
        super().__init__()
        self.first = HeteroConv(
            {
                ("a", "to", "b"): TransformerConv((WIDTH, WIDTH), WIDTH, heads=2, concat=False),
                ("b", "back", "a"): TransformerConv((WIDTH, WIDTH), WIDTH, heads=2, concat=False),
            }
        )
        self.last = GCNConv(WIDTH, WIDTH)

    def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor], plain: Tensor) -> Tensor:
        return self.last(self.first(x, edges)["b"].relu(), plain)


class Plain(nn.Module):
    """What `to_hetero` is applied to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv((-1, -1), WIDTH)
        self.second = TransformerConv((-1, -1), WIDTH, heads=2, concat=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.conv(x, edge_index).relu(), edge_index)


@dataclass(frozen=True)
class Case:
    """A network, its arguments, and how its output becomes a scalar."""

    name: str
    build: Callable[[], tuple[nn.Module, tuple[Any, ...]]]

    def make(self) -> tuple[nn.Module, tuple[Any, ...]]:
        """The same network and arguments at every call."""
        torch.manual_seed(7)
        return self.build()


def graph(nodes: int = NODES, edges: int = EDGES) -> tuple[Tensor, Tensor, Tensor]:
    """Node features (N, 8), edges (2, E), edge features (E, 3)."""
    return torch.randn(nodes, WIDTH), torch.randint(0, nodes, (2, edges)), torch.randn(edges, 3)


def scalar(output: Any) -> Tensor:
    """A loss of any output."""
    return sum(out.square().mean() for out in output.values()) if isinstance(output, dict) else output.square().mean()


def _stack(**options: Any) -> Callable[[], tuple[nn.Module, tuple[Any, ...]]]:
    def build() -> tuple[nn.Module, tuple[Any, ...]]:
        x, edge_index, edge_attr = graph()
        edge_dim = options.get("edge_dim", 3)
        return Stack(**options), (x, edge_index, edge_attr) if edge_dim else (x, edge_index)

    return build


def _sparse() -> tuple[nn.Module, tuple[Any, ...]]:
    x, edge_index, _ = graph()
    adjacency = torch.sparse_coo_tensor(edge_index, torch.ones(EDGES), (NODES, NODES), check_invariants=True).coalesce()
    return Stack(edge_dim=None), (x, adjacency)


def _edge_index() -> tuple[nn.Module, tuple[Any, ...]]:
    x, edge_index, _ = graph()
    ordered = EdgeIndex(edge_index, sparse_size=(NODES, NODES)).sort_by("col").values
    return Stack(edge_dim=None), (x, ordered)


def _shared() -> tuple[nn.Module, tuple[Any, ...]]:
    x, edge_index, _ = graph()
    return Shared(), (x, edge_index)


def _bipartite() -> tuple[nn.Module, tuple[Any, ...]]:
    sources, targets = torch.randn(NODES, WIDTH), torch.randn(6, 5)
    edges = torch.stack([torch.randint(0, NODES, (EDGES,)), torch.randint(0, 6, (EDGES,))])
    return Bipartite(), (sources, targets, edges)


def _hetero_batch() -> tuple[dict[str, Tensor], dict[Any, Tensor]]:
    x = {"a": torch.randn(NODES, WIDTH), "b": torch.randn(6, WIDTH)}
    there = torch.stack([torch.randint(0, NODES, (EDGES,)), torch.randint(0, 6, (EDGES,))])
    return x, {("a", "to", "b"): there, ("b", "back", "a"): there.flip(0)}


def _hetero() -> tuple[nn.Module, tuple[Any, ...]]:
    x, edges = _hetero_batch()
    return Hetero(), (x, edges, torch.randint(0, 6, (2, 20)))


def _to_hetero() -> tuple[nn.Module, tuple[Any, ...]]:
    x, edges = _hetero_batch()
    model = to_hetero(Plain(), (["a", "b"], list(edges)))
    model(x, edges)
    return model, (x, edges)


CASES = (
    Case("plain", _stack()),
    Case("concat", _stack(concat=True)),
    Case("beta", _stack(beta=True)),
    Case("no-root", _stack(root_weight=False)),
    Case("no-edge-features", _stack(edge_dim=None)),
    Case("dropout", _stack(dropout=0.3)),
    Case("no-bias", _stack(bias=False, heads=1)),
    Case("sparse", _sparse),
    Case("edge-index", _edge_index),
    Case("shared", _shared),
    Case("bipartite", _bipartite),
    Case("hetero", _hetero),
    Case("to-hetero", _to_hetero),
)
"""Every shape of network that the monitor must leave alone."""
