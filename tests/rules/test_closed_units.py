"""Closed units of a network that learns with the rest, and of one that does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trained import trained

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
