"""Scores over edges that are multiplied with √d where a formula divides: told where it helps no row that is not learned."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.probe.layers.edge_products import multiplied_cosines, multiplied_products

WIDTH = 24


class Own(MessagePassing):
    """Attention over edges whose scores are products times ``factor``."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__(aggr="add")
        self.to_query, self.to_key, self.to_value = (nn.Linear(width, WIDTH) for _ in range(3))
        self.own, self.factor = nn.Linear(width, WIDTH), factor

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        heard = self.propagate(edge_index, query=self.to_query(x), key=self.to_key(x), value=self.to_value(x))
        out: Tensor = self.own(x) + heard
        return out

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, index: Tensor) -> Tensor:
        score = (query_i * key_j).sum(-1) * self.factor
        return softmax(score, index)[:, None] * value_j


class Means(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.conv, self.out = Own(10, factor), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(self.conv(x, edge_index))).squeeze(-1)
        return out


@pytest.mark.parametrize(("factor", "warned"), [(math.sqrt(WIDTH), True), (1 / math.sqrt(WIDTH), False)])
def test_products_that_are_multiplied_with_a_power_of_their_width_are_told(factor: float, warned: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(60, 10)
    edges = torch.stack([torch.randint(60, (600,)), torch.arange(60).repeat_interleave(10)])
    mean = torch.zeros(60, 10).index_add_(0, edges[1], x[edges[0]]) / 10
    data = Data(x=x, edge_index=edges, y=3 * mean[:, 0] + 2 * mean[:, 1])
    model = Means(factor)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = gnnstab.diagnose(
        model, batch=data, loss=lambda out, batch: F.mse_loss(out, batch.y), optimizer=optimizer, verify=False
    )
    told = [f for f in found.findings if f.code == "GS301" and f.severity != "info"]
    assert [f.cause for f in told] == ["attention-explosion"] * warned
    assert all(f"{factor * math.sqrt(WIDTH):.3g} times the products" in f.message for f in told)


@pytest.mark.parametrize(("factor", "seen"), [(4.0, 16.0), (16.0, 64.0), (0.25, None), (1.0, None), (5.0, None)])
def test_only_factors_of_the_width_or_its_root_are_known(factor: float, seen: float | None) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 30, 2, 16, requires_grad=True)
    found = multiplied_products((query * key).sum(-1).mul(factor))
    assert found == (None if seen is None else pytest.approx(seen, rel=1e-3))


def test_what_is_kept_for_a_checkpoint_is_not_read() -> None:
    query, key = torch.randn(2, 30, 16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: pytest.fail("unpacked")):
        assert multiplied_products((query * key).sum(-1) * 4) is None


def test_what_multiplies_cosines_is_a_choice() -> None:
    torch.manual_seed(0)
    query, key = F.normalize(torch.randn(2, 30, 16, requires_grad=True), dim=-1)
    assert multiplied_products((query * key).sum(-1) * 4) is None
    assert multiplied_cosines((query * key).sum(-1) * 4) == pytest.approx(4, rel=1e-3)
    assert multiplied_cosines((query * (4 * key)).sum(-1).to(torch.float64) / 2) == pytest.approx(2, rel=1e-3)
    assert multiplied_cosines((query * torch.randn(30, 16)).sum(-1) * 4) is None


class Contrast(Own):
    """Attention over edges of products over a temperature, of cosines where both sides are ``unit`` vectors."""

    def __init__(self, unit: bool) -> None:
        super().__init__(10, 40.0)
        self.unit = unit

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, index: Tensor) -> Tensor:
        if self.unit:
            query_i, key_j = F.normalize(query_i, dim=-1), F.normalize(key_j, dim=-1)
        return self.weighted((query_i * key_j).sum(-1) * self.factor, value_j, index)

    def weighted(self, score: Tensor, value_j: Tensor, index: Tensor) -> Tensor:
        return softmax(score, index)[:, None] * value_j


class InParts(Contrast):
    """The same, with exponentials of its own."""

    def weighted(self, score: Tensor, value_j: Tensor, index: Tensor) -> Tensor:
        weight = (score - score.max()).exp()
        return (weight / torch.zeros(60).index_add(0, index, weight)[index])[:, None] * value_j


@pytest.mark.parametrize("kind", [Contrast, InParts])
@pytest.mark.parametrize(("unit", "severity"), [(True, "info"), (False, "error")])
def test_sharp_cosines_over_edges_are_warned_of_by_what_steps_show_alone(
    kind: type[Contrast], unit: bool, severity: str
) -> None:
    torch.manual_seed(0)
    x, target = torch.randn(60, 10), torch.arange(60).repeat_interleave(10)
    found = gnnstab.diagnose(kind(unit), batch=(x, torch.stack([torch.randint(60, (600,)), target])))
    assert [f.severity for f in found.findings if f.code == "GS301"] == [severity]
    scales = [s.value for s in found.signals if s.name == "score.cosine_scale"]
    assert scales == ([pytest.approx(40, rel=1e-3)] if unit else [])


class TransformerConv(MessagePassing):
    """A copy of PyG's whose scores are multiplied."""

    def __init__(self, width: int, factor: float) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.lin_query, self.lin_key, self.lin_value, self.lin_skip = (nn.Linear(width, WIDTH) for _ in range(4))
        self.factor = factor

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        query, key, value = (lin(x).view(-1, 1, WIDTH) for lin in (self.lin_query, self.lin_key, self.lin_value))
        heard = self.propagate(edge_index, query=query, key=key, value=value)
        out: Tensor = heard.flatten(1) + self.lin_skip(x)
        return out

    def message(self, query_i: Tensor, key_j: Tensor, value_j: Tensor, index: Tensor) -> Tensor:
        return value_j * softmax((query_i * key_j).sum(-1) * self.factor, index).unsqueeze(-1)


class Two(nn.Module):
    """The values of the first layer are large, which the scores of the second would do well without."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second = TransformerConv(10, factor), TransformerConv(WIDTH, factor)
        for linear in (self.first.lin_value, self.first.lin_skip):
            nn.init.orthogonal_(linear.weight, 1.7)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x, edge_index)), edge_index).mean(-1)
        return out


def test_what_the_scores_are_multiplied_by_is_not_told_a_second_time_as_weights() -> None:
    torch.manual_seed(1)
    edges = torch.stack([torch.randint(60, (600,)), torch.arange(60).repeat_interleave(10)])
    data = Data(x=torch.randn(60, 10), edge_index=edges, y=torch.randn(60))
    found = gnnstab.diagnose(Two(math.sqrt(WIDTH)), batch=data, loss=lambda out, batch: F.mse_loss(out, batch.y))
    assert [c.cause for c in found.root_causes()] == ["attention-explosion"]
