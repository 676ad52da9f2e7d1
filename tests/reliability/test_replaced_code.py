"""Code of a layer that is replaced while a monitor is on is the code that runs, and where it has a softmax its scores are recorded."""

from __future__ import annotations

import contextlib
import math
import types
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch_geometric import utils
from torch_geometric.nn import GATv2Conv, TransformerConv
from torch_geometric.nn.conv import gatv2_conv
from torch_geometric.utils import softmax

from side_by_side import WIDTH, Run, graph, unnoticed

X, EDGES = graph()


def attended(score: Tensor, index: Tensor, ptr: Tensor | None, size: int, scale: float = 1.0) -> Tensor:
    return softmax(scale * score, index, ptr, size).unsqueeze(-1)


class Own(TransformerConv):
    """Its own message."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        score = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        return value_j * attended(score, index, ptr, size_i)


class Named(TransformerConv):
    """Takes its softmax, and a number, from a module."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        score = (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        return value_j * utils.softmax(score * getattr(utils, "SCALE", 1.0), index, ptr, size_i).unsqueeze(-1)


class Above(TransformerConv):
    """Lets its parent do the work."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return 2 * super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i)


class Dense(nn.Module):
    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.lin = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return torch.softmax(self.lin(x) @ x.t(), -1) @ x


def smaller(*args: Any, **kwargs: Any) -> Tensor:
    return 0.9 * softmax(*args, **kwargs)


def times(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method that does the same and a little more."""
    return lambda self, *args, **kwargs: 0.9 * function(self, *args, **kwargs)


@contextlib.contextmanager
def another_class(layer: nn.Module) -> Iterator[None]:
    kind = type(layer)
    layer.__class__ = type("Sub", (kind,), {"message": times(kind.message)})  # type: ignore[attr-defined]
    yield
    layer.__class__ = kind


@contextlib.contextmanager
def another_code(layer: nn.Module) -> Iterator[None]:
    held = Own.message.__code__

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        score = 3 * (query_i * key_j).sum(-1) / math.sqrt(self.out_channels)
        return value_j * attended(score, index, ptr, size_i)

    Own.message.__code__ = message.__code__
    yield
    Own.message.__code__ = held


def set_to(owner: Any, name: str, value: Any) -> Callable[[nn.Module], Any]:
    return lambda layer: mock.patch.object(owner, name, value, create=True)


def own_in_instance(layer: nn.Module) -> Any:
    return mock.patch.object(layer, "message", types.MethodType(times(Own.message), layer))


CHANGES: dict[str, tuple[type[nn.Module], Callable[[nn.Module], Any]]] = {
    "the softmax of a library's module": (GATv2Conv, set_to(gatv2_conv, "softmax", smaller)),
    "a method of a library's class": (GATv2Conv, set_to(GATv2Conv, "edge_update", times(GATv2Conv.edge_update))),
    "a mock with a side effect": (GATv2Conv, lambda _: mock.patch.object(gatv2_conv, "softmax", side_effect=smaller)),
    "a mock in the class": (GATv2Conv, lambda _: mock.patch.object(GATv2Conv, "edge_update", autospec=True, side_effect=times(GATv2Conv.edge_update))),
    "a method of an own class": (Own, set_to(Own, "message", times(Own.message))),
    "a static method": (Own, set_to(Own, "message", staticmethod(lambda query_i, key_j, value_j, *rest, **named: value_j))),
    "a method of the parent": (Above, set_to(TransformerConv, "message", times(TransformerConv.message))),
    "a method in the instance": (Own, own_in_instance),
    "the class": (Own, another_class),
    "the code object": (Own, another_code),
    "the defaults of a helper": (Own, lambda _: mock.patch.object(attended, "__defaults__", (3.0,))),
    "a softmax that is named as an attribute": (Named, set_to(utils, "softmax", smaller)),
    "a number beside that softmax": (Named, set_to(utils, "SCALE", 3.0)),
    "the forward of a dense layer": (Dense, set_to(Dense, "forward", times(Dense.forward))),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_replaces_code_in_mid_run_runs(what: str) -> None:
    kind, change = CHANGES[what]

    def loop(run: Run) -> None:
        layer = kind(WIDTH, WIDTH)
        optimizer = torch.optim.SGD(layer.parameters(), lr=1e-2)
        with run.watching(layer, optimizer=optimizer, schedule="every step"):
            for number in range(9):
                with change(layer) if 3 <= number < 6 else contextlib.nullcontext():
                    optimizer.zero_grad()
                    output = layer(X, EDGES)
                    output.square().mean().backward()
                    run.keep(output)
                    run.keep_gradients(layer)
                    optimizer.step()
        with torch.no_grad():
            plain = layer(X, EDGES)
            with change(layer):
                assert not layer(X, EDGES).equal(plain)

    run = unnoticed(loop)
    assert run.warned == []
    with run.monitor.trace as trace:  # type: ignore[union-attr]
        (rows,) = trace.sites(kind.__name__, "score").values()
    assert {0, 1, 2, 6, 7, 8} <= {*rows["step"].tolist()}
