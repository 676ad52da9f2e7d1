"""What keeps a small network from learning, undone on a copy: named with its place where no rate makes up for it, and in no repaired twin."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import HGTConv, MessagePassing, TransformerConv

import gnnstab
from gnnstab.probe.optimizer.learning import FAR_OFF, learning_signals, on_its_way
from gnnstab.probe.optimizer.optimizer_steps import Bench
from gnnstab.records import Signal
from gnnstab.rules._stacks import said

WIDTH, NODES, DEGREE = 16, 60, 30


class Neighbours(MessagePassing):
    """Sum, or mean, of what the neighbours have."""

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x)
        return out

    def message(self, x_j: Tensor) -> Tensor:
        return x_j


class Net(nn.Module):
    """``fault`` says what is wrong with it; none for the twin that is right."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.gather = Neighbours(aggr="sum" if fault == "sums" else "mean")
        self.inp = nn.Linear(6, WIDTH)
        self.conv = TransformerConv(WIDTH, WIDTH)
        self.mid, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        with torch.no_grad():
            if fault == "copies":
                for layer in (self.inp, self.mid):
                    layer.weight.fill_(WIDTH**-0.5)
                    layer.bias.zero_()
            if fault == "closed":
                self.mid.bias.fill_(-8.0)
            if fault == "wide":
                self.mid.weight.mul_(60.0)
        self.limit = 0.2 if fault == "cut" else 20.0

    def forward(self, data: Data) -> Tensor:
        h = torch.tanh(self.inp(data.x + self.gather(data.x, data.edge_index)))
        h = F.relu(self.mid(h + self.conv(h, data.edge_index)))
        out: Tensor = self.out(h).squeeze(-1)
        return out.clamp(-self.limit, self.limit)


def batch() -> Data:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(NODES, 6, generator=g) + 1.0
    edges = torch.randint(0, NODES, (2, DEGREE * NODES), generator=g)
    return Data(x=x, edge_index=edges, y=2 * (x[:, 0] - x[:, 1]))


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


def model_of(fault: str, rate: float = 1e-2) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(1)
    model = Net(fault)
    return model, torch.optim.Adam(model.parameters(), lr=rate)


FAULTS = [
    ("copies", "unsuitable-init", "mid.weight"),
    ("closed", "dead-units", "mid"),
    ("wide", "unsuitable-init", "weight of mid"),
    ("sums", "sum-aggregation", "gather"),
    ("cut", "active-clamp", "a clamp ends the model and keeps its output at or above -0.2 and at or below 0.2"),
]


@pytest.mark.parametrize(("fault", "cause", "place"), FAULTS)
def test_what_keeps_it_from_learning_is_the_root_with_its_place(fault: str, cause: str, place: str) -> None:
    model, optimizer = model_of(fault)
    before = copy.deepcopy(model.state_dict())
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer)
    assert found.root_causes()[0].cause == cause
    assert place in " ".join(str(found).split())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("zeros", "told"), [(1.39, True), (12.0, False), (None, False)])
def test_a_loss_that_falls_far_and_stays_above_that_of_an_output_of_zeros_says_so(
    zeros: float | None, told: bool
) -> None:
    detail = {
        "first": 31.7,
        "best": 9.12,
        "undone": 0.304,
        "zeros": zeros,
        "words": "drawing `w` anew",
        "suspect": "`w`",
    }
    assert ("9.12, where an output of zeros has 1.39." in said(Signal("optimizer.undone", 0.76, detail=detail))) is told


class Sampled(nn.Module):
    """Adds noise of a learned size, which `torch.normal` keeps from learning."""

    def __init__(self) -> None:
        super().__init__()
        self.centre, self.spread = (
            nn.Parameter(torch.zeros(NODES, WIDTH)),
            nn.Parameter(torch.full((NODES, WIDTH), 1e-3)),
        )
        self.conv, self.out = TransformerConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.out(self.conv(torch.normal(self.centre, self.spread), data.edge_index)).squeeze(-1)
        return out


def test_what_no_gradient_arrives_at_is_not_drawn_anew() -> None:
    torch.manual_seed(1)
    model = Sampled()
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=1e-2))
    assert "GS609" not in {f.code for f in found.findings}
    # The survey looks at it all the same, though its forward refuses the deviations with which it is tried.
    assert [s for s in found.signals if s.name == "place.rms"]


@pytest.mark.parametrize(("rate", "named"), [(0.12, True), (0.05, False)])
def test_a_rate_is_named_at_a_tenth_of_which_it_learns_and_only_before_the_first_update(
    rate: float, named: bool
) -> None:
    def told(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
        found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer).findings
        return [f.message for f in found if f.code == "GS609" and f.cause == "learning-rate"]

    model, optimizer = model_of("", rate)
    said = told(model, optimizer)
    assert len(said) == named and all("at a rate of 0.012" in message.lower() for message in said)
    loss(model(batch()), batch()).backward()
    optimizer.step()
    assert told(model, optimizer) == []


class Tower(nn.Module):
    """Maps between two layers that are drawn with a deviation of 1, or as their layers draw them."""

    def __init__(self, wide: bool) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 32), nn.Linear(32, 1)
        self.convs = nn.ModuleList([TransformerConv(32, 32) for _ in range(2)])
        self.mids = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        for part in (*self.mids, *(m for conv in self.convs for m in (conv.lin_value, conv.lin_skip))) if wide else ():
            nn.init.normal_(part.weight)

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        for conv, mid in zip(self.convs, self.mids, strict=True):
            h = h + mid(conv(h, data.edge_index).relu())
        out: Tensor = self.out(h).squeeze(-1)
        return out


@pytest.mark.parametrize("wide", [True, False])
def test_what_comes_down_from_far_off_for_ever_is_hindered_by_what_put_it_there(wide: bool) -> None:
    torch.manual_seed(1)
    model = Tower(wide)
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=torch.optim.Adam(model.parameters(), lr=3e-3))
    told = [f.cause for f in found.findings if f.code == "GS609"]
    assert told == (["unsuitable-init"] if wide else [])
    assert [cause.cause for cause in found.root_causes()] == told


@pytest.mark.parametrize(("losses", "way"), [
    ([1000 * 0.98**step for step in range(101)], False),  # So far off that as much again leaves it above an output of zeros.
    ([0.98**step for step in range(101)], True),  # Learned by the hundredth step.
    ([30 * 0.98**step for step in range(101)], True),  # Comes down from far off, and goes on.
    ([1 + 30 * 0.9**step for step in range(101)], False),  # Comes down and stands still.
    ([1.0] * 101, False),
    ([1.0] * 50 + [float("nan")] * 51, False),
])  # fmt: skip
def test_a_model_that_goes_on_learning_is_slow_and_not_hindered(losses: list[float], way: bool) -> None:
    bench: Any = SimpleNamespace(trial=lambda steps, until: SimpleNamespace(losses=losses[: steps + 1]))
    assert on_its_way(bench, 1.0, FAR_OFF) is way


def test_the_repaired_twin_is_stable() -> None:
    model, optimizer = model_of("")
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer)
    assert found.root_causes() == ()


class Valves(nn.Module):
    """What flows on from layer to layer passes a valve for each node and channel, which begins shut, or open."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH) for _ in range(3)])
        self.valves = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(3)])
        for valve in self.valves:
            nn.init.normal_(valve.weight, std=0.1)
            nn.init.constant_(valve.bias, bias)

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        for conv, valve in zip(self.convs, self.valves, strict=True):
            h = torch.sigmoid(valve(h)) * conv(h, data.edge_index).tanh()
        out: Tensor = self.out(h).squeeze(-1)
        return out


class Shifts(nn.Module):
    """A map of its own for each of eight neighbours in a ring, drawn for the entries of one of them, or of all."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, WIDTH, WIDTH) / (terms * WIDTH) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.roll(k, 0) @ own for k, own in enumerate(self.weight)]).sum(0)


class Ring(nn.Module):
    """Blocks of such maps, and an answer between -1 and 1."""

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.inp, self.conv, self.out = nn.Linear(6, WIDTH), TransformerConv(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        self.blocks = nn.ModuleList([Shifts(terms) for _ in range(5)])

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        h = h + self.conv(h, data.edge_index)
        for block in self.blocks:
            h = (h + block(h)).relu()
        out: Tensor = torch.tanh(self.out(h).squeeze(-1))
        return out


@pytest.mark.parametrize(("made", "cause", "told"), [
    (lambda fault: Valves(-4.0 if fault else 1.0), "saturated-gate", "valves.0, valves.1, valves.2 are all but shut"),
    (lambda fault: Ring(1 if fault else 8), "unsuitable-init", "and 2 more make what they are given"),
], ids=["gates", "growth"])  # fmt: skip
@pytest.mark.parametrize("fault", [True, False])
def test_shut_gates_and_weights_that_make_all_larger_are_undone(made: Any, cause: str, told: str, fault: bool) -> None:
    data = batch()
    data.y = torch.tanh(data.y / 3)
    torch.manual_seed(1)
    model = made(fault)
    optimizer = (
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if cause == "saturated-gate"  # Adam makes up for small gradients.
        else torch.optim.Adam(model.parameters(), lr=3e-3)
    )
    bench = Bench(model, optimizer, [((data,), {})], [data], loss)
    (said,) = learning_signals(bench)
    assert (said.detail.get("cause"), said.value > 0.5) == ((cause, True) if fault else (None, False))
    assert (told in said.detail.get("suspect", "")) is fault


SHELVES, BOOKS = 20, 50


class Shelves(nn.Module):
    """Books, with two numbers each, on shelves that are known by their row in a table."""

    def __init__(self) -> None:
        super().__init__()
        kinds = ["book", "shelf"]
        self.book, self.shelf = nn.Linear(2, WIDTH), nn.Embedding(SHELVES, WIDTH)
        self.conv = HGTConv(WIDTH, WIDTH, (kinds, [("shelf", "holds", "book"), ("book", "on", "shelf")]), heads=2)
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, data: HeteroData) -> Tensor:
        rows = {"book": self.book(data["book"].x), "shelf": self.shelf(data["shelf"].row)}
        told: Tensor = self.out(rows["book"] + self.conv(rows, data.edge_index_dict)["book"])
        return told


def shelves(rows: Tensor) -> HeteroData:
    g = torch.Generator().manual_seed(2)
    data, on = HeteroData(), torch.arange(3 * BOOKS) % SHELVES
    data["book"].x, data["book"].y = torch.randn(3 * BOOKS, 2, generator=g), on % 3
    data["shelf"].row = rows
    data["shelf", "holds", "book"].edge_index = torch.stack([on, torch.arange(3 * BOOKS)])
    data["book", "on", "shelf"].edge_index = torch.stack([torch.arange(3 * BOOKS), on])
    return data


@pytest.mark.parametrize("apart", [False, True])
def test_a_kind_of_nodes_that_all_come_with_one_vector_is_named_where_vectors_of_their_own_let_it_learn(
    apart: bool,
) -> None:
    torch.manual_seed(1)
    model = Shelves()
    data = shelves(torch.arange(SHELVES) if apart else torch.zeros(SHELVES, dtype=torch.long))
    found = gnnstab.diagnose(
        model,
        batch=data,
        loss=lambda output, given: F.cross_entropy(output, given["book"].y),
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-2),
    )
    told = [(f.cause, f"all {SHELVES} nodes of shelf" in f.message) for f in found.findings if f.code == "GS609"]
    assert told == ([] if apart else [("indistinguishable-nodes", True)])
