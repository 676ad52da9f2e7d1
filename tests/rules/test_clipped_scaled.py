"""Gradients that are clipped while a GradScaler's scale is on them, beside those that are clipped as they should, and those that no limit shortens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import gnnstab


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = GATConv(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x, edge_index).relu()).squeeze(1)
        return out


@pytest.mark.parametrize(
    ("unscales", "limit", "named"), [(False, 0.5, True), (True, 0.5, False), (True, 1e-3, False), (True, 1e6, False)]
)
def test_a_clipping_in_front_of_unscale_is_named_with_its_limit(unscales: bool, limit: float, named: bool) -> None:
    g = torch.Generator().manual_seed(0)
    x, edges = torch.randn(40, 5, generator=g), torch.randint(0, 40, (2, 160), generator=g)
    model = Net()
    optimizer, scaler = torch.optim.SGD(model.parameters(), 0.1), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with gnnstab.Monitor(model, optimizer=optimizer, scaler=scaler, on_finding="ignore") as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            loss = (model(x, edges) - x[:, 0]).square().mean()
            scaler.scale(loss).backward()
            if unscales:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), limit)
            scaler.step(optimizer)
            scaler.update()
            monitor.loss(loss)
    diagnosis = monitor.diagnose()
    found = [f.message for f in diagnosis.findings if f.code == "GS606"]
    assert [f"clipped to a norm of {limit:g} while they are still scaled by 6.554e+04" in one for one in found] == [
        True
    ] * named
    changes = [
        fix.change for root in diagnosis.root_causes() if root.cause == "learning-rate" for fix in root.fixes[:1]
    ]
    assert [
        "scaler.unscale_(optimizer)" in one and f"clip_grad_norm_(model.parameters(), {limit:g})" in one
        for one in changes
    ] == [True] * named
