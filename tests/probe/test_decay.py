"""A weight decay that takes away what is learned: told by its size, or by steps on a copy without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import gnnstab

EDGES = torch.stack(
    [torch.arange(60).repeat_interleave(3), torch.randint(0, 60, (180,), generator=torch.Generator().manual_seed(2))]
)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATConv(5, 16, heads=2)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x, EDGES)).squeeze(-1)
        return out


def diagnosed(optimizer: Any) -> gnnstab.Diagnosis:
    torch.manual_seed(0)
    model, x = Reader(), torch.randn(60, 5)
    y = 3 * x[EDGES[0], 0].view(60, 3).mean(-1) + 2
    return gnnstab.diagnose(
        model, batch=x, loss=lambda out, _: (out - y).square().mean(), optimizer=optimizer(model.parameters())
    )


@pytest.mark.parametrize(
    ("optimizer", "codes"),
    [
        (lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=20), {"GS606", "GS609"}),
        (lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=50), {"GS609"}),
        (lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1e-2), set()),
        (lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=1.2), set()),  # Leaves weights of up to .8.
        (lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=5e-4), set()),
    ],
)
def test_a_decay_of_too_much_is_the_cause_and_its_fix_is_no_lower_rate(optimizer: Any, codes: set[str]) -> None:
    found = diagnosed(optimizer)
    assert {f.code for f in found.findings if f.severity != "info"} == codes
    roots = [cause for cause in found.causes if cause.status == "root-cause"]
    assert [cause.cause for cause in roots] == ["learning-rate"] * bool(codes)
    assert [advice.fix for cause in roots for advice in cause.fixes] == ["lower-decay"] * bool(codes)
    assert all("decay" in f.message for f in found.findings if f.code in codes)
    assert all('group["weight_decay"] = ' in advice.change for cause in roots for advice in cause.fixes)


def test_a_rate_that_is_too_high_has_no_fix_for_its_decay() -> None:
    found = diagnosed(lambda p: torch.optim.SGD(p, lr=30.0))
    offered = [advice.fix for cause in found.causes if cause.status == "root-cause" for advice in cause.fixes]
    assert "lower-lr" in offered
    assert "lower-decay" not in offered


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(50, 128), nn.Linear(128, 4)
        self.convs = nn.ModuleList(GATConv(128, 64, heads=2) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x).relu()
        for conv in self.convs:
            x = conv(x, EDGES).relu()
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize(("decay", "codes"), [(0.01, set()), (0.2, {"GS609"})])
def test_a_decay_that_only_slows_a_model_down_is_no_cause(decay: float, codes: set[str]) -> None:
    """Without it 30 steps go four times further; with the smaller one a hundred steps learn all the same."""
    g = torch.Generator().manual_seed(1)
    y, words = torch.randint(0, 4, (60,), generator=g), 0.5 * torch.rand(4, 50, generator=g)
    x = (torch.rand(60, 50, generator=g) < words[y]).float()
    torch.manual_seed(0)
    model = Words()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=decay)
    found = gnnstab.diagnose(
        model, batch=x, loss=lambda out, _: nn.functional.cross_entropy(out, y), optimizer=optimizer
    )
    assert {f.code for f in found.findings if f.severity != "info"} == codes
