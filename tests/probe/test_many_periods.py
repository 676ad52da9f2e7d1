"""Sines of arguments in a small unit hand on noise: told where what is learned holds for no other row, and not of tables with slow columns too."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.probe.optimizer._many_periods import many_periods
from trained import trained

ATOMS, BONDS = 80, 6


class Waves(nn.Module):
    """Sines of the length of each bond, at frequencies that are learned, go into the attention as edge features."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frequency = nn.Parameter(0.2 + torch.rand(12))
        self.phase = nn.Parameter(3 * torch.rand(12))
        self.attend = TransformerConv(5, 16, edge_dim=12)
        self.leave = nn.Sequential(nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, data: Data) -> Tensor:
        source, target = data.edge_index
        length = (data.pos[source] - data.pos[target]).norm(dim=1, keepdim=True)
        waves = torch.sin(length * self.frequency + self.phase)
        answer: Tensor = self.leave(self.attend(data.x, data.edge_index, waves))[:, 0]
        return answer


def atoms(unit: float) -> Data:
    """What each atom gets from its bonds falls with their lengths, 0 to 4 where ``unit`` is 1."""
    g = torch.Generator().manual_seed(3)
    pos, x = 1.2 * torch.randn(ATOMS, 3, generator=g), torch.randn(ATOMS, 5, generator=g)
    edges = torch.stack(
        [torch.randint(0, ATOMS, (ATOMS * BONDS,), generator=g), torch.arange(ATOMS).repeat_interleave(BONDS)]
    )
    length = (pos[edges[0]] - pos[edges[1]]).norm(dim=1)
    y = torch.zeros(ATOMS).index_add_(0, edges[1], torch.exp(-length))
    return Data(x=0.1 * x, edge_index=edges, pos=unit * pos, y=4 * (y - y.mean()))


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("unit", [1e5, 1.0])
def test_an_encoder_that_is_given_a_small_unit_is_told_with_what_it_is_given(unit: float, monitored: bool) -> None:
    model, batch = Waves(), atoms(unit)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if monitored:
        found = trained(model, batch, loss, steps=40, optimizer=optimizer)
    else:
        found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == (["feature-scale"] if unit > 1 else [])
    told = [f.message for f in found.findings if f.code == "GS609"]
    assert len(told) == (unit > 1)
    assert all("cosines of pos (line " in message and "larger unit" in message for message in told)


@pytest.mark.parametrize(("slowest", "told"), [(1e-3, False), (50.0, True)])
def test_a_table_of_frequencies_with_slow_ones_among_them_is_no_suspect(slowest: float, told: bool) -> None:
    """As of positions in a text: wavelengths from next to nothing to more than all of it."""
    frequencies = torch.logspace(math.log10(slowest), 3, 16)
    place = torch.arange(200.0)[:, None]
    assert bool(list(many_periods(nn.Identity(), lambda: torch.cos(place * frequencies)))) is told
