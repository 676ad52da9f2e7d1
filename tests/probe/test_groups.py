"""Parameter groups: the one whose rate was meant for another optimizer is named, two rates that suit are not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.probe.optimizer._groups import far_apart
from gnnstab.records import Diagnosis
from gnnstab.records.vocabulary import OPTIMIZER_GROUP_RATE
from trained import take_step

NODES, WIDTH = 60, 16


class Shops(nn.Module):
    """Embeddings of shops that hear one another."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(NODES, WIDTH)
        nn.init.normal_(self.place.weight, std=0.1)
        self.hear, self.out = (
            GATConv(WIDTH, WIDTH),
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)),
        )

    def forward(self, edge_index: Tensor) -> Tensor:
        return self.out(self.place.weight + self.hear(self.place.weight, edge_index)).squeeze(-1)


class Temperature(nn.Module):
    """A weighted mean over neighbours is wanted; the logarithm of the temperature is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(()))
        self.inp, self.score, self.value = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, data: Data) -> Tensor:
        source, target = data.edge_index
        h = torch.tanh(self.inp(data.x))
        weight = softmax(self.score(h)[source] * self.log_gain.exp(), target, num_nodes=NODES)
        heard = torch.zeros_like(h).index_add(0, target, weight * self.value(h)[source])
        return self.out(heard).squeeze(-1)


def ring() -> Tensor:
    target = torch.arange(NODES).repeat(6)
    return torch.stack([(target + torch.arange(6).repeat_interleave(NODES) + 1) % NODES, target])


def town() -> dict[str, Any]:
    return {"edge_index": ring(), "y": torch.sin(torch.arange(NODES).float())}


def streets() -> Data:
    x = torch.randn(NODES, 4, generator=torch.Generator().manual_seed(5))
    source, target = ring()
    weight = torch.exp(4 * x[source, 1])
    total = torch.zeros(NODES).index_add_(0, target, weight)
    y = 2 * torch.zeros(NODES).index_add_(0, target, weight * x[source, 0]) / total
    return Data(x=x, edge_index=torch.stack([source, target]), y=y)


def squared(output: Tensor, batch: Any) -> Tensor:
    return nn.functional.mse_loss(output, batch["y"])


def split(model: nn.Module, rates: tuple[float, float]) -> torch.optim.Optimizer:
    first, *others = model.parameters()
    return torch.optim.Adam([{"params": [first], "lr": rates[0]}, {"params": others, "lr": rates[1]}])


def said(make: Any, batch: Any, rates: tuple[float, float], **monitor: Any) -> dict[str, Diagnosis]:
    """What a Monitor around 30 steps says, and `diagnose` before them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = make()
    fresh, optimizer = copy.deepcopy(model), split(model, rates)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", **monitor) as watching:
        for _ in range(30):
            loss = squared(model(batch["edge_index"]) if isinstance(batch, dict) else model(batch), batch)
            take_step(optimizer, loss, watching)
    before = gnnstab.diagnose(fresh, batch=batch, loss=squared, optimizer=split(fresh, rates))
    return {"monitor": watching.diagnose(), "diagnose": before}


@pytest.mark.parametrize(
    ("make", "batch", "rate", "name"), [(Shops, town, 8.0, "place.weight"), (Temperature, streets, 5.0, "log_gain")]
)
def test_the_group_is_named(make: Any, batch: Any, rate: float, name: str) -> None:
    found = said(make, batch(), (rate, 1e-2))
    (told,) = [f for f in found["monitor"].findings if f.code == "GS601"]
    assert told.severity in ("warning", "error")
    assert f"parameter group 0 ({name}) is {rate:.3g}" in told.message
    (cause,) = found["monitor"].root_causes()
    assert cause.cause == "learning-rate"
    assert cause.fixes[0].change == f'optimizer.param_groups[0]["lr"] = 0.01  # {name}'
    (signal,) = [s for s in found["diagnose"].signals if s.name == OPTIMIZER_GROUP_RATE]
    assert signal.detail["names"] == [name]


@pytest.mark.parametrize(("make", "batch"), [(Shops, town), (Temperature, streets)])
def test_two_rates_that_suit_are_silent(make: Any, batch: Any) -> None:
    for diagnosis in said(make, batch(), (3e-2, 3e-3)).values():
        assert [s.name for s in diagnosis.signals if s.name == OPTIMIZER_GROUP_RATE]
        assert not diagnosis.at_least("warning")


def test_one_rate_costs_no_steps() -> None:
    model = Shops()
    assert far_apart(torch.optim.SGD(model.parameters(), lr=1.0)) == []
    assert far_apart(split(model, (0.0, 1.0))) == []
    assert far_apart(split(model, (1.0, 0.1))) == [0]
    assert not [
        s for d in said(Shops, town(), (1e-2, 1e-2)).values() for s in d.signals if s.name == OPTIMIZER_GROUP_RATE
    ]


def test_the_first_step_is_left_alone_where_nobody_tells_its_loss() -> None:
    torch.manual_seed(0)
    model, edges, y = Shops(), ring(), town()["y"]
    optimizer = split(model, (5.0, 1e-2))
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(8):
            take_step(optimizer, nn.functional.mse_loss(model(edges), y))
    assert not [s for s in monitor.diagnose().signals if s.name == OPTIMIZER_GROUP_RATE]
