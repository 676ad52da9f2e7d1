"""The exponent of a sum aggregation: closed form against all halves, and the laws it must show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from gnnstab.probe.statistics import aggregation_measures, growth_over_degree
from models.informarl import load_actor, reference


def totals(numbers: dict[str, Any]) -> dict[str, float]:
    return {name: float(value.total) for name, value in numbers.items()}


def by_all_halves(messages: Any, index: Any, size: int) -> dict[str, float]:
    """Every half of every target's edges, one after the other (even in-degrees)."""
    messages, index = messages.double().numpy(), index.numpy()
    whole, half, sums = [], [], []
    for node in range(size):
        rows = messages[index == node]
        if len(rows):
            sums.append(rows.sum(0))
        if len(rows) >= 2:
            whole.append(np.sum(rows.sum(0) ** 2))
            halves = itertools.combinations(range(len(rows)), len(rows) // 2)
            half.append(np.mean([np.sum(rows[list(chosen)].sum(0) ** 2) for chosen in halves]))
    return {
        "aggregation.rms": float(np.sqrt(np.mean(np.square(sums)))),
        "aggregation.exponent": 0.5 * math.log2(np.mean(whole) / np.mean(half)) - 2 * falling(messages, index, size),
    }


def falling(messages: np.ndarray, index: np.ndarray, size: int) -> float:
    """The certain part of the power by which the RMS of a target's messages falls with its in-degree."""
    rows = [messages[index == node] for node in range(size) if (index == node).any()]
    x = [math.log(len(own)) for own in rows]
    if len(rows) < 3 or len(set(x)) < 2:
        return 0.0
    fit = stats.linregress(x, [0.5 * math.log(np.sum(own**2) / len(own)) for own in rows])
    freedom = len(rows) - 2
    return max(0.0, -float(fit.slope) - (2 + 10 / freedom**2) * float(fit.stderr))


def graph_of(degrees: list[int], weight: Callable[[int], float], common: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Messages of equal features, each times the weight that its target's in-degree gives it."""
    torch.manual_seed(0)
    index = torch.tensor([node for node, degree in enumerate(degrees) for _ in range(degree)])
    messages = (common + 0.3 * torch.randn(len(index), 8)) * torch.tensor([weight(degrees[i]) for i in index])[:, None]
    return messages, index


@pytest.mark.parametrize(("power", "expected"), [(0.0, 1.0), (0.5, 0.0), (1.0, -1.0)])
def test_messages_that_were_normalised_by_in_degree_make_no_growing_sum(power: float, expected: float) -> None:
    degrees = [3, 4, 6, 8, 12, 16, 24, 32] * 4
    messages, index = graph_of(degrees, lambda degree: degree**-power)
    found = totals(aggregation_measures(messages, index, len(degrees)))
    assert found["aggregation.exponent"] == pytest.approx(expected, abs=0.12)


def test_a_plain_sum_is_seen_where_all_in_degrees_are_alike_and_where_messages_scatter() -> None:
    for degrees in ([7] * 7, [4, 5, 6, 7, 8, 9]):
        messages, index = graph_of(degrees, lambda degree: 1.0)
        assert totals(aggregation_measures(messages, index, len(degrees)))["aggregation.exponent"] > 0.9


@given(seed=st.integers(0, 10**6), common=st.floats(-3, 3), pairs=st.lists(st.integers(0, 4), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_equal_to_the_mean_over_all_halves(seed: int, common: float, pairs: list[int]) -> None:
    torch.manual_seed(seed)
    index = torch.tensor([node for node in pairs for _ in range(2)] + [5])
    messages = torch.randn(len(index), 3) + common
    expected = by_all_halves(messages, index, 6)
    assert totals(aggregation_measures(messages, index, 6)) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    order = torch.randperm(len(index))
    shuffled = totals(aggregation_measures(messages[order], index[order], 6))
    assert shuffled == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("degree", [2, 3, 7, 50])
@pytest.mark.parametrize("layout", ["by target", "by source"])
def test_independent_messages_grow_with_the_root_and_aligned_ones_linearly(degree: int, layout: str) -> None:
    torch.manual_seed(0)
    nodes = 2000
    index = (
        torch.arange(nodes).repeat_interleave(degree) if layout == "by target" else torch.arange(nodes).repeat(degree)
    )
    independent = totals(aggregation_measures(torch.randn(nodes * degree, 4), index, nodes))
    assert independent["aggregation.exponent"] == pytest.approx(0.5, abs=0.02)
    assert independent["aggregation.rms"] == pytest.approx(math.sqrt(degree), rel=0.03)
    aligned = totals(aggregation_measures(torch.full((nodes * degree, 4), 0.3), index, nodes))
    assert aligned["aggregation.exponent"] == pytest.approx(1, abs=1e-5)
    assert aligned["aggregation.rms"] == pytest.approx(0.3 * degree)


def test_the_exponent_predicts_how_the_sum_grows_with_the_degree() -> None:
    torch.manual_seed(0)
    nodes, measured, sums = 1000, {}, {}
    for degree in (20, 40):
        index = torch.arange(nodes).repeat_interleave(degree)
        found = totals(aggregation_measures(torch.randn(nodes * degree, 4) + 0.2, index, nodes))
        measured[degree], sums[degree] = found["aggregation.exponent"], found["aggregation.rms"]
    assert measured[40] == pytest.approx(math.log2(sums[40] / sums[20]), abs=0.03)


def test_alternating_messages_are_not_fooled_by_their_order() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(50).view(-1, 1) + 0.01
    found = totals(aggregation_measures(signs, torch.zeros(100, dtype=torch.long), 1))
    assert found["aggregation.exponent"] < 0


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_the_exponent_is_free_of_scale(factor: float) -> None:
    torch.manual_seed(0)
    messages, index = torch.randn(60, 3), torch.randint(0, 9, (60,))
    one, other = (totals(aggregation_measures(m, index, 9)) for m in (messages, messages * factor))
    assert other["aggregation.exponent"] == pytest.approx(one["aggregation.exponent"], abs=1e-5)
    assert other["aggregation.rms"] == pytest.approx(factor * one["aggregation.rms"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_beyond_the_messages_own_dtype_are_measured(dtype: torch.dtype) -> None:
    found = totals(
        aggregation_measures(torch.full((100, 2), 3000.0, dtype=dtype), torch.zeros(100, dtype=torch.long), 1)
    )
    assert found["aggregation.rms"] == pytest.approx(100 * float(torch.tensor(3000.0, dtype=dtype)))


def test_undefined_and_broken_sums() -> None:
    none = totals(aggregation_measures(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 4))
    assert all(math.isnan(v) for v in none.values())
    tree = totals(aggregation_measures(torch.ones(3, 2), torch.arange(3), 3))
    assert tree["aggregation.rms"] == 1
    assert math.isnan(tree["aggregation.exponent"])
    broken = totals(aggregation_measures(torch.tensor([[1.0], [math.nan]]), torch.tensor([0, 0]), 1))
    assert all(math.isnan(v) for v in broken.values())


def test_the_real_embedding_grows_with_the_degree() -> None:
    tensors, model = reference(7), load_actor("agents7_default")
    embed, taken = model.gnn.embed_layer, list[Tensor]()
    embed.register_message_forward_hook(lambda _, __, out: taken.append(out))
    with torch.no_grad():
        output = embed(tensors["x"], tensors["edge_index"], tensors["edge_attr"])
    assert torch.allclose(output, tensors["embed_output"], atol=1e-4)
    found = totals(aggregation_measures(taken[0], tensors["edge_index"][1], len(output)))
    connected = torch.bincount(tensors["edge_index"][1], minlength=len(output)) > 0
    assert found["aggregation.rms"] == pytest.approx(float(output[connected].square().mean().sqrt()), rel=1e-5)
    assert 0.4 < found["aggregation.exponent"] <= 1
    assert found["aggregation.rms"] > 4


def test_what_grows_with_the_degree_is_told_from_means_and_from_chance() -> None:
    torch.manual_seed(0)
    degree = torch.randint(1, 200, (80,))
    rows, size = torch.randn(80, 8), degree.double()[:, None]
    assert 0.7 < float(growth_over_degree(size * rows, degree)) < 1.1
    assert float(growth_over_degree(size**0.5 * rows, degree)) < 0.5
    assert float(growth_over_degree(rows, degree)) < 0.1
    assert float(growth_over_degree(rows / size**0.5, degree)) == 0
    for alike in (torch.full((80,), 7), torch.zeros(80, dtype=torch.long)):
        assert float(growth_over_degree(size * rows, alike)) == 0
