"""What a loss, a forward or a hook counts outside of itself is counted by the run alone: a trial on a copy puts it back."""

from __future__ import annotations

import array
import ctypes
import multiprocessing
import os
import types
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gnnstab
from gnnstab.probe.replaying._outside import Outside
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))
Count = Callable[[], float]
TOTAL = 0


def in_a_cell() -> Count:
    number = 0

    def count() -> float:
        nonlocal number
        number += 1
        return number

    return count


def in_a_global() -> Count:
    global TOTAL
    TOTAL = 0

    def count() -> float:
        global TOTAL
        TOTAL += 1
        return TOTAL

    return count


def in_a_table() -> Count:
    table: dict[str, dict[str, int]] = {"seen": {}}

    def count() -> float:
        table["seen"]["n"] = table["seen"].get("n", 0) + 1
        return table["seen"]["n"]

    return count


def in_a_queue() -> Count:
    last: deque[float] = deque(maxlen=50)

    def count() -> float:
        last.append(len(last))
        return sum(last)

    return count


def in_an_array() -> Count:
    numbers = np.zeros(3)

    def count() -> float:
        numbers[1] += 1
        return float(numbers.sum())

    return count


class Counter:
    """Its own number, and one of its class."""

    of_all = 0

    def __init__(self) -> None:
        Counter.of_all = self.number = 0

    def count(self) -> float:
        self.number += 1
        return self.number

    def count_all(self) -> float:
        Counter.of_all += 1
        return Counter.of_all


def by_a_method() -> Count:
    return Counter().count


def in_a_class() -> Count:
    return Counter().count_all


def in_a_default() -> Count:
    def count(seen: list[int] = [0]) -> float:  # noqa: B006  # One list for all calls is what is tested.
        seen[0] += 1
        return seen[0]

    return count


def on_a_function() -> Count:
    def count() -> float:
        count.calls = getattr(count, "calls", 0) + 1  # type: ignore[attr-defined]
        return float(count.calls)  # type: ignore[attr-defined]

    return count


def by_name() -> Count:
    def count() -> float:
        globals()["BY_NAME"] = globals().get("BY_NAME", 0) + 1
        return float(globals()["BY_NAME"])

    globals().pop("BY_NAME", None)
    return count


def in_other_containers() -> Count:
    held = (Tally[str](), types.SimpleNamespace(n=0), array.array("d", [0.0]))
    shared, number = multiprocessing.Value("i", 0), ctypes.c_double(0)
    os.environ["GNNSTAB_TEST_STEP"] = "0"

    def count() -> float:
        tally, space, numbers = held
        tally["x"] += 1
        space.n += 1
        numbers[0] += 1
        shared.value += 1
        number.value += 1
        os.environ["GNNSTAB_TEST_STEP"] += "0"
        return tally["x"] + space.n + numbers[0] + shared.value + number.value + len(os.environ["GNNSTAB_TEST_STEP"])

    return count


class Behind:
    """A number behind a property."""

    def __init__(self) -> None:
        self._n = 0

    @property
    def n(self) -> int:
        return self._n

    @n.setter
    def n(self, value: int) -> None:
        self._n = value


def behind_a_property() -> Count:
    held = Behind()

    def count() -> float:
        held.n += 1
        return held.n

    return count


class Slots:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


def in_a_slot() -> Count:
    held = Slots()

    def count() -> float:
        held.n += 1
        return held.n

    return count


def in_a_module() -> Count:
    settings.STEP = 0

    def count() -> float:
        settings.STEP += 1
        return float(settings.STEP)

    return count


settings: Any = types.ModuleType("settings")

WAYS = (
    in_a_default,
    on_a_function,
    by_name,
    in_other_containers,
    in_a_slot,
    behind_a_property,
    in_a_module,
    in_a_cell,
    in_a_global,
    in_a_table,
    in_a_queue,
    in_an_array,
    by_a_method,
    in_a_class,
)


def trained(run: Run, model: Net, loss: Any, watched: Any) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with run.watching(model, optimizer=optimizer, loss=watched):
        for _ in range(6):
            optimizer.zero_grad()
            value = loss(model(X, EDGES))
            value.backward()
            run.keep(value, *(p.grad for p in model.parameters()))
            optimizer.step()
            if run.monitor is not None:
                run.monitor.loss(value)


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_that_counts(way: Callable[[], Count]) -> None:
    def loop(run: Run) -> None:
        torch.manual_seed(3)
        count = way()

        def loss(output: Tensor) -> Tensor:
            return (output - Y).square().mean() * (1 + 0.1 * count())

        trained(run, Net(), loss, loss)

    unnoticed(loop)


class Counting(Net):
    """Its forward counts and computes with the count, and so does its backward; a loss may add what it has left."""

    def __init__(self, count: Count, left: list[Tensor]) -> None:
        super().__init__()

        class Inner(nn.Module):  # What the methods of a class reach a copy shares.
            def forward(self, x: Tensor) -> Tensor:
                out: Tensor = CountedBackward.apply(x * (1 + 0.01 * count()))
                left.append(out.detach().square().mean())
                return out

        self.inner = Inner()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        out: Tensor = self.inner(super().forward(x, edge_index))
        return out


class CountedBackward(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        CountedBackward.calls += 1
        return gradient * (1 + 0.01 * CountedBackward.calls)


def loss_with(left: list[Tensor]) -> Callable[..., Tensor]:
    def loss(output: Tensor, batch: Any = None) -> Tensor:
        if len(left) != 1:
            raise ValueError("the loss sees what its own forward has left, and nothing else")
        return (output - Y).square().mean() + 0.1 * left.pop()

    return loss


@pytest.mark.parametrize("way", WAYS)
def test_a_forward_and_a_backward_that_count(way: Callable[[], Count]) -> None:
    def loop(run: Run) -> None:
        torch.manual_seed(3)
        CountedBackward.calls, left = 0, list[Tensor]()
        count = way()
        loss = loss_with(left)
        trained(run, Counting(count, left), loss, loss)
        run.keep(torch.tensor([count(), CountedBackward.calls]))

    assert unnoticed(loop).warned == []


class Slowing(torch.optim.Optimizer):
    """Counts its steps in its class."""

    steps = 0

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": 1e-2})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        Slowing.steps += 1
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"] / Slowing.steps)


def test_an_optimizer_that_counts() -> None:
    def loop(run: Run) -> None:
        Slowing.steps = 0
        model = Net()
        optimizer = Slowing(model)
        with run.watching(model, optimizer=optimizer, loss=lambda output, batch: (output - Y).square().mean()):
            for _ in range(6):
                optimizer.zero_grad()
                (model(X, EDGES) - Y).square().mean().backward()
                optimizer.step()
        run.keep(*model.parameters(), torch.tensor(Slowing.steps))

    unnoticed(loop)


CALLS: dict[str, Callable[..., Any]] = {
    "diagnose": lambda model, loss: gnnstab.diagnose(model, batch=(X, EDGES), loss=loss),
    "attention": lambda model, loss: gnnstab.attention(model, (X, EDGES)),
    "verify": lambda model, loss: gnnstab.verify(model, "dropout", batch=(X, EDGES), loss=loss, seeds=1, steps=2),
}


@pytest.mark.parametrize("name", CALLS)
def test_public_functions_count_nothing(name: str) -> None:
    left: list[Tensor] = []
    noted: list[int] = []
    numbers = {"hooks": 0}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        noted.append(len(noted))
        numbers["hooks"] += 1

    def told() -> tuple[float, ...]:
        return (*held, CountedBackward.calls, len(left), len(noted), *numbers.values())

    held = [0]

    def count() -> float:
        held[0] += 1
        return held[0]

    model = Counting(count, left)
    model.first.register_forward_hook(note)
    model.register_forward_hook(lambda module, args, output: noted.append(0))
    loss = loss_with(left)
    loss(model(X, EDGES)).backward()
    before = told()
    CALLS[name](model, loss)
    assert told() == before


def test_tensors_that_are_written_only_now_and_then() -> None:
    memory, calls = torch.zeros(3), [0]

    class Remembering(Net):
        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] % 4 == 0:
                memory.add_(1)
            return super().forward(x, edge_index) + memory.sum()

    def loop(run: Run) -> None:
        memory.zero_()
        calls[0] = 0
        torch.manual_seed(3)
        trained(run, Remembering(), lambda output: output.square().mean(), lambda output, batch: output.square().mean())
        run.keep(memory)

    unnoticed(loop)
    before, version = memory.clone(), memory._version
    calls[0] = 1
    gnnstab.diagnose(Remembering(), batch=(X, EDGES))
    assert memory.equal(before) and memory._version == version and calls[0] == 1


def test_what_nobody_assigns_and_what_did_not_change_stays_the_same_object() -> None:
    held: dict[str, list[int]] = {"rows": [1, 2]}
    here = types.SimpleNamespace()

    def reads() -> int:
        return len(held["rows"])

    outside = Outside([reads, here])
    rows = held["rows"]
    outside.put_back()
    assert held["rows"] is rows and rows == [1, 2]
    rows.append(3)
    held["more"] = []
    outside.put_back()
    assert held == {"rows": [1, 2]} and held["rows"] is rows
