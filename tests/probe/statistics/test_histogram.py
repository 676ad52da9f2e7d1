"""Histograms of the scores: the counts of `torch.histogram`, recorded and read back as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import TransformerConv

import gnnstab
from gnnstab.probe.statistics._histogram import BINS, spread
from gnnstab.probe.statistics.numbers import extremes
from gnnstab.report.evidence import Evidence


def of(values: Tensor) -> Tensor:
    return spread(values, *extremes(values))


@given(st.integers(0, 10_000), st.integers(2, 300), st.sampled_from([2.0**-20, 1.0, 2.0**20]), st.booleans())
def test_counts_are_those_of_torch(seed: int, edges: int, scale: float, whole: bool) -> None:
    """Also for whole numbers from -16 to 16, which lie on the edges of the bins."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(0, 4, (edges, 3)).clip(-16, 16))
    values[0], values[1] = -16.0, 16.0
    values = (values.round() if whole else values) * scale
    found = of(values)
    assert found.dtype == torch.float64
    assert found.shape == (3, 2 + BINS)
    for column, (low, high, *counts) in zip(values.T.contiguous(), found.tolist(), strict=True):
        assert (low, high) == (float(column.min()), float(column.max()))
        assert counts == torch.histogram(column, BINS, range=(low, high)).hist.tolist()


@pytest.mark.parametrize("column", [[], [2.0, 2.0], [1.0, math.nan], [1.0, math.inf], [-math.inf, math.inf]])
def test_nothing_to_draw_never_raises(column: list[float]) -> None:
    low, high, *_ = of(torch.tensor(column, dtype=torch.float64).reshape(-1, 1))[0].tolist()
    assert not -math.inf < low < high < math.inf


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = TransformerConv(4, 8, heads=2, edge_dim=1)

    def forward(self, batch: Data) -> Tensor:
        out: Tensor = self.conv(batch.x, batch.edge_index, batch.edge_attr)
        return out


def case() -> tuple[Net, Data]:
    torch.manual_seed(3)
    edge_index = torch.randint(0, 30, (2, 200))
    return Net(), Data(x=3 * torch.randn(30, 4), edge_index=edge_index, edge_attr=torch.randn(200, 1))


def scores_by_hand(conv: Any, batch: Data) -> Tensor:
    """(E, H) in float64, from the weights alone."""
    conv = conv.double()
    source, target = batch.edge_index
    x = batch.x.double()
    query, key = (lin(x).view(-1, 2, 8) for lin in (conv.lin_query, conv.lin_key))
    edge = conv.lin_edge(batch.edge_attr.double()).view(-1, 2, 8)
    return (query[target] * (key[source] + edge)).sum(-1).detach() / math.sqrt(8)


def test_a_diagnosis_holds_the_scores_of_every_head() -> None:
    model, batch = case()
    shown = Evidence(gnnstab.diagnose(model, batch=batch)).distributions("conv")
    exact = scores_by_hand(model.conv, batch)
    assert [d.head for d in shown] == [0, 1]
    for d, column in zip(shown, exact.T, strict=True):
        assert d.counts.sum() == 200
        assert (d.edges[0], d.edges[-1]) == pytest.approx((float(column.min()), float(column.max())), rel=1e-5)
        # The layer computes in float32, so a score beside an edge may lie on its other side.
        beyond = np.abs(np.cumsum(d.counts) - np.searchsorted(np.sort(column.numpy()), d.edges[1:]))
        assert beyond.max() <= 2


def test_a_monitored_run_holds_them_too_and_a_constant_head_has_none() -> None:
    model, batch = case()
    with torch.no_grad():
        model.conv.lin_query.weight[:8] = 0
        model.conv.lin_query.bias[:8] = 0
    with gnnstab.Monitor(model, on_finding="ignore") as monitor:
        model(batch)
        monitor.step()
    first, second = Evidence(monitor.diagnose()).distributions("conv")
    assert (first.low, first.high, len(first.edges)) == (0, 0, 0)
    assert len(second.edges) == BINS + 1
    assert second.counts.sum() == 200


def test_a_run_that_ends_non_finite_shows_its_last_finite_scores() -> None:
    model, batch = case()
    with gnnstab.Monitor(model, on_finding="ignore", schedule="every step") as monitor:
        for scale in (1.0, 2.0, math.inf):
            model(Data(x=batch.x * scale, edge_index=batch.edge_index, edge_attr=batch.edge_attr))
            monitor.step()
    for d, column in zip(
        Evidence(monitor.diagnose()).distributions("conv"),
        scores_by_hand(model.conv, Data(x=2 * batch.x, edge_index=batch.edge_index, edge_attr=batch.edge_attr)).T,
        strict=True,
    ):
        assert (d.edges[0], d.edges[-1]) == pytest.approx((float(column.min()), float(column.max())), rel=1e-5)
