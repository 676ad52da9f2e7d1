"""What of a run was not seen is said: a diagnosis of it is never calm, and one of a run that was seen in full stays so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import nn

import gnnstab
from forked import Child
from gnnstab.errors import GnnstabWarning, UsageError
from gnnstab.report.summary import state
from gnnstab.torch_private import dispatch_modes
from side_by_side import Net, graph

Way = Callable[[int, nn.Module, torch.optim.Optimizer], None]
"""Moves the weights at step i."""

STEPS, BAD = 10, 6


def trained(move: Way, bad: bool, **options: object) -> gnnstab.Monitor:
    """Ten steps, the last four with a loss of NaN where ``bad``."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", **options) as monitor:
        for i in range(STEPS):
            optimizer.zero_grad()
            loss = model(*graph(i)).square().mean()
            (loss * float("nan") if bad and i >= BAD else loss).backward()
            move(i, model, optimizer)
    return monitor


def plainly(i: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()


def in_another_thread(i: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    thread = Thread(target=optimizer.step)
    thread.start()
    thread.join()


def after_hooks_are_cleared(i: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    if i == 2:
        for module in model.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()


def after_the_optimizer_is_cleared(i: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    if i == 2:
        optimizer._optimizer_step_pre_hooks.clear()
        optimizer._optimizer_step_post_hooks.clear()


@pytest.mark.parametrize(
    ("move", "healthy", "broken"),
    [
        (plainly, "stable", "unstable"),
        (in_another_thread, "stable", "unstable"),
        (after_hooks_are_cleared, "not-evaluable", "unstable"),
        (after_the_optimizer_is_cleared, "not-evaluable", "unstable"),
    ],
)
@pytest.mark.filterwarnings("ignore::gnnstab.errors.GnnstabWarning")
def test_a_calm_verdict_needs_every_step(move: Way, healthy: str, broken: str) -> None:
    assert state(trained(move, bad=False).diagnose()) == healthy
    assert state(trained(move, bad=True).diagnose()) == broken
    assert dispatch_modes() == 0, "a watch is left by the thread that entered it"


@pytest.mark.filterwarnings("ignore::gnnstab.errors.GnnstabWarning")
def test_steps_of_which_nothing_is_seen_are_counted() -> None:
    found = trained(after_hooks_are_cleared, bad=False).diagnose().findings
    assert {f.value for f in found if f.code == "GS903"} == {STEPS - 3}


@pytest.mark.filterwarnings("ignore::gnnstab.errors.GnnstabWarning")
@pytest.mark.parametrize(
    ("grad", "follows", "said"),
    [(True, False, "not-evaluable"), (True, True, "stable"), (False, False, "stable")],
)
def test_a_loop_that_leaves_out_every_step(grad: bool, follows: bool, said: str) -> None:
    """Where the loss is never finite, say; evaluations alone are nothing of the kind."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for i in range(4):
            with torch.set_grad_enabled(grad):
                loss = model(*graph(i)).square().mean()
            if follows and i == 3:
                loss.backward()
                optimizer.step()
    assert state(monitor.diagnose()) == said


@pytest.mark.parametrize("beside", [True, False])
def test_evaluations_in_another_thread_are_named_as_not_seen(beside: bool) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def evaluate() -> None:
        with torch.no_grad():
            model(*graph(3))

    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for i in range(4):
            optimizer.zero_grad()
            model(*graph(i)).square().mean().backward()
            optimizer.step()
            if beside:
                thread = Thread(target=evaluate)
                thread.start()
                thread.join()
            else:
                evaluate()
    found = monitor.diagnose()
    assert [b.site for b in found.coverage.blind] == (["other threads"] if beside else [])
    assert state(found) == "stable"


class WarmedUp(torch.optim.SGD):
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return super().step(closure)


@pytest.mark.parametrize("closed", [False, True])
def test_a_step_within_the_step_of_its_own_class_is_the_same_step(closed: bool) -> None:
    model = Net()
    torch.optim.SGD(model.parameters(), lr=1e-3)  # From the first of a class on torch hooks the steps of all of it.
    optimizer = WarmedUp(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, schedule=1) as monitor:
        for i in range(STEPS):

            def closure(i: int = i) -> torch.Tensor:
                optimizer.zero_grad()
                loss = model(*graph(i)).square().mean()
                loss.backward()
                return loss

            if not closed:
                closure()
            optimizer.step(closure if closed else None)  # type: ignore[arg-type]
    found = monitor.diagnose()
    assert [f.code for f in found.findings if f.code == "GS903"] == []
    assert monitor._read().step_arrays()["step"].tolist() == list(range(STEPS))


def test_a_monitor_is_entered_once() -> None:
    monitor = trained(plainly, bad=False)
    with pytest.raises(UsageError, match="make a new Monitor"), monitor:
        pass
    assert state(monitor.diagnose()) == "stable"


@pytest.mark.parametrize("name", [None, "run.gnnstab"])
def test_a_forked_process_says_that_nothing_is_recorded(tmp_path: Path, name: str | None) -> None:
    """The child trains on, badly: its monitor stands aside, and what the parent has seen is no verdict on the child."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    path = None if name is None else tmp_path / name
    with gnnstab.Monitor(model, optimizer=optimizer, trace=path, on_finding="ignore") as monitor:
        for i in range(3):
            model(*graph(i)).square().mean().backward()
            optimizer.step()

        def child() -> tuple[str, str]:
            (model(*graph(0)).square().mean() * float("nan")).backward()
            with pytest.warns(GnnstabWarning, match="forked"):
                optimizer.step()
            diagnosis = monitor.diagnose()
            return state(diagnosis), " ".join(finding.message for finding in diagnosis.findings)

        said, text = Child(child).result()
    assert said == "not-evaluable" and "forked" in text, text
    assert state(monitor.diagnose()) == "stable"
