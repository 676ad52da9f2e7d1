"""Parts of a forward that `torch.compile` compiled: under a monitor they compute the same, and stay compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GATv2Conv

import side_by_side
from gnnstab.torch_private import not_compiled_alone
from side_by_side import Run

STEPS = 6


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Between(nn.Module):
    """Two attention layers and a function of the user's between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = GATv2Conv(8, 8), GATv2Conv(8, 8)
        self.between = [between]

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return self.second(self.between[0](self.first(x, edges)), edges)  # type: ignore[no-any-return]


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x, -1) + torch.tanh(x) * x


def weighs(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.t(), -1) @ x


def plain(x: Tensor) -> Tensor:
    return F.layer_norm(F.elu(x) * 2, (8,))


@pytest.mark.parametrize("between", [softmax, weighs, plain])
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_compiled_function_in_the_forward(between: Callable[[Tensor], Tensor], fullgraph: bool) -> None:
    """The same numbers, one graph for each look or fewer, and every forward of the user's runs a graph."""
    ran: list[tuple[bool, list[int]]] = []

    def loop(run: Run) -> None:
        torch._dynamo.reset()
        calls = [0]

        def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
            def called(*args: Any) -> Any:
                calls[0] += 1
                return graph.forward(*args)

            return called

        model = Between(torch.compile(between, backend=backend, fullgraph=fullgraph))
        (x, edges), each = side_by_side.graph(), []
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        with run.watching(model, optimizer=optimizer):
            for _ in range(STEPS):
                before = calls[0]
                optimizer.zero_grad()
                output = model(x, edges)
                each.append(calls[0] - before)
                output.square().mean().backward()
                optimizer.step()
                run.keep(output)
        ran.append((run.monitored, each))
        run.keep(*model.parameters())

    side_by_side.unnoticed(loop)
    assert {monitored for monitored, _ in ran} == {False, True}
    assert all(each == [1] * STEPS for _, each in ran)


def test_what_is_not_compiled_alone_is_traced_into_its_caller() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append([node.name for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    @not_compiled_alone
    def inner(x: Tensor) -> Tensor:
        return x.sin()

    x = torch.ones(3)
    torch.compile(lambda x: inner(x).cos(), backend=backend, fullgraph=True)(x)
    assert graphs == [["sin", "cos"]]
    torch.compile(inner, backend=backend)(x)
    assert len(graphs) == 1
