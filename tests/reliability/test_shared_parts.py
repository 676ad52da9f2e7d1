"""What a copy of a model, of an optimizer or of a batch would share with the run is not run again: the training stays as it is."""

from __future__ import annotations

import copy
import functools
import queue
import random
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data

from gnnstab.probe.replaying.replica import eager, replica, whole_copy
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.randn(len(X), 1, generator=torch.Generator().manual_seed(5))
DRAWN = torch.Generator()
TEACHER = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


def bare_loss(output: Tensor) -> Tensor:
    return (output - Y).square().mean()


class Behind(Net):
    """Something stands before the network: what `around` makes of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.added = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def around(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(self.around(x), edge_index)


class FunctionOverItself(Behind):
    def __init__(self) -> None:
        super().__init__()
        self.function = lambda x: self.added(x)

    def around(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)
        return out


class FunctionOverFunction(FunctionOverItself):
    def __init__(self) -> None:
        super().__init__()
        inner = self.function
        self.function = lambda x: inner(torch.tanh(x))


class FunctionOverMethod(FunctionOverItself):
    """The function holds a method that is bound to a layer."""

    def __init__(self) -> None:
        super().__init__()
        old = self.added.forward
        self.function = lambda x: old(x) * 1.5


class CopiedAsItself(nn.Sequential):
    def __deepcopy__(self, memo: dict[int, Any]) -> CopiedAsItself:
        return self


class SharedLayer(Behind):
    def __init__(self) -> None:
        super().__init__()
        self.added = CopiedAsItself(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def around(self, x: Tensor) -> Tensor:
        out: Tensor = self.added(x)
        return out


class GlobalGenerator(Behind):
    def around(self, x: Tensor) -> Tensor:
        return x + torch.randn(x.shape, generator=DRAWN)


class GlobalTeacher(Behind):
    def around(self, x: Tensor) -> Tensor:
        out: Tensor = TEACHER(x)
        return out


class ClassTable(Behind):
    parts = [TEACHER]  # noqa: RUF012  # Shared by all instances is what is tested.

    def around(self, x: Tensor) -> Tensor:
        out: Tensor = self.parts[0](x)
        return out


class WeakParent(Behind):
    """A child that knows its parent, by a reference that makes no cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Identity()
        self.child.parent = weakref.ref(self)  # type: ignore[assignment]

    def around(self, x: Tensor) -> Tensor:
        out: Tensor = self.child.parent().added(x)  # type: ignore[operator]
        return out


class Slots:
    __slots__ = ("layer",)


HIDDEN = Slots()


@functools.lru_cache
def cached_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))


class BehindSlots(Behind):
    """No attribute of its own and no closure leads to the layer: only the operations show it."""

    def __init__(self) -> None:
        super().__init__()
        HIDDEN.layer = TEACHER  # type: ignore[misc]

    def around(self, x: Tensor) -> Tensor:
        out: Tensor = HIDDEN.layer(x)  # type: ignore[misc]
        return out


class BehindCache(Behind):
    def around(self, x: Tensor) -> Tensor:
        return x + cached_layer()(x).detach()


class BoundRandom(Behind):
    def __init__(self) -> None:
        super().__init__()
        self.drawn = random.Random(0).random

    def around(self, x: Tensor) -> Tensor:
        return x * (1 + self.drawn())


class BoundSum(Behind):
    def __init__(self) -> None:
        super().__init__()
        self.count = torch.zeros(()).add_

    def around(self, x: Tensor) -> Tensor:
        return x * (1 + 0.1 * float(self.count(1.0)))


def trained(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *more: Any,
    loss: Callable[..., Tensor] = bare_loss,
    held: nn.Module | None = None,
) -> None:
    """Six steps; the parameters, buffers and gradients of what is ``held``, else of the model, are kept after each."""
    held = held or model
    with run.watching(model, optimizer=optimizer, loss=loss):
        for _ in range(6):
            optimizer.zero_grad()
            value = loss(model(X, EDGES, *more))
            value.backward()  # type: ignore[no-untyped-call]
            run.keep_gradients(held)
            optimizer.step()
            run.keep(value, *held.parameters(), *held.buffers())


@pytest.mark.parametrize(
    "make",
    [
        *(FunctionOverItself, FunctionOverMethod, SharedLayer, GlobalGenerator, GlobalTeacher, ClassTable),
        *(WeakParent, BehindSlots, BehindCache, BoundRandom, BoundSum),
    ],
)
def test_models_that_a_copy_shares_parts_with(make: Callable[[], nn.Module]) -> None:
    before = copy.deepcopy(TEACHER.state_dict())

    def loop(run: Run) -> None:
        DRAWN.manual_seed(3)
        TEACHER.zero_grad()
        TEACHER.load_state_dict(before)
        cached_layer.cache_clear()
        torch.manual_seed(0)
        cached_layer()
        model = make()
        trained(run, model, torch.optim.Adam(model.parameters(), 1e-2))
        run.keep(
            DRAWN.get_state(), *TEACHER.buffers(), *cached_layer().buffers(), *(p.grad for p in TEACHER.parameters())
        )

    unnoticed(loop)


@pytest.mark.parametrize("make", [FunctionOverItself, FunctionOverFunction])
@pytest.mark.parametrize("copied", [replica, whole_copy])
def test_a_function_over_the_model_itself_runs_over_the_copy(
    make: Callable[[], nn.Module], copied: Callable[[nn.Module], nn.Module]
) -> None:
    model = make().eval()
    wanted = model(X, EDGES)
    twin = copied(model.train()).eval()
    assert torch.equal(eager(twin)(X, EDGES), wanted)
    eager(twin.train())(X, EDGES)
    assert all(int(m.num_batches_tracked) == 0 for m in model.modules() if isinstance(m, nn.BatchNorm1d))
    with torch.no_grad():
        twin.get_parameter("added.0.weight").zero_()
    assert not torch.equal(eager(twin.eval())(X, EDGES), wanted)


class MovesByFunction(torch.optim.SGD):
    """Its step goes by a function that holds the parameters themselves."""

    def __init__(self, parameters: Any) -> None:
        held = list(parameters)
        super().__init__(held, 1e-2)
        self.param_groups[0]["move"] = lambda: [p.data.add_(p.grad, alpha=-0.01) for p in held if p.grad is not None]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.param_groups[0]["move"]()


class MovesByTable(torch.optim.SGD):
    """Its step goes by a table of the class."""

    moved: dict[str, list[nn.Parameter]] = {}  # noqa: RUF012  # Shared by all instances is what is tested.

    def __init__(self, parameters: Any) -> None:
        self.moved["all"] = list(parameters)
        super().__init__(self.moved["all"], 1e-2)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.moved["all"]:
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.01)


@pytest.mark.parametrize("make", [MovesByFunction, MovesByTable])
def test_optimizers_that_hold_the_parameters_beside_their_groups(make: Callable[..., torch.optim.Optimizer]) -> None:
    def loop(run: Run) -> None:
        model = Net()
        trained(run, model, make(model.parameters()))

    unnoticed(loop)


def head_loss(head: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda output: bare_loss(head(output))


class Balanced(nn.Module):
    """A criterion with a weight that is learnt, and a running mean of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.ones(1))
        self.calls = 0

    def forward(self, output: Tensor, batch: Any = None) -> Tensor:
        self.calls += 1
        loss = bare_loss(output)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        out: Tensor = (loss / self.mean * torch.exp(-self.weight) + self.weight + self.calls).sum()
        return out


class Smoothed:
    """A loss of a class of one's own, with a running mean, a head and a generator."""

    def __init__(self) -> None:
        self.head = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        self.mean = 1.0
        self.drawn = np.random.default_rng(0)

    def __call__(self, output: Tensor) -> Tensor:
        loss = bare_loss(self.head(output)) * (1 + 0.1 * float(self.drawn.random()))
        self.mean = 0.9 * self.mean + 0.1 * float(loss)
        return loss / self.mean


@pytest.mark.parametrize("kind", ["head", "criterion", "object", "penalty", "behind slots"])
def test_losses_that_hold_what_is_trained(kind: str) -> None:
    def loop(run: Run) -> None:
        model, head = Net(), nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        balanced, smoothed = Balanced(), Smoothed()
        HIDDEN.layer = head  # type: ignore[misc]
        loss_of: Callable[..., Tensor] = {
            "head": head_loss(head),
            "criterion": balanced,
            "object": smoothed,
            "behind slots": lambda output: bare_loss(HIDDEN.layer(output)),  # type: ignore[misc]
            "penalty": lambda output: bare_loss(output) + sum(p.square().sum() for p in model.parameters()),
        }[kind]
        held = nn.ModuleList([model, head, balanced, smoothed.head])
        trained(run, model, torch.optim.Adam(held.parameters(), 1e-2), loss=loss_of, held=held)

    unnoticed(loop)


def test_a_loss_with_a_head_is_still_tried_before_the_first_update() -> None:
    def loop(run: Run) -> None:
        model, head = Net(), nn.Linear(1, 1)
        optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], 1e3)
        loss_of = head_loss(head)
        with run.watching(model, optimizer=optimizer, loss=loss_of):
            optimizer.zero_grad()
            loss_of(model(X, EDGES)).backward()
            run.keep_gradients(head)
            optimizer.step()

    monitor = unnoticed(loop).monitor
    assert monitor is not None and "GS601" in {f.code for f in monitor.diagnose().findings}


class Reads(Net):
    """Adds to its input what it takes from an argument."""

    def __init__(self, take: Callable[[Any], Any]) -> None:
        super().__init__()
        self.take = take

    def forward(self, x: Tensor, edge_index: Tensor, source: Any) -> Tensor:
        return super().forward(x + self.take(source), edge_index)


class Lazy(Mapping[str, Tensor]):
    """Makes what it is asked for, another one each time."""

    def __init__(self) -> None:
        self.asked = 0

    def __getitem__(self, key: str) -> Tensor:
        self.asked += 1
        return X * self.asked

    def __iter__(self) -> Any:
        return iter(["x"])

    def __len__(self) -> int:
        return 1


class OwnBatch:
    """A batch that counts how often it was used."""

    def __init__(self) -> None:
        self.x, self.used = X.clone(), [0]

    def grown(self) -> Tensor:
        self.used.append(1)
        return self.x.mul_(1.01) + len(self.used)


def filled() -> queue.Queue[Tensor]:
    made: queue.Queue[Tensor] = queue.Queue()
    for number in range(20):
        made.put(X * number)
    return made


@pytest.mark.parametrize(
    ("make", "take"),
    [
        (lambda: torch.Generator().manual_seed(3), lambda source: torch.randn(X.shape, generator=source)),
        (lambda: np.random.default_rng(3), lambda source: float(source.normal())),
        (lambda: iter([X * number for number in range(20)]), next),
        (lambda: (X * number for number in range(20)), next),
        (filled, lambda source: source.get_nowait()),
        (Lazy, lambda source: source["x"]),
        (OwnBatch, OwnBatch.grown),
        (lambda: Data(drawn=torch.Generator()), lambda source: torch.randn(X.shape, generator=source.drawn)),
    ],
    ids=["generator", "numpy", "iterator", "yielding", "queue", "lazy", "own-class", "generator-in-data"],
)  # fmt: skip
def test_arguments_that_a_forward_changes(make: Callable[[], Any], take: Callable[[Any], Any]) -> None:
    def loop(run: Run) -> None:
        model, source = Reads(take), make()
        trained(run, model, torch.optim.Adam(model.parameters(), 1e-2), source)

    assert unnoticed(loop).warned == []
