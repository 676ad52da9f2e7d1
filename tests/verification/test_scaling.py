"""Growth with in-degree: exponents against known laws, and the share of one-hot heads on an unseen graph."""

import math

import pytest
import torch

from gnnstab.errors import NothingEvaluable, UsageError
from gnnstab.observation import measured_signals
from gnnstab.probe.batches.arguments import as_arguments
from gnnstab.records.vocabulary import PRECISION_FP16_HEADROOM
from gnnstab.verification._growth import find_graph_call, grown, in_degrees
from gnnstab.verification.scaling import GROWING, Point, evaluate, scale
from gnnstab.verification.wording import as_json, scaling_text
from models.informarl import load_actor, sample_batch
from models.stacks import Hetero, Stack, hetero_batch, random_batch


def test_the_graph_is_found_inside_the_actor_and_grown_without_changing_its_kind():
    model, batch = load_actor(), sample_batch(3)
    call = find_graph_call(model, as_arguments(batch, model)[0])
    assert call.name == "gnn"
    x, edges = call.graph
    pairs = {tuple(p) for p in torch.cat([edges[:1].t(), call.args[2][:]], 1).tolist()}
    for factor in (0.5, 1.0, 2.5):
        args, _ = grown(call, factor, torch.Generator().manual_seed(0))
        assert args[0] is x
        assert args[1].size(1) == args[2].size(0)
        assert args[1].size(1) == pytest.approx(factor * edges.size(1), rel=0.05)
        # Every message that exists in the grown graph exists in the batch: same source, same distance.
        assert {tuple(p) for p in torch.cat([args[1][:1].t(), args[2]], 1).tolist()} <= pairs
    mean, _, nodes = in_degrees(grown(call, 2.0, torch.Generator().manual_seed(0)))
    assert (nodes, mean) == (576, pytest.approx(2 * 4.54, rel=0.02))


def test_the_one_hot_share_of_an_unseen_denser_graph_is_predicted():
    """From the 3-agent batch (in-degree 4.5) to the 7-agent batch (9.4), every layer within 0.1."""
    model = load_actor()
    found = scale(model, batch=sample_batch(3), factors=(1, 2, 3), precisions=("fp32",), seeds=1)
    true = measured_signals(model, sample_batch(7))
    for layer in ("gnn1", "gnn2.0", "gnn2.1"):
        share = true.value("attention.one_hot_share", layer=f"gnn.{layer}")
        assert found.predict("attention.one_hot_share", layer, 9.44) == pytest.approx(share, abs=0.1)
    limit = next(limit for limit in found.limits if (limit.what, limit.layer) == ("attention one-hot", "gnn1"))
    assert 4.5 < limit.degree < 9.4
    assert "in-degree" in scaling_text(found)
    assert "agents" not in found.summary
    assert '"limits"' in as_json(found)


@pytest.mark.parametrize("layers", [1, 20])
@pytest.mark.parametrize("power", [0.0, 0.3, 2.0])
def test_the_short_text_fits_a_screen_and_ends_with_the_first_limit(layers, power):
    names = [f"model.encoder.blocks.{i}.attention.of.a.long.name" for i in range(layers)]
    points = [
        Point(d, 10, "fp32", {
            **{f"{signal}|{name}": (1 + i) * d**power for signal in GROWING for i, name in enumerate(names)},
            **{f"{PRECISION_FP16_HEADROOM}|{name}": 1e4 * d**-power for name in names},
        })
        for d in (2.0, 4.0, 8.0, 16.0)
    ]  # fmt: skip
    found = evaluate(points)
    assert len(found.layers) == layers
    lines = scaling_text(found).splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80
    reached = [limit for limit in found.limits if math.isfinite(limit.degree)]
    last = " ".join(lines[-3:])
    assert (reached[0].sentence[:20] if reached else "no limit is reached") in last
    whole = scaling_text(found, verbose=True)
    assert all(limit.sentence in whole for limit in reached)
    assert all(exponent.layer in whole for exponent in found.exponents)


def test_graphs_are_laid_over_each_other_whole_and_no_node_gets_a_twin():
    """Two nodes of one triangle that shared a neighbour share the neighbours that are added, too."""
    triangle = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 1, 0, 2]])
    edges = torch.cat([triangle + 3 * i for i in range(8)], dim=1)
    call = find_graph_call(Stack(1, 4), ((), {"x": torch.randn(24, 4), "edge_index": edges}))
    _, kwargs = grown(call, 2.0, torch.Generator().manual_seed(0))
    new = kwargs["edge_index"][:, edges.size(1) :]
    graphs = {(int(a) // 3, int(b) // 3) for a, b in new.t()}
    assert len(graphs) == 8
    assert all(a != b and (b, a) not in graphs for a, b in graphs)
    assert torch.bincount(kwargs["edge_index"][1]).tolist() == [4] * 24


def known(exponent, precision="fp32"):
    """Points of a layer whose scores follow a power law exactly."""
    return [
        Point(d, 10, precision, {"score.std|c": 0.1 * d**exponent, "precision.fp16_headroom|c": 1e4 / d**2})
        for d in (2.0, 4.0, 8.0, 16.0)
    ]


def test_exponents_and_limits_of_a_power_law_are_exact():
    found = evaluate(known(2.0))
    (exponent,) = found.exponents
    assert exponent.value == pytest.approx(2.0)
    assert exponent.interval == (pytest.approx(2.0), pytest.approx(2.0))
    assert found.predict("score.std", "c", 32.0) == pytest.approx(0.1 * 32**2)
    (limit,) = found.limits
    assert (limit.what, limit.extrapolated, limit.degree) == ("fp16 overflow", True, pytest.approx(100.0))
    assert found.summary == "fp16 overflow from in-degree 100 (extrapolated) (c)"


def test_what_never_breaks_is_not_given_a_limit():
    flat = [Point(d, 10, "fp32", {"score.std|c": 1.0, "precision.fp16_headroom|c": 50.0}) for d in (2.0, 4.0, 8.0)]
    found = evaluate(flat)
    assert all(math.isinf(limit.degree) for limit in found.limits)
    assert "nothing breaks" in found.summary


@pytest.mark.parametrize("degrees", [(4.0,), (0.0, 0.0), (0.0, 4.0)])
def test_one_in_degree_shows_no_growth_and_no_absence_of_limits(degrees):
    found = evaluate([Point(d, 10, "fp32", {"score.std|c": 1.0, "precision.fp16_headroom|c": 50.0}) for d in degrees])
    assert "no limit was looked for" in found.summary


@pytest.mark.parametrize("drift", [0.0, 1e-9, -1e-9])
def test_a_nearly_flat_curve_has_neither_a_limit_nor_an_undefined_exponent(drift):
    points = [
        Point(d, 10, "fp32", {"score.max_abs|c": 1 + drift * d, "attention.entropy|c": 0.9 - drift * d})
        for d in (2.0, 4.0, 8.0)
    ]
    found = evaluate([*points, *(Point(p.degree, 10, "fp32", p.values | {"score.std|c": 1.0}) for p in points)])
    assert found.limits and all(math.isinf(limit.degree) for limit in found.limits)
    assert all(abs(v) < 1e-6 for e in found.exponents for v in (e.value, *e.interval))


def test_scatter_widens_the_interval():
    values = (0.4, 1.2, 6.0, 30.0)
    points = [Point(d, 9, "fp32", {"score.std|c": v}) for d, v in zip((2.0, 4.0, 8.0, 16.0), values, strict=True)]
    low, high = evaluate(points).exponents[0].interval
    assert low < 2.1 < high
    assert high - low > 0.3


def test_what_cannot_be_scaled_is_refused():
    with pytest.raises(UsageError, match="homogeneous"):
        scale(Hetero(), batch=hetero_batch())
    with pytest.raises(UsageError, match="positive"):
        scale(Stack(1, 8), batch=random_batch(8, 3, 8), factors=(0.0,))
    for factor in (math.nan, math.inf):
        with pytest.raises(UsageError, match="finite"):
            scale(Stack(1, 8), batch=random_batch(8, 3, 8), factors=(1.0, factor))
    for nodes, factor in ((8, 1e9), (8, 2000.0), (5000, 100.0)):
        with pytest.raises(UsageError, match="too large to run"):
            scale(Stack(1, 8), batch=random_batch(nodes, 3, 8), factors=(factor,))
    alone = {"x": torch.randn(5, 8), "edge_index": torch.empty(2, 0, dtype=torch.long)}
    with pytest.raises(NothingEvaluable, match="no edges"):
        scale(Stack(1, 8), batch=alone)
    with pytest.raises(UsageError, match="was not measured"):
        evaluate(known(1.0)).predict("score.std", "d", 3.0)
    with pytest.raises(UsageError, match="above 0"):
        evaluate(known(1.0)).predict("score.std", "c", 0.0)


def test_a_graph_whose_nodes_have_hardly_any_neighbours_has_a_table_without_that_degree():
    values = {"score.std|c": 1.0, "attention.one_hot_share|c": 0.1}
    found = evaluate([Point(d, 90, "fp32", values) for d in (0.0, 0.03, 2.0)])
    assert scaling_text(found, verbose=True).count("10%") == 1
