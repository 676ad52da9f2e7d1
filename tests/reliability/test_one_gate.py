"""Every call of the user's code on copies goes through one gate, behind which what it draws and counts is given back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gnnstab
from gnnstab import randomness
from gnnstab.errors import UsageError
from side_by_side import Net, graph

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))


calls: Any = UsageError("calls")
"""Nothing of an object of gnnstab's own is put back, so that what copies note in it stays."""


def note(part: str) -> None:
    """Draw, and remember the part of the user's code that gnnstab has called, within the gate or past it."""
    np.random.rand()
    random.random()
    if not calls.by_run:
        (calls.within if randomness._same.get() else calls.past).add(part)


class Noted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        note("forward")
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        note("backward")
        return gradient


class Noting(Net):
    switched = 0
    """How often any of the class was put into a mode."""

    def train(self, mode: bool = True) -> Noting:
        note("train")
        Noting.switched += 1
        super().train(mode)
        return self

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = Noted.apply(super().forward(x, edge_index))
        return out


class Steps(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if self is not calls.optimizer:
            note("step")
        super().step(closure)


def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    note("hook")
    return output * 2


def loss(output: Tensor, batch: Any = None) -> Tensor:
    note("loss")
    return 100 * (output - Y).square().mean()


def drawn() -> Any:
    return np.random.get_state(legacy=False), random.getstate()


def made() -> tuple[Noting, Steps]:
    model = Noting()
    model.register_forward_hook(hook)
    calls.optimizer = Steps(model.parameters(), lr=0.3)
    return model, calls.optimizer


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.by_run, calls.within, calls.past = False, set(), set()


def test_every_step_of_a_run(brief: None) -> None:
    torch.manual_seed(3)
    model, optimizer = made()
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss, schedule="every step", on_finding="ignore") as monitor:
        for _ in range(3):
            calls.by_run = True
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            calls.by_run = False
            before = drawn()
            monitor.loss(value)
            optimizer.step()
            assert str(drawn()) == str(before)
        before = drawn()
    assert str(drawn()) == str(before)
    assert calls.past == set()
    assert calls.within - {"train"} == {"forward", "hook", "loss", "backward", "step"}


def test_the_mode_of_copies_in_a_run_that_evaluates(brief: None) -> None:
    """The model's own ``train`` is called on copies in the gate, and what it counts is counted by the run alone."""
    torch.manual_seed(3)
    model, optimizer = made()
    before = Noting.switched
    with gnnstab.Monitor(model, optimizer=optimizer, loss=loss, schedule="every step", on_finding="ignore") as monitor:
        for mode in (True, False, True, False):
            calls.by_run = True
            model.train(mode)
            value = loss(model(X, EDGES))
            if mode:
                optimizer.zero_grad()
                value.backward()
                calls.by_run = False
                monitor.loss(value)
                optimizer.step()
            calls.by_run = False
    assert Noting.switched == before + 4
    assert calls.past == set() and "train" in calls.within


FACES: dict[str, Callable[..., Any]] = {
    "diagnose": lambda m, o: gnnstab.diagnose(m, batch=(X, EDGES), loss=loss, optimizer=o),
    "attention": lambda m, o: gnnstab.attention(m, (X, EDGES)),
    "verify": lambda m, o: gnnstab.verify(m, "dropout", batch=(X, EDGES), loss=loss, seeds=1, steps=2, optimizer=o),
}


@pytest.mark.parametrize("face", FACES)
def test_every_face(face: str, brief: None) -> None:
    before, switched = drawn(), Noting.switched
    FACES[face](*made())
    assert str(drawn()) == str(before) and Noting.switched == switched
    assert calls.past == set() and {"forward", "hook", "train"} <= calls.within
