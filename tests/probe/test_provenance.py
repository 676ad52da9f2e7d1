"""The first non-finite value: found at the right place, for the right reason, without touching the user's model."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import HeteroConv, TransformerConv

from gnnstab.errors import UsageError
from gnnstab.probe.replaying import provenance
from gnnstab.probe.replaying.replica import Autocast, ForwardInputs, forked_rng, replica, rng_snapshot
from gnnstab.records import STAGES
from models.informarl import load_actor, sample_batch

FP16 = Autocast("cpu", torch.float16)
CRASH = "agents7_lr7e-2_amp16_nan_crash"


def locate_non_finite(model: nn.Module, args: Any, kwargs: Any = None, step: int = 0, **more: Any) -> Any:
    return provenance.locate_non_finite(model, ForwardInputs(args, kwargs or {}, **more), step)


def walk(model: nn.Module, args: Any, kwargs: Any = None, **more: Any) -> list[provenance.StageRow]:
    return provenance.walk(model, ForwardInputs(args, kwargs or {}, **more))[0]


class Net(nn.Module):
    """Encoder, two TransformerConvs, head; ``between`` is code that no module shows."""

    def __init__(self, between: Any = None, inplace: bool = False, **options: Any) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 8)
        self.first = TransformerConv(8, 8, heads=2, concat=False, edge_dim=2, **options)
        self.second = TransformerConv(8, 8, heads=2, concat=False, edge_dim=2, **options)
        self.activation = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(8, 1)
        self.between = between or (lambda h: h)

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        h = self.activation(self.first(self.encode(x), edge_index, edge_attr))
        return self.head(self.activation(self.second(self.between(h), edge_index, edge_attr)))


@pytest.fixture
def graph() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(12, 4), torch.randint(0, 12, (2, 40)), torch.rand(40, 2)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(1)
    return Net()


def test_the_real_crash_is_found_at_the_third_layer_in_fp16() -> None:
    event = locate_non_finite(load_actor(CRASH), (), sample_batch(7), autocast=FP16, step=9, mode="eval")
    assert event is not None
    assert (event.layer, event.stage, event.origin, event.call) == ("gnn.gnn2.1", "score", "made-here", 0)
    assert (event.step, event.kind, event.mode) == (9, "non-finite", "eval")
    assert event.detail["weights_finite"] is True
    assert event.detail["dtype"] == "float16"
    assert event.detail["limit"] == 65504
    assert event.detail["largest_before"] <= 65504 < event.detail["largest_exact"]
    assert event.message.startswith("the score of gnn.gnn2.1: the q·k sum passed 65504 (float16) on ")
    assert event.message.endswith("all weights are finite")
    assert 0 < len(event.edges) <= 16
    assert 0 < len(event.nodes) <= 16


def test_the_crashing_edges_and_heads_are_those_of_an_independent_computation() -> None:
    model, batch = load_actor(CRASH), sample_batch(7)
    event = locate_non_finite(model, (), batch, autocast=FP16)
    taken: dict[str, Tensor] = {}
    conv = model.gnn.gnn2[1]
    handles = [
        conv.register_message_forward_pre_hook(lambda _, inputs: taken.update(inputs[0])),
        conv.lin_edge.register_forward_hook(lambda _, __, output: taken.update(edge=output)),
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        model(**batch)
    for handle in handles:
        handle.remove()
    sums = (taken["query_i"] * (taken["key_j"] + taken["edge"].view(-1, 3, 16))).sum(-1)
    bad = ~torch.isfinite(sums)
    assert event is not None
    assert event.edges == tuple(bad.any(1).nonzero().flatten()[:16].tolist())
    assert event.heads == tuple(bad.any(0).nonzero().flatten().tolist())
    assert event.detail["non_finite"] == int(bad.sum())
    assert set(event.nodes) <= set(taken["index"][bad.any(1)].tolist())


def test_the_real_crash_is_finite_in_fp32_with_the_known_scores() -> None:
    model, batch = load_actor(CRASH), sample_batch(7)
    assert locate_non_finite(model, (), batch) is None
    scores = [row for row in walk(model, (), batch) if row.stage == "score"]
    assert [row.layer for row in scores] == ["gnn.gnn1", "gnn.gnn2.0", "gnn.gnn2.1"]
    taken: list[Tensor] = []
    for conv in (model.gnn.gnn1, *model.gnn.gnn2):
        conv.register_message_forward_pre_hook(lambda module, inputs: taken.append(_scores(module, inputs[0])))
    with torch.no_grad():
        model(**batch)
    assert [row.rms for row in scores] == pytest.approx([s.square().mean().sqrt().item() for s in taken], rel=1e-6)
    assert [s.std().item() for s in taken] == pytest.approx([318, 3.6e3, 1.1e4], rel=0.02)


def _scores(conv: TransformerConv, inputs: dict[str, Tensor]) -> Tensor:
    key = inputs["key_j"] + conv.lin_edge(inputs["edge_attr"]).view(-1, 3, 16)
    return (inputs["query_i"] * key).sum(-1).double() / 4


@pytest.mark.parametrize("options", [{}, {"beta": True}, {"dropout": 0.5}, {"root_weight": False}])
def test_the_replay_computes_what_the_model_computes(graph: Any, options: dict[str, Any]) -> None:
    net = Net(**options)
    before = rng_snapshot()
    expected = net(*graph).detach()
    rows = walk(net, graph, rng=before)
    head = next(row for row in rows if row.layer == "head")
    assert head.minimum == expected.min().item()
    assert head.maximum == expected.max().item()


def test_the_table_follows_the_order_of_execution(net: Net, graph: Any) -> None:
    rows = walk(net, graph)
    first = [row.stage for row in rows if row.layer == "first"]
    assert first == ["input", "query", "key", "value", "edge", "score", "attention", "aggregate", "skip", "output"]
    assert set(first) <= set(STAGES)
    assert [row.layer for row in rows if row.stage == "output"] == [
        "encode", "first", "activation", "second", "activation", "head",
    ]  # fmt: skip
    assert [row.call for row in rows if row.layer == "activation"] == [0, 1]
    assert all(row.dtype == "float32" and row.non_finite == 0 for row in rows)
    assert rows[0][:3] == (None, 0, "input")
    assert rows[0].rms == pytest.approx(graph[0].square().mean().sqrt().item())


def test_gate_and_low_precision_appear_in_the_table(graph: Any) -> None:
    rows = walk(Net(beta=True), graph, autocast=Autocast("cpu", torch.bfloat16))
    assert {row.dtype for row in rows if row.stage == "query"} == {"bfloat16"}
    assert sum(row.stage == "gate" for row in rows) == 2


def test_an_inf_of_an_edge_is_named_by_its_ends(net: Net, graph: Any) -> None:
    x, edge_index, edge_attr = graph
    edge_attr = edge_attr.clone()
    edge_attr[7, 1] = math.inf
    event = locate_non_finite(net, (x, edge_index, edge_attr))
    assert event is not None
    assert (event.stage, event.detail["argument"], event.nodes, event.edges) == ("input", "edge_attr", (), (7,))
    source, target = edge_index[:, 7].tolist()
    assert event.ids == f"edge {source}→{target}"


def test_a_nan_feature_came_in_with_the_data(net: Net, graph: Any) -> None:
    x, edge_index, edge_attr = graph
    x[5, 2] = math.nan
    event = locate_non_finite(net, (x, edge_index, edge_attr))
    assert event is not None
    assert (event.layer, event.stage, event.origin) == (None, "input", "came-in")
    assert event.nodes == (5,)
    assert event.detail["non_finite"] == 1
    assert event.detail["argument"] == "x"
    assert event.message == "the model's own input x already holds 1 non-finite entry"


def test_a_nan_edge_feature_names_the_edges(net: Net, graph: Any) -> None:
    x, edge_index, edge_attr = graph
    edge_attr[[3, 7], 1] = math.inf
    event = locate_non_finite(net, (x, edge_index), {"edge_attr": edge_attr})
    assert event is not None
    assert (event.layer, event.stage, event.edges, event.nodes) == (None, "input", (3, 7), ())
    assert event.detail["argument"] == "edge_attr"


def test_data_objects_are_looked_into(graph: Any) -> None:
    class OnData(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def forward(self, data: Data) -> Tensor:
            data.x = data.x + 1
            return self.net(data.x, data.edge_index, data.edge_attr)

    data = Data(x=graph[0], edge_index=graph[1], edge_attr=graph[2])
    kept = data.x.clone()
    assert locate_non_finite(OnData(), (data,)) is None
    assert torch.equal(data.x, kept)
    data.x[2] = math.nan
    event = locate_non_finite(OnData(), (data,))
    assert event is not None
    assert (event.layer, event.detail["argument"], event.nodes) == (None, "x", (2,))


@pytest.mark.parametrize(
    ("parameter", "stage"),
    [
        ("lin_query.weight", "query"),
        ("lin_value.bias", "value"),
        ("lin_edge.weight", "edge"),
        ("lin_skip.bias", "skip"),
    ],
)
def test_a_nan_weight_is_named(net: Net, graph: Any, parameter: str, stage: str) -> None:
    with torch.no_grad():
        net.second.get_parameter(parameter).view(-1)[0] = math.nan
    event = locate_non_finite(net, graph)
    assert event is not None
    assert (event.layer, event.stage, event.origin) == ("second", stage, "came-in")
    assert event.detail["weights_finite"] is False
    assert event.detail["non_finite_parameters"] == [f"second.{parameter}"]
    assert parameter.split(".")[1] in event.message


def test_an_infinity_made_between_the_layers_is_not_blamed_on_the_layer(graph: Any) -> None:
    net = Net(between=lambda h: (h * 1e4).exp())
    event = locate_non_finite(net, graph)
    assert event is not None
    assert (event.layer, event.stage, event.origin) == ("second", "input", "came-in")
    assert event.detail["finite_before"] == "the output of activation"
    assert "the code between the output of activation and this layer made them" in event.message
    assert event.detail["weights_finite"] is True


def test_a_plain_module_that_makes_it_is_named(graph: Any) -> None:
    class Exp(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return (h * 1e4).exp()

    event = locate_non_finite(Net(between=Exp()), graph)
    assert event is not None
    assert (event.layer, event.stage, event.origin) == ("between", "output", "made-here")
    assert event.detail["largest_before"] > 0


def test_in_place_operations_do_not_confuse_the_replay(graph: Any) -> None:
    net = Net(between=lambda h: h.mul_(2), inplace=True)
    assert locate_non_finite(net, graph) is None
    broken = Net(between=lambda h: h.div_(0), inplace=True)
    event = locate_non_finite(broken, graph)
    assert event is not None
    assert (event.layer, event.stage) == ("second", "input")


def test_a_layer_called_twice_tells_which_call(graph: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TransformerConv(4, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(self.conv(x, edge_index) * 1e30, edge_index)

    torch.manual_seed(0)
    event = locate_non_finite(Shared(), graph[:2])
    assert event is not None
    assert (event.layer, event.stage, event.call, event.origin) == ("conv", "score", 1, "made-here")
    assert "(call 1)" in event.message


def test_hetero_models_are_walked(graph: Any) -> None:
    class Hetero(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = HeteroConv(
                {("a", "to", "b"): TransformerConv((4, 3), 5), ("b", "to", "a"): TransformerConv((3, 4), 5)}
            )

        def forward(self, x: dict[str, Tensor], edges: dict[Any, Tensor]) -> dict[str, Tensor]:
            return self.conv(x, edges)

    x = {"a": torch.randn(6, 4), "b": torch.randn(2, 3)}
    edges = {("a", "to", "b"): torch.tensor([[0, 5], [0, 1]]), ("b", "to", "a"): torch.tensor([[0, 1], [3, 5]])}
    model = Hetero()
    assert locate_non_finite(model, (x, edges)) is None
    with torch.no_grad():
        next(conv for name, conv in model.conv.convs.items() if "b" in str(name)[-3:]).lin_key.weight[0, 0] = math.inf
    event = locate_non_finite(model, (x, edges))
    assert event is not None
    assert (event.stage, event.origin) == ("key", "came-in")
    assert event.layer is not None
    assert event.layer.startswith("conv.convs.")


class Capped(TransformerConv):
    """A subclass whose scores nobody can see."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i) * math.inf


def test_a_subclass_with_its_own_message_falls_back_with_the_reason(graph: Any) -> None:
    event = locate_non_finite(Capped(4, 4), graph[:2])
    assert event is not None
    assert (event.layer, event.stage, event.origin) == ("", "output", "made-here")
    assert event.detail["reason"] == "Capped overrides message: its scores cannot be seen"
    assert not [row for row in walk(Capped(4, 4), graph[:2]) if row.stage in ("score", "attention", "aggregate")]


def test_message_and_skip_that_overflow_together_are_the_output() -> None:
    conv = TransformerConv(2, 2, bias=False)
    with torch.no_grad():
        conv.lin_query.weight.zero_()
        for linear in (conv.lin_value, conv.lin_skip):
            linear.weight.copy_(torch.eye(2) * 3e38)
    event = locate_non_finite(conv, (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1], [0]])))
    assert event is not None
    assert (event.layer, event.stage, event.origin, event.nodes) == ("", "output", "made-here", (0,))
    assert event.detail["largest_before"] == pytest.approx(3e38)
    assert event.message == (
        "the output of the layer holds 1 non-finite entry made here: what fed it was finite, "
        "at most 3e+38 in float32 (limit 3.40282e+38); all weights are finite"
    )


def test_the_model_is_left_as_it_was(graph: Any) -> None:
    class Tap:
        def __init__(self, conv: TransformerConv) -> None:
            self.conv, self.calls = conv, 0

        def __call__(self, **inputs: Any) -> Tensor:
            self.calls += 1
            return TransformerConv.message(self.conv, **inputs)

        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("must not be copied")

    net = Net(dropout=0.3)
    net.norm = nn.BatchNorm1d(8)
    net.between = net.norm
    net.first.message = tap = Tap(net.first)
    fired: list[str] = []
    net.first.register_forward_hook(lambda *_: fired.append("forward"))
    net.register_forward_pre_hook(refusing_hook(fired))
    net.second.register_message_forward_hook(lambda *_: fired.append("message"))
    state, mode = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    hooks = [len(m._forward_hooks) for m in net.modules()]
    inputs = [t.clone() for t in graph]
    generators = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[union-attr]
    locate_non_finite(net, graph, rng={"cpu": torch.Generator().manual_seed(3).get_state()})
    walk(net, graph)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1] == generators[1]).all()  # type: ignore[index]
    assert random.getstate() == generators[2]
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == mode
    assert [len(m._forward_hooks) for m in net.modules()] == hooks
    assert all(torch.equal(a, b) for a, b in zip(inputs, graph, strict=True))
    assert fired == []
    assert tap.calls == 0
    assert net.first.message is tap


def refusing_hook(fired: list[str]) -> Any:
    class Hook:
        def __call__(self, *_: Any) -> None:
            fired.append("pre")

        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("hooks must not be copied")

    return Hook()


def test_the_generator_state_decides_the_dropout(graph: Any) -> None:
    net = Net(between=nn.Dropout(0.5))
    state = rng_snapshot()
    torch.rand(100)
    rows = [walk(net, graph, rng=state) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0] != walk(net, graph, rng=torch.Generator().manual_seed(99).get_state())


def test_forked_generators_come_back_after_a_failure() -> None:
    def fail() -> None:
        with forked_rng(torch.Generator().manual_seed(1).get_state()):
            torch.rand(3)
            raise ValueError("boom")

    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="boom"):
        fail()
    assert torch.equal(before, torch.get_rng_state())


def test_weight_norm_and_stored_activations_survive_the_copy(graph: Any) -> None:
    net = Net()
    with pytest.warns(FutureWarning):
        net.encode = torch.nn.utils.weight_norm(net.encode)
    net.cache = [net.encode(graph[0])]
    with torch.no_grad():
        net.encode.weight_g.fill_(math.nan)
    event = locate_non_finite(net, graph)
    assert event is not None
    assert (event.layer, event.origin) == ("encode", "came-in")


def test_a_forward_that_fails_by_itself_says_so(graph: Any) -> None:
    def fail(h: Tensor) -> Tensor:
        raise ValueError("no such thing")

    with pytest.raises(UsageError, match="the replayed forward of Net failed: no such thing"):
        locate_non_finite(Net(between=fail), graph)
    with pytest.raises(UsageError, match="no such thing"):
        walk(Net(between=fail), graph)


def test_a_forward_that_fails_because_of_nan_still_gives_the_table(graph: Any) -> None:
    def check(h: Tensor) -> Tensor:
        if h.isnan().any():
            raise ValueError("NaN")
        return h

    net = Net(between=check)
    with torch.no_grad():
        net.first.lin_skip.bias.fill_(math.nan)
    rows = walk(net, graph)
    assert next(row for row in rows if row.non_finite)[:3] == ("first", 0, "skip")
    assert rows[-1].layer == "activation"


def test_a_model_that_cannot_be_copied_says_so(net: Net, graph: Any) -> None:
    net.handle = (value for value in [1])
    with pytest.raises(UsageError, match="Net cannot be copied for a replay"):
        locate_non_finite(net, graph)


def test_broad_except_clauses_do_not_swallow_the_search(graph: Any) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net(between=lambda h: h / 0)

        def forward(self, *args: Tensor) -> Tensor:
            try:
                return self.net(*args)
            except Exception:
                return args[0]

    event = locate_non_finite(Stubborn(), graph)
    assert event is not None
    assert event.layer == "net.second"


def test_compiled_models_are_replayed_eagerly_under_their_own_paths(net: Net, graph: Any) -> None:
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        net.second.lin_key.weight[0, 0] = math.nan
    event = locate_non_finite(compiled, graph)
    assert event is not None
    assert (event.layer, event.stage) == ("_orig_mod.second", "key")
    assert event.layer in dict(compiled.named_modules())


def test_empty_graphs_and_models_without_attention_are_fine(net: Net) -> None:
    nothing = torch.zeros(2, 0, dtype=torch.long)
    assert locate_non_finite(net, (torch.randn(3, 4), nothing, torch.zeros(0, 2))) is None
    assert locate_non_finite(net, (torch.zeros(0, 4), nothing, torch.zeros(0, 2))) is None
    assert [row[:3] for row in walk(nn.Linear(2, 2), (torch.ones(1, 2),))] == [(None, 0, "input")]


def test_a_copy_holds_no_hooks(net: Net) -> None:
    net.register_forward_hook(lambda *_: None)
    net.first.register_propagate_forward_hook(lambda *_: None)
    twin = replica(net)
    assert not twin._forward_hooks
    assert not twin.first._propagate_forward_hooks
    assert len(net._forward_hooks) == 1
    assert (
        twin.first.inspector is net.first.inspector
    )  # As large as the rest of a layer, and the same for all of its class.
