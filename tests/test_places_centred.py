"""Norms over nodes in front of what reads the mean over nodes alone, in any layout and in the model's own code, beside programs that are right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GATConv, LayerNorm, global_mean_pool

import gnnstab
from gnnstab.records import Diagnosis
from test_places import WIDTH, loss, loud, random_graph, seeded
from test_places_gradient import one
from test_places_norms import FACES, several
from trained import take_step

Face = Callable[..., Diagnosis]


def over(h: Tensor, dim: int) -> Tensor:
    """Values (…) less their mean along an axis, over their deviation."""
    return (h - h.mean(dim, keepdim=True)) / (h.std(dim, unbiased=False, keepdim=True) + 1e-5)


def fused(h: Tensor) -> Tensor:
    return F.instance_norm(h.transpose(1, 2)).transpose(1, 2)


def mean(h: Tensor) -> Tensor:
    return h.mean(1)


def attention(h: Tensor) -> Tensor:
    return (torch.softmax(h[..., :1], 1) * h).sum(1)


class Panels(nn.Module):
    """Attention within sets of one size (sets, nodes, 5), a norm, a pooling."""

    def __init__(self, norm: Callable[[Tensor], Tensor], pool: Callable[[Tensor], Tensor] = mean, around: bool = False):
        super().__init__()
        torch.manual_seed(4)
        self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.norm, self.pool, self.around = norm, pool, around

    def forward(self, sets: Data) -> Tensor:
        h = torch.tanh(self.enter(sets.x))
        h = h + self.attend(h, h, h, need_weights=False)[0]
        return self.leave(self.pool(self.norm(h) + (h if self.around else 0))).squeeze(-1)


def panels() -> Data:
    rows = torch.randn(20, 11, 5, generator=seeded(3)) + torch.randn(20, 1, 5, generator=seeded(4))
    return Data(x=rows, y=rows[..., 0].mean(1))


@FACES
@pytest.mark.parametrize("norm", [lambda h: over(h, 1), fused], ids=["by hand", "fused"])
def test_sets_whose_mean_is_taken_away_before_they_are_pooled(face: Face, norm: Callable[[Tensor], Tensor]) -> None:
    finding = one(face(Panels(norm), panels(), loss), "GS108")
    assert finding.cause == "normalization-misuse" and "reads nothing but that mean" in finding.message
    right = [Panels(lambda h: over(h, 2)), Panels(norm, lambda h: h.amax(1)), Panels(norm, attention)]
    for model in (*right, Panels(norm, around=True)):
        assert loud(face(model, panels(), loss), "GS108") == []


class Molecules(nn.Module):
    """Each channel of each graph standardised by the model's own code, or each row."""

    def __init__(self, rows: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp, self.conv, self.out = nn.Linear(8, WIDTH), GATConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.rows = rows

    def forward(self, batch: Data) -> Tensor:
        h = self.inp(batch.x)
        h = h + F.elu(self.conv(h, batch.edge_index))
        if self.rows:
            h = over(h, 1)
        else:
            h = h - global_mean_pool(h, batch.batch)[batch.batch]
            h = h / (global_mean_pool(h * h, batch.batch)[batch.batch] + 1e-5).sqrt()
        return self.out(global_mean_pool(h, batch.batch)).squeeze(-1)


@FACES
def test_graphs_whose_mean_the_model_takes_away_itself(face: Face) -> None:
    assert "reads nothing but that mean" in one(face(Molecules(False), several(), loss), "GS108").message
    assert loud(face(Molecules(True), several(), loss)) == []


class Single(nn.Module):
    """One graph at a time through a norm, a pooling and a head."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp, self.conv, self.norm, self.out = nn.Linear(8, WIDTH), GATConv(WIDTH, WIDTH), norm, nn.Linear(WIDTH, 1)

    def forward(self, batch: Data) -> Tensor:
        return self.out(self.norm(self.conv(self.inp(batch.x), batch.edge_index)).mean(0))


def test_a_batch_norm_over_a_single_graph() -> None:
    x = torch.randn(12, 8, generator=seeded(1))
    graph = Data(x=x, edge_index=random_graph(12, 4, 1), y=x[:, :1].mean(0))
    train = FACES.args[1][1]
    assert one(train(Single(nn.BatchNorm1d(WIDTH)), graph, loss), "GS108").layer == "norm"
    assert loud(train(Single(nn.LayerNorm(WIDTH)), graph, loss), "GS108") == []


@pytest.mark.usefixtures("brief")
def test_a_loader_of_single_graphs_is_left_in_peace() -> None:
    """Losses of single graphs differ tenfold; one graph has no spread over graphs, of which torch would warn."""
    graphs = []
    for seed in range(12):
        x = torch.randn(12, 8, generator=seeded(seed))
        y = (x[:, :1].mean(0) + 0.4 * (seed % 4 > 0))[None]
        graphs.append(Data(x=x, edge_index=random_graph(12, 4, seed), y=y))
    model = Single(LayerNorm(WIDTH))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with warnings.catch_warnings(), gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        warnings.simplefilter("error")
        for step in range(60):
            batch = next(iter(DataLoader([graphs[step % 12]])))
            take_step(optimizer, F.l1_loss(model(batch)[None], batch.y), monitor)
    assert loud(monitor.diagnose()) == []


class Weather(nn.Module):
    """Two kinds of nodes, one of them a single node that tells all others the weather."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.dim = dim
        self.inp = nn.ModuleDict({"sky": nn.Linear(3, WIDTH), "field": nn.Linear(4, WIDTH)})
        self.conv = GATConv(WIDTH, WIDTH, add_self_loops=False)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, data: HeteroData) -> Tensor:
        h: dict[str, Tensor] = {kind: over(self.inp[kind](x), self.dim) for kind, x in data.x_dict.items()}
        told = self.conv((h["sky"], h["field"]), data["over"].edge_index)
        return self.out(F.elu(h["field"] + told)).squeeze(-1)


@FACES
def test_the_only_node_of_a_kind_less_its_own_mean(face: Face) -> None:
    def days(output: Tensor, data: Any) -> Tensor:
        return F.mse_loss(output, data["field"].y)

    data = HeteroData()
    data["sky"].x, data["field"].x = torch.randn(1, 3, generator=seeded(1)), torch.randn(30, 4, generator=seeded(2))
    data["field"].y = data["field"].x[:, 0] + data["sky"].x[0, 0]
    data["sky", "over", "field"].edge_index = torch.stack([torch.zeros(30, dtype=torch.long), torch.arange(30)])
    assert one(face(Weather(0), data, days), "GS108").layer == "inp.sky"
    assert loud(face(Weather(-1), data, days), "GS108") == []
