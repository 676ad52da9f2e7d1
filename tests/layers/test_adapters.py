"""Every kind in the table: watched without a trace, recomputed, recovered from its tensors, edited."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.conv import transformer_conv

from gnnstab import fixes
from gnnstab.checkpoint._layers import find_layers
from gnnstab.checkpoint._loading import Checkpoint
from gnnstab.checkpoint._rebuilding import rebuild
from gnnstab.checkpoint._recovery import recover
from gnnstab.errors import FixError
from gnnstab.fixes.printing import constructor_call
from gnnstab.layers import LAYERS, Call, Layer, layer_named, layer_of, plays
from gnnstab.layers.base import ROLES
from gnnstab.probe.layers._attention import together
from gnnstab.probe.layers._multihead import multihead_scores
from gnnstab.probe.layers.layer_recorder import parts
from gnnstab.probe.recorder import Recorder
from gnnstab.records import STAGES, LayerFacts
from gnnstab.trace import TraceWriter
from layers.cases import CASES, METADATA, RECOMPUTED, Case, called, made, over, watched

EACH = over(CASES)
EACH_RECOMPUTED = over(RECOMPUTED)
EACH_IN_A_FILE = over([c for c in CASES if c.adapter.essential])


def kind_of(layer: nn.Module) -> Layer:
    found = layer_of(layer)
    assert found is not None
    return found


def call_of(layer: Any, arguments: tuple[Any, ...]) -> Call:
    """One call as the recorder puts it together."""
    kind = kind_of(layer)
    gates: list[Tensor] = []
    gate = kind.gate(layer)
    handle = None if gate is None else gate.register_forward_hook(lambda _, __, out: gates.append(out.sigmoid()))
    output, listener = watched(layer, arguments)
    if handle is not None:
        handle.remove()
    seen = together(listener.seen, len(output))
    source, target, features = kind.edges(layer, arguments, {}, seen.index)
    x_source, x_target = kind.nodes(parts(arguments[0]))
    groups = len(output) if seen.size is None else seen.size
    message = kind.joined(layer, listener.messages[0], target, groups) if len(listener.messages) == 1 else None
    gate_out = gates[0] if gates else None
    tensors = (seen.score, seen.attention, output.detach(), gate_out, message)
    return Call(x_source, x_target, source, target, features, *tensors, groups=groups)


def scores_of(layer: Any, arguments: tuple[Any, ...]) -> Tensor:
    """(E, H) scores of one call, by the watched softmax or computed once more."""
    if not kind_of(layer).fused:
        return call_of(layer, arguments).score
    found = multihead_scores(layer, *arguments)
    assert found is not None
    return found[0].detach().flatten(1).T


def test_every_kind_has_cases_and_every_case_its_kind() -> None:
    assert {case.kind for case in CASES} == {layer.kind for layer in LAYERS}
    assert all(kind_of(made(case)[0]).kind == case.kind for case in CASES)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.kind)
def test_the_table_speaks_the_common_words(layer: Layer) -> None:
    assert set(layer.roles) <= set(ROLES)
    assert set(layer.stages.values()) <= set(STAGES)
    assert "score" in layer.roles
    assert layer_named(layer.kind) is layer
    assert all(plays(f"a.b.{part}.weight", "value") for part in layer.roles.get("value", ()))
    assert layer.static
    assert all(factor.name.partition(".")[0] in layer.roles["score"] for factor in getattr(layer, "factors", ())) or (
        layer.kind == "HGTConv"  # Its prior is set to one and not drawn.
    )
    assert not plays("a.b.weight", "value")
    assert all(callable(getattr(layer, edit)) for edit in layer.edits)


@EACH
def test_the_recorder_sees_scores_and_leaves_no_hook(case: Case) -> None:
    layer, arguments = made(case)
    expected, hooks = called(layer, arguments), [len(m._forward_hooks) for m in layer.modules()]
    with TraceWriter(None) as writer, Recorder(layer, writer) as recorder:
        assert torch.equal(called(layer, arguments), expected)
        assert recorder.coverage.layers_observed == recorder.coverage.layers_expected == 1
        assert not {b.site for b in recorder.coverage.blind} & {"score", "attention", "output", "input"}
    assert [len(m._forward_hooks) for m in layer.modules()] == hooks


@EACH_RECOMPUTED
def test_recomputed_scores_are_the_layers_own(case: Case) -> None:
    layer, arguments = made(case)
    call = call_of(layer, arguments)
    scores = kind_of(layer).scores(layer, call, call.x_source, call.x_target)
    assert scores is not None
    assert torch.allclose(scores, call.score, atol=1e-6)


@EACH_RECOMPUTED
def test_message_and_skip_make_up_the_output(case: Case) -> None:
    layer, arguments = made(case)
    layer.eval()
    kind, call = kind_of(layer), call_of(layer, arguments)
    skip = kind.skip(layer, call.x_target)
    told = kind.message(layer, call, skip)
    if call.gate is not None:
        assert told is None
        assert call.message is not None
        assert skip is not None
        assert torch.allclose(call.gate * skip + (1 - call.gate) * call.message, call.output, atol=1e-6)
        return
    assert told is not None
    if call.message is not None:
        assert torch.allclose(call.message, told, atol=1e-6)
    assert torch.allclose(told + (0 if skip is None else skip), call.output, atol=1e-6)


@EACH
def test_the_largest_intermediate_is_a_factor_of_at_least_one(case: Case) -> None:
    layer = made(case)[0]
    product = kind_of(layer).product(layer)
    if product is not None:
        assert product >= 1
        assert math.isfinite(product)


@EACH_IN_A_FILE
def test_from_tensors_to_facts_to_the_same_output(case: Case) -> None:
    layer, arguments = made(case)
    layer.eval()
    tensors = {f"net.conv.{name}": tensor for name, tensor in layer.state_dict().items()}
    (stored,), blind, _ = find_layers(tensors)
    assert not blind
    assert stored.kind is kind_of(layer)
    assert stored.parameters().keys() == tensors.keys()
    checkpoint = Checkpoint("x.pt", "pt", 0, tensors, {"": tuple(tensors)}, known={"net.conv": _known(layer)})
    facts = recover(checkpoint)
    (found,) = facts.layers
    live = stored.kind.facts("net.conv", layer, 0)
    for name in (
        "kind",
        "in_channels",
        "out_channels",
        "heads",
        "concat",
        "edge_dim",
        "bias",
        "aggregation",
        "dropout",
    ):
        assert found.get(name) == live.get(name), name
    built = rebuild(facts, checkpoint).model.get_submodule("net.conv")
    assert torch.equal(called(built, arguments), called(layer, arguments))


def _known(layer: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in kind_of(layer).facts("", layer, 0).flat().items() if v is not None}


@EACH
def test_the_printed_constructor_makes_such_a_layer(case: Case) -> None:
    layer, _ = made(case)
    facts = kind_of(layer).facts("conv", layer, 0)
    if "dropout" in kind_of(layer).defaults and not getattr(layer, "mod", None):
        text = fixes.change("dropout", [facts], p=layer.dropout or 0.1).split("  #")[0]
    else:
        text = constructor_call(facts)
    if "..." in text or not kind_of(layer).prints:
        assert case.name == "widths" or not kind_of(layer).prints
        return
    again = eval(text, {case.kind: case.layer, "metadata": METADATA})
    assert {n: t.shape for n, t in again.state_dict().items()} == {n: t.shape for n, t in layer.state_dict().items()}


class TestEdits:
    """Each edit that a kind says it supports does what it says; the others are refused."""

    @pytest.mark.parametrize("edit", ["scale_scores", "add_gate", "switch_skip_on", "reinitialise"])
    @EACH
    def test_it_applies_or_is_refused(self, case: Case, edit: str) -> None:
        layer, arguments = made(case)
        kind = kind_of(layer)
        with torch.no_grad():
            if not kind.applies(edit):
                with pytest.raises(FixError, match=kind.kind):
                    getattr(kind, edit)(layer, *({"scale_scores": ([1.0],), "reinitialise": ((),)}.get(edit, ())))
                return
            getattr(self, edit)(kind, layer, arguments)

    def scale_scores(self, kind: Layer, layer: Any, arguments: Any) -> None:
        facts, before = kind.facts("conv", layer, 0), scores_of(layer, arguments)
        heads = facts.heads or 1
        mixed, small = [0.5, 1.0, 2.0][:heads], [0.5, 1.0, 0.25][:heads]
        if layer.__dict__.get("attention_type") in ("SD", "dot_product"):
            with pytest.raises(FixError, match=kind.kind):
                kind.scale_scores(layer, mixed)
            return

        def expected(factors: list[float]) -> Tensor:
            return before * torch.tensor(factors).repeat_interleave(before.shape[1] // heads)

        lines = kind.scale_lines("conv", facts, small)
        kind.scale_scores(layer, mixed)
        assert torch.allclose(scores_of(layer, arguments), expected(mixed), atol=1e-6)
        kind.scale_scores(layer, [1 / factor for factor in mixed])
        if kind.kind != "RGATConv":  # Its tensors do not tell whether the terms are added or multiplied.
            state = kind.scaled(layer.state_dict(), mixed)
            kind.scale_scores(layer, mixed)
            assert state
            assert all(torch.equal(layer.state_dict()[name], tensor) for name, tensor in state.items())
            kind.scale_scores(layer, [1 / factor for factor in mixed])
        for line in lines:
            exec(line, {"conv": layer})
        assert torch.allclose(scores_of(layer, arguments), expected(small), atol=1e-6)
        each = [0.5 + 0.1 * column for column in range(before.shape[1])]
        if len(each) == heads:
            return
        assert kind.kind == "RGATConv", "a head has one score, but for the columns of this product"
        for line in kind.scale_lines("conv", facts, [min(0.5 * factor, 0.99) for factor in each]):
            exec(line, {"conv": layer})
        assert torch.allclose(scores_of(layer, arguments), expected(small) * 0.5 * torch.tensor(each), atol=1e-6)

    def add_gate(self, kind: Layer, layer: Any, arguments: Any) -> None:
        if kind.gate(layer) is not None or not kind.has_skip(layer):
            return
        changed = fixes.apply(nn.ModuleDict({"conv": layer}), "beta")["conv"]
        assert kind.gate(changed) is not None
        assert not torch.equal(called(changed, arguments), called(layer, arguments))

    def switch_skip_on(self, kind: Layer, layer: Any, arguments: Any) -> None:
        if not kind.has_skip(layer):
            assert kind.skip(layer, call_of(layer, arguments).x_target) is None
            kind.switch_skip_on(layer)
        assert kind.has_skip(layer)
        assert kind.skip(layer, call_of(layer, arguments).x_target) is not None

    def reinitialise(self, kind: Layer, layer: Any, arguments: Any) -> None:
        before = copy.deepcopy(layer.state_dict())
        torch.manual_seed(7)
        for role, names in kind.roles.items():
            count = kind.reinitialise(layer, names)
            for name, tensor in layer.state_dict().items():
                if name.rpartition(".")[0] in names and name.endswith("weight"):
                    assert count
                    assert not torch.equal(tensor, before[name]), (role, name)


def test_a_copy_of_the_class_is_the_same_kind_and_a_namesake_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vendored.py").write_text(inspect.getsource(transformer_conv))
    monkeypatch.syspath_prepend(tmp_path)
    vendored = importlib.import_module("vendored").TransformerConv(6, 4, heads=3)
    assert layer_of(vendored) is LAYERS[0]
    assert not LAYERS[0].own_code(vendored)
    namesake = type("TransformerConv", (nn.Module,), {})()
    assert layer_of(namesake) is None


def test_facts_keep_apart_what_only_one_kind_has() -> None:
    facts = LayerFacts.of("a", "TransformerConv", 0, heads=2, beta=True)
    assert (facts.heads, facts.options, facts.get("beta"), facts.get("heads")) == (2, {"beta": True}, True, 2)
    assert facts.get("residual") is None
    assert facts.flat()["beta"] is True
    assert "options" not in facts.flat()
    assert hash(facts) == hash(LayerFacts.of("a", "TransformerConv", 0, heads=2, beta=False))


def test_targets_without_features_are_no_failure() -> None:
    torch.manual_seed(0)
    layer = pyg.GATConv((6, 5), 4, heads=3, add_self_loops=False)
    edges = torch.stack([torch.randint(0, 12, (40,)), torch.randint(0, 9, (40,))])
    arguments = ((torch.randn(12, 6), None), edges, None, (12, 9))
    expected = called(layer, arguments)
    with TraceWriter(None) as writer, Recorder(layer, writer) as recorder:
        assert torch.equal(called(layer, arguments), expected)
        assert not {b.site for b in recorder.coverage.blind} & {"score", "attention", "output", "input"}
