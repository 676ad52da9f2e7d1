"""A loop that never clears its gradients is told; every other way to handle them is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.records import Diagnosis

G = torch.Generator().manual_seed(0)
X, EDGES = torch.randn(20, 4, generator=G), torch.randint(0, 20, (2, 60), generator=G)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attend, self.leave = TransformerConv(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.leave(self.attend(x, EDGES).relu())
        return out


def run(loop: Callable[[Net, torch.optim.Optimizer, int], None], optimizer: str = "SGD") -> tuple[Diagnosis, list[str]]:
    model, told = Net(), list[str]()
    moves = getattr(torch.optim, optimizer)(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=moves, on_finding=lambda f: told.append(f.code)) as monitor:
        for step in range(8):
            loop(model, moves, step)
    return monitor.diagnose(), told


def forgets(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(X).square().mean().backward()
    optimizer.step()


def forgets_and_clips(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(X).square().mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    optimizer.step()


def forgets_and_accumulates(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    for _ in range(2):
        model(X).square().mean().backward()
    optimizer.step()


def clears(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    optimizer.zero_grad()
    model(X).square().mean().backward()
    optimizer.step()


def clears_in_place(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    loss = model(X).square().mean()
    optimizer.zero_grad(set_to_none=False)
    loss.backward()
    optimizer.step()


def accumulates(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    for _ in range(3):
        model(X).square().mean().backward()
    optimizer.step()
    model.zero_grad(set_to_none=False)


def accumulates_every_fourth(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(X).square().mean().backward()
    if step % 4 == 3:
        optimizer.step()
        optimizer.zero_grad()


def decays(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    model(X).square().mean().backward()
    optimizer.step()
    for p in model.parameters():
        p.grad.mul_(0.9)


def other_loss_between(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    """A second loss leaves gradients that are cleared before they are used, in place."""
    model(X).square().mean().backward()
    optimizer.zero_grad(set_to_none=False)
    model(X).square().mean().backward()
    optimizer.step()


def asks_a_closure(model: Net, optimizer: torch.optim.Optimizer, step: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss: Tensor = model(X).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize("loop", [forgets, forgets_and_clips, forgets_and_accumulates])
def test_a_loop_that_forgets_is_told_while_it_runs_and_after(loop, optimizer):
    found, told = run(loop, optimizer)
    assert told.count("GS610") == 1
    assert [c.cause for c in found.root_causes()] == ["stale-gradients"]
    (finding,) = [f for f in found.findings if f.code == "GS610"]
    assert finding.severity == "warning" and "optimizer.zero_grad()" in finding.message
    assert f"(certain from step {finding.step} on)" in finding.message and "up to" not in finding.message


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
@pytest.mark.parametrize(
    "loop",
    [clears, clears_in_place, accumulates, accumulates_every_fourth, decays, other_loss_between, asks_a_closure],
)
def test_every_other_loop_is_not(loop, optimizer):
    found, told = run(loop, optimizer)
    assert "GS610" not in told
    assert not [f for f in found.findings if f.code == "GS610"]


def test_two_optimizers_that_share_backwards():
    """The second loss adds to gradients that the first optimizer clears in place before it uses them."""
    model = Net()
    lower = torch.optim.SGD(model.attend.parameters(), lr=1e-3)
    upper = torch.optim.SGD(model.leave.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=[lower, upper]) as monitor:
        for _ in range(6):
            for moves in (lower, upper):
                moves.zero_grad(set_to_none=False)
                model(X).square().mean().backward()
                moves.step()
    assert not [f for f in monitor.diagnose().findings if f.code == "GS610"]


def test_its_hooks_are_gone_after_the_first_step_that_is_as_usual():
    model = Net()
    moves = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=moves):
        for step in range(3):
            clears(model, moves, step)
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())
        assert len(moves._optimizer_step_pre_hooks) == 1


@pytest.mark.parametrize("clears", [True, False])
def test_hooks_of_the_user_beside_it_go_on(clears):
    """A table of hooks from which one is taken off while torch goes through it breaks the step of the optimizer."""
    model, seen = Net(), list[str]()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=lambda f: None):
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        for _ in range(6):
            if clears:
                optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    assert seen == ["before", "after"] * 6
