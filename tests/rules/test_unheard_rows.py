"""Rows that no message reaches, at which the loss of a run stays high, beside a run that has all its edges and one whose answer needs none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import gnnstab

WELLS = 60


class Wells(nn.Module):
    """The level of each well, from its own readings and those of the wells upstream."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.hear = nn.Linear(3, 16), GATConv(16, 16, add_self_loops=False)
        self.leave = nn.Linear(32, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.enter(x)
        out: Tensor = self.leave(torch.cat([h, self.hear(h, edge_index)], 1)).squeeze(1)
        return out


@pytest.mark.parametrize(("kept", "upstream", "named"), [(12, 1.0, True), (WELLS, 1.0, False), (12, 0.0, False)])
def test_nodes_that_hear_of_nobody_are_the_root_where_the_loss_stays_theirs(
    kept: int, upstream: float, named: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(WELLS, 3, generator=g)
    source, target = torch.randint(0, WELLS, (WELLS,), generator=g), torch.arange(WELLS)
    y = 0.5 * x[:, 0] + upstream * x[source, 1]
    edges = torch.stack([source, target])[:, target < kept]
    model = Wells()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(120):
            optimizer.zero_grad()
            loss = (model(x, edges) - y).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    roots = [cause.cause for cause in monitor.diagnose().root_causes()]
    assert roots == (["isolated-nodes"] if named else [])
