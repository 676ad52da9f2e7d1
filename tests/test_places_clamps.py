"""Clamps of inputs and of the output: of another scale, at a cutoff, and in evaluation alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data

from test_places import NODES, Net, data, look, loud, seeded
from test_places_gradient import FACES, Face, one


class Limited(Net):
    def forward(self, batch: Data) -> Tensor:
        return super().forward(Data(x=batch.x.clamp(-3, 3), edge_index=batch.edge_index))


@FACES
def test_a_clamp_for_another_scale(face: Face) -> None:
    raw = data(x=400 + 150 * torch.randn(NODES, 8, generator=seeded(2)))
    finding = one(face(Limited(), raw), "GS703")
    assert finding.layer == "x" and finding.cause == "feature-scale"
    assert loud(face(Limited(), data())) == []


@FACES
@pytest.mark.parametrize(("cutoff", "told"), [(1.0, False), (0.02, True)])
def test_a_cutoff_of_distances_is_no_other_scale(face: Face, cutoff: float, told: bool) -> None:
    class Near(Net):
        def forward(self, batch: Data) -> Tensor:
            return super().forward(Data(x=1 - (batch.x / cutoff).clamp(max=1), edge_index=batch.edge_index))

    found = loud(face(Near(), data(x=2.2 * torch.rand(NODES, 8, generator=seeded(2)))))
    assert [f.cause for f in found if f.code == "GS703"] == ["feature-scale"] * told


class Stars(Net):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.always = always

    def forward(self, batch: Data) -> Tensor:
        answer = super().forward(batch)
        return answer.clamp(50, 60) if self.always or not self.training else answer


def test_a_clamp_counts_where_the_model_trains() -> None:
    kept, free = look(Stars(True), data()), look(Stars(False), data())
    assert {f.code for f in loud(kept)} == {"GS703", "GS604"}
    assert loud(free) == [] and "in evaluation mode alone" in str(free.findings)
