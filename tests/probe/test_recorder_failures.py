"""A failure inside the recorder never reaches the run."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from gnnstab.errors import GnnstabWarning
from gnnstab.layers.transformer_conv import TransformerConvLayer
from gnnstab.probe.attaching.activation_gradients import GradientHook
from gnnstab.probe.attaching.boundary import Boundary
from gnnstab.probe.attaching.forward_tracker import ForwardTracker
from gnnstab.probe.buffering.pending_step import PendingStep
from gnnstab.probe.buffering.stats_buffer import StatsBuffer
from gnnstab.probe.buffering.step_writer import StepWriter
from gnnstab.probe.events import _non_finite_event as non_finite_event
from gnnstab.probe.events import non_finite_detector
from gnnstab.probe.layer_notes import LayerNotes
from gnnstab.probe.layers import _attention as attention
from gnnstab.probe.layers._attention import AttentionRecorder
from gnnstab.probe.layers.parameters import Parameters
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.state import State
from gnnstab.trace import TraceWriter
from models.convnets import CASES, scalar

STAGES = [
    (StatsBuffer, "put"),
    (StatsBuffer, "put_joined"),
    (StatsBuffer, "take"),
    (StatsBuffer, "send"),
    (State, "send"),
    (PendingStep, "result"),
    (AttentionRecorder, "record"),
    (AttentionRecorder, "saw"),
    (AttentionRecorder, "returned"),
    (AttentionRecorder, "attach"),
    (AttentionRecorder, "detach"),
    (AttentionRecorder, "facts"),
    (AttentionRecorder, "_after_gate"),
    (attention, "attention_measures"),
    (TransformerConvLayer, "edges"),
    (TransformerConvLayer, "joined"),
    (GradientHook, "watch"),
    (ForwardTracker, "_before"),
    (ForwardTracker, "_after"),
    (ForwardTracker, "attach"),
    (Parameters, "gradients"),
    (Parameters, "remember"),
    (Parameters, "change"),
    (StepWriter, "sites"),
    (StepWriter, "measures"),
    (Boundary, "end"),
    (TraceWriter, "sites"),
    (TraceWriter, "step"),
    (TraceWriter, "layer"),
]


class Broken(Exception):
    """The injected fault."""


def fail(*args: Any, **kwargs: Any) -> None:
    raise Broken("injected")


def train(monitored: bool) -> tuple[list[Tensor], list[Any]]:
    """Two steps of a gated stack: everything that training produced, and the failures that were noted."""
    model, args = next(case for case in CASES if case.name == "beta").make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept: list[Tensor] = []

    def loop() -> None:
        for _ in range(2):
            optimizer.zero_grad()
            output = model(*args)
            scalar(output).backward()
            kept.extend(p.grad.clone() for p in model.parameters())
            kept.append(output.detach().clone())
            optimizer.step()

    failures: list[Any] = []
    if monitored:
        with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
            boundary = Boundary(recorder, [optimizer])
            boundary.attach()
            loop()
            boundary.detach()
        failures = [event for event in recorder.events if event.kind == "tool-failure"]
    else:
        loop()
    return [*kept, *(p.detach() for p in model.parameters())], failures


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: f"{stage[0].__name__.split('.')[-1]}.{stage[1]}")
def test_a_failure_in_any_stage_leaves_training_alone(stage: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = train(monitored=False)
    monkeypatch.setattr(*stage, fail)
    with pytest.warns(GnnstabWarning, match="the training is not affected") as said:
        found, failures = train(monitored=True)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert failures, "the failure must be noted"
    assert "injected" in failures[0].message
    assert len([w for w in said if issubclass(w.category, GnnstabWarning)]) == 1
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "stage",
    [
        (non_finite_detector.NonFiniteDetector, "step"),
        (non_finite_event, "forward_event"),
        (LayerNotes, "facts"),
    ],
)
def test_a_failure_while_locating_a_non_finite_value(stage: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, *rest) = CASES[0].make()
    monkeypatch.setattr(*stage, fail)
    with TraceWriter(None) as writer, Recorder(model, writer) as recorder:
        model(x * float("inf"), *rest)
        with pytest.warns(GnnstabWarning, match="training is not affected"):
            recorder.end_step()
    assert [event.kind for event in recorder.events].count("tool-failure") >= 1


def test_warnings_as_errors_do_not_turn_a_failure_into_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StatsBuffer, "put", fail)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("error")
        found, failures = train(monitored=True)
    assert ["not affected" in str(one.message) for one in said] == [True]
    expected, _ = (train(monitored=False)) if not monkeypatch.undo() else ([], [])
    assert failures
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_failing_hook_is_not_called_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(AttentionRecorder, "record", lambda self, *a: calls.append(self.name) or fail())
    with pytest.warns(GnnstabWarning, match="records less"):
        train(monitored=True)
    assert sorted(calls) == ["convs.0", "convs.1"]
