"""Trial steps before the first update of a run whose loss is known: the rate is judged before it has done its harm."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATv2Conv

import gnnstab
from gnnstab.errors import GnnstabWarning, UsageError
from gnnstab.probe.optimizer.optimizer_steps import MOST_STEPS, STEPS, optimizer_signals, steps_of
from gnnstab.records import Finding, Signals
from gnnstab.records.vocabulary import OPTIMIZER_LOSS_RISE
from gnnstab.rules.gs601_learning_rate_too_high import LearningRateTooHigh
from trained import take_step


class Roads(nn.Module):
    """Attention over crossings, a number for each."""

    def __init__(self) -> None:
        super().__init__()
        self.inp = nn.Linear(5, 16)
        self.conv = GATv2Conv(16, 8, heads=2)
        self.out = nn.Linear(16, 1)

    def forward(self, data: Data) -> Tensor:
        h = torch.relu(self.inp(data.x))
        return self.out(h + torch.relu(self.conv(h, data.edge_index))).squeeze(-1)


def squared(output: Tensor, data: Data) -> Tensor:
    return nn.functional.mse_loss(output, data.y)


def crossings() -> tuple[Roads, Data]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        x = torch.randn(50, 5)
        return Roads(), Data(x=x, edge_index=torch.randint(0, 50, (2, 200)), y=x.sum(1))


def run(lr: float, *, loss: Any = squared, steps: int = 3, clip: float | None = None, watched: bool = True) -> Any:
    """Findings as they came, the losses and the weights of a short run of plain descent."""
    model, data = crossings()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    said: list[Finding] = []
    monitor = gnnstab.Monitor(model, optimizer=optimizer, loss=loss, on_finding=said.append) if watched else None
    losses = []
    if monitor is not None:
        monitor.__enter__()
    for _ in range(steps):
        optimizer.zero_grad()
        value = squared(model(data), data)
        value.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(float(value.detach()))
        if monitor is not None:
            monitor.loss(value)
    if monitor is not None:
        monitor.__exit__(None, None, None)
    return said, monitor, losses, copy.deepcopy(model.state_dict())


def test_a_rate_that_is_too_high_is_told_at_the_first_step() -> None:
    said, monitor, *_ = run(3.0, steps=1)
    assert [(f.code, f.step) for f in said] == [("GS601", 0)]
    assert "calm" in said[0].message
    assert "learning-rate" in [cause.cause for cause in monitor.diagnose().root_causes()]


def test_without_the_loss_one_step_tells_nothing() -> None:
    assert run(3.0, loss=None, steps=1)[0] == []


def test_a_usual_rate_is_calm_and_the_run_the_same_bit_for_bit() -> None:
    said, _, losses, state = run(0.02)
    _, _, others, other = run(0.02, watched=False)
    assert said == []
    assert losses == others
    assert all(torch.equal(state[name], other[name]) for name in state)


def test_a_run_that_clips_is_tried_with_its_clipping() -> None:
    assert run(3.0, clip=0.005)[0] == []


def test_a_loss_that_cannot_be_asked_about_one_forward_leaves_the_run_alone() -> None:
    def of_a_rollout(output: Tensor, data: Data) -> Tensor:
        raise RuntimeError("needs every step of the rollout")

    with pytest.warns(GnnstabWarning, match="of_a_rollout failed when it was called on a copy"):
        said, monitor, *_ = run(0.02, loss=of_a_rollout)
    assert said == []
    assert not [row for row in monitor.trace.measures() if row.name == OPTIMIZER_LOSS_RISE]
    assert not [event for event in monitor.trace.events() if event.kind == "tool-failure"]


@pytest.mark.parametrize(("momentum", "steps"), [(0.0, STEPS), (0.9, 10), (0.95, MOST_STEPS), (0.999, MOST_STEPS)])
def test_momentum_asks_for_steps_until_updates_have_their_size(momentum: float, steps: int) -> None:
    assert steps_of(torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=momentum)) == steps


def judged(lr: float, momentum: float) -> list[str]:
    model, data = crossings()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    found, _ = optimizer_signals(model, data, squared, optimizer)
    return [finding.severity for finding in LearningRateTooHigh().check(Signals("model", (), tuple(found)))]


def test_momentum_that_carries_the_steps_away_is_seen() -> None:
    assert judged(0.3, 0.95) != []
    assert judged(0.01, 0.9) == []


class Gains(nn.Module):
    """Attention by hand over edges: an exponential of scores, with the largest of each target taken away or not."""

    def __init__(self, shifted: bool) -> None:
        super().__init__()
        self.shifted = shifted
        self.inp, self.score, self.out = nn.Linear(5, 16), nn.Linear(16, 1, bias=False), nn.Linear(16, 1)

    def forward(self, data: Data) -> Tensor:
        source, target = data.edge_index
        h = torch.tanh(self.inp(data.x))
        score = 80 + 8 * self.score(h)[source]
        if self.shifted:
            largest = torch.full((data.num_nodes, 1), -1e9)
            score = score - largest.scatter_reduce(0, target[:, None], score.detach(), "amax")[target]
        weight = torch.exp(score)
        total = torch.zeros(data.num_nodes, 1).index_add(0, target, weight) + 1e-9
        heard = torch.zeros_like(h).index_add(0, target, weight * h[source])
        return self.out(h + heard / total).squeeze(-1)


@pytest.mark.parametrize("lr", [1e-2, 1e-1])
def test_an_operation_that_ends_calm_steps_is_named_and_not_the_rate(lr: float) -> None:
    """A logarithm of what a ReLU may leave at 0: any rate gets there."""

    def floored(output: Tensor, data: Data) -> Tensor:
        return (output - data.y).square().mean() - 0.1 * torch.log(torch.relu(output + 6)).mean() + 1

    model, data = crossings()
    data.y = data.y - 20
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    said: list[Finding] = []
    with gnnstab.Monitor(model, optimizer=optimizer, loss=floored, on_finding=said.append) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            loss = floored(model(data), data)
            loss.backward()  # type: ignore[no-untyped-call]
            monitor.loss(loss)
            if not loss.isfinite():
                break
            optimizer.step()
    assert "GS601" not in {finding.code for finding in said}
    assert [cause.cause for cause in monitor.diagnose().root_causes()] == ["undefined-operation"]


def test_diagnose_names_the_operation_that_the_first_steps_reach() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        broken, data = Gains(shifted=False), crossings()[1]
    repaired = Gains(shifted=True)
    repaired.load_state_dict(broken.state_dict())
    found = {}
    for name, model in (("broken", broken), ("repaired", repaired)):
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)
        found[name] = gnnstab.diagnose(model, batch=data, loss=squared, optimizer=optimizer)
    assert [cause.cause for cause in found["broken"].root_causes()] == ["undefined-operation"]
    (told,) = [f for f in found["broken"].findings if f.code == "GS502"]
    assert "exp(" in told.message
    assert "of your optimizer's steps on a copy" in told.message
    assert not found["repaired"].at_least("warning")


def test_steps_of_the_weights_own_size_are_to_blame_themselves() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model, data = Gains(shifted=False), crossings()[1]
    optimizer = torch.optim.Adam(model.parameters(), lr=5.0)
    found = gnnstab.diagnose(model, batch=data, loss=squared, optimizer=optimizer)
    assert [cause.cause for cause in found.root_causes()] == ["learning-rate"]


@pytest.mark.parametrize(("lr", "told"), [(1e-8, True), (1e-2, False)])
def test_a_rate_that_is_far_too_small_is_told_at_the_end(lr: float, told: bool) -> None:
    _, monitor, *_ = run(lr, steps=52)
    found = monitor.diagnose(select=["GS608"]).findings
    assert [(f.cause, f.value >= 1e4) for f in found] == ([("learning-rate", True)] if told else [])


@pytest.mark.parametrize(("loss", "clip", "told"), [(squared, 1e-4, True), (None, 1e-4, True), (squared, 1.0, False)])
def test_a_limit_that_leaves_next_to_nothing_of_the_gradient_is_told_at_the_end(
    loss: Any, clip: float, told: bool
) -> None:
    _, monitor, *_ = run(0.05, loss=loss, steps=60, clip=clip)
    found = monitor.diagnose()
    assert [cause.cause for cause in found.root_causes()] == (["learning-rate"] if told else [])
    assert (f"had a norm above {clip:.3g}" in str(found.findings)) is told


def test_a_limit_says_nothing_of_an_optimizer_that_knows_no_size() -> None:
    model, data = crossings()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, eps=1e-12)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=squared) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            value = squared(model(data), data)
            value.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1e-4)
            optimizer.step()
            monitor.loss(value)
    assert not monitor.diagnose(select=["GS608"]).findings


@pytest.mark.parametrize(
    ("size", "clip", "told"), [(30, None, ["GS601"]), (30, 1.0, []), (1, 1e-4, ["GS608"]), (1, 1.0, [])]
)
def test_before_a_run_steps_keep_to_its_limit_of_the_gradient(size: float, clip: float | None, told: list[str]) -> None:
    model, data = crossings()
    data.y = size * data.y
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    found = gnnstab.diagnose(model, batch=data, loss=squared, optimizer=optimizer, clip=clip, select=["GS601", "GS608"])
    assert [f.code for f in found.findings if f.severity != "info"] == told


@pytest.mark.parametrize("clip", [0.0, -1.0, math.nan])
def test_a_limit_that_is_none_is_refused(clip: float) -> None:
    with pytest.raises(UsageError, match="clip is the limit"):
        gnnstab.diagnose(crossings()[0], clip=clip)


def test_a_rate_that_warms_up_longer_than_the_run_is_told_as_a_warm_up() -> None:
    model, data = crossings()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=squared, on_finding="ignore") as monitor:
        for step in range(52):
            optimizer.param_groups[0]["lr"] = 1e-9 * (step + 1)
            take_step(optimizer, squared(model(data), data), monitor)
    (told,) = monitor.diagnose(select=["GS608"]).findings
    assert "the rates of its warm-up" in told.message and told.message.endswith("than the run has.")


@pytest.mark.parametrize(("every", "told"), [(1, True), (25, False)])
def test_a_schedule_that_ends_before_anything_is_learned_is_told(every: int, told: bool) -> None:
    model, data = crossings()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=every, gamma=0.5)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(60):
            value = squared(model(data), data)
            take_step(optimizer, value)
            schedule.step()
            monitor.loss(value)
    found = [f for f in monitor.diagnose().findings if f.code == "GS608"]
    assert [(f.cause, "schedule" in f.message) for f in found] == ([("learning-rate", True)] if told else [])


def ended(loss: Any, **settings: Any) -> list[str]:
    """Root causes after 60 steps of Adam, whose loss was not handed over."""
    model, data = crossings()
    optimizer = torch.optim.Adam(model.parameters(), **settings)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(60):
            take_step(optimizer, loss(model(data), data), monitor)
    return [cause.cause for cause in monitor.diagnose().root_causes()]


@pytest.mark.parametrize(("lr", "told"), [(3e-5, ["learning-rate"]), (3e-3, []), (1e-3, [])])
def test_a_rate_a_hundred_times_too_small_is_told_by_steps_at_a_hundred_times_it(lr: float, told: list[str]) -> None:
    assert ended(squared, lr=lr) == told


@pytest.mark.parametrize(("unit", "told"), [(1e-10, ["adam-epsilon"]), (1.0, [])])
def test_eps_under_a_tiny_loss_that_still_falls_a_little(unit: float, told: list[str]) -> None:
    assert ended(lambda output, data: unit * squared(output, data), lr=3e-2) == told


@pytest.mark.parametrize("lr", [3.0, 100.0])
def test_the_change_proposes_the_rate_that_was_measured_to_be_calm(lr: float) -> None:
    """Also where the trial's loss rose beyond every number, which is no missing one."""
    said, monitor, *_ = run(lr, steps=6)
    calm = re.search(r"At lr=(\S+) the same steps are calm", next(f.message for f in said if f.code == "GS601"))
    assert calm is not None
    (cause,) = [c for c in monitor.diagnose().causes if c.cause == "learning-rate"]
    (change,) = [fix.change for fix in cause.fixes if fix.fix == "lower-lr"]
    assert change.endswith(f'["lr"] = {calm[1]}  # in place of {lr:g}')
