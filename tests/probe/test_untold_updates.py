"""Runs that never step, whose steps nobody tells of, or that end before their first update, beside runs that look alike and train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

from gnnstab import Monitor
from gnnstab.records import Diagnosis
from gnnstab.report.summary import state

NODES, BATCHES = 20, 24


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(6, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(self.conv(x, edge_index).tanh())


Loop = Callable[[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]], Iterator[Tensor]]


def run(loop: Loop, *, given: bool = True) -> Diagnosis:
    """What a run of this loop is told, which may end in an exception."""
    torch.manual_seed(0)
    x, edges, targets = torch.randn(NODES, 6), torch.randint(0, NODES, (2, 80)), torch.randn(NODES, 1)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    monitor = Monitor(model, optimizer=optimizer if given else None, on_finding="ignore")
    with suppress(ZeroDivisionError), monitor:
        for loss in loop(model, optimizer, lambda: (model(x, edges) - targets).square().mean()):
            monitor.loss(loss)
    return monitor.diagnose()


def codes(diagnosis: Diagnosis) -> set[str]:
    return {f.code for f in diagnosis.findings if f.severity != "info"}


def never(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Iterator[Tensor]:
    for _ in range(BATCHES):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        yield loss


def once_at_the_end(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]
) -> Iterator[Tensor]:
    yield from never(model, optimizer, loss_of)
    optimizer.step()


def by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Iterator[Tensor]:
    for loss in never(model, optimizer, loss_of):
        yield loss
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.01 * parameter.grad


def blown_up_by_hand(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]
) -> Iterator[Tensor]:
    for loss in by_hand(model, optimizer, loss_of):
        yield loss
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1e8


def accumulates(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Iterator[Tensor]:
    for number in range(BATCHES):
        loss = loss_of() / 12
        loss.backward()
        if number % 12 == 11:
            optimizer.step()
            optimizer.zero_grad()
        yield loss


def dies(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Iterator[Tensor]:
    loss = loss_of()
    raise ZeroDivisionError
    yield loss


def dies_later(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor]) -> Iterator[Tensor]:
    yield from accumulates(model, optimizer, loss_of)
    raise ZeroDivisionError


@pytest.mark.parametrize("given", [True, False])
def test_a_run_that_never_steps_is_not_called_stable(given: bool) -> None:
    found = run(never, given=given)
    assert codes(found) == {"GS604"} and state(found) == "unstable"
    assert "optimizer.step()" in found.root_causes()[0].fixes[0].change


def test_a_run_of_one_update_at_its_end_is_not_judged() -> None:
    found = run(once_at_the_end)
    assert codes(found) == {"GS903"} and state(found) == "not-evaluable"


@pytest.mark.parametrize("given", [True, False])
def test_weights_that_move_without_a_step_are_told(given: bool) -> None:
    found = run(by_hand, given=given)
    (finding,) = (f for f in found.findings if f.code == "GS903")
    assert "monitor.step()" in finding.message and ("never stepped" in finding.message) is given


def test_updates_that_nobody_told_of_are_not_called_skipped() -> None:
    (finding,) = (f for f in run(blown_up_by_hand).findings if f.code == "GS502")
    assert "skipped" not in finding.message and "under gnnstab.Monitor" not in finding.message


def test_a_run_that_dies_before_its_first_update_is_not_called_stable() -> None:
    found = run(dies)
    assert state(found) == "not-evaluable" and found.exit_code() != 0


@pytest.mark.parametrize("loop", [accumulates, dies_later])
def test_a_run_that_steps_seldom_is_none_of_these(loop: Loop) -> None:
    assert not codes(run(loop))
