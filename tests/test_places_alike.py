"""Layers that are given one row for every node: told where they give one back, whatever else tells the answers apart."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import BatchNorm, GATConv, global_mean_pool

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


class PostNorms(nn.Module):
    """Blocks of attention and a feed-forward part, a BatchNorm behind each sum; one answer per graph."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(1, 12), nn.Linear(12, 2)
        self.convs = nn.ModuleList(GATConv(12, 12, add_self_loops=False) for _ in range(4))
        self.mixes = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))
        self.norms = nn.ModuleList(BatchNorm(12) for _ in range(8))

    def forward(self, batch: Batch) -> Tensor:
        h = self.enter(batch.x)
        for i, (conv, mix) in enumerate(zip(self.convs, self.mixes, strict=True)):
            h = self.norms[2 * i](h + conv(h, batch.edge_index))
            h = self.norms[2 * i + 1](h + torch.relu(mix(h)))
        out: Tensor = self.out(global_mean_pool(h, batch.batch))
        return out


def circles(count: int, measured: bool) -> Batch:
    """Circles with chords of length 2, which close triangles, or 5, which close none; each node has six neighbours."""
    graphs = []
    for i in range(count):
        size, far = 17 + 2 * (i % 3), 2 + 3 * (i // 3 % 2)
        ring = torch.arange(size)
        edges = torch.cat([torch.stack([ring, (ring + step) % size]) for s in (1, far, 7) for step in (s, -s)], 1)
        x = torch.randn(size, 1) + float(far == 2) - 0.5 if measured else torch.ones(size, 1)
        graphs.append(Data(x=x, edge_index=edges, y=torch.tensor([int(far == 2)])))
    return Batch.from_data_list(graphs)


@pytest.mark.parametrize("face", ["diagnose", "monitor"])
@pytest.mark.parametrize(("measured", "roots"), [(False, ["indistinguishable-nodes"]), (True, [])])
def test_rounding_that_norms_spread_tells_no_graphs_of_equal_rows_apart(
    face: str, measured: bool, roots: list[str]
) -> None:
    torch.manual_seed(0)
    model, batch = PostNorms(), circles(24, measured)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(output: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(output, batch.y)

    if face == "monitor":
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for _ in range(10):
                take_step(optimizer, loss(model(batch), batch), monitor)
        found = monitor.diagnose()
    else:
        found = gnnstab.diagnose(model, batch=batch, loss=loss, optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == roots
