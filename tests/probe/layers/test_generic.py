"""Attention of classes that nobody described: seen, counted, bit for bit the same; classes are not taken for it."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GATConv, GPSConv
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.probe.attaching.stand_in import StandIn
from gnnstab.probe.layers._dense_softmax import Attending
from gnnstab.probe.layers._edge_softmax import DenseSoftmaxRecorder, EdgeSoftmaxRecorder
from gnnstab.probe.layers._multihead import multihead_scores
from gnnstab.probe.recorder import Recorder
from gnnstab.probe.statistics.dense import as_edges, product_scores
from gnnstab.trace import TraceWriter
from layers.test_faces import both_faces
from probe.layers.generic_models import (
    EDGES,
    NODES,
    WAYS,
    WIDTH,
    Assignment,
    Dense,
    Head,
    Net,
    Policy,
    Pool,
    graph,
)


class Encoder(nn.Module):
    """Torch's encoder over all nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(WIDTH, 4, 32, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.unsqueeze(0))[0]


LAYERS: dict[str, Any] = {
    **EDGES,
    **{f"dense-{way}": lambda way=way: Dense(way) for way in WAYS},
    "pool": Pool,
    "GPS": lambda: GPSConv(WIDTH, GATConv(WIDTH, WIDTH), heads=4),
    "encoder": Encoder,
}
EACH = pytest.mark.parametrize("name", LAYERS)
NONE = pytest.mark.parametrize("kind", [Assignment, Head, Policy])


def net(name: str) -> Net:
    torch.manual_seed(0)
    return Net(LAYERS[name]())


def run(model: nn.Module) -> list[Tensor]:
    """Outputs and gradients of two training forwards and one in eval mode without gradients."""
    x, edge_index, y = graph()
    torch.manual_seed(2)
    model.zero_grad()
    for buffer in model.buffers():  # What a batch normalisation has averaged is part of the run.
        buffer.zero_()
    found = []
    for _ in range(2):
        out = model.train()(x, edge_index)
        nn.functional.cross_entropy(out, y).backward()
        found += [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    with torch.no_grad():
        found += [model.eval()(x, edge_index), torch.rand(3)]
    return found


@EACH
def test_no_bit_changes_and_nothing_is_left(name: str) -> None:
    model = net(name)
    expected, before = run(model), [dict(vars(m)) for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
        found = run(model)
        recorder.end_step()
        assert recorder.coverage.layers_observed == recorder.coverage.layers_expected == 2 + (name == "GPS")
        twin, file = copy.deepcopy(model), io.BytesIO()
        torch.save(model, file)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert [dict(vars(m)).keys() for m in model.modules()] == [b.keys() for b in before]
    assert not Attending.current
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    for clean in (twin, loaded):
        assert not any(isinstance(v, StandIn) for m in clean.modules() for v in vars(m).values())
        assert all(torch.equal(a, b) for a, b in zip(run(clean), expected, strict=True))


@EACH
def test_the_faces_count_the_same_layers_and_are_silent(name: str) -> None:
    expected = 2 + (name == "GPS")
    for diagnosis in both_faces(net(name), *graph(), lr=1e-3, steps=6, schedule=2):
        assert (diagnosis.coverage.layers_observed, diagnosis.coverage.layers_expected) == (expected, expected)
        assert not [f.message for f in diagnosis.findings if f.severity != "info"]
        seen = {s.layer for s in diagnosis.signals if s.name == "attention.entropy"}
        assert len(seen) == expected


@pytest.mark.parametrize("name", EDGES)
def test_scores_over_edges_are_the_layers_own(name: str) -> None:
    x, edge_index, _ = graph()
    torch.manual_seed(0)
    layer = EDGES[name]().double()
    with TraceWriter(None) as writer:
        recorder = Recorder(layer, writer)
        (watch,) = [w for w in recorder.layers if isinstance(w, EdgeSoftmaxRecorder) and w.module is layer]
        watch.attach()
        seen = watch._seen
        watch.forget = lambda: None  # type: ignore[method-assign]
        layer(x.double(), edge_index)
        assert len(seen) == 1
        expected = layer.scores(x.double(), edge_index)
        assert torch.allclose(seen[0].score, expected, rtol=1e-12)
        assert torch.allclose(seen[0].attention, softmax(expected, edge_index[1], num_nodes=NODES), rtol=1e-12)
        del watch.forget
        watch.detach()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mask", [-math.inf, -1e9])
def test_dense_scores_are_the_layers_own_and_masked_keys_do_not_count(way: str, mask: float) -> None:
    x = graph()[0].double()
    torch.manual_seed(0)
    layer = Dense(way, mask).double().eval()
    with Attending() as look:
        layer(x)
    if way == "fused":
        (call,) = look.fused
        score = product_scores(call.query, call.key, call.mask, call.causal, call.scale)[0]
        attention = score.softmax(-1)
    else:
        (one,) = look.attended
        score, attention = one.score, one.attention
        assert one.axis == 2
    expected = layer.scores(x)
    assert torch.allclose(
        score, expected.masked_fill(~layer.allowed(x), -math.inf if way == "fused" else mask), rtol=1e-12
    )
    rows = as_edges(score, attention, 2, 2)
    assert rows.size == NODES
    assert rows.score.shape == (NODES * 10, 2)
    assert torch.equal(torch.bincount(rows.target), torch.full((NODES,), 10))


@NONE
def test_classes_clusters_and_policies_are_no_attention(kind: Any) -> None:
    x, _, _ = graph()
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), kind())
    with TraceWriter(None) as writer, Recorder(model, writer, full_every=1) as recorder:
        for _ in range(4):
            model(x)
            recorder.end_step()
        (watch,) = [w for w in recorder.layers if isinstance(w, DenseSoftmaxRecorder)]
        assert not watch.counts
        assert "forward" not in vars(watch.module), "no longer looked at"
        assert recorder.coverage.layers_expected == 0
        assert not recorder.coverage.blind
        assert not recorder.notes.facts()


def test_a_head_of_classes_beside_attention_adds_no_layer() -> None:
    x, edge_index, y = graph()
    torch.manual_seed(0)
    model = Net(Dense(), head=True)
    diagnosis = gnnstab.diagnose(model, batch=(x, edge_index), loss=lambda p, _: -p[range(NODES), y].log().mean())
    assert diagnosis.coverage.layers_expected == diagnosis.coverage.layers_observed == 2
    assert {layer.kind for layer in diagnosis.layers if layer.attention} == {"GATConv", "Dense"}


@pytest.mark.parametrize("name", ["InMessage", "dense-method", "dense-fused", "encoder"])
def test_a_sharp_twin_is_named(name: str) -> None:
    x, edge_index, y = graph()
    model = net(name)
    layer = model.layer
    with torch.no_grad():
        if name == "encoder":
            layer.body.self_attn.in_proj_weight[: 2 * WIDTH] *= 20
        else:
            layer.query.weight *= 20
            layer.key.weight *= 20
    diagnosis = gnnstab.diagnose(model, batch=(x, edge_index), loss=lambda out, _: nn.functional.cross_entropy(out, y))
    found = [f for f in diagnosis.findings if f.code in ("GS301", "GS302") and f.severity != "info"]
    assert [f.layer for f in found] == ["layer.body.self_attn" if name == "encoder" else "layer"]
    # Of a class of its own the parts that were seen to serve the scores alone are named; a fused call shows no scores.
    named = {"encoder": "the query and key weights", "dense-fused": "what its scores are made of"}
    assert named.get(name, "what makes its scores (query and key)") in found[0].message
    assert ("query" in found[0].message) == (name != "dense-fused")
    assert found[0].explained_by is None
    changes = str([fix.change for cause in diagnosis.causes for fix in cause.fixes])
    # What no layer here has: a GATConv of one map has no lin_dst, and packed maps are no q_proj_weight.
    assert not [part for part in ("lin_", "att_edge", "q_proj_weight", "nothing to scale") if part in changes]


class TestMultihead:
    """Scores of `nn.MultiheadAttention` against the weights that it returns."""

    @pytest.mark.parametrize("batch_first", [True, False])
    @pytest.mark.parametrize("masks", ["none", "padding", "bool", "float", "heads"])
    @pytest.mark.parametrize("wide", [False, True])
    def test_the_softmax_of_the_scores_is_what_it_returns(self, batch_first: bool, masks: str, wide: bool) -> None:
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, kdim=6 if wide else None, batch_first=batch_first).double().eval()
        query, key = torch.randn(3, 5, 8).double(), torch.randn(3, 7, 6 if wide else 8).double()
        value = torch.randn(3, 7, 8).double()
        given: dict[str, Any] = {
            "none": {},
            "padding": {"key_padding_mask": torch.arange(7).expand(3, 7) > 4},
            "bool": {"attn_mask": torch.ones(5, 7, dtype=torch.bool).triu(3)},
            "float": {"attn_mask": torch.randn(5, 7).double()},
            "heads": {"attn_mask": torch.randn(6, 5, 7).double()},
        }[masks]
        if not batch_first:
            query, key, value = (one.transpose(0, 1) for one in (query, key, value))
        expected = layer(query, key, value, average_attn_weights=False, **given)[1]
        score = multihead_scores(layer, query, key, value, **given)
        assert score is not None
        assert torch.allclose(score.softmax(-1), expected, rtol=1e-10)

    def test_without_a_batch_axis(self) -> None:
        layer, x = nn.MultiheadAttention(8, 2).double(), torch.randn(5, 8).double()
        score = multihead_scores(layer, x, x, x)
        assert score is not None
        assert torch.allclose(score.softmax(-1)[0], layer(x, x, x, average_attn_weights=False)[1])

    def test_added_keys_are_refused(self) -> None:
        x = torch.randn(2, 5, 8)
        assert multihead_scores(nn.MultiheadAttention(8, 2, add_zero_attn=True), x, x, x) is None
        assert multihead_scores(nn.MultiheadAttention(8, 2, add_bias_kv=True), x, x, x) is None


def test_stand_ins_on_top_of_each_other_leave_the_module_as_it_was() -> None:
    layer = nn.Linear(2, 2)
    first = StandIn(layer)
    first.put()
    second = StandIn(layer)
    second.put()
    first.remove()
    second.remove()
    assert "forward" not in vars(layer)
