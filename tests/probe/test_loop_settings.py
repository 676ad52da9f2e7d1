"""What a loop tells its optimizer that makes any rate too high: a momentum of 1, a rate below 0, gradients that a scaler has scaled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

from gnnstab import Monitor
from gnnstab.records import Diagnosis, Finding

NODES = 24
Step = Callable[[torch.optim.Optimizer, torch.amp.GradScaler, Tensor, int], None]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = GATv2Conv(5, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(self.conv(x, edge_index).relu())


def run(step: Step, steps: int = 24, **settings: float) -> tuple[Diagnosis, list[Finding]]:
    """The diagnosis of a run, and what was told on the way."""
    torch.manual_seed(0)
    x, edges, targets = torch.randn(NODES, 5), torch.randint(0, NODES, (2, 96)), torch.randn(NODES, 1)
    model, told = Net(), list[Finding]()
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    with Monitor(model, optimizer=optimizer, scaler=scaler, on_finding=told.append) as monitor:
        for number in range(steps):
            optimizer.zero_grad()
            loss = (model(x, edges) - targets).square().mean()
            step(optimizer, scaler, loss, number)
            monitor.loss(loss)
    return monitor.diagnose(), told


def plain(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    loss.backward()
    optimizer.step()


def scaled(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    scaler.scale(loss).backward()
    optimizer.step()


def stepped(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


def unscaled(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    optimizer.step()
    scaler.update()


def divided(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    scaler.scale(loss).backward()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad.div_(scaler.get_scale())
    optimizer.step()


def uphill(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, loss: Tensor, number: int) -> None:
    optimizer.param_groups[0]["lr"] = 0.05 if number < 4 else -1.0
    plain(optimizer, scaler, loss, number)


@pytest.mark.parametrize(
    ("step", "settings", "fix", "says"),
    [
        (scaled, {"lr": 0.02}, "scaler-step", "still scaled, by 4096"),
        (uphill, {"lr": 0.05}, "correct-settings", "updates go uphill"),
        (plain, {"lr": 0.5, "momentum": 1.02}, "correct-settings", "the momentum is 1.02"),
    ],
)
def test_what_no_lower_rate_cures_is_told_with_its_own_change(
    step: Step, settings: dict[str, float], fix: str, says: str
) -> None:
    found, told = run(step, **settings)
    root = next(cause for cause in found.root_causes() if cause.cause == "learning-rate")
    assert says in root.reason
    assert [advice.fix for advice in root.fixes] == [fix]
    assert not any("Divide the learning rate (lr -" in finding.message for finding in told)


@pytest.mark.parametrize("step", [plain, stepped, unscaled, divided])
def test_gradients_that_are_unscaled_before_the_step_are_calm(step: Step) -> None:
    found, _ = run(step, lr=0.02)
    assert not [f.code for f in found.findings if f.severity != "info"]
