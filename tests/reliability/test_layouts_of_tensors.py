"""Tensors that are not dense or that objects hold, in buffers, parameters and beside the output: healthy ones are no failure, NaN in them is told."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import mse_loss

import gnnstab
from gnnstab.stored import bytes_of, is_finite, stored
from side_by_side import Net, Run, graph, unnoticed

X, EDGES = graph()
Y = torch.ones(len(X), 1)


def twice(tensor: Tensor) -> Tensor:
    """Sparse, with two entries for each place, which add up."""
    one = tensor.to_sparse()
    return torch.sparse_coo_tensor(
        torch.cat([one.indices()] * 2, 1), torch.cat([one.values()] * 2), one.shape, check_invariants=True
    )


def jagged(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([tensor, tensor[:1]], layout=torch.jagged)


def nested(tensor: Tensor) -> Tensor:
    return torch.nested.nested_tensor([tensor, tensor[:1]])


def byte(tensor: Tensor) -> Tensor:
    return tensor.to(torch.float8_e4m3fn)


def halves(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex32)


def quantised(tensor: Tensor) -> Tensor:
    """It has no code for NaN."""
    return torch.quantize_per_tensor(tensor.nan_to_num(), 0.1, 0, torch.qint8)


def compressed(tensor: Tensor) -> Tensor:
    return tensor.to_sparse_csr()


def coordinates(tensor: Tensor) -> Tensor:
    return tensor.to_sparse()


LAYOUTS = [coordinates, compressed, Tensor.to_sparse_csc, twice, jagged, nested, Tensor.to_mkldnn, byte, halves]
pytestmark = [
    pytest.mark.usefixtures("brief"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support"),
    pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta"),
]


class Kept(Net):
    """With a buffer that no forward reads."""

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)


class Beside(Net):
    """Answers with a second tensor, which no loss reads."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        out = super().forward(x, edge_index)
        return out, self.made(out.detach())


def codes(
    model: nn.Module, after: Callable[[int], object] = lambda step: None, schedule: str | None = None
) -> set[str]:
    """Those of all findings of a short training."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with gnnstab.Monitor(model, optimizer=optimizer, on_finding="ignore", schedule=schedule) as monitor:
        for step in range(12):
            optimizer.zero_grad()
            out = model(X, EDGES)
            mse_loss(main_of(out), Y).backward()
            optimizer.step()
            after(step)
    return {f.code for f in monitor.diagnose().findings} & {"GS502", "GS902"}


@pytest.mark.parametrize("layout", [*LAYOUTS, quantised])
@pytest.mark.parametrize("begins", [1.0, math.nan])
def test_a_buffer_that_stays_as_it_is(layout: Callable[[Tensor], Tensor], begins: float) -> None:
    assert codes(Kept(layout(torch.eye(4) * begins))) == set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_buffer_that_becomes_nan(layout: Callable[[Tensor], Tensor]) -> None:
    model = Kept(layout(torch.eye(4)))

    def after(step: int) -> None:
        if step == 7:
            model.kept = layout(torch.eye(4) * math.nan)

    assert codes(model, after) == {"GS502"}


@pytest.mark.parametrize("schedule", [None, "every step"])
@pytest.mark.parametrize("layout", [*LAYOUTS, quantised])
def test_beside_the_output(layout: Callable[[Tensor], Tensor], schedule: str | None) -> None:
    assert codes(Beside(layout), schedule=schedule) == set()
    if layout not in (byte, halves, quantised):
        assert codes(Beside(lambda out: layout((out - 1e9).sqrt())), schedule=schedule) == {"GS502"}


class Plain:
    def __init__(self, main: Tensor, aux: Tensor) -> None:
        self.main, self.aux = main, aux


class Slots:
    __slots__ = ("aux", "main")

    def __init__(self, main: Tensor, aux: Tensor) -> None:
        self.main, self.aux = main, aux


class Held(Net):
    """Answers with an object, which holds the model as well, with its placeholder."""

    def __init__(self, kind: str, size: float = 0.0) -> None:
        super().__init__()
        self.kind, self.size = kind, size
        self.register_buffer("placeholder", torch.full((3,), math.nan))

    def forward(self, x: Tensor, edge_index: Tensor) -> Any:
        out = super().forward(x, edge_index)
        aux = (out - self.size).abs() if self.size == 0 else (out - self.size).sqrt()
        answers: dict[str, Callable[[], Any]] = {
            "plain": lambda: Plain(out, aux),
            "slots": lambda: Slots(out, aux),
            "namespace": lambda: SimpleNamespace(main=out, aux=aux, model=self),
            "mapping": lambda: MappingProxyType({"main": out, "aux": aux}),
            "deque": lambda: deque([out, aux]),
            "within": lambda: {"main": out, "more": [Plain(out, aux)]},
            "complex": lambda: {"main": out, "aux": torch.complex(out, aux)},
            "distribution": lambda: {"main": out, "aux": Normal(aux, 1.0, validate_args=False)},
        }
        return answers[self.kind]()


def main_of(out: Any) -> Tensor:
    main: Tensor = out[0] if isinstance(out, (tuple, deque)) else getattr(out, "main", None)
    return out if isinstance(out, Tensor) else out["main"] if main is None else main


@pytest.mark.parametrize(
    "kind", ["plain", "slots", "namespace", "mapping", "deque", "within", "complex", "distribution"]
)
def test_an_output_in_an_object(kind: str) -> None:
    assert codes(Held(kind)) == set()
    assert codes(Held(kind, 1e9)) == {"GS502"}


@pytest.mark.parametrize("kind", ["plain", "slots", "namespace"])
@pytest.mark.parametrize("broken", [True, False])
def test_an_evaluation_that_answers_with_an_object(kind: str, broken: bool) -> None:
    model = Held(kind)

    def after(step: int) -> None:
        with torch.no_grad():
            model.eval()(X * math.nan if broken and step == 7 else X, EDGES)
        model.train()

    assert codes(model, after) == ({"GS502"} if broken else set())


class Weighted(Net):
    """Its rows are mixed by a sparse parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.eye(len(X)).to_sparse())

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return super().forward(torch.sparse.mm(self.mixed, x), edge_index)


@pytest.mark.parametrize("schedule", [None, "every step"])
def test_a_sparse_parameter(schedule: str | None) -> None:
    model = Weighted()

    def after(step: int) -> None:
        if step == 11:
            with torch.no_grad():
                model.mixed.mul_(math.nan)

    assert codes(model, schedule=schedule) == set()
    assert codes(model, after, schedule) == {"GS502"}


def test_the_training_is_the_same() -> None:
    def loop(this: Run) -> None:
        model = Weighted()
        model.register_buffer("kept", torch.eye(4).to_sparse())
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with this.watching(model, optimizer=optimizer):
            for _ in range(8):
                optimizer.zero_grad()
                mse_loss(model(X, EDGES), Y).backward()
                optimizer.step()
        this.keep(*(stored(t) for t in model.state_dict().values()))

    unnoticed(loop)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_numbers_that_a_tensor_keeps(layout: Callable[[Tensor], Tensor]) -> None:
    one, other = layout(torch.eye(4)), layout(torch.eye(4) * math.nan)
    assert stored(one).layout is torch.strided
    assert is_finite(one)
    assert not is_finite(other)


def test_a_sparse_tensor_is_as_large_as_what_it_keeps() -> None:
    large = torch.sparse_coo_tensor(
        torch.tensor([[0, 5], [7, 2]]), torch.ones(2), (10**6, 10**6), check_invariants=True
    )
    assert bytes_of([large, torch.ones(3)]) == 2 * (4 + 16) + 3 * 4
