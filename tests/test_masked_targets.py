"""Targets that hold one number where nothing was measured, while a mask of the batch tells where: broken programs and their repaired twins."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.records import Diagnosis
from models.stacks import Stack, random_batch
from test_places import seeded
from trained import trained


def look(model: nn.Module, batch: Data, loss: Callable[[Tensor, Data], Tensor]) -> Diagnosis:
    return gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))


def train(model: nn.Module, batch: Data, loss: Callable[[Tensor, Data], Tensor]) -> Diagnosis:
    return trained(model, batch, loss, steps=40, lr=3e-3)


FACES = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


class Depths(nn.Module):
    """The depth of a lake at each buoy, by the buoys around."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.enter, self.conv, self.leave = nn.Linear(7, 24), GATv2Conv(24, 24), nn.Linear(24, 1)

    def forward(self, data: Data) -> Tensor:
        h = self.enter(data.x)
        out: Tensor = self.leave(F.elu(h + self.conv(h, data.edge_index))).squeeze(-1)
        return out


def lake(foretold: bool = False) -> Data:
    """A third of the buoys were never sounded; ``foretold``: a column of the input says at which the answer is −5."""
    g = seeded(4)
    x, edges = torch.randn(120, 7, generator=g), torch.randint(0, 120, (2, 600), generator=g)
    unsounded = torch.rand(120, generator=g) < 0.35
    depth = 0.8 * x[:, 1] - 0.5 * x[:, 4]
    x[:, 6] = unsounded.float() if foretold else x[:, 6]
    return Data(x=x, edge_index=edges, y=torch.where(unsounded, -5.0, depth), unsounded=unsounded)


def of_all(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


def of_the_known(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output[~data.unsounded], data.y[~data.unsounded])


@FACES
def test_marks_that_a_mask_tells_and_the_loss_does_not_leave_out(face: Callable[..., Diagnosis]) -> None:
    diagnosis = face(Depths(), lake(), of_all)
    (found,) = [f for f in diagnosis.findings if f.code == "GS406"]
    assert found.cause == "masking" and found.severity == "warning"
    assert "hold -5 in" in found.message and "`unsounded` of the batch tells just these" in found.message
    (cause,) = [c for c in diagnosis.causes if c.status == "root-cause"]
    assert cause.cause == "masking" and cause.how == "observed"


@FACES
def test_marks_that_the_loss_leaves_out_or_the_input_foretells_are_no_fault(face: Callable[..., Diagnosis]) -> None:
    for data, loss in ((lake(), of_the_known), (lake(foretold=True), of_all)):
        assert [f for f in face(Depths(), data, loss).findings if f.cause == "masking"] == []


class Species(nn.Module):
    """Which of three species nests in each tree, by the trees around."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.enter, self.conv, self.leave = nn.Linear(7, 24), GATv2Conv(24, 24), nn.Linear(24, 3)

    def forward(self, data: Data) -> Tensor:
        h = self.enter(data.x)
        out: Tensor = self.leave(F.elu(h + self.conv(h, data.edge_index)))
        return out


def forest() -> Data:
    """Two trees in three were never climbed: their species is −1."""
    g = seeded(7)
    x, edges = torch.randn(150, 7, generator=g), torch.randint(0, 150, (2, 700), generator=g)
    species = torch.randint(0, 3, (150,), generator=g)
    x[:, :3] += 4 * F.one_hot(species, 3)
    return Data(x=x, edge_index=edges, y=torch.where(torch.rand(150, generator=g) < 0.35, species, -1))


def as_the_first_class(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y.clamp(min=0))


def of_those_that_were_climbed(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y, ignore_index=-1)


def from_minus_one_on(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y + 1)


@FACES
def test_labels_below_zero_that_the_loss_takes_for_a_class(face: Callable[..., Diagnosis]) -> None:
    diagnosis = face(Species(), forest(), as_the_first_class)
    (found,) = [f for f in diagnosis.findings if f.code == "GS406"]
    assert found.cause == "masking" and found.severity == "warning"
    below = int((forest().y < 0).sum())
    assert f"`y` holds -1 in {below} of 150 rows, and the loss takes them for class 0" in found.message
    assert found.value == pytest.approx(below / 150)
    assert [c.cause for c in diagnosis.causes if c.status == "root-cause"] == ["masking"]


@FACES
def test_labels_below_zero_that_are_left_out_or_are_a_class_of_their_own_are_no_fault(
    face: Callable[..., Diagnosis],
) -> None:
    opinion = forest()
    opinion.y = (opinion.x[:, 0] * 2).round().clamp(-1, 1).long()
    for data, loss in ((forest(), of_those_that_were_climbed), (opinion, from_minus_one_on)):
        assert [f for f in face(Species(), data, loss).findings if f.cause == "masking"] == []


@pytest.mark.parametrize("given", [False, True])
def test_what_no_loss_has_read_is_not_called_harmless(given: bool) -> None:
    batch = Data(**random_batch(20), y=torch.randn(20, 16))
    batch.y[3, 1] = torch.nan
    known = ~batch.y.isnan()
    loss = (lambda output, batch: (output - batch.y)[known].square().mean()) if given else None
    found = gnnstab.diagnose(Stack(1), batch=batch, loss=loss).findings
    (finding,) = [f for f in found if f.code == "GS407" and f.layer == "y"]
    assert ("loss are finite" in finding.message, "was not seen" in finding.message) == (given, not given)
    assert finding.severity == "info"
