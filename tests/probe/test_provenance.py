"""The first non-finite value: found at the right place, for the right reason."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import HeteroConv, TransformerConv

from gnnstab.probe.replaying.replica import Autocast, rng_snapshot
from gnnstab.records import STAGES
from models.informarl import load_actor, sample_batch
from probe import walked
from probe.walked import Net, locate_non_finite, located, walk

FP16 = Autocast("cpu", torch.float16)
CRASH = "agents7_lr7e-2_amp16_nan_crash"
graph, net = pytest.fixture(walked.graph), pytest.fixture(walked.net)


def test_the_real_crash_is_found_at_the_third_layer_in_fp16() -> None:
    event = located(load_actor(CRASH), (), sample_batch(7), autocast=FP16, step=9, mode="eval")
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
    event = located(model, (), batch, autocast=FP16)
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
    event = located(net, (x, edge_index, edge_attr))
    assert (event.stage, event.detail["argument"], event.nodes, event.edges) == ("input", "edge_attr", (), (7,))
    source, target = edge_index[:, 7].tolist()
    assert event.ids == f"edge {source}→{target}"


def test_a_nan_feature_came_in_with_the_data(net: Net, graph: Any) -> None:
    x, edge_index, edge_attr = graph
    x[5, 2] = math.nan
    event = located(net, (x, edge_index, edge_attr))
    assert (event.layer, event.stage, event.origin) == (None, "input", "came-in")
    assert event.nodes == (5,)
    assert event.detail["non_finite"] == 1
    assert event.detail["argument"] == "x"
    assert event.message == "the model's own input x already holds 1 non-finite entry"


def test_a_nan_edge_feature_names_the_edges(net: Net, graph: Any) -> None:
    x, edge_index, edge_attr = graph
    edge_attr[[3, 7], 1] = math.inf
    event = located(net, (x, edge_index), {"edge_attr": edge_attr})
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
    event = located(OnData(), (data,))
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
    event = located(net, graph)
    assert (event.layer, event.stage, event.origin) == ("second", stage, "came-in")
    assert event.detail["weights_finite"] is False
    assert event.detail["non_finite_parameters"] == [f"second.{parameter}"]
    assert parameter.split(".")[1] in event.message


def test_an_infinity_made_between_the_layers_is_not_blamed_on_the_layer(graph: Any) -> None:
    net = Net(between=lambda h: (h * 1e4).exp())
    event = located(net, graph)
    assert (event.layer, event.stage, event.origin) == ("second", "input", "came-in")
    assert event.detail["finite_before"] == "the output of activation"
    assert "the code between the output of activation and this layer made them" in event.message
    assert event.detail["weights_finite"] is True


def test_a_plain_module_that_makes_it_is_named(graph: Any) -> None:
    class Exp(nn.Module):
        def forward(self, h: Tensor) -> Tensor:
            return (h * 1e4).exp()

    event = located(Net(between=Exp()), graph)
    assert (event.layer, event.stage, event.origin) == ("between", "output", "made-here")
    assert event.detail["largest_before"] > 0


def test_in_place_operations_do_not_confuse_the_replay(graph: Any) -> None:
    net = Net(between=lambda h: h.mul_(2), inplace=True)
    assert locate_non_finite(net, graph) is None
    broken = Net(between=lambda h: h.div_(0), inplace=True)
    event = located(broken, graph)
    assert (event.layer, event.stage) == ("second", "input")


def test_a_layer_called_twice_tells_which_call(graph: Any) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = TransformerConv(4, 4)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(self.conv(x, edge_index) * 1e30, edge_index)

    torch.manual_seed(0)
    event = located(Shared(), graph[:2])
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
    event = located(model, (x, edges))
    assert (event.stage, event.origin) == ("key", "came-in")
    assert event.layer is not None
    assert event.layer.startswith("conv.convs.")


class Capped(TransformerConv):
    """A subclass whose scores nobody can see."""

    def message(self, query_i, key_j, value_j, edge_attr, index, ptr, size_i):  # type: ignore[no-untyped-def]
        return super().message(query_i, key_j, value_j, edge_attr, index, ptr, size_i) * math.inf


def test_a_subclass_with_its_own_message_falls_back_with_the_reason(graph: Any) -> None:
    event = located(Capped(4, 4), graph[:2])
    assert (event.layer, event.stage, event.origin) == ("", "output", "made-here")
    assert event.detail["reason"] == "Capped overrides message: its scores cannot be seen"
    assert not [row for row in walk(Capped(4, 4), graph[:2]) if row.stage in ("score", "attention", "aggregate")]


def test_message_and_skip_that_overflow_together_are_the_output() -> None:
    conv = TransformerConv(2, 2, bias=False)
    with torch.no_grad():
        conv.lin_query.weight.zero_()
        for linear in (conv.lin_value, conv.lin_skip):
            linear.weight.copy_(torch.eye(2) * 3e38)
    event = located(conv, (torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1], [0]])))
    assert (event.layer, event.stage, event.origin, event.nodes) == ("", "output", "made-here", (0,))
    assert event.detail["largest_before"] == pytest.approx(3e38)
    assert event.message == (
        "the output of the layer holds 1 non-finite entry made here: what fed it was finite, "
        "at most 3e+38 in float32 (limit 3.40282e+38); all weights are finite"
    )
