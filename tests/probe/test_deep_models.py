"""The first step of a deep model: work grows with the number of its layers and no faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from effort import at_most
from gnnstab.probe.attaching.identity_path import node_of, ways
from gnnstab.probe.buffering.series_ids import SeriesIds
from gnnstab.probe.layers.parameters import Parameters

DEEP = pytest.mark.parametrize("layers", [200, 800])


@DEEP
@pytest.mark.parametrize("residual", [False, True])
def test_paths_around_layers(layers: int, residual: bool) -> None:
    h, trace = torch.randn(3, 4, requires_grad=True) * 1.0, []
    for i in range(layers):
        out = (h * 2.0).tanh()
        trace.append((str(i), h, node_of(out)))
        h = h + out if residual else out
    with at_most(calls=120 * layers):
        found = ways([*trace, ("", h, None)]).around
    assert found == {str(i): residual for i in range(layers)}


@DEEP
def test_parameters_that_are_recorded_together(layers: int) -> None:
    model = nn.ModuleList(nn.Linear(4, 4) for _ in range(layers))
    parameters = Parameters(model, SeriesIds())
    with at_most(calls=120 * layers):
        parts = parameters._new_parts("weight_grad", range(2 * layers))
    assert sorted(slot for part in parts for slot in part.slots) == sorted({s for p in parts for s in p.slots})
    assert sum(len(part.slots) for part in parts) == 2 * layers
