"""Steps that a budget leaves out: nothing is hooked in them, and one that goes wrong is run again in full."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from gnnstab.errors import GnnstabWarning
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.replaying.skipped_step import MOST
from gnnstab.records import Event
from gnnstab.trace import TraceWriter
from models.convnets import CASES, SquareRoot, Stack, graph, scalar


def one_step(model: nn.Module, args: tuple[Any, ...], recorder: Recorder | None, **end: Any) -> None:
    model.zero_grad()
    scalar(model(*args)).backward()
    if recorder is not None:
        recorder.end_step(moves=True, **end)


def until_left_out(model: nn.Module, args: tuple[Any, ...], recorder: Recorder) -> int:
    """Train until the next step is one that is left out; its number."""
    for _ in range(200):
        if not recorder.state.light:
            return recorder.step
        one_step(model, args, recorder)
    raise AssertionError("no step was left out")


@contextmanager
def leaving_out(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Iterator[tuple[TraceWriter, Recorder]]:
    """A recorder whose current step is left out."""
    options = {"full_every": 0, "budget": 1e-6, **options}
    with TraceWriter(None) as writer, Recorder(model, writer, **options) as recorder:
        until_left_out(model, args, recorder)
        yield writer, recorder
        assert [e.message for e in recorder.events if e.kind == "tool-failure"] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layers_are_left_alone_in_such_a_step(case: Any) -> None:
    model, args = case.make()
    inside = [m for layer in model.modules() if isinstance(layer, MessagePassing) for m in layer.modules()]
    inside = [m for m in inside if m is not model]
    before = [(len(m._forward_hooks), "message" in vars(m)) for m in inside]
    with leaving_out(model, args) as (_, recorder):
        assert [(len(m._forward_hooks), "message" in vars(m)) for m in inside] == before
        one_step(model, args, recorder)
        recorder.budget.schedule.force()
        one_step(model, args, recorder)
        assert recorder.state.full
        assert sum(len(m._forward_hooks) for m in inside) > 0
    assert [(len(m._forward_hooks), "message" in vars(m)) for m in inside] == before
    assert all(not m._forward_hooks_with_kwargs for m in inside)


def event_of(model: nn.Module, good: Any, bad: Any, loss: float | None = None) -> tuple[Event, list[Tensor], Any]:
    with leaving_out(model, good) as (writer, recorder):
        step = recorder.step
        state = torch.get_rng_state()
        model.zero_grad()
        scalar(model(*bad)).backward()
        weights = [p.detach().clone() for p in model.parameters()]
        after = torch.get_rng_state()
        if loss is not None:
            recorder.loss(loss)
        recorder.end_step(moves=True)
        assert torch.equal(after, torch.get_rng_state())
        assert not torch.equal(state, after) or not any(getattr(m, "dropout", 0) for m in model.modules())
        assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
        (event,) = recorder.events
        assert event.step == step
        assert recorder.state.full, "the step after an event is measured in full"
        return event, weights, writer.read()


def test_a_forward_that_goes_bad_is_located_and_recorded_in_full() -> None:
    model, (x, *rest) = CASES[0].make()
    bad = x.clone()
    bad[5, 1] = math.nan
    event, _, trace = event_of(model, (x, *rest), (bad, *rest))
    assert (event.stage, event.origin, event.nodes) == ("input", "came-in", (5,))
    (rows,) = trace.sites("convs.0", "input").values()
    assert rows["step"][-1] == event.step
    assert math.isnan(rows["maximum"][-1])
    assert {m.step for m in trace.measures("attention.entropy")} == {event.step}


def test_a_gradient_that_goes_bad_is_located_by_running_the_backward_again() -> None:
    torch.manual_seed(0)
    model, args = SquareRoot(2), graph()
    with leaving_out(model, args) as (writer, recorder):
        model.broken = True
        one_step(model, args, recorder)
        (event,) = recorder.events
        trace = writer.read()
    assert "the gradient that reached convs.0, the last recorded layer of the backward pass" in event.message
    # No layer spoils it, but the root of 0 that stands between them, in the code of the model itself.
    operation = event.detail["operation"]
    assert (event.stage, event.layer, event.origin) == ("gradient", None, "made-here")
    assert (operation["node"], operation["how"]) == ("SqrtBackward0", "repeated") and ".sqrt()" in operation["code"]
    (rows,) = trace.sites("convs.1", "grad_output").values()
    assert rows["step"][-1] == event.step
    assert np.isfinite(rows["maximum"][-1])


def test_the_second_run_shows_what_the_first_would_have() -> None:
    """Dropout included: the rows of a step that was run again equal those of a step that was recorded at once."""

    def last(budget: float | None) -> dict[Any, Any]:
        torch.manual_seed(0)
        model, args = Stack(2, dropout=0.5), graph()
        with TraceWriter(None) as writer, Recorder(model, writer, full_every=0, budget=budget) as recorder:
            for _ in range(60):
                one_step(model, args, recorder)
            model.zero_grad()
            assert recorder.state.light is (budget is None)
            writer.flush()  # Parameter gradients share a row with what is written along with them.
            scalar(model(*args)).backward()
            recorder.loss(math.inf)
            recorder.end_step(moves=True)
            return {key: rows[-1:] for key, rows in writer.read().sites().items()}

    expected, found = last(None), last(1e-6)
    assert expected.keys() == found.keys()
    for key, rows in expected.items():
        assert rows["step"] == found[key]["step"] == 60
        assert rows["minimum"] == found[key]["minimum"], key
        assert rows["rms"] == found[key]["rms"], key


def test_a_gradient_that_only_the_caller_has_spoilt_is_named() -> None:
    model, args = CASES[0].make()
    with leaving_out(model, args) as (_, recorder):
        model.zero_grad()
        scalar(model(*args)).backward()
        model.convs[1].lin_key.weight.grad[0, 0] = math.inf
        recorder.end_step(moves=True)
        (event,) = recorder.events
    assert (event.layer, event.stage) == ("convs.1.lin_key", "gradient")
    assert "run again, everything was finite" in event.message


def test_a_step_that_the_scaler_skips_is_no_event() -> None:
    model, (x, *rest) = CASES[0].make()
    with leaving_out(model, (x, *rest)) as (_, recorder):
        one_step(model, (x * math.inf, *rest), recorder, skipped=True)
        assert recorder.events == []


def test_the_norm_of_the_gradients_is_told_for_every_step() -> None:
    model, args = CASES[0].make()
    with leaving_out(model, args) as (writer, recorder):
        one_step(model, args, recorder)
        expected = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
        rows = writer.read().steps()
    assert rows[-1].grad_norm == pytest.approx(expected, rel=1e-6)
    assert rows[-2].grad_norm == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_a_norm_is_infinite_only_where_an_entry_is(dtype: torch.dtype, size: float) -> None:
    from gnnstab.probe.buffering.series_ids import SeriesIds
    from gnnstab.probe.layers.parameters import Parameters

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 40_000)).to(dtype)
    parameters = Parameters(model, SeriesIds())
    assert parameters.norm() is None
    for p in model.parameters():
        p.grad = torch.full_like(p, min(size, torch.finfo(dtype).max / 2))
    exact = math.sqrt(sum(float(p.grad.double().square().sum()) for p in model.parameters()))
    norm = parameters.norm()
    assert norm is not None
    assert math.isfinite(norm)
    if exact > 1e-15:
        assert norm == pytest.approx(exact, rel=1e-2)
    assert parameters.bad_gradients() == []
    model[0].bias.grad[3] = math.nan
    assert not math.isfinite(parameters.norm() or 0.0)
    assert parameters.bad_gradients() == ["0.bias"]


def test_training_is_the_same_bit_for_bit() -> None:
    def train(budget: float | None) -> list[Tensor]:
        torch.manual_seed(0)
        model, args = Stack(2, dropout=0.3), graph()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with TraceWriter(None) as writer:
            recorder = None if budget is None else Recorder(model, writer, budget=budget).attach()
            for _ in range(40):
                one_step(model, args, recorder)
                optimizer.step()
            if recorder is not None:
                assert not recorder.state.light
                recorder.detach()
        return [*(p.detach() for p in model.parameters()), torch.rand(2)]

    assert all(torch.equal(one, other) for one, other in zip(train(None), train(1e-6), strict=True))


class Uncopyable(Stack):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not this one")


@pytest.mark.parametrize("reason", ["not this one", "forward passes", "no forward", "neither gradients", "not kept"])
def test_where_a_step_could_not_be_run_again_every_step_is_recorded(reason: str) -> None:
    torch.manual_seed(0)
    model, args = (Uncopyable if reason == "not this one" else Stack)(2), graph()
    times = MOST + 1 if reason == "forward passes" else 1
    options = {"replay": False} if reason == "not kept" else {}
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0, budget=1e-6, **options) as recorder:
        for _ in range(40):
            for _ in range(times):
                output = model.convs[0](*args) if reason == "no forward" else model(*args)
                if reason != "neither gradients":
                    scalar(output).backward()
            recorder.end_step(moves=reason != "neither gradients")
            assert recorder.state.light
        assert reason in recorder.held
        trace = writer.read()
    (rows,) = trace.sites("convs.0", "score").values()
    assert len(rows) == 40
    assert reason in trace.meta["schedule"]


def test_a_monitor_says_so_when_a_budget_was_asked_for() -> None:
    import gnnstab

    torch.manual_seed(0)
    model, args = Stack(1), graph()
    with gnnstab.Monitor(model, budget=0.02) as monitor, torch.no_grad():
        model(*args)
        with pytest.warns(GnnstabWarning, match=r"budget.*no forward of the whole model"):
            monitor.step()


def test_of_several_forwards_the_bad_one_is_found() -> None:
    model, (x, *rest) = CASES[0].make()
    with leaving_out(model, (x, *rest)) as (_, recorder):
        for batch in (x, x * math.nan, x):
            scalar(model(batch, *rest)).backward()
        recorder.end_step(moves=True)
        (event,) = recorder.events
    assert (event.stage, event.origin, event.detail["argument"]) == ("input", "came-in", "x")
