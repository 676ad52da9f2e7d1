"""A first step whose graph has no edges is no picture of the run; a run of such graphs is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GATv2Conv, TransformerConv

import gnnstab

KINDS = {
    "GATConv": lambda: GATConv(8, 8, add_self_loops=False),
    "GATv2Conv": lambda: GATv2Conv(8, 8, add_self_loops=False),
    "TransformerConv": lambda: TransformerConv(8, 8, root_weight=False),
}


class Net(nn.Module):
    """Two layers without a term of the node itself."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.out = KINDS[kind](), KINDS[kind](), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        return self.out(self.second(self.first(x, edge_index).relu(), edge_index))


@pytest.mark.parametrize(("empty", "silent"), [({0}, True), ({0, 1, 2, 3, 4, 5, 6, 7}, False)], ids=["first", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_graph(kind: str, empty: set[int], silent: bool) -> None:
    torch.manual_seed(0)
    model, x, y = Net(kind), torch.randn(30, 8), torch.randint(0, 3, (30,))
    edges = torch.stack([torch.randint(0, 30, (150,)), torch.arange(30).repeat(5)])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        for step in range(8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x, edges[:, :0] if step in empty else edges), y)
            monitor.loss(loss)
            loss.backward()
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert (diagnosis.at_least("warning") == ()) is silent
    assert diagnosis.coverage.layers_observed == 2 or not silent


class Relations(nn.Module):
    """Two relations side by side, a ReLU behind each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.one, self.other, self.out = KINDS[kind](), KINDS[kind](), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return self.out(self.one(x, one).relu() + self.other(x, other).relu())


@pytest.mark.parametrize("dead", [False, True], ids=["without an edge", "dead"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_relation_without_an_edge(kind: str, dead: bool) -> None:
    """What it gives is 0 by no fault of its own, and of its attention there is nothing to see."""
    torch.manual_seed(0)
    edges = torch.stack([torch.randint(0, 30, (150,)), torch.arange(30).repeat(5)])
    model, y = Relations(kind), torch.randint(0, 3, (30,))
    if dead:
        nn.init.constant_(model.other.bias if kind != "TransformerConv" else model.other.lin_value.bias, -60.0)
    batch = (torch.randn(30, 8), edges, edges if dead else edges[:, :0])
    diagnosis = gnnstab.diagnose(model, batch=batch, loss=lambda out, _: nn.functional.cross_entropy(out, y))
    assert ("GS701" in {finding.code for finding in diagnosis.at_least("warning")}) is dead
    assert dead or diagnosis.at_least("warning") == ()
