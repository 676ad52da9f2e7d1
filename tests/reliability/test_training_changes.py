"""Models that change while they are watched, and loops that end in an exception."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from side_by_side import WIDTH, Net, Run, codes, graph, hooks_of, unnoticed

STEPS = 4


def steps(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, start: int = 0) -> None:
    """A few plain training steps that keep everything."""
    dtype = next(model.parameters()).dtype
    for number in range(start, start + STEPS):
        optimizer.zero_grad()
        x, edge_index = graph(number)
        output = model(x.to(dtype), edge_index)
        output.square().mean().backward()
        run.keep(output)
        run.keep_gradients(model)
        optimizer.step()


def two_halves(change: Callable[[Any, torch.optim.Optimizer], None], kind: type[nn.Module] = Net) -> Run:
    """A training whose model changes in the middle, with and without a monitor; nothing is warned about."""

    def loop(run: Run) -> None:
        model = kind()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer, schedule="every step"):
            steps(run, model, optimizer)
            change(model, optimizer)
            steps(run, model, optimizer, STEPS)
            run.keep(*model.parameters())

    run = unnoticed(loop)
    assert run.warned == []
    return run


def test_parameters_replaced_in_mid_run() -> None:
    """New parameter objects, as after pruning or re-initialisation by assignment; their gradients are seen."""

    def change(model: Net, optimizer: torch.optim.Optimizer) -> None:
        model.first.lin_value.weight = nn.Parameter(torch.full((2 * WIDTH, WIDTH), 0.25))
        optimizer.add_param_group({"params": [model.first.lin_value.weight]})

    with two_halves(change).monitor.trace as trace:
        (rows,) = trace.sites(layer="first.lin_value.weight", site="weight").values()
    assert rows["step"].tolist() == list(range(2 * STEPS))
    assert abs(rows["rms"][STEPS] - 0.25) < 1e-6, "the size recorded is that of the new parameter"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moved_to_another_dtype_in_mid_run(dtype: torch.dtype) -> None:
    def change(model: Net, optimizer: torch.optim.Optimizer) -> None:
        model.to(dtype)
        optimizer.zero_grad()

    with two_halves(change).monitor.trace as trace:
        assert [row.step for row in trace.steps()] == list(range(2 * STEPS))
        (rows,) = trace.sites(layer="first", site="score").values()
    assert len(rows) == 2 * STEPS


class Growing(nn.Module):
    """As many layers as it holds by now."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([TransformerConv(WIDTH, WIDTH)])

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x, edge_index))
        return x


def test_layers_that_come_in_mid_run_are_judged_by_the_end_of_it_and_told_once() -> None:
    def change(model: Growing, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(2):
            model.convs.append(TransformerConv(WIDTH, WIDTH))
        optimizer.add_param_group({"params": list(model.convs[1:].parameters())})

    diagnosis = two_halves(change, Growing).monitor.diagnose()
    (told,) = [f for f in diagnosis.findings if f.code.startswith("GS9")]
    assert told.severity == "info"
    assert told.message.startswith("convs.1, convs.2: put into the model")
    assert {s.layer for s in diagnosis.signals if s.name == "attention.entropy"} == {"convs.0", "convs.1", "convs.2"}
    assert diagnosis.coverage.layers_observed == diagnosis.coverage.layers_expected == 3


def test_layers_added_in_mid_run_are_named_as_unseen() -> None:
    def change(model: Growing, optimizer: torch.optim.Optimizer) -> None:
        model.convs.append(TransformerConv(WIDTH, WIDTH))
        optimizer.add_param_group({"params": list(model.convs[1].parameters())})

    run = two_halves(change, Growing)
    assert "convs.1" in {blind.layer for blind in run.monitor.coverage.blind}
    assert "GS901" in codes(run.monitor, "info")


def test_layers_replaced_in_mid_run() -> None:
    def change(model: Net, optimizer: torch.optim.Optimizer) -> None:
        model.second = TransformerConv(WIDTH, WIDTH, heads=2, concat=False)

    assert "second" in {blind.layer for blind in two_halves(change).monitor.coverage.blind}


class Oops(RuntimeError):
    """Raised by a model of the test."""


class Failing(Net):
    """Raises between its layers when asked to."""

    fails = False

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x, edge_index))
        if self.fails:
            raise Oops
        return self.out(self.second(hidden, edge_index))


def test_an_exception_inside_the_forward_that_the_loop_survives() -> None:
    def change(model: Failing, optimizer: torch.optim.Optimizer) -> None:
        model.fails = True
        with pytest.raises(Oops):
            model(*graph(99))
        model.fails = False

    with two_halves(change, Failing).monitor.trace as trace:
        calls = {key.call for key in trace.keys().values()}
        assert len(trace.steps()) == 2 * STEPS
    assert calls == {0}, "the call after a broken forward is the first of its forward, not a second one"


@pytest.mark.parametrize("error", [Oops, KeyboardInterrupt, SystemExit])
def test_an_exception_that_ends_the_loop(error: type[BaseException]) -> None:
    """It leaves the monitor unchanged, the model is free of hooks, and what was recorded can be diagnosed."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    raised = error("stop")
    monitor = gnnstab.Monitor(model, optimizer=optimizer)

    def loop() -> None:
        with monitor:
            steps(Run(True, {}), model, optimizer)
            model(*graph(99))
            raise raised

    with pytest.raises(error) as caught:
        loop()
    assert caught.value is raised
    assert hooks_of(model) == []
    with monitor.trace as trace:
        assert len(trace.steps()) >= STEPS
    assert monitor.diagnose().coverage.layers_observed == 2


def test_nested_monitors_see_the_same() -> None:
    def loop(run: Run) -> None:
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with run.watching(model, optimizer=optimizer) as outer:
            steps(run, model, optimizer)
            if outer is None:
                steps(run, model, optimizer, STEPS)
            else:
                with gnnstab.Monitor(model, optimizer=optimizer, schedule=3) as inner:
                    steps(run, model, optimizer, STEPS)
                with outer.trace as long, inner.trace as short:
                    assert [row.step for row in short.steps()] == list(range(STEPS))
                    for key, rows in short.sites(layer="first", site="score").items():
                        later = long.sites(layer="first", site="score")[key]
                        assert rows["maximum"].tolist() == later["maximum"].tolist()[-STEPS:]
            steps(run, model, optimizer, 2 * STEPS)

    run = unnoticed(loop)
    assert run.warned == []
    with run.monitor.trace as trace:
        assert len(trace.steps()) == 3 * STEPS


def test_a_monitor_that_outlives_another_in_any_order() -> None:
    """The first monitor goes while the second still listens to the same layers."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    first, second = (gnnstab.Monitor(model, optimizer=optimizer) for _ in range(2))
    first.__enter__()
    second.__enter__()
    steps(Run(True, {}), model, optimizer)
    first.__exit__(None, None, None)
    steps(Run(True, {}), model, optimizer)
    second.__exit__(None, None, None)
    assert hooks_of(model) == []
    with first.trace as early, second.trace as late:
        assert (len(early.steps()), len(late.steps())) == (STEPS, 2 * STEPS)


def test_copies_and_pickles_of_a_watched_model_are_free_of_the_monitor() -> None:
    model = Net(dropout=0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        steps(Run(True, {}), model, optimizer)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        state = pickle.loads(pickle.dumps(optimizer.state_dict()))
        for twin in twins:
            assert torch.equal(twin(*graph()), model(*graph()))
    with monitor.trace as trace:
        before = len(trace.steps())
    for twin in twins:
        twin(*graph()).sum().backward()
        assert torch.equal(twin(*graph()), model(*graph()))
    with monitor.trace as trace:
        assert len(trace.steps()) == before
    assert set(state) == {"state", "param_groups"}


def test_a_monitor_lets_the_model_go() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    gone = weakref.ref(model)
    with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        steps(Run(True, {}), model, optimizer)
    del monitor
    optimizer.zero_grad()
    del model, optimizer
    gc.collect()
    assert gone() is None
