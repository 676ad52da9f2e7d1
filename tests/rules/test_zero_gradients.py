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


class Liked(nn.Module):
    """Embeddings of users and items, whose product is the rating; nothing has a slope where all of them are 0."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        self.table, self.conv = nn.Embedding(30, 6), GATConv(6, 6, bias=False)
        if not drawn:
            nn.init.zeros_(self.table.weight)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        z = self.table.weight + self.conv(self.table.weight, edge_index)
        return (z * z.roll(1, 0)).sum(-1)


class Branch(nn.Module):
    """A branch whose last map begins at 0, as residual branches often do, or all of whose maps do."""

    def __init__(self, drawn: bool) -> None:
        super().__init__()
        self.inp, self.conv, self.last, self.out = nn.Linear(6, 8), GATConv(8, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        nn.init.zeros_(self.last.weight)
        if not drawn:
            for parameter in self.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.inp(x)
        return self.out(h + self.last(self.conv(h, edge_index))).squeeze(-1)


@pytest.mark.parametrize("make", [Liked, Branch])
@pytest.mark.parametrize("face", [asked, watched])
def test_weights_of_zero_are_the_root_of_gradients_of_zero(
    make: Callable[[bool], nn.Module], face: Callable[[nn.Module], Diagnosis]
) -> None:
    torch.manual_seed(0)
    found = face(make(False))
    (told,) = [f for f in found.findings if f.code == "GS201"]
    assert "table.weight" in told.message if make is Liked else "inp.weight" in told.message
    assert [cause.cause for cause in found.root_causes()] == ["unsuitable-init"]
    assert not face(make(True)).at_least("warning")
