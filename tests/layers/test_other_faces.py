"""The kinds that are judged in a model: seen by the monitor and with a batch, nothing said of a healthy one; HGTConv also in a file."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GENConv, HGTConv, SuperGATConv

import gnnstab
from gnnstab.checkpoint._layers import find_layers
from gnnstab.layers import LAYERS, Layer
from gnnstab.probe.recorder import Recorder
from gnnstab.trace import TraceWriter
from layers.cases import METADATA, OTHERS, WIDTH, Case, called, made, over, plain
from layers.measured import FILE, Net, case_of
from probe.layers.generic_models import Dense, graph

EACH = over(OTHERS)


def total(out: Any) -> Tensor:
    parts = list(out.values()) if isinstance(out, dict) else [out]
    return torch.stack([part.square().mean() for part in parts]).sum()


def judged(diagnosis: gnnstab.Diagnosis, case: Case) -> None:
    assert (diagnosis.coverage.layers_observed, diagnosis.coverage.layers_expected) == (1, 1)
    assert not diagnosis.coverage.blind
    assert [f.code for f in diagnosis.findings if f.severity != "info"] == (["GS402"] if case.bare else [])
    assert [layer.kind for layer in diagnosis.layers if layer.attention] == [case.kind]
    names = {s.name for s in diagnosis.signals if s.layer == "conv"}
    assert {"attention.entropy", "attention.one_hot_share", "score.within_std", "score.max_abs"} <= names


@EACH
def test_a_healthy_model_is_seen_in_training_and_nothing_is_said(case: Case) -> None:
    layer, arguments = made(case)
    alone, net = copy.deepcopy(layer), Net(layer)
    if not list(net.parameters()):
        return
    losses: list[list[float]] = []
    for model in (Net(alone), net):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        torch.manual_seed(3)
        monitor = gnnstab.Monitor(model, optimizer=optimizer, schedule=2) if model is net else None
        if monitor is not None:
            monitor.__enter__()
        losses.append([])
        for _ in range(5):
            loss = total(model(*arguments))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
        if monitor is not None:
            monitor.__exit__(None, None, None)
            judged(monitor.diagnose(), case)
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), layer.parameters(), strict=True))


@EACH
def test_a_healthy_model_with_a_batch_has_no_warning(case: Case) -> None:
    layer, arguments = made(case)
    judged(gnnstab.diagnose(Net(layer), batch=arguments, loss=lambda out, _: total(out)), case)


@pytest.mark.slow
# A layer that adds self-loops breaks the graph, and the compiler then looks at the gradient of what is handed over.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.kind)
def test_a_compiled_model_computes_the_same_and_what_is_not_seen_is_named(kind: Layer) -> None:
    layer, arguments = made(case_of(kind))
    # What a graph hides is decided where it is captured; what is traced beneath it, for backwards, is the same for all.
    backend = "aot_eager" if kind.kind in ("TransformerConv", "HGTConv") else "eager"
    layer.eval()
    net, expected = Net(layer), called(layer, arguments)
    torch.compiler.reset()
    with TraceWriter(None) as writer, Recorder(net, writer) as recorder:
        assert torch.allclose(called(torch.compile(net, backend=backend), arguments), expected, atol=1e-6)
        recorder.end_step()
        assert not recorder.state.error_guard.events
        coverage = recorder.coverage
    assert coverage.layers_observed == 1
    unseen = {b.site for b in coverage.blind if "not seen inside a compiled graph" in b.reason}
    told = json.loads(FILE.read_text(encoding="utf-8"))[kind.kind]["under `torch.compile`"]
    assert ("score" in unseen) == (told == "input and output")
    assert told in ("scores", "input and output")


class Exponentials(nn.Module):
    """Attention over edges without any softmax of a library."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(16, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        source, target = edge_index
        weight = torch.exp(-self.score(x[source]).abs())
        total = torch.zeros(len(x), 1).index_add(0, target, weight)
        return torch.zeros(len(x), 16).index_add(0, target, weight * x[source]) / total.clamp(min=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Dense, Exponentials])
def test_a_compiled_hand_written_attention_is_named_as_not_seen(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net, (x, edge_index, _) = Net(kind()), graph()
    arguments = (x,) if kind is Dense else (x, edge_index)
    torch.compiler.reset()
    with TraceWriter(None) as writer, Recorder(net, writer) as recorder:
        torch.compile(net, backend="aot_eager")(*arguments)
        recorder.end_step()
        (line,) = [b for b in recorder.coverage.blind if b.layer == "conv"]
    assert kind.__name__ in line.site
    assert "not seen inside a compiled graph" in line.reason


def test_a_convolution_that_sums_by_softmax_is_judged_through_its_aggregation() -> None:
    torch.manual_seed(0)
    net, arguments = Net(GENConv(WIDTH, 4, aggr="softmax", learn_t=True)), plain()
    diagnosis = gnnstab.diagnose(net, batch=arguments, loss=lambda out, _: total(out))
    assert [layer.name for layer in diagnosis.layers if layer.attention] == ["conv.aggr_module"]
    assert {s.layer for s in diagnosis.signals if s.name == "attention.entropy"} == {"conv.aggr_module"}
    assert not [f for f in diagnosis.findings if f.severity != "info"]


def test_a_model_that_keeps_its_attention_is_diagnosed_with_a_note() -> None:
    torch.manual_seed(0)
    net, arguments = Net(SuperGATConv(WIDTH, 4, heads=3)), plain()
    net(*arguments)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(net)
    diagnosis = gnnstab.diagnose(net, batch=arguments, loss=lambda out, _: total(out))
    assert diagnosis.coverage.layers_observed == 1
    assert any("keeps conv.att_x" in note for note in diagnosis.target.notes)
    assert net.conv.att_x.grad_fn is not None


class TestHGTInAFile:
    """From keys and shapes alone."""

    def test_it_is_judged_and_reported_calmly(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        path = tmp_path / "model.pt"
        torch.save(nn.ModuleList(HGTConv(16, 16, METADATA, heads=4) for _ in range(2)).state_dict(), path)
        diagnosis = gnnstab.diagnose(path)
        assert [(layer.kind, layer.heads, layer.out_channels) for layer in diagnosis.layers] == [("HGTConv", 4, 4)] * 2
        assert not [f for f in diagnosis.findings if f.severity != "info"]

    @pytest.mark.parametrize("gain", [1.0, 3.0])
    def test_the_static_spread_is_that_of_the_relation_where_it_is_largest(self, gain: float) -> None:
        """Against the bilinear form written out in float64."""
        torch.manual_seed(0)
        layer = HGTConv(6, 6, METADATA, heads=2)
        with torch.no_grad():
            layer.p_rel["b__s__a"].fill_(gain)
        ((stored,), blind, _) = find_layers(dict(layer.state_dict()))
        assert not blind
        told = stored.kind.logits(stored, 2)["logit.spectral_qk"]
        weights = {kind: layer.kqv_lin.lins[kind].weight.detach().double() for kind in "ab"}
        for head in range(2):
            sizes = []
            for position, (source, name, target) in enumerate(METADATA[1]):
                rows = slice(3 * head, 3 * head + 3)
                key, query = weights[source][:6][rows], weights[target][6:12][rows]
                mapped = layer.k_rel.weight.detach().double()[head * 3 + position].T @ key
                prior = layer.p_rel[f"{source}__{name}__{target}"].detach().double()[0, head]
                sizes.append(float(prior.abs() * torch.linalg.matrix_norm(query.T @ mapped, 2) / 3**0.5))
            assert told[head] == pytest.approx(max(sizes))

    @pytest.mark.parametrize(
        ("old", "new", "why"),
        [
            ("p_rel.a__r__b", "p_rel.ab", "not source__relation__target"),
            ("kqv_lin", "k_lin", "but no p_rel and kqv_lin"),
        ],
    )
    def test_a_lookalike_is_refused(self, old: str, new: str, why: str) -> None:
        state = HGTConv(6, 6, METADATA, heads=2).state_dict()
        layers, blind, _ = find_layers({name.replace(old, new): tensor for name, tensor in state.items()})
        assert not layers
        assert why in blind[0].reason

    def test_a_wrong_shape_is_refused(self) -> None:
        state = dict(HGTConv(6, 6, METADATA, heads=2).state_dict())
        state["v_rel.weight"] = torch.zeros(6, 2, 3)
        layers, blind, _ = find_layers(state)
        assert not layers
        assert "v_rel.weight is (6, 2, 3), expected (6, 3, 3)" in blind[0].reason


class TestMultiheadInAFile:
    """From keys and shapes alone."""

    @pytest.mark.parametrize("widths", [{}, {"kdim": 4, "vdim": 5}])
    def test_it_is_judged_and_reported_calmly(self, widths: dict[str, int], tmp_path: Path) -> None:
        torch.manual_seed(0)
        path = tmp_path / "model.pt"
        layers = nn.ModuleList(nn.MultiheadAttention(16, 4, **widths) for _ in range(2))
        torch.save({"state_dict": layers.state_dict(), "config": {"num_heads": 4}}, path)
        diagnosis = gnnstab.diagnose(path)
        assert [(layer.kind, layer.heads) for layer in diagnosis.layers] == [("MultiheadAttention", 4)] * 2
        assert not [f for f in diagnosis.findings if f.severity != "info"]
        assert {s.layer for s in diagnosis.signals if s.name == "logit.frobenius"} == {"0", "1"}

    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"logit_scale": (3, 1, 1)}, "has logit_scale beside"),
            ({"in_proj_bias": None}, "a bias on one side alone"),
            ({"bias_k": (1, 1, 6), "bias_v": (1, 1, 6)}, "adds a learned key"),
            ({"in_proj_weight": (12, 6)}, "in_proj_weight is (12, 6), expected (18, 6)"),
            ({"out_proj.weight": (6, 5)}, "out_proj.weight is (6, 5), expected (6, 6)"),
        ],
    )
    def test_a_lookalike_is_refused(self, changed: dict[str, Any], why: str) -> None:
        state = dict(nn.MultiheadAttention(6, 2).state_dict())
        for name, shape in changed.items():
            state |= {name: torch.zeros(shape)} if shape else {}
            if shape is None:
                del state[name]
        layers, blind, _ = find_layers(state)
        assert not layers
        (line,) = blind
        assert why in line.reason

    def test_a_map_out_alone_is_no_attention(self) -> None:
        state = {k: v for k, v in nn.MultiheadAttention(6, 2).state_dict().items() if k.startswith("out_proj")}
        assert find_layers(state) == ([], [], {})


@pytest.mark.parametrize("kind", ["SuperGATConv", "HEATConv", "GeneralConv", "HypergraphConv"])
def test_in_a_bare_file_the_others_are_one_calm_line(kind: str, tmp_path: Path) -> None:
    layer, _ = made(next(c for c in OTHERS if c.kind == kind))
    path = tmp_path / "model.pt"
    torch.save(Net(layer).state_dict(), path)
    diagnosis = gnnstab.diagnose(path)
    (line,) = [f for f in diagnosis.findings if f.code == "GS901"]
    assert line.severity == "info"
    assert kind in line.message
