"""Attention whose weights are equal whatever its scores are, and weights that are equal by right."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.utils import softmax

import gnnstab
from gnnstab.records import Diagnosis
from rules.test_softmax_misused import FACES, Heads, Weigh, loss, misused, shops


def of_the_largest(scores: Tensor, near: Tensor) -> Tensor:
    opened = scores.masked_fill(near == 0, -torch.inf)
    return opened.amax(-1, keepdim=True).expand_as(scores).masked_fill(near == 0, -torch.inf).softmax(-1)


def of_each(scores: Tensor, near: Tensor) -> Tensor:
    weights = scores.sub(scores.detach().amax(-1, keepdim=True)).exp() * near
    return weights / weights.sum(-1, keepdim=True)


def mean_of_the_near(scores: Tensor, near: Tensor) -> Tensor:
    return torch.zeros_like(scores).masked_fill(near == 0, -torch.inf).softmax(-1)


def by_target(scores: Tensor, target: Tensor) -> Tensor:
    """The target's own number in place of one for each neighbour."""
    own = scores.new_zeros(int(target.max()) + 1, scores.shape[1]).index_add(0, target, scores)[target]
    weights = (own / 50).exp()
    return weights / (weights.new_zeros(own.shape).index_add(0, target, weights)[target] + 1e-16)


@FACES
@pytest.mark.parametrize(("weigh", "named"), [(of_the_largest, True), (of_each, False), (mean_of_the_near, False)])
def test_weights_that_no_score_moves_are_named(
    face: Callable[[nn.Module], Diagnosis], weigh: Weigh, named: bool
) -> None:
    told = misused(face, weigh, nn.Identity())
    assert [(f.cause, "uniform" in f.message and "answer, ask" in f.message) for f in told] == (
        [("normalization-misuse", True)] if named else []
    )


def one_hot(scores: Tensor, target: Tensor) -> Tensor:
    return softmax(1e5 * scores, target)


def test_weights_over_edges_that_no_score_moves_are_named() -> None:
    found = gnnstab.diagnose(Heads(by_target), batch=shops(), loss=loss)
    (told,) = [f for f in found.findings if f.code == "GS305"]
    assert "uniform" in told.message and "score" in told.message


@pytest.mark.parametrize(("weigh", "spread"), [(softmax, 0.0), (softmax, 1e-3), (one_hot, 1.0)])
def test_weights_that_are_equal_by_right(weigh: Weigh, spread: float) -> None:
    """Of neighbours that are alike, or nearly so, and of edges that stand there twice."""
    twice = shops()
    twice.x = twice.x[:1] + spread * (twice.x - twice.x[:1])
    twice.edge_index = twice.edge_index.repeat(1, 2)
    found = gnnstab.diagnose(Heads(weigh), batch=twice, loss=loss)
    assert not [f for f in found.findings if "uniform at" in f.message]
