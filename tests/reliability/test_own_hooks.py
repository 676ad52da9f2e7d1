"""Hooks of the user's: what a replay runs computes what the model computes, and nothing that a hook notes is noted twice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import gnnstab
from side_by_side import Net, Run, codes, graph, unnoticed

X, EDGES = graph()
Y = torch.ones(len(X), 1)
RAW = X * 1e4 + 5e4
GENERATOR = torch.Generator()


def standardised(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return (args[0] - 5e4) / 1e4, args[1]


class Standardise:
    """Keeps what it goes by, as a callable object does."""

    def __init__(self, mean: float, spread: float) -> None:
        self.mean, self.spread, self.calls = torch.tensor(mean), torch.tensor(spread), 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], *more: object) -> tuple[Any, ...]:
        self.calls += 1
        return ((args[0] - self.mean) / self.spread, *args[1:])


def by_closure() -> Callable[..., Any]:
    seen, mean = [], torch.tensor(5e4)

    def hook(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        seen.append(args[0])
        return (args[0] - mean) / 1e4, args[1]

    return hook


def jittered(module: nn.Module, args: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    noise = torch.rand(args[0].shape, generator=GENERATOR)
    return (args[0] - 5e4) / 1e4 + 1e-3 * noise, args[1]


HOOKS: dict[str, Callable[[], Callable[..., Any]]] = {
    "function": lambda: standardised,
    "lambda": lambda: lambda module, args: ((args[0] - 5e4) / 1e4, args[1]),
    "object": lambda: Standardise(5e4, 1e4),
    "method": lambda: Standardise(5e4, 1e4).__call__,
    "partial": lambda: partial(standardised),
    "closure": by_closure,
    "generator of its own": lambda: jittered,
}


def trained(hook: Callable[..., Any] | None, run: Run) -> None:
    model = Net(dropout=0.0)
    handle = None if hook is None else model.register_forward_pre_hook(hook)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    with run.watching(model, optimizer=optimizer, loss=lambda output, batch: mse_loss(output, Y)):
        for _ in range(20):
            optimizer.zero_grad()
            loss = mse_loss(model(RAW, EDGES), Y)
            loss.backward()
            optimizer.step()
            run.keep(loss)
        if handle is not None:
            handle.remove()
    run.keep(GENERATOR.get_state())


def found(hook: Callable[..., Any] | None) -> list[str]:
    def loop(run: Run) -> None:
        GENERATOR.manual_seed(0)
        trained(hook, run)

    run = unnoticed(loop)
    assert run.monitor is not None
    return codes(run.monitor)


@pytest.mark.parametrize("name", HOOKS)
def test_an_input_that_a_hook_standardises_is_judged_as_it_is_computed_with(name: str) -> None:
    assert {"GS406", "GS704"}.isdisjoint(found(HOOKS[name]()))


def test_without_the_hook_the_input_is_found() -> None:
    assert "GS406" in found(None)


@pytest.mark.parametrize("hooked", [True, False])
def test_a_model_that_is_diagnosed_keeps_what_its_hooks_compute(hooked: bool) -> None:
    torch.manual_seed(0)
    model = Net(dropout=0.0)
    if hooked:
        model.register_forward_pre_hook(standardised)
    found = gnnstab.diagnose(model, batch=(RAW, EDGES), loss=lambda output, batch: mse_loss(output, Y))
    assert ("GS406" in [f.code for f in found.findings]) is not hooked


NOTED: list[Tensor] = []


def note(module: nn.Module, args: Any, output: Tensor) -> None:
    NOTED.append(output.detach().clone())


def noting() -> list[Callable[..., Any]]:
    return [note, lambda module, args, output: NOTED.append(output.detach().clone())]


@pytest.mark.parametrize("number", [0, 1])
def test_a_hook_that_only_notes_is_not_run_on_copies(number: int) -> None:
    def loop(run: Run) -> None:
        NOTED.clear()
        model = Net()
        handle = model.first.register_forward_hook(noting()[number])
        optimizer = torch.optim.SGD(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer):
            for _ in range(4):
                optimizer.zero_grad()
                mse_loss(model(X, EDGES), Y).backward()
                optimizer.step()
            handle.remove()
        run.keep(*NOTED)

    assert unnoticed(loop).warned == []


class Tapped(nn.Module):
    """Works on with what a hook keeps of a layer, as feature extractors do."""

    def __init__(self, keep: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.body, self.head, self.taken = Net(), nn.Linear(1, 1), []
        self.keep = keep
        self.body.register_forward_hook(self.take)

    def take(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.taken[:] = [self.keep(output)]

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        self.body(x, edges)
        return self.head(self.taken[0])


@pytest.mark.parametrize("cut", [True, False])
def test_what_a_hook_keeps_and_the_model_reads_is_kept_on_copies(cut: bool) -> None:
    torch.manual_seed(0)
    model = Tapped((lambda t: t.detach()) if cut else (lambda t: t.clone()))
    found = gnnstab.diagnose(model, batch=(X, EDGES), loss=lambda output, batch: mse_loss(output, Y))
    told = [f.message for f in found.at_least("warning") if f.code == "GS604"]
    assert ["no path leads from the loss" in message for message in told] == [True] * cut
    assert model.taken == []
    assert not [f for f in found.findings if f.code == "GS902"]
