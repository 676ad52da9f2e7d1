"""Compiled models: one graph as before, the same numbers as in eager execution, and what is not seen is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch_geometric.nn import TransformerConv

import side_by_side
from gnnstab.probe.recorder import Recorder
from gnnstab.trace import Trace, TraceWriter
from models.convnets import CASES, WIDTH, Shared, Stack, graph, scalar
from side_by_side import Run

FORWARD = ("input", "output", "score", "attention", "gate")


pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def record(
    watched: nn.Module, called: Any, args: tuple[Any, ...], steps: int = 3, **options: Any
) -> tuple[Trace, Recorder]:
    """Record some steps of ``called``."""
    with TraceWriter(None) as writer, Recorder(watched, writer, **options) as recorder:
        for _ in range(steps):
            watched.zero_grad()
            scalar(called(*args)).backward()
            recorder.end_step(moves=True)
            recorder.after_update()
        assert recorder.events == []
        coverage = recorder.coverage
        assert coverage.layers_observed == coverage.layers_expected
        return writer.read(), recorder


class ThreeKinds(Stack):
    """A plain layer, one without a root weight and one with a gate: what would be three compilations."""

    def __init__(self) -> None:
        super().__init__(1)
        options = {"heads": 2, "concat": False, "edge_dim": 3}
        self.convs.append(TransformerConv(WIDTH, WIDTH, root_weight=False, **options))
        self.convs.append(TransformerConv(WIDTH, WIDTH, beta=True, **options))


@pytest.mark.parametrize("kind", [ThreeKinds, Shared])
def test_one_graph_without_a_break_records_what_eager_execution_does(kind: type[nn.Module]) -> None:
    """``fullgraph`` fails at every graph break, and the counter grows with every recompilation."""
    torch.manual_seed(0)
    model = kind()
    args = graph() if kind is ThreeKinds else graph()[:2]
    expected, _ = record(model, model, args)
    found, recorder = record(model, torch.compile(model, backend="aot_eager", fullgraph=True), args, full_every=2)
    assert counters["stats"]["unique_graphs"] == 1
    for layer in {key.layer for key in expected.sites(site="score")}:
        for site in FORWARD if layer == "convs.2" else FORWARD[:4]:
            calls = list(expected.sites(layer, site).values())
            ((key, rows),) = found.sites(layer, site).items()
            assert key.call == 0
            assert np.allclose(rows["minimum"], np.min([c["minimum"] for c in calls], axis=0), rtol=1e-6)
            assert np.allclose(rows["maximum"], np.max([c["maximum"] for c in calls], axis=0), rtol=1e-6)
            assert list(rows["count"]) == list(np.sum([c["count"] for c in calls], axis=0))
        gradient = f"{layer}.lin_value.weight"
        (one,), (other,) = (list(t.sites(gradient, "weight_grad").values()) for t in (expected, found))
        assert np.allclose(one["rms"], other["rms"], rtol=1e-5)
    blind = {(b.layer, b.site): b.reason for b in recorder.coverage.blind}
    assert all("compiled graph" in reason for reason in blind.values())
    assert {site for _, site in blind} == {"grad_output", "grad_input"}


def test_outputs_and_gradients_are_the_same_with_the_recorder_and_after_it() -> None:
    torch.manual_seed(0)
    model, args = Stack(1), graph()
    compiled = torch.compile(model, backend="aot_eager")

    def run() -> list[Any]:
        model.zero_grad()
        output = compiled(*args)
        scalar(output).backward()
        return [output.detach(), *(p.grad.clone() for p in model.parameters())]

    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        watched = run()
        assert recorder.state.open
    graphs = counters["stats"]["unique_graphs"]
    alone = run()
    assert counters["stats"]["unique_graphs"] == graphs + 1, "the graph of the recorder must not go on"
    assert all(torch.equal(one, other) for one, other in zip(watched, alone, strict=True))


def test_a_compiled_wrapper_is_looked_through() -> None:
    model, args = CASES[0].make()
    compiled = torch.compile(model, backend="eager")
    trace, _ = record(compiled, compiled, args)
    assert {facts.name for facts in trace.layers()} == {"convs.0", "convs.1"}


def test_what_was_compiled_before_is_either_seen_or_named() -> None:
    model, args = CASES[0].make()
    compiled = torch.compile(model, backend="eager")
    compiled(*args)
    with TraceWriter(None) as writer, Recorder(compiled, writer) as recorder:
        compiled(*args)
        coverage = recorder.coverage
    blind = {b.layer for b in coverage.blind if b.site == "output"}
    assert coverage.layers_observed + len(blind) == coverage.layers_expected == 2


def test_a_subclass_with_its_own_message_is_blind_for_scores_inside_a_graph() -> None:
    class Halved(TransformerConv):
        def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
            return super().message(query_i / 2, key_j, value_j, edge_attr, index, ptr, size_i)

    torch.manual_seed(0)
    model, args = Stack(1, Halved), graph()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        torch.compile(model, backend="eager")(*args)
        recorder.end_step()
        blind = {b.site: b.reason for b in recorder.coverage.blind}
        assert writer.read().sites("convs.0", "output")
        assert writer.read().sites("convs.0", "score") == {}
    assert "compiled graph" in blind["score"]


def test_a_scripted_layer_is_named() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.jit.trace(Shared().conv, (torch.randn(4, 8), torch.zeros(2, 3, dtype=torch.long)))

    model = Holder()
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        coverage = recorder.coverage
    assert coverage.layers_observed == 0
    assert [(b.layer, b.site) for b in coverage.blind] == [("inner", "output")]
    assert "scripted" in coverage.blind[0].reason


def test_scripting_a_monitored_model_says_what_to_do() -> None:
    model = nn.Sequential(nn.Linear(4, 4), TransformerConv(4, 2))
    with (
        TraceWriter(None) as writer,
        Recorder(model, writer),
        pytest.raises(AttributeError, match="script the model before the monitor is attached"),
    ):
        torch.jit.script(model)


def compiled_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    return torch.compile(optimizer.step, backend="eager")


def compiled_around(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    return torch.compile(lambda: optimizer.step(), backend="eager")


@pytest.mark.parametrize("compiled", [compiled_step, compiled_around])
def test_a_compiled_step_of_the_optimizer(compiled: Callable[..., Callable[[], object]]) -> None:
    def loop(run: Run) -> None:
        torch._dynamo.reset()
        (x, edges), model = side_by_side.graph(), side_by_side.Net()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        step = compiled(optimizer)
        with run.watching(model, optimizer=optimizer):
            for _ in range(12):
                optimizer.zero_grad()
                scalar(model(x, edges)).backward()
                step()
        run.keep(*model.parameters())

    run = side_by_side.unnoticed(loop)
    assert run.monitor is not None
    assert side_by_side.codes(run.monitor) == []
    with run.monitor.trace as trace:
        assert len(trace.steps()) == 12
