"""Numbers that come from a device are handed over one step later; on a CPU that is said to be a device, and on CUDA."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.errors import GnnstabWarning
from gnnstab.probe.buffering import device_copy
from gnnstab.probe.layers import parameters
from gnnstab.probe.recorder import Recorder
from gnnstab.records import SeriesKey
from gnnstab.trace import Trace, TraceWriter
from trained import take_step

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = TransformerConv(4, 8, heads=2, edge_dim=2), TransformerConv(16, 4)
        self.factor = 1.0

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x, edge_index, edge_attr).relu() * self.factor, edge_index)
        return out


def batch(device: str = "cpu") -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    found = (torch.randn(9, 4), torch.randint(0, 9, (2, 40)), torch.randn(40, 2))
    return tuple(t.to(device) for t in found)


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is at hand, as on a device."""
    monkeypatch.setattr(device_copy, "is_on_host", lambda tensor: False)


def run(
    trace: Path, steps: int = 6, bad: tuple[int, float] = (-1, 1.0), device: str = "cpu", **options: Any
) -> tuple[gnnstab.Monitor, Trace]:
    torch.manual_seed(1)
    model = Net().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    arguments = batch(device)
    with gnnstab.Monitor(model, optimizer=optimizer, trace=trace, **options) as monitor:
        for step in range(steps):
            model.factor = bad[1] if step == bad[0] else 1.0
            take_step(optimizer, model(*arguments).square().mean(), monitor)
    return monitor, Trace.open(trace)


def rows(trace: Trace) -> dict[SeriesKey, tuple[Any, ...]]:
    """What stands in a series, however many steps each of its rows spans: a slow machine closes rows early."""
    return {
        key: (a["span"].sum(), a["minimum"].min(), a["maximum"].max(), a["count"].sum())
        for key, a in trace.sites().items()
    }


def test_what_comes_late_is_what_would_have_come_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, at_once = run(tmp_path / "a.gnnstab", schedule=3)
    monkeypatch.setattr(device_copy, "is_on_host", lambda tensor: False)
    _, late = run(tmp_path / "b.gnnstab", schedule=3)
    assert rows(late) == rows(at_once)
    for key, array in at_once.sites(site="score").items():
        assert np.allclose(late.sites()[key]["rms"], array["rms"], rtol=1e-6), key
    assert [row.step for row in late.steps()] == list(range(6))
    for one, other in zip(late.steps(), at_once.steps(), strict=True):
        assert (one.loss, one.lr) == (other.loss, other.lr)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    assert [(m.step, m.name) for m in late.measures()] == [(m.step, m.name) for m in at_once.measures()]


def test_nothing_is_read_before_the_next_step_ends(far: None, monkeypatch: pytest.MonkeyPatch) -> None:
    landed: list[int] = []
    result = device_copy.DeviceCopy.result

    def counted(self: device_copy.DeviceCopy) -> Any:
        landed.append(recorder.step)
        return result(self)

    monkeypatch.setattr(device_copy.DeviceCopy, "result", counted)
    model, arguments = Net(), batch()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0) as recorder:
        for step in range(3):
            recorder.loss(loss := model(*arguments).sum())
            loss.backward()
            assert set(landed) <= set(range(1, step))
            recorder.end_step(moves=True)
            assert recorder.late
            assert (recorder.row is None) == (step == 0)
            model.zero_grad()
        assert writer.read().last_step == 1
        recorder.settle()
        assert writer.read().last_step == 2
        assert not recorder.late
    assert landed


def test_a_bad_step_is_named_with_its_own_number_one_step_later(
    far: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parameters, "LARGEST_SAVED", 100)
    with pytest.warns(GnnstabWarning, match="step 3"):
        _, trace = run(tmp_path / "run.gnnstab", bad=(3, math.nan))
    (event, *_) = trace.events("non-finite")
    assert (event.step, event.layer, event.stage) == (3, "second", "input")
    assert "had made the weights non-finite, so that it could not be run again" in event.message
    assert event.detail["weights_finite"] is None
    assert event.detail["bundle"] == ""
    assert "made the weights non-finite" in event.detail["bundle_note"]


def test_the_last_step_of_a_run_is_judged_too(far: None, tmp_path: Path) -> None:
    with pytest.warns(GnnstabWarning, match="step 5"):
        run(tmp_path / "run.gnnstab", bad=(5, math.inf))
    with pytest.raises(gnnstab.errors.UnstableError):
        run(tmp_path / "other.gnnstab", bad=(5, math.inf), on_finding="raise")


def test_weights_that_were_not_spoilt_are_run_again(far: None) -> None:
    model, arguments = Net(), batch()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0) as recorder:
        model.factor = math.nan
        model(*arguments)
        recorder.end_step()
        recorder.settle()
        (event,) = recorder.events
    assert (event.layer, event.origin) == ("second", "came-in")
    assert event.nodes


@pytest.mark.parametrize("distant", [False, True])
def test_a_validation_belongs_to_the_step_before_it(distant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if distant:
        monkeypatch.setattr(device_copy, "is_on_host", lambda tensor: False)
    model, arguments = Net(), batch()
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0) as recorder:
        for _ in range(3):
            model(*arguments)
            recorder.end_step()
        recorder.validation(0.5)
        (measure,) = writer.read().measures("loss.validation")
    assert measure.step == 2


def left_out(device: str = "cpu") -> tuple[Any, Trace]:
    """A step that is left out meets a NaN in the data, and the update has spoilt the weights before anybody knows."""
    torch.manual_seed(1)
    model, (x, *rest) = Net().to(device), batch(device)
    bad = x.clone()
    bad[5, 1] = math.nan

    def one_step(x: Tensor) -> None:
        model.zero_grad()
        model(x, *rest).square().mean().backward()
        recorder.end_step(moves=True)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1e-3 * parameter.grad
        recorder.after_update()

    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0, budget=1e-6) as recorder:
        while recorder.state.light:
            one_step(x)
        step = recorder.step
        one_step(bad)
        one_step(x)
        assert not [event.message for event in recorder.events if event.kind == "tool-failure"]
        event, trace = recorder.events[0], writer.read()
        assert event.step == step
        assert not recorder.held
    return event, trace


def test_a_left_out_step_is_run_again_with_the_weights_that_it_had(far: None) -> None:
    event, trace = left_out()
    assert (event.stage, event.origin, event.nodes) == ("input", "came-in", (5,))
    (rows,) = trace.sites("first", "input").values()
    at = list(rows["step"]).index(event.step)
    assert math.isnan(rows["maximum"][at])


def test_weights_too_large_to_be_kept_have_every_step_recorded(
    far: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(parameters, "LARGEST_SAVED", 100)
    with pytest.warns(GnnstabWarning, match="too large to be kept"):
        _, trace = run(tmp_path / "run.gnnstab", steps=60, budget=0.001)
    assert "too large to be kept" in trace.meta["schedule"]


def test_the_run_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def weights(late: bool) -> list[Tensor]:
        with monkeypatch.context() as patch:
            if late:
                patch.setattr(device_copy, "is_on_host", lambda tensor: False)
            torch.manual_seed(1)
            model, arguments = Net(), batch()
            optimizer = torch.optim.Adam(model.parameters())
            with gnnstab.Monitor(model, optimizer=optimizer, trace=tmp_path / f"{late}.gnnstab"):
                for _ in range(4):
                    take_step(optimizer, model(*arguments).square().mean())
            return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, weights(True), weights(False)))


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@CUDA
def test_no_step_synchronises(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Net().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    arguments = batch("cuda")
    with gnnstab.Monitor(model, optimizer=optimizer, trace=tmp_path / "run.gnnstab", schedule=10**9) as monitor:
        for step in range(8):
            # The first steps allocate, and say once what they found; the full tier is one of them.
            torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
            take_step(optimizer, model(*arguments).square().mean(), monitor)
        torch.cuda.set_sync_debug_mode("default")
    with Trace.open(tmp_path / "run.gnnstab") as trace:
        assert [row.step for row in trace.steps()] == list(range(8))
        assert not trace.events("tool-failure")


@pytest.mark.gpu
@CUDA
def test_a_device_shows_what_the_host_shows(tmp_path: Path) -> None:
    _, host = run(tmp_path / "a.gnnstab", schedule=3)
    _, device = run(tmp_path / "b.gnnstab", schedule=3, device="cuda")
    found = device.sites()
    for site in ("input", "score", "attention", "output", "grad_output"):
        for key, array in host.sites(site=site).items():
            # The first step alone: a key's bias has a gradient of rounding errors, and Adam moves it by their sign.
            assert np.allclose(found[key]["rms"][0], array["rms"][0], rtol=1e-4, atol=1e-6), key


@pytest.mark.gpu
@CUDA
def test_a_captured_graph_is_named_as_blind() -> None:
    model, arguments = Net().cuda(), batch("cuda")
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=0) as recorder:
        with torch.no_grad():
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                model(*arguments)
            torch.cuda.current_stream().wait_stream(stream)
            recorder.end_step()
            graph = torch.cuda.CUDAGraph()
            with warnings.catch_warnings(), torch.cuda.graph(graph):
                model(*arguments)
        assert any("CUDA graph" in blind.reason for blind in recorder.state.blinds())


@pytest.mark.gpu
@CUDA
def test_a_step_that_a_device_left_out_is_run_again() -> None:
    event, _ = left_out("cuda")
    assert (event.stage, event.origin, event.nodes) == ("input", "came-in", (5,))
