"""Non-finite weights that a model is given with: memory that nobody wrote, or what a file has brought."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv

import gnnstab

WIDTH = 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = GATConv(4, WIDTH), nn.Linear(WIDTH, 1)
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.out(self.conv(data.x, data.edge_index) * self.gain).squeeze(-1)
        return out


def batch() -> Data:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20, 4, generator=g)
    return Data(x=x, edge_index=torch.randint(0, 20, (2, 80), generator=g), y=x[:, 0])


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


@pytest.mark.parametrize(
    ("held", "stepped", "cause"),
    [
        ([torch.nan] * WIDTH, False, "uninitialized-parameter"),
        ([torch.nan, 1e-41, 0.0, 2e33, *[1.0] * 4], False, "uninitialized-parameter"),
        ([torch.nan, *[1.0] * 7], False, "non-finite-data"),
        ([torch.nan] * WIDTH, True, "non-finite-data"),
    ],
)
def test_a_parameter_that_begins_with_memory_as_it_was(held: list[float], stepped: bool, cause: str) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    if stepped:
        loss(model(batch()), batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer).root_causes() == ()
    with torch.no_grad():
        model.gain.copy_(torch.tensor(held))
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer)
    assert [one.cause for one in found.root_causes()] == [cause]
    assert "gain" in found.root_causes()[0].reason
