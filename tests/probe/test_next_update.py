"""What the next update does to the output: on a copy, with the gradients of the run."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.probe.attaching.forward_tracker import ForwardInputs
from gnnstab.probe.optimizer.next_update import SMALLEST, few_bits, next_update
from gnnstab.records.vocabulary import OPTIMIZER_EPS_DAMPING, OPTIMIZER_LOST_SHARE, OPTIMIZER_OUTPUT_MOVE
from trained import take_step


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(6, 8, heads=2, dropout=0.2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(x, edge_index)))


def train(lr: float, steps: int = 12, watched: bool = True, **settings: Any) -> tuple[list[float], Any, Any]:
    """Losses, the monitor and the final weights of one training."""
    torch.manual_seed(3)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, **settings)
    x, edges = torch.randn(40, 6), torch.randint(0, 40, (2, 160))
    y = (x[:, :3] * 2).argmax(1)
    monitor = gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") if watched else None
    losses = []
    if monitor is not None:
        monitor.__enter__()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x, edges), y)
        take_step(optimizer, loss)
        losses.append(float(loss.detach()))
        if monitor is not None:
            monitor.loss(loss)
    if monitor is not None:
        monitor.__exit__(None, None, None)
    return losses, monitor, copy.deepcopy(model.state_dict())


def measured(monitor: gnnstab.Monitor, name: str) -> dict[int, float]:
    return {row.step: row.value for row in monitor.trace.measures() if row.name == name}


def test_the_run_stays_as_it_is() -> None:
    with_it, monitor, state = train(0.1)
    without, _, other = train(0.1, watched=False)
    assert with_it == without
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert set(measured(monitor, OPTIMIZER_OUTPUT_MOVE)) == {0}


class Counting(torch.optim.Adam):
    """Counts its steps in its class."""

    taken = 0

    def step(self, *args: Any) -> Any:  # type: ignore[override]
        type(self).taken += 1
        return super().step(*args)


def test_both_updates_on_copies_leave_what_an_optimizer_counts_in_its_class() -> None:
    model, x, edges = Net(), torch.randn(40, 6), torch.randint(0, 40, (2, 160))
    optimizer = Counting(model.parameters(), lr=1e-3)
    model(x, edges).square().mean().backward()
    update = next_update(model, optimizer, ForwardInputs((x, edges)), [])
    assert update.moved > 0 and update.damping > 0
    assert Counting.taken == 0


@pytest.mark.usefixtures("untried")
def test_steps_that_are_measured_get_rarer() -> None:
    _, monitor, _ = train(1e-3, steps=130)
    assert set(measured(monitor, OPTIMIZER_OUTPUT_MOVE)) == {0, 100}
    _, damped, _ = train(1e-3, steps=130, eps=1.0)
    assert set(measured(damped, OPTIMIZER_OUTPUT_MOVE)) == {0, 50, 100}


@pytest.mark.usefixtures("untried")
def test_what_is_measured_grows_with_the_rate_and_falls_with_eps() -> None:
    low, high = (measured(train(lr, steps=1)[1], OPTIMIZER_OUTPUT_MOVE)[0] for lr in (1e-3, 1.0))
    assert 0 < low < 1 < 10 < high
    kept, damped = (measured(train(1e-3, 1, eps=eps)[1], OPTIMIZER_EPS_DAMPING)[0] for eps in (1e-8, 1.0))
    assert kept == pytest.approx(1, abs=0.02)
    assert damped < 0.3


def test_the_monitor_names_the_rate_from_the_first_steps() -> None:
    losses, monitor, _ = train(3.0)  # At 1.0 the loss comes down again, to a tenth of its first.
    assert max(losses[1:7]) > 2 * losses[0]
    (finding,) = [f for f in monitor.diagnose().findings if f.code == "GS601"]
    assert finding.severity in ("warning", "error")
    assert finding.signal == "optimizer.loss_rise"  # The loss was recovered, and the first steps taken on a copy.
    assert "first steps" in finding.message
    assert not [f for f in train(1e-3)[1].diagnose().findings if f.code == "GS601"]


def test_the_monitor_tells_while_the_run_goes_on() -> None:
    torch.manual_seed(3)
    model, told = Net(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=3.0)
    x, edges = torch.randn(40, 6), torch.randint(0, 40, (2, 160))
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding=told.append) as monitor:
        for _ in range(8):
            take_step(optimizer, nn.functional.cross_entropy(model(x, edges), (x[:, :3] * 2).argmax(1)), monitor)
    assert [f.signal for f in told if f.code == "GS601"][:1] == ["optimizer.loss_rise"]
    assert not math.isnan(told[0].value)


def test_several_optimizers_are_not_measured() -> None:
    model = Net()
    parts = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.conv, model.head)]
    x, edges = torch.randn(10, 6), torch.randint(0, 10, (2, 30))
    with gnnstab.Monitor(model, optimizer=parts) as monitor:
        model(x, edges).square().mean().backward()
        for part in parts:
            part.step()
    assert measured(monitor, OPTIMIZER_OUTPUT_MOVE) == {}


@pytest.mark.parametrize(
    ("lr", "dtype", "limits"),
    [(1e-5, torch.bfloat16, (0.8, 1)), (3e-2, torch.bfloat16, (0, 0.3)), (1e-5, torch.float32, None)],
)
def test_an_update_that_is_rounded_away_is_counted(
    lr: float, dtype: torch.dtype, limits: tuple[float, float] | None
) -> None:
    torch.manual_seed(0)
    model = Net().to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x, edges = torch.randn(40, 6, dtype=dtype), torch.randint(0, 40, (2, 160))
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(102):
            take_step(optimizer, (model(x, edges).float() - torch.randn(40, 3)).square().mean())
    lost = measured(monitor, OPTIMIZER_LOST_SHARE)
    assert {0, 100} <= lost.keys() if limits else not lost
    assert limits is None or all(limits[0] <= share <= limits[1] for share in lost.values()), lost
    said = [f.cause for f in monitor.diagnose(select=["GS503"]).findings]
    assert said == (["precision"] if limits and limits[0] else [])


@pytest.mark.parametrize(("factor", "cause"), [(1e-5, ["precision"]), (1.0, [])])
def test_gradients_that_are_left_with_one_or_two_bits_of_fp16(factor: float, cause: list[str]) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    x, edges = torch.randn(40, 6), torch.randint(0, 40, (2, 160))
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = factor * (model(x, edges).float() - x[:, :3]).square().mean()
            loss.backward()
            optimizer.step()
    assert [f.cause for f in monitor.diagnose(select=["GS503"]).findings] == cause


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
@pytest.mark.parametrize(("eps", "dead", "told"), [(0.0, True, True), (1e-8, True, False), (0.0, False, False)])
def test_an_eps_of_0_is_told_where_a_gradient_is_0(
    kind: type[torch.optim.AdamW], eps: float, dead: bool, told: bool
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = kind(model.parameters(), lr=1e-3, eps=eps)
    x, y = torch.randn(40, 6), torch.randn(40, 3)
    x[:, 2] *= not dead

    def loss(out: Tensor, _: Any) -> Tensor:
        return (out - y).square().mean()

    before = gnnstab.diagnose(model, batch=x, loss=loss, optimizer=optimizer)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(4):
            take_step(optimizer, value := loss(model(x), None))
            monitor.loss(value)
    for diagnosis in (before, monitor.diagnose()):
        assert [c.cause for c in diagnosis.root_causes()] == (["adam-epsilon"] if told else [])


@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_the_copy_that_is_given_away_is_as_the_model_was(lr: float) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    x = torch.randn(16, 4)
    model(x).square().mean().backward()
    given: list[nn.Module] = []
    next_update(model, optimizer, ForwardInputs((x,)), [], given.append)
    assert given[0] is not model and all(p.grad is None for p in given[0].parameters())
    assert all(torch.equal(value, given[0].state_dict()[name]) for name, value in model.state_dict().items())


def test_few_bits_is_the_share_of_gradients_that_are_small_multiples() -> None:
    model = nn.Linear(2, 2)
    assert math.isnan(few_bits(model))
    model.weight.grad, model.bias.grad = torch.zeros(2, 2), torch.zeros(2)
    assert math.isnan(few_bits(model))
    model.bias.grad = torch.tensor([0.3, 1e-5])
    assert few_bits(model) == 0
    model.weight.grad = torch.tensor([[1.0, 4.0], [5.0, 0.0]]) * SMALLEST
    assert few_bits(model) == 2 / 5
