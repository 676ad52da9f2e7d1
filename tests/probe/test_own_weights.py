"""Raw weights of own layers that are drawn as normal numbers: states grow by √width per layer, and attention is sharp for that reason alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gnnstab
from trained import take_step

WIDTH, ROOMS = 80, 40


class Rooms(nn.Module):
    """Own attention over all rooms, without one layer of torch's; ``spread`` by the width for the twin."""

    def __init__(self, *, wide: bool) -> None:
        super().__init__()
        torch.manual_seed(2)

        def drawn(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(rows, columns) * (1.0 if wide else rows**-0.5))

        self.enter = drawn(6, WIDTH)
        self.values = nn.ParameterList(drawn(WIDTH, WIDTH) for _ in range(3))
        self.scores = nn.ParameterList(nn.Parameter(0.1 * torch.randn(WIDTH, 2)) for _ in range(3))
        self.leave = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.enter
        for value, score in zip(self.values, self.scores, strict=True):
            sent, heard = (h @ score).unbind(1)
            weights = torch.softmax(F.leaky_relu(sent[:, None] + heard, 0.2), 1)
            h = F.relu((h + weights @ h) @ value)
        answer: Tensor = self.leave(h)[:, 0]
        return answer


def rooms(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(ROOMS, 6, generator=torch.Generator().manual_seed(seed))
    return x, torch.tanh(x[:, 0] + x.mean(0)[1])


def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(output, batch[1])


@pytest.mark.parametrize("monitored", [True, False])
@pytest.mark.parametrize("wide", [True, False])
def test_own_weights_that_are_drawn_too_wide_are_the_root(wide: bool, monitored: bool) -> None:
    model = Rooms(wide=wide)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    if monitored:
        with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
            for step in range(110):
                batch = rooms(step % 6)
                take_step(optimizer, loss(model(batch[0]), batch), monitor)
        found = monitor.diagnose()
    else:
        one = rooms(0)
        found = gnnstab.diagnose(model, batch=one[:1], loss=lambda output, _: loss(output, one), optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == (["unsuitable-init"] if wide else [])
    told = [f.message for f in found.findings if f.code == "GS609"]
    assert len(told) == wide
    assert all("values.1" in message or "values.0" in message for message in told)
