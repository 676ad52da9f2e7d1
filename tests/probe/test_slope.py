"""Rate times curvature along the updates of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.probe.optimizer.slope import LATELY, RISING_SGD, SlopeWatch
from gnnstab.records import Measure


class Written:
    def __init__(self) -> None:
        self.rows: list[Measure] = []

    def measures(self, rows: Any) -> None:
        self.rows += rows


def parabola(
    rate: Callable[[int], float], steps: int, curvature: float = 1.0, kind: Any = torch.optim.SGD
) -> list[Measure]:
    """The measures along descent on curvature · w²/2."""
    weight = nn.Parameter(torch.full((3,), 1e-3))
    optimizer = kind([weight], lr=1.0)
    written, at = Written(), [0]
    watch = SlopeWatch((optimizer,), written, lambda: at[0])  # type: ignore[arg-type]
    for step in range(steps):
        at[0] = step
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        (curvature * weight.square().sum() / 2).backward()
        watch.look(optimizer)
        optimizer.step()
    return written.rows


@pytest.mark.parametrize(
    "rate",
    [
        lambda _: 0.1,
        lambda step: 0.1 * 0.9**step,
        lambda step: 0.05 * (1 + math.cos(math.pi * (step % 40) / 40)),
        lambda step: 0.1 / (1 + 3 * abs(step % 30 - 15) / 15) if step >= 15 else 0.1,
    ],
    ids=["constant", "falling", "restarts", "triangles from the top"],
)
def test_a_rate_that_the_run_had_before_is_not_watched(rate: Callable[[int], float]) -> None:
    assert parabola(rate, 200) == []


@pytest.mark.parametrize("length", [20, 100, 1000])
def test_a_linear_warm_up_is_watched_under_sgd_alone_and_while_it_rises(length: int) -> None:
    def rate(step: int) -> float:
        return 0.1 * min(1, (step + 1) / length)

    assert parabola(rate, 200, kind=torch.optim.Adam) == []
    watched = [row.step for row in parabola(rate, 200)]
    assert watched[0] == LATELY
    assert watched[-1] <= min(length + LATELY, LATELY / (RISING_SGD - 1) + LATELY)


@pytest.mark.parametrize("curvature", [0.5, 3.0])
def test_on_a_parabola_the_number_is_rate_times_curvature(curvature: float) -> None:
    def rate(step: int) -> float:
        return 0.002 * 1.04**step

    rows = parabola(rate, 100, curvature)
    assert rows[0].step == LATELY
    assert [row.value for row in rows] == pytest.approx([rate(row.step) * curvature for row in rows], rel=1e-4)


def test_a_ramp_is_told_before_the_loss_knows_and_the_run_stays_as_it_is() -> None:
    def train(watched: bool) -> tuple[list[float], list[gnnstab.Finding], torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        batches = torch.randn(6, 16, 6)
        told: list[gnnstab.Finding] = []
        monitor = gnnstab.Monitor(model, optimizer=optimizer, on_finding=told.append)
        losses = []

        def steps() -> None:
            for step in range(220):
                optimizer.param_groups[0]["lr"] = 0.05 * 1.03 ** max(0, step - 60)
                optimizer.zero_grad()
                x = batches[step % 6]
                loss = (model(x).squeeze(-1) - x.prod(1) - x.sum(1)).square().mean()
                losses.append(float(loss.detach()))
                if losses[-1] > 50 * losses[0]:
                    break
                loss.backward()
                optimizer.step()
                if watched:
                    monitor.loss(loss)

        if watched:
            with monitor:
                steps()
            assert "optimizer.overshoot" in {f.signal for f in monitor.diagnose().findings if f.code == "GS601"}
        else:
            steps()
        return losses, told, torch.cat([p.detach().flatten() for p in model.parameters()])

    losses, told, weights = train(watched=True)
    without, _, others = train(watched=False)
    assert losses == without
    assert torch.equal(weights, others)
    first = next(f for f in told if f.signal == "optimizer.overshoot")
    worse = next(i for i, loss in enumerate(losses) if i > 60 and loss > 10 * losses[0])
    assert first.step is not None
    assert first.step + 5 <= worse


def momentum(to: float) -> Callable[[int], dict[str, float]]:
    return lambda step: {"momentum": min(0.4 + 0.005 * step, to)}


def decay(to: float) -> Callable[[int], dict[str, float]]:
    return lambda step: {"weight_decay": min(0.01 * 1.1**step, to)}


def rate(to: float) -> Callable[[int], dict[str, float]]:
    return lambda step: {"lr": max(1e-4 - 1e-6 * step, to)}


SETTINGS = [
    (torch.optim.SGD, momentum(1.02), "momentum", 120),
    (torch.optim.SGD, momentum(0.99), "momentum", None),
    (torch.optim.SGD, decay(1e4), "decay", 104),  # 1e-4 · .01 · 1.1^104 ≥ .02 > 1e-4 · .01 · 1.1^103
    (torch.optim.AdamW, decay(1e4), "decay", 104),
    (torch.optim.AdamW, decay(100), "decay", None),
    (torch.optim.Adam, decay(1e4), "decay", None),  # Its decay is part of the gradient, whose size Adam takes away.
    (torch.optim.SGD, rate(-1e-5), "negative_rate", 101),
    (torch.optim.SGD, rate(0.0), "negative_rate", None),
    (torch.optim.SGD, lambda step: {"lr": math.nan if step == 100 else 1e-4}, "negative_rate", 100),
    (torch.optim.Adam, lambda step: {"lr": math.inf if step == 100 else 1e-4}, "negative_rate", 100),
    (torch.optim.SGD, lambda step: {"momentum": math.nan if step >= 100 else 0.9}, "momentum", 100),
    (torch.optim.SGD, lambda step: {"weight_decay": math.nan if step >= 100 else 0.0}, "decay", 100),
]


@pytest.mark.parametrize("group", [0, 1])
@pytest.mark.parametrize(("kind", "schedule", "setting", "said"), SETTINGS)
def test_a_setting_beyond_its_limit_is_told_at_that_step(
    kind: Any, schedule: Callable[[int], dict[str, float]], setting: str, said: int | None, group: int
) -> None:
    torch.manual_seed(0)
    model = GATv2Conv(4, 2)
    edges, x = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.randn(3, 4)
    optimizer = kind([{"params": [p]} for p in model.parameters()], lr=1e-4)
    found: list[Any] = []
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=found.append):
        for step in range(125):
            # All groups follow a schedule; the one at fault goes further.
            for place, one in enumerate(optimizer.param_groups):
                one.update(schedule(step) if place == group else {"lr": 1e-4 / (1 + step)})
            optimizer.zero_grad()
            model(x, edges).square().sum().backward()
            optimizer.step()
    assert [f.step for f in found if f.signal == f"optimizer.{setting}"] == ([] if said is None else [said])
    assert [f.code for f in found if f.severity != "info" and f.code == "GS606"] == ([] if said is None else ["GS606"])
    assert all(("parameter group 1" in f.message) == (group == 1) for f in found if f.code == "GS606")
