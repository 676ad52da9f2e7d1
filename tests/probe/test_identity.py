"""Ways around a layer, read from the autograd graph, and their weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GINConv, TransformerConv

from gnnstab.probe.attaching import identity_path as identity
from gnnstab.probe.attaching.identity_path import node_of, ways
from gnnstab.probe.recorder import Recorder
from gnnstab.records import Signals
from gnnstab.trace import TraceWriter
from gnnstab.trace._codec import facts_from_json, layer_to_columns

DEPTH = 3


class Stack(nn.Module):
    """Three TransformerConvs behind an encoder; ``step`` says what happens around each of them."""

    def __init__(self, step: Callable[..., Tensor], width: int = 6) -> None:
        super().__init__()
        self.encode = nn.Linear(4, width)
        self.edges = nn.Linear(2, 3)
        self.convs = nn.ModuleList([TransformerConv(width, width, edge_dim=3) for _ in range(DEPTH)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(DEPTH)])
        self.step = step

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        h, e = self.encode(x), self.edges(edge_attr)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = self.step(lambda t, conv=conv: conv(t, edge_index, e), norm, h)
        return h


def layer_trace_of(model: nn.Module, *inputs: Any, output: bool = True) -> list[Any]:
    layer_trace: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, TransformerConv):
            module.register_forward_hook(
                lambda _, args, out, name=name: layer_trace.append((name, args[0], node_of(out)))
            )
    result = model(*inputs)
    return [*layer_trace, ("", result, None)] if output else layer_trace


def graph() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(8, 4), torch.randint(0, 8, (2, 20)), torch.rand(20, 2)


def plain(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return conv(h).relu()


def in_place(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return conv(h).relu_()


def post_norm(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return norm(conv(h).relu())


def residual(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return h + conv(h).relu()


def weak_residual(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return 0.1 * h + conv(h).relu()


def residual_of_nothing(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return 0.0 * h + conv(h).relu()


def residual_that_may_grow(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return torch.zeros((), requires_grad=True) * h + conv(h).relu()


def in_place_residual(conv: Any, norm: Any, h: Tensor) -> Tensor:
    y = conv(h)
    y += h
    return y.relu_()


def pre_norm(conv: Any, norm: Any, h: Tensor) -> Tensor:
    return h + conv(norm(h)).relu()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (plain, False),
        (in_place, False),
        (post_norm, False),
        (residual, True),
        (weak_residual, True),
        (residual_of_nothing, False),
        (residual_that_may_grow, True),
        (in_place_residual, True),
        (pre_norm, True),
    ],
)
def test_every_layer_of_a_uniform_stack(step: Callable[..., Tensor], expected: bool) -> None:
    answers = ways(layer_trace_of(Stack(step), *graph())).around
    assert answers == {f"convs.{i}": expected for i in range(DEPTH)}


def test_the_last_layer_is_open_without_the_models_output() -> None:
    answers = ways(layer_trace_of(Stack(residual), *graph(), output=False)).around
    assert answers == {"convs.0": True, "convs.1": True, "convs.2": None}


def test_raw_data_as_input_leaves_the_question_open() -> None:
    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = TransformerConv(4, 4), TransformerConv(4, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = x + self.first(x, edge_index)
            return h + self.second(h, edge_index)

    x, edge_index, _ = graph()
    assert ways(layer_trace_of(Raw(), x, edge_index)).around == {"first": None, "second": True}
    # With a gradient wanted for the data themselves it can be told.
    assert ways(layer_trace_of(Raw(), x.requires_grad_(), edge_index)).around == {"first": True, "second": True}


def test_a_forward_without_gradients_decides_nothing() -> None:
    with torch.no_grad():
        answers = ways(layer_trace_of(Stack(residual), *graph())).around
    assert set(answers.values()) == {None}


def test_a_residual_over_two_layers_goes_around_both() -> None:
    class Dense(Stack):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
            e, h = self.edges(edge_attr), self.encode(x)
            inner = self.convs[1](self.convs[0](h, edge_index, e).relu(), edge_index, e).relu()
            return self.convs[2](h + inner, edge_index, e).relu()

    answers = ways(layer_trace_of(Dense(plain), *graph())).around
    assert answers == {"convs.0": True, "convs.1": True, "convs.2": False}


def test_concatenating_all_layers_leads_around_all_but_the_first() -> None:
    class Jumping(Stack):
        def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
            e, h, states = self.edges(edge_attr), self.encode(x), []
            for conv in self.convs:
                h = conv(h, edge_index, e).relu()
                states.append(h)
            return torch.cat(states, 1)

    answers = ways(layer_trace_of(Jumping(plain), *graph())).around
    assert answers == {"convs.0": False, "convs.1": True, "convs.2": True}


class Beside(nn.Module):
    """Two layers on the same nodes; their sum goes to a third, or what the first made to the keys of torch's attention."""

    def __init__(self, crossed: bool) -> None:
        super().__init__()
        self.encode, self.left, self.right = nn.Linear(4, 4), GINConv(nn.Linear(4, 4)), GATConv(4, 4)
        self.after, self.crossed = nn.MultiheadAttention(4, 1), crossed

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.encode(x)
        left, right = self.left(h, edge_index), self.right(h, edge_index)
        if self.crossed:
            return self.after(right, left, left)[0]
        h = left + right
        return self.after(h, h, h)[0]


@pytest.mark.parametrize("crossed", [False, True])
def test_what_stands_beside_a_layer_is_told_from_what_feeds_it(crossed: bool) -> None:
    x, edge_index, _ = graph()
    with TraceWriter(None) as writer, Recorder(model := Beside(crossed), writer) as recorder:
        model(x, edge_index).sum().backward()
        recorder.end_step()
        facts = {one.name: one.beside for one in recorder.notes.facts()}
    assert facts == {"left": (), "right": ("left",), "after": ()}
    assert {one.name: facts_from_json(layer_to_columns(one)[3]).beside for one in recorder.notes.facts()} == facts


class Relations(nn.Module):
    """Layers of two relations, summed up, with the nodes' own states or without."""

    def __init__(self, own: float) -> None:
        super().__init__()
        self.encode, self.own = nn.Linear(4, 4), own
        self.convs = nn.ModuleList(nn.ModuleList(TransformerConv(4, 4) for _ in range(2)) for _ in range(DEPTH))

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        h = self.encode(x)
        for one, other in self.convs:
            z = one(h, edge_index) + other(h, edge_index)
            h = (z + self.own * h if self.own else z).relu()
        return h


@pytest.mark.parametrize("own", [0.0, 1.0])
def test_a_relation_beside_a_layer_is_no_way_around_it(own: float) -> None:
    x, edge_index, _ = graph()
    with TraceWriter(None) as writer, Recorder(model := Relations(own), writer) as recorder:
        model(x, edge_index).sum().backward()
        recorder.end_step()
        facts = recorder.notes.facts()
    assert {one.identity_path for one in facts if one.attention} == {bool(own)}
    assert Signals("model", facts).depth == DEPTH


def test_a_shared_layer_is_true_only_if_every_call_is() -> None:
    class Shared(nn.Module):
        def __init__(self, second: bool) -> None:
            super().__init__()
            self.encode, self.conv, self.second = nn.Linear(4, 4), TransformerConv(4, 4), second

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            h = self.encode(x)
            h = h + self.conv(h, edge_index)
            return h * self.second + self.conv(h, edge_index) if self.second else self.conv(h, edge_index)

    x, edge_index, _ = graph()
    assert ways(layer_trace_of(Shared(True), x, edge_index)).around == {"conv": True}
    assert ways(layer_trace_of(Shared(False), x, edge_index)).around == {"conv": False}


def test_a_graph_beyond_the_budget_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    layer_trace = layer_trace_of(Stack(plain), *graph())
    monkeypatch.setattr(identity, "BUDGET", 5)
    assert set(ways(layer_trace).around.values()) == {None}


def test_nothing_recorded_is_nothing_answered() -> None:
    assert ways([]).around == {}
