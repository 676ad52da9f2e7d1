"""Faults in which every number stays finite and sensible: each broken program beside its repaired twin, and what looks alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GATConv, HeteroConv, SAGEConv, TransformerConv

import gnnstab
from gnnstab.records import Diagnosis, Finding
from trained import trained

WIDTH = 12


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def look(model: nn.Module, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Diagnosis:
    return gnnstab.diagnose(model, batch=batch, loss=loss)


def train(model: nn.Module, batch: Any, loss: Callable[[Tensor, Any], Tensor]) -> Diagnosis:
    return trained(model, batch, loss)


BOTH = pytest.mark.parametrize("face", [look, train], ids=["diagnose", "monitor"])


def loud(diagnosis: Diagnosis) -> list[Finding]:
    return [f for f in diagnosis.findings if f.severity != "info" and f.explained_by is None]


# Nodes that cannot be told apart.


class Shops(nn.Module):
    """Shops hear of their customers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.enter = nn.ModuleDict({"shop": nn.Linear(3, WIDTH), "customer": nn.Linear(4, WIDTH)})
        visits = {("customer", "visits", "shop"): GATConv((WIDTH, WIDTH), WIDTH, add_self_loops=False)}
        met = {("shop", "visited", "customer"): GATConv((WIDTH, WIDTH), WIDTH, add_self_loops=False)}
        self.convs = nn.ModuleList([HeteroConv(visits | met) for _ in range(2)])
        self.leave = nn.Linear(WIDTH, 3)

    def forward(self, data: HeteroData) -> Tensor:
        h = {kind: enter(data[kind].x) for kind, enter in self.enter.items()}
        for conv in self.convs:
            h = {kind: h[kind] + F.relu(new) for kind, new in conv(h, data.edge_index_dict).items()}
        return self.leave(h["shop"])


def town(shop: Tensor, customer: Tensor) -> HeteroData:
    g = generator(3)
    data = HeteroData()
    data["shop"].x, data["customer"].x = shop, customer
    visits = torch.stack([torch.randint(0, 60, (300,), generator=g), torch.randint(0, 40, (300,), generator=g)])
    data["customer", "visits", "shop"].edge_index = visits
    data["shop", "visited", "customer"].edge_index = visits.flip(0)
    data["shop"].y = torch.randint(0, 3, (40,), generator=g)
    return data


def kinds_of_shop(output: Tensor, data: HeteroData) -> Tensor:
    return F.cross_entropy(output, data["shop"].y)


@BOTH
def test_kinds_of_nodes_whose_features_are_all_the_same(face: Callable[..., Diagnosis]) -> None:
    diagnosis = face(Shops(), town(torch.full((40, 3), 0.5), torch.ones(60, 4)), kinds_of_shop)
    assert [c.cause for c in diagnosis.root_causes()] == ["indistinguishable-nodes"]
    (finding,) = loud(diagnosis)
    assert finding.code == "GS704" and finding.layer == "shop.x"
    features = torch.randn(40, 3, generator=generator(4)), torch.randn(60, 4, generator=generator(5))
    assert loud(face(Shops(), town(*features), kinds_of_shop)) == []


def test_equal_features_are_no_fault_where_the_degree_is_the_answer() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.out = SAGEConv(1, WIDTH, aggr="sum"), nn.Linear(WIDTH, 1)

        def forward(self, data: Data) -> Tensor:
            return self.out(F.relu(self.conv(data.x, data.edge_index))).squeeze(-1)

    edges = torch.randint(0, 50, (2, 200), generator=generator())
    degree = torch.bincount(edges[1], minlength=50).float()
    data = Data(x=torch.ones(50, 1), edge_index=edges, y=degree / 4)
    diagnosis = look(Counts(), data, lambda output, batch: F.mse_loss(output, batch.y))
    assert "indistinguishable-nodes" not in {c.cause for c in diagnosis.root_causes()}


class Crew(nn.Module):
    """Scores for every member of a padded crew; ``pooled`` gives each the crew's mean in place of adding it."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1)
        self.attend, self.mlp = nn.MultiheadAttention(WIDTH, 2, batch_first=True), nn.Linear(WIDTH, WIDTH)
        self.pooled = pooled

    def forward(self, data: Data) -> Tensor:
        h = self.enter(data.crew)
        h = h + self.attend(h, h, h, key_padding_mask=~data.present)[0]
        present = data.present[..., None]
        mean = ((h * present).sum(1, keepdim=True) / present.sum(1, keepdim=True)).expand_as(h)
        h = F.relu(self.mlp(mean if self.pooled else h + mean))
        return self.leave(h).squeeze(-1).masked_fill(~data.free, -1e9)


def crews() -> Data:
    g = generator(6)
    present = torch.arange(7) < torch.randint(3, 8, (24, 1), generator=g)
    free = present & ((torch.rand(24, 7, generator=g) < 0.7) | (torch.arange(7) == 0))
    crew = torch.randn(24, 7, 4, generator=g)
    return Data(crew=crew, present=present, free=free, chosen=crew[..., 0].masked_fill(~free, -9.0).argmax(1))


@BOTH
def test_members_of_a_padded_set_that_all_get_its_mean(face: Callable[..., Diagnosis]) -> None:
    def choice(output: Tensor, data: Data) -> Tensor:
        return F.cross_entropy(output, data.chosen)

    diagnosis = face(Crew(pooled=True), crews(), choice)
    assert [c.cause for c in diagnosis.root_causes()] == ["indistinguishable-nodes"]
    assert loud(face(Crew(pooled=False), crews(), choice)) == []


# Normalised away.


class Roads(nn.Module):
    """Edge features of one column, put on one scale in some way; ``last`` is done to the logits."""

    def __init__(self, scale: Callable[[Tensor], Tensor], last: Callable[[Tensor], Tensor] = lambda z: z) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.enter, self.leave = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.conv = TransformerConv(WIDTH, WIDTH, edge_dim=1)
        self.scale, self.last = scale, last

    def forward(self, data: Data) -> Tensor:
        h = self.enter(data.x)
        return self.last(self.leave(h + F.relu(self.conv(h, data.edge_index, self.scale(data.edge_attr)))))


def roads() -> Data:
    g = generator(7)
    edges = torch.randint(0, 40, (2, 240), generator=g)
    length = 4 * torch.rand(240, 1, generator=g)
    return Data(
        x=torch.randn(40, 5, generator=g), edge_index=edges, edge_attr=length, y=torch.randint(0, 4, (40,), generator=g)
    )


def classes(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output[:30], data.y[:30])


def root_mean_square(values: Tensor) -> Tensor:
    return values * values.square().mean(-1, keepdim=True).add(1e-8).rsqrt()


@BOTH
@pytest.mark.parametrize("scale", [F.normalize, lambda v: v / v.sum(-1, keepdim=True), root_mean_square])
def test_one_column_divided_by_its_own_size(face: Callable[..., Diagnosis], scale: Callable[[Tensor], Tensor]) -> None:
    diagnosis = face(Roads(scale), roads(), classes)
    (finding,) = loud(diagnosis)
    assert (finding.code, finding.layer) == ("GS108", "edge_attr") and "±1" in finding.message
    (cause,) = diagnosis.root_causes()
    assert cause.cause == "normalization-misuse"
    assert [f.fix for f in cause.fixes] == ["undo-normalisation"] and "train_edge_attr.std(0)" in cause.fixes[0].change


@BOTH
@pytest.mark.parametrize("scale", [lambda v: v / 4, lambda v: v / v.max(), lambda v: v / v.detach() * v])
def test_one_column_divided_by_another_number(
    face: Callable[..., Diagnosis], scale: Callable[[Tensor], Tensor]
) -> None:
    assert loud(face(Roads(scale), roads(), classes)) == []


def plain(values: Tensor) -> Tensor:
    return values / 4


@BOTH
def test_logits_of_one_norm_before_cross_entropy(face: Callable[..., Diagnosis]) -> None:
    diagnosis = face(Roads(plain, F.normalize), roads(), classes)
    (finding,) = loud(diagnosis)
    assert finding.code == "GS108" and "below 0.67" in finding.message
    assert [c.cause for c in diagnosis.root_causes()] == ["normalization-misuse"]


@BOTH
@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (lambda z: 20 * F.normalize(z), classes),
        (F.normalize, lambda output, data: F.cross_entropy(output[:30] / 0.05, data.y[:30])),
        (F.normalize, lambda output, data: (output[:20] - output[20:]).square().mean()),
    ],
    ids=["scaled", "a temperature in the loss", "embeddings"],
)
def test_rows_of_one_norm_that_are_meant(face: Callable[..., Diagnosis], last: Any, loss: Any) -> None:
    assert [f for f in loud(face(Roads(plain, last), roads(), loss)) if f.code == "GS108"] == []


# Scale.


@BOTH
def test_raw_whole_numbers_that_a_weight_multiplies(face: Callable[..., Diagnosis]) -> None:
    class Places(nn.Module):
        def __init__(self, fixed: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.skip, self.out = GATConv(3, WIDTH), nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
            self.fixed = fixed

        def forward(self, data: Data) -> Tensor:
            x = data.x / torch.tensor([900.0, 900.0, 5.0]) if self.fixed else data.x
            return self.out(F.relu(self.conv(x, data.edge_index) + self.skip(x))).squeeze(-1)

    g = generator(8)
    x = torch.cat([torch.randint(0, 900, (50, 2), generator=g), torch.randint(0, 5, (50, 1), generator=g)], 1).float()
    data = Data(x=x, edge_index=torch.randint(0, 50, (2, 300), generator=g), y=x[:, 0] / 900)

    def loss(output: Tensor, batch: Data) -> Tensor:
        return F.mse_loss(output, batch.y)

    diagnosis = face(Places(fixed=False), data, loss)
    assert [c.cause for c in diagnosis.root_causes()][:1] == ["feature-scale"]
    assert [f for f in loud(face(Places(fixed=True), data, loss)) if f.code == "GS406"] == []


def test_targets_that_the_loss_scales_itself() -> None:
    data = roads()
    data.y = 2e4 + 3e3 * torch.randn(40, 4, generator=generator(9))
    raw = look(Roads(plain), data, lambda output, batch: F.l1_loss(output, batch.y))
    assert [f.code for f in loud(raw)] == ["GS406"]
    assert loud(look(Roads(plain), data, lambda output, batch: F.l1_loss(output, (batch.y - 2e4) / 3e3))) == []


class Baskets(nn.Module):
    """What users have bought, by attention over their own items; some have bought nothing."""

    def __init__(self, mended: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.ask, self.key, self.value, self.out = (nn.Linear(WIDTH, n) for n in (WIDTH, WIDTH, WIDTH, 1))
        self.mended = mended

    def forward(self, data: Data) -> Tensor:
        score = (self.ask(data.user)[:, None] * self.key(data.goods)).sum(-1) / WIDTH**0.5
        weight = self.mended(score.masked_fill(~data.bought, -math.inf).softmax(-1))
        return self.out(data.user + (weight[..., None] * self.value(data.goods)).sum(1)).squeeze(-1)


def baskets() -> Data:
    g = generator(5)
    user, items = torch.randn(32, WIDTH, generator=g), torch.randn(32, 6, WIDTH, generator=g)
    return Data(user=user, goods=items, bought=torch.arange(6) < torch.arange(32)[:, None] % 7, y=user[:, 0])


@BOTH
@pytest.mark.parametrize(
    ("mended", "severity"),
    [
        (lambda weight: weight, "error"),
        (torch.nan_to_num, "info"),
        (lambda weight: weight.masked_fill(weight.isnan(), 0.0), "info"),
        (lambda weight: torch.where(weight.isnan(), 0.0, weight), "info"),
        # The output is finite, and what comes back through the square root's derivative at 0 is not.
        (lambda weight: torch.nan_to_num(weight).sqrt().square(), "error"),
    ],
)
def test_weights_of_wholly_masked_rows_that_the_code_takes_away(
    face: Callable[..., Diagnosis], mended: Callable[[Tensor], Tensor], severity: str
) -> None:
    said = face(Baskets(mended), baskets(), lambda output, data: F.mse_loss(output, data.y))
    (finding,) = [f for f in said.findings if f.code == "GS502"]
    assert finding.severity == severity
    if severity == "info":
        assert loud(said) == [] and "taken away again" in finding.message and not said.root_causes()
