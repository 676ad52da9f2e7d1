"""A clamp in front of which parameters had a gradient until training brought their values to its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv

import gnnstab
from trained import take_step

NODES = 40


class Bounded(nn.Module):
    """Bounds what a layer hands on, as after a run that had exploded."""

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.conv, self.out, self.bound = (
            GATConv(4, 16),
            nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)),
            bound,
        )

    def forward(self, data: Data) -> Tensor:
        answer: Tensor = self.out(self.conv(data.x, data.edge_index).clamp(-self.bound, self.bound)).squeeze(-1)
        return answer


@pytest.mark.parametrize(("bound", "roots"), [(4e-3, ["active-clamp"]), (20.0, [])])
def test_a_clamp_that_ends_all_gradients_in_the_run_is_the_root(bound: float, roots: list[str]) -> None:
    """The nodes that it makes alike follow; parameters that were updated once are none that never were."""
    g = torch.Generator().manual_seed(1)
    x, edges = 2 + 0.5 * torch.randn(NODES, 4, generator=g), torch.randint(0, NODES, (2, 160), generator=g)
    near = torch.zeros(NODES).index_add(0, edges[1], x[edges[0], 0]) / torch.bincount(
        edges[1], minlength=NODES
    ).clamp_min(1)
    data = Data(x=x, edge_index=edges, y=4 * (near - near.mean()))
    torch.manual_seed(0)
    model = Bounded(bound)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(80):
            take_step(optimizer, nn.functional.mse_loss(model(data), data.y), monitor)
    found = monitor.diagnose()
    assert [cause.cause for cause in found.root_causes()] == roots
    assert {f.explained_by for f in found.findings if f.code == "GS704"} <= {"GS703"}
    assert not [f for f in found.findings if f.code == "GS604"]
