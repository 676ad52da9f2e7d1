"""What the user's own code asks of the objects that gnnstab puts in the place of theirs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from side_by_side import WIDTH, Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.ones(len(X), 1)


class ByArgument(torch.optim.SGD):
    """Calls its closure with an argument, reads and sets attributes of it."""

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        self.zero_grad()
        loss = closure(scale=2.0)
        closure.seen = closure.calls
        super().step()
        return loss


def closure_with_an_argument(run: Run) -> None:
    model = Net()
    optimizer = ByArgument(model.parameters(), 1e-2)

    def closure(scale: float = 1.0) -> Tensor:
        closure.calls += 1  # type: ignore[attr-defined]
        loss = scale * mse_loss(model(X, EDGES), Y)
        loss.backward()
        return loss

    closure.calls = 0  # type: ignore[attr-defined]
    with run.watching(model, optimizer=optimizer):
        for step in range(1, 4):
            run.keep(optimizer.step(closure))
            assert vars(closure) == {"calls": step, "seen": step}


def scaler_whose_update_is_wrapped(run: Run) -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    updated = scaler.update

    def at_most(*new_scale: float) -> None:
        updated(*new_scale)
        if scaler.get_scale() > 2.0**11:
            updated(2.0**11)

    scaler.update = at_most  # type: ignore[method-assign]
    with run.watching(model, optimizer=optimizer, scaler=scaler):
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(mse_loss(model(X, EDGES), Y)).backward()
            scaler.step(optimizer)
            scaler.update()
            run.keep(torch.tensor(scaler.get_scale()))
    assert vars(scaler)["update"] is at_most


class Dense(nn.Module):
    """Attention by hand; its ``forward`` is run inside a context while a monitor watches."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.softmax(self.query(x) @ x.t(), -1) @ x


class Asking(Net):
    """Computes something else where a method does not answer as a method does."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        methods = {"forward": (self.dense, self.dense.forward), "message": (self.first, self.first.message)}
        for name, (owner, method) in methods.items():
            function = getattr(type(owner), name)
            answers = (method.__name__, method.__self__, method.__func__, hasattr(method, "__wrapped__"))
            if answers != (name, owner, function, False) or "self" in inspect.signature(method).parameters:
                x = 2 * x
            if list(inspect.signature(method).parameters) != list(inspect.signature(function).parameters)[1:]:
                x = 2 * x
        return super().forward(self.dense(x), edge_index)


def model_that_asks_its_methods(run: Run) -> None:
    model = Asking()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            loss = mse_loss(model(X, EDGES), Y)
            loss.backward()
            optimizer.step()
            run.keep(loss)


@pytest.mark.parametrize(
    "loop", [closure_with_an_argument, scaler_whose_update_is_wrapped, model_that_asks_its_methods]
)
def test_what_stands_in_the_place_of_the_users_answers_as_it_does(loop: Callable[[Run], None]) -> None:
    assert unnoticed(loop).warned == []
