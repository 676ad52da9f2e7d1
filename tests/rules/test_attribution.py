"""From findings to causes: chains, masking, the five causes, advice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gnnstab.records import FIVE_CAUSES, Cause, Finding, LayerFacts, Signal, Signals
from gnnstab.rules import advice, causes, run
from gnnstab.rules.explanation import explain

CONV: dict[str, Any] = {
    "dropout": 0.0, "beta": False, "root_weight": True, "identity_path": False, "activation": "relu",
    "in_channels": (16, 16), "out_channels": 16, "heads": 3, "concat": False, "edge_dim": 1,
}  # fmt: skip


def model(
    depth: int, *values: Signal, others: tuple[str, ...] = (), context: dict[str, Any] | None = None, **facts: Any
) -> Signals:
    before = tuple(LayerFacts(name, "Embed", i, False, aggregation="add") for i, name in enumerate(others))
    convs = tuple(
        LayerFacts.of(f"conv{i}", "TransformerConv", len(before) + i, True, **{**CONV, **facts}) for i in range(depth)
    )
    return Signals("model", (*before, *convs), values, context=context or {})


def attention(layer: str, entropy: float, unit: float, one_hot: float = 0.0) -> tuple[Signal, ...]:
    return (
        Signal("attention.entropy", entropy, layer),
        Signal("attention.one_hot_share", one_hot, layer),
        Signal("attention.entropy_unit_input", unit, layer),
    )


def judge(signals: Signals) -> tuple[dict[str, Cause], dict[str, str | None]]:
    outcome = run(signals)
    found = causes(outcome.findings, outcome.statuses, signals)
    assert tuple(cause.cause for cause in found[:5]) == FIVE_CAUSES
    assert all(cause.reason for cause in found)
    return {cause.cause: cause for cause in found}, {finding.code: finding.explained_by for finding in outcome.findings}


def roots(found: dict[str, Cause]) -> list[str]:
    return [name for name, cause in found.items() if cause.status == "root-cause"]


ACTOR_7 = (
    *attention("conv0", 0.229, 0.988, 0.423),
    *attention("conv1", 0.457, 0.956, 0.179),
    *attention("conv2", 0.813, 0.940, 0.011),
    Signal("aggregation.exponent", 0.95, "embed"),
    Signal("aggregation.rms", 6.1, "embed"),
    Signal("degree.median", 9.0),
    Signal("score.max_abs", 130.7, "conv0"),
    Signal("feature.rms", 0.76),
    Signal("feature.column_ratio", 1.4),
)


def test_the_sum_is_the_root_and_the_five_say_what_they_are() -> None:
    found, explained = judge(model(3, *ACTOR_7, others=("embed",)))
    assert roots(found) == ["sum-aggregation"]
    assert explained == {"GS302": "GS401", "GS401": None}
    assert found["no-dropout"].status == "present"
    assert "dropout=0.0 in 3 of 3 layers" in found["no-dropout"].reason
    assert found["beta-disabled"].status == found["no-residual"].status == "present"
    assert found["attention-explosion"].status == "contributing"
    assert found["unsuitable-init"].status == "absent"


def test_without_a_sum_the_attention_itself_is_the_root() -> None:
    found, _ = judge(model(1, *attention("conv0", 0.2, 0.2)))
    assert roots(found) == ["attention-explosion"]


def test_features_come_before_the_sum_they_make_large() -> None:
    scale = (Signal("feature.rms", 60.0), Signal("feature.column_ratio", 2.0))
    growth = (Signal("aggregation.exponent", 1.0, "embed"), Signal("aggregation.rms", 90.0, "embed"))
    found, explained = judge(model(1, *attention("conv0", 0.05, 0.9), *scale, *growth, others=("embed",)))
    assert roots(found) == ["feature-scale"]
    assert explained["GS401"] == explained["GS302"] == "GS406"
    assert found["sum-aggregation"].status == "contributing"


@pytest.mark.parametrize(("share", "follows"), [(0.9, True), (0.1, False)])
def test_steps_that_sums_make_steep_follow_from_features_without_which_steps_learn(share: float, follows: bool) -> None:
    steep = Signal("optimizer.loss_rise", 3.1, source="steps", detail={
        "optimizer": "Adam", "lr": 0.005, "first": 4e6, "above": 4, "peak": 1, "calm_as_means": ["embed"]})  # fmt: skip
    told = {"names": ["x"], "learns": False, "first": 4e6, "best": 70.0, "undone": 0.5, "zeros": 1.5, "steps": 17}
    large = Signal("place.rms", 2e5, "x", source="batch", detail={"arrives": True})
    tried = Signal(
        "optimizer.input_share", share, source="steps", detail={"optimizer": "Adam", "objective": "it", **told}
    )
    found, explained = judge(model(1, steep, large, tried, others=("embed",)))
    assert explained["GS401"] == ("GS406" if follows else None)
    assert ("sum-aggregation" in roots(found)) is not follows


def test_no_identity_path_explains_vanishing() -> None:
    found, explained = judge(model(16, Signal("gradient.ratio", 1.4e-5)))
    assert roots(found) == ["no-residual"]
    assert explained["GS203"] == "GS103"


def test_dead_units_mask_depth() -> None:
    found, explained = judge(model(8, Signal("gradient.ratio", 1e-6), Signal("channels.dead_share", 1.0, "conv3")))
    assert roots(found) == ["dead-units"]
    assert explained["GS203"] == explained["GS103"] == "GS701"


def test_depth_masks_smoothing_and_eps() -> None:
    found, explained = judge(
        model(
            16,
            Signal("gradient.ratio", 1e-5),
            Signal("smoothness.relative", 0.001, "conv15"),
            Signal("smoothness.relative_input", 0.9, "conv0"),
            Signal("optimizer.below_eps_share", 0.9, "conv0", detail={"parameter": "conv0.lin_value.weight"}),
        )
    )
    assert roots(found) == ["no-residual"]
    assert explained["GS704"] == explained["GS602"] == "GS203"


def test_smoothing_alone_is_the_root() -> None:
    values = (
        Signal("gradient.ratio", 0.13),
        Signal("smoothness.relative", 0.013, "conv15"),
        Signal("smoothness.relative_input", 0.9, "conv0"),
    )
    assert roots(judge(model(16, *values))[0]) == ["oversmoothing"]


def test_explosion_points_to_the_gain_and_the_missing_gate_adds() -> None:
    found, _ = judge(model(12, Signal("gradient.ratio", 5e4)))
    assert roots(found) == ["unsuitable-init"]
    assert found["beta-disabled"].status == "contributing"


def test_a_norm_behind_the_layer_explains_explosion() -> None:
    found, explained = judge(
        model(16, Signal("gradient.ratio", 5e4), Signal("gradient.slope", 0.4), norm_after="GraphNorm")
    )
    assert roots(found) == ["normalization-misuse"]
    assert explained["GS204"] == "GS106"


def test_saturation_by_large_gains_belongs_to_the_explosion() -> None:
    weights = (
        Signal("logit.frobenius", 7.8, "conv0", 0, source="weights"),
        Signal("gain.value", 2.8, "conv0", source="weights"),
    )
    found, explained = judge(model(8, *attention("conv0", 0.2, 0.25), *weights, Signal("gradient.ratio", 4e3)))
    assert roots(found) == ["unsuitable-init"]
    assert explained["GS301"] == "GS204"


def test_sharp_attention_explains_a_growing_gradient() -> None:
    weights = (
        Signal("logit.frobenius", 30.0, "conv0", 0, source="weights"),
        Signal("gain.value", 0.6, "conv0", source="weights"),
    )
    found, explained = judge(model(8, *attention("conv0", 0.05, 0.08), *weights, Signal("gradient.ratio", 4e3)))
    assert roots(found) == ["attention-explosion"]
    assert explained["GS204"] == "GS301"


def test_a_bare_file_says_what_it_cannot_show() -> None:
    layers = tuple(LayerFacts.of(f"conv{i}", "TransformerConv", i, True, beta=False) for i in range(3))
    signals = Signals("checkpoint", layers, (Signal("logit.frobenius", 0.6, "conv0", 0, source="weights"),))
    found, _ = judge(signals)
    assert {name: found[name].status for name in FIVE_CAUSES} == {
        "no-dropout": "not-evaluable",
        "beta-disabled": "present",
        "no-residual": "not-evaluable",
        "attention-explosion": "not-evaluable",
        "unsuitable-init": "absent",
    }
    assert "--model" in found["no-dropout"].reason
    assert "--batch" in found["attention-explosion"].reason
    assert found["sum-aggregation"].status == "not-evaluable"


def test_static_sharpness_only_adds_to_a_measured_symptom() -> None:
    weights = (
        Signal("logit.frobenius", 1.65, "conv0", 2, source="weights"),
        Signal("logit.alignment", 2.2, "conv0", 2, source="weights"),
    )
    values = (*attention("conv0", 0.06, 0.75, 0.8), *weights, *(s for s in ACTOR_7 if s.name.startswith("aggregation")))
    found, explained = judge(model(3, *values, others=("embed",)))
    assert roots(found) == ["sum-aggregation"]
    assert found["attention-explosion"].status == "contributing"
    assert found["attention-explosion"].codes == ("GS301", "GS302")
    assert explained["GS301"] is None


def test_no_layer_at_all() -> None:
    found, _ = judge(Signals("model", ()))
    assert {found[name].status for name in FIVE_CAUSES} == {"not-evaluable"}


def codes_of_advice(signals: Signals) -> dict[str, str]:
    return {a.code: a.reason for a in advice(run(signals).findings, signals)}


def test_a_healthy_network_gets_no_advice() -> None:
    assert codes_of_advice(model(3, *attention("conv0", 0.8, 0.9), Signal("degree.median", 9.0))) == {}


@pytest.mark.parametrize(
    ("signals", "expected", "number"),
    [
        (model(12, Signal("gradient.ratio", 5e4)), "W1", "5e+04"),
        (model(12, Signal("gradient.ratio", 1e-5)), "W2", "1e-05"),
        (model(12, Signal("gradient.ratio", 1e-5)), "W3", "1e-05"),
        (model(12, Signal("gradient.ratio", 5e4)), "W3", ".15"),
        (model(12, Signal("gradient.ratio", 1e-5)), "W4", "60 linear maps"),
        (model(3, Signal("graph.smallest", 1.0)), "W5", "1 node"),
        (model(3, *ACTOR_7, others=("embed",)), "W6", "6.3"),
        (model(3, context={"linear_initialisation": "orthogonal(1.41)"}), "W7", "3 attention layers"),
        (model(3, *ACTOR_7, others=("embed",)), "W8", "6.1"),
        (model(3, *ACTOR_7, others=("embed",)), "W9", "131"),
        (model(3, *ACTOR_7, others=("embed",)), "W10", "lin_root"),
        (model(3, *ACTOR_7, others=("embed",)), "W11", "9"),
        (model(12, Signal("gradient.ratio", 1e-5), in_channels=(8, 8)), "W12", "conv0"),
    ],
)
def test_advice_is_given_where_it_matters_with_its_number(signals: Signals, expected: str, number: str) -> None:
    reasons = [a.reason for a in advice(run(signals).findings, signals) if a.code == expected]
    assert reasons
    assert any(number in reason for reason in reasons)


def test_repaired_twin_loses_its_advice() -> None:
    broken = model(12, Signal("gradient.ratio", 1e-5))
    repaired = replace(broken, values=(Signal("gradient.ratio", 1.5),))
    assert {"W2", "W3", "W4"} <= set(codes_of_advice(broken))
    assert not codes_of_advice(repaired)


@pytest.mark.parametrize(
    ("cause", "drawn", "root"),
    [
        ("unsuitable-init", "embed.weight", True),
        ("dead-units", "embed.weight", False),
        ("unsuitable-init", "gate.bias", False),
    ],
)
def test_a_gate_that_weights_drawn_too_wide_have_shut_follows_from_them(cause: str, drawn: str, root: bool) -> None:
    """The steps that learn with all weights drawn anew drew those in front of the gate anew, too."""
    shut = Signal("place.gradient_stops", 4.0, "gate", detail={"operation": "sigmoid", "parameters": ["gate.weight"]})
    undone = {"cause": cause, "names": [drawn], "words": "drawing them anew", "suspect": "wide", "first": 2.0,
              "best": 1.8, "zeros": None, "at_any_rate": 1.7, "undone": 0.1, "steps": 30, "count": 1}  # fmt: skip
    found, explained = judge(model(2, shut, Signal("optimizer.undone", 0.9, source="steps", detail=undone)))
    assert explained["GS104"] == ("GS609" if root else None)
    assert explained["GS609"] == ("GS104" if drawn == "gate.bias" else None)
    assert ("saturated-gate" not in roots(found)) is root and (cause in roots(found)) is (drawn != "gate.bias")


def wide_map(target: float, *, last: bool = True) -> Signals:
    """A map of gain 6 whose output has RMS 2.4, under a squared error with targets of this RMS."""
    gain = Signal("place.gain", 6.0, "head", detail={"table": False, "drawn": True, "last": last})
    size = Signal("loss.target_rms", target, detail={"output_rms": 2.4})
    return Signals("trace", (), (gain, size))


@pytest.mark.parametrize(
    ("signals", "told"),
    [
        (wide_map(20.0), False),
        (wide_map(2.4), False),
        (wide_map(1.0), True),
        (wide_map(20.0, last=False), True),
        (wide_map(1e-300), True),
    ],
)
def test_a_last_map_that_is_as_wide_as_its_targets_ask_is_let_be(signals: Signals, told: bool) -> None:
    assert ["GS201" in f.code for f in run(signals).findings if f.signal == "place.gain"] == [True] * told


def alike(kind: str, position: int, *values: Signal) -> tuple[Finding, Signals]:
    """Nodes that are alike from one place on, the first (0) or a later one, and what was measured."""
    layer = "x" if position == 0 else "mlp.0"
    before = Signal("place.node_difference", 1e-4 if position == 0 else 0.9, "x", detail={"position": 0})
    found = Signal("place.node_difference", 1e-4, layer, detail={"position": position})
    same = found_by("GS704", "indistinguishable-nodes", "place.node_difference", layer, "the nodes are alike")
    return same, Signals(kind, (), (*values, before, found))


def found_by(code: str, cause: str, signal: str, layer: str, message: str) -> Finding:
    return Finding(code, "n", cause, "warning", "high", layer, None, None, signal, 1.0, 0.0, "", message)


@pytest.mark.parametrize(
    ("kind", "position", "of", "expected"),
    [
        ("trace", 3, "the targets `y` of the batch have RMS 3e+05", "GS406"),
        ("trace", 0, "the targets `y` of the batch have RMS 3e+05", None),
        ("trace", 3, "the input `x` of the batch has RMS 3e+05", None),
        ("model", 3, "the targets `y` of the batch have RMS 3e+05", None),  # nothing has driven its weights
    ],
)
def test_targets_far_away_make_nodes_alike_that_were_not_at_first(
    kind: str, position: int, of: str, expected: str | None
) -> None:
    same, signals = alike(kind, position)
    scale = found_by("GS406", "feature-scale", "place.rms", "y", of)
    assert explain([scale, same], signals)[1].explained_by == expected


@pytest.mark.parametrize(
    ("operation", "position", "expected"), [("tanh", 3, "GS601"), ("tanh", 0, None), ("layer_norm", 3, None)]
)
def test_a_rate_that_has_shut_gates_makes_nodes_alike(operation: str, position: int, expected: str | None) -> None:
    shut = Signal("place.gradient_stops", 26.0, "conv", detail={"operation": operation})
    same, signals = alike("model", position, shut)
    rate = found_by("GS601", "learning-rate", "optimizer.lr_to_rms", "conv", "the rate is too high")
    assert explain([rate, same], signals)[1].explained_by == expected


def test_norms_in_front_of_a_mask_of_the_wrong_way_follow_from_it() -> None:
    taken = Signal("place.graph_difference", 0.0, "norm", detail={"target_follows": 0.9})
    closed = Signal("place.closed_content", 1.0, "norm")
    found, explained = judge(model(2, taken, closed, Signal("place.rms", 1.0, "x")))
    assert roots(found) == ["masking"] and explained["GS108"] == "GS305"
    found, explained = judge(model(2, taken, Signal("place.rms", 1.0, "x")))
    assert roots(found) == ["normalization-misuse"] and explained["GS108"] is None


@pytest.mark.parametrize(("signal", "root"), [("place.shared_answers", "GS704"), ("smoothness.relative", "GS305")])
def test_equal_weights_follow_from_nodes_that_come_in_alike_and_nodes_from_equal_weights(
    signal: str, root: str
) -> None:
    said: dict[str, Any] = {
        "head": None,
        "step": None,
        "unit": "",
        "severity": "warning",
        "confidence": "high",
        "layer": "x",
        "message": "…",
        "value": 1.0,
        "threshold": 0.5,
    }
    alike = Finding(code="GS704", name="oversmoothing", cause="indistinguishable-nodes", signal=signal, **said)
    equal = Finding(
        code="GS305", name="softmax-misused", cause="normalization-misuse", signal="place.uniform_weights", **said
    )
    found = explain([alike, equal], Signals("model", ()))
    assert [f.code for f in found if f.explained_by is None] == [root]
