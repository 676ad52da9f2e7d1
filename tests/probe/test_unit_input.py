"""Layers that nobody described, called anew with an input of RMS 1: what is told equals the layer's own scores there."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.probe.unit_input import at_unit_input
from gnnstab.records.vocabulary import ATTENTION_ENTROPY_UNIT_INPUT, LOGIT_FROBENIUS
from probe.layers.generic_models import EDGES, NODES, WAYS, WIDTH, Dense, InMessage, graph

OVER_EDGES = [name for name in EDGES if isinstance(EDGES[name](), InMessage)]


class Alone(nn.Module):
    """A model that is one layer, of an input as large as wanted."""

    def __init__(self, layer: nn.Module, size: float = 1.0) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x * self.size
        return self.layer(x) if isinstance(self.layer, Dense) else self.layer(x, edge_index)


def seen(layer: nn.Module, size: float) -> Any:
    x, edge_index, _ = graph()
    return at_unit_input(Alone(layer, size).eval(), ((x, edge_index), {}), nullcontext())["layer"]


def own_entropy(layer: Any) -> float:
    """By the layer's own scores of x / RMS(x), target by target and head by head, over ln(in-degree)."""
    x, edge_index, _ = graph()
    score = layer.scores(x / x.square().mean().sqrt(), edge_index).detach().double()
    found = []
    for target in range(NODES):
        one = score[edge_index[1] == target]
        if len(one) >= 2:
            alpha = one.softmax(0)
            found.append(-torch.xlogy(alpha, alpha).sum(0) / math.log(len(one)))
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("name", OVER_EDGES)
def test_the_entropy_is_that_of_the_own_scores_whatever_the_size_of_the_input(name: str, size: float) -> None:
    torch.manual_seed(0)
    layer = EDGES[name]()
    layer.query.weight.data.mul_(6.0)
    before = copy.deepcopy(layer.state_dict())
    found = seen(layer, size)
    assert float(found.numbers[ATTENTION_ENTROPY_UNIT_INPUT].total) == pytest.approx(own_entropy(layer), rel=1e-4)
    assert found.maps == ("query", "key")
    assert all(torch.equal(tensor, before[key]) for key, tensor in layer.state_dict().items())


@pytest.mark.parametrize("way", WAYS)
def test_of_dense_attention_too(way: str) -> None:
    layer = Dense(way)
    large, small = (seen(layer, size) for size in (100.0, 0.01))
    for name in (ATTENTION_ENTROPY_UNIT_INPUT, LOGIT_FROBENIUS):
        assert torch.allclose(large.numbers[name].total, small.numbers[name].total, rtol=1e-3)


class Shared(InMessage):
    """Keys that are values as well."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        q, k = (part(x).view(-1, 2, WIDTH // 2) for part in (self.query, self.key))
        return self.propagate(edge_index, q=q, k=k, v=k).flatten(1)


class Refuses(InMessage):
    """Takes small numbers only."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        if float(x.detach().square().mean()) > 0.1:
            raise ValueError("too large")
        return super().forward(x, edge_index)


def test_a_map_that_serves_the_values_as_well_is_none_of_the_scores() -> None:
    assert seen(Shared(), 1.0).maps == ("query",)


def test_a_layer_that_takes_no_other_input_is_left_out() -> None:
    x, edge_index, _ = graph()
    assert at_unit_input(Alone(Refuses(), 0.01).eval(), ((x, edge_index), {}), nullcontext()) == {}


@pytest.mark.parametrize(("weights", "size", "code"), [(8.0, 1.0, "GS301"), (1.0, 30.0, "GS302")])
def test_weights_and_input_are_told_apart(weights: float, size: float, code: str) -> None:
    torch.manual_seed(0)
    layer = InMessage()
    layer.query.weight.data.mul_(weights), layer.key.weight.data.mul_(weights)
    x, edge_index, _ = graph()
    diagnosis = gnnstab.diagnose(Alone(layer, size), batch=(x, edge_index))
    sharp = [f for f in diagnosis.findings if f.code in ("GS301", "GS302") and f.severity != "info"]
    assert [f.code for f in sharp] == [code]
    assert ("query and key" in sharp[0].message) == (code == "GS301")


class Cold(InMessage):
    """Scores divided by a temperature that nobody names."""

    temperature = 0.002

    def message(self, q_i: Tensor, k_j: Tensor, v_j: Tensor, index: Tensor, size_i: int) -> Tensor:
        alpha = softmax((q_i * k_j).sum(-1) / (math.sqrt(q_i.shape[-1]) * self.temperature), index, num_nodes=size_i)
        return alpha.unsqueeze(-1) * v_j


class Warm(Cold):
    temperature = 1.0


@pytest.mark.parametrize(("kind", "roots"), [(Cold, ["attention-explosion"]), (Warm, [])])
def test_a_run_tells_scores_that_its_own_code_makes_large(kind: type[InMessage], roots: list[str]) -> None:
    """A layer that nobody described, measured with an input of RMS 1 at the end of a run."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": kind(), "out": nn.Linear(WIDTH, 1)})
    x, edge_index, _ = graph()
    y = torch.zeros(NODES).index_add(0, edge_index[1], x[edge_index[0], 0])[:, None]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            out: Tensor = self.parts["out"](self.parts["layer"](x, edge_index))
            return out

    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    with gnnstab.Monitor(net, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(24):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(net(x, edge_index), y)
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    found = monitor.diagnose()
    assert [cause.cause for cause in found.root_causes()] == roots
    assert ("RMS 1" in " ".join(f.message for f in found.findings if f.code == "GS301")) == bool(roots)
