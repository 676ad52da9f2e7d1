"""Gates behind a bias that somebody filled with a number which shuts them, beside gates that are merely low."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.records import Diagnosis


class Rumours(nn.Module):
    """What one is told goes through a gate, as in a highway network."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.hear = nn.Linear(6, 16), GATv2Conv(16, 16)
        self.gate, self.leave = nn.Linear(32, 16), nn.Linear(16, 1)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x))
        told = torch.tanh(self.hear(h, edge_index))
        gate = torch.sigmoid(self.gate(torch.cat([h, told], 1)))
        out: Tensor = self.leave((1 - gate) * h + gate * told).squeeze(1)
        return out


def town() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, edges = torch.randn(60, 6, generator=g), torch.randint(0, 60, (2, 240), generator=g)
    return x, edges, torch.zeros(60).index_add(0, edges[1], x[edges[0], 0]) / 4


def asked(model: nn.Module) -> Diagnosis:
    x, edges, y = town()
    return gnnstab.diagnose(model, batch=(x, edges), loss=lambda out, _: (out - y).square().mean())


def watched(model: nn.Module) -> Diagnosis:
    x, edges, y = town()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            (model(x, edges) - y).square().mean().backward()
            optimizer.step()
    return monitor.diagnose()


@pytest.mark.parametrize("face", [asked, watched])
@pytest.mark.parametrize(("bias", "shut"), [(-15.0, True), (15.0, True), (-4.0, False)])
def test_a_gate_that_was_filled_shut_is_the_root(
    face: Callable[[nn.Module], Diagnosis], bias: float, shut: bool
) -> None:
    diagnosis = face(Rumours(bias))
    assert [f.layer for f in diagnosis.findings if f.code == "GS104"] == ["gate"] * shut
    assert ("saturated-gate" in [root.cause for root in diagnosis.root_causes()]) == shut
    assert all(
        f"(its bias is {bias:.0f}" in f.message or "14." in f.message for f in diagnosis.findings if f.code == "GS104"
    )
