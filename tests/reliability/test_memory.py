"""What a monitor holds does not grow with the run, and nothing of a step outlives it."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import SAGEConv, TransformerConv

import gnnstab
from gnnstab.probe.layers._attention import AttentionRecorder
from side_by_side import WIDTH, Net, Run, graph, unnoticed


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


@pytest.mark.usefixtures("brief")
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


@pytest.mark.usefixtures("brief")
def test_no_activation_outlives_its_step_when_a_layer_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tap still sees scores after the layer's own hook has failed; they must not pile up."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(AttentionRecorder, "record", fails)
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
        assert all(not layer._seen for layer in monitor._recorder.layers)
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


WINDOW = 40
"""Steps in a window; a leak of one object per step is a growth of as many objects."""


@pytest.fixture
def frozen(brief: None) -> None:
    """What was there before the test is not gone through again and again."""
    gc.collect()
    gc.freeze()


def objects() -> int:
    """Objects that the garbage collector knows, those that are frozen and weak references aside.

    A connection of sqlite3 keeps one to every cursor and drops the dead ones when there are 200: a sawtooth that comes
    and goes with the statements, which is no leak and would hide one.
    """
    gc.collect()
    return sum(type(one) is not weakref.ReferenceType for one in gc.get_objects())


def grows(counts: list[int]) -> bool:
    """True when every window has grown: what is cached once, or waits to be written, shows in some of them."""
    return all(later - earlier > WINDOW // 2 for earlier, later in itertools.pairwise(counts))


def counts_of(make: Callable[[], nn.Module], path: Path | None, between: Callable[[], object]) -> list[int]:
    """Objects at the ends of five windows of steps, the first of which fills the caches."""
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    counts = []
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, schedule=10) as monitor:
        for number in range(1, 5 * WINDOW + 1):
            step(model, optimizer, number)
            between()
            if number % WINDOW == 0:
                monitor.trace.close()
                counts.append(objects())
    return counts


def nothing() -> None:
    """Keep nothing of a step."""


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("make", [Net, Mixed])
@pytest.mark.parametrize("on_disk", [True, False])
def test_objects_do_not_grow_with_the_steps(make: Callable[[], nn.Module], on_disk: bool, tmp_path: Path) -> None:
    counts = counts_of(make, tmp_path / "run.gnnstab" if on_disk else None, nothing)
    assert not grows(counts), counts


@pytest.mark.usefixtures("frozen")
def test_a_leak_of_one_object_per_step_would_be_seen() -> None:
    kept: list[Any] = []
    counts = counts_of(Net, None, lambda: kept.append([]))
    assert grows(counts), counts


@pytest.mark.usefixtures("frozen")
def test_a_step_that_never_ends_is_bounded() -> None:
    """No optimizer, and nobody calls `step`: everything is one step, merged."""
    model = Net()
    counts, forwards = [], 12 * WINDOW
    with gnnstab.Monitor(model, schedule="every step") as monitor:
        for number in range(1, forwards + 1):
            with torch.no_grad():
                model(*graph(number % 7))
            if number % (2 * WINDOW) == 0:
                counts.append(objects())
    assert not grows(counts), counts
    with monitor.trace as trace:
        (rows,) = trace.sites(layer="first", site="output").values()
        assert rows["count"].tolist() == [forwards * graph()[0].numel()]


def test_inputs_of_a_step_that_never_ends_are_let_go() -> None:
    """Only the inputs of the latest forward are kept, in case that its step ends badly."""
    model = Watched()
    with gnnstab.Monitor(model), torch.no_grad():
        for number in range(10):
            model(*graph(number))
        gc.collect()
        assert model.alive <= 2


def monitored(model: nn.Module, **options: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", **options) as monitor:
        for _ in range(10):
            optimizer.zero_grad()
            loss = model(*graph()).square().mean()
            loss.backward()
            monitor.loss(loss)
            optimizer.step()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize(
    "look",
    [
        monitored,
        lambda model: monitored(model, schedule="every step", loss=lambda out: out.square().mean()),
        lambda model: gnnstab.diagnose(model, batch=graph()),
        lambda model: gnnstab.diagnose(model, batch=graph(), loss=lambda out: out.square().mean()),
        lambda model: gnnstab.attention(model, graph()),
    ],
    ids=["monitor", "every step", "diagnose", "diagnose with a loss", "attention"],
)
def test_no_copy_of_the_model_outlives_the_look(look: Callable[[nn.Module], object]) -> None:
    """Nor a tensor of its graph: what a node of the graph holds, Python's collector does not see."""

    class Own(Net):
        """Of this test alone, so that its copies can be told from others."""

    def alive() -> tuple[int, ...]:
        gc.collect()
        objects = gc.get_objects()
        # By type: asking a proxy for its class would wake it.
        return tuple(sum(issubclass(type(o), kind) for o in objects) for kind in (Own, Tensor))

    model = Own()
    look(model)  # What is made once for all is made here.
    before = alive()
    look(model)
    assert alive() == before


def test_inputs_whose_memory_is_freed_after_the_backward() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer):
            for _ in range(4):
                x, edge_index = graph()
                optimizer.zero_grad()
                model(x, edge_index).square().mean().backward()
                x.untyped_storage().resize_(0)
                optimizer.step()
                run.keep(*model.parameters())

    assert unnoticed(loop).warned == []
