"""Runs that move no weight, beside runs that look alike and do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from gnnstab import Monitor
from gnnstab.records import Finding

NODES, STEPS = 24, 32


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATv2Conv(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(self.conv(x, edge_index).relu())


Step = Callable[[nn.Module, torch.optim.Optimizer, Callable[[], Tensor], int], Tensor]


def told(step: Step, make: Callable[[nn.Module], torch.optim.Optimizer], *, given: bool = True) -> list[Finding]:
    """What a run of these steps is told for weights that stand still."""
    torch.manual_seed(0)
    x, edges, labels = torch.randn(NODES, 8), torch.randint(0, NODES, (2, 96)), torch.randint(0, 3, (NODES,))
    model = Net()
    optimizer = make(model)
    with Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for number in range(STEPS):
            loss = step(model, optimizer, lambda: nn.functional.cross_entropy(model(x, edges), labels), number)
            if given:
                monitor.loss(loss)
    return [f for f in monitor.diagnose().findings if f.signal == "optimizer.standing"]


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), 0.01)


def at(rate: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda model: torch.optim.SGD(model.parameters(), rate)


def trains(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of()
    loss.backward()
    optimizer.step()
    return loss


def cleared(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    loss = loss_of()
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss


def cleared_later(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int
) -> Tensor:
    return (cleared if number > 10 else trains)(model, optimizer, loss_of, number)


def made_anew(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    optimizer.zero_grad()
    loss = torch.tensor(loss_of().item(), requires_grad=True)
    loss.backward()
    optimizer.step()
    return loss


def no_backward(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int
) -> Tensor:
    optimizer.zero_grad()
    loss = loss_of()
    optimizer.step()
    return loss


def stopped(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    if number == 10:
        optimizer.param_groups[0]["lr"] = 0.0
    return trains(model, optimizer, loss_of, number)


@pytest.mark.parametrize(
    ("step", "make", "code", "says"),
    [
        (cleared, adam, "GS604", "zero_grad()"),
        (cleared_later, at(0.1), "GS604", "from step 16"),
        (made_anew, adam, "GS604", "made anew"),
        (no_backward, adam, "GS604", "no layer was seen to get one"),
        (trains, at(0.0), "GS608", "the rate is 0"),
        (trains, at(1e-30), "GS608", "the rate is 1e-30"),
        (stopped, adam, "GS608", "from step 16"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_updates_that_move_nothing_are_told(
    step: Step, make: Callable[[nn.Module], torch.optim.Optimizer], code: str, says: str, given: bool
) -> None:
    (finding,) = told(step, make, given=given)
    assert finding.code == code and says in finding.message


def frozen_in_turns(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int
) -> Tensor:
    model.get_submodule("conv").requires_grad_(number >= STEPS // 2)
    return trains(model, optimizer, loss_of, number)


def seldom(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    loss = loss_of()
    loss.backward()
    if number % 8 == 7:
        optimizer.step()
        optimizer.zero_grad()
    return loss


def best_put_back() -> Step:
    """The weights of every step are kept, and in the end those before the update of step 16 stand again."""
    kept: list[dict[str, Tensor]] = []

    def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
        kept.append(copy.deepcopy(model.state_dict()))
        loss = trains(model, optimizer, loss_of, number)
        if number == STEPS - 1:
            model.load_state_dict(kept[16])
        return loss

    return step


def warmed_up(model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int) -> Tensor:
    optimizer.param_groups[0]["lr"] = 0.01 * number / STEPS
    return trains(model, optimizer, loss_of, number)


@pytest.mark.parametrize(
    ("step", "make"),
    [
        (trains, adam),
        (trains, at(1e-6)),
        (frozen_in_turns, adam),
        (seldom, adam),
        (best_put_back(), adam),
        (warmed_up, adam),
        (trains, lambda model: torch.optim.Adam(model.get_submodule("head").parameters(), 0.01)),
    ],
    ids=["plain", "low rate", "frozen in turns", "accumulated", "best put back", "warm-up from 0", "head alone"],
)
def test_a_run_that_moves_some_weight_is_not(step: Step, make: Callable[[nn.Module], torch.optim.Optimizer]) -> None:
    assert not told(step, make)


def test_updates_that_a_nan_stops_are_told_by_the_nan() -> None:
    def broken(
        model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Callable[[], Tensor], number: int
    ) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of() * float("nan")
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        return loss

    assert not told(broken, adam)


def test_the_steps_of_another_network_are_none_of_this_one() -> None:
    """A discriminator is trained first; its optimizer holds nothing of the generator that is watched."""
    torch.manual_seed(0)
    x, edges = torch.randn(NODES, 8), torch.randint(0, NODES, (2, 96))
    model, critic = Net(), nn.Linear(3, 1)
    own, other = adam(model), torch.optim.Adam(critic.parameters(), 0.01)
    with Monitor(model, optimizer=[own, other], on_finding="ignore") as monitor:
        for number in range(20):
            optimizer = own if number % 10 == 9 else other
            optimizer.zero_grad()
            out = model(x, edges)
            loss = critic(out if optimizer is own else out.detach()).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    assert [f for f in monitor.diagnose().findings if f.signal == "optimizer.standing"] == []


@pytest.mark.parametrize(("dtype", "code"), [(torch.bfloat16, "GS503"), (torch.float32, "GS608")])
def test_what_16_bits_round_away_is_no_matter_of_the_rate(dtype: torch.dtype, code: str) -> None:
    """All weights are 1: the updates are smaller than half of the distance to the next number of either format."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 1, bias=False)).to(dtype)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6 if dtype is torch.bfloat16 else 1e-12)
    x = torch.randn(32, 8).to(dtype)
    with Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            monitor.loss(loss)
    found = {f.code for f in monitor.diagnose().findings if f.severity != "info"}
    assert found & {"GS503", "GS608"} == {code}
