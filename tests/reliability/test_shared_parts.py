"""What a copy of a model, of an optimizer or of a batch would share with the run is not run again: the training stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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


def trained(run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> None:
    """Six steps; the parameters, buffers and gradients of the model are kept after each."""
    with run.watching(model, optimizer=optimizer, **options):
        for _ in range(6):
            optimizer.zero_grad()
            loss = bare_loss(model(X, EDGES))
            loss.backward()
            run.keep_gradients(model)
            optimizer.step()
            run.keep(loss, *model.parameters(), *model.buffers())


@pytest.mark.parametrize(
    "make", [FunctionOverItself, FunctionOverMethod, SharedLayer, GlobalGenerator, GlobalTeacher, ClassTable]
)
def test_models_that_a_copy_shares_parts_with(make: Callable[[], nn.Module]) -> None:
    before = copy.deepcopy(TEACHER.state_dict())

    def loop(run: Run) -> None:
        DRAWN.manual_seed(3)
        TEACHER.zero_grad()
        TEACHER.load_state_dict(before)
        model = make()
        trained(run, model, torch.optim.Adam(model.parameters(), 1e-2), loss=bare_loss)
        run.keep(DRAWN.get_state(), *TEACHER.buffers(), *(p.grad for p in TEACHER.parameters()))

    unnoticed(loop)


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
        trained(run, model, make(model.parameters()), loss=bare_loss)

    unnoticed(loop)
