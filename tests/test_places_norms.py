"""Normalisations that take away what is needed: statistics of padding, of the size of a graph, of what a pooling reads, behind a residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import (
    BatchNorm,
    GATConv,
    GraphNorm,
    InstanceNorm,
    LayerNorm,
    TransformerConv,
    global_add_pool,
    global_mean_pool,
)

import gnnstab
from gnnstab.records import Diagnosis
from test_places import WIDTH, data, loss, loud, random_graph, seeded
from test_places_gradient import one
from trained import trained


def look(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor]) -> Diagnosis:
    return gnnstab.diagnose(model, batch=batch, loss=loss)


def train(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor]) -> Diagnosis:
    return trained(model, batch, loss, steps=6)


FACES = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


class Crews(nn.Module):
    """Attention within padded sets, behind a BatchNorm over all rows or over the real ones."""

    def __init__(self, alone: bool, channels_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.enter, self.norm, self.leave = nn.Linear(4, WIDTH), nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 1)
        self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.alone, self.channels_first = alone, channels_first

    def normed(self, h: Tensor, present: Tensor) -> Tensor:
        if self.alone:
            out = torch.zeros_like(h)
            out[present] = self.norm(h[present])
            return out
        if self.channels_first:
            return self.norm(h.transpose(1, 2)).transpose(1, 2)
        return self.norm(h.flatten(0, 1)).view_as(h)

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        h = self.normed(self.enter(rows), present)
        h = h + self.attend(h, h, h, key_padding_mask=~present, need_weights=False)[0]
        return self.leave(h).squeeze(-1)


def crews(fill: float) -> tuple[Tensor, Tensor]:
    present = torch.arange(10) < torch.randint(3, 11, (16,), generator=seeded(5))[:, None]
    rows = torch.randn(16, 10, 4, generator=seeded(6))
    return rows.masked_fill(~present[..., None], fill), present


def of_real_rows(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    rows, present = batch
    return F.mse_loss(output[present], rows[..., 0][present])


@FACES
@pytest.mark.parametrize("channels_first", [False, True])
def test_padding_that_fills_the_statistics_of_a_norm(face: Callable[..., Diagnosis], channels_first: bool) -> None:
    finding = one(face(Crews(False, channels_first), crews(-50.0), of_real_rows), "GS108")
    assert finding.layer == "norm" and "`present`" in finding.message and finding.value < 0.1
    assert loud(face(Crews(True), crews(-50.0), of_real_rows)) == []
    assert loud(face(Crews(False, channels_first), crews(0.0), of_real_rows), "GS108") == [], "zeros lie amid the rows"


class Loud(nn.Module):
    """How strong the signals of a graph are, behind a norm of some kind."""

    def __init__(self, norm: nn.Module, around: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.norm, self.around = norm, around
        self.inp, self.conv, self.out = nn.Linear(8, WIDTH), GATConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, batch: Data) -> Tensor:
        x = self.norm(batch.x, batch.batch) if isinstance(self.norm, LayerNorm) else self.norm(batch.x)
        h = F.elu(self.inp(x + 0.1 * batch.x if self.around else x))
        h = h + F.elu(self.conv(h, batch.edge_index))
        return self.out(global_mean_pool(h, batch.batch)).squeeze(-1)


def signals(follows: bool) -> Batch:
    g, many = seeded(7), []
    for _ in range(24):
        size, i = 0.3 + 2 * torch.rand(1, generator=g), torch.arange(12)
        edges = torch.stack([torch.cat([i, i]), torch.cat([(i + 1) % 12, (i + 5) % 12])])
        y = size if follows else torch.rand(1, generator=g)
        many.append(Data(x=size * torch.randn(12, 8, generator=g), edge_index=edges, y=y))
    return Batch.from_data_list(many)


@FACES
def test_a_norm_that_takes_the_size_of_a_graph_that_is_asked_for(face: Callable[..., Diagnosis]) -> None:
    finding = one(face(Loud(LayerNorm(8, mode="graph")), signals(True), loss), "GS108")
    assert finding.layer == "norm" and "equally large" in finding.message
    assert loud(face(Loud(nn.BatchNorm1d(8)), signals(True), loss)) == []
    assert loud(face(Loud(LayerNorm(8, mode="graph")), signals(False), loss)) == [], "nobody asks for it"
    assert loud(face(Loud(LayerNorm(8, mode="graph"), around=True), signals(True), loss)) == [], "a way leads around"


class Counting(nn.Module):
    """How many nodes a graph has, from their sum; ``told`` beside the norm says it as well."""

    def __init__(self, norm: nn.Module, told: bool = False) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.norm, self.told = norm, told
        self.inp, self.conv, self.out = nn.Linear(8, WIDTH), GATConv(WIDTH, WIDTH), nn.Linear(WIDTH + told, 1)

    def forward(self, batch: Data) -> Tensor:
        h = F.elu(self.inp(batch.x))
        h = h + F.elu(self.conv(h, batch.edge_index))
        pooled = global_add_pool(h, batch.batch) / 10
        parts = [self.norm(pooled), *([batch.many] if self.told else [])]
        return self.out(torch.cat(parts, 1)).squeeze(-1)


def rings(follows: bool, told: bool = False) -> Batch:
    g, many = seeded(8), []
    for nodes in torch.randint(4, 30, (24,), generator=g).tolist():
        i, y = torch.arange(nodes), 3 * torch.randn(1, generator=g)
        one = Data(x=1 + 0.5 * torch.randn(nodes, 8, generator=g), y=torch.tensor([nodes / 5 - 3]))
        one.edge_index, one.y = torch.stack([i, (i + 1) % nodes]), one.y if follows else y
        if told:
            one.many = torch.tensor([[nodes / 20]])
        many.append(one)
    return Batch.from_data_list(many)


@FACES
def test_a_norm_behind_a_sum_that_takes_the_number_of_nodes_that_is_asked_for(face: Callable[..., Diagnosis]) -> None:
    finding = one(face(Counting(nn.LayerNorm(WIDTH)), rings(True), loss), "GS108")
    assert finding.layer == "norm" and "how many nodes they have" in finding.message
    assert loud(face(Counting(nn.Identity()), rings(True), loss)) == []
    assert loud(face(Counting(nn.LayerNorm(WIDTH)), rings(False), loss)) == [], "nobody asks for it"
    assert loud(face(Counting(nn.LayerNorm(WIDTH), told=True), rings(True, told=True), loss)) == [], "told beside it"


class Places(nn.Module):
    """Sets of rows through a LayerNorm, of the channels of each or of each channel over the rows."""

    def __init__(self, over_nodes: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp, self.out = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.norm, self.over_nodes = nn.LayerNorm(10 if over_nodes else WIDTH), over_nodes

    def forward(self, rows: Tensor, present: Tensor) -> Tensor:
        h = self.inp(rows)
        return self.out(F.elu(self.norm(h.mT).mT if self.over_nodes else self.norm(h))).squeeze(-1)


@FACES
def test_a_layer_norm_along_the_nodes(face: Callable[..., Diagnosis]) -> None:
    finding = one(face(Places(True), crews(0.0), of_real_rows), "GS108")
    assert finding.layer == "norm" and "over the 10 nodes of a set" in finding.message
    assert loud(face(Places(False), crews(0.0), of_real_rows)) == []


def graphs(shift: float) -> Batch:
    found = []
    for i in range(24):
        mean = torch.randn(1, generator=seeded(100 + i)) * shift
        x = torch.randn(12, 8, generator=seeded(i)) + mean
        found.append(Data(x=x, edge_index=random_graph(12, 4, seed=i), y=mean + 0.0))
    return Batch.from_data_list(found)


class Pooled(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp = nn.Linear(8, WIDTH)
        self.conv = TransformerConv(WIDTH, WIDTH)
        self.norm = norm
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, batch: Batch) -> Tensor:
        h = self.inp(batch.x)
        h = self.conv(h, batch.edge_index)
        h = self.norm(h, batch.batch) if isinstance(self.norm, GraphNorm) else self.norm(h)
        return self.out(global_mean_pool(F.relu(h), batch.batch)).squeeze(-1)


def test_a_norm_that_takes_away_what_the_pooling_needs() -> None:
    (finding,) = loud(look(Pooled(GraphNorm(WIDTH)), graphs(2.0), loss), "GS108")
    assert finding.layer == "norm" and finding.cause == "normalization-misuse" and "mean" in finding.message
    assert loud(look(Pooled(nn.BatchNorm1d(WIDTH)), graphs(2.0), loss), "GS108") == []
    # Where the targets do not follow the mean, nobody needs it.
    unrelated = graphs(2.0)
    unrelated.y = torch.randn(24, generator=seeded(77))
    assert loud(look(Pooled(GraphNorm(WIDTH)), unrelated, loss), "GS108") == []


def several() -> Batch:
    found = []
    for seed in range(12):
        x = torch.randn(9, 8, generator=seeded(seed)) + torch.randn(1, 8, generator=seeded(50 + seed))
        found.append(Data(x=x, edge_index=random_graph(9, 3, seed), y=x[:, :1].mean(0)))
    return Batch.from_data_list(found)


class PerGraph(nn.Module):
    def __init__(self, instance: bool) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.inp, self.conv, self.out = nn.Linear(8, WIDTH), GATConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.instance, self.norm = instance, InstanceNorm(WIDTH) if instance else nn.LayerNorm(WIDTH)

    def forward(self, batch: Data) -> Tensor:
        h = self.inp(batch.x)
        h = h + F.elu(self.conv(h, batch.edge_index))
        h = self.norm(h, batch.batch) if self.instance else self.norm(h)
        return self.out(global_mean_pool(h, batch.batch)).squeeze(-1)


@FACES
def test_a_pooling_of_what_a_norm_took_away(face: Callable[..., Diagnosis]) -> None:
    finding = one(face(PerGraph(True), several(), loss), "GS108")
    assert finding.layer == "norm" and "nothing is left" in finding.message
    assert loud(face(PerGraph(False), several(), loss)) == []


class Blocks(nn.Module):
    def __init__(self, depth: int, *, post: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.post = post
        self.inp, self.out = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(depth)])

    def forward(self, batch: Data) -> Tensor:
        h = self.inp(batch.x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(h + conv(h, batch.edge_index)) if self.post else h + conv(norm(h), batch.edge_index)
        return self.out(h).squeeze(-1)


def test_normalisations_behind_the_residual_sum() -> None:
    post, pre = look(Blocks(10, post=True), data(), loss), look(Blocks(10, post=False), data(), loss)
    (signal,) = [s for s in post.signals if s.name == "place.post_norms"]
    assert signal.value == 10 and signal.detail["names"][:2] == ["norms.0", "norms.1"]
    wrapped = Blocks(10, post=True)
    wrapped.norms = nn.ModuleList(BatchNorm(WIDTH) for _ in range(10))
    (signal,) = [s for s in look(wrapped, data(), loss).signals if s.name == "place.post_norms"]
    assert signal.value == 10, "PyG's own holds one of torch"
    assert not [s for s in pre.signals if s.name == "place.post_norms"]
    # Fresh, their gradient reaches the first layer: nothing has gone wrong yet.
    assert loud(post, "GS106") == loud(pre, "GS106") == []


def test_a_post_norm_stack_at_a_rate_that_a_pre_norm_one_bears() -> None:
    broken, twin = (trained(Blocks(32, post=post), data(), loss, 60, 9e-3) for post in (True, False))
    (finding,) = loud(broken, "GS106")
    assert "post-norm" in finding.message
    assert [c.cause for c in broken.root_causes()] == ["normalization-misuse"]
    assert loud(twin) == []
