"""What a monitor holds does not grow with the run, and nothing of a step outlives it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv, TransformerConv

import gnnstab
from gnnstab.probe.layers.transformer_conv import TransformerConvWatch
from side_by_side import WIDTH, Net, graph


class Watched(Net):
    """Keeps weak references to everything that its layers return, and to what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[weakref.ref[Any]] = []

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x, edge_index))
        output = self.second(hidden, edge_index)
        self.seen += [weakref.ref(t) for t in (x, edge_index, hidden, output)]
        out: Tensor = self.out(output)
        return out

    @property
    def alive(self) -> int:
        """How many of them still exist; a tensor that only a cycle holds counts as alive."""
        return sum(one() is not None for one in self.seen)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    model(*graph(number)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("schedule", ["every step", 2, 1000])
def test_no_activation_outlives_its_step(schedule: Any) -> None:
    """Without the help of the garbage collector, in both tiers, also after a broken forward and an evaluation."""
    model = Watched()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    gc.disable()
    try:
        with gnnstab.Monitor(model, optimizer=optimizer, schedule=schedule):
            for number in range(4):
                step(model, optimizer, number)
                assert model.alive == 0, f"step {number}"
            with torch.no_grad():
                model(*graph(9))
            with pytest.raises(ValueError, match="edge_index"):
                model(graph(9)[0], None)
            step(model, optimizer, 5)
            assert model.alive == 0
        assert model.alive == 0
    finally:
        gc.enable()


def test_no_activation_outlives_its_step_when_a_layer_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tap still sees scores after the layer's own hook has failed; they must not pile up."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(TransformerConvWatch, "record", fails)
    scores: list[weakref.ref[Any]] = []
    model = Net()
    inner = model.second.register_forward_hook(lambda module, args, out: scores.append(weakref.ref(out)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        with pytest.warns(gnnstab.errors.GnnstabWarning, match="records less"):
            step(model, optimizer, 0)
        for number in range(1, 5):
            step(model, optimizer, number)
        gc.collect()
        assert [one() for one in scores] == [None] * 5
        assert all(not watch._seen for watch in monitor._recorder.watches)
    inner.remove()


class Mixed(nn.Module):
    """An attention layer and another message-passing layer."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = SAGEConv(WIDTH, WIDTH, aggr="sum")
        self.conv = TransformerConv(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.conv(torch.relu(self.sum(x, edge_index)), edge_index)
        return out


@pytest.mark.parametrize("make", [Net, Mixed])
@pytest.mark.parametrize("on_disk", [True, False])
def test_objects_do_not_grow_with_the_steps(make: Callable[[], nn.Module], on_disk: bool, tmp_path: Path) -> None:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    counts = []
    path = tmp_path / "run.gnnstab" if on_disk else None
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, schedule=10) as monitor:
        for number in range(360):
            step(model, optimizer, number)
            if number % 120 == 119:
                monitor.trace.close()
                gc.collect()
                counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] < 60, counts


def test_a_step_that_never_ends_is_bounded() -> None:
    """No optimizer, and nobody calls `step`: everything is one step, merged."""
    model = Net()
    counts = []
    with gnnstab.Monitor(model, schedule="every step") as monitor:
        for number in range(1500):
            with torch.no_grad():
                model(*graph(number % 7))
            if number % 500 == 499:
                gc.collect()
                counts.append(len(gc.get_objects()))
    assert counts[2] - counts[1] < 60, counts
    with monitor.trace as trace:
        (rows,) = trace.sites(layer="first", site="output").values()
        assert rows["count"].tolist() == [1500 * graph()[0].numel()]


def test_inputs_of_a_step_that_never_ends_are_let_go() -> None:
    """Only the inputs of the latest forward are kept, in case that its step ends badly."""
    model = Watched()
    with gnnstab.Monitor(model), torch.no_grad():
        for number in range(10):
            model(*graph(number))
        gc.collect()
        assert model.alive <= 2
