"""Steps on copies have the rates of a run's first steps, whoever sets them: a schedule that rises too fast is told, and its lower rates are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.probe.optimizer._settings import default_rate
from gnnstab.probe.optimizer.learning import learning_signals
from gnnstab.probe.optimizer.optimizer_steps import bench_for
from gnnstab.probe.optimizer.schedules import follow_rates, own_rates, rates_of_run

STEPS, WIDTH, PEAK = 24, 16, 0.3


class Net(nn.Module):
    """Two layers of attention with norms behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 1)
        self.convs = nn.ModuleList(TransformerConv(WIDTH, WIDTH // 4, heads=4) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))

    def forward(self, data: Data) -> Tensor:
        h = self.inp(data.x)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = norm(h + torch.relu(conv(h, data.edge_index)))
        out: Tensor = self.out(h).squeeze(-1)
        return out


def loss(output: Tensor, data: Data) -> Tensor:
    return F.mse_loss(output, data.y)


def graphs() -> list[Data]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(2):
        x = torch.randn(40, 5, generator=generator)
        edges = torch.randint(40, (2, 320), generator=generator)
        found.append(Data(x=x, edge_index=edges, y=x[:, 0] - x[:, 1] * (x[:, 2] > 0)))
    return found


class Warming(torch.optim.Adam):
    """Up in a number of steps, then down with the root of the step; no rate from outside counts."""

    def __init__(self, parameters: list[nn.Parameter], peak: float, steps: int) -> None:
        super().__init__(parameters, lr=1e-8)
        self.peak, self.warmup, self.taken = peak, steps, 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.taken += 1
        for group in self.param_groups:
            group["lr"] = self.peak * min(self.taken / self.warmup, (self.warmup / self.taken) ** 0.5)
        super().step(closure)


def warmed(step: int, warmup: int) -> float:
    return min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)


def test_a_run_whose_warm_up_is_too_short_is_told_with_the_rates_that_it_had() -> None:
    torch.manual_seed(0)
    model, batches = Net(), graphs()
    optimizer = torch.optim.Adam(model.parameters())
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = PEAK * warmed(step, 3)
            data = batches[step % len(batches)]
            optimizer.zero_grad()
            value = loss(model(data), data)
            value.backward()
            monitor.loss(value)
            optimizer.step()
    diagnosis = monitor.diagnose()
    assert {c.cause for c in diagnosis.causes if c.status == "root-cause"} == {"learning-rate"}
    found = next(f for f in diagnosis.findings if f.code == "GS609")
    assert "comes up to 0.3 in 2 steps" in found.message
    assert "rates of up to 0." in found.message


@pytest.mark.parametrize(("warmup", "told"), [(3, True), (300, False)])
def test_a_lower_rate_is_tried_where_the_step_of_the_class_sets_it(warmup: int, told: bool) -> None:
    torch.manual_seed(0)
    model = Net()
    bench = bench_for(model, graphs(), loss, Warming(list(model.parameters()), PEAK, warmup), None)
    (found,) = learning_signals(bench)
    assert (found.detail.get("cause") == "learning-rate") is told
    if told:
        assert found.detail["rate"] == pytest.approx(PEAK)
        assert found.detail["lower"] <= PEAK / 3
        assert found.detail["scheduled"]


def groups(*rates: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates])


def test_rates_that_come_to_their_largest_in_time_are_those_of_the_trial_in_every_group() -> None:
    rates = rates_of_run(groups(0.1, 0.01), [0, 1, 2, 4], [0.05, 0.1, 0.05, 0.025], 3, 6)
    shares = [0.5, 1, 0.5, 0.375, 0.25, 0.25]
    assert [row[0] for row in rates] == pytest.approx([0.1 * share for share in shares])
    assert [row[1] for row in rates] == pytest.approx([0.01 * share for share in shares])


@pytest.mark.parametrize("rates", [[0.1, 0.1, 0.1], [0.01, 0.02, 0.1], [0.1]])
def test_a_constant_rate_and_a_long_warm_up_are_tried_at_the_rate_that_the_groups_have(rates: list[float]) -> None:
    optimizer = groups(0.1)
    assert not rates_of_run(optimizer, range(len(rates)), rates, 2, 5)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_rate_of_another_name_is_none_that_is_followed() -> None:
    optimizer = groups(0.1)
    optimizer.param_groups[0]["eta"] = optimizer.param_groups[0].pop("lr")
    assert not rates_of_run(optimizer, [0, 1, 2], [0.1, 0.2, 0.1], 2, 5)
    assert not own_rates(optimizer, 3)


def test_what_a_class_was_made_with_is_no_rate_of_a_run_that_it_sets_rates_in() -> None:
    made = Warming([nn.Parameter(torch.ones(1))], 0.2, 2)
    made.param_groups[0]["lr"] = 0.2
    rates = rates_of_run(made, [0, 1, 2, 3], [1.0, 0.1, 0.2, 0.1], 3, 3)
    assert [row[0] for row in rates] == pytest.approx([0.1, 0.2, 0.1])


def test_rates_that_are_given_hold_against_those_that_the_class_sets() -> None:
    weight = nn.Parameter(torch.zeros(1))
    made = Warming([weight], 5.0, 1)
    follow_rates(made, [[0.5], [0.25]])
    moved = []
    for _ in range(3):
        weight.grad = torch.ones(1)
        before = weight.item()
        made.step()
        moved.append(before - weight.item())
    assert moved == pytest.approx([0.5, 0.25, 0.25], rel=1e-4)


def test_the_rates_of_a_class_are_asked_without_moving_a_weight() -> None:
    weight = nn.Parameter(torch.ones(1))
    made = Warming([weight], 0.4, 2)
    assert [row[0] for row in own_rates(made, 3)] == pytest.approx([0.2, 0.4, 0.4 * (2 / 3) ** 0.5])
    assert weight.item() == 1.0
    assert not own_rates(groups(0.1), 3)


def test_a_class_without_a_rate_of_its_own_has_the_default_of_the_one_that_it_extends() -> None:
    assert default_rate(Warming([nn.Parameter(torch.ones(1))], 0.1, 1)) == 1e-3
