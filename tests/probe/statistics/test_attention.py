"""Scores and attention against plain loops in float64, real networks, and the laws they obey."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnstab.layers import LAYERS, Call
from gnnstab.probe.statistics import Measured, attention_measures
from gnnstab.probe.statistics._groups import group_sizes
from gnnstab.probe.statistics.attention import entropy_measures, precision_measures, score_measures
from models.informarl import load_actor, reference


def totals(numbers: dict[str, Measured]) -> dict[str, float]:
    return {name: float(value.total) for name, value in numbers.items()}


def of_scores(score: Tensor, index: Tensor, size: int) -> dict[str, Measured]:
    return score_measures(score, index, group_sizes(index, size))


def by_loops(score: Any, attention: Any, index: Any, size: int) -> dict[str, list[float]]:
    """Every number per head, then over all heads, written out target by target."""
    score, attention = score.double().numpy(), attention.double().numpy()
    edges_of = [[e for e, t in enumerate(index.tolist()) if t == node] for node in range(size)]
    heads = score.shape[1]
    variances, logs = [[] for _ in range(heads)], []
    entropies: list[list[float]] = [[] for _ in range(heads)]
    for edges in edges_of:
        if len(edges) >= 3:
            logs.append(math.log(len(edges)))
            for h in range(heads):
                values = [score[e, h] for e in edges]
                mean = sum(values) / len(values)
                variances[h].append(sum((v - mean) ** 2 for v in values) / len(values))
        if len(edges) >= 2:
            for h in range(heads):
                terms = [attention[e, h] * math.log(attention[e, h]) for e in edges if attention[e, h] > 0]
                entropies[h].append(-sum(terms) / math.log(len(edges)))
    per_head = [float(np.mean(v)) for v in variances]
    mean_log = float(np.mean(logs))
    sharp = [float(np.mean([e < 0.1 for e in head])) for head in entropies]
    return {
        "score.min": [*score.min(0), score.min()],
        "score.max": [*score.max(0), score.max()],
        "score.max_abs": [*abs(score).max(0), abs(score).max()],
        "score.std": [*score.std(0), score.std()],
        "score.within_std": [*np.sqrt(per_head), math.sqrt(np.mean(per_head))],
        "score.rho": [v / (2 * mean_log) for v in (*per_head, np.mean(per_head))],
        "attention.entropy": [*(float(np.mean(e)) for e in entropies), float(np.mean(entropies))],
        "attention.one_hot_share": [*sharp, float(np.mean(sharp))],
    }


@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
@pytest.mark.parametrize("heads", [1, 3])
def test_equal_to_plain_loops(made: Callable[..., Any], scale: float, heads: int) -> None:
    call, conv = made(scale=scale, heads=heads)
    found = attention_measures(call, LAYERS[0], conv)
    for name, expected in by_loops(call.score, call.attention, call.index_target, 20).items():
        measured = found[name]
        assert measured.per_head is not None
        assert [*measured.per_head.tolist(), float(measured.total)] == pytest.approx(expected, rel=1e-9, abs=1e-12), (
            name
        )


@pytest.mark.parametrize(
    ("agents", "run", "layer", "std", "low", "high", "rms", "peak", "entropy", "one_hot"),
    [
        (3, "healthy_3agents", "gnn1", 8.03, -39.8, 39.0, 2.381, 11.54, 0.476, 0.148),
        (3, "healthy_3agents", "gnn2.0", 3.48, -27.4, 14.3, 1.315, 6.16, 0.620, 0.070),
        (3, "healthy_3agents", "gnn2.1", 0.27, -2.0, 1.9, 0.507, 1.89, 0.991, 0.000),
        (7, "agents7_default", "gnn1", 26.50, -130.7, 89.8, 4.325, 17.83, 0.229, 0.423),
        (7, "agents7_default", "gnn2.0", 11.81, -97.5, 32.0, 2.375, 10.65, 0.457, 0.179),
        (7, "agents7_default", "gnn2.1", 3.73, -27.5, 8.3, 1.004, 3.70, 0.813, 0.011),
    ],
)
def test_the_real_networks_have_their_known_figures(
    agents: int, run: str, layer: str, std: float, low: float, high: float, rms: float, peak: float, entropy: float, one_hot: float
) -> None:  # fmt: skip
    tensors, model = reference(agents), load_actor(run)
    before = {"gnn1": "embed_output", "gnn2.0": "gnn1.output", "gnn2.1": "gnn2.0.output"}[layer]
    x = tensors[before] if layer == "gnn1" else tensors[before].relu()
    source, target = tensors["edge_index"]
    parts = (tensors[f"{layer}.{part}"] for part in ("score", "attention", "output"))
    found = totals(
        attention_measures(
            Call(x, x, source, target, tensors["edge_attr"], *parts), LAYERS[0], model.gnn.get_submodule(layer)
        )
    )
    half = {"score.std": 0.005, "score.min": 0.05, "score.max": 0.05, "output.rms": 0.0005, "output.max_abs": 0.005}
    figures = {"score.std": std, "score.min": low, "score.max": high, "output.rms": rms, "output.max_abs": peak}
    for name, figure in figures.items():
        assert found[name] == pytest.approx(figure, abs=half[name] * 1.02), name
    assert found["attention.entropy"] == pytest.approx(entropy, abs=0.00051)
    assert found["attention.one_hot_share"] == pytest.approx(one_hot, abs=0.00051)
    assert found["degree.mean"] == pytest.approx({3: 4.54, 7: 9.44}[agents], abs=0.005)
    assert found["degree.max"] == {3: 8, 7: 16}[agents]
    assert found["degree.isolated_share"] == pytest.approx({3: 0.005, 7: 0.007}[agents], abs=0.0005)


@given(seed=st.integers(0, 10**6), nodes=st.integers(1, 12), edges=st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_the_order_of_nodes_and_edges_does_not_matter(
    made: Callable[..., Any], seed: int, nodes: int, edges: int
) -> None:
    call, conv = made(seed, nodes, edges)
    node, edge = torch.randperm(nodes), torch.randperm(edges)
    new = torch.empty_like(node)
    new[node] = torch.arange(nodes)
    moved = dataclasses.replace(
        call,
        x_source=call.x_source[node],
        x_target=call.x_target[node],
        index_source=new[call.index_source][edge],
        index_target=new[call.index_target][edge],
        edge_attr=call.edge_attr[edge],
        score=call.score[edge],
        attention=call.attention[edge],
        output=call.output[node],
        message=call.message[node],
    )
    first, second = (
        totals(attention_measures(call, LAYERS[0], conv)),
        totals(attention_measures(moved, LAYERS[0], conv)),
    )
    assert first == pytest.approx(second, rel=1e-5, abs=1e-6, nan_ok=True)


@given(seed=st.integers(0, 10**6), factor=st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_scores_follow_the_square_of_the_input(made: Callable[..., Any], seed: int, factor: float) -> None:
    options = {"edge_dim": None, "bias": False}
    small, large = (totals(_measured(*made(seed, scale=s, **options))) for s in (1.0, factor))
    for name in ("score.max_abs", "score.std", "score.within_std", "precision.rounding"):
        assert large[name] == pytest.approx(factor**2 * small[name], rel=1e-4)
    assert large["score.rho"] == pytest.approx(factor**4 * small["score.rho"], rel=1e-4)
    assert large["precision.fp16_headroom"] == pytest.approx(small["precision.fp16_headroom"] / factor**2, rel=1e-4)
    # At an input of RMS 1 nothing is left of the factor.
    assert large["attention.entropy_unit_input"] == pytest.approx(small["attention.entropy_unit_input"], abs=1e-5)


@given(seed=st.integers(0, 10**6), size=st.floats(0, 1e4))
@settings(max_examples=25, deadline=None)
def test_an_offset_per_target_changes_neither_spread_nor_entropy(seed: int, size: float) -> None:
    torch.manual_seed(seed)
    index = torch.randint(0, 6, (40,))
    score = torch.randn(40, 2, dtype=torch.float64)
    shifted = score + size * torch.randn(6, 2, dtype=torch.float64)[index]
    degree = group_sizes(index, 6)
    numbers = []
    for values in (score, shifted):
        found = totals(score_measures(values, index, degree))
        found.update(totals(entropy_measures(_softmax(values, index), index, degree)))
        numbers.append({k: found[k] for k in ("score.within_std", "score.rho", "attention.entropy")})
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-6)


def _softmax(score: Tensor, index: Tensor) -> Tensor:
    out = torch.zeros_like(score)
    for node in index.unique():
        out[index == node] = score[index == node].softmax(0)
    return out


@pytest.mark.parametrize(("degree", "rho", "entropy"), [(7, 1, 0.58), (10, 0.25, 0.83), (50, 1, 0.48), (50, 4, 0.21), (200, 0.1, 0.90)])  # fmt: skip
def test_gaussian_scores_have_the_entropy_of_the_random_energy_model(degree: int, rho: float, entropy: float) -> None:
    torch.manual_seed(0)
    nodes = 400
    index = torch.arange(nodes).repeat_interleave(degree)
    score = torch.randn(nodes, degree, dtype=torch.float64) * math.sqrt(2 * rho * math.log(degree))
    found = totals(of_scores(score.view(-1, 1), index, nodes))
    # The population variance of d values falls short of σ² by the factor 1 − 1/d.
    assert found["score.rho"] == pytest.approx(rho * (1 - 1 / degree), rel=0.1)
    alpha = score.softmax(1).view(-1, 1)
    found = totals(entropy_measures(alpha, index, group_sizes(index, nodes)))
    assert found["attention.entropy"] == pytest.approx(entropy, abs=0.03)


def test_uniform_and_one_hot_attention_are_the_two_ends() -> None:
    index = torch.arange(3).repeat_interleave(4)
    degree = group_sizes(index, 3)
    uniform = totals(entropy_measures(torch.full((12, 2), 0.25), index, degree))
    assert uniform == pytest.approx({"attention.entropy": 1, "attention.one_hot_share": 0})
    hot = torch.zeros(12, 2)
    hot[::4] = 1
    assert totals(entropy_measures(hot, index, degree)) == {"attention.entropy": 0, "attention.one_hot_share": 1}
    hot[:4, 0] = 0.25
    mixed = entropy_measures(hot, index, degree)
    assert mixed["attention.one_hot_share"].per_head is not None
    assert mixed["attention.one_hot_share"].per_head.tolist() == pytest.approx([2 / 3, 1])


def test_targets_with_too_few_edges_are_left_out() -> None:
    score = torch.tensor([[1.0], [5.0], [9.0], [math.nan], [2.0], [100.0]])
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    found = totals(of_scores(score, index, 4))
    assert found["score.within_std"] == pytest.approx(np.std([1, 5, 9]))
    assert found["score.rho"] == pytest.approx(np.var([1, 5, 9]) / (2 * math.log(3)))
    assert math.isnan(found["score.std"])
    tree = totals(entropy_measures(torch.ones(3, 2), torch.arange(3), torch.ones(3)))
    assert all(math.isnan(v) for v in tree.values())


@pytest.mark.parametrize("size", [0, 1, 4])
def test_a_graph_without_edges_is_undefined_not_healthy(size: int) -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    found = of_scores(torch.zeros(0, 2), nothing, size)
    found |= entropy_measures(torch.zeros(0, 2), nothing, torch.zeros(size))
    found |= precision_measures(torch.zeros(0, 2), 2.0)
    assert all(math.isnan(v) for v in totals(found).values())
    assert all(v.per_head is not None and v.per_head.shape == (2,) for v in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_broken_score_shows(bad: float) -> None:
    score, index = torch.randn(8, 2), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    score[1, 0] = bad
    found = of_scores(score, index, 2)
    assert not math.isfinite(float(found["score.max_abs"].total))
    for name in ("score.std", "score.within_std", "score.rho"):
        assert math.isnan(float(found[name].total)), name
        assert found[name].per_head is not None
        assert math.isnan(found[name].per_head[0])
        assert math.isfinite(found[name].per_head[1]), "the other head is not touched"
    attention = torch.full((8, 2), 0.25)
    attention[1, 0] = math.nan
    assert all(math.isnan(v) for v in totals(entropy_measures(attention, index, group_sizes(index, 2))).values())


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_huge_and_tiny_scores_neither_overflow_nor_vanish(scale: float) -> None:
    torch.manual_seed(0)
    score, index = torch.randn(30, 2), torch.arange(5).repeat(6)
    expected = totals(of_scores(score, index, 5))
    found = totals(of_scores(score * scale, index, 5))
    for name in ("score.std", "score.within_std", "score.max_abs"):
        assert found[name] == pytest.approx(scale * expected[name], rel=1e-5)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8), (torch.float32, 2**-24), (torch.float64, 2**-53)])  # fmt: skip
def test_precision_is_that_of_the_scores_own_dtype(dtype: torch.dtype, unit: float) -> None:
    score = torch.tensor([[8.0, -16.0], [2.0, 4.0]], dtype=dtype)
    found = precision_measures(score, 8.0)
    assert found["precision.rounding"].per_head is not None
    assert found["precision.rounding"].per_head.tolist() == [8 * unit, 16 * unit]
    assert float(found["precision.rounding"].total) == 16 * unit
    assert float(found["precision.fp16_headroom"].total) == 65504 / (16 * 8)
    assert "precision.fp16_headroom" not in precision_measures(score, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_measured_in_full_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    score, index = (300 * torch.randn(400, 2)).to(dtype), torch.randint(0, 20, (400,))
    found = of_scores(score, index, 20)
    expected = by_loops(score, torch.ones(400, 2), index, 20)
    for name in found:
        assert float(found[name].total) == pytest.approx(expected[name][-1], rel=1e-9), name


def _measured(call: Call, conv: Any) -> Any:
    return attention_measures(call, LAYERS[0], conv)
