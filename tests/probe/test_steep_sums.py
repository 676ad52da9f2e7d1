"""What makes the first steps of an optimizer raise the loss: its rate, a sum over many neighbours, or batches that differ."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv, SimpleConv

import gnnstab
from gnnstab.records import Diagnosis

SHOPS = 30


class Ratings(nn.Module):
    """Numbers of shops from the orders that each of them has, and attention among the shops."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.orders = SimpleConv(aggr=reduction)
        self.inp = nn.Linear(4, 16)
        self.conv = GATv2Conv(16, 8, heads=2)
        self.out = nn.Linear(16, 1)

    def forward(self, data: Data) -> Tensor:
        h = self.inp(self.orders((data.x, data.x.new_zeros(SHOPS, 4)), data.edge_index))
        return self.out(h + self.conv(h, data.near).relu()).squeeze(-1)


def month(number: int, scale: float = 1.0) -> Data:
    g = torch.Generator().manual_seed(number)
    shop = torch.multinomial(torch.rand(SHOPS, generator=g) ** 4 + 0.01, 600, replacement=True, generator=g)
    x = torch.randn(600, 4, generator=g) + 2
    count = torch.bincount(shop, minlength=SHOPS).clamp(min=1)
    y = scale * torch.zeros(SHOPS).index_add_(0, shop, x[:, 0] - x[:, 1]) / count
    near = torch.randint(0, SHOPS, (2, 120), generator=g)
    return Data(x=x, y=y, near=near, edge_index=torch.stack([torch.arange(600), shop]), num_nodes=SHOPS)


def said(reduction: str, rate: float, scales: tuple[float, ...] = (1, 1, 1)) -> list[Diagnosis]:
    """Of a Monitor that is given no loss to call, and of `diagnose`."""
    torch.manual_seed(5)
    model = Ratings(reduction)
    fresh, months = copy.deepcopy(model), [month(number, scale) for number, scale in enumerate(scales)]
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(30):
            data = months[step % len(months)]
            optimizer.zero_grad()
            loss = squared(model(data), data)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            monitor.loss(loss)
    trial = torch.optim.Adam(fresh.parameters(), lr=rate)
    return [monitor.diagnose(), gnnstab.diagnose(fresh, batch=months[0], loss=squared, optimizer=trial)]


def squared(output: Tensor, data: Data) -> Tensor:
    return nn.functional.mse_loss(output, data.y)


@pytest.mark.parametrize(
    ("reduction", "rate", "root"),
    [("sum", 1e-2, ["sum-aggregation"]), ("mean", 1e-2, []), ("mean", 1.0, ["learning-rate"])],
)
def test_the_rate_is_blamed_where_no_sum_explains_the_rise(reduction: str, rate: float, root: list[str]) -> None:
    assert [[cause.cause for cause in d.root_causes()] for d in said(reduction, rate)] == [root, root]


def test_losses_of_batches_that_differ_are_no_rise() -> None:
    monitor, _ = said("mean", 2e-2, scales=(1, 4, 4))
    moved = next(s.value for s in monitor.signals if s.name == "optimizer.output_move")
    rise = next(s.value for s in monitor.signals if s.name == "loss.first_rise")
    assert moved > 4 and rise > 5
    assert not monitor.root_causes()
