"""A training run that blows up, one that is killed, and one that is healthy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gnnstab.cli.group import run as command
from torch import nn

import gnnstab
from forked import Child, last_step, wait_until
from gnnstab.errors import GnnstabWarning, UnstableError
from gnnstab.evaluation import diagnose_trace
from gnnstab.records import Finding
from gnnstab.trace import Trace
from side_by_side import Net, graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.gnnstab"


def blow_up(path: Path, steps: int = 60, **options: object) -> tuple[int, gnnstab.Monitor]:
    """Train with a learning rate that is far too high; returns the first step with an output or a gradient that is not
    finite."""
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
    first = -1
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, **options) as monitor:
        for number in range(steps):
            optimizer.zero_grad()
            output = model(*graph(number % 4))
            loss = (output - 1).square().mean()
            monitor.loss(loss)
            loss.backward()
            if first < 0 and not finite(output, *(p.grad for p in model.parameters())):
                first = number
            optimizer.step()
    return first, monitor


def finite(*tensors: torch.Tensor | None) -> bool:
    return all(bool(torch.isfinite(t).all()) for t in tensors if t is not None)


def test_a_run_that_blows_up(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`gnnstab diagnose` names layer, stage and step of the first non-finite value."""
    with pytest.warns(GnnstabWarning):
        first, _ = blow_up(path)
    assert first > 0
    with Trace.open(path) as trace:
        event = trace.events("non-finite")[0]
    assert event.step == first
    assert event.layer in ("first", "second") and event.stage and event.origin == "made-here"
    assert command(["diagnose", "-v", str(path)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("UNSTABLE"), "the verdict is the first line"
    shown = " ".join(out.split())
    assert f"first non-finite value at step {first}: {event.layer}, stage {event.stage}" in shown
    assert [c.cause for c in diagnose_trace(Trace.open(path)).root_causes()] == ["learning-rate"]


def test_it_is_told_before_and_when_it_happens(path: Path) -> None:
    """Each finding arrives once, in the order of its steps, the growth before the first non-finite value."""
    told: list[Finding] = []
    first, _ = blow_up(path, on_finding=told.append)
    assert len({finding.fingerprint for finding in told}) == len(told)
    steps = [finding.step for finding in told]
    assert steps == sorted(steps) and steps[0] < first
    assert next(finding.step for finding in told if finding.code == "GS502") == first


def test_it_can_be_stopped(path: Path) -> None:
    with pytest.raises(UnstableError) as caught:
        blow_up(path, on_finding="raise")
    with Trace.open(path) as trace:
        assert trace.complete and trace.last_step == caught.value.finding.step


def test_a_run_that_is_killed_in_the_middle(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SIGKILL leaves no chance to clean up: the trace opens, holds all flushed steps, and is diagnosed."""

    def endless() -> None:
        model = Net()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with gnnstab.Monitor(model, optimizer=optimizer, trace=path):
            number = 0
            while True:
                optimizer.zero_grad()
                model(*graph(number % 4)).square().mean().backward()
                optimizer.step()
                number += 1

    child = Child(endless)
    seen = 0

    def grown() -> bool:
        nonlocal seen
        seen = last_step(path)
        return seen > 20

    wait_until(grown, "twenty steps on the disk")
    child.kill()
    with Trace.open(path) as trace:
        assert not trace.complete
        assert [row.step for row in trace.steps()] == list(range(trace.last_step + 1))
        assert trace.last_step >= seen
        diagnosis = diagnose_trace(trace)
    assert diagnosis.coverage.layers_observed == diagnosis.coverage.layers_expected == 2
    assert [f.code for f in diagnosis.findings if f.severity != "info"] == []
    assert "GS903" in [f.code for f in diagnosis.findings]
    assert command(["diagnose", "-v", str(path)]) == 0
    assert "was not closed" in " ".join(capsys.readouterr().out.split())


class Deep(nn.Module):
    """Four layers with residual paths and norms: how such networks are built when they are to train."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Net() for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(2)])

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x), edge_index)
        return x.mean(1, keepdim=True)


@pytest.mark.slow
@pytest.mark.parametrize("make", [Net, Deep])
def test_three_hundred_healthy_steps_raise_no_alarm(path: Path, make: type[nn.Module]) -> None:
    """Neither while the run goes on nor afterwards."""
    torch.manual_seed(3)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding="raise") as monitor:
        for number in range(300):
            x, edge_index = graph(number % 16)
            target = x[:, :1] + x[:, 1:2].mean()
            optimizer.zero_grad()
            loss = (model(x, edge_index) - target).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
            losses.append(loss.item())
    assert sum(losses[-16:]) < 0.8 * sum(losses[:16]), "the run of this test is meant to learn"
    with Trace.open(path) as trace:
        diagnosis = diagnose_trace(trace)
        assert len(trace.steps()) == 300
    assert [f"{f.code} {f.message}" for f in diagnosis.findings if f.severity != "info"] == []
