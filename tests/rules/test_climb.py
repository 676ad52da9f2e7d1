"""A rate that goes on rising far above its optimizer's default, while the loss leaves its best behind; and schedules that do not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

import gnnstab
from gnnstab.probe.optimizer._settings import usual_rate
from gnnstab.records import Finding
from gnnstab.rules.beginning import Climb
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh

USUAL = 1e-3


def told(rate: Callable[[int], float], loss: Callable[[int], float], usual: float = USUAL) -> list[Finding]:
    climb = Climb(LearningRateTooHigh(), usual)
    return [finding for step in range(200) for finding in climb.loss(step, loss(step), rate(step))]


def valley(step: int) -> float:
    """Falls for 80 steps and rises by 4 % a step from there on."""
    return math.exp(-0.04 * min(step, 80) + 0.04 * max(step - 80, 0))


def steady(step: int) -> float:
    return USUAL * 1.04**step


def stairs(step: int) -> float:
    return USUAL * (1 + step // 10)


@pytest.mark.parametrize("rate", [steady, stairs, lambda step: 5e-4 * step])
def test_a_rise_without_end_is_told_once(rate: Callable[[int], float]) -> None:
    (finding,) = told(rate, valley)
    assert finding.code == "GS601" and finding.severity == "warning" and "goes on rising" in finding.message
    assert finding.step is not None and 100 < finding.step < 150


@pytest.mark.parametrize(
    ("rate", "loss"),
    [
        (steady, lambda step: math.exp(-0.02 * step)),
        (lambda step: USUAL * 1.04 ** min(step, 60), valley),
        (lambda step: USUAL * 20, valley),
        (lambda step: USUAL / 10 * 1.02**step, valley),
        (lambda step: USUAL * (1 + step % 40), valley),
        (steady, lambda step: valley(step) - 1.0),
        (steady, lambda step: 4.0 if step % 10 == 0 else math.exp(-0.02 * step)),
    ],
    ids=[
        "a loss that falls",
        "a warm-up that ends",
        "constant",
        "usual rates",
        "restarts",
        "below zero",
        "hard batches",
    ],
)
def test_other_schedules_and_losses_are_not(rate: Callable[[int], float], loss: Callable[[int], float]) -> None:
    assert told(rate, loss) == []


def test_only_optimizers_whose_updates_have_the_size_of_the_rate_are_judged() -> None:
    weights = [nn.Parameter(torch.ones(2))]
    assert usual_rate(torch.optim.AdamW(weights, lr=0.5)) == USUAL
    assert usual_rate(torch.optim.SGD(weights, lr=0.5)) == 0.0
    assert told(steady, valley, usual=0.0) == []


@pytest.mark.parametrize(("growth", "expected"), [(1.05, True), (1.0, False)])
def test_a_run_is_warned_before_its_loss_is_lost(growth: float, expected: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.randn(64, 8)
    y = (x[:, :1] * x[:, 1:2]).detach()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, growth)
    found: list[Finding] = []
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=found.append) as monitor:
        for _ in range(150):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            schedule.step()
            monitor.loss(loss)
    assert any("goes on rising" in finding.message for finding in found) is expected
