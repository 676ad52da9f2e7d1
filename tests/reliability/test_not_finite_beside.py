"""NaN and Inf that the updates of a run do not show: in a loss that another follows, in buffers, in the optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gnnstab
from gnnstab.probe.buffering.pending_step import kept_of
from side_by_side import Net, graph

pytestmark = pytest.mark.usefixtures("untried")

X, EDGES = graph()
Y = torch.ones(len(X), 1)
BAD = 5
"""The batch whose loss is not finite."""

Loop = Callable[[gnnstab.Monitor, Net, torch.optim.Optimizer, Callable[[int, torch.Tensor], Any]], None]


def skips(monitor: gnnstab.Monitor, model: Net, optimizer: torch.optim.Optimizer, told: Callable[..., Any]) -> None:
    for number in range(9):
        optimizer.zero_grad()
        loss = told(number, mse_loss(model(X, EDGES), Y))
        monitor.loss(loss)
        if loss.isfinite():
            loss.backward()
            optimizer.step()


def accumulates(
    monitor: gnnstab.Monitor, model: Net, optimizer: torch.optim.Optimizer, told: Callable[..., Any]
) -> None:
    for number in range(12):
        loss = told(number, mse_loss(model(X, EDGES), Y))
        monitor.loss(loss)
        if loss.isfinite():
            loss.backward()
        if number % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


def tells_two(
    monitor: gnnstab.Monitor,
    model: Net,
    optimizer: torch.optim.Optimizer,
    told: Callable[..., Any],
    *,
    late: bool = False,
) -> None:
    """``late``: the second one with the call that ends the step."""
    for number in range(9):
        optimizer.zero_grad()
        loss = mse_loss(model(X, EDGES), Y)
        loss.backward()
        monitor.loss(told(number, loss))
        if not late:
            monitor.loss(loss)
        optimizer.step()
        if late:
            monitor.step(loss)


tells_with_the_step = partial(tells_two, late=True)


@pytest.mark.parametrize("schedule", [None, "every step"])
@pytest.mark.parametrize(
    ("loop", "bad"),
    [*product([skips, accumulates, tells_two, tells_with_the_step], [math.nan, None]), (accumulates, math.inf)],
)
def test_a_loss_that_another_follows_in_its_step(loop: Loop, bad: float | None, schedule: str | None) -> None:
    def told(number: int, loss: torch.Tensor) -> torch.Tensor:
        return loss if bad is None or number != BAD else loss * bad

    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=schedule) as monitor:
        loop(monitor, model, optimizer, told)
    found = {f.code: f for f in monitor.diagnose().findings}
    assert ("GS502" in found) == (bad is not None)
    if bad is not None:
        assert "stage loss" in found["GS502"].message
        assert not found["GS502"].cause  # The finite loss that came last shows no cause of the other.


def test_it_raises_at_the_next_update() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with (
        pytest.raises(gnnstab.errors.UnstableError, match="stage loss"),
        gnnstab.Monitor(model, optimizer=optimizer, on_finding="raise") as monitor,
    ):
        skips(monitor, model, optimizer, lambda number, loss: loss * math.nan if number == BAD else loss)


@pytest.mark.parametrize("before", [2.0, math.nan, math.inf, torch.tensor(2.0), torch.tensor(math.nan)])
def test_of_two_losses_the_one_that_is_not_finite_is_kept(before: Any) -> None:
    for later in (3.0, torch.tensor([3.0])):
        kept = kept_of(before, later)
        assert kept is (later if math.isfinite(before) else before)


@pytest.mark.parametrize("number", [math.nan, 1.0])
@pytest.mark.parametrize(
    "form",
    [
        lambda n: [1.0, n],
        lambda n: {"main": n, "steps": 3},
        lambda n: (torch.tensor(n), "named"),
        lambda n: np.array([n, 1.0]),
        lambda n: complex(1.0, n),
        lambda n: torch.tensor(complex(1.0, n)),
        lambda n: torch.tensor([n, 1.0]).to_sparse(),
        lambda n: {"best": math.inf, "main": n},
    ],
)
def test_a_loss_of_several_numbers(form: Callable[[float], Any], number: float) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(9):
            optimizer.zero_grad()
            loss = mse_loss(model(X, EDGES), Y)
            loss.backward()
            with pytest.warns(gnnstab.errors.GnnstabWarning) if step == BAD else nullcontext():
                monitor.loss(form(number) if step == BAD else loss)
            optimizer.step()
    told = [f.message for f in monitor.diagnose().findings if f.code in ("GS502", "GS902")]
    assert ["stage loss" in text for text in told] == ([] if number == 1.0 else [True])


class Stateful(Net):
    """With a BatchNorm, a frozen parameter, a mask and a placeholder that the output does not depend on."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.norm, self.size = nn.BatchNorm1d(1), size
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.register_buffer("best", torch.tensor(math.inf))
        self.register_buffer("fitted", torch.full((3,), math.nan))
        self.register_buffer("mask", torch.full((6, 6), -math.inf).triu(1))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out = super().forward(x, edge_index)
        self.norm(out.detach() * self.size)
        return out


def nothing(step: int, model: Stateful, optimizer: torch.optim.Optimizer) -> None:
    """The update is as the optimizer makes it."""


def large_gradient(step: int, model: Stateful, optimizer: torch.optim.Optimizer) -> None:
    if step == 3:
        model.out.weight.grad.mul_(1e25)  # type: ignore[union-attr]


def frozen(step: int, model: Stateful, optimizer: torch.optim.Optimizer) -> None:
    if step == 3:
        model.frozen.data.fill_(math.nan)


def momentum(step: int, model: Stateful, optimizer: torch.optim.Optimizer) -> None:
    if step == 7:
        optimizer.state[model.out.bias]["momentum_buffer"] = torch.full((1,), math.nan)


@pytest.mark.parametrize("number", [math.nan, 1.0])
@pytest.mark.parametrize(
    "form", [lambda n: n, lambda n: [torch.tensor(n), None], lambda n: {"m": (torch.tensor([n]),)}]
)
def test_what_an_optimizer_keeps_in_other_forms(form: Callable[[float], Any], number: float) -> None:
    """L-BFGS keeps lists of tensors."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            mse_loss(model(X, EDGES), Y).backward()
            optimizer.step()
        optimizer.state[model.out.bias]["history"] = form(number)
    told = [f.message for f in monitor.diagnose().findings if f.code in ("GS502", "GS902")]
    assert ["SGD.state.history" in text for text in told] == ([] if number == 1.0 else [True])


@pytest.mark.parametrize(
    ("size", "between", "said"),
    [
        (1e30, nothing, "norm.running_var"),
        (1.0, large_gradient, "exp_avg_sq"),
        (1.0, frozen, "frozen"),
        (1.0, momentum, "momentum_buffer"),
        (1.0, nothing, ""),
    ],
)
def test_what_a_run_leaves_is_looked_at(size: float, between: Callable[..., None], said: str) -> None:
    torch.manual_seed(0)
    model = Stateful(size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for step in range(8):
            optimizer.zero_grad()
            mse_loss(model(X, EDGES), Y).backward()
            between(step, model, optimizer)
            optimizer.step()
            if step == 7:
                between(step, model, optimizer)
    told = [f for f in monitor.diagnose().findings if f.code == "GS502"]
    assert [said in f.message and not f.cause for f in told] == ([True] if said else [])


class Policy(nn.Module):
    """Attention over all rows; actions that are not allowed get −∞."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.out = nn.Linear(4, 16), nn.Linear(16, 1)
        self.query, self.key = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, allowed: Tensor) -> Tensor:
        rows = torch.relu(self.inp(x))
        scores = self.query(rows) @ self.key(rows).transpose(1, 2) / 4.0
        rows = rows + scores.softmax(-1) @ rows
        out: Tensor = self.out(rows).squeeze(-1).masked_fill(~allowed, -math.inf)
        return out


@pytest.mark.parametrize("schedule", [None, "every step"])
@pytest.mark.parametrize("least", [0.0, 1e-12])
def test_infinities_that_a_model_writes_as_a_mask(least: float, schedule: str | None) -> None:
    """Where p is 0, p·log(p) is NaN."""
    torch.manual_seed(0)
    model = Policy()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, allowed = torch.randn(8, 6, 4), torch.rand(8, 6) < 0.7
    allowed[:, 0] = True
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=schedule) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            p = model(x, allowed).softmax(-1)
            (-p[:, 0].log() + 0.1 * (p * p.clamp(min=least).log()).sum(-1)).mean().backward()
            optimizer.step()
    found = {f.severity: f for f in monitor.diagnose().findings if f.code == "GS502"}
    if least:
        assert list(found) == ["info"]
        assert "as a mask does" in found["info"].message
    else:
        assert found["error"].cause == "undefined-operation"
        assert "log(0)" in found["error"].message


@pytest.mark.parametrize("schedule", [None, "every step"])
@pytest.mark.parametrize("broken", [True, False])
def test_a_forward_without_gradients_in_training_mode(broken: bool, schedule: str | None) -> None:
    """As where dropout is sampled for an uncertainty, between the steps of a run."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=schedule) as monitor:
        for step in range(60):
            optimizer.zero_grad()
            mse_loss(model(X, EDGES), Y).backward()
            optimizer.step()
            if step % 10 == 9:
                with torch.no_grad():
                    model(X * math.nan if broken and step == 49 else X, EDGES)
    told = [f.cause for f in monitor.diagnose().findings if f.code == "GS502"]
    assert told == (["non-finite-data"] if broken else [])


class Beside(Net):
    """Answers with a second tensor, which no loss reads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "normed":
            torch.nn.utils.parametrizations.weight_norm(self.out)

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        out = super().forward(x, edge_index)
        if self.kind == "root":
            return {"main": out, "aux": (out - 1e9).sqrt()}
        if self.kind == "rows":  # Of one row nothing is asked.
            return {"main": out, "aux": torch.cat([out[1:], (out[:1] - 1e9).sqrt()])}
        return {"main": out, "aux": torch.full((), math.nan)} if self.kind == "placeholder" else out


@pytest.mark.parametrize(
    ("kind", "told"),
    [("root", True), ("rows", False), ("placeholder", False), ("normed", True), ("sound", False)],
)
def test_an_output_that_no_loss_shows(kind: str, told: bool) -> None:
    """That of a weight whose norm has become 0 since the last forward, too."""
    torch.manual_seed(0)
    model = Beside(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore") as monitor:
        for _ in range(22):
            optimizer.zero_grad()
            out = model(X, EDGES)
            mse_loss(out["main"] if isinstance(out, dict) else out, Y).backward()
            optimizer.step()
        if kind == "normed":
            model.out.parametrizations.weight.original1.data.zero_()
    found = [f for f in monitor.diagnose().findings if f.code == "GS502"]
    assert ["NaN" in f.message for f in found] == ([True] if told else [])


@pytest.mark.parametrize("least", [-1.0, 0.0])
def test_a_loop_that_leaves_before_the_backward(least: float) -> None:
    """The loss of the last batch, which nobody tells, is the root of a number below zero, or of zero."""
    torch.manual_seed(0)
    model, number = Net(), 0

    def loss(output: Tensor) -> Tensor:
        return mse_loss(output, Y) + (output.detach().mean() * 0 + (least if number == 5 else 0.0)).sqrt()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss, on_finding="ignore") as monitor:
        for number in range(6):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            if number == 5:
                break
            value.backward()
            optimizer.step()
    told = [f.cause for f in monitor.diagnose().findings if f.code == "GS502"]
    assert told == ([] if least == 0.0 else ["undefined-operation"])


class Rooted(Net):
    """Adds the root of a number that is always 0, or always 1: only the derivative of the first is infinite."""

    def __init__(self, beneath: float) -> None:
        super().__init__()
        self.beneath = beneath

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = super().forward(x, edge_index)
        return out + (self.out.bias.sum() * 0 + self.beneath).sqrt()


@pytest.mark.parametrize("schedule", [None, "every step"])
@pytest.mark.parametrize("way", ["after", "hook"])
@pytest.mark.parametrize("beneath", [0.0, 1.0])
def test_gradients_that_the_loop_cleans_in_every_step(beneath: float, way: str, schedule: str | None) -> None:
    torch.manual_seed(0)
    model = Rooted(beneath)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    for parameter in model.parameters() if way == "hook" else ():
        parameter.register_hook(lambda gradient: gradient.nan_to_num(0.0))
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=schedule) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            mse_loss(model(X, EDGES), Y).backward()
            for parameter in model.parameters():
                parameter.grad = None if parameter.grad is None else parameter.grad.nan_to_num(0.0)
            optimizer.step()
    told = [f.cause for f in monitor.diagnose().findings if f.code == "GS502"]
    assert told == ([] if beneath else ["undefined-operation"])
