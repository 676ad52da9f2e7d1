"""Closed units of a network that learns with the rest, and of one that does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gnnstab
from trained import take_step, trained

X = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] - X[:, 1]


def loss(output: Tensor, batch: object) -> Tensor:
    """Mean squared error (1,) of outputs (200, 1)."""
    return (output[:, 0] - Y).square().mean()


class Closed(nn.Module):
    """32 units, the first ``shut`` of which no input opens, behind one output that is divided by ``weaker``."""

    def __init__(self, shut: int, weaker: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.hidden, self.relu, self.out, self.weaker = nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1), weaker
        with torch.no_grad():
            self.hidden.bias[:shut] = -20.0

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(self.hidden(x))) / self.weaker  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("shut", "weaker", "severity"),
    [(0, 1.0, []), (26, 1.0, ["info"]), (26, 100.0, ["warning"]), (32, 1.0, ["warning"])],
)
def test_closed_units_are_a_warning_where_the_loss_has_not_come_to_its_best_without_them(
    shut: int, weaker: float, severity: list[str]
) -> None:
    found = trained(Closed(shut, weaker), X, loss, steps=60, lr=1e-2)
    assert [f.severity for f in found.findings if f.code == "GS701"] == severity
    assert ("dead-units" in {cause.cause for cause in found.root_causes()}) == (severity == ["warning"])


@pytest.mark.parametrize(("signal", "severity"), [(0.5, "info"), (2.0, "warning")])
def test_closed_units_that_a_run_with_fresh_batches_would_learn_nothing_from_are_information(
    signal: float, severity: str
) -> None:
    """What is left is noise; or it is of use, and one unit is too few for it."""
    model = Closed(31 if signal > 1 else 26, 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(5)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(80):
            x = torch.randn(64, 4, generator=g)
            y = signal * (x[:, 0] - x[:, 1].abs() + x[:, 2] * x[:, 3]) + torch.randn(64, generator=g)
            take_step(optimizer, (model(x)[:, 0] - y).square().mean(), monitor)
    (found,) = [f for f in monitor.diagnose().findings if f.code == "GS701"]
    assert found.severity == severity
    assert ("has learned with the others what it can" in found.message) == (severity == "info")
