"""Deep stacks that do not learn: found in one forward, undone by hooks on a copy, and told apart from those that learn."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing, TransformerConv
from torch_geometric.utils import softmax

import gnnstab
from trained import take_step

WIDTH, NODES = 16, 40


class Stack(nn.Module):
    """``kind`` says how the layers of a list are put together."""

    def __init__(self, kind: str, depth: int) -> None:
        super().__init__()
        self.kind = kind
        self.inp, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.last = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(depth)])

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        if self.kind == "side by side":
            h = sum(torch.tanh(layer(h)) for layer in self.layers)
        elif self.kind == "one again and again":
            for _ in self.layers:
                h = torch.tanh(self.layers[0](h))
        else:
            for layer, norm in zip(self.layers, self.norms, strict=True):
                h = self.step(layer, norm, h)
        out: Tensor = self.out(self.last(h))
        return out

    def step(self, layer: Any, norm: Any, h: Tensor) -> Tensor:
        if self.kind == "post-norm":
            out: Tensor = norm(h + torch.tanh(layer(h)))
            return out
        if self.kind == "pre-norm":
            return h + torch.tanh(layer(norm(h)))
        if self.kind == "switched off":
            return 0.0 * h + torch.tanh(layer(h))
        return torch.tanh(layer(h)) if self.kind == "bare" else h + torch.tanh(layer(h))


class Convs(nn.Module):
    """Twelve convolutions with a linear skip of their own, and nothing around them."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(6, 32), nn.Linear(32, 3)
        self.convs = nn.ModuleList([TransformerConv(32, 16, heads=2) for _ in range(12)])

    def forward(self, data: Data) -> Tensor:
        h = F.elu(self.inp(data.x))
        for conv in self.convs:
            h = F.elu(conv(h, data.edge_index))
        out: Tensor = self.out(h)
        return out


class Rumour(MessagePassing):
    """What everybody hears: the mean of all who are near, weighted by how alike people were when they began."""

    def forward(self, began: Tensor, edge_index: Tensor, *, state: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, began=began, state=state)
        return out

    def message(self, began_i: Tensor, began_j: Tensor, state_j: Tensor, index: Tensor) -> Tensor:
        return softmax((began_i * began_j).mean(-1, keepdim=True), index) * state_j


class Village(nn.Module):
    """Many rounds of talk, in each of which people keep a part of what they began with, or nothing."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        self.kept, self.talk = kept, Rumour()
        self.inp, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, data: Data) -> Tensor:
        h = first = torch.tanh(self.inp(data.x))
        for _ in range(16):
            h = (1 - self.kept) * self.talk(first, data.edge_index, state=h) + self.kept * first
        out: Tensor = self.out(h)
        return out


def batch() -> Data:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(NODES, 6, generator=g)
    edges = torch.randint(0, NODES, (2, 2 * NODES), generator=g)
    return Data(x=x, edge_index=edges, y=(x @ torch.randn(6, 3, generator=g)).argmax(1))


def loss(output: Tensor, data: Data) -> Tensor:
    return F.cross_entropy(output, data.y)


def asked(kind: str, depth: int, rate: float = 5e-3) -> tuple[list[str], gnnstab.Diagnosis]:
    torch.manual_seed(2)
    model = Stack(kind, depth)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    state = torch.get_rng_state()
    found = gnnstab.diagnose(model, batch=batch(), loss=loss, optimizer=optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return [f.code for f in found.findings if f.signal == "optimizer.undone"], found


@pytest.mark.parametrize(
    ("kind", "depth", "rate", "cause"),
    [
        ("bare", 30, 5e-3, "no-residual"),
        ("one again and again", 60, 5e-3, "no-residual"),
        ("switched off", 30, 5e-3, "no-residual"),
        ("post-norm", 100, 9e-3, "normalization-misuse"),
    ],
)
def test_a_stack_that_keeps_the_model_from_learning_is_the_root(kind: str, depth: int, rate: float, cause: str) -> None:
    codes, found = asked(kind, depth, rate)
    assert codes == ["GS103" if cause == "no-residual" else "GS106"]
    (root,) = found.root_causes()
    assert (root.cause, root.how) == (cause, "undone")
    assert root.share is not None
    assert root.share > 0.65


@pytest.mark.parametrize(("kept", "named"), [(0.0, True), (0.3, False)])
def test_rounds_of_one_layer_that_leave_the_mean_alone_are_oversmoothing(kept: float, named: bool) -> None:
    torch.manual_seed(2)
    model, data = Village(kept), batch()
    data.edge_index = torch.cat([torch.randint(0, NODES, (2, 8 * NODES)), torch.arange(NODES).expand(2, -1)], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    found = gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == ["oversmoothing"] * named
    for root in found.root_causes():
        assert root.how == "undone" and "16 rounds of talk" in root.reason
        assert [fix.fix for fix in root.fixes] == ["mix-first-state"]
        assert "0.8 * self.talk(h" in root.fixes[0].change


@pytest.mark.parametrize(("depth", "rate"), [(12, 0.1), (40, 5e-2)])
def test_a_stack_that_learns_at_a_usual_rate_is_not_what_is_out_of_the_ordinary(depth: int, rate: float) -> None:
    """Ten times Adam's default, or more: normalisations behind the sum are how many networks are built."""
    codes, found = asked("post-norm", depth, rate)
    assert codes == ["GS609"]
    assert [cause.cause for cause in found.root_causes()] == ["learning-rate"]
    assert asked("post-norm", depth, rate / 10)[0] == []


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        ("residual", 30),
        ("pre-norm", 30),
        ("bare", 3),
        ("post-norm", 3),
        ("side by side", 8),
    ],
)
def test_stacks_that_learn_and_layers_side_by_side_are_none(kind: str, depth: int) -> None:
    codes, found = asked(kind, depth)
    assert codes == []
    assert not [s for s in found.signals if s.name == "optimizer.undone" and s.value]


@pytest.mark.parametrize(("kind", "said"), [("bare", ["GS103"]), ("residual", [])])
def test_a_monitor_tries_the_stacks_of_a_run_that_stood_still_without_being_given_the_loss(
    kind: str, said: list[str]
) -> None:
    torch.manual_seed(2)
    model, data = Stack(kind, 30), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(20):
            value = loss(model(data), data)
            take_step(optimizer, value, monitor)
    before = copy.deepcopy(model.state_dict())
    found = monitor.diagnose()
    assert [f.code for f in found.findings if f.signal == "optimizer.undone"] == said
    assert [cause.cause for cause in found.root_causes()] == ["no-residual"] * len(said)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_stack_that_learns_at_three_times_its_rate_is_slow_and_not_hindered() -> None:
    """As deep as the one that is blamed; an identity path would help here, too."""
    torch.manual_seed(2)
    model, data = Convs(), batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer)
    assert not found.at_least("warning")
    (smooth,) = [f for f in found.findings if f.code == "GS704"]
    assert "times the rate" in smooth.message
