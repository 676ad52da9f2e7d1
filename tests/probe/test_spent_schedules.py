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


class Scheduling(Scheduled):
    """It sets the rate before it steps, as recipes that count from 1 do: no rate that it is given from outside counts."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["lr"] = RATE * self.factor(self.taken)
        self.taken += 1
        torch.optim.Adam.step(self, closure)


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


FACTORS: list[tuple[Callable[[int], float], bool]] = [
    (lambda step: max(0.0, 1 - step / 12), True),
    (lambda step: max(0.0, 1 - step / STEPS), False),
    (lambda step: min(1.0, (step + 1) / 20_000), True),  # The warm-up of a pretraining.
    (lambda step: min(1.0, (step + 1) / 20), False),
    (lambda step: 0.5**step, True),
    (lambda step: 0.1 ** (step // 30), False),
    (lambda step: RATE * (1 - step / 100), True),  # The rate once more, where a factor was meant.
    (lambda step: 1 - step / 100, False),
    (lambda step: min(1.0, (step + 1) / 4_000), True),
    (lambda step: min(1.0, (step + 1) / 200), False),  # Longer than the run, which learns on its way.
]
"""Factors of the rate, and whether a warning is right."""


@pytest.mark.parametrize(
    ("own", "factor", "told"),
    [
        *((None, *one) for one in FACTORS),
        *((own, *one) for own in (Scheduled, Scheduling) for one in FACTORS[:4]),  # Who sets the rate, not to what.
    ],
)
def test_a_schedule_that_is_spent_before_anything_is_learned_or_never_comes_up(
    factor: Callable[[int], float], told: bool, own: type[Scheduled] | None
) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=g)
    data = Data(x=x, edge_index=torch.randint(0, 60, (2, 240), generator=g), y=2 * x[:, 0] - x[:, 1])
    torch.manual_seed(0)
    model = Net()
    optimizer = (own or torch.optim.Adam)(model.parameters(), lr=RATE)
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


@pytest.mark.parametrize("far", [20_000, 300_000])
def test_a_warm_up_in_the_step_of_a_class_is_told_as_one_where_nobody_hands_over_the_absolute_error(far: int) -> None:
    model, data = _learner(trained=False)
    optimizer = Scheduling(model.parameters(), lr=RATE)
    optimizer.factor = lambda step: min(1.0, (step + 1) / far)
    with gnnstab.Monitor(model, optimizer=optimizer) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = F.l1_loss(model(data), data.y)
            value.backward()
            optimizer.step()
            monitor.loss(value)
    (told,) = (f for f in monitor.diagnose().findings if f.severity == "warning")
    assert told.code == "GS608" and told.message.startswith("at the rates of its warm-up")


@pytest.mark.parametrize(("gamma", "told"), [(0.4, True), (0.98, False)])
def test_the_rates_of_all_groups_but_one_are_spent(gamma: float, told: bool) -> None:
    model, data = _learner(trained=False)
    first, last = list(model.conv.parameters()), list(model.out.parameters())
    groups = [{"params": first}, {"params": last[:-1]}, {"params": last[-1:]}]
    optimizer = torch.optim.Adam(groups, lr=RATE)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss) as monitor:
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = loss(model(data), data)
            value.backward()
            optimizer.step()
            monitor.loss(value)
            for group in optimizer.param_groups[:-1]:
                group["lr"] *= gamma
    warned = [f.code for f in monitor.diagnose().findings if f.severity in ("warning", "error")]
    assert warned == (["GS608"] if told else [])


def _learner(trained: bool) -> tuple[Net, Data]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(60, 6, generator=g)
    data = Data(x=x, edge_index=torch.randint(0, 60, (2, 240), generator=g), y=2 * x[:, 0] - x[:, 1])
    torch.manual_seed(1)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(80 if trained else 0):
        optimizer.zero_grad()
        loss(model(data), data).backward()
        optimizer.step()
    return model, data


@pytest.mark.parametrize(
    ("kind", "lr", "trained", "told"),
    [
        (torch.optim.Adadelta, 2e-3, False, True),  # A rate of Adam's.
        (torch.optim.Adadelta, 1.0, False, False),
        (torch.optim.Adagrad, 1e-6, False, True),
        (torch.optim.Adagrad, 1e-2, False, False),
        (torch.optim.RMSprop, 1e-7, False, True),
        (torch.optim.RMSprop, 1e-7, True, False),  # Fine-tuning.
    ],
)
def test_before_a_run_a_rate_is_held_against_the_default_of_its_optimizer(
    kind: Callable[..., torch.optim.Optimizer], lr: float, trained: bool, told: bool
) -> None:
    model, data = _learner(trained)
    optimizer = kind(model.parameters(), lr=lr)
    found = gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer)
    assert ("GS608" in {f.code for f in found.findings}) is told
    assert ([c.cause for c in found.root_causes()] == ["learning-rate"]) is told


def test_a_warm_up_that_stands_at_its_beginning_is_none() -> None:
    model, data = _learner(trained=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 5000)
    assert not gnnstab.diagnose(model, batch=data, loss=loss, optimizer=optimizer, select=["GS608"]).findings
