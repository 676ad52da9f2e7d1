"""Degrees, graph sizes and raw features against numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gnnstab.probe.statistics import degree_measures, graph_measures, node_measures


def totals(numbers: dict[str, Any]) -> dict[str, float]:
    return {name: float(value.total) for name, value in numbers.items()}


@given(index=st.lists(st.integers(0, 8), max_size=40), extra=st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_degrees(index: list[int], extra: int) -> None:
    size = 9 + extra
    degree = np.bincount(np.array(index, dtype=int), minlength=size)
    connected = sorted(degree[degree > 0])
    assert totals(degree_measures(torch.tensor(index, dtype=torch.long), size)) == pytest.approx(
        {
            "degree.median": connected[(len(connected) - 1) // 2] if connected else math.nan,
            "degree.mean": degree.mean(),
            "degree.max": degree.max(),
            "degree.isolated_share": np.mean(degree == 0),
            "degree.at_most_one_share": np.mean(degree <= 1),
        },
        nan_ok=True,
    )


def test_degrees_of_nothing_are_undefined() -> None:
    assert all(math.isnan(v) for v in totals(degree_measures(torch.zeros(0, dtype=torch.long), 0)).values())


@given(batch=st.lists(st.integers(0, 50), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_smallest_graph(batch: list[int]) -> None:
    expected = min(batch.count(graph) for graph in set(batch))
    assert totals(graph_measures(torch.tensor(batch))) == {"graph.smallest": expected}


def test_no_graph_has_no_size() -> None:
    assert math.isnan(totals(graph_measures(torch.zeros(0, dtype=torch.long)))["graph.smallest"])


def features_by_numpy(x: Tensor) -> dict[str, float]:
    values = x.double().numpy()
    columns = np.sqrt(np.mean(values**2, axis=0))
    scales = sorted(columns[columns > 0])
    return {
        "feature.rms": float(np.sqrt(np.mean(values**2))),
        "feature.column_ratio": scales[-1] / scales[(len(scales) - 1) // 2] if scales else math.nan,
        "feature.constant_share": float(np.mean(values.min(0) == values.max(0))),
        "feature.non_finite": 0,
        "smoothness.relative_input": float(np.linalg.norm(values - values.mean(0)) / np.linalg.norm(values)),
    }


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-20, 1.0, 1e20]), big=st.sampled_from([1.0, 1e3]))
@settings(max_examples=30, deadline=None)
def test_features(seed: int, scale: float, big: float) -> None:
    torch.manual_seed(seed)
    x = scale * torch.randn(7, 5)
    x[:, 0] *= big
    x[:, 3] = 0
    x[:, 4] = scale
    assert totals(node_measures(x)) == pytest.approx(features_by_numpy(x), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (2000 * torch.randn(50, 6)).to(dtype)
    assert totals(node_measures(x)) == pytest.approx(features_by_numpy(x), rel=1e-5)


@pytest.mark.parametrize("x", [torch.arange(6).view(3, 2), torch.ones(3, 2, dtype=torch.bool), torch.tensor(1.0)])
def test_indices_are_no_features(x: Tensor) -> None:
    assert node_measures(x) == {}


def test_broken_features_are_counted_and_spoil_every_figure() -> None:
    x = torch.randn(6, 3)
    x[0, 0], x[1, 1] = math.nan, math.inf
    found = totals(node_measures(x))
    assert found.pop("feature.non_finite") == 2
    assert not any(math.isfinite(v) for v in found.values())


def test_vectors_dense_batches_and_empty_features() -> None:
    assert totals(node_measures(torch.tensor([3.0, 4.0])))["feature.rms"] == pytest.approx(math.sqrt(12.5))
    x = torch.randn(4, 5, 3)
    assert totals(node_measures(x)) == totals(node_measures(x.view(20, 3)))
    for empty in (torch.zeros(0, 3), torch.zeros(4, 0)):
        found = totals(node_measures(empty))
        assert found.pop("feature.non_finite") == 0
        assert all(math.isnan(v) for v in found.values())
    assert math.isnan(totals(node_measures(torch.ones(1, 3)))["feature.constant_share"])
