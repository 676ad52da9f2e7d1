"""What makes the first steps of an optimizer raise the loss: its rate, a sum over many neighbours, or batches that differ."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, MessagePassing, SimpleConv, TransformerConv

import gnnstab
from gnnstab.records import Diagnosis
from trained import take_step

SHOPS, NODES, WIDTH = 30, 60, 16


class Ratings(nn.Module):
    """Numbers of shops from the orders that each of them has, and attention among the shops."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.neighbours = SimpleConv(aggr=reduction)
        self.inp = nn.Linear(4, WIDTH)
        self.conv = GATv2Conv(WIDTH, WIDTH // 2, heads=2)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, data: Data) -> Tensor:
        h = self.inp(self.neighbours((data.x, data.x.new_zeros(SHOPS, 4)), data.edge_index))
        return self.out(h + self.conv(h, data.near).relu()).squeeze(-1)


def month(number: int, scale: float = 1.0) -> Data:
    g = torch.Generator().manual_seed(number)
    shop = torch.multinomial(torch.rand(SHOPS, generator=g) ** 4 + 0.01, 600, replacement=True, generator=g)
    x = torch.randn(600, 4, generator=g) + 2
    count = torch.bincount(shop, minlength=SHOPS).clamp(min=1)
    y = scale * torch.zeros(SHOPS).index_add_(0, shop, x[:, 0] - x[:, 1]) / count
    near = torch.randint(0, SHOPS, (2, 120), generator=g)
    return Data(x=x, y=y, near=near, edge_index=torch.stack([torch.arange(600), shop]), num_nodes=SHOPS)


class Neighbours(MessagePassing):
    """What the neighbours send, added up or averaged, beside the node's own."""

    def __init__(self, aggr: str) -> None:
        super().__init__(aggr=aggr)
        self.sent, self.own = nn.Linear(5, WIDTH), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.own(x) + self.propagate(edge_index, x=self.sent(x))
        return out


class Network(nn.Module):
    """What comes out is small at first, whatever comes in."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.neighbours = Neighbours(reduction)
        self.conv = TransformerConv(WIDTH, WIDTH // 2, heads=2)
        self.out = nn.Linear(WIDTH, 1)
        nn.init.normal_(self.out.weight, std=0.02)

    def forward(self, data: Data) -> Tensor:
        h = self.neighbours(data.x, data.edge_index)
        return self.out(torch.relu(self.conv(h, data.edge_index) + h)).squeeze(-1)


def crowded(number: int) -> Data:
    """Many edges that lead to few of the nodes; features far from zero add up."""
    g = torch.Generator().manual_seed(5)
    target = torch.multinomial(torch.rand(NODES, generator=g) ** 5 + 0.01, 1500, replacement=True, generator=g)
    source = torch.randint(0, NODES, (1500,), generator=g)
    x = torch.randn(NODES, 5, generator=g) + 1.0
    return Data(x=x, edge_index=torch.stack([source, target]), y=x[:, 0] - x[:, 1])


def squared(output: Tensor, data: Data) -> Tensor:
    return nn.functional.mse_loss(output, data.y)


def said(model: nn.Module, batches: list[Data], rate: float, steps: int = 30) -> list[Diagnosis]:
    """Of a Monitor that is given no loss to call, and of `diagnose`."""
    fresh = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(steps):
            data = batches[step % len(batches)]
            take_step(optimizer, squared(model(data), data), monitor)
    trial = torch.optim.Adam(fresh.parameters(), lr=rate)
    return [monitor.diagnose(), gnnstab.diagnose(fresh, batch=batches[0], loss=squared, optimizer=trial)]


@pytest.mark.parametrize(
    ("make", "batch", "steps", "seed"), [(Ratings, month, 30, 5), (Network, crowded, 15, 1)], ids=["shops", "nodes"]
)
@pytest.mark.parametrize(
    ("reduction", "rate", "root"),
    [("sum", 1e-2, ["sum-aggregation"]), ("mean", 1e-2, []), ("mean", 1.0, ["learning-rate"])],
)
def test_the_rate_is_blamed_where_no_sum_explains_the_rise(
    make: Callable[[str], nn.Module],
    batch: Callable[[int], Data],
    steps: int,
    seed: int,
    reduction: str,
    rate: float,
    root: list[str],
) -> None:
    torch.manual_seed(seed)
    for found in said(make(reduction), [batch(number) for number in range(3)], rate, steps):
        assert [cause.cause for cause in found.root_causes()] == root
        divided = {tuple(s.detail["calm_as_means"]) for s in found.signals if "calm_as_means" in s.detail}
        assert make is Ratings or divided == ({("neighbours",)} if reduction == "sum" else set())


def test_losses_of_batches_that_differ_are_no_rise() -> None:
    torch.manual_seed(5)
    monitor, _ = said(Ratings("mean"), [month(number, scale) for number, scale in enumerate((1, 4, 4))], 2e-2)
    moved = next(s.value for s in monitor.signals if s.name == "optimizer.output_move")
    rise = next(s.value for s in monitor.signals if s.name == "loss.first_rise")
    assert moved > 4 and rise > 5
    assert not monitor.root_causes()
