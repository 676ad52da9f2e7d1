"""A schedule that comes down long before the run ends, outside the optimizer or within it: told where much is left to learn, and not of one in time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab

STEPS, RATE = 80, 1e-2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = TransformerConv(6, 16), nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, data: Data) -> Tensor:
        out: Tensor = self.out(torch.relu(self.conv(data.x, data.edge_index))).squeeze(-1)
        return out


class Scheduled(torch.optim.Adam):
    """Its own schedule."""

    factor: Callable[[int], float]
    taken = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.taken += 1
        for group in self.param_groups:
            group["lr"] = RATE * self.factor(self.taken)


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (lambda step: max(0.0, 1 - step / 12), True),
        (lambda step: 0.5**step, True),
        (lambda step: max(0.0, 1 - step / STEPS), False),
        (lambda step: 0.1 ** (step // 30), False),
        (lambda step: RATE * (1 - step / 100), True),  # The rate once more, where a factor was meant.
        (lambda step: 1 - step / 100, False),
        (lambda step: min(1.0, (step + 1) / 20_000), True),  # The warm-up of a pretraining.
        (lambda step: min(1.0, (step + 1) / 20), False),
    ],
)
def test_a_schedule_that_is_spent_before_anything_is_learned_or_never_comes_up(
    factor: Callable[[int], float], told: bool, own: bool
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g)
    data = Data(x=x, edge_index=torch.randint(0, 60, (2, 240), generator=g), y=2 * x[:, 0] - x[:, 1])
    torch.manual_seed(0)
    model = Net()
    optimizer = Scheduled(model.parameters(), lr=RATE) if own else torch.optim.Adam(model.parameters(), lr=RATE)
    if isinstance(optimizer, Scheduled):
        optimizer.factor = factor
    scheduler = None if own else torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = loss(model(data), data)
            value.backward()
            optimizer.step()
            monitor.loss(value)
            if scheduler is not None:
                scheduler.step()
    warned = [f.cause for f in monitor.diagnose().findings if f.severity in ("warning", "error")]
    assert warned == (["learning-rate"] if told else [])
