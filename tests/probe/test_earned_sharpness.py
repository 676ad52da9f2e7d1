"""Sharp attention that an earlier stage taught: steps for half of the rows show that it is of use to the others, which no large random weights are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records.vocabulary import OPTIMIZER_SOFTER
from trained import trained

COLOURS, ANSWERS, DEGREE, NODES = 12, 6, 8, 144


class Copies(nn.Module):
    """Each node needs the answer of its one neighbour of the same colour; queries and keys know the colours, or are random and as large."""

    def __init__(self, *, taught: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.leave = TransformerConv(COLOURS + ANSWERS, COLOURS), nn.Linear(COLOURS, ANSWERS)
        known = torch.cat([torch.eye(COLOURS), torch.zeros(COLOURS, ANSWERS)], 1)
        with torch.no_grad():
            for made in (self.read.lin_query, self.read.lin_key):
                made.weight.copy_(6 * known if taught else 6 * COLOURS**-0.5 * torch.randn_like(known))

    def forward(self, data: Data) -> Tensor:
        answer: Tensor = self.leave(self.read(data.x, data.edge_index))
        return answer


def coloured() -> Data:
    g = torch.Generator().manual_seed(1)
    colour, answer = torch.arange(NODES) % COLOURS, torch.randint(0, ANSWERS, (NODES,), generator=g)
    rounds = NODES // COLOURS
    right = COLOURS * torch.randint(0, rounds, (NODES, 1), generator=g) + colour[:, None]
    apart = torch.stack([torch.randperm(COLOURS - 1, generator=g)[: DEGREE - 1] + 1 for _ in range(NODES)])
    wrong = (colour[:, None] + apart) % COLOURS + COLOURS * torch.randint(0, rounds, (NODES, DEGREE - 1), generator=g)
    edges = torch.stack([torch.cat([right, wrong], 1).flatten(), torch.arange(NODES).repeat_interleave(DEGREE)])
    x = torch.cat([F.one_hot(colour, COLOURS), F.one_hot(answer, ANSWERS)], 1).float()
    return Data(x=x, edge_index=edges, y=answer[right[:, 0]])


def loss(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y)


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("taught", [True, False])
def test_sharpness_that_helps_rows_without_a_step_is_earned(taught: bool, monitored: bool) -> None:
    model, batch = Copies(taught=taught), coloured()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    if monitored:
        found = trained(model, batch, loss, steps=100, optimizer=optimizer)
    else:
        found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    told = [s.detail["unseen"] for s in found.signals if s.name == OPTIMIZER_SOFTER]
    assert told == [taught]
    sharp = {f.code: f.severity for f in found.findings if f.code in ("GS201", "GS301")}
    codes = ("GS201", "GS301") if monitored else ("GS301",)
    assert sharp == dict.fromkeys(codes, "info" if taught else "warning")
    assert bool(found.root_causes()) is not taught
