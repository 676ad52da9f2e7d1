"""Steps that raise the loss behind a sum over neighbours: the sum is blamed where the same steps are calm with it divided, else the rate."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, TransformerConv

import gnnstab

NODES, WIDTH = 60, 16


class Neighbours(MessagePassing):
    """What the neighbours send, added up or averaged, beside the node's own."""

    def __init__(self, aggr: str) -> None:
        super().__init__(aggr=aggr)
        self.sent, self.own = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.own(x) + self.propagate(edge_index, x=self.sent(x))
        return out


class Network(nn.Module):
    def __init__(self, aggr: str) -> None:
        super().__init__()
        self.neighbours = Neighbours(aggr)
        self.conv = TransformerConv(WIDTH, WIDTH // 2, heads=2)
        self.out = nn.Linear(WIDTH, 1)
        nn.init.normal_(self.out.weight, std=0.02)  # What comes out is small at first, whatever comes in.

    def forward(self, data: Data) -> Tensor:
        h = self.neighbours(data.x, data.edge_index)
        out: Tensor = self.out(torch.relu(self.conv(h, data.edge_index) + h)).squeeze(-1)
        return out


def graph() -> Data:
    """Many edges that lead to few of the nodes; features far from zero add up."""
    g = torch.Generator().manual_seed(5)
    target = torch.multinomial(torch.rand(NODES, generator=g) ** 5 + 0.01, 1500, replacement=True, generator=g)
    source = torch.randint(0, NODES, (1500,), generator=g)
    x = torch.randn(NODES, 5, generator=g) + 1.0
    return Data(x=x, edge_index=torch.stack([source, target]), y=x[:, 0] - x[:, 1])


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


def diagnosed(face: str, aggr: str, rate: float) -> gnnstab.Diagnosis:
    torch.manual_seed(1)
    model, data = Network(aggr), graph()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    if face == "diagnose":
        return gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(15):
            optimizer.zero_grad()
            value = loss(model(data), data)
            value.backward()
            optimizer.step()
            monitor.loss(value)
    return monitor.diagnose()


@pytest.mark.parametrize("face", ["diagnose", "monitor"])
@pytest.mark.parametrize(
    ("aggr", "rate", "roots"),
    [("add", 1e-2, ["sum-aggregation"]), ("mean", 1e-2, []), ("mean", 1.0, ["learning-rate"])],
)
def test_the_sum_is_blamed_where_the_steps_are_calm_without_it(
    face: str, aggr: str, rate: float, roots: list[str]
) -> None:
    found = diagnosed(face, aggr, rate)
    assert [cause.cause for cause in found.root_causes()] == roots
    divided = {tuple(s.detail["calm_as_means"]) for s in found.signals if "calm_as_means" in s.detail}
    assert divided == ({("neighbours",)} if aggr == "add" else set())
