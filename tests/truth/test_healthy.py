"""Healthy programs through all three faces: none of them draws a warning, and their broken twins do."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

import gnnstab
from truth import batches as of
from truth.faces import ask, loud
from truth.healthy import HEALTHY, Run, squared
from truth.networks import WIDTH, Nodes

SUBSET = (
    "gat", "gps", "hgt", "hetero transformer", "unimp", "policy", "chain, gat", "large values behind a norm",
    "bag of words, gat", "auxiliary head", "imbalance", "pooled",
)  # fmt: skip
TRAINED = {"imbalance": 150, "pooled": 150, "large values behind a norm": 0, "bag of words, gat": 40}


@pytest.mark.slow
@pytest.mark.parametrize("name", SUBSET)
def test_no_face_warns(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said, losses = ask(name, TRAINED.get(name, 20))
    assert not losses or losses[-1] < losses[0]
    assert {face: [f"{f.code}: {f.message}" for f in found] for face, found in said.items() if found} == {}


def test_the_gallery_is_large() -> None:
    assert len(HEALTHY) >= 40
    assert set(SUBSET) <= set(HEALTHY)


class Skipping(Nodes):
    """Leaves out a layer of its width, or a head."""

    def __init__(self, forgotten: nn.Module) -> None:
        super().__init__()
        self.forgotten = forgotten


@pytest.mark.parametrize(
    "forgotten",
    [nn.Linear(WIDTH, WIDTH), nn.Linear(5, 2), nn.Linear(WIDTH, 3)],
    ids=["a layer", "what fits nowhere", "a head"],
)
def test_a_layer_that_is_not_called_is_told_and_not_blamed(forgotten: nn.Module) -> None:
    """What the loss cannot depend on harms no training: a template, another phase, or something that was forgotten."""
    diagnosis = gnnstab.diagnose(Skipping(forgotten), batch=of.nodes(), loss=squared)
    (found,) = [f for f in diagnosis.findings if f.code == "GS604"]
    assert found.severity == "info"
    assert "forgotten." in found.message


class Raw(nn.Module):
    """Large columns with or without a BatchNorm in front."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.net = norm, Nodes()

    def forward(self, batch: Data) -> Tensor:
        out: Tensor = self.net(Data(x=self.norm(batch.x), edge_index=batch.edge_index))
        return out


def test_a_fresh_batch_norm_counts_as_one() -> None:
    batch = of.nodes(scale=3000.0)
    assert loud(gnnstab.diagnose(Raw(nn.BatchNorm1d(8)), batch=batch, loss=squared).findings) == []
    found = loud(gnnstab.diagnose(Raw(nn.Identity()), batch=batch, loss=squared).findings)
    assert "GS406" in {f.code for f in found}


def test_a_fresh_batch_norm_over_a_single_row_still_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    diagnosis = gnnstab.diagnose(model, batch=(torch.randn(1, 4),), loss=lambda out, _: out.square().sum())
    assert diagnosis.findings is not None
    assert model.training and int(model[1].num_batches_tracked) == 0


def test_scores_that_were_blown_up_are_no_earned_sharpness() -> None:
    run = Run.of(HEALTHY["transformer"])
    run.steps(60)
    with torch.no_grad():
        for layer in run.model.convs:
            layer.lin_query.weight.mul_(30.0)
    diagnosis = gnnstab.diagnose(run.model, batch=run.batches[0], loss=squared, optimizer=run.optimizer)
    assert {"GS301", "GS302"} & {f.code for f in loud(diagnosis.findings)}


class Taught(Nodes):
    """Learns what a frozen map with wide weights says, or stands behind it."""

    def __init__(self, *, in_front: bool) -> None:
        super().__init__()
        self.in_front = in_front
        self.teacher = nn.Linear(8 if not in_front else WIDTH, 1 if not in_front else WIDTH).requires_grad_(False)
        with torch.no_grad():
            self.teacher.weight.mul_(12.0)

    def forward(self, batch: Data) -> Tensor:
        if self.in_front:
            out: Tensor = self.out(self.convs[0](self.teacher(self.inp(batch.x)), batch.edge_index)).squeeze(-1)
            return out
        return super().forward(batch) - self.teacher(batch.x).squeeze(-1)


@pytest.mark.parametrize(("in_front", "told"), [(False, []), (True, ["teacher"])])
def test_what_is_frozen_and_lets_no_gradient_through_was_not_drawn_by_this_run(in_front: bool, told: list[str]) -> None:
    diagnosis = gnnstab.diagnose(Taught(in_front=in_front), batch=of.nodes(), loss=squared)
    assert [f.layer for f in diagnosis.findings if f.code == "GS201" and f.signal == "place.gain"] == told
