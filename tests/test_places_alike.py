"""Layers that are given one row for every node: told where they give one back, whatever else tells the answers apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv

import gnnstab
from trained import take_step

NODES = 30


class Members(nn.Module):
    """A table of ids goes through the layers; what each node measures comes in behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 8)
        self.one, self.two = GATConv(8, 8), GATConv(8, 8)
        self.beside, self.out = nn.Linear(4, 8), nn.Linear(16, 1)

    def forward(self, number: Tensor, seen: Tensor, edge_index: Tensor) -> Tensor:
        h = self.two(torch.relu(self.one(self.table(number % 64), edge_index)), edge_index)
        out: Tensor = self.out(torch.cat([h, self.beside(seen)], -1)).squeeze(-1)
        return out


@pytest.mark.parametrize("face", ["diagnose", "monitor"])
@pytest.mark.parametrize(("apart", "roots"), [(64, ["indistinguishable-nodes"]), (1, [])])
def test_ids_that_share_a_row_make_layers_useless_beside_other_features(
    face: str, apart: int, roots: list[str]
) -> None:
    torch.manual_seed(4)
    model = Members()
    ring = torch.arange(NODES)
    edges = torch.stack([torch.cat([ring, ring]), torch.cat([(ring + 1) % NODES, (ring + 3) % NODES])])
    seen = torch.randn(NODES, 4)
    data = Data(number=ring * apart + 5, seen=seen, edge_index=edges, y=torch.randn(NODES) + seen[:, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(output: Tensor, batch: Data) -> Tensor:
        return F.mse_loss(output, batch.y)

    given = {"number": data.number, "seen": data.seen, "edge_index": data.edge_index}
    if face == "monitor":
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for _ in range(5):
                take_step(optimizer, loss(model(**given), data), monitor)
        found = monitor.diagnose()
    else:
        found = gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == roots
    told = [s for s in found.signals if s.name == "place.shared_answers" and s.detail.get("layers")]
    assert [(s.layer, s.detail["apart"]) for s in told] == [("one", False)] * len(roots)
