"""A loss behind an operation without a derivative: gradients exist and are exactly 0."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv

import gnnstab
from gnnstab.records import Diagnosis
from trained import trained


class Counting(nn.Module):
    """Predicts a count for every node, as a whole number or as it is."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.conv, self.head, self.whole = GATConv(6, 8), nn.Linear(8, 1), whole

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = 3 + 2 * self.head(torch.tanh(self.conv(x, edge_index)))
        return torch.round(out) if self.whole else out


def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(30, 6, generator=generator), torch.randint(0, 30, (2, 150), generator=generator)


def loss(output: Tensor, batch: object) -> Tensor:
    return (output - 2.6).square().mean()


def asked(model: nn.Module) -> Diagnosis:
    return gnnstab.diagnose(model, batch=graph(), loss=loss)


def watched(model: nn.Module) -> Diagnosis:
    return trained(model, graph(), loss, steps=20)


@pytest.mark.parametrize("face", [asked, watched])
def test_a_rounded_prediction_is_named_and_its_twin_is_not(face: Callable[[nn.Module], Diagnosis]) -> None:
    torch.manual_seed(0)
    (finding,) = [f for f in face(Counting(True)).findings if f.code == "GS604"]
    assert finding.severity in ("warning", "error")
    assert "exactly 0" in finding.message and "round" in finding.message
    assert not [f for f in face(Counting(False)).findings if f.code == "GS604"]


def test_a_loss_that_is_zero_needs_no_gradient() -> None:
    torch.manual_seed(0)

    def satisfied(output: Tensor, batch: object) -> Tensor:
        return (output - 100).clamp(min=0).mean()

    found = gnnstab.diagnose(Counting(False), batch=graph(), loss=satisfied).findings
    assert not [f for f in found if f.code == "GS604"]
